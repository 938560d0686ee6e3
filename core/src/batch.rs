//! The caller's buffer for outgoing datagrams: one train for one destination, as GSO wants it.

use crate::machine::{Path, UdpSocketRef};

/// Where a train of datagrams goes: out of which socket, to which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The socket to send from.
    pub socket: UdpSocketRef,
    /// The address to send to; `None` for a connected socket ([`UdpSocketRef::Local`]).
    pub path: Option<Path>,
}

/// A train of datagrams for one destination: all of one size, the last one perhaps shorter.
///
/// A machine writes with `reserve`, fills the slice, then `commit`s; a reservation that is not committed leaves no trace.
/// The runtime reads [`TransmitBatch::contents`] and [`TransmitBatch::segment_size`].
#[derive(Debug)]
pub struct TransmitBatch {
    buffer: Box<[u8]>,
    max_segments: usize,
    destination: Option<Destination>,
    len: usize,
    segment_size: usize,
    segments: usize,
}

impl TransmitBatch {
    /// A batch that holds at most `max_segments` datagrams and `capacity` bytes.
    ///
    /// Linux takes trains of up to 64 segments and 65,487 bytes; a kernel without GSO takes one segment.
    #[must_use]
    pub fn new(max_segments: usize, capacity: usize) -> Self {
        Self {
            buffer: vec![0; capacity].into_boxed_slice(),
            max_segments: max_segments.max(1),
            destination: None,
            len: 0,
            segment_size: 0,
            segments: 0,
        }
    }

    /// Changes how many datagrams a train may have, from the next [`TransmitBatch::clear`] on.
    pub fn set_max_segments(&mut self, max_segments: usize) {
        self.max_segments = max_segments.max(1);
    }

    /// Forgets the train.
    pub fn clear(&mut self) {
        self.destination = None;
        self.len = 0;
        self.segment_size = 0;
        self.segments = 0;
    }

    /// Whether there is no datagram in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments == 0
    }

    /// Where the train goes; `None` while empty.
    #[must_use]
    pub fn destination(&self) -> Option<Destination> {
        self.destination
    }

    /// The train's bytes.
    #[must_use]
    pub fn contents(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// The size of each datagram but the last; `None` if there is just one.
    #[must_use]
    pub fn segment_size(&self) -> Option<usize> {
        (self.segments > 1).then_some(self.segment_size)
    }

    /// How many datagrams there are.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Whether a datagram of `len` bytes for `destination` can join the train.
    #[must_use]
    pub fn fits(&self, destination: Destination, len: usize) -> bool {
        match self.destination {
            None => len <= self.buffer.len(),
            Some(current) => {
                current == destination
                    && self.segments < self.max_segments
                    && self.len == self.segments * self.segment_size
                    && len <= self.segment_size
                    && self.len + len <= self.buffer.len()
            }
        }
    }

    /// The free bytes behind the train, at least as many as a fitting datagram has. Room beyond it is scratch.
    pub fn reserve(&mut self) -> &mut [u8] {
        &mut self.buffer[self.len..]
    }

    /// Adds the first `len` reserved bytes as a datagram.
    ///
    /// # Panics
    /// If it does not [fit](TransmitBatch::fits).
    pub fn commit(&mut self, destination: Destination, len: usize) {
        assert!(
            self.fits(destination, len),
            "a datagram of {len} bytes does not fit the train"
        );
        if self.destination.is_none() {
            self.destination = Some(destination);
            self.segment_size = len;
        }
        self.len += len;
        self.segments += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Destination = Destination {
        socket: UdpSocketRef::Tunnel,
        path: None,
    };

    fn push(batch: &mut TransmitBatch, len: usize) -> bool {
        let fits = batch.fits(HERE, len);
        if fits {
            batch.reserve()[..len].fill(1);
            batch.commit(HERE, len);
        }
        fits
    }

    #[test]
    fn a_train_ends_with_a_shorter_datagram() {
        let mut batch = TransmitBatch::new(8, 1000);
        assert!(push(&mut batch, 100));
        assert_eq!(batch.segment_size(), None);
        assert!(push(&mut batch, 100));
        assert!(push(&mut batch, 40));
        assert!(!push(&mut batch, 40), "nothing may follow the short one");
        assert_eq!(
            (batch.contents().len(), batch.segment_size(), batch.segments()),
            (240, Some(100), 3)
        );
    }

    #[test]
    fn a_longer_datagram_or_another_destination_starts_a_new_train() {
        let mut batch = TransmitBatch::new(8, 1000);
        assert!(push(&mut batch, 100));
        assert!(!push(&mut batch, 101));
        let there = Destination {
            path: Some(Path {
                remote: "127.0.0.1:1".parse().unwrap(),
                local_ip: None,
            }),
            ..HERE
        };
        assert!(!batch.fits(there, 100));
        batch.clear();
        assert!(batch.fits(there, 101));
    }

    #[test]
    fn segments_and_bytes_are_bounded() {
        let mut batch = TransmitBatch::new(2, 250);
        assert!(push(&mut batch, 100) && push(&mut batch, 100));
        assert!(!push(&mut batch, 100));
        let mut batch = TransmitBatch::new(8, 250);
        assert!(push(&mut batch, 100) && push(&mut batch, 100));
        assert!(!push(&mut batch, 100));
        assert!(push(&mut batch, 50));
        let mut batch = TransmitBatch::new(8, 250);
        assert!(!push(&mut batch, 251));
    }
}
