//! What the runtime counts.

/// Counters of one driver since it was made, as of the end of its last turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// TCP connections handed to the machine and taken by it.
    pub accepted: u64,
    /// TCP connections the machine refused; they were reset.
    pub refused: u64,
    /// Connections that failed before they could be accepted.
    pub accept_errors: u64,
    /// Times that accepting paused because descriptors or memory had run out.
    pub emfile_pauses: u64,
    /// Streams and dials held at this moment.
    pub streams: u64,
    /// Dials begun, of streams and of UDP sockets.
    pub dials: u64,
    /// Dials that failed.
    pub dial_failures: u64,
    /// Datagrams received on the tunnel's socket.
    pub tunnel_rx_datagrams: u64,
    /// Calls of `recvmmsg` that received them.
    pub tunnel_rx_calls: u64,
    /// Errors the tunnel's socket gave on receiving.
    pub tunnel_rx_errors: u64,
    /// Datagrams sent out of the tunnel's socket.
    pub tunnel_tx_datagrams: u64,
    /// Calls of `sendmsg` that sent them.
    pub tunnel_tx_calls: u64,
    /// Datagrams of the tunnel that could not be sent and are lost.
    pub tunnel_tx_errors: u64,
    /// Times that the tunnel's socket was full and a train had to wait.
    pub tunnel_tx_blocked: u64,
    /// Times that the kernel or a driver refused a train, which was then sent in smaller parts.
    pub gso_fallbacks: u64,
    /// Times that our own address of a path was gone and the kernel chose another.
    pub source_fallbacks: u64,
    /// Datagrams received on public and local UDP sockets.
    pub udp_rx_datagrams: u64,
    /// Datagrams sent out of public and local UDP sockets.
    pub udp_tx_datagrams: u64,
    /// Datagrams for public and local UDP sockets that could not be sent and are lost.
    pub udp_tx_drops: u64,
    /// Events dropped because the application did not take them.
    pub event_drops: u64,
    /// Turns of the driver.
    pub turns: u64,
    /// Turns that ended because a bound was reached while work was left.
    pub budget_exhaustions: u64,
}
