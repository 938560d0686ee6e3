//! Ways into the crate's insides for fuzzing, each with the property that must hold for any bytes.
//!
//! Only with the feature `fuzzing`; no part of the crate's contract.

mod stack_end;
mod wg_end;

use std::net::Ipv6Addr;
use std::time::Instant;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{IpProtocol, Ipv6Packet, TcpControl, TcpPacket, TcpRepr, UdpPacket};

use crate::control::{Decoder, ToAgent, ToRelay, encode};
use crate::stack::{self, Payload};

pub use self::stack_end::{Connection, ConnectionView, MTU, StackEnd};
pub use self::wg_end::WgEnd;

/// Control frames, cut anywhere: whatever they are, they are messages or an error, however they were cut, and a message
/// that is written again reads the same.
pub fn control_frames(bytes: &[u8], step: usize) {
    let whole = decode::<ToRelay>(bytes, usize::MAX);
    assert_eq!(whole, decode::<ToRelay>(bytes, step.max(1)), "cuts change nothing");
    for message in whole.0 {
        let mut again = Vec::new();
        // Escapes may make it longer than it came.
        if encode(&message, &mut again).is_ok() && message != ToRelay::Unknown {
            assert_eq!(decode::<ToRelay>(&again, usize::MAX), (vec![message], false));
        }
    }
    let whole = decode::<ToAgent>(bytes, usize::MAX);
    assert_eq!(whole, decode::<ToAgent>(bytes, step.max(1)), "cuts change nothing");
}

/// An inner packet: our reading of it is smoltcp's, and a stack does with it what smoltcp's says.
pub fn inner_packet(now: Instant, bytes: &[u8]) {
    let ours = stack::parse(bytes);
    let theirs = Ipv6Packet::new_checked(bytes).ok().and_then(|ip| {
        let end = ip.header_len() + usize::from(ip.payload_len());
        let (body, protocol) = (bytes.get(ip.header_len()..end)?, ip.next_header());
        let ends = (ip.src_addr(), ip.dst_addr());
        match protocol {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(body).ok()?;
                Some((ends, (tcp.src_port(), tcp.dst_port()), tcp.payload().len()))
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(body).ok()?;
                Some((ends, (udp.src_port(), udp.dst_port()), udp.payload().len()))
            }
            _ => None,
        }
    });
    assert_eq!(ours.is_some(), theirs.is_some());
    let (Some(ours), Some((ends, ports, len))) = (ours, theirs) else {
        return;
    };
    assert_eq!((ours.source, ours.destination), ends);
    assert_eq!((ours.source_port, ours.destination_port), ports);
    match ours.payload {
        Payload::Tcp { has_data, .. } => {
            assert_eq!(has_data, len > 0);
            // The layer below has looked at the version.
            if Ipv6Packet::new_unchecked(bytes).version() == 6 {
                segment(now, bytes, ends, ports, false);
                segment(now, bytes, ends, ports, true);
            }
        }
        Payload::Udp(contents) => {
            assert_eq!(contents.len(), len);
            assert!(bytes.get(contents).is_some(), "its contents lie in the packet");
        }
    }
}

/// A segment reaches a stack that serves its port and has no connections: it gets one by a first segment only, which is
/// answered in kind, and anything else is answered by a reset or not at all.
fn segment(
    now: Instant,
    bytes: &[u8],
    (source, destination): (Ipv6Addr, Ipv6Addr),
    ports: (u16, u16),
    answers_at_once: bool,
) {
    if destination.is_multicast() || destination.is_unspecified() {
        return; // No end has such an address.
    }
    let mut end = StackEnd::at(now, destination, answers_at_once);
    if ports.1 != 0 {
        end.serve(ports.1);
    }
    end.handle_packet(now, bytes);
    let reply = end.poll_packet(now);
    let more = std::iter::from_fn(|| end.poll_packet(now)).count();
    // Who answers at once has said all along that there is more room, and that bytes have arrived.
    assert!(more <= if answers_at_once { 2 } else { 0 }, "{more} more");
    let segment = repr(bytes);
    let is_first = segment.is_some_and(|segment| segment.control == TcpControl::Syn && segment.ack_number.is_none());
    // Nobody can be answered who is nobody or many.
    let is_somebody = !source.is_multicast() && !source.is_unspecified();
    let opened = end.check_invariants() == 1;
    assert_eq!(opened, is_first && is_somebody);
    match reply.as_deref().map(repr) {
        None => assert!(!opened),
        Some(reply) => {
            let reply = reply.expect("a segment");
            let expected = if opened { TcpControl::Syn } else { TcpControl::Rst };
            assert_eq!(reply.control, expected);
            assert_eq!((reply.src_port, reply.dst_port), (ports.1, ports.0));
            let answered = segment.expect("only a segment is answered");
            assert_ne!(answered.control, TcpControl::Rst, "a reset is not answered");
        }
    }
}

/// A packet's segment as smoltcp reads it.
fn repr(packet: &[u8]) -> Option<TcpRepr<'_>> {
    let ip = Ipv6Packet::new_checked(packet).ok()?;
    let (source, destination) = (ip.src_addr().into(), ip.dst_addr().into());
    let end = ip.header_len() + usize::from(ip.payload_len());
    let tcp = TcpPacket::new_checked(packet.get(ip.header_len()..end)?).ok()?;
    let mut caps = ChecksumCapabilities::default();
    caps.tcp = Checksum::Tx;
    TcpRepr::parse(&tcp, &source, &destination, &caps).ok()
}

/// All messages at the front of the bytes, and whether an error ends them.
fn decode<M: serde::de::DeserializeOwned>(mut bytes: &[u8], step: usize) -> (Vec<M>, bool) {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    loop {
        match decoder.next() {
            Ok(Some(message)) => messages.push(message),
            Ok(None) if bytes.is_empty() => return (messages, false),
            Ok(None) => {
                let taken = decoder.push(&bytes[..step.min(bytes.len())]);
                bytes = &bytes[taken..];
            }
            Err(_) => return (messages, true),
        }
    }
}
