//! Bytes that travel with a SYN.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, Ipv6Packet, TcpControl, TcpPacket, TcpRepr};

use super::*;

const FIRST: &[u8] = b"first bytes";
const ALL: &[u8] = b"first bytes, and more";

/// Two ends of which the second answers at once or not.
fn ends(answers_at_once: bool) -> Ends {
    let mut ends = Ends::new();
    ends.b.stack.config.answers_at_once = answers_at_once;
    ends
}

/// A connection is opened, and these bytes are to travel with its SYN.
fn open(ends: &mut Ends, bytes: &[u8]) -> FlowId {
    let flow = ends.open();
    ends.a.stack.send_early(flow, bytes, &mut ends.a.resources);
    ends.check();
    flow
}

fn opened(answers_at_once: bool) -> (Ends, FlowId) {
    let mut ends = ends(answers_at_once);
    let flow = open(&mut ends, FIRST);
    (ends, flow)
}

/// Sends all of it; an end that sleeps wakes for that.
fn send(end: &mut End, now: Instant, flow: FlowId, bytes: &[u8]) {
    if end.stack.send(flow, bytes) == 0 {
        assert_eq!(end.packets(now).len(), 0);
        assert_eq!(end.stack.send(flow, bytes), bytes.len());
    }
}

/// Sends everything, the first bytes among it, and looks that it arrives once.
fn finish(mut ends: Ends, a: FlowId, b: FlowId, read: Vec<u8>) {
    assert!(ends.a.stack.view(a).unwrap().established);
    send(&mut ends.a, ends.now, a, ALL);
    ends.exchange();
    assert_eq!([read, ends.b.read(b)].concat(), ALL);
    send(&mut ends.b, ends.now, b, b"the answer");
    ends.exchange();
    assert!(ends.a.read(a).ends_with(b"the answer"));
    ends.a.stack.close(a);
    ends.b.stack.close(b);
    ends.exchange();
    for (end, flow) in [(&mut ends.a, a), (&mut ends.b, b)] {
        assert!(end.stack.view(flow).unwrap().remote_fin);
        end.stack.release(flow, false, &mut end.resources);
    }
    ends.exchange();
    ends.check();
    assert_eq!((ends.a.stack.flow_count(), ends.b.stack.flow_count()), (0, 0));
}

/// The headers of a packet whose checksum is right.
fn parse(packet: &[u8]) -> (TcpControl, Vec<u8>) {
    let ip = Ipv6Packet::new_checked(packet).unwrap();
    let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
    let (from, to) = (IpAddress::Ipv6(ip.src_addr()), IpAddress::Ipv6(ip.dst_addr()));
    let repr = TcpRepr::parse(&tcp, &from, &to, &ChecksumCapabilities::default()).expect("its checksum is right");
    (repr.control, repr.payload.to_vec())
}

#[test]
fn bytes_are_there_with_the_syn_and_an_answer_comes_back_at_once() {
    let (mut ends, a) = opened(true);
    let up = ends.a.packets(ends.now);
    assert_eq!(up.len(), 1);
    let (control, payload) = parse(&up[0]);
    assert_eq!((control, &payload[..]), (TcpControl::Syn, FIRST));
    ends.b.take(ends.now, &up);
    let b = ends.accepted();
    assert!(ends.b.stack.view(b).unwrap().established);
    let read = ends.b.read(b);
    assert_eq!(read, FIRST);
    ends.b.stack.send(b, b"and here you are");
    let down = ends.b.packets(ends.now);
    assert_eq!(parse(&down[0]).0, TcpControl::Syn);
    down.iter().for_each(|packet| drop(parse(packet)));
    ends.a.take(ends.now, &down);
    assert_eq!(ends.a.read(a), b"and here you are");
    finish(ends, a, b, read);
}

#[test]
fn an_end_that_does_not_take_them_gets_them_behind_the_handshake() {
    let (mut ends, a) = opened(false);
    ends.exchange();
    let b = ends.accepted();
    assert_eq!(ends.b.read(b), b"");
    finish(ends, a, b, Vec::new());
}

#[test]
fn the_bytes_of_a_syn_that_is_lost_come_behind_the_handshake() {
    let (mut ends, a) = opened(true);
    ends.cut = true;
    ends.exchange();
    ends.wait(Duration::from_millis(500));
    ends.cut = false;
    ends.wait(Duration::from_secs(1));
    let b = ends.accepted();
    assert_eq!(ends.b.read(b), b"", "they might have arrived twice");
    finish(ends, a, b, Vec::new());
}

#[test]
fn a_syn_that_is_overtaken_by_the_next_one_brings_nothing() {
    for is_confirmed in [true, false] {
        let (mut ends, a) = opened(true);
        let first = ends.a.packets(ends.now);
        ends.now += Duration::from_millis(500);
        ends.a.stack.handle_timeout(ends.now, &mut ends.a.resources);
        let second = ends.a.packets(ends.now);
        assert_eq!(parse(&second[0]), (TcpControl::Syn, Vec::new()));
        ends.b.take(ends.now, &second);
        let b = ends.accepted();
        if is_confirmed {
            ends.exchange();
        }
        ends.b.take(ends.now, &first);
        ends.exchange();
        finish(ends, a, b, Vec::new());
    }
}

/// What was read of it must not be read again by somebody else.
#[test]
fn a_connection_that_was_lost_before_it_was_confirmed_does_not_come_again() {
    let (mut ends, a) = opened(true);
    let up = ends.a.packets(ends.now);
    ends.b.take(ends.now, &up);
    let b = ends.accepted();
    assert_eq!(ends.b.read(b), FIRST);
    ends.b.stack.release(b, true, &mut ends.b.resources);
    assert!(!ends.b.packets(ends.now).is_empty(), "all of it is lost");
    assert_eq!(ends.b.stack.flow_count(), 0);
    ends.wait(Duration::from_millis(500));
    assert_eq!(ends.b.stack.flow_count(), 0);
    assert!(ends.a.stack.view(a).unwrap().broken, "it is told");
    assert_eq!(ends.b.resources.counters.refused_lost_flow, 1);
    // Once the other end has given up, it is forgotten.
    ends.now += Duration::from_secs(60);
    assert!(ends.b.stack.answers_at_once(ends.now));
    assert_eq!(ends.b.stack.fallen.len(), 0);
}

#[test]
fn an_answer_that_is_lost_comes_again() {
    for is_awake in [true, false] {
        let (mut ends, a) = opened(true);
        let up = ends.a.packets(ends.now);
        ends.b.take(ends.now, &up);
        let b = ends.accepted();
        let read = ends.b.read(b);
        assert!(ends.b.packets(ends.now).len() > 1, "these are lost");
        if is_awake {
            ends.b.stack.send(b, b"as this is, ");
            assert!(!ends.b.packets(ends.now).is_empty());
        }
        for _ in 0..20 {
            ends.wait(Duration::from_millis(200));
        }
        assert_eq!(ends.b.stack.flow_count(), 1, "it is the same connection");
        finish(ends, a, b, read);
    }
}

#[test]
fn more_than_fits_is_sent_behind_the_handshake() {
    let mut ends = ends(true);
    let bytes: Vec<_> = (0..3000_u32).map(|at| at as u8).collect();
    let a = open(&mut ends, &bytes);
    let up = ends.a.packets(ends.now);
    assert_eq!(up[0].len(), MTU, "a packet is full");
    ends.b.take(ends.now, &up);
    let b = ends.accepted();
    let first = ends.b.read(b);
    ends.exchange();
    assert_eq!(ends.a.stack.send(a, &bytes), bytes.len());
    ends.exchange();
    assert_eq!([first, ends.b.read(b)].concat(), bytes);
    ends.check();
}

#[test]
fn a_port_that_is_closed_refuses_at_once() {
    let mut ends = ends(true);
    ends.b.stack.unserve(PORT);
    let a = open(&mut ends, FIRST);
    ends.exchange();
    assert!(ends.a.stack.view(a).unwrap().broken);
    ends.a.stack.release(a, false, &mut ends.a.resources);
    ends.exchange();
    ends.check();
    assert_eq!(ends.a.stack.flow_count(), 0);
}
