//! Two ends of WireGuard over a network that does what it likes, against what nobody on it may bring about.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use portal_core::fuzzing::WgEnd;
use portal_core::identity::SecretKey;

/// One thing that happens. `which` counts from the oldest datagram.
#[derive(Debug, Arbitrary)]
enum Happening {
    Call {
        side: Side,
        again: bool,
    },
    Seal {
        side: Side,
    },
    Deliver {
        which: u8,
    },
    Drop {
        which: u8,
    },
    /// Arrives and stays on the way.
    Duplicate {
        which: u8,
    },
    /// Arrives from another address than it was sent from.
    Redirect {
        which: u8,
        source: u8,
    },
    /// A copy arrives with a byte changed and its end cut off.
    Corrupt {
        which: u8,
        at: u8,
        flip: u8,
        cut: u8,
    },
    /// One that has arrived before arrives again.
    Replay {
        which: u8,
        source: u8,
    },
    /// Everything on the way and every answer to it arrives in order.
    Exchange,
    Advance {
        millis: u16,
    },
    AdvanceLong {
        seconds: u16,
    },
    /// Time passes without anybody looking at it.
    Sleep {
        seconds: u16,
    },
    RestartRelay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
enum Side {
    Agent,
    Relay,
}

#[derive(Clone, Debug)]
struct Datagram {
    to: Side,
    from: SocketAddr,
    bytes: Vec<u8>,
}

const HAPPENINGS: usize = 60;
const ON_THE_WAY: usize = 32;
const REMEMBERED: usize = 64;
const MAC2: usize = 16;

/// Handshakes and packets of an agent and a relay. Each packet is opened once at most and by whom it was sealed for; what
/// was tampered with does nothing; a path is only one that an authentic datagram came by; a first message is answered
/// once. Whatever has happened, the agent gets a session as soon as the network is honest.
pub fn handshakes(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut ends = Ends::new(Instant::now());
    for _ in 0..HAPPENINGS {
        let Ok(happening) = input.arbitrary() else { break };
        ends.happen(happening);
        ends.agent.check_invariants();
        ends.relay.check_invariants();
    }
    ends.make_peace();
}

struct Ends {
    now: Instant,
    agent: WgEnd,
    relay: WgEnd,
    on_the_way: VecDeque<Datagram>,
    arrived: VecDeque<Datagram>,
    /// Numbers that each side has sealed, and those that the other one has opened.
    sealed: BTreeSet<u64>,
    opened: BTreeSet<u64>,
    /// Addresses from which each side was sent something authentic.
    seen: [BTreeSet<SocketAddr>; 2],
    /// First messages that each side has answered since it began to know the other.
    answered: [BTreeSet<Vec<u8>>; 2],
}

impl Ends {
    fn new(now: Instant) -> Self {
        Self {
            now,
            agent: WgEnd::new(
                now,
                &key(Side::Agent),
                key(Side::Relay).public_key(),
                Some(relay_addr()),
            ),
            relay: fresh_relay(now),
            on_the_way: VecDeque::new(),
            arrived: VecDeque::new(),
            sealed: BTreeSet::new(),
            opened: BTreeSet::new(),
            seen: [BTreeSet::from([relay_addr()]), BTreeSet::new()],
            answered: [BTreeSet::new(), BTreeSet::new()],
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Call { side, again } => {
                let now = self.now;
                self.end(side).call(now, again);
                self.collect();
            }
            Happening::Seal { side } => self.seal(side),
            Happening::Deliver { which } => {
                if let Some(datagram) = self.take(which) {
                    self.arrive(datagram);
                }
            }
            Happening::Drop { which } => drop(self.take(which)),
            Happening::Duplicate { which } => {
                if let Some(datagram) = nth(&self.on_the_way, which) {
                    self.arrive(datagram);
                }
            }
            Happening::Redirect { which, source } => {
                if let Some(datagram) = self.take(which) {
                    self.arrive(Datagram {
                        from: elsewhere(source),
                        ..datagram
                    });
                }
            }
            Happening::Corrupt { which, at, flip, cut } => {
                if let Some(datagram) = nth(&self.on_the_way, which) {
                    self.tamper(datagram, at, flip, cut);
                }
            }
            Happening::Replay { which, source } => {
                if let Some(datagram) = nth(&self.arrived, which) {
                    self.arrive(Datagram {
                        from: elsewhere(source),
                        ..datagram
                    });
                }
            }
            Happening::Exchange => self.exchange(),
            Happening::Advance { millis } => self.advance(Duration::from_millis(millis.into())),
            Happening::AdvanceLong { seconds } => self.advance(Duration::from_secs(u64::from(seconds) % 600)),
            Happening::Sleep { seconds } => self.now += Duration::from_secs(seconds.into()),
            Happening::RestartRelay => {
                self.relay = fresh_relay(self.now);
                self.answered[Side::Relay as usize].clear();
            }
        }
    }

    fn end(&mut self, side: Side) -> &mut WgEnd {
        match side {
            Side::Agent => &mut self.agent,
            Side::Relay => &mut self.relay,
        }
    }

    fn seal(&mut self, side: Side) {
        let (now, number) = (self.now, self.sealed.len() as u64 * 2 + side as u64);
        let Some(bytes) = self.end(side).seal(now, number) else {
            return;
        };
        self.sealed.insert(number);
        let to = self.end(side).path();
        self.send(side, to.expect("a session has a path"), bytes);
        self.collect();
    }

    /// Sends off what the ends want to say.
    fn collect(&mut self) {
        for side in [Side::Agent, Side::Relay] {
            for (to, bytes) in self.end(side).control() {
                self.send(side, to, bytes);
            }
        }
    }

    /// Puts a datagram on its way, unless it goes to where nobody is.
    fn send(&mut self, from: Side, to: SocketAddr, bytes: Vec<u8>) {
        let (there, from) = match from {
            Side::Agent => (Side::Relay, agent_addr()),
            Side::Relay => (Side::Agent, relay_addr()),
        };
        let is_there = match there {
            Side::Relay => to == relay_addr(),
            Side::Agent => to == agent_addr(),
        };
        if is_there && self.on_the_way.len() < ON_THE_WAY {
            self.on_the_way.push_back(Datagram { to: there, from, bytes });
        }
    }

    fn take(&mut self, which: u8) -> Option<Datagram> {
        let len = self.on_the_way.len();
        (len > 0).then(|| self.on_the_way.remove(usize::from(which) % len))?
    }

    /// A datagram as it was sent arrives.
    fn arrive(&mut self, datagram: Datagram) {
        let Datagram { to, from, bytes } = datagram.clone();
        let before = self.end(to).path();
        if before.is_none() {
            // A relay that has given the agent up takes its first message for a new one.
            self.answered[to as usize].clear();
        }
        let now = self.now;
        let opened = self.end(to).open(now, from, &bytes);
        if let Some(number) = opened {
            assert_ne!(number % 2, to as u64, "it is not one's own");
            assert!(self.sealed.contains(&number), "it was sealed");
            assert!(self.opened.insert(number), "{number} was opened twice");
        }
        let replies = self.end(to).control();
        if bytes[0] == 1 && replies.iter().any(|(_, reply)| reply[0] == 2) {
            let is_new = self.answered[to as usize].insert(bytes.clone());
            assert!(is_new, "a first message was answered twice");
        }
        if bytes[0] == 3 {
            assert_eq!(self.end(to).path(), before, "a cookie moves nothing");
        } else {
            self.seen[to as usize].insert(from);
        }
        for (path, reply) in replies {
            self.send(to, path, reply);
        }
        self.check_path(to);
        self.arrived.push_back(datagram);
        self.arrived.truncate(REMEMBERED);
    }

    /// A changed copy of a datagram arrives from a stranger.
    fn tamper(&mut self, mut datagram: Datagram, at: u8, flip: u8, cut: u8) {
        let len = datagram.bytes.len();
        let at = usize::from(at) % len;
        datagram.bytes[at] ^= flip;
        datagram.bytes.truncate(len - usize::from(cut) % len);
        let is_whole = datagram.bytes.len() == len;
        // Only under load anybody looks at the second MAC.
        let is_authentic = is_whole && (flip == 0 || datagram.bytes[0] < 3 && at >= len - MAC2);
        let to = datagram.to;
        if is_authentic {
            return self.arrive(datagram);
        }
        let (now, before) = (self.now, self.end(to).path());
        let opened = self.end(to).open(now, elsewhere(9), &datagram.bytes);
        assert_eq!(opened, None, "it was tampered with");
        assert_eq!(self.end(to).path(), before, "it moves nothing");
        self.collect();
    }

    fn exchange(&mut self) {
        for _ in 0..8 * ON_THE_WAY {
            self.collect();
            let Some(datagram) = self.on_the_way.pop_front() else {
                return;
            };
            self.arrive(datagram);
        }
        panic!("they talk without end");
    }

    fn advance(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let due = [self.agent.poll_timeout(), self.relay.poll_timeout()];
            let Some(due) = due.into_iter().flatten().min().filter(|&due| due <= until) else {
                break;
            };
            self.now = self.now.max(due);
            self.tick();
        }
        self.now = until;
        self.tick();
    }

    fn tick(&mut self) {
        self.agent.handle_timeout(self.now);
        self.relay.handle_timeout(self.now);
        self.collect();
    }

    fn check_path(&mut self, side: Side) {
        if let Some(path) = self.end(side).path() {
            assert!(self.seen[side as usize].contains(&path), "{path} was never proved");
        }
    }

    /// The network becomes honest.
    fn make_peace(&mut self) {
        self.on_the_way.clear();
        for _ in 0..3 {
            self.advance(Duration::from_secs(6));
            self.agent.set_path(relay_addr());
            self.agent.call(self.now, true);
            self.exchange();
        }
        assert!(self.agent.is_ready() && self.relay.is_ready(), "there is a session");
        assert_eq!(self.relay.path(), Some(agent_addr()));
        for side in [Side::Agent, Side::Relay] {
            let before = self.opened.len();
            self.seal(side);
            self.exchange();
            assert_eq!(self.opened.len(), before + 1, "a packet of the {side:?} arrives");
        }
    }
}

fn nth(datagrams: &VecDeque<Datagram>, which: u8) -> Option<Datagram> {
    datagrams.get(usize::from(which).checked_rem(datagrams.len())?).cloned()
}

fn fresh_relay(now: Instant) -> WgEnd {
    WgEnd::new(now, &key(Side::Relay), key(Side::Agent).public_key(), None)
}

fn key(side: Side) -> SecretKey {
    SecretKey::from_bytes([side as u8 + 1; 32])
}

fn relay_addr() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 51820))
}

fn agent_addr() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 40000))
}

/// One of the agent's own address and some that are a stranger's.
fn elsewhere(source: u8) -> SocketAddr {
    match source % 4 {
        0 => agent_addr(),
        stranger => SocketAddr::from(([198, 18, 0, stranger], 7000)),
    }
}
