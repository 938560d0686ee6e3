//! What was sent when: a running hash for comparing runs, and a log on request.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use crate::random::mix;

/// One datagram that left a tunnel socket. Its bytes are not part of it: they hold ephemeral keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Since the world began.
    pub at: Duration,
    /// The sender's own address.
    pub from: SocketAddr,
    /// Whereto.
    pub to: SocketAddr,
    /// Its length.
    pub len: usize,
    /// WireGuard's message type: 1 initiation, 2 response, 3 cookie, 4 data.
    pub kind: u8,
}

/// The record of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    count: u64,
    log: Option<Vec<Record>>,
}

impl Trace {
    /// A number that is the same for equal runs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many datagrams were sent.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Keeps every record from now on.
    pub fn keep_log(&mut self) {
        self.log.get_or_insert_default();
    }

    /// The records since [`Trace::keep_log`].
    #[must_use]
    pub fn log(&self) -> &[Record] {
        self.log.as_deref().unwrap_or_default()
    }

    pub(crate) fn datagram(&mut self, record: Record) {
        self.count += 1;
        self.note(&record);
        if let Some(log) = &mut self.log {
            log.push(record);
        }
    }

    /// Adds anything else whose equality is to be compared.
    pub fn note(&mut self, what: &impl Hash) {
        let mut fold = Fold(self.hash);
        what.hash(&mut fold);
        self.hash = fold.0;
    }

    /// The same for what only has a text.
    pub fn note_debug(&mut self, what: &impl fmt::Debug) {
        self.note(&format!("{what:?}"));
    }
}

/// A hasher without a key, so that runs of different processes can be compared.
struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0.rotate_left(5) ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
}
