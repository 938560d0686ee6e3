//! The bounds of one turn of a driver.

/// What is left of a turn's bounds. A turn of this size takes a quarter of a millisecond: what becomes ready meanwhile waits
/// for its end, so that who asks for little beside a bulk transfer waits for it at each end, both ways. Small turns are cheap:
/// looking for new readiness after one costs about one system call.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Sockets that may be visited.
    pub(crate) visits: usize,
    /// Bytes that streams may move.
    pub(crate) stream_bytes: usize,
    /// Datagrams that may be received.
    pub(crate) received: usize,
    /// Datagrams of the tunnel that may be sent, and in how many trains.
    pub(crate) sent: usize,
    /// See [`Budget::sent`].
    pub(crate) trains: usize,
    /// Actions that may be carried out.
    pub(crate) actions: usize,
    /// A bound was reached while work was left.
    pub(crate) exhausted: bool,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            visits: 256,
            stream_bytes: 128 * 1024,
            received: 128,
            sent: 256,
            trains: 64,
            actions: 2048,
            exhausted: false,
        }
    }
}

impl Budget {
    /// Whether no more sockets are to be visited in this turn.
    pub(crate) fn is_spent(&self) -> bool {
        self.visits == 0 || self.stream_bytes == 0 || self.received == 0
    }

    /// Takes off datagrams that were received.
    pub(crate) fn took_datagrams(&mut self, count: usize) {
        self.received = self.received.saturating_sub(count);
    }
}
