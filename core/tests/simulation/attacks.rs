//! What strangers send: junk, changed copies and old copies of real datagrams. None of it may move or confuse anybody.

use std::net::SocketAddr;

use portal_sim::{Captured, HostId};

use crate::setup::Simulation;

impl Simulation {
    pub(crate) fn send_junk(&mut self) {
        let len = self.random.index(1600);
        let mut bytes: Vec<u8> = (0..len).map(|_| self.random.u64() as u8).collect();
        if let Some(head) = bytes.first_chunk_mut::<4>() {
            // Half of it looks like WireGuard at the first glance.
            if self.random.chance(500_000) {
                *head = [1 + self.random.below(4) as u8, 0, 0, 0];
            }
        }
        if self.random.chance(500_000) {
            bytes.resize([148, 92, 64, 32][self.random.index(4)], 0);
        }
        let (host, from) = (self.some_host(), self.stranger());
        self.world.inject(host, from, &bytes);
    }

    pub(crate) fn send_mutant(&mut self) {
        let Some(mut copy) = self.some_captured() else { return };
        match self.random.below(4) {
            0 => copy.bytes.truncate(self.random.index(copy.bytes.len())),
            1 => copy.bytes.extend((0..1 + self.random.below(16)).map(|_| 0)),
            _ => {
                for _ in 0..1 + self.random.below(3) {
                    let at = self.random.index(copy.bytes.len());
                    copy.bytes[at] ^= 1 << self.random.below(8);
                }
            }
        }
        self.inject_copy(&copy);
    }

    pub(crate) fn send_replay(&mut self) {
        if let Some(copy) = self.some_captured() {
            self.inject_copy(&copy);
        }
    }

    /// From a stranger's address, or with the sender's forged.
    fn inject_copy(&mut self, copy: &Captured) {
        let host = if self.random.chance(900_000) {
            copy.host
        } else {
            self.some_host()
        };
        let from = if self.random.chance(700_000) {
            self.stranger()
        } else {
            copy.from
        };
        self.world.inject(host, from, &copy.bytes);
    }

    fn some_captured(&mut self) -> Option<Captured> {
        let captured = &self.world.captured;
        (!captured.is_empty()).then(|| captured[self.random.index(captured.len())].clone())
    }

    fn some_host(&mut self) -> HostId {
        if self.random.chance(600_000) {
            HostId::Relay(self.random.index(self.world.relays.len()))
        } else {
            HostId::Agent(self.some_agent())
        }
    }

    fn stranger(&mut self) -> SocketAddr {
        SocketAddr::from((
            [198, 18, 0, self.random.below(4) as u8],
            1000 + self.random.below(4) as u16,
        ))
    }
}
