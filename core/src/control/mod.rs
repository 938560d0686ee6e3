//! The control channel: framed JSON over a TCP connection inside the tunnel.

mod message;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::message::{Kind, RefusalCode, UnknownKind};
pub(crate) use self::message::{PORT, ToAgent, ToRelay, VERSION};
use crate::budget::Budget;
use crate::stack::{FlowId, Stack};

/// The longest frame: its JSON, without the length in front.
pub(crate) const MAX_FRAME: usize = 16 * 1024;
/// Bytes that may wait to be sent before the other end counts as one that does not read.
const MAX_WAITING: usize = 64 * 1024;

/// Why a channel cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("a frame is longer than 16 KiB")]
    FrameTooLong,
    #[error("a frame is not a message")]
    Malformed,
    #[error("the other end does not read")]
    NotReading,
    #[error("the memory budget is used up")]
    NoMemory,
}

/// One end of a control channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) flow: FlowId,
    decoder: Decoder,
    waiting: Vec<u8>,
    held: usize,
}

impl Channel {
    /// A channel over an open flow.
    pub(crate) fn new(flow: FlowId) -> Self {
        Self {
            flow,
            decoder: Decoder::default(),
            waiting: Vec::new(),
            held: 0,
        }
    }

    /// Queues a message and sends what fits.
    pub(crate) fn send<M: Serialize>(
        &mut self,
        stack: &mut Stack,
        budget: &mut Budget,
        message: &M,
    ) -> Result<(), ChannelError> {
        encode(message, &mut self.waiting)?;
        self.flush(stack, budget)?;
        if self.waiting.len() > MAX_WAITING {
            Err(ChannelError::NotReading)
        } else {
            Ok(())
        }
    }

    /// Sends what waits and fits.
    pub(crate) fn flush(&mut self, stack: &mut Stack, budget: &mut Budget) -> Result<(), ChannelError> {
        if !self.waiting.is_empty() {
            let sent = stack.send(self.flow, &self.waiting);
            self.waiting.drain(..sent);
            if self.waiting.is_empty() {
                self.waiting = Vec::new();
            }
        }
        self.account(budget)
    }

    /// Takes the next message that has arrived whole.
    pub(crate) fn receive<M: DeserializeOwned>(
        &mut self,
        stack: &mut Stack,
        budget: &mut Budget,
    ) -> Result<Option<M>, ChannelError> {
        loop {
            if let Some(message) = self.decoder.next()? {
                self.account(budget)?;
                return Ok(Some(message));
            }
            let decoder = &mut self.decoder;
            if stack
                .drain(self.flow, &mut |bytes| decoder.push(bytes))
                .is_none_or(|taken| taken == 0)
            {
                self.account(budget)?;
                return Ok(None);
            }
        }
    }

    /// Gives back what the channel was charged.
    pub(crate) fn close(&mut self, budget: &mut Budget) {
        budget.release(self.held);
        *self = Self::new(self.flow);
    }

    /// What the channel is charged.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    fn account(&mut self, budget: &mut Budget) -> Result<(), ChannelError> {
        let held = self.decoder.buffer.capacity() + self.waiting.capacity();
        if !budget.recharge(self.held, held) {
            return Err(ChannelError::NoMemory);
        }
        self.held = held;
        Ok(())
    }
}

/// Appends a message's frame: its length as a big-endian u16, then its JSON.
pub(crate) fn encode<M: Serialize>(message: &M, out: &mut Vec<u8>) -> Result<(), ChannelError> {
    let json = serde_json::to_vec(message).map_err(|_| ChannelError::Malformed)?;
    let len = u16::try_from(json.len())
        .ok()
        .filter(|&len| usize::from(len) <= MAX_FRAME);
    out.extend_from_slice(&len.ok_or(ChannelError::FrameTooLong)?.to_be_bytes());
    out.extend_from_slice(&json);
    Ok(())
}

/// Cuts a byte stream into messages. Holds at most one frame.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes as many of the bytes as belong to the current frame and returns how many that were.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let missing = self.frame_len().unwrap_or(2).saturating_sub(self.buffer.len());
        let taken = missing.min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The current frame's message, once it is whole.
    pub(crate) fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, ChannelError> {
        let Some(len) = self.frame_len() else {
            return Ok(None);
        };
        if len > 2 + MAX_FRAME {
            return Err(ChannelError::FrameTooLong);
        }
        if self.buffer.len() < len {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.buffer[2..len]).map_err(|_| ChannelError::Malformed)?;
        self.buffer = Vec::new();
        Ok(Some(message))
    }

    /// The current frame's length with its two bytes in front, once these are there.
    fn frame_len(&self) -> Option<usize> {
        let (len, _) = self.buffer.split_first_chunk::<2>()?;
        Some(2 + usize::from(u16::from_be_bytes(*len)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(mut bytes: &[u8], step: usize) -> Result<Vec<ToRelay>, ChannelError> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        loop {
            while let Some(message) = decoder.next()? {
                messages.push(message);
            }
            if bytes.is_empty() {
                return Ok(messages);
            }
            let taken = decoder.push(&bytes[..step.min(bytes.len())]);
            bytes = &bytes[taken..];
        }
    }

    fn message() -> impl Strategy<Value = ToRelay> {
        let kind = prop::sample::select(vec![Kind::Http, Kind::Https, Kind::Tls, Kind::Tcp, Kind::Udp]);
        prop_oneof![
            (any::<u32>(), ".{0,20}", any::<u64>()).prop_map(|(version, agent, instance)| {
                ToRelay::Hello {
                    version,
                    agent,
                    caps: Vec::new(),
                    instance,
                }
            }),
            (".{0,20}", kind, proptest::option::of(".{0,70}"), any::<Option<u16>>())
                .prop_map(|(id, kind, name, port)| ToRelay::Register { id, kind, name, port }),
            any::<u64>().prop_map(|lease| ToRelay::Unregister { lease }),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back_however_the_bytes_are_cut(messages in proptest::collection::vec(message(), 0..5), step in 1usize..40) {
            let mut bytes = Vec::new();
            for message in &messages {
                encode(message, &mut bytes).unwrap();
            }
            prop_assert_eq!(decode_all(&bytes, step).unwrap(), messages);
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..40) {
            let _ = decode_all(&bytes, step);
        }
    }

    fn frame(json: &str) -> Vec<u8> {
        let mut bytes = u16::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_types_are_named_unknown() {
        assert_eq!(
            decode_all(&frame(r#"{"type":"unregister","lease":3,"later":[1]}"#), 9),
            Ok(vec![ToRelay::Unregister { lease: 3 }])
        );
        assert_eq!(
            decode_all(&frame(r#"{"type":"teleport","to":"mars"}"#), 9),
            Ok(vec![ToRelay::Unknown])
        );
        assert_eq!(decode_all(&frame("[]"), 9), Err(ChannelError::Malformed));
        assert_eq!(decode_all(&[0xff, 0xff], 9), Err(ChannelError::FrameTooLong));
    }

    #[test]
    fn a_message_too_long_is_not_sent() {
        let long = ToRelay::Goaway {
            reason: "x".repeat(MAX_FRAME),
        };
        assert_eq!(encode(&long, &mut Vec::new()), Err(ChannelError::FrameTooLong));
    }
}
