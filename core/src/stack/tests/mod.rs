//! Two stacks that hand each other packets, without a tunnel between them.

mod delay;
mod early;
mod moves;
mod recovery;

use std::time::Duration;

use smoltcp::socket::tcp::State;

use super::ip::Payload;
use super::segment::tests::is_sound;
use super::*;
use crate::identity::PublicKey;
use crate::timers::tests::some_instant;

/// One end.
struct End {
    stack: Stack,
    resources: Resources,
    /// The other end.
    peer: PeerId,
    /// Packets made, with and without data.
    made: (u64, u64),
}

struct Ends {
    now: Instant,
    a: End,
    b: End,
    /// Drops every packet from the first to the second.
    cut: bool,
}

const MTU: usize = 1280;
const PORT: u16 = 1024;

/// Somebody who looks after a flow.
fn owner() -> Owner {
    Owner::Stream(StreamId::from_parts(0, 0))
}

fn end(now: Instant, byte: u8, peer: u8, seed: u8) -> End {
    let address = PublicKey::from_bytes([byte; 32]).overlay_address();
    let config = StackConfig {
        mtu: MTU,
        max_flows: 20_000,
        max_half_open: 64,
        answers_at_once: false,
    };
    let mut random = Random::new([seed; 32]);
    let mut stack = Stack::new(now, address, config, &mut random);
    stack.serve(PORT, BufferClass::LARGEST);
    End {
        stack,
        resources: Resources::new(4 << 30),
        peer: PeerId::for_tests(u32::from(peer)),
        made: (0, 0),
    }
}

impl End {
    fn packets(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while self
            .stack
            .peek_packet(now, |_| true, |_| {}, &mut self.resources)
            .is_some()
        {
            let packet = self.stack.packet().to_vec();
            let inner = ip::parse(&packet).expect("a packet that parses");
            match inner.payload {
                Payload::Tcp { has_data: true, .. } => self.made.0 += 1,
                _ => self.made.1 += 1,
            }
            assert!(is_sound(&packet), "a kernel would drop it");
            self.stack.take_packet();
            packets.push(packet);
            assert!(packets.len() < 100_000, "a flow that makes packets without end");
        }
        packets
    }

    fn take(&mut self, now: Instant, packets: &[Vec<u8>]) {
        for packet in packets {
            assert!(packet.len() <= MTU);
            self.stack
                .ingress(now, self.peer, &mut packet.clone(), &mut self.resources);
        }
    }

    fn touched(&mut self) -> Vec<FlowId> {
        std::iter::from_fn(|| self.stack.pop_touched()).collect()
    }

    fn read(&mut self, flow: FlowId) -> Vec<u8> {
        let mut read = Vec::new();
        while self
            .stack
            .drain(flow, &mut |bytes| {
                read.extend_from_slice(bytes);
                bytes.len()
            })
            .is_some()
        {}
        read
    }

    fn state(&self, flow: FlowId) -> Option<State> {
        self.stack.flows.get(flow.0).map(Flow::state)
    }
}

impl Ends {
    fn new() -> Self {
        let now = some_instant();
        Self {
            now,
            a: end(now, 1, 2, 1),
            b: end(now, 2, 1, 2),
            cut: false,
        }
    }

    /// Exchanges packets until there are none.
    fn exchange(&mut self) {
        loop {
            let (up, down) = (self.a.packets(self.now), self.b.packets(self.now));
            if up.is_empty() && down.is_empty() {
                return;
            }
            if !self.cut {
                self.b.take(self.now, &up);
            }
            self.a.take(self.now, &down);
        }
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.a.stack.handle_timeout(self.now, &mut self.a.resources);
        self.b.stack.handle_timeout(self.now, &mut self.b.resources);
        self.exchange();
    }

    /// The first end opens a connection to the second, which has yet to hear of it.
    fn open(&mut self) -> FlowId {
        let remote = self.b.stack.address;
        let End {
            stack, resources, peer, ..
        } = &mut self.a;
        stack
            .connect(self.now, *peer, remote, PORT, owner(), BufferClass::LARGEST, resources)
            .unwrap()
    }

    /// The flow that the second end has accepted last, which belongs to somebody from now on.
    fn accepted(&mut self) -> FlowId {
        let flow = *self.b.touched().last().expect("a flow was accepted");
        self.b.stack.set_owner(flow, owner());
        flow
    }

    /// A connection from the first to the second, and how each knows it.
    fn connect(&mut self) -> (FlowId, FlowId) {
        self.b.touched();
        let flow = self.open();
        self.exchange();
        let accepted = self.accepted();
        assert!(self.b.stack.view(accepted).unwrap().established);
        (flow, accepted)
    }

    /// Brings so many bytes from a flow of the first to that of the second, with moves and all.
    fn transfer(&mut self, a: FlowId, b: FlowId, bytes: usize) {
        let (mut sent, mut received, mut still) = (0, 0, 0);
        while received < bytes {
            if self.a.stack.view(a).unwrap().can_send {
                sent += self.a.stack.send(a, &vec![7; bytes - sent]);
            }
            let (up, down) = (self.a.packets(self.now), self.b.packets(self.now));
            // A move may need no packet.
            still = if up.is_empty() && down.is_empty() { still + 1 } else { 0 };
            assert!(still < 3, "it stands still");
            self.b.take(self.now, &up);
            self.a.take(self.now, &down);
            received += self.b.read(b).len();
        }
        self.exchange();
    }

    fn check(&self) {
        for end in [&self.a, &self.b] {
            assert_eq!(end.stack.check_invariants(), end.resources.budget.used());
        }
    }
}

#[test]
fn bytes_go_both_ways_and_everything_is_given_back() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    assert_eq!(ends.a.stack.send(a, b"ping"), 4);
    ends.exchange();
    assert_eq!(ends.b.read(b), b"ping");
    assert_eq!(ends.b.stack.send(b, b"pong"), 4);
    ends.b.stack.close(b);
    ends.exchange();
    assert_eq!(ends.a.read(a), b"pong");
    assert!(ends.a.stack.view(a).unwrap().remote_fin);
    assert_eq!(
        ends.a.stack.send(a, b"after their fin"),
        15,
        "half-close: sending goes on"
    );
    ends.exchange();
    assert_eq!(ends.b.read(b), b"after their fin");
    ends.check();
    ends.a.stack.release(a, false, &mut ends.a.resources);
    ends.b.stack.release(b, false, &mut ends.b.resources);
    ends.exchange();
    ends.check();
    assert_eq!((ends.a.stack.flow_count(), ends.b.stack.flow_count()), (0, 0));
    assert_eq!((ends.a.resources.budget.used(), ends.b.resources.budget.used()), (0, 0));
}

/// smoltcp clears what was not read when TIME-WAIT ends after 10 s.
#[test]
fn unread_bytes_outlive_time_wait() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.a.stack.close(a);
    ends.exchange();
    ends.b.stack.send(b, b"read me later");
    ends.b.stack.close(b);
    ends.exchange();
    assert_eq!(ends.a.state(a), Some(State::TimeWait));
    for _ in 0..60 {
        ends.wait(Duration::from_secs(1));
    }
    assert_eq!(ends.a.read(a), b"read me later");
    assert!(!ends.a.stack.view(a).unwrap().broken);
}

/// smoltcp keeps FIN-WAIT-2 for ever.
#[test]
fn a_flow_that_nobody_owns_ends_although_the_other_side_never_says_fin() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.a.stack.release(a, false, &mut ends.a.resources);
    ends.exchange();
    assert_eq!(ends.a.state(a), Some(State::FinWait2));
    assert!(ends.b.stack.view(b).unwrap().remote_fin);
    for _ in 0..90 {
        ends.wait(Duration::from_secs(1));
    }
    assert_eq!(ends.a.stack.flow_count(), 0);
}

/// The other end asks for ever whether the window has opened: smoltcp's patience never ends.
#[test]
fn bytes_for_a_flow_that_nobody_owns_end_it() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.a.stack.release(a, false, &mut ends.a.resources);
    ends.exchange();
    assert_eq!(ends.a.state(a), Some(State::FinWait2));
    ends.b.stack.send(b, b"is anybody there?");
    ends.exchange();
    assert_eq!(ends.a.stack.flow_count(), 0);
    assert!(ends.b.stack.view(b).unwrap().broken, "the other end was told");
}

/// An end that resets at once would take away what it said last.
#[test]
fn what_was_said_last_arrives_although_the_other_end_is_talking() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.a.stack.send(a, b"goodbye");
    ends.a.stack.release(a, false, &mut ends.a.resources);
    let farewell = ends.a.packets(ends.now);
    ends.b.stack.send(b, b"one more thing");
    let news = ends.b.packets(ends.now);
    ends.a.take(ends.now, &news);
    assert_eq!(ends.a.state(a), Some(State::FinWait1));
    ends.b.take(ends.now, &farewell);
    ends.exchange();
    assert_eq!(ends.b.read(b), b"goodbye");
    let view = ends.b.stack.view(b).unwrap();
    assert!(view.remote_fin && !view.broken);
    ends.b.stack.release(b, false, &mut ends.b.resources);
    ends.exchange();
    assert_eq!((ends.a.stack.flow_count(), ends.b.stack.flow_count()), (0, 0));
}

#[test]
fn a_dead_other_end_is_noticed_and_a_live_idle_one_is_kept() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    for _ in 0..600 {
        ends.wait(Duration::from_secs(1));
    }
    assert_eq!(
        (ends.a.state(a), ends.b.state(b)),
        (Some(State::Established), Some(State::Established))
    );
    ends.cut = true;
    for _ in 0..420 {
        ends.wait(Duration::from_secs(1));
    }
    assert!(
        ends.b.stack.view(b).unwrap().broken,
        "nothing was heard for more than five minutes"
    );
}

/// smoltcp's default seed gives two interfaces the same first sequence number.
#[test]
fn two_stacks_begin_with_different_sequence_numbers() {
    let now = some_instant();
    let first = |seed| {
        let mut a = end(now, 1, 2, seed);
        let remote = PublicKey::from_bytes([2; 32]).overlay_address();
        let owner = Owner::Stream(StreamId::from_parts(0, 0));
        a.stack
            .connect(
                now,
                a.peer,
                remote,
                PORT,
                owner,
                BufferClass::SMALLEST,
                &mut a.resources,
            )
            .unwrap();
        let packet = a.packets(now).pop().unwrap();
        (packet[44..48].to_vec(), packet[40..42].to_vec())
    };
    assert_eq!(first(1), first(1), "the seed decides");
    assert_ne!(first(1).0, first(2).0, "sequence numbers");
    assert_ne!(first(1).1, first(2).1, "ports");
}

#[test]
fn no_step_visits_idle_flows() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    for _ in 0..10_000 {
        ends.connect();
    }
    ends.a.stack.polls = 0;
    ends.b.stack.polls = 0;
    let before = (ends.a.made.0, ends.b.made.1);
    ends.transfer(a, b, 100_000);
    let packets = ends.a.made.0 - before.0 + ends.b.made.1 - before.1;
    let polls = ends.a.stack.polls + ends.b.stack.polls;
    assert!(
        polls < 4 * packets,
        "{polls} polls of sockets for {packets} packets among 10,000 idle flows"
    );
    // Nor do they take more than their record, once they have been silent for a while.
    for _ in 0..10 {
        ends.wait(Duration::from_secs(1));
    }
    ends.check();
    for end in [&mut ends.a, &mut ends.b] {
        assert!(end.resources.budget.used() < 10_001 * 1024);
        assert_eq!(end.resources.counters.flows_slept, 10_001);
        end.stack.polls = 0;
    }
    for _ in 0..40 {
        ends.wait(Duration::from_secs(1));
    }
    assert_eq!((ends.a.stack.polls, ends.b.stack.polls), (0, 0));
}

/// Who has spoken gives up its buffers at once when memory is short, instead of after a second.
#[test]
fn a_crowd_finds_the_memory_of_those_who_are_silent() {
    let mut ends = Ends::new();
    // Enough for about a hundred that are awake.
    ends.b.resources = Resources::new(4 << 20);
    let crowd: Vec<_> = (0..1_000)
        .map(|_| {
            let (a, b) = ends.connect();
            ends.transfer(a, b, 100);
            ends.transfer(b, a, 100);
            ends.wait(Duration::from_millis(1));
            (a, b)
        })
        .collect();
    assert_eq!(ends.b.resources.counters.refused_memory, 0);
    let (a, b) = crowd[0];
    ends.transfer(a, b, 100_000);
    ends.transfer(b, a, 100_000);
    ends.check();
}

/// Its owner may be one of thousands that have their turn.
#[test]
fn who_wakes_while_memory_is_short_has_time_to_say_something() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.b.resources.budget = crate::budget::Budget::new(100_000);
    let held = ends.b.stack.check_invariants();
    assert!(ends.b.resources.budget.charge(held) && ends.b.resources.budget.charge(65_000 - held));
    ends.transfer(a, b, 100);
    let sleeps = |ends: &Ends| ends.b.stack.flows.get(b.0).unwrap().house.is_none();
    ends.wait(Duration::from_millis(30));
    assert!(sleeps(&ends));
    ends.b.stack.fill(b, &mut |_| 0);
    ends.exchange();
    ends.wait(Duration::from_millis(500));
    assert!(!sleeps(&ends), "nothing was said yet");
    ends.transfer(b, a, 100);
    ends.wait(Duration::from_millis(30));
    assert!(sleeps(&ends));
}

#[test]
fn a_batch_of_data_draws_an_acknowledgement_for_every_eighth_packet() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.transfer(a, b, 4 << 20);
    ends.a.stack.send(a, &[1; 40_000]);
    let batch = ends.a.packets(ends.now);
    assert!(batch.len() > 20, "only {} packets", batch.len());
    ends.b.take(ends.now, &batch);
    let answers = ends.b.packets(ends.now);
    // And one for what is left at the end.
    assert_eq!(answers.len(), batch.len().div_ceil(8));
}

/// However few acknowledgements there are, a window grows by what they cover.
#[test]
fn one_acknowledgement_for_a_whole_flight_doubles_the_next_one() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.transfer(a, b, 4 << 20);
    // A flight is lost, and what is sent again after it opens the smallest window.
    let lost = ends.a.stack.send(a, &[1; 256 << 10]);
    let flight = ends.a.packets(ends.now).len();
    assert!(flight > 100, "only {flight} packets");
    ends.now += Duration::from_secs(2);
    ends.a.stack.handle_timeout(ends.now, &mut ends.a.resources);
    let (mut flights, mut received) = (Vec::new(), 0);
    while received < lost {
        let flight = ends.a.packets(ends.now);
        assert!(!flight.is_empty(), "it stands still after {received} of {lost} bytes");
        flights.push(flight.len());
        ends.b.take(ends.now, &flight);
        received += ends.b.read(b).len();
        let answers = ends.b.packets(ends.now);
        ends.a.take(ends.now, &answers[answers.len() - 1..]);
    }
    // The first one is what the socket makes at once.
    assert!((19..=21).contains(&flights[0]), "{flights:?}");
    for pair in flights[1..4].windows(2) {
        assert!((2 * pair[0]).abs_diff(pair[1]) <= 2, "{flights:?}");
    }
    ends.exchange();
    ends.check();
}

#[test]
fn a_connection_to_a_port_that_is_not_served_is_reset_at_once() {
    let mut ends = Ends::new();
    let remote = ends.b.stack.address;
    let owner = Owner::Stream(StreamId::from_parts(0, 0));
    let End {
        stack, resources, peer, ..
    } = &mut ends.a;
    let flow = stack
        .connect(ends.now, *peer, remote, 77, owner, BufferClass::SMALLEST, resources)
        .unwrap();
    ends.exchange();
    assert!(ends.a.stack.view(flow).unwrap().broken);
    assert_eq!(ends.b.stack.flow_count(), 0);
    assert_eq!(ends.b.resources.counters.refused_closed_port, 1);
}

#[test]
fn half_open_flows_are_bounded_and_end_by_themselves() {
    let mut ends = Ends::new();
    let remote = ends.b.stack.address;
    let owner = Owner::Stream(StreamId::from_parts(0, 0));
    let mut opened = Vec::new();
    for _ in 0..100 {
        let End {
            stack, resources, peer, ..
        } = &mut ends.a;
        opened.push(
            stack
                .connect(ends.now, *peer, remote, PORT, owner, BufferClass::SMALLEST, resources)
                .unwrap(),
        );
    }
    let syns = ends.a.packets(ends.now);
    ends.b.take(ends.now, &syns);
    ends.b.packets(ends.now);
    assert_eq!(ends.b.stack.flow_count(), 64);
    assert_eq!(ends.b.resources.counters.refused_half_open, 36);
    ends.cut = true;
    for _ in 0..15 {
        ends.now += Duration::from_secs(1);
        ends.b.stack.handle_timeout(ends.now, &mut ends.b.resources);
        ends.b.packets(ends.now);
    }
    assert_eq!(ends.b.stack.flow_count(), 0);
    ends.check();
}

#[test]
fn any_packet_is_a_reply_or_a_counted_drop() {
    let mut ends = Ends::new();
    let (a, _) = ends.connect();
    ends.a.stack.send(a, b"some bytes");
    let real = ends.a.packets(ends.now).pop().unwrap();
    let mut random = Random::new([3; 32]);
    for _ in 0..50_000 {
        let mut packet = real.clone();
        for _ in 0..=random.below(3) {
            // The source stays: the layer below has checked it.
            let at = random.below(packet.len() as u32) as usize;
            if !(8..24).contains(&at) {
                packet[at] = random.u32() as u8;
            }
        }
        packet.truncate(1 + random.below(packet.len() as u32) as usize);
        ends.b
            .stack
            .ingress(ends.now, ends.b.peer, &mut packet, &mut ends.b.resources);
        ends.b.packets(ends.now);
    }
    assert!(ends.b.resources.counters.drop_inner_packet > 1000);
    ends.check();
}

/// Round trips until the answer of so many bytes to a small request is there, over a new connection.
fn round_trips(ends: &mut Ends, answer: usize) -> u32 {
    let a = ends.open();
    let (mut b, mut is_asked, mut sent, mut received, mut round_trips) = (None, false, 0, 0, 0);
    while received < answer {
        if !is_asked {
            is_asked = ends.a.stack.send(a, b"?") > 0;
        }
        let up = ends.a.packets(ends.now);
        ends.now += Duration::from_millis(10);
        ends.b.take(ends.now, &up);
        let flow = *b.get_or_insert_with(|| ends.accepted());
        ends.b.read(flow);
        if is_asked && ends.b.stack.view(flow).unwrap().can_send {
            sent += ends.b.stack.send(flow, &vec![7; answer - sent]);
        }
        let down = ends.b.packets(ends.now);
        ends.now += Duration::from_millis(10);
        ends.a.take(ends.now, &down);
        received += ends.a.read(a).len();
        round_trips += 1;
        assert!(round_trips < 100);
    }
    ends.exchange();
    for (end, flow) in [(&mut ends.a, a), (&mut ends.b, b.unwrap())] {
        end.stack.release(flow, false, &mut end.resources);
    }
    ends.exchange();
    assert_eq!(ends.a.stack.flow_count(), 0);
    round_trips
}

#[test]
fn a_connection_begins_with_what_those_before_it_needed() {
    let mut ends = Ends::new();
    const BYTES: usize = 50_000;
    let first = round_trips(&mut ends, BYTES);
    assert!(first >= 5, "{first}");
    assert_eq!(round_trips(&mut ends, 100), 2);
    round_trips(&mut ends, BYTES);
    round_trips(&mut ends, BYTES);
    assert_eq!(round_trips(&mut ends, BYTES), 2, "the handshake, and all of it");
    // A peer that has come anew is a stranger.
    let peer = ends.a.peer;
    ends.a.stack.lose_flows(peer, &mut ends.a.resources);
    assert!(round_trips(&mut ends, BYTES) > 2);
    ends.check();
}
