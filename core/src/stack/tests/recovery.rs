//! Losses that no three acknowledgements tell of.

use super::*;

/// After so long a flight is asked after whose round trip takes no time at all.
const PROBE: Duration = Duration::from_millis(10);

/// A connection that has moved enough for a flight of a hundred packets.
fn with_large_flights() -> (Ends, FlowId, FlowId) {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.transfer(a, b, 4 << 20);
    (ends, a, b)
}

/// Sends bytes and loses the packets at these places; how many bytes were sent.
fn send_with_losses(ends: &mut Ends, a: FlowId, bytes: usize, lost: impl Fn(usize, usize) -> bool) -> usize {
    let sent = ends.a.stack.send(a, &vec![1; bytes]);
    let flight = ends.a.packets(ends.now);
    let count = flight.len();
    let arrive = flight.into_iter().enumerate().filter(|(place, _)| !lost(*place, count));
    let arrive: Vec<_> = arrive.map(|(_, packet)| packet).collect();
    ends.b.take(ends.now, &arrive);
    let answers = ends.b.packets(ends.now);
    ends.a.take(ends.now, &answers);
    sent
}

#[test]
fn the_last_packets_of_a_flight_are_asked_after() {
    for missing in [1, 2] {
        let (mut ends, a, b) = with_large_flights();
        let sent = send_with_losses(&mut ends, a, 20_000, |place, count| place + missing >= count);
        ends.exchange();
        assert!(ends.b.read(b).len() < sent, "the end is missing");
        ends.wait(PROBE);
        assert_eq!(ends.a.resources.counters.tail_probes, 1);
        assert!(!ends.b.read(b).is_empty(), "sent again without the timer");
        ends.check();
    }
}

#[test]
fn several_that_are_missing_are_mended_without_the_timer() {
    let (mut ends, a, b) = with_large_flights();
    let lost = [3, 9, 17, 40];
    let sent = send_with_losses(&mut ends, a, 100_000, |place, _| lost.contains(&place));
    ends.exchange();
    assert_eq!(ends.b.read(b).len(), sent);
    assert_eq!(ends.a.resources.counters.tail_probes, 0);
    ends.check();
}

/// However many packets of a flight are missing, and wherever: it is one loss.
#[test]
fn a_flight_that_lost_several_packets_leaves_most_of_its_window() {
    let (mut ends, a, b) = with_large_flights();
    let lost = |place, count| (1..10).any(|tenth| place == count * tenth / 10);
    let sent = send_with_losses(&mut ends, a, 200_000, lost);
    ends.exchange();
    assert_eq!(ends.b.read(b).len(), sent);
    let window = ends.a.stack.flows.get(a.0).unwrap().wire.congestion.window();
    assert!(window as usize >= sent / 10 * 6, "{window} of {sent}");
    ends.check();
}

#[test]
fn a_flight_of_which_nothing_arrives_waits_for_the_timer_in_the_end() {
    let (mut ends, a, b) = with_large_flights();
    let sent = send_with_losses(&mut ends, a, 200_000, |_, _| true);
    let mut received = 0;
    // No round trip is without its time here: one packet is mended in each.
    for _ in 0..100 {
        ends.now += Duration::from_millis(10);
        ends.a.stack.handle_timeout(ends.now, &mut ends.a.resources);
        let packets = ends.a.packets(ends.now);
        ends.b.take(ends.now, &packets);
        received += ends.b.read(b).len();
        let answers = ends.b.packets(ends.now);
        ends.a.take(ends.now, &answers);
    }
    assert_eq!(received, sent);
    assert_eq!(ends.a.resources.counters.tail_probes, 1);
    ends.check();
}

#[test]
fn what_is_answered_in_time_is_not_asked_after() {
    let (mut ends, a, b) = with_large_flights();
    for _ in 0..100 {
        ends.a.stack.send(a, b"a few bytes");
        ends.exchange();
        ends.wait(PROBE);
        assert!(!ends.b.read(b).is_empty());
    }
    assert_eq!(ends.a.resources.counters.tail_probes, 0);
    assert!(!ends.a.stack.flows.get(a.0).unwrap().wire.repeated);
}

/// A probe is one packet: an end that is busy for long gets no more of them.
#[test]
fn an_end_that_is_away_is_asked_once_and_then_by_the_timer() {
    let (mut ends, a, _) = with_large_flights();
    ends.cut = true;
    ends.a.stack.send(a, &[1; 5_000]);
    ends.exchange();
    let before = ends.a.made.0;
    for _ in 0..15 {
        ends.wait(PROBE);
    }
    assert_eq!(ends.a.resources.counters.tail_probes, 1);
    assert_eq!(ends.a.made.0, before + 1);
}

#[test]
fn what_somebody_who_has_gone_has_said_last_is_asked_after_too() {
    let (mut ends, a, b) = with_large_flights();
    send_with_losses(&mut ends, a, 5_000, |_, _| true);
    ends.a.stack.flows.get_mut(a.0).unwrap().owner = Owner::Gone;
    ends.a.stack.close(a);
    // Which nobody reads.
    ends.b.stack.send(b, b"some bytes");
    let answers = ends.b.packets(ends.now);
    ends.a.take(ends.now, &answers);
    ends.a.packets(ends.now);
    ends.wait(PROBE);
    assert_eq!(ends.a.resources.counters.tail_probes, 1);
    assert!(!ends.b.read(b).is_empty(), "sent again without the timer");
}

/// A SYN or its answer that is lost costs little more than two round trips, and bytes of the SYN arrive once all the same.
#[test]
fn a_syn_goes_once_more_after_two_round_trips() {
    // An end that waits for a handshake has its own timer for its answer.
    for (answers_at_once, answer_is_lost) in [(false, false), (true, false), (true, true)] {
        let (mut ends, first, _) = with_large_flights();
        ends.b.stack.config.answers_at_once = answers_at_once;
        let a = ends.open();
        ends.a.stack.send_early(a, b"hello", &mut ends.a.resources);
        let syn = ends.a.packets(ends.now);
        assert_eq!(syn.len(), 1);
        if answer_is_lost {
            ends.b.take(ends.now, &syn);
            assert!(!ends.b.packets(ends.now).is_empty());
        }
        ends.wait(PROBE);
        assert_eq!(ends.a.resources.counters.syn_probes, 1);
        let b = ends.accepted();
        let view = |ends: &Ends| ends.a.stack.view(a).unwrap();
        assert!(view(&ends).established);
        while ends.a.stack.send(a, b"hello") == 0 {
            ends.exchange();
        }
        ends.exchange();
        assert_eq!(ends.b.read(b), b"hello");
        assert_eq!(ends.a.resources.counters.tail_probes, 0);
        assert!(ends.a.stack.view(first).unwrap().established);
        ends.check();
    }
}

#[test]
fn who_was_never_heard_of_is_called_by_the_timer_alone() {
    let mut ends = Ends::new();
    ends.cut = true;
    ends.open();
    for _ in 0..15 {
        ends.wait(PROBE);
    }
    assert_eq!((ends.a.resources.counters.syn_probes, ends.a.made.1), (0, 1));
    // Of somebody who was heard of, by one packet more, once.
    let (mut ends, ..) = with_large_flights();
    ends.cut = true;
    ends.open();
    let before = ends.a.made.1;
    for _ in 0..15 {
        ends.wait(PROBE);
    }
    assert_eq!((ends.a.resources.counters.syn_probes, ends.a.made.1 - before), (1, 2));
}
