//! A bounded queue of byte strings in one buffer, each with a word about where it goes.

use std::collections::VecDeque;

/// Byte strings wait here one behind the other; nothing is allocated once the buffer has grown to its bound.
#[derive(Debug)]
pub(crate) struct ByteQueue<M> {
    entries: VecDeque<(M, usize)>,
    bytes: Vec<u8>,
    head: usize,
    limit: usize,
}

impl<M: Copy> ByteQueue<M> {
    /// A queue of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: Vec::new(),
            head: 0,
            limit,
        }
    }

    /// Queues `len` bytes that `write` fills in, unless they would exceed the bound. They start as zeros.
    pub(crate) fn push_with(&mut self, meta: M, len: usize, write: impl FnOnce(&mut [u8])) -> bool {
        if self.bytes.len() - self.head + len > self.limit {
            return false;
        }
        if self.bytes.len() + len > self.limit {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        write(&mut self.bytes[start..]);
        self.entries.push_back((meta, len));
        true
    }

    /// Queues a copy of `bytes`, unless it would exceed the bound.
    pub(crate) fn push(&mut self, meta: M, bytes: &[u8]) -> bool {
        self.push_with(meta, bytes.len(), |room| room.copy_from_slice(bytes))
    }

    /// The oldest entry.
    pub(crate) fn front(&self) -> Option<(M, &[u8])> {
        let &(meta, len) = self.entries.front()?;
        Some((meta, &self.bytes[self.head..self.head + len]))
    }

    /// Drops the oldest entry.
    pub(crate) fn pop(&mut self) {
        if let Some((_, len)) = self.entries.pop_front() {
            self.head += len;
        }
        if self.entries.is_empty() {
            self.bytes.clear();
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_within_the_bound() {
        let mut queue = ByteQueue::new(10);
        assert!(queue.push('a', b"1234"));
        assert!(queue.push('b', b"56"));
        assert!(!queue.push('c', b"78901"));
        assert_eq!(queue.front(), Some(('a', &b"1234"[..])));
        queue.pop();
        assert!(queue.push('c', b"78901234"), "room behind the head is used again");
        assert_eq!(queue.front(), Some(('b', &b"56"[..])));
        queue.pop();
        assert_eq!(queue.front(), Some(('c', &b"78901234"[..])));
        queue.pop();
        assert!(queue.front().is_none());
        assert!(queue.push('d', b""), "an empty datagram is an entry too");
        assert_eq!(queue.front(), Some(('d', &b""[..])));
    }
}
