//! Packets that carry one another on are put together before the stack sees them, as a network card would do it (receive
//! offload): what has to be done for a packet is done once for several then.
//!
//! They are opened one behind the other, each with its headers over the last bytes of the one before it, which are put aside
//! meanwhile. So nothing is copied for it.

use super::segment::{ACK, HEADERS, Head, PSH, TCP, at, count, write_u16};
use crate::wg::{PLAIN_BUFFER, PeerId};

/// How long packets become that are put together. The cost of more is in the processor's fastest cache.
pub(super) const MOST: usize = 24 * 1024;
/// What a [`Coalescer`] takes of the memory.
pub(super) const COALESCER: usize = MOST + PLAIN_BUFFER;

/// The packets of a batch, one after the other. See the module docs.
#[derive(Debug)]
pub(crate) struct Coalescer {
    buffer: Vec<u8>,
    /// The packet at the front of the buffer.
    held: Option<Held>,
    /// Where the next one is opened.
    start: usize,
    /// What lies under the headers of the next one; once that is known not to belong to the one that is held, its headers.
    aside: [u8; HEADERS],
}

#[derive(Clone, Copy, Debug)]
struct Held {
    peer: PeerId,
    len: usize,
    /// It can be carried on by a packet that begins with this number.
    next: Option<u32>,
    /// How long it may become, once that was asked.
    most: Option<usize>,
}

impl Coalescer {
    /// Stands for one that is in use.
    pub(crate) const NONE: Self = Self {
        buffer: Vec::new(),
        held: None,
        start: 0,
        aside: [0; HEADERS],
    };

    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; COALESCER],
            ..Self::NONE
        }
    }

    /// Where the next packet is to be opened: [`PLAIN_BUFFER`] bytes. What comes of it is to be told by
    /// [`Coalescer::nothing_came`] or [`Coalescer::append`].
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.start = self.held.map_or(0, |held| held.len - HEADERS);
        let room = &mut self.buffer[self.start..][..PLAIN_BUFFER];
        self.aside.copy_from_slice(&room[..HEADERS]);
        room
    }

    /// No packet was opened.
    pub(crate) fn nothing_came(&mut self) {
        self.swap_headers();
    }

    /// A packet of `len` bytes was opened. If it carries on the one that is held, it is part of that from now on. Otherwise it
    /// waits, the held one is to be [taken](Coalescer::take), and then this one is to be [held](Coalescer::hold).
    ///
    /// How long the one that is held may become is asked by its headers before it grows for the first time.
    pub(crate) fn append(&mut self, peer: PeerId, len: usize, most: impl FnOnce(&[u8]) -> usize) -> bool {
        let (first, next) = (&self.buffer[..HEADERS], &self.buffer[self.start..][..len]);
        let carries_on = self.held.and_then(|held| {
            let number = held
                .next
                .filter(|&number| held.peer == peer && follows(next, first, number))?;
            let most = held.most.unwrap_or_else(|| most(first).min(MOST));
            (self.start + len <= most).then(|| Held {
                len: self.start + len,
                next: Some(number.wrapping_add(count(len - HEADERS))),
                most: Some(most),
                ..held
            })
        });
        self.swap_headers();
        self.held = carries_on.or(self.held);
        carries_on.is_some()
    }

    /// Holds the packet that waits. Returns whether another one could carry it on; if not, it is best taken at once.
    pub(crate) fn hold(&mut self, peer: PeerId, len: usize) -> bool {
        self.swap_headers();
        self.buffer.copy_within(self.start..self.start + len, 0);
        let packet = &self.buffer[..len];
        let next = is_plain(packet)
            .then(|| Head::of(packet))
            .flatten()
            .map(|head| head.end());
        self.held = Some(Held {
            peer,
            len,
            next,
            most: None,
        });
        next.is_some()
    }

    /// The packet that is held, and whose it is. It is held no longer.
    pub(crate) fn take(&mut self) -> Option<(PeerId, &mut [u8])> {
        let held = self.held.take()?;
        let packet = &mut self.buffer[..held.len];
        if held.most.is_some() {
            let len = u16::try_from(held.len - at::TCP).expect("MOST is less");
            write_u16(packet, at::PAYLOAD_LEN, len);
        }
        Some((held.peer, packet))
    }

    fn swap_headers(&mut self) {
        self.buffer[self.start..][..HEADERS].swap_with_slice(&mut self.aside);
    }
}

/// Whether a packet has bytes of a connection and nothing else to say but what it acknowledges.
fn is_plain(packet: &[u8]) -> bool {
    let is_tcp = packet.len() > HEADERS && packet[0] >> 4 == 6 && packet[at::NEXT_HEADER] == TCP;
    is_tcp && packet[at::TCP_LEN] == NO_OPTIONS && packet[at::FLAGS] & !PSH == ACK
}

/// Whether a packet begins with this number and says otherwise what one like [`is_plain`] says, that begins with `first`.
fn follows(packet: &[u8], first: &[u8], number: u32) -> bool {
    let same = |range: std::ops::Range<usize>| packet[range.clone()] == first[range];
    is_plain(packet)
        && same(0..at::PAYLOAD_LEN)
        && same(at::SOURCE..at::SEQ)
        && same(at::ACK..at::TCP_LEN)
        && same(at::WINDOW..at::CHECKSUM)
        && Head::of(packet).is_some_and(|head| head.seq == number)
}

/// The length of TCP's header as it stands in it.
const NO_OPTIONS: u8 = 5 << 4;

#[cfg(test)]
mod tests {
    use smoltcp::wire::{TcpControl, TcpRepr};

    use super::super::FlowKey;
    use super::super::segment::tests::{KEY, OWN};
    use super::super::segment::{BLANK, Way, number, write};
    use super::*;
    use crate::seed::Random;

    /// What a stack is given of packets that arrive together, given how long it lets them become.
    fn given(packets: &[(u32, Vec<u8>)], most: impl Fn(&[u8]) -> usize) -> Vec<(u32, Vec<u8>)> {
        let mut coalescer = Coalescer::new();
        let mut given = Vec::new();
        for (peer, packet) in packets {
            let room = coalescer.room();
            if packet.is_empty() {
                // As a message that is not authentic does.
                room[..200].fill(9);
                coalescer.nothing_came();
                continue;
            }
            room[..packet.len()].copy_from_slice(packet);
            // The tag of the message.
            room[packet.len()..packet.len() + 16].fill(8);
            let peer = PeerId::for_tests(*peer);
            if !coalescer.append(peer, packet.len(), &most) {
                given.extend(coalescer.take().map(|(peer, packet)| (peer, packet.to_vec())));
                if !coalescer.hold(peer, packet.len()) {
                    given.extend(coalescer.take().map(|(peer, packet)| (peer, packet.to_vec())));
                }
            }
        }
        given.extend(coalescer.take().map(|(peer, packet)| (peer, packet.to_vec())));
        let known = |id| {
            (0..9)
                .find(|&peer| PeerId::for_tests(peer) == id)
                .expect("a peer of ours")
        };
        given.into_iter().map(|(id, packet)| (known(id), packet)).collect()
    }

    fn data(key: &FlowKey, seq: u32, payload: &[u8]) -> Vec<u8> {
        made(key, TcpRepr { payload, ..plain(seq) })
    }

    fn plain(seq: u32) -> TcpRepr<'static> {
        TcpRepr {
            seq_number: number(seq),
            ack_number: Some(number(77)),
            window_len: 500,
            ..BLANK
        }
    }

    fn made(key: &FlowKey, repr: TcpRepr<'_>) -> Vec<u8> {
        write(&mut vec![0; 5000], OWN, key, Way::In, repr).to_vec()
    }

    #[test]
    fn packets_that_carry_one_another_on_are_one() {
        let first = u32::MAX - 1000;
        let bytes: Vec<u8> = (0..3600).map(|at| at as u8).collect();
        let parts = [(0, 1220), (1220, 2440), (2440, 2500), (2500, 3600)];
        let mut packets: Vec<_> = parts
            .iter()
            .map(|&(from, to)| (1, data(&KEY, first.wrapping_add(from as u32), &bytes[from..to])))
            .collect();
        packets[3].1[at::FLAGS] |= PSH;
        packets.insert(2, (1, Vec::new()));
        let whole = data(&KEY, first, &bytes);
        let given = given(&packets, |_| MOST);
        assert_eq!(given.len(), 1);
        let ignored = at::CHECKSUM..at::CHECKSUM + 2;
        let blank = |packet: &[u8]| {
            let mut packet = packet.to_vec();
            packet[ignored.clone()].fill(0);
            packet
        };
        assert_eq!(blank(&given[0].1), blank(&whole));
    }

    #[test]
    fn what_differs_in_anything_but_its_place_stays_by_itself() {
        let bytes = [5; 100];
        let before = (1, data(&KEY, 1000, &bytes));
        let after = |repr| vec![before.clone(), (1, made(&KEY, repr))];
        let good = TcpRepr {
            payload: &bytes,
            ..plain(1100)
        };
        let mut other_port = KEY;
        other_port.local_port += 1;
        let pairs = [
            (after(good), 1),
            (after(TcpRepr { payload: &[], ..good }), 2),
            (
                after(TcpRepr {
                    seq_number: number(1101),
                    ..good
                }),
                2,
            ),
            (
                after(TcpRepr {
                    seq_number: number(1000),
                    ..good
                }),
                2,
            ),
            (
                after(TcpRepr {
                    ack_number: Some(number(78)),
                    ..good
                }),
                2,
            ),
            (
                after(TcpRepr {
                    window_len: 501,
                    ..good
                }),
                2,
            ),
            (
                after(TcpRepr {
                    control: TcpControl::Fin,
                    ..good
                }),
                2,
            ),
            (
                after(TcpRepr {
                    control: TcpControl::Rst,
                    ..good
                }),
                2,
            ),
            (
                after(TcpRepr {
                    sack_ranges: [Some((1, 2)), None, None],
                    ..good
                }),
                2,
            ),
            (vec![before.clone(), (2, made(&KEY, good))], 2),
            (vec![before.clone(), (1, made(&other_port, good))], 2),
        ];
        for (packets, expected) in pairs {
            let given = given(&packets, |_| MOST);
            assert_eq!(given.len(), expected, "{packets:?}");
            if expected > 1 {
                assert_eq!(given, packets);
            }
        }
        let packets = after(good);
        assert_eq!(given(&packets, |_| 0), packets, "none that is out of order");
    }

    #[test]
    fn whatever_comes_the_bytes_stay_in_order_and_nothing_is_too_long() {
        let mut random = Random::new([4; 32]);
        let mut joined = 0;
        for _ in 0..500 {
            let mut next = [0, 1 << 31, u32::MAX - 5000];
            let mut packets = Vec::new();
            for _ in 0..random.below(60) {
                let of = random.below(20).min(2) as usize;
                let key = FlowKey {
                    remote_port: of as u16,
                    ..KEY
                };
                let payload: Vec<u8> = (0..random.below(1221))
                    .map(|at| next[of].wrapping_add(at) as u8)
                    .collect();
                let packet = match random.below(12) {
                    0 => Vec::new(),
                    1 => made(&key, plain(next[of])),
                    2 => (0..40 + random.below(100)).map(|_| random.u32() as u8).collect(),
                    _ => data(&key, next[of], &payload),
                };
                if packet.len() > HEADERS && packet[at::FLAGS] & !PSH == ACK {
                    next[of] = next[of].wrapping_add(payload.len() as u32);
                }
                packets.push((of as u32, packet));
            }
            let bytes_of = |packets: &[(u32, Vec<u8>)], of: u32| -> Vec<u8> {
                let own = packets
                    .iter()
                    .filter(|(peer, packet)| *peer == of && packet.len() > HEADERS);
                own.flat_map(|(_, packet)| packet[HEADERS..].to_vec()).collect()
            };
            let given = given(&packets, |_| MOST);
            for of in 0..3 {
                assert_eq!(bytes_of(&given, of), bytes_of(&packets, of));
            }
            for (_, packet) in &given {
                assert!(packet.len() <= MOST);
            }
            joined += packets.iter().filter(|(_, packet)| !packet.is_empty()).count() - given.len();
        }
        assert!(joined > 5000, "{joined}");
    }
}
