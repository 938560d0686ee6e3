//! A TCP segment over IPv6 as it lies in memory: reading its headers, and writing one. Its checksum is put in as the last
//! thing, on its way out.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::FlowKey;

/// Where things are in a packet: IPv6 without extension headers, then TCP.
pub(super) mod at {
    pub(in crate::stack) const PAYLOAD_LEN: usize = 4;
    pub(in crate::stack) const NEXT_HEADER: usize = 6;
    pub(in crate::stack) const SOURCE: usize = 8;
    pub(in crate::stack) const TCP: usize = 40;
    pub(in crate::stack) const SEQ: usize = 44;
    pub(in crate::stack) const ACK: usize = 48;
    pub(in crate::stack) const TCP_LEN: usize = 52;
    pub(in crate::stack) const FLAGS: usize = 53;
    pub(in crate::stack) const WINDOW: usize = 54;
    pub(in crate::stack) const CHECKSUM: usize = 56;
    pub(in crate::stack) const OPTIONS: usize = 60;
}

/// The headers of IPv6 and TCP without options.
pub(super) const HEADERS: usize = 60;
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;
/// The number of TCP among the protocols above IP.
pub(super) const TCP: u8 = 6;

/// What a packet's headers say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) payload: u32,
    pub(super) flags: u8,
}

impl Head {
    /// Reads a packet that is known to be TCP over IPv6, its length right.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        if packet.len() < HEADERS {
            return None;
        }
        let tcp_len = usize::from(u16_at(packet, at::PAYLOAD_LEN));
        let header_len = usize::from(packet[at::TCP_LEN] >> 4) * 4;
        Some(Self {
            seq: u32_at(packet, at::SEQ),
            ack: u32_at(packet, at::ACK),
            window: u16_at(packet, at::WINDOW),
            payload: u32::try_from(tcp_len.saturating_sub(header_len)).unwrap_or(0),
            flags: packet[at::FLAGS],
        })
    }

    pub(super) fn syn(&self) -> bool {
        self.flags & SYN != 0
    }

    pub(super) fn acknowledges(&self) -> bool {
        self.flags & ACK != 0
    }

    /// Takes the bytes out of a packet with an end.
    pub(super) fn keep_end(&mut self, packet: &mut [u8]) {
        self.seq = self.seq.wrapping_add(self.payload);
        self.payload = 0;
        write_u32(packet, at::SEQ, self.seq);
        let header_len = u16::from(packet[at::TCP_LEN] >> 4) * 4;
        write_u16(packet, at::PAYLOAD_LEN, header_len);
    }

    /// Behind its last byte, SYN and FIN counted as such.
    pub(super) fn end(&self) -> u32 {
        let control = u32::from(self.syn()) + u32::from(self.flags & FIN != 0);
        self.seq.wrapping_add(self.payload).wrapping_add(control)
    }
}

/// The connection of a packet that has come, from its headers.
pub(super) fn key_of(packet: &[u8]) -> FlowKey {
    let ip = Ipv6Packet::new_unchecked(packet);
    FlowKey {
        remote: ip.src_addr(),
        remote_port: u16_at(packet, at::TCP),
        local_port: u16_at(packet, at::TCP + 2),
    }
}

/// Behind the last byte that has arrived behind missing ones, as far as the packet says (RFC 2018).
pub(super) fn arrived_behind_missing(packet: &[u8]) -> Option<u32> {
    if packet.len() <= HEADERS || packet[at::TCP_LEN] >> 4 <= 5 {
        return None;
    }
    let tcp = TcpPacket::new_checked(&packet[at::TCP..]).ok()?;
    let ranges = tcp.selective_ack_ranges().ok()?;
    // Nowhere is more than a window between two of them.
    let edges = ranges.into_iter().flatten().map(|(_, edge)| edge);
    edges.reduce(|one, other| if is_after(other, one) { other } else { one })
}

/// Which way a packet goes that is written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To our own socket.
    In,
    /// To the other end.
    Out,
}

/// Writes a packet of a connection and returns it; without a checksum.
pub(super) fn write<'a>(room: &'a mut [u8], own: Ipv6Addr, key: &FlowKey, way: Way, repr: TcpRepr<'_>) -> &'a mut [u8] {
    let (remote, local) = ((key.remote, key.remote_port), (own, key.local_port));
    let (from, to) = match way {
        Way::In => (remote, local),
        Way::Out => (local, remote),
    };
    let repr = TcpRepr {
        src_port: from.1,
        dst_port: to.1,
        ..repr
    };
    let ip_repr = Ipv6Repr {
        src_addr: from.0,
        dst_addr: to.0,
        next_header: IpProtocol::Tcp,
        payload_len: repr.buffer_len(),
        hop_limit: 64,
    };
    let len = ip_repr.buffer_len() + repr.buffer_len();
    let packet = &mut room[..len];
    let mut ip = Ipv6Packet::new_unchecked(&mut *packet);
    ip_repr.emit(&mut ip);
    let mut tcp = TcpPacket::new_unchecked(ip.payload_mut());
    let (from, to) = (IpAddress::Ipv6(from.0), IpAddress::Ipv6(to.0));
    repr.emit(&mut tcp, &from, &to, &ChecksumCapabilities::ignored());
    packet
}

/// Makes right what says how long a packet is to which bytes were added; it had `len` before.
pub(super) fn lengthened(packet: &mut [u8], len: usize) {
    let payload_len = u16_at(packet, at::PAYLOAD_LEN);
    let more = u16::try_from(packet.len() - len).unwrap_or(0);
    write_u16(packet, at::PAYLOAD_LEN, payload_len + more);
}

/// Puts the checksum into a packet in which nothing changes any more (RFC 9293, 3.1, and RFC 8200, 8.1).
pub(super) fn put_checksum(packet: &mut [u8]) {
    write_u16(packet, at::CHECKSUM, 0);
    let tcp_len = packet.len() - at::TCP;
    // The addresses and all behind them, then the length and the protocol.
    let sum = sum(&packet[at::SOURCE..]) + count(tcp_len) + u32::from(TCP);
    write_u16(packet, at::CHECKSUM, !folded(sum.into()));
}

/// The one's complement sum of big-endian words (RFC 1071): added up in larger ones of the machine's own order, which it
/// does several at a time; the order makes no difference but to that of the sum's own bytes.
fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let word = |word: &[u8; 4]| u64::from(u32::from_ne_bytes(*word));
    let sum = words.iter().map(word).sum::<u64>() + word(&last);
    u32::from(u16::from_be(folded(sum)))
}

fn folded(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("what is larger is folded")
}

/// As much room as [`write()`] needs for any packet made here.
pub(super) const MADE_UP: usize = HEADERS + 40 + 1;

pub(super) const BLANK: TcpRepr<'static> = TcpRepr {
    src_port: 0,
    dst_port: 0,
    control: TcpControl::None,
    seq_number: TcpSeqNumber(0),
    ack_number: None,
    window_len: 0,
    window_scale: None,
    max_seg_size: None,
    sack_permitted: false,
    sack_ranges: [None, None, None],
    timestamp: None,
    payload: &[],
};

/// Whether `a` comes behind `b` (RFC 9293, 3.4: numbers wrap).
pub(super) fn is_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).wrapping_sub(1) < 1 << 31
}

/// A size in terms of sequence numbers.
pub(super) fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a buffer is smaller than 4 GiB")
}

pub(super) fn number(seq: u32) -> TcpSeqNumber {
    TcpSeqNumber(seq.cast_signed())
}

/// Where the value of the window scale option is.
pub(super) fn scale_option(packet: &[u8]) -> Option<usize> {
    let end = 40 + usize::from(packet[at::TCP_LEN] >> 4) * 4;
    let mut next = at::OPTIONS;
    while next + 2 < end.min(packet.len()) {
        match packet[next] {
            0 => return None,
            1 => next += 1,
            3 => return Some(next + 2),
            _ => next += usize::from(packet[next + 1]).max(2),
        }
    }
    None
}

fn u16_at(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn u32_at(packet: &[u8], at: usize) -> u32 {
    u32::from(u16_at(packet, at)) << 16 | u32::from(u16_at(packet, at + 2))
}

/// Makes a packet one of so many bytes later.
pub(super) fn add_to_seq(packet: &mut [u8], bytes: usize) {
    let seq = u32_at(packet, at::SEQ).wrapping_add(count(bytes));
    write_u32(packet, at::SEQ, seq);
}

pub(super) fn write_u16(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn write_u32(packet: &mut [u8], at: usize, value: u32) {
    packet[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::seed::Random;

    pub(in crate::stack) const KEY: FlowKey = FlowKey {
        remote: Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1),
        remote_port: 7,
        local_port: 9,
    };
    pub(in crate::stack) const OWN: Ipv6Addr = Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 2);

    pub(in crate::stack) fn is_sound(packet: &[u8]) -> bool {
        let ip = Ipv6Packet::new_checked(packet).unwrap();
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        tcp.verify_checksum(&IpAddress::Ipv6(ip.src_addr()), &IpAddress::Ipv6(ip.dst_addr()))
    }

    #[test]
    fn the_checksum_is_the_one_that_others_make() {
        let mut random = Random::new([5; 32]);
        let mut room = [0; 1300];
        for round in 0..20_000_u32 {
            // Bytes of nothing but ones or zeros are where one's complement sums go wrong.
            let byte = [random.u32() as u8, 0, 0xff][round as usize % 3];
            let repr = TcpRepr {
                seq_number: number([random.u32(), 0, u32::MAX][round as usize / 3 % 3]),
                ack_number: Some(number(random.u32())),
                window_len: random.u32() as u16,
                payload: &[byte; 1200][..random.below(1201) as usize],
                ..BLANK
            };
            let packet = write(&mut room, OWN, &KEY, Way::Out, repr);
            put_checksum(packet);
            assert!(is_sound(packet), "{packet:x?}");
            let at = at::SEQ + random.below(8) as usize;
            packet[at] ^= 0x10;
            assert!(!is_sound(packet));
        }
    }

    #[test]
    fn numbers_wrap() {
        for at in [0, 1, u32::MAX, u32::MAX - 5, 1 << 31] {
            assert!(is_after(at.wrapping_add(1), at) && is_after(at.wrapping_add(1 << 30), at));
            assert!(!is_after(at, at) && !is_after(at, at.wrapping_add(1)));
        }
    }

    #[test]
    fn what_arrived_behind_missing_bytes_is_read_and_malformed_options_say_nothing() {
        let mut room = [0; 200];
        let last = u32::MAX - 4;
        for (ranges, edge) in [
            ([None, None, None], None),
            ([Some((10, 20)), None, None], Some(20)),
            ([Some((10, 20)), Some((30, 40)), Some((22, 25))], Some(40)),
            ([Some((last, 5)), Some((last - 9, last - 5)), None], Some(5)),
        ] {
            let repr = TcpRepr {
                ack_number: Some(number(1)),
                sack_ranges: ranges,
                ..BLANK
            };
            assert_eq!(
                arrived_behind_missing(write(&mut room, OWN, &KEY, Way::Out, repr)),
                edge
            );
        }
        let mut random = Random::new([7; 32]);
        for len in 0..10_000 {
            for byte in &mut room[at::OPTIONS..] {
                *byte = random.below(8) as u8;
            }
            room[at::TCP_LEN] = random.u32() as u8;
            arrived_behind_missing(&room[..len % room.len()]);
        }
    }

    #[test]
    fn the_scale_is_found_among_options_and_malformed_ones_end() {
        let mut room = [0; 200];
        let syn = TcpRepr {
            control: TcpControl::Syn,
            max_seg_size: Some(1220),
            window_scale: Some(3),
            sack_permitted: true,
            ..BLANK
        };
        let packet = write(&mut room, OWN, &KEY, Way::Out, syn);
        let option = scale_option(packet).unwrap();
        assert_eq!(packet[option], 3);
        let mut random = Random::new([6; 32]);
        for _ in 0..10_000 {
            for byte in &mut packet[at::OPTIONS..] {
                *byte = random.below(8) as u8;
            }
            packet[at::TCP_LEN] = random.u32() as u8;
            if let Some(option) = scale_option(packet) {
                assert!(option < packet.len());
            }
        }
    }
}
