//! The device smoltcp talks to: one packet in, one packet out.
//!
//! smoltcp speaks IPv4 with it, and cuts nothing of what it sends: that is done once it has left ([`super::slot`]), and packets
//! that come in may be several put together ([`super::coalesce`]). Its segmentation offload would drop all that is to be cut
//! where IPv6 is spoken (0.14.0). So the IPv6 header of a packet gets an IPv4 one in its place on the way in, and the other way
//! round; addresses say nothing here, as each connection has a set of sockets of its own.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpCidr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr};

use super::segment::at;
use super::slot::{PacketSlot, most_uncut};

/// By what smoltcp knows our end of a connection, and the other one.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// How long an IPv4 header is, and how much longer an IPv6 one.
const IPV4: usize = 20;
const LONGER: usize = at::TCP - IPV4;

/// Our end of a connection, as smoltcp wants it.
pub(super) fn own(port: u16) -> (IpAddress, u16) {
    (IpAddress::Ipv4(OWN), port)
}

/// The other end.
pub(super) fn other(port: u16) -> (IpAddress, u16) {
    (IpAddress::Ipv4(OTHER), port)
}

/// The network in which both are.
pub(super) fn network() -> IpCidr {
    IpCidr::new(IpAddress::Ipv4(OWN), 8)
}

/// The true addresses of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) own: Ipv6Addr,
    pub(super) other: Ipv6Addr,
}

/// One call's worth of device: the packet to take in, and the slot to write one into.
pub(super) struct Port<'a> {
    pub(super) mtu: usize,
    pub(super) ends: Ends,
    pub(super) incoming: Option<&'a mut [u8]>,
    pub(super) outgoing: &'a mut PacketSlot,
}

/// What smoltcp is told about the tunnel. Received packets passed the AEAD, so their checksums are not looked at; sent ones
/// may be for a kernel, which does look, and get theirs once nothing in them changes any more.
pub(super) fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu - LONGER;
    capabilities.checksum = ChecksumCapabilities::ignored();
    capabilities.segmentation.tcpv4 = NonZeroUsize::new(most_uncut(mtu) - LONGER);
    capabilities
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing::new(self.outgoing, self.ends)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        self.outgoing
            .is_empty()
            .then_some(Outgoing::new(self.outgoing, self.ends))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

pub(super) struct Incoming<'a>(&'a mut [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let Self(packet) = self;
        let mut aside = [0; IPV4];
        aside.copy_from_slice(&packet[LONGER..at::TCP]);
        let repr = Ipv4Repr {
            src_addr: OTHER,
            dst_addr: OWN,
            next_header: IpProtocol::Tcp,
            // Of which there may be less than of the packet: it was padded.
            payload_len: Ipv6Packet::new_unchecked(&*packet).payload_len().into(),
            hop_limit: 64,
        };
        let mut header = Ipv4Packet::new_unchecked(&mut packet[LONGER..]);
        repr.emit(&mut header, &ChecksumCapabilities::ignored());
        let result = f(&packet[LONGER..]);
        packet[LONGER..at::TCP].copy_from_slice(&aside);
        result
    }
}

pub(super) struct Outgoing<'a> {
    slot: &'a mut PacketSlot,
    ends: Ends,
    part: usize,
}

impl<'a> Outgoing<'a> {
    fn new(slot: &'a mut PacketSlot, ends: Ends) -> Self {
        Self { slot, ends, part: 0 }
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut result = None;
        self.slot.put(|room| {
            // Exactly `len`, as was asked for.
            result = Some(f(&mut room[LONGER..LONGER + len]));
            let repr = Ipv6Repr {
                src_addr: self.ends.own,
                dst_addr: self.ends.other,
                next_header: IpProtocol::Tcp,
                payload_len: len - IPV4,
                hop_limit: 64,
            };
            repr.emit(&mut Ipv6Packet::new_unchecked(room));
            LONGER + len
        });
        self.slot.cut_after(self.part);
        result.expect("it was called")
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.part = meta.segmentation_offload_size.map_or(0, |size| size.get().into());
    }
}
