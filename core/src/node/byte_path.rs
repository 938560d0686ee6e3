//! The byte path of a stream: between the kernel socket, which a runtime reads and writes, and the flow.

use crate::machine::{Action, ByteStream, StreamId};
use crate::node::Owned;
use crate::node::meter::{Hand, Lane};
use crate::node::stream::{End, key};
use crate::node::tls::CHUNK;

/// How much is read of a head at a time.
const HEAD_STEP: usize = 2048;
/// Bytes of a visitor who was already answered are thrown away through this.
const DISCARD: usize = 4096;

/// A stream's byte path, borrowed from its machine.
#[derive(Debug)]
pub struct StreamMut<'a, M> {
    machine: &'a mut M,
    now: std::time::Instant,
    id: StreamId,
}

impl<'a, M: Owned> StreamMut<'a, M> {
    pub(crate) fn new(machine: &'a mut M, now: std::time::Instant, id: StreamId) -> Option<Self> {
        machine.node().streams.get(key(id))?;
        Some(Self { machine, now, id })
    }
}

impl<M: Owned> StreamMut<'_, M> {
    /// The same as [`ByteStream::fill`] where TLS stands between socket and flow.
    fn fill_tls(&mut self, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let stream = node.streams.get_mut(key(self.id))?;
        let tls = stream.tls.as_mut()?;
        if !tls.can_take() || stream.farewell.is_some() {
            stream.read_wanted = false;
            return None;
        }
        let mut chunk = [0; CHUNK];
        let count = read(&mut chunk).min(CHUNK);
        stream.from_socket += count as u64;
        match tls.take(self.now, &chunk[..count]) {
            Ok(()) => {
                // A target that says within TLS that it has ended need not say it again by FIN.
                if tls.has_target_ended() {
                    (stream.read_ended, stream.read_wanted) = (true, false);
                }
                node.service(self.id);
            }
            Err(failed) => node.tls_failed(self.id, failed),
        }
        self.machine.settle(self.now);
        Some(count)
    }

    /// The same as [`ByteStream::fill`] where no rate is in the way.
    fn fill_freely(&mut self, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let stream = node.streams.get_mut(key(self.id))?;
        if stream.read_ended {
            return None;
        }
        if let Some(len) = stream.head.as_ref().map(Vec::len) {
            let room = HEAD_STEP.min(stream.head_limit - len);
            if room == 0 {
                stream.read_wanted = false;
                return None;
            }
            if !node.hold(self.id, len + room) {
                self.machine.settle(self.now);
                return None;
            }
            let stream = node.streams.get_mut(key(self.id))?;
            let head = stream.head.as_mut()?;
            head.resize(len + room, 0);
            let count = read(&mut head[len..]).min(room);
            head.truncate(len + count);
            stream.from_socket += count as u64;
            self.machine.head_grew(self.now, self.id);
            return Some(count);
        }
        if stream.answer.is_some() {
            return Some(read(&mut [0; DISCARD]).min(DISCARD));
        }
        if stream.tls.is_some() {
            return self.fill_tls(read);
        }
        let filled = match stream.flow {
            Some(flow) if stream.prefix.is_empty() => node.stack.fill(flow, read),
            _ => None,
        };
        match filled {
            Some(count) => stream.from_socket += count as u64,
            None => stream.read_wanted = false,
        }
        filled
    }

    /// The same as [`ByteStream::drain`] where no rate is in the way.
    fn drain_freely(&mut self, write: &mut dyn FnMut(&[u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let stream = node.streams.get_mut(key(self.id))?;
        let drained = match (&mut stream.answer, stream.flow) {
            (Some(answer), _) if !answer.is_empty() => {
                let count = write(answer).min(answer.len());
                answer.drain(..count);
                Some(count)
            }
            (None, Some(_)) if !stream.lead.is_empty() => {
                let count = write(&stream.lead).min(stream.lead.len());
                stream.lead.drain(..count);
                if stream.lead.is_empty() {
                    stream.lead = Vec::new();
                    node.resources.budget.release(stream.held - stream.charge());
                    stream.held = stream.charge();
                }
                // The header is none of the visitor's bytes.
                return Some(count);
            }
            (None, Some(flow)) => match &mut stream.tls {
                None => node.stack.drain(flow, write),
                Some(tls) if tls.to_socket().is_empty() => None,
                Some(tls) => {
                    let count = write(tls.to_socket()).min(tls.to_socket().len());
                    tls.took(count);
                    Some(count)
                }
            },
            _ => None,
        };
        match drained {
            Some(count) => stream.to_socket += count as u64,
            None => stream.write_wanted = false,
        }
        let is_empty = match (&stream.answer, stream.flow) {
            (Some(answer), _) => answer.is_empty(),
            (None, Some(flow)) => match &stream.tls {
                Some(tls) => tls.to_socket().is_empty(),
                None => node.stack.view(flow).is_none_or(|view| !view.can_receive),
            },
            (None, None) => true,
        };
        if is_empty {
            // The end may be behind the last byte.
            stream.write_wanted = false;
            node.service(self.id);
            self.machine.settle(self.now);
        }
        drained
    }

    /// Says what became of the bytes that were in hand.
    fn moved(&mut self, lane: Lane, hand: Hand, moved: Option<usize>, offered: usize) {
        let (node, bytes) = (self.machine.node(), moved.unwrap_or(0));
        if node.moved(self.now, self.id, lane, hand, bytes, offered) {
            self.machine.settle(self.now);
        }
    }
}

impl<M: Owned> ByteStream for StreamMut<'_, M> {
    fn fill(&mut self, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let Some(hand) = node.allowance(self.now, self.id, Lane::Fill) else {
            // Its turn brings the next WantRead.
            node.stream_mut(self.id)?.read_wanted = false;
            return None;
        };
        if hand.is_free() {
            return self.fill_freely(read);
        }
        let mut offered = 0;
        let filled = self.fill_freely(&mut |room| {
            offered = hand.most_of(room.len());
            read(&mut room[..offered]).min(offered)
        });
        self.moved(Lane::Fill, hand, filled, offered);
        filled
    }

    fn drain(&mut self, write: &mut dyn FnMut(&[u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let Some(hand) = node.allowance(self.now, self.id, Lane::Drain) else {
            // Its turn brings the next WantWrite.
            node.stream_mut(self.id)?.write_wanted = false;
            return None;
        };
        if hand.is_free() {
            return self.drain_freely(write);
        }
        let mut offered = 0;
        let drained = self.drain_freely(&mut |bytes| {
            offered = hand.most_of(bytes.len());
            write(&bytes[..offered]).min(offered)
        });
        self.moved(Lane::Drain, hand, drained, offered);
        drained
    }

    fn shutdown(&mut self) {
        let node = self.machine.node();
        let Some(stream) = node.streams.get_mut(key(self.id)) else {
            return;
        };
        if stream.farewell.is_some() {
            return;
        }
        stream.read_ended = true;
        stream.read_wanted = false;
        match (&mut stream.tls, stream.flow) {
            (Some(tls), _) => {
                if let Err(failed) = tls.socket_ended() {
                    node.tls_failed(self.id, failed);
                    return self.machine.settle(self.now);
                }
            }
            (None, Some(flow)) if stream.prefix.is_empty() => node.stack.close(flow),
            _ => {}
        }
        if stream.head.is_some() {
            self.machine.head_grew(self.now, self.id);
        } else {
            node.service(self.id);
        }
        self.machine.settle(self.now);
    }

    fn abort(&mut self) {
        let node = self.machine.node();
        // A socket that has gone is no news where its visitor is being told so.
        if node.stream(self.id).is_some_and(|stream| stream.farewell.is_none()) {
            node.actions.push_back(Action::Close(self.id));
            node.remove_stream(self.id, true, End::SocketFailed);
            self.machine.settle(self.now);
        }
    }
}
