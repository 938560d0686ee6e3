//! Two stacks through a link that does what the bytes say, against what TCP promises.

use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use portal_core::fuzzing::{Connection, StackEnd};
use portal_core::identity::SecretKey;
use portal_sim::{Impairments, Loss, Netem};

/// One thing that happens. `which` names a connection.
#[derive(Debug, Arbitrary)]
enum Happening {
    Connect,
    Send { which: u8, side: bool, len: u16 },
    Read { which: u8, side: bool, most: u16 },
    Close { which: u8, side: bool },
    Release { which: u8, side: bool, reset: bool },
    Wait { millis: u16 },
    Impair(Weather),
    Heal,
}

/// What the link does from now on, both ways.
#[derive(Debug, Arbitrary)]
struct Weather {
    latency: u8,
    jitter: u8,
    loss: u8,
    duplicate: u8,
    reorder: u8,
    rate: u8,
    queue: u8,
}

/// A connection, of which the first side was opened and the second accepted.
struct Talk {
    ends: [Option<Connection>; 2],
    established: [bool; 2],
    sent: [usize; 2],
    received: [usize; 2],
    closed: [bool; 2],
    /// How many of the first bytes the first side has yet to send.
    early: usize,
    /// Somebody let go of it before it was over: it need not be whole.
    given_up: bool,
}

const HAPPENINGS: usize = 40;
const TALKS: usize = 8;
const FIRST_PORT: u16 = 1024;
/// How many bytes are to travel with a SYN: some that fit, and more.
const EARLY: [usize; 4] = [0, 1, 600, 3000];
/// As long as an end waits for the other one before it counts as dead, and somewhat more.
const PATIENCE: Duration = Duration::from_secs(400);

/// Connections between two stacks. What arrives is a prefix of what was sent, and a FIN comes behind all of it; once the
/// link is whole, so is what arrives over each connection that was there; and nothing is left of them in the end.
pub fn flows(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut ends = Ends::new(Instant::now(), input.arbitrary().unwrap_or(0));
    for _ in 0..HAPPENINGS {
        let Ok(happening) = input.arbitrary() else { break };
        ends.happen(&happening);
        ends.run(Duration::ZERO);
        ends.check();
    }
    ends.finish();
}

struct Ends {
    now: Instant,
    stacks: [StackEnd; 2],
    /// What goes to each of them.
    links: [Netem<Vec<u8>>; 2],
    talks: Vec<Talk>,
}

impl Ends {
    fn new(now: Instant, seed: u64) -> Self {
        let keys = [1, 2].map(|byte| SecretKey::from_bytes([byte; 32]).public_key());
        let mut stacks = [
            StackEnd::new(now, keys[0], keys[1], false),
            StackEnd::new(now, keys[1], keys[0], seed % 4 != 0),
        ];
        for port in (FIRST_PORT..).take(TALKS) {
            stacks[1].serve(port);
        }
        Self {
            now,
            stacks,
            links: [0, 1].map(|side| Netem::new(Impairments::default(), seed ^ side)),
            talks: Vec::new(),
        }
    }

    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::Connect => {
                let port = FIRST_PORT + self.talks.len() as u16;
                if self.talks.len() < TALKS
                    && let Some(connection) = self.stacks[0].connect(self.now, port)
                {
                    let early = EARLY[self.talks.len() % EARLY.len()];
                    let bytes: Vec<_> = (0..early).map(|at| byte(0, at)).collect();
                    self.stacks[0].send_early(connection, &bytes);
                    self.talks.push(Talk::new(connection, early));
                }
            }
            Happening::Send { which, side, len } => self.send(which, side.into(), len.into()),
            Happening::Read { which, side, most } => self.read(usize::from(which), side.into(), most.into()),
            Happening::Close { which, side } => self.close(usize::from(which), side.into()),
            Happening::Release { which, side, reset } => {
                let side = usize::from(side);
                if let Some((talk, end)) = self.talk(usize::from(which), side) {
                    talk.given_up = true;
                    talk.ends[side] = None;
                    self.stacks[side].release(end, reset);
                }
            }
            Happening::Wait { millis } => self.run(Duration::from_millis(millis.into())),
            Happening::Impair(ref weather) => {
                for link in &mut self.links {
                    *link.impairments_mut() = weather.impairments();
                }
            }
            Happening::Heal => self.heal(),
        }
    }

    /// A side's end of a talk, if it has one.
    fn talk(&mut self, which: usize, side: usize) -> Option<(&mut Talk, Connection)> {
        let talk = self.talks.get_mut(which % TALKS)?;
        let end = talk.ends[side]?;
        Some((talk, end))
    }

    fn send(&mut self, which: u8, side: usize, len: usize) {
        let Some((talk, end)) = self.talk(which.into(), side) else {
            return;
        };
        if talk.closed[side] || side == 0 && talk.early > 0 {
            return;
        }
        let from = talk.sent[side];
        let bytes: Vec<_> = (from..from + len).map(|at| byte(side, at)).collect();
        let sent = self.stacks[side].send(end, &bytes);
        self.talks[usize::from(which) % TALKS].sent[side] += sent;
    }

    /// What travelled with the SYN is sent before anything else, and counts as sent from the start.
    fn send_early(&mut self, which: usize) {
        let Some((talk, end)) = self.talk(which, 0).filter(|(talk, _)| talk.early > 0) else {
            return;
        };
        let from = talk.sent[0] - talk.early;
        let bytes: Vec<_> = (from..talk.sent[0]).map(|at| byte(0, at)).collect();
        let sent = self.stacks[0].send(end, &bytes);
        self.talks[which].early -= sent;
    }

    fn close(&mut self, which: usize, side: usize) {
        if let Some((talk, end)) = self.talk(which, side)
            && talk.established[side]
            && !talk.closed[side]
            && !(side == 0 && talk.early > 0)
        {
            talk.closed[side] = true;
            self.stacks[side].close(end);
        }
    }

    fn read(&mut self, which: usize, side: usize, most: usize) {
        let Some((talk, end)) = self.talk(which, side) else {
            return;
        };
        let from = talk.received[side];
        let sent = talk.sent[1 - side];
        let bytes = self.stacks[side].read(end, most);
        let to = from + bytes.len();
        assert!(to <= sent, "{to} bytes arrive of {sent}");
        let arrived = bytes.iter().zip(from..);
        assert!(
            arrived.into_iter().all(|(&found, at)| found == byte(1 - side, at)),
            "they are those that were sent"
        );
        self.talks[which % TALKS].received[side] = to;
    }

    fn heal(&mut self) {
        for link in &mut self.links {
            *link.impairments_mut() = Impairments::default();
        }
    }

    /// Time passes.
    fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            self.exchange();
            let due = self.stacks.iter().filter_map(StackEnd::poll_timeout);
            let arrivals = self.links.iter().filter_map(Netem::poll_timeout);
            let Some(next) = due.chain(arrivals).min().filter(|&next| next <= until) else {
                break;
            };
            self.now = self.now.max(next);
            for stack in &mut self.stacks {
                stack.handle_timeout(self.now);
            }
        }
        self.now = until;
    }

    /// Carries what can be carried without time passing.
    fn exchange(&mut self) {
        let mut rounds = 0;
        loop {
            let mut any = false;
            for side in [0, 1] {
                while let Some(packet) = self.stacks[side].poll_packet(self.now) {
                    any = true;
                    self.links[1 - side].handle_datagram(self.now, packet.len(), packet);
                }
                while let Some(packet) = self.links[side].poll_datagram(self.now) {
                    any = true;
                    self.stacks[side].handle_packet(self.now, &packet);
                }
                self.note(side);
            }
            if !any {
                return;
            }
            rounds += 1;
            assert!(rounds < 100_000, "they talk without end");
        }
    }

    /// Takes note of what has happened to a side's connections.
    fn note(&mut self, side: usize) {
        while let Some((connection, view)) = self.stacks[side].poll_touched() {
            let known = |talk: &Talk| talk.ends[side] == Some(connection);
            let which = match self.talks.iter().position(known) {
                Some(which) => which,
                None if side == 1 && view.established => usize::from(view.local_port - FIRST_PORT),
                None => continue,
            };
            let talk = &mut self.talks[which];
            if view.established && !talk.established[side] {
                talk.established[side] = true;
                talk.ends[side] = Some(connection);
            } else if talk.ends[side] != Some(connection) {
                // A SYN that came twice, after its connection was over: WireGuard would have dropped it.
                self.stacks[side].release(connection, true);
            }
            if side == 0 {
                self.send_early(which);
            }
        }
    }

    fn check(&mut self) {
        for stack in &self.stacks {
            stack.check_invariants();
        }
        for which in 0..self.talks.len() {
            for side in [0, 1] {
                let Some((talk, end)) = self.talk(which, side) else {
                    continue;
                };
                let they_ended = talk.closed[1 - side] || talk.given_up;
                let view = self.stacks[side].view(end).expect("its owner has it");
                assert!(they_ended || !view.remote_fin, "nobody has said that it ends");
            }
        }
    }

    /// All is well from here on.
    fn finish(&mut self) {
        self.heal();
        let whole: Vec<_> = (0..self.talks.len()).filter(|&which| self.is_whole(which)).collect();
        for _ in 0..PATIENCE.as_secs() {
            for which in 0..self.talks.len() {
                self.send_early(which);
                for side in [0, 1] {
                    self.close(which, side);
                    self.read(which, side, usize::MAX);
                }
            }
            self.run(Duration::from_secs(1));
            self.check();
        }
        for which in whole {
            let talk = &self.talks[which];
            assert_eq!(talk.received, [talk.sent[1], talk.sent[0]], "all of it arrives");
        }
        for which in 0..self.talks.len() {
            for side in [0, 1] {
                if let Some((talk, end)) = self.talk(which, side) {
                    talk.ends[side] = None;
                    self.stacks[side].release(end, false);
                }
            }
        }
        self.run(PATIENCE);
        for stack in &self.stacks {
            assert_eq!(stack.check_invariants(), 0, "nothing is left");
        }
    }

    /// Whether both ends know each other and have not given up.
    fn is_whole(&self, which: usize) -> bool {
        let talk = &self.talks[which];
        let lives = |side: usize| {
            let view = talk.ends[side].and_then(|end| self.stacks[side].view(end));
            view.is_some_and(|view| view.established && !view.broken)
        };
        !talk.given_up && lives(0) && lives(1)
    }
}

impl Talk {
    fn new(opened: Connection, early: usize) -> Self {
        Self {
            ends: [Some(opened), None],
            established: [false; 2],
            sent: [early, 0],
            received: [0; 2],
            closed: [false; 2],
            early,
            given_up: false,
        }
    }
}

impl Weather {
    fn impairments(&self) -> Impairments {
        // Up to one datagram in two.
        let share = |share: u8| u32::from(share) * 2000;
        let millis = |millis: u8| Duration::from_millis(millis.into());
        Impairments {
            latency: millis(self.latency),
            jitter: millis(self.jitter),
            loss: Loss::Random(share(self.loss)),
            duplicate: share(self.duplicate),
            reorder: share(self.reorder),
            reorder_by: millis(self.jitter),
            rate: u64::from(self.rate) * 10_000,
            queue: 2_000 + usize::from(self.queue) * 500,
            ..Impairments::default()
        }
    }
}

/// What a side says at a place of its stream.
fn byte(side: usize, at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).wrapping_mul(31).wrapping_add(side) as u8
}
