//! Which handshake messages are worth a Diffie-Hellman: MAC1, then a bucket a source, then the cookie.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use blake2::digest::Mac;
use blake2::{Blake2s256, Blake2sMac, Digest};
use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use crate::seed::{Hasher, Random};

/// Decides about handshake messages before anything expensive is done for them. Its memory is fixed at construction.
pub(super) struct Admission {
    mac1_key: [u8; 32],
    cookies: RateLimiter,
    /// For each bucket, when all that its sources have used is earned again, in microseconds from `start`.
    buckets: Box<[u64]>,
    start: Instant,
    hasher: Hasher,
}

/// What becomes of a handshake message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on with it.
    Pass,
    /// Its MAC1 is wrong.
    BadMac1,
    /// Its source has used up its share.
    SourceLimit,
    /// Send back the cookie reply of this length.
    Cookie(usize),
}

/// Handshake messages a second from one source, and how many at once. Many agents may share one address behind a NAT.
const SOURCE_RATE: u64 = 50;
const SOURCE_BURST: u64 = 100;
/// Microseconds in which a source earns a message.
const EARNED_IN: u64 = 1_000_000 / SOURCE_RATE;
/// Handshake messages a second in all above which cookies are asked for. At about 0.2 ms each this is a tenth of a core.
const LOAD_LIMIT: u64 = 500;
/// Sources share buckets by a seeded hash: a fixed table cannot be grown by spoofed addresses.
const BUCKETS: usize = 4096;
/// WireGuard paper, section 5.4.4: `LABEL-MAC1`.
const LABEL_MAC1: &[u8] = b"mac1----";

impl Admission {
    pub(super) fn new(public_key: &x25519::PublicKey, now: Instant, random: &mut Random) -> Self {
        let mut hash = Blake2s256::new();
        Digest::update(&mut hash, LABEL_MAC1);
        Digest::update(&mut hash, public_key.as_bytes());
        Self {
            mac1_key: hash.finalize().into(),
            cookies: RateLimiter::new(public_key, LOAD_LIMIT),
            // Zeros cost no memory before they are used.
            buckets: vec![0; BUCKETS].into_boxed_slice(),
            start: now,
            hasher: random.hasher(),
        }
    }

    /// Judges a handshake message of the right type and length (WireGuard paper, sections 5.3 and 5.4.4). The clock must
    /// have been entered. A cookie reply is written to the front of `reply`.
    pub(super) fn judge(&mut self, now: Instant, source: IpAddr, message: &[u8], reply: &mut [u8]) -> Verdict {
        if !self.mac1_holds(message) {
            return Verdict::BadMac1;
        }
        if !self.take_token(now, source) {
            return Verdict::SourceLimit;
        }
        self.cookies.reset_count();
        match self.cookies.verify_packet(Some(source), message, reply) {
            Ok(_) => Verdict::Pass,
            Err(TunnResult::WriteToNetwork(cookie)) => Verdict::Cookie(cookie.len()),
            Err(_) => Verdict::BadMac1,
        }
    }

    fn mac1_holds(&self, message: &[u8]) -> bool {
        let Some(signed) = message.len().checked_sub(32) else {
            return false;
        };
        let Ok(mut mac) = Blake2sMac::<blake2::digest::consts::U16>::new_from_slice(&self.mac1_key) else {
            return false;
        };
        Mac::update(&mut mac, &message[..signed]);
        mac.verify_slice(&message[signed..signed + 16]).is_ok()
    }

    fn take_token(&mut self, now: Instant, source: IpAddr) -> bool {
        let slot = self.hasher.hash_one(source_prefix(source)) as usize % self.buckets.len();
        let earned_at = &mut self.buckets[slot];
        let now = u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX);
        let used = earned_at.saturating_sub(now);
        let admitted = used <= (SOURCE_BURST - 1) * EARNED_IN;
        if admitted {
            *earned_at = now.saturating_add(used + EARNED_IN);
        }
        admitted
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, which is what one customer gets.
pub(crate) fn source_prefix(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}
