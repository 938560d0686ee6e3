//! The model of UDP visitors: datagrams may be lost, but none arrives changed, twice, or at somebody else.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::content;

/// What was sent by visitors and where it has been. Datagrams that are not of the model are left alone.
#[derive(Debug, Default)]
pub struct UdpLedger {
    sent: BTreeMap<u64, Datagram>,
    number: u64,
    at_target: u64,
    answered: u64,
}

#[derive(Debug)]
struct Datagram {
    visitor: SocketAddr,
    len: usize,
    at_target: bool,
    answered: bool,
}

/// What modelled payloads begin with; a number of 8 bytes and a pattern follow.
const MAGIC: &[u8; 4] = b"SIMU";
const HEADER: usize = 12;

impl UdpLedger {
    /// A payload that `visitor` sends, of `len` bytes but at least its header.
    pub fn payload(&mut self, visitor: SocketAddr, len: usize) -> Vec<u8> {
        self.number += 1;
        let mut payload = vec![0; len.max(HEADER)];
        payload[..4].copy_from_slice(MAGIC);
        payload[4..HEADER].copy_from_slice(&self.number.to_be_bytes());
        content::fill(self.number, 0, &mut payload[HEADER..]);
        let datagram = Datagram {
            visitor,
            len: payload.len(),
            at_target: false,
            answered: false,
        };
        self.sent.insert(self.number, datagram);
        if self.sent.len() > 10_000 {
            self.sent.pop_first();
        }
        payload
    }

    /// A target got `payload`. Returns whether it is of the model.
    ///
    /// # Panics
    /// If it was changed, or came before.
    pub fn reaches_target(&mut self, payload: &[u8]) -> bool {
        let Some((number, datagram)) = self.find(payload) else {
            return false;
        };
        assert!(!datagram.at_target, "datagram {number} reached its target twice");
        datagram.at_target = true;
        self.at_target += 1;
        true
    }

    /// The visitor at `remote` got `payload` back. Returns whether it is of the model.
    ///
    /// # Panics
    /// If it was changed, came before, or is not this visitor's.
    pub fn comes_back(&mut self, remote: SocketAddr, payload: &[u8]) -> bool {
        let Some((number, datagram)) = self.find(payload) else {
            return false;
        };
        assert!(
            datagram.at_target,
            "datagram {number} came back without having been there"
        );
        assert!(!datagram.answered, "datagram {number} came back twice");
        assert_eq!(
            datagram.visitor, remote,
            "datagram {number} came back to another visitor"
        );
        datagram.answered = true;
        self.answered += 1;
        true
    }

    /// How many reached their target, and how many came back.
    #[must_use]
    pub fn delivered(&self) -> (u64, u64) {
        (self.at_target, self.answered)
    }

    fn find(&mut self, payload: &[u8]) -> Option<(u64, &mut Datagram)> {
        let number = payload.strip_prefix(MAGIC)?.first_chunk()?;
        let number = u64::from_be_bytes(*number);
        let datagram = self.sent.get_mut(&number)?;
        assert_eq!(payload.len(), datagram.len, "datagram {number} changed its length");
        assert!(
            content::matches(number, 0, &payload[HEADER..]),
            "datagram {number} was changed"
        );
        Some((number, datagram))
    }
}
