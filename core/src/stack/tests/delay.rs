//! Acknowledgements that wait for bytes to go with.

use super::*;

/// No acknowledgement waits for longer.
const WAIT: Duration = Duration::from_millis(4);

/// A connection on which a question was answered at once.
fn in_conversation() -> (Ends, FlowId, FlowId) {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ask(&mut ends, a, b);
    answer(&mut ends, a, b);
    (ends, a, b)
}

fn ask(ends: &mut Ends, a: FlowId, b: FlowId) {
    ends.a.stack.send(a, b"question");
    ends.exchange();
    assert_eq!(ends.b.read(b), b"question");
}

fn answer(ends: &mut Ends, a: FlowId, b: FlowId) {
    ends.b.stack.send(b, b"answer");
    ends.exchange();
    assert_eq!(ends.a.read(a), b"answer");
}

/// How many packets without bytes each end has made.
fn bare(ends: &Ends) -> (u64, u64) {
    (ends.a.made.1, ends.b.made.1)
}

#[test]
fn a_question_and_its_answer_are_a_packet_each() {
    let (mut ends, a, b) = in_conversation();
    let before = bare(&ends);
    for _ in 0..10 {
        ask(&mut ends, a, b);
        ends.now += Duration::from_millis(1);
        answer(&mut ends, a, b);
        ends.now += Duration::from_millis(1);
    }
    assert_eq!(bare(&ends), before);
    ends.check();
    ends.wait(WAIT);
    assert_eq!(bare(&ends), (before.0 + 1, before.1), "the last answer's");
}

#[test]
fn an_answer_that_takes_long_is_waited_for_once() {
    let (mut ends, a, b) = in_conversation();
    let before = bare(&ends).1;
    ask(&mut ends, a, b);
    assert_eq!(bare(&ends).1, before);
    ends.wait(WAIT);
    assert_eq!(bare(&ends).1, before + 1);
    ends.wait(Duration::from_millis(20));
    answer(&mut ends, a, b);
    for asked in 2..5 {
        ends.wait(Duration::from_secs(1));
        ask(&mut ends, a, b);
        assert_eq!(bare(&ends).1, before + asked, "at once");
    }
    assert_eq!(ends.a.resources.counters.tail_probes, 0);
    // Until one is answered in time again.
    answer(&mut ends, a, b);
    ask(&mut ends, a, b);
    assert_eq!(bare(&ends).1, before + 4);
}

#[test]
fn what_is_more_than_one_small_packet_is_acknowledged_at_once() {
    let (mut ends, a, b) = in_conversation();
    let before = bare(&ends).1;
    ask(&mut ends, a, b);
    ask(&mut ends, a, b);
    assert_eq!(bare(&ends).1, before + 1, "a second one");
    answer(&mut ends, a, b);
    let full = MTU - crate::stack::segment::HEADERS;
    ends.a.stack.send(a, &vec![1; full]);
    ends.exchange();
    assert_eq!(ends.b.read(b).len(), full);
    assert_eq!(bare(&ends).1, before + 2, "a full one");
}

#[test]
fn what_arrives_behind_something_missing_is_acknowledged_at_once() {
    let (mut ends, a, _) = in_conversation();
    let before = bare(&ends).1;
    ends.a.stack.send(a, b"lost");
    ends.a.packets(ends.now);
    ends.a.stack.send(a, b"question");
    let arrives = ends.a.packets(ends.now);
    ends.b.take(ends.now, &arrives);
    ends.b.packets(ends.now);
    assert_eq!(bare(&ends).1, before + 1);
}

#[test]
fn an_end_is_acknowledged_at_once() {
    let (mut ends, a, b) = in_conversation();
    ends.a.stack.send(a, b"question");
    ends.a.stack.close(a);
    ends.exchange();
    assert_eq!(ends.b.read(b), b"question");
    assert_eq!(ends.a.state(a), Some(State::FinWait2));
}
