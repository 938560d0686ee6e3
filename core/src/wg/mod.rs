//! WireGuard: boringtun behind an injected clock, its peers, and who may become one.
//!
//! Everything that comes in passes [`Wg::open`], everything that goes out [`Wg::seal`]. Peers are found by receiver index
//! (24 random bits, so that they do not tell how many there are), by public key and by overlay address.
//!
//! # What boringtun 0.7 leaves to us
//!
//! - Its timestamps are as old as the last `update_timers`: it is called before every use if 250 ms have passed, and by
//!   our own timers otherwise. A peer without a session has no timer.
//! - Its buffers must be large enough or it panics: the one place that calls it checks them.
//! - Cookie replies look like handshake responses in its results: the first byte tells, and only an accepted initiation,
//!   response or data packet moves a peer's path.
//! - Its rate limiter counts a message twice when used in front and inside: the inner one is without limit.
//! - It queues packets without a session in memory we do not count: nothing is handed to it before there is one.
//!
//! # The paper's rules
//!
//! Each with the test that has its numbers. What is left of boringtun's deviations costs a packet, a handshake or the time
//! that its row names.
//!
//! | rule (section) | test | |
//! |---|---|---|
//! | Who began a session renews it when it sends after 120 s (6.2) | `who_began_a_session_renews_it_when_it_sends_after_120_seconds` | holds |
//! | A session that carries no data is not renewed (6.2) | `a_session_that_only_kept_alive_is_not_renewed_and_one_that_was_used_once_is` | holds; data at any time in it counts as data after 120 s: one handshake more |
//! | Who began a session and only hears renews it after 165 s (6.2) | `who_began_a_session_and_only_hears_renews_it_after_165_seconds` | holds |
//! | Renewal after 2^60 messages, none sent after 2^64 - 2^13 - 1 (6.2) | `no_message_is_taken_beyond_the_last_that_may_be_counted` | not counted when sending: no line carries so many in 180 s; what is taken in is bounded by us |
//! | Nothing is sent on a session after 180 s (6.2) | `nothing_is_sealed_on_a_session_older_than_180_seconds` | holds |
//! | Nor taken in (6.2) | `nothing_is_opened_on_a_session_older_than_180_seconds` | holds, 250 ms late at most |
//! | A handshake is tried again after 5 s and up to 333 ms, and given up after 90 s (6.4) | `a_handshake_is_tried_again_after_5_seconds_with_jitter_and_given_up_after_90` | holds: the jitter is ours; an agent calls its relay every 1 to 5 s, with a jitter of its own |
//! | Data is answered by a keepalive after 10 s of silence (6.5) | `data_is_answered_by_a_keepalive_after_10_seconds_of_silence` | counts from the last packet sent |
//! | The same after a silence, or at once after an answer (6.5) | `after_a_silence_the_keepalive_comes_at_once_and_after_an_answer_within_250_ms_not_at_all` | comes early, or not at all: one packet more or fewer, or a handshake of the other end's |
//! | Data that draws nothing for 15 s starts a handshake (6.5) | `data_that_draws_nothing_for_15_seconds_starts_a_handshake` | counts from the last packet heard: early after a silence |
//! | Keys are erased after 540 s (6.3) | `keys_are_erased_after_540_seconds` | up to a minute late; forgotten, not overwritten in memory |
//! | MAC1 before anything else (5.3) | `a_wrong_mac1_costs_nothing_more_than_the_mac` | holds |
//! | Under load, a cookie is asked for (5.3) | `under_load_from_many_sources_cookies_are_asked_for_and_answered` | holds |
//! | Without load, none is (5.3) | `each_handshake_counts_once` | holds |
//! | A cookie is used for 120 s (5.4.7) | `a_cookie_is_used_for_120_seconds` | holds |
//! | The secret of cookies changes every 120 s (5.4.7) | `a_cookie_is_honoured_for_as_long_as_its_secret_which_is_128_seconds` | 128 s |
//! | A cookie is for an address and a port (5.4.7) | `a_cookie_is_of_use_at_its_own_address_only` | for the address |
//! | A cookie proves nothing about a peer (5.4.7) | `a_cookie_reply_moves_no_path` | holds, by us |
//! | A packet is taken once, within a window of about 2,000 (5.4.6) | `a_packet_is_opened_once_and_only_within_the_window` | holds for 1,024 |
//! | A first message must be later than the one before (5.1) | `a_first_message_must_be_later_than_the_one_before` | holds as long as the peer is known |
//! | One from before that is not enough to move a path (2.1) | `an_initiation_of_an_earlier_run_moves_no_known_path` | holds, by us |
//! | Who answers waits for the first packet (5.4.6) | `who_answers_sends_nothing_before_the_session_is_confirmed` | holds, by us |
//! | Only what is authentic moves a path (2.1) | `only_authenticated_datagrams_move_a_path` | holds |
//! | A key speaks for its addresses only (2) | `a_peer_speaks_for_its_own_overlay_address_only` | holds |
//! | Packets are padded to 16 bytes (5.4.6) | `a_packet_is_padded_to_16_bytes_within_the_mtu_and_the_padding_is_taken_off` | holds, by us |
//! | A preshared key must be the same at both ends (5.4.3) | `a_preshared_key_must_be_the_same_at_both_ends` | holds |
//!
//! # Impure by need
//!
//! Ephemeral keys and cookie secrets come from the system's generator, and the TAI64N base from the system's clock; no
//! parameter reaches them.

mod admission;
mod clock;
mod peers;

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;

use self::admission::{Admission, Verdict};
use self::clock::Clock;
use crate::identity::{PublicKey, SecretKey};
use crate::machine::Path;
use crate::resources::Resources;
use crate::seed::{Map, Random};
use crate::table::{Key, Table};
use crate::timers::{TimerQueue, shared_instant};

pub(crate) use self::admission::source_prefix;

/// Names a peer. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerId(Key);

#[cfg(any(test, feature = "fuzzing"))]
impl PeerId {
    /// A peer that no table knows.
    pub(crate) fn for_tests(index: u32) -> Self {
        Self(Key { index, generation: 0 })
    }
}

/// What a data message adds to its packet: header and tag (WireGuard paper, section 5.4.6).
pub(crate) const DATA_OVERHEAD: usize = 32;
/// What one peer is charged in the memory budget: boringtun's state (11 KiB) and our entries.
pub(crate) const PEER_CHARGE: usize = 12 * 1024;

/// The largest datagram looked at. Our own are at most 1,420 + 32 bytes; a peer's jumbo frames end here.
const MAX_DATAGRAM: usize = 4096;
/// The largest message that is not data: a handshake initiation.
const MAX_CONTROL: usize = 148;
/// WireGuard paper, section 6.1. boringtun does not look at it, and adds to counters that are larger.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Messages waiting to be sent that are not data.
const MAX_OUTBOX: usize = 512;
/// How stale boringtun's idea of the time may be.
const TICK: Duration = Duration::from_millis(250);
/// How often the timers of a peer that is called are looked at: this and up to as much again, by chance. A retry leaves at
/// the first look after its 5 s, so this is its jitter of up to 333 ms (WireGuard paper, section 6.4).
const TICK_CALLING: Duration = Duration::from_millis(167);
const TICK_CALLING_JITTER: u32 = 167;
/// How often a peer with a session has its timers looked at when nothing else does it, at an instant that it shares.
const TICK_READY: Duration = Duration::from_secs(1);
/// The same without a session, until its keys are erased.
const TICK_DORMANT: Duration = Duration::from_secs(60);

/// See the module docs.
pub(crate) struct Wg {
    clock: Clock,
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    admit_strangers: bool,
    admission: Admission,
    unlimited: Arc<RateLimiter>,
    peers: Table<Peer>,
    by_index: Map<u32, PeerId>,
    by_key: Map<PublicKey, PeerId>,
    by_overlay: Map<Ipv6Addr, PeerId>,
    timers: TimerQueue<PeerId>,
    outbox: VecDeque<ControlMessage>,
    events: VecDeque<WgEvent>,
    random: Random,
    /// Peers whose timers were looked at, for the test that idle ones are not.
    #[cfg(test)]
    updates: u64,
}

/// What the layers above must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WgEvent {
    /// A peer that had no usable session has one.
    Up(PeerId),
    /// A peer's last session has ended without another one.
    Down(PeerId),
    /// A peer started a handshake, so perhaps it has forgotten what we knew of each other.
    Called(PeerId),
    /// A peer's path is new or has changed.
    Moved(PeerId),
    /// A stranger's peer was dropped to make room, or after a long silence.
    Dropped(PeerId),
}

struct Peer {
    tunn: Box<Tunn>,
    index: u32,
    key: PublicKey,
    overlay: Ipv6Addr,
    path: Option<Path>,
    pinned: bool,
    ready: bool,
    handshaking: bool,
    expired: bool,
    /// We answered an initiation, and nothing has come yet that proves its sender to be the peer of now.
    unconfirmed: bool,
    updated: Instant,
    heard: Instant,
}

struct ControlMessage {
    path: Path,
    len: usize,
    bytes: [u8; MAX_CONTROL],
}

impl Wg {
    /// A WireGuard end with this key. With `admit_strangers` any key that completes a handshake becomes a peer (as long
    /// as there is room); who may do what is decided above.
    pub(crate) fn new(
        now: Instant,
        secret: &SecretKey,
        max_peers: usize,
        admit_strangers: bool,
        random: &mut Random,
    ) -> Self {
        let clock = Clock::new(now);
        let secret = x25519::StaticSecret::from(*secret.as_bytes());
        let public = x25519::PublicKey::from(&secret);
        Self {
            clock,
            admission: Admission::new(&public, now, random),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret,
            public,
            admit_strangers,
            peers: Table::new(max_peers),
            by_index: Map::with_hasher(random.hasher()),
            by_key: Map::with_hasher(random.hasher()),
            by_overlay: Map::with_hasher(random.hasher()),
            timers: TimerQueue::new(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            random: Random::new(std::array::from_fn(|_| random.u32().to_le_bytes()[0])),
            #[cfg(test)]
            updates: 0,
        }
    }

    /// Opens one datagram. An inner packet of the peer returned, whose source address was checked, lies at the front of
    /// `plain`, which must have [`PLAIN_BUFFER`] bytes.
    pub(crate) fn open(
        &mut self,
        now: Instant,
        path: Path,
        datagram: &[u8],
        plain: &mut [u8],
        resources: &mut Resources,
    ) -> Option<(PeerId, usize)> {
        let now = self.clock.enter(now);
        let fits = datagram.len() <= MAX_DATAGRAM && plain.len() >= PLAIN_BUFFER;
        let Some(packet) = fits.then(|| Tunn::parse_incoming_packet(datagram).ok()).flatten() else {
            resources.counters.drop_not_wireguard += 1;
            return None;
        };
        let id = match packet {
            Packet::HandshakeInit(_) | Packet::HandshakeResponse(_) => {
                let mut reply = [0; MAX_CONTROL];
                match self.admission.judge(now, path.remote.ip(), datagram, &mut reply) {
                    Verdict::Pass => {}
                    Verdict::BadMac1 => {
                        resources.counters.drop_mac1 += 1;
                        return None;
                    }
                    Verdict::SourceLimit => {
                        resources.counters.drop_source_limit += 1;
                        return None;
                    }
                    Verdict::Cookie(len) => {
                        resources.counters.cookies_sent += 1;
                        self.post(path, &reply[..len]);
                        return None;
                    }
                }
                match packet {
                    Packet::HandshakeInit(ref init) => {
                        let Ok(half) = parse_handshake_anon(&self.secret, &self.public, init) else {
                            resources.counters.drop_unauthentic += 1;
                            return None;
                        };
                        self.admit(now, PublicKey::from_bytes(half.peer_static_public), resources)?
                    }
                    Packet::HandshakeResponse(ref response) => self.find(response.receiver_idx, resources)?,
                    _ => return None,
                }
            }
            Packet::PacketCookieReply(ref reply) => self.find(reply.receiver_idx, resources)?,
            Packet::PacketData(ref data) => {
                if counter(datagram) >= REJECT_AFTER_MESSAGES {
                    resources.counters.drop_unauthentic += 1;
                    return None;
                }
                self.find(data.receiver_idx, resources)?
            }
        };
        if self.update(now, id, false) {
            self.note_state(now, id);
        }
        let peer = self.peers.get_mut(id.0)?;
        let is_initiation = matches!(packet, Packet::HandshakeInit(_));
        let is_cookie = matches!(packet, Packet::PacketCookieReply(_));
        let is_data = matches!(packet, Packet::PacketData(_));
        let mut opened = None;
        let peer_was_ready = peer.ready;
        match peer.tunn.decapsulate(Some(path.remote.ip()), datagram, plain) {
            TunnResult::Done => peer.unconfirmed &= is_cookie,
            TunnResult::Err(_) => {
                resources.counters.drop_unauthentic += 1;
                return None;
            }
            TunnResult::WriteToNetwork(message) => {
                let mut copy = [0; MAX_CONTROL];
                let len = message.len().min(MAX_CONTROL);
                copy[..len].copy_from_slice(&message[..len]);
                peer.expired = false;
                peer.unconfirmed = is_initiation && (peer.unconfirmed || !peer.ready);
                self.post(path, &copy[..len]);
                resources.counters.handshakes += 1;
                if is_initiation {
                    self.events.push_back(WgEvent::Called(id));
                } else if peer_was_ready {
                    self.events.push_back(WgEvent::Up(id));
                }
            }
            TunnResult::WriteToTunnelV6(inner, source) if source == peer.overlay => {
                resources.counters.packets_opened += 1;
                peer.unconfirmed = false;
                opened = Some((id, inner.len()));
            }
            TunnResult::WriteToTunnelV6(..) | TunnResult::WriteToTunnelV4(..) => {
                resources.counters.drop_inner_source += 1;
            }
        }
        // A cookie reply proves nothing about where the peer is; all else that got here is authenticated.
        if !is_cookie {
            let peer = self.peers.get_mut(id.0)?;
            peer.heard = now;
            // An initiation may be an old one that a process before this one has seen: it is answered where it came from,
            // but a known path is not given up before a packet of the session proves another.
            if peer.path != Some(path) && !(is_initiation && peer.path.is_some()) {
                peer.path = Some(path);
                self.events.push_back(WgEvent::Moved(id));
            }
        }
        // Data changes nothing where there is a session; its end comes with the timers.
        if !is_data || !peer_was_ready {
            self.note_state(now, id);
        }
        opened
    }

    /// Seals a packet into `datagram` and returns the datagram's length, or `None` if there is no session (start one with
    /// [`Wg::call`]) or the buffer is too small. `packet` is a whole IP packet, zeros behind it up to its
    /// [`padded`] length.
    pub(crate) fn seal(&mut self, now: Instant, id: PeerId, packet: &[u8], datagram: &mut [u8]) -> Option<usize> {
        let now = self.clock.enter(now);
        if self.update(now, id, false) {
            self.note_state(now, id);
        }
        let peer = self.peers.get_mut(id.0)?;
        if !peer.ready || datagram.len() < (packet.len() + DATA_OVERHEAD).max(MAX_CONTROL) {
            return None;
        }
        match peer.tunn.encapsulate(packet, datagram) {
            TunnResult::WriteToNetwork(sealed) => Some(sealed.len()),
            _ => None,
        }
    }

    /// Starts a handshake with a peer whose path is known. A handshake under way is only repeated if `again`.
    pub(crate) fn call(&mut self, now: Instant, id: PeerId, again: bool) {
        let now = self.clock.enter(now);
        self.update(now, id, false);
        let Some(peer) = self.peers.get_mut(id.0) else {
            return;
        };
        let Some(path) = peer.path else { return };
        if peer.handshaking && !again {
            return;
        }
        let mut buffer = [0; MAX_CONTROL];
        if let TunnResult::WriteToNetwork(message) = peer.tunn.format_handshake_initiation(&mut buffer, true) {
            let len = message.len();
            peer.handshaking = true;
            peer.expired = false;
            self.post(path, &buffer[..len]);
        }
        self.note_state(now, id);
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant, resources: &mut Resources) {
        let now = self.clock.enter(now);
        while let Some(id) = self.timers.pop_due(now) {
            self.update(now, id, true);
            if let Some(peer) = self.peers.get(id.0)
                && !peer.pinned
                && peer.expired
            {
                self.drop_peer(id, resources);
                continue;
            }
            self.note_state(now, id);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(crate) fn poll_event(&mut self) -> Option<WgEvent> {
        self.events.pop_front()
    }

    /// The next handshake message, cookie or keepalive to send, and where to. Its bytes lie at the front of `buffer`.
    pub(crate) fn poll_control(&mut self, buffer: &mut [u8]) -> Option<(Path, usize)> {
        let message = self.outbox.front()?;
        let (path, len) = (message.path, message.len);
        buffer.get_mut(..len)?.copy_from_slice(&message.bytes[..len]);
        self.outbox.pop_front();
        Some((path, len))
    }

    /// The length of the next such message and its path, to see whether it fits.
    pub(crate) fn peek_control(&self) -> Option<(Path, usize)> {
        self.outbox.front().map(|message| (message.path, message.len))
    }

    /// Brings boringtun's timestamps up to `now` and sends what its timers ask for. Returns false if they are recent enough;
    /// otherwise the peer's state may be another one.
    fn update(&mut self, now: Instant, id: PeerId, due: bool) -> bool {
        let Some(peer) = self.peers.get_mut(id.0) else {
            return false;
        };
        if !due && now.saturating_duration_since(peer.updated) < TICK {
            return false;
        }
        peer.updated = now;
        #[cfg(test)]
        {
            self.updates += 1;
        }
        let mut buffer = [0; MAX_CONTROL];
        match peer.tunn.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(message) => {
                let len = message.len();
                if message[0] == 1 {
                    peer.handshaking = true;
                }
                if let Some(path) = peer.path {
                    self.post(path, &buffer[..len]);
                }
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                peer.expired = true;
                peer.handshaking = false;
            }
            _ => {}
        }
        true
    }

    /// Compares the session's state with what was known, and sets the peer's timer by it.
    fn note_state(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.0) else {
            return;
        };
        // boringtun puts the session of an initiation it has answered into a slot that may be the current one's.
        let ready = peer.tunn.time_since_last_handshake().is_some() && !peer.unconfirmed;
        if ready {
            peer.handshaking = false;
            peer.expired = false;
        }
        if ready && !peer.ready {
            self.events.push_back(WgEvent::Up(id));
        }
        if !ready && peer.ready {
            self.events.push_back(WgEvent::Down(id));
        }
        peer.ready = ready;
        if peer.expired && peer.pinned {
            self.timers.clear(id);
            return;
        }
        let due = match (peer.handshaking, ready) {
            (true, _) => now + TICK_CALLING + Duration::from_millis(self.random.below(TICK_CALLING_JITTER).into()),
            (_, true) => shared_instant(self.clock.epoch(), now + TICK_READY),
            _ => shared_instant(self.clock.epoch(), now + TICK_DORMANT),
        };
        self.timers.set_no_later(id, due);
    }

    fn post(&mut self, path: Path, message: &[u8]) {
        if self.outbox.len() < MAX_OUTBOX && message.len() <= MAX_CONTROL {
            let mut bytes = [0; MAX_CONTROL];
            bytes[..message.len()].copy_from_slice(message);
            self.outbox.push_back(ControlMessage {
                path,
                len: message.len(),
                bytes,
            });
        }
    }
}

/// The counter of a data message (WireGuard paper, section 5.4.6).
fn counter(message: &[u8]) -> u64 {
    let field = message.get(8..16).and_then(|field| field.try_into().ok());
    field.map_or(u64::MAX, u64::from_le_bytes)
}

/// How large the buffer given to [`Wg::open`] must be.
pub(crate) const PLAIN_BUFFER: usize = MAX_DATAGRAM + DATA_OVERHEAD;

/// The length to which a packet is padded with zeros before it is sealed: a multiple of 16, within the MTU (WireGuard
/// paper, section 5.4.6).
pub(crate) fn padded(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(16).min(mtu.max(len))
}

#[cfg(test)]
mod tests;
