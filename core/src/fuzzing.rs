//! Ways into the crate's insides for fuzzing, each with the property that must hold for any bytes.
//!
//! Only with the feature `fuzzing`; no part of the crate's contract.

use smoltcp::wire::{IpProtocol, Ipv6Packet, TcpPacket, UdpPacket};

use crate::control::{Decoder, ToAgent, ToRelay, encode};
use crate::stack::{self, Payload};

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

/// An inner packet: our reading of it is smoltcp's.
pub fn inner_packet(bytes: &[u8]) {
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
        Payload::Tcp { has_data, .. } => assert_eq!(has_data, len > 0),
        Payload::Udp(contents) => {
            assert_eq!(contents.len(), len);
            assert!(bytes.get(contents).is_some(), "its contents lie in the packet");
        }
    }
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
