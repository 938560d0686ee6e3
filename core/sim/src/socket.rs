//! A kernel socket as a script: what it still sends, how fast it reads, and what it was told.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ledger::{Ledger, SideId};

/// What a scripted socket has done and has been told. Tests change what is public.
#[derive(Debug, Default)]
pub struct Socket {
    /// Bytes to be read from it, in a literal script.
    pub to_send: VecDeque<u8>,
    /// Bytes written to it, in a literal script.
    pub received: Vec<u8>,
    /// Its side in the ledger, if its bytes are modelled.
    pub side: Option<SideId>,
    /// How many modelled bytes it has yet to send.
    pub left_to_send: u64,
    /// A FIN comes behind what is to be sent.
    pub fin_to_send: bool,
    /// That FIN was read.
    pub fin_sent: bool,
    /// Its write side was shut.
    pub fin_received: bool,
    /// A FIN is answered by a FIN.
    pub fin_answers_fin: bool,
    /// It was reset.
    pub reset: bool,
    /// It was closed in good order, or after it failed by itself.
    pub closed: bool,
    /// What is written to it comes back (literal scripts only).
    pub echo: bool,
    /// For each byte that is written to it, it sends one more, and it takes none while so many are left to send (modelled
    /// scripts only). One that has its FIN to send does not.
    pub echoes: Option<u64>,
    /// It takes what is written to it.
    pub reads: bool,
    /// How fast it is.
    pub pace: Pace,
    pub(crate) connected: bool,
    pub(crate) read_wanted: bool,
    pub(crate) write_wanted: bool,
    pub(crate) paused: bool,
}

/// How fast a socket moves bytes, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Bytes that one read or write moves at most.
    pub chunk: usize,
    /// How long it then takes until the next.
    pub pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            chunk: usize::MAX,
            pause: Duration::ZERO,
        }
    }
}

impl Socket {
    /// A connected socket with a literal script that reads everything.
    #[must_use]
    pub fn literal() -> Self {
        Self {
            reads: true,
            connected: true,
            ..Self::default()
        }
    }

    /// A connected socket whose bytes are modelled and that sends its opening and `more` bytes.
    #[must_use]
    pub fn modelled(side: SideId, opening: u64, more: u64) -> Self {
        Self {
            side: Some(side),
            left_to_send: opening + more,
            ..Self::literal()
        }
    }

    /// Whether nothing happens to it any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.reset || self.closed
    }

    /// Whether it takes what is written to it now.
    pub(crate) fn takes(&self) -> bool {
        self.reads && self.room_to_echo().is_none_or(|room| room > 0)
    }

    /// How many bytes it still takes before it has sent some.
    fn room_to_echo(&self) -> Option<u64> {
        let most = self.echoes.filter(|_| self.side.is_some() && !self.fin_to_send)?;
        Some(most.saturating_sub(self.left_to_send))
    }

    /// Whether there is something to read from it.
    pub(crate) fn has_bytes(&self) -> bool {
        self.left_to_send > 0 || !self.to_send.is_empty()
    }

    /// The kernel's read.
    pub(crate) fn read(&mut self, ledger: &mut Ledger, room: &mut [u8]) -> usize {
        assert!(!room.is_empty(), "an empty buffer was offered");
        let room = if room.len() > self.pace.chunk {
            &mut room[..self.pace.chunk]
        } else {
            room
        };
        let Some(side) = self.side else {
            let count = room.len().min(self.to_send.len());
            let (front, back) = self.to_send.as_slices();
            let split = front.len().min(count);
            room[..split].copy_from_slice(&front[..split]);
            room[split..count].copy_from_slice(&back[..count - split]);
            self.to_send.drain(..count);
            return count;
        };
        let count = room.len().min(usize::try_from(self.left_to_send).unwrap_or(usize::MAX));
        ledger.send(side, &mut room[..count]);
        self.left_to_send -= count as u64;
        count
    }

    /// The kernel's write.
    pub(crate) fn write(&mut self, ledger: &mut Ledger, bytes: &[u8]) -> usize {
        assert!(!bytes.is_empty(), "nothing was offered");
        let room = self.room_to_echo();
        let most = room.map_or(usize::MAX, |room| usize::try_from(room).unwrap_or(usize::MAX));
        let bytes = &bytes[..bytes.len().min(self.pace.chunk).min(most)];
        if let Some(side) = self.side {
            ledger.receive(side, bytes);
            self.left_to_send += if room.is_some() { bytes.len() as u64 } else { 0 };
        } else {
            self.received.extend_from_slice(bytes);
            if self.echo {
                self.to_send.extend(bytes);
            }
        }
        bytes.len()
    }
}
