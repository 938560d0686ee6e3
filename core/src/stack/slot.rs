//! Room for one outgoing packet, or for several in one piece, of which the first is ready to go.
//!
//! smoltcp makes one packet of all that a socket may send. It is cut where it lies (segmentation offload): once the first part
//! has gone, the headers are put in front of the next one, on bytes that have gone too.

use super::segment::{FIN, HEADERS, PSH, add_to_seq, at, count, put_checksum, write_u16};

/// See the module docs.
#[derive(Debug)]
pub(super) struct PacketSlot {
    buffer: Box<[u8]>,
    /// Where the packet is that is next.
    start: usize,
    end: usize,
    /// Where the last one ends.
    last: usize,
    /// How many bytes of payload are in each but the last.
    part: usize,
    /// What the last one says besides that there are bytes.
    closing: u8,
    /// What lies under the zeros behind a packet.
    behind: [u8; PADDED],
}

/// To a multiple of this a packet is padded in place.
const PADDED: usize = 16;
/// How long packets are made that are to be cut.
const MOST: usize = 24 * 1024;
/// What a slot takes of the memory at most.
pub(super) const SLOT: usize = MOST + PADDED;

/// How long a packet may be made, so that it can be cut into packets of the MTU.
pub(super) const fn most_uncut(mtu: usize) -> usize {
    let payload = mtu - HEADERS;
    HEADERS + (MOST - HEADERS) / payload * payload
}

impl PacketSlot {
    pub(super) fn new(mtu: usize) -> Self {
        Self {
            buffer: vec![0; most_uncut(mtu) + PADDED].into_boxed_slice(),
            start: 0,
            end: 0,
            last: 0,
            part: 0,
            closing: 0,
            behind: [0; PADDED],
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// How long the next packet is.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn clear(&mut self) {
        (self.start, self.end, self.last, self.part) = (0, 0, 0, 0);
    }

    /// The next packet; before it is [ready](PacketSlot::make_ready), all that is to be cut.
    pub(super) fn packet(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.end]
    }

    /// Puts a packet in that `write` makes in the room and whose length it says.
    pub(super) fn put(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        self.clear();
        self.end = write(&mut self.buffer);
        self.last = self.end;
    }

    /// Puts more behind the packet that is in it.
    pub(super) fn put_more(&mut self, bytes: &[u8]) {
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
        self.last = self.end;
    }

    /// What is in it is to be cut after so many bytes of payload.
    pub(super) fn cut_after(&mut self, part: usize) {
        self.part = part;
    }

    /// How many packets are in it.
    pub(super) fn packets(&self) -> u32 {
        let payload = self.last.saturating_sub(self.start + HEADERS);
        count(if self.part > 0 { payload.div_ceil(self.part) } else { 1 })
    }

    /// Nothing changes any more in what was put in: cuts the first packet from it, if there are several, and gives it its
    /// checksum.
    pub(super) fn make_ready(&mut self) {
        if self.part > 0 {
            self.closing = self.buffer[at::FLAGS] & (FIN | PSH);
            self.cut();
        }
        self.finish();
    }

    /// The packet has gone: makes the next one, if there are more.
    pub(super) fn advance(&mut self) {
        if self.end == self.last {
            return self.clear();
        }
        let behind = self.end..self.end + PADDED;
        self.buffer[behind].copy_from_slice(&self.behind);
        let start = self.end - HEADERS;
        self.buffer.copy_within(self.start..self.start + HEADERS, start);
        self.start = start;
        add_to_seq(&mut self.buffer[start..], self.part);
        self.cut();
        self.finish();
    }

    /// The next packet, zeros behind it up to `padded` bytes in all.
    pub(super) fn padded(&self, padded: usize) -> &[u8] {
        &self.buffer[self.start..][..padded.min(self.len() + PADDED)]
    }

    /// Ends the packet where the next one begins.
    fn cut(&mut self) {
        self.end = self.last.min(self.start + HEADERS + self.part);
        let is_last = self.end == self.last;
        let packet = &mut self.buffer[self.start..self.end];
        let len = u16::try_from(packet.len() - at::TCP).expect("MOST is less");
        write_u16(packet, at::PAYLOAD_LEN, len);
        packet[at::FLAGS] = packet[at::FLAGS] & !(FIN | PSH) | if is_last { self.closing } else { 0 };
    }

    fn finish(&mut self) {
        put_checksum(&mut self.buffer[self.start..self.end]);
        let behind = &mut self.buffer[self.end..self.end + PADDED];
        self.behind.copy_from_slice(behind);
        behind.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::{TcpControl, TcpRepr};

    use super::super::segment::tests::{KEY, OWN, is_sound};
    use super::super::segment::{BLANK, Head, Way, number, write};
    use super::*;
    use crate::seed::Random;

    const MTU: usize = 1280;

    /// The packets that are cut from one that says this.
    fn cut(slot: &mut PacketSlot, part: usize, repr: TcpRepr<'_>) -> Vec<Vec<u8>> {
        slot.put(|room| write(room, OWN, &KEY, Way::Out, repr).len());
        slot.cut_after(part);
        let count = slot.packets();
        slot.make_ready();
        let mut packets = Vec::new();
        while !slot.is_empty() {
            let padded = slot.len().next_multiple_of(PADDED);
            assert!(slot.padded(padded)[slot.len()..].iter().all(|&byte| byte == 0));
            assert_eq!(&slot.padded(padded)[..slot.len()], slot.packet());
            packets.push(slot.packet().to_vec());
            slot.advance();
        }
        assert_eq!(packets.len(), count as usize);
        packets
    }

    #[test]
    fn what_is_cut_has_all_bytes_once_and_its_end_last() {
        let mut random = Random::new([8; 32]);
        let mut slot = PacketSlot::new(MTU);
        for round in 0..2_000 {
            let most = most_uncut(MTU) - HEADERS;
            let len = random.below(most as u32 + 1) as usize;
            let bytes: Vec<u8> = (0..len).map(|_| random.u32() as u8).collect();
            // As small as the other end may ask for, and as large as the path allows.
            let part = [1220, 1220, 48, 536, 1001][round % 5];
            let first = [random.u32(), u32::MAX - 3000][round % 2];
            let control = [TcpControl::None, TcpControl::Psh, TcpControl::Fin][round % 3];
            let repr = TcpRepr {
                control,
                seq_number: number(first),
                ack_number: Some(number(9)),
                window_len: 5,
                payload: &bytes,
                ..BLANK
            };
            let packets = cut(&mut slot, if len > part { part } else { 0 }, repr);
            let mut expected = first;
            for (place, packet) in packets.iter().enumerate() {
                assert!(is_sound(packet));
                let head = Head::of(packet).unwrap();
                assert_eq!((head.seq, head.ack, head.window), (expected, 9, 5));
                assert_eq!(head.payload as usize, packet.len() - HEADERS);
                expected = expected.wrapping_add(head.payload);
                let is_last = place + 1 == packets.len();
                assert!(is_last || head.payload as usize == part);
                assert_eq!(head.flags & FIN != 0, is_last && control == TcpControl::Fin);
                assert_eq!(head.flags & PSH != 0, is_last && control == TcpControl::Psh);
            }
            let payload: Vec<u8> = packets.iter().flat_map(|packet| packet[HEADERS..].to_vec()).collect();
            assert!(payload == bytes);
        }
    }

    #[test]
    fn what_is_thrown_away_leaves_nothing_behind() {
        let mut slot = PacketSlot::new(MTU);
        let repr = TcpRepr {
            payload: &[7; 5000],
            ..BLANK
        };
        slot.put(|room| write(room, OWN, &KEY, Way::Out, repr).len());
        slot.cut_after(1220);
        slot.make_ready();
        slot.clear();
        assert!(slot.is_empty());
        assert_eq!(cut(&mut slot, 0, BLANK).len(), 1);
    }
}
