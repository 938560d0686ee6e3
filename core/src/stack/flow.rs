//! One TCP connection inside the tunnel: its socket, alone in a set, and what was seen of its life.

use std::net::Ipv6Addr;

use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{self, CongestionControl, State};
use smoltcp::time::Duration;

use super::{FlowKey, Owner, SPEED};
use crate::budget::BufferClass;
use crate::wg::PeerId;

/// See the module docs. The set holds this one socket for as long as the flow lives.
pub(super) struct Flow {
    pub(super) set: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) peer: PeerId,
    pub(super) key: FlowKey,
    pub(super) class: BufferClass,
    pub(super) owner: Owner,
    pub(super) inbound: bool,
    pub(super) seen: Seen,
    /// On the list of flows to send for.
    pub(super) queued: bool,
    /// When both FINs were through: time stands still for it from then on.
    pub(super) ended: Option<smoltcp::time::Instant>,
    /// Its peer is no longer known: nothing can be sent.
    pub(super) lost: bool,
    /// On the list of flows that the layer above should look at.
    pub(super) touched: bool,
    /// Packets sent in this turn.
    pub(super) sent_in_turn: u32,
    /// Data packets taken in since the last packet was sent.
    pub(super) unacknowledged: u32,
}

/// What has happened in a flow's life; smoltcp's state alone forgets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) established: bool,
    pub(super) remote_fin: bool,
    pub(super) local_fin: bool,
    pub(super) aborted: bool,
    pub(super) state: Option<State>,
}

/// Until a connection is established (both ways of opening).
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(10 * SPEED);
/// How long the other end may leave data unacknowledged or keep-alives unanswered before it counts as gone. Long enough to
/// outlive a cable pulled for minutes.
const DEAD_TIMEOUT: Duration = Duration::from_secs(300 * SPEED);
const KEEP_ALIVE: Duration = Duration::from_secs(60 * SPEED);
/// A flow that nobody owns any more only has its last bytes to bring over.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60 * SPEED);

impl Flow {
    pub(super) fn new(peer: PeerId, key: FlowKey, class: BufferClass, inbound: bool) -> Self {
        // A new socket for each connection: smoltcp's reset() carries congestion state and options over.
        let buffer = || tcp::SocketBuffer::new(vec![0; class.bytes()]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(HALF_OPEN_TIMEOUT));
        socket.set_congestion_control(CongestionControl::Cubic);
        let mut set = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = set.add(socket);
        Self {
            set,
            handle,
            peer,
            key,
            class,
            owner: Owner::Nobody,
            inbound,
            seen: Seen::default(),
            queued: false,
            lost: false,
            ended: None,
            touched: false,
            sent_in_turn: 0,
            unacknowledged: 0,
        }
    }

    pub(super) fn socket(&self) -> &tcp::Socket<'static> {
        self.set.get(self.handle)
    }

    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// Notes what the socket's state says and returns whether it is another one than before.
    pub(super) fn observe(&mut self) -> bool {
        let state = self.socket().state();
        if self.seen.state == Some(state) {
            return false;
        }
        self.seen.state = Some(state);
        match state {
            State::Listen | State::SynSent | State::SynReceived | State::Closed => {}
            State::Established | State::FinWait1 | State::FinWait2 => self.establish(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => {
                self.establish();
                self.seen.remote_fin = true;
            }
        }
        true
    }

    fn establish(&mut self) {
        if !self.seen.established {
            self.seen.established = true;
            let socket = self.socket_mut();
            socket.set_timeout(Some(DEAD_TIMEOUT));
            socket.set_keep_alive(Some(KEEP_ALIVE));
        }
    }

    /// The owner has gone: what is left must end by itself.
    pub(super) fn orphan(&mut self) {
        self.owner = Owner::Gone;
        let socket = self.socket_mut();
        socket.set_timeout(Some(ORPHAN_TIMEOUT));
        socket.set_keep_alive(None);
    }

    /// Whether the socket has nothing more to send or to wait for.
    pub(super) fn is_over(&self) -> bool {
        match self.socket().state() {
            State::Closed => self.socket().remote_endpoint().is_none(),
            // Both FINs are through: the ports are not used again for long, so nothing is gained by lingering.
            State::TimeWait | State::Listen => true,
            _ => false,
        }
    }

    /// Whether the connection is half open, as somebody else's SYN leaves it.
    pub(super) fn is_half_open(&self) -> bool {
        self.inbound && !self.seen.established
    }
}

/// The other end's address as smoltcp wants it.
pub(super) fn endpoint(address: Ipv6Addr, port: u16) -> (smoltcp::wire::IpAddress, u16) {
    (smoltcp::wire::IpAddress::Ipv6(address), port)
}
