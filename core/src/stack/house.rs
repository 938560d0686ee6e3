//! A flow's socket and its buffers, and how a flow moves into another one.
//!
//! smoltcp's rings cannot grow or shrink, and its sockets cannot be made in the middle of a connection. So a flow moves at
//! a quiet moment, when everything sent was acknowledged and everything received was taken: then all that a socket knows
//! is known here too. The new socket learns it by a handshake that never leaves the machine. Bytes that the old one held
//! out of order are lost on purpose: they were not acknowledged, and the other end sends them again (RFC 2018, section 8).
//! Sequence numbers differ from then on, which [`Wire`] makes good.

use std::net::Ipv6Addr;

use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{self, CongestionControl, State};
use smoltcp::time::{Duration, Instant};

use super::device::{self, Ends, Port};
use super::segment::{self, Head, Way};
use super::slot::PacketSlot;
use super::wire::Wire;
use super::{FlowKey, SPEED};
use crate::budget::{Budget, BufferClass, Buffers};

/// The set holds this one socket for as long as it stands behind the flow.
pub(super) struct House {
    pub(super) set: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) buffers: Buffers,
}

/// What a socket begins with that is made for a connection that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) buffers: Buffers,
    /// How many bytes may be on their way at least.
    pub(super) window: usize,
}

impl Start {
    /// What is enough for most.
    pub(super) const USUAL: Self = Self {
        buffers: Buffers::both(BufferClass::FIRST),
        window: 0,
    };

    /// The same with buffers as large as the budget allows, at most of a class, for a flow that gives back `held` bytes and
    /// costs `more` besides. `None` if even the smallest are too much.
    pub(super) fn within(self, most: BufferClass, budget: &Budget, more: usize, held: usize) -> Option<Self> {
        let affordable = |bytes| budget.affordable(BufferClass::holding(bytes).min(most), 2, more, held);
        let buffers = Buffers {
            receive: affordable(self.buffers.receive)?.bytes(),
            send: affordable(self.buffers.send)?.bytes(),
        };
        Some(Self { buffers, ..self })
    }
}

/// What a house costs besides its buffers, rounded up.
pub(super) const HOUSE_STATE: usize = 1536;
const _: () = assert!(size_of::<SocketStorage<'static>>() < HOUSE_STATE - 64);

/// What a house needs of the stack to take packets in and to make some.
pub(super) struct Builder<'a> {
    pub(super) interface: &'a mut Interface,
    pub(super) mtu: usize,
    pub(super) own: Ipv6Addr,
    /// Takes the packets that do not leave the machine, and the one that does.
    pub(super) slot: &'a mut PacketSlot,
}

/// Until a connection is established (both ways of opening).
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(10 * SPEED);
/// How long the other end may leave data unacknowledged or keep-alives unanswered before it counts as gone. Long enough to
/// outlive a cable pulled for minutes.
pub(super) const DEAD_SECONDS: u64 = 300;
/// How often it is asked whether it is still there.
pub(super) const KEEP_ALIVE_SECONDS: u64 = 60;
/// A flow that nobody owns any more only has its last bytes to bring over.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60 * SPEED);
/// What a round trip is taken for that was not measured: most are shorter, and what is sent again too early costs more than
/// what is sent again too late.
const UNKNOWN_ROUND_TRIP: std::time::Duration = std::time::Duration::from_millis(200);

impl House {
    /// For a connection that is to be opened.
    pub(super) fn new(buffers: Buffers) -> Self {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffers.receive]),
            tcp::SocketBuffer::new(vec![0; buffers.send]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(HALF_OPEN_TIMEOUT));
        // The windows that it is told hold what may be on its way: see `congestion`.
        socket.set_congestion_control(CongestionControl::None);
        let mut set = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = set.add(socket);
        Self { set, handle, buffers }
    }

    /// For a connection that there is already: takes it over from whatever socket it had, or had not. It is quiet.
    ///
    /// `None` if that fails, which is a fault of this crate; nothing has changed then.
    pub(super) fn take_over(
        builder: &mut Builder<'_>,
        now: Instant,
        key: &FlowKey,
        wire: &mut Wire,
        start: Start,
    ) -> Option<Self> {
        let buffers = start.buffers;
        let mut house = Self::new(buffers);
        house.establish();
        house.socket_mut().listen(device::own(key.local_port)).ok()?;
        // As if the answer to the made-up packets had taken one round trip: then the timers begin right.
        let round_trip = wire.round_trip.unwrap_or(UNKNOWN_ROUND_TRIP) * u32::try_from(SPEED).unwrap_or(1);
        let micros = i64::try_from(round_trip.as_micros()).unwrap_or(0);
        let before = Instant::from_micros((now.total_micros() - micros).max(0));
        builder.feed(&mut house, now, key, wire.made_up_syn());
        let next = builder.swallow(&mut house, before, key)?.seq.wrapping_add(1);
        builder.feed(&mut house, now, key, wire.made_up_ack(next));
        if house.socket().state() != State::Established {
            return None;
        }
        wire.congestion.raise(start.window);
        wire.housed(next, buffers.receive);
        // smoltcp believes that its SYN told the window; only a true acknowledgement puts that right.
        builder.feed(&mut house, now, key, wire.made_up_question(next));
        Some(house)
    }

    /// The connection is there.
    pub(super) fn establish(&mut self) {
        let socket = self.socket_mut();
        socket.set_timeout(Some(Duration::from_secs(DEAD_SECONDS * SPEED)));
        socket.set_keep_alive(Some(Duration::from_secs(KEEP_ALIVE_SECONDS * SPEED)));
    }

    /// The owner has gone: what is left must end by itself.
    pub(super) fn orphan(&mut self) {
        let socket = self.socket_mut();
        socket.set_timeout(Some(ORPHAN_TIMEOUT));
        socket.set_keep_alive(None);
    }

    pub(super) fn socket(&self) -> &tcp::Socket<'static> {
        self.set.get(self.handle)
    }

    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// Whether everything that was received was taken, everything sent acknowledged, and both directions are open.
    pub(super) fn is_quiet(&self) -> bool {
        let socket = self.socket();
        socket.state() == State::Established && socket.recv_queue() == 0 && socket.send_queue() == 0
    }
}

impl Builder<'_> {
    /// Gives a house a made-up packet; its answer, if it has one, is in the slot.
    pub(super) fn feed(&mut self, house: &mut House, now: Instant, key: &FlowKey, repr: smoltcp::wire::TcpRepr<'_>) {
        let mut room = [0; segment::MADE_UP];
        let packet = segment::write(&mut room, self.own, key, Way::In, repr);
        self.hand_in(house, now, key, packet);
    }

    /// Gives a house a packet; its answer, if it has one, is in the slot.
    pub(super) fn hand_in(&mut self, house: &mut House, now: Instant, key: &FlowKey, packet: &mut [u8]) {
        let mut port = Port {
            mtu: self.mtu,
            ends: self.ends(key),
            incoming: Some(packet),
            outgoing: self.slot,
        };
        self.interface.poll_ingress_single(now, &mut port, &mut house.set);
    }

    /// Lets a house say something; if it has, that is in the slot.
    pub(super) fn give_turn(&mut self, house: &mut House, now: Instant, key: &FlowKey) -> PollResult {
        let mut port = Port {
            mtu: self.mtu,
            ends: self.ends(key),
            incoming: None,
            outgoing: self.slot,
        };
        self.interface.poll_egress(now, &mut port, &mut house.set)
    }

    /// Takes the next packet that a house wants to send.
    fn swallow(&mut self, house: &mut House, now: Instant, key: &FlowKey) -> Option<Head> {
        self.slot.clear();
        self.give_turn(house, now, key);
        let head = (!self.slot.is_empty()).then(|| Head::of(self.slot.packet())).flatten();
        self.slot.clear();
        head
    }

    fn ends(&self, key: &FlowKey) -> Ends {
        Ends {
            own: self.own,
            other: key.remote,
        }
    }
}
