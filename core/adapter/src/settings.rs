//! What a program may choose about its runtime.

use std::time::Duration;

/// Sizes and patience of a driver.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Receive buffers of the tunnel's socket, 64 KiB each, 1 to 32: how many trains one `recvmmsg` can take.
    ///
    /// The kernel joins up to 64 datagrams into one buffer (GRO), so it cannot be smaller than the largest train.
    pub receive_buffers: usize,
    /// How many datagrams one train of the tunnel may have (GSO), 1 to 64. The kernel's own limit applies too.
    pub gso_segments: usize,
    /// Asks for this size of the tunnel socket's send and receive buffer; `None` keeps the system's.
    ///
    /// The system's usual 208 KiB hold two trains: a receiver that is not scheduled for a moment would lose the third.
    /// What is granted is bounded by `net.core.rmem_max` and `wmem_max`.
    pub tunnel_socket_buffer: Option<usize>,
    /// Idle time after which the kernel probes whether a visitor is still there; `None` never probes.
    pub tcp_keepalive: Option<Duration>,
    /// How long a dial may take, its look-up included.
    pub dial_timeout: Duration,
    /// How long a look-up asked for by the machine may take.
    pub resolve_timeout: Duration,
    /// How long a shutdown waits for what is still open.
    pub shutdown_grace: Duration,
    /// How many events may wait for the application before new ones are dropped.
    pub event_queue: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            receive_buffers: 8,
            gso_segments: 32,
            tunnel_socket_buffer: Some(4 * 1024 * 1024),
            tcp_keepalive: Some(Duration::from_secs(60)),
            dial_timeout: Duration::from_secs(10),
            resolve_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(30),
            event_queue: 1024,
        }
    }
}

impl Settings {
    /// For a machine where every megabyte counts: less is received at once. The kernel's buffers of the tunnel's socket
    /// hold memory only while they hold datagrams.
    #[must_use]
    pub fn small() -> Self {
        Self {
            receive_buffers: 2,
            tunnel_socket_buffer: Some(1024 * 1024),
            ..Self::default()
        }
    }
}
