//! The device smoltcp talks to: one packet in, one packet out.
//!
//! Packets that come in may be several put together ([`super::coalesce`]). Those that go out are cut by smoltcp, one by one: its
//! segmentation offload drops whatever is longer than the MTU where IPv6 is spoken (0.14.0).

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Room for one outgoing packet, with zeros behind it so that it can be padded in place.
#[derive(Debug)]
pub(super) struct PacketSlot {
    buffer: Box<[u8]>,
    len: usize,
}

impl PacketSlot {
    pub(super) fn new(mtu: usize) -> Self {
        Self {
            buffer: vec![0; mtu.next_multiple_of(16)].into_boxed_slice(),
            len: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn packet(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    pub(super) fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }

    /// Puts a packet in that `write` makes in the room and whose length it says.
    pub(super) fn put(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        self.len = write(&mut self.buffer);
        let padded = self.len.next_multiple_of(16).min(self.buffer.len());
        self.buffer[self.len..padded].fill(0);
    }

    /// Puts more behind the packet that is in it.
    pub(super) fn put_more(&mut self, bytes: &[u8]) {
        let start = self.len;
        self.put(|room| {
            room[start..start + bytes.len()].copy_from_slice(bytes);
            start + bytes.len()
        });
    }

    /// The packet, zeros behind it up to `padded` bytes in all.
    pub(super) fn padded(&self, padded: usize) -> &[u8] {
        &self.buffer[..padded.min(self.buffer.len())]
    }
}

/// One call's worth of device: the packet to take in, and the slot to write one into.
pub(super) struct Port<'a> {
    pub(super) mtu: usize,
    pub(super) incoming: Option<&'a [u8]>,
    pub(super) outgoing: &'a mut PacketSlot,
}

/// What smoltcp is told about the tunnel. Received packets passed the AEAD, so their checksums are not looked at; sent ones
/// may be for a kernel, which does look, and get theirs once nothing in them changes any more.
pub(super) fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    capabilities.checksum = ChecksumCapabilities::ignored();
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
        Some((Incoming(packet), Outgoing(self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        self.outgoing.is_empty().then_some(Outgoing(self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

pub(super) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Outgoing<'a>(&'a mut PacketSlot);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // Exactly `len`, as was asked for.
        let result = f(&mut self.0.buffer[..len]);
        let padded = len.next_multiple_of(16).min(self.0.buffer.len());
        self.0.buffer[len..padded].fill(0);
        self.0.len = len;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_written_into_exactly_its_length_and_padded_with_zeros() {
        let mut slot = PacketSlot::new(1280);
        for len in [1280, 60, 41] {
            let mut port = Port {
                mtu: 1280,
                incoming: None,
                outgoing: &mut slot,
            };
            let token = port.transmit(Instant::ZERO).expect("an empty slot takes a packet");
            token.consume(len, |room| {
                assert_eq!(room.len(), len);
                room.fill(7);
            });
            assert!(port.transmit(Instant::ZERO).is_none(), "one packet at a time");
            let padded = slot.padded(len.next_multiple_of(16));
            assert!(padded[..len].iter().all(|&byte| byte == 7));
            assert!(
                padded[len..].iter().all(|&byte| byte == 0),
                "what the packet before left is gone"
            );
            slot.clear();
        }
    }
}
