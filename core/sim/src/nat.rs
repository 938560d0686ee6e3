//! The address under which an agent's datagrams reach the world.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A translator with one mapping, endpoint-independent, that lets in only what was asked for (address- and port-dependent
/// filtering, RFC 4787): the usual home router.
#[derive(Clone, Debug)]
pub struct Nat {
    external: SocketAddr,
    /// Whom the inside has sent to, and when last.
    permitted: BTreeMap<SocketAddr, Instant>,
    /// How long a silent permission lasts.
    idle: Duration,
    /// Datagrams that nobody inside asked for.
    unsolicited: u64,
}

impl Nat {
    /// A translator that maps its inside to `external`. A permission lasts two minutes of silence, the least that RFC
    /// 4787 (REQ-5) allows.
    #[must_use]
    pub fn new(external: SocketAddr) -> Self {
        Self {
            external,
            permitted: BTreeMap::new(),
            idle: Duration::from_secs(120),
            unsolicited: 0,
        }
    }

    /// The address others see.
    #[must_use]
    pub fn external(&self) -> SocketAddr {
        self.external
    }

    /// How long a permission lasts in silence, from now on.
    pub fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// How many datagrams were turned away.
    #[must_use]
    pub fn unsolicited(&self) -> u64 {
        self.unsolicited
    }

    /// The inside sends to `remote`; returns the source address `remote` sees.
    pub fn outbound(&mut self, now: Instant, remote: SocketAddr) -> SocketAddr {
        self.permitted.insert(remote, now);
        self.external
    }

    /// Whether a datagram from `remote` to `to` reaches the inside.
    pub fn inbound(&mut self, now: Instant, remote: SocketAddr, to: SocketAddr) -> bool {
        let asked_for = to == self.external
            && self
                .permitted
                .get(&remote)
                .is_some_and(|&last| now.saturating_duration_since(last) <= self.idle);
        if !asked_for {
            self.unsolicited += 1;
        }
        asked_for
    }

    /// A new mapping: what is sent to the old one is lost, and nobody may send to the new one before the inside does.
    pub fn rebind(&mut self, external: SocketAddr) {
        self.external = external;
        self.permitted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    fn only_what_was_asked_for_comes_in_and_rebinding_forgets() {
        let now = Instant::now();
        let [first, second, relay, other] = ["192.0.2.1:1", "192.0.2.1:2", "203.0.113.1:9", "203.0.113.2:9"]
            .map(|text| text.parse::<SocketAddr>().unwrap());
        let mut nat = Nat::new(first);
        assert!(!nat.inbound(now, relay, first), "nobody asked yet");
        assert_eq!(nat.outbound(now, relay), first);
        assert!(nat.inbound(now, relay, first));
        assert!(!nat.inbound(now, other, first), "another sender");
        assert!(
            !nat.inbound(now + Duration::from_secs(121), relay, first),
            "after a long silence"
        );
        nat.rebind(second);
        assert!(!nat.inbound(now, relay, first), "the old mapping");
        assert!(!nat.inbound(now, relay, second), "before the inside has sent");
        assert_eq!(nat.outbound(now, relay), second);
        assert!(nat.inbound(now, relay, second));
        assert_eq!(nat.unsolicited(), 5);
    }
}
