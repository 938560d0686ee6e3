//! Two ends of WireGuard, passing datagrams by hand on a clock by hand.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::timers::tests::some_instant;

mod rules;

/// One end.
struct End {
    wg: Wg,
    resources: Resources,
    path: Path,
    plain: Vec<u8>,
}

fn path(addr: &str) -> Path {
    Path {
        remote: addr.parse().unwrap(),
        local_ip: None,
    }
}

fn secret(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

impl End {
    fn new(now: Instant, byte: u8, addr: &str, strangers: bool) -> Self {
        let mut random = Random::new([byte; 32]);
        Self {
            wg: Wg::new(now, &secret(byte), 16, strangers, &mut random),
            resources: Resources::new(64 << 20),
            path: path(addr),
            plain: vec![0; PLAIN_BUFFER],
        }
    }

    fn control(&mut self) -> Vec<(Path, Vec<u8>)> {
        let mut sent = Vec::new();
        let mut buffer = [0; 256];
        while let Some((path, len)) = self.wg.poll_control(&mut buffer) {
            sent.push((path, buffer[..len].to_vec()));
        }
        sent
    }

    fn open(&mut self, now: Instant, from: Path, datagram: &[u8]) -> Option<Vec<u8>> {
        let (_, len) = self
            .wg
            .open(now, from, datagram, &mut self.plain, &mut self.resources)?;
        Some(self.plain[..len].to_vec())
    }

    fn seal(&mut self, now: Instant, peer: PeerId, packet: &[u8]) -> Option<Vec<u8>> {
        let mut datagram = vec![0; 2048];
        let len = self.wg.seal(now, peer, packet, &mut datagram)?;
        Some(datagram[..len].to_vec())
    }

    fn tick(&mut self, now: Instant) {
        self.wg.handle_timeout(now, &mut self.resources);
    }

    fn events(&mut self) -> Vec<WgEvent> {
        std::iter::from_fn(|| self.wg.poll_event()).collect()
    }
}

/// An agent that calls a relay, and how they see each other.
struct Ends {
    now: Instant,
    relay: End,
    agent: End,
    /// The relay, as the agent knows it.
    to_relay: PeerId,
}

impl Ends {
    fn new() -> Self {
        let now = some_instant();
        let relay = End::new(now, 1, "203.0.113.1:51820", true);
        let mut agent = End::new(now, 2, "192.0.2.7:40000", false);
        let to_relay = agent
            .wg
            .add_peer(now, secret(1).public_key(), Some(relay.path), &mut agent.resources)
            .unwrap();
        agent.wg.set_pinned(to_relay, true);
        Self {
            now,
            relay,
            agent,
            to_relay,
        }
    }

    fn connected() -> Self {
        let mut ends = Self::new();
        ends.agent.wg.call(ends.now, ends.to_relay, false);
        ends.exchange();
        assert!(ends.agent.wg.is_ready(ends.to_relay));
        ends
    }

    /// Carries control messages until there are none.
    fn exchange(&mut self) {
        loop {
            let (up, down) = (self.agent.control(), self.relay.control());
            if up.is_empty() && down.is_empty() {
                return;
            }
            for (_, datagram) in up {
                self.relay.open(self.now, self.agent.path, &datagram);
            }
            for (_, datagram) in down {
                self.agent.open(self.now, self.relay.path, &datagram);
            }
        }
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
    }

    /// The agent, as the relay knows it.
    fn to_agent(&self) -> PeerId {
        *self.relay.wg.by_key.get(&secret(2).public_key()).unwrap()
    }

    /// An inner packet of the agent's.
    fn packet(&self) -> Vec<u8> {
        packet(
            secret(2).public_key().overlay_address(),
            secret(1).public_key().overlay_address(),
        )
    }
}

/// An empty IPv6 packet.
fn packet(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = 0x60;
    packet[5] = 8;
    packet[6] = 59;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet
}

#[test]
fn a_handshake_makes_both_ends_ready_and_moves_no_path_of_the_caller() {
    let mut ends = Ends::connected();
    assert!(ends.agent.events().contains(&WgEvent::Up(ends.to_relay)));
    let to_agent = ends.to_agent();
    assert!(ends.relay.wg.is_ready(to_agent));
    assert_eq!(
        ends.relay.events(),
        [
            WgEvent::Called(to_agent),
            WgEvent::Moved(to_agent),
            WgEvent::Up(to_agent)
        ]
    );
    let packet = ends.packet();
    let sealed = ends.agent.seal(ends.now, ends.to_relay, &packet).unwrap();
    assert_eq!(sealed.len(), packet.len() + DATA_OVERHEAD);
    assert_eq!(ends.relay.open(ends.now, ends.agent.path, &sealed), Some(packet));
}

/// boringtun stamps a new session with the time of its last `update_timers`: after a long idle time a session made
/// without it is reaped at once.
#[test]
fn a_session_made_after_a_long_idle_time_lives() {
    let mut ends = Ends::new();
    ends.wait(Duration::from_secs(170));
    ends.agent.wg.call(ends.now, ends.to_relay, false);
    ends.exchange();
    for _ in 0..20 {
        ends.wait(Duration::from_secs(1));
        ends.agent.tick(ends.now);
        ends.relay.tick(ends.now);
    }
    let packet = ends.packet();
    let sealed = ends
        .agent
        .seal(ends.now, ends.to_relay, &packet)
        .expect("the session lives");
    assert_eq!(ends.relay.open(ends.now, ends.agent.path, &sealed), Some(packet));
}

/// WireGuard paper, section 6.2: REJECT-AFTER-TIME is 180 s.
#[test]
fn nothing_is_sealed_on_a_session_older_than_180_seconds() {
    let mut ends = Ends::connected();
    ends.wait(Duration::from_secs(181));
    let packet = ends.packet();
    assert_eq!(ends.agent.seal(ends.now, ends.to_relay, &packet), None);
    assert!(!ends.agent.wg.is_ready(ends.to_relay));
    ends.agent.wg.call(ends.now, ends.to_relay, false);
    ends.exchange();
    assert!(ends.agent.seal(ends.now, ends.to_relay, &packet).is_some());
}

#[test]
fn deadlines_move_on_through_expiry_and_a_suspend_until_the_peer_is_dormant() {
    let mut ends = Ends::connected();
    let start = ends.now;
    let mut steps = 0;
    while let Some(due) = ends.agent.wg.poll_timeout() {
        assert!(due > ends.now, "the deadline moves on");
        // The process sleeps for two hours in the middle of it.
        ends.now = if steps == 100 {
            due + Duration::from_secs(7200)
        } else {
            due
        };
        ends.agent.tick(ends.now);
        steps += 1;
        assert!(steps < 2000, "still ticking after {:?}", ends.now - start);
    }
    assert!(steps > 100, "dormant after {steps} steps");
    ends.agent.wg.call(ends.now, ends.to_relay, false);
    ends.relay.tick(ends.now);
    ends.exchange();
    assert!(ends.agent.wg.is_ready(ends.to_relay), "it wakes");
}

/// The limiter in front counts each handshake once, and the one inside boringtun none.
#[test]
fn each_handshake_counts_once() {
    let mut ends = Ends::new();
    for _ in 0..90 {
        ends.wait(Duration::from_millis(20));
        ends.agent.wg.call(ends.now, ends.to_relay, true);
        ends.exchange();
    }
    let counters = &ends.relay.resources.counters;
    assert_eq!(
        (counters.handshakes, counters.cookies_sent, counters.drop_source_limit),
        (90, 0, 0)
    );
}

#[test]
fn a_source_that_floods_is_limited_alone() {
    let mut ends = Ends::connected();
    let flooder = path("198.51.100.66:1000");
    ends.wait(Duration::from_secs(1));
    ends.agent.wg.call(ends.now, ends.to_relay, true);
    let (_, initiation) = ends.agent.control().pop().unwrap();
    for _ in 0..5000 {
        ends.relay.open(ends.now, flooder, &initiation);
    }
    assert!(ends.relay.resources.counters.drop_source_limit > 4000);
    ends.relay.control();
    ends.wait(Duration::from_secs(1));
    ends.agent.wg.call(ends.now, ends.to_relay, true);
    ends.exchange();
    let packet = ends.packet();
    let sealed = ends.agent.seal(ends.now, ends.to_relay, &packet).unwrap();
    assert!(ends.relay.open(ends.now, ends.agent.path, &sealed).is_some());
}

#[test]
fn under_load_from_many_sources_cookies_are_asked_for_and_answered() {
    let mut ends = Ends::new();
    ends.wait(Duration::from_secs(2));
    ends.agent.wg.call(ends.now, ends.to_relay, true);
    let (_, initiation) = ends.agent.control().pop().unwrap();
    for n in 0..2000u32 {
        let source = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 500));
        ends.relay.open(
            ends.now,
            Path {
                remote: source,
                local_ip: None,
            },
            &initiation,
        );
    }
    assert!(ends.relay.resources.counters.cookies_sent > 1000);
    ends.relay.control();
    // In the same second, the first try brings a cookie and the second, which carries it, a session.
    ends.wait(Duration::from_millis(10));
    ends.agent.wg.call(ends.now, ends.to_relay, true);
    ends.exchange();
    assert!(!ends.agent.wg.is_ready(ends.to_relay));
    ends.wait(Duration::from_millis(10));
    ends.agent.wg.call(ends.now, ends.to_relay, true);
    ends.exchange();
    assert!(ends.agent.wg.is_ready(ends.to_relay));
}

#[test]
fn a_wrong_mac1_costs_nothing_more_than_the_mac() {
    let mut ends = Ends::new();
    ends.agent.wg.call(ends.now, ends.to_relay, true);
    let (_, mut initiation) = ends.agent.control().pop().unwrap();
    initiation[116] ^= 1;
    ends.relay.open(ends.now, ends.agent.path, &initiation);
    assert_eq!(ends.relay.resources.counters.drop_mac1, 1);
    assert_eq!((ends.relay.wg.len(), ends.relay.control().len()), (0, 0));
}

#[test]
fn only_authenticated_datagrams_move_a_path() {
    let mut ends = Ends::connected();
    let to_agent = ends.to_agent();
    let elsewhere = path("198.51.100.1:9");
    let packet = ends.packet();
    let sealed = ends.agent.seal(ends.now, ends.to_relay, &packet).unwrap();

    let mut forged = sealed.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(ends.relay.open(ends.now, elsewhere, &forged), None);
    assert_eq!(
        ends.relay.wg.path(to_agent),
        Some(ends.agent.path),
        "a forged datagram moves nothing"
    );

    assert!(ends.relay.open(ends.now, elsewhere, &sealed).is_some());
    assert_eq!(ends.relay.wg.path(to_agent), Some(elsewhere), "a true one does");

    assert_eq!(ends.relay.open(ends.now, ends.agent.path, &sealed), None);
    assert_eq!(ends.relay.wg.path(to_agent), Some(elsewhere), "a replayed one does not");
}

/// A process that has just begun knows no time stamps: to it an old initiation looks new.
#[test]
fn an_initiation_of_an_earlier_run_moves_no_known_path() {
    let mut ends = Ends::connected();
    let to_agent = ends.to_agent();
    ends.wait(Duration::from_secs(2));
    ends.relay.wg.call(ends.now, to_agent, true);
    let (_, old) = ends.relay.control().pop().unwrap();

    let mut again = Ends::new();
    let stranger = path("198.51.100.1:9");
    again.agent.open(again.now, stranger, &old);
    let answers = again.agent.control();
    assert_eq!(answers.len(), 1, "it is answered");
    assert_eq!(answers[0].0, stranger, "where it came from");
    let known = Some(again.relay.path);
    assert_eq!(again.agent.wg.path(again.to_relay), known);
    assert!(!again.agent.wg.is_ready(again.to_relay));
    again.wait(Duration::from_secs(6));
    again.agent.wg.call(again.now, again.to_relay, true);
    assert!(again.agent.control().iter().all(|(to, _)| Some(*to) == known));
}

/// The same first message from a new address of the peer's own: its first packet proves the address.
#[test]
fn a_peer_that_calls_from_elsewhere_is_followed_once_it_has_proved_it() {
    let mut ends = Ends::connected();
    let to_agent = ends.to_agent();
    let elsewhere = path("198.51.100.1:9");
    let before = ends.agent.path;
    ends.wait(Duration::from_secs(2));
    ends.agent.wg.call(ends.now, ends.to_relay, true);
    let (_, initiation) = ends.agent.control().pop().unwrap();
    ends.relay.open(ends.now, elsewhere, &initiation);
    assert_eq!(ends.relay.wg.path(to_agent), Some(before));
    let (to, response) = ends.relay.control().pop().unwrap();
    assert_eq!(to, elsewhere);
    ends.agent.open(ends.now, ends.relay.path, &response);
    for (_, confirmation) in ends.agent.control() {
        ends.relay.open(ends.now, elsewhere, &confirmation);
    }
    assert_eq!(ends.relay.wg.path(to_agent), Some(elsewhere));
    assert!(ends.relay.wg.is_ready(to_agent));
}

#[test]
fn a_cookie_reply_moves_no_path() {
    let mut ends = Ends::new();
    ends.wait(Duration::from_secs(2));
    ends.agent.wg.call(ends.now, ends.to_relay, true);
    let (_, initiation) = ends.agent.control().pop().unwrap();
    for n in 0..600u32 {
        let source = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 500));
        ends.relay.open(
            ends.now,
            Path {
                remote: source,
                local_ip: None,
            },
            &initiation,
        );
    }
    ends.relay.control();
    ends.relay.open(ends.now, ends.agent.path, &initiation);
    let (_, cookie) = ends.relay.control().pop().unwrap();
    assert_eq!(cookie[0], 3, "a cookie reply");
    ends.agent.open(ends.now, path("198.51.100.1:9"), &cookie);
    assert_eq!(ends.agent.wg.path(ends.to_relay), Some(ends.relay.path));
}

#[test]
fn a_peer_speaks_for_its_own_overlay_address_only() {
    let mut ends = Ends::connected();
    let spoofed = packet(
        secret(9).public_key().overlay_address(),
        secret(1).public_key().overlay_address(),
    );
    let sealed = ends.agent.seal(ends.now, ends.to_relay, &spoofed).unwrap();
    assert_eq!(ends.relay.open(ends.now, ends.agent.path, &sealed), None);
    assert_eq!(ends.relay.resources.counters.drop_inner_source, 1);
}

#[test]
fn an_agent_answers_its_relay_only() {
    let mut ends = Ends::new();
    let mut stranger = End::new(ends.now, 7, "198.51.100.7:7", false);
    let target = secret(2).public_key();
    let id = stranger
        .wg
        .add_peer(ends.now, target, Some(ends.agent.path), &mut stranger.resources)
        .unwrap();
    stranger.wg.call(ends.now, id, true);
    let (_, initiation) = stranger.control().pop().unwrap();
    ends.agent.open(ends.now, stranger.path, &initiation);
    assert_eq!(ends.agent.resources.counters.drop_unknown_key, 1);
    assert!(ends.agent.control().is_empty());
}

#[test]
fn strangers_make_room_for_each_other_and_never_for_themselves_take_a_pinned_place() {
    let now = some_instant();
    let mut relay = End::new(now, 1, "203.0.113.1:51820", true);
    let call = |relay: &mut End, byte: u8, now: Instant| {
        let mut agent = End::new(now, byte, "192.0.2.7:40000", false);
        let key = secret(1).public_key();
        let id = agent
            .wg
            .add_peer(now, key, Some(relay.path), &mut agent.resources)
            .unwrap();
        agent.wg.call(now, id, true);
        let (_, initiation) = agent.control().pop().unwrap();
        relay.open(now, agent.path, &initiation);
    };
    let at = |n: u64| now + Duration::from_secs(n);
    for n in 0..16u8 {
        call(&mut relay, 100 + n, at(u64::from(n)));
    }
    assert_eq!(relay.wg.len(), 16);
    let first = relay.wg.by_key[&secret(100).public_key()];
    relay.wg.set_pinned(first, true);
    call(&mut relay, 50, at(20));
    assert_eq!(relay.wg.len(), 16);
    assert!(relay.wg.by_key.contains_key(&secret(100).public_key()), "pinned");
    assert!(
        !relay.wg.by_key.contains_key(&secret(101).public_key()),
        "the oldest made room"
    );
    for id in relay.wg.by_key.values().copied().collect::<Vec<_>>() {
        relay.wg.set_pinned(id, true);
    }
    call(&mut relay, 51, at(30));
    assert_eq!(relay.resources.counters.drop_peers_full, 1);
    assert_eq!(relay.wg.check_invariants(), relay.resources.budget.used());
}

#[test]
fn ten_thousand_peers_without_a_session_cause_no_work() {
    let mut ends = Ends::new();
    let mut random = Random::new([9; 32]);
    let mut agent = End::new(ends.now, 2, "192.0.2.7:40000", false);
    agent.wg = Wg::new(ends.now, &secret(2), 20_000, false, &mut random);
    agent.resources = Resources::new(1 << 30);
    ends.to_relay = agent
        .wg
        .add_peer(
            ends.now,
            secret(1).public_key(),
            Some(ends.relay.path),
            &mut agent.resources,
        )
        .unwrap();
    for n in 0..10_000u32 {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        let key = PublicKey::from_bytes(key);
        agent
            .wg
            .add_peer(ends.now, key, Some(ends.relay.path), &mut agent.resources)
            .unwrap();
    }
    ends.agent = agent;
    assert_eq!(ends.agent.wg.poll_timeout(), None, "nobody is waited for");
    ends.agent.wg.call(ends.now, ends.to_relay, false);
    ends.exchange();
    ends.agent.wg.updates = 0;
    let end = ends.now + Duration::from_secs(10);
    while let Some(due) = ends.agent.wg.poll_timeout().filter(|&due| due < end) {
        ends.now = due;
        ends.agent.tick(due);
    }
    let updates = ends.agent.wg.updates;
    assert!(
        (5..=50).contains(&updates),
        "{updates} looks at timers in 10 s with one session"
    );
}

#[test]
fn any_bytes_are_a_counted_drop() {
    let mut ends = Ends::connected();
    let mut random = Random::new([5; 32]);
    let packet = ends.packet();
    let real = ends.agent.seal(ends.now, ends.to_relay, &packet).unwrap();
    for round in 0..20_000 {
        let mut datagram: Vec<u8> = if round % 2 == 0 {
            (0..random.below(200)).map(|_| random.u32() as u8).collect()
        } else {
            real.clone()
        };
        if round % 3 == 0 && !datagram.is_empty() {
            datagram[0] = 1 + (round % 4) as u8;
        }
        if !datagram.is_empty() {
            let at = random.below(datagram.len() as u32) as usize;
            datagram[at] ^= 1 << random.below(8);
        }
        assert_eq!(ends.relay.open(ends.now, path("198.51.100.1:9"), &datagram), None);
    }
    assert_eq!(ends.relay.open(ends.now, ends.agent.path, &real), Some(packet));
}
