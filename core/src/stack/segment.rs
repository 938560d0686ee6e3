//! A TCP segment over IPv6 as it lies in memory: reading its headers, writing one, and changing what stands in it with its
//! checksum kept right.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::FlowKey;

/// Where things are in a packet: IPv6 without extension headers, then TCP.
pub(super) mod at {
    pub(in crate::stack) const PAYLOAD_LEN: usize = 4;
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
pub(super) const ACK: u8 = 16;

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

/// Which way a packet goes that is written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To our own socket, which does not look at checksums.
    In,
    /// To the other end.
    Out,
}

/// Writes a packet of a connection and returns it.
pub(super) fn write<'a>(room: &'a mut [u8], own: Ipv6Addr, key: &FlowKey, way: Way, repr: TcpRepr<'_>) -> &'a mut [u8] {
    let (remote, local) = ((key.remote, key.remote_port), (own, key.local_port));
    let (from, to, checksums) = match way {
        Way::In => (remote, local, ChecksumCapabilities::ignored()),
        Way::Out => (local, remote, ChecksumCapabilities::default()),
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
    repr.emit(&mut tcp, &IpAddress::Ipv6(from.0), &IpAddress::Ipv6(to.0), &checksums);
    packet
}

/// Makes right what says how long a packet is to which bytes were added, and its checksum; it had `len` before.
pub(super) fn lengthened(packet: &mut [u8], len: usize) {
    let payload_len = u16_at(packet, at::PAYLOAD_LEN);
    let more = u16::try_from(packet.len() - len).unwrap_or(0);
    write_u16(packet, at::PAYLOAD_LEN, payload_len + more);
    let mut ip = Ipv6Packet::new_unchecked(packet);
    let ends = (IpAddress::Ipv6(ip.src_addr()), IpAddress::Ipv6(ip.dst_addr()));
    TcpPacket::new_unchecked(ip.payload_mut()).fill_checksum(&ends.0, &ends.1);
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

pub(super) fn write_u16(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn write_u32(packet: &mut [u8], at: usize, value: u32) {
    packet[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Changes an aligned word of the TCP header, and the checksum with it (RFC 1624, equation 3).
pub(super) fn replace_u16(packet: &mut [u8], at: usize, new: u16) {
    let old = u16_at(packet, at);
    packet[at..at + 2].copy_from_slice(&new.to_be_bytes());
    let sum = u32::from(!u16_at(packet, at::CHECKSUM)) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(sum).expect("carries are folded in");
    packet[at::CHECKSUM..at::CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
}

pub(super) fn replace_u32(packet: &mut [u8], at: usize, new: u32) {
    let [a, b, c, d] = new.to_be_bytes();
    replace_u16(packet, at, u16::from_be_bytes([a, b]));
    replace_u16(packet, at + 2, u16::from_be_bytes([c, d]));
}

pub(super) fn replace_byte(packet: &mut [u8], at: usize, new: u8) {
    let word = at & !1;
    let mut bytes = [packet[word], packet[word + 1]];
    bytes[at - word] = new;
    replace_u16(packet, word, u16::from_be_bytes(bytes));
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

    fn is_sound(packet: &[u8]) -> bool {
        let ip = Ipv6Packet::new_checked(packet).unwrap();
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        tcp.verify_checksum(&IpAddress::Ipv6(ip.src_addr()), &IpAddress::Ipv6(ip.dst_addr()))
    }

    #[test]
    fn whatever_is_replaced_the_checksum_stays_right() {
        let mut random = Random::new([5; 32]);
        let mut room = [0; 200];
        for round in 0..20_000 {
            let repr = TcpRepr {
                seq_number: number(random.u32()),
                ack_number: Some(number(random.u32())),
                window_len: random.u32() as u16,
                payload: &[7; 33][..random.below(34) as usize],
                ..BLANK
            };
            let packet = write(&mut room, OWN, &KEY, Way::Out, repr);
            assert!(is_sound(packet));
            // Words of nothing but ones or zeros are where one's complement sums go wrong.
            let new = [random.u32(), 0, u32::MAX, 0xffff, 0xffff_0000][round % 5];
            replace_u32(packet, at::SEQ, new);
            replace_u16(packet, at::WINDOW, new as u16);
            assert!(is_sound(packet), "{new:x}");
            assert_eq!((u32_at(packet, at::SEQ), u16_at(packet, at::WINDOW)), (new, new as u16));
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
        replace_byte(packet, option, 7);
        assert!(is_sound(packet));
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
