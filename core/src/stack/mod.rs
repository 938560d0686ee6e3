//! TCP and UDP inside the tunnel: smoltcp with one shared `Interface` and a `SocketSet` of its own for each flow.
//!
//! smoltcp walks every socket of a set for each packet and each poll. Here each flow is alone in its set, and our own map
//! from the 4-tuple, our own timers and our own schedule find it, so a packet costs the same among 10,000 idle flows as
//! alone.
//!
//! A flow's buffers follow its need: it moves into other ones ([`need`], [`house`]), and one that is silent for a while
//! has none at all ([`sleep`]). The other end sees one connection all along ([`wire`]). How much it may have on its way is
//! decided here ([`congestion`], [`queue`]), and what was lost is mended ([`recovery`]): smoltcp hears of both by windows
//! and acknowledgements that are made for it. What it has to acknowledge itself may wait for bytes to go with ([`delay`]).
//!
//! Packets leave towards [`crate::wg`] one at a time: [`Stack::peek_packet`] says which is next, and
//! [`Stack::take_packet`] that it went. Nothing in between knows more than "a packet for this peer"; a link layer can be
//! put there.

mod bytes;
mod coalesce;
mod company;
mod congestion;
mod delay;
mod device;
mod early;
mod egress;
mod flow;
mod house;
mod ingress;
mod ip;
mod need;
mod precedent;
mod queue;
mod recovery;
mod schedule;
mod segment;
mod sleep;
mod slot;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::ops::Range;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::wire::HardwareAddress;

#[cfg(feature = "fuzzing")]
pub(crate) use self::ip::{Payload, parse};

pub(crate) use self::coalesce::Coalescer;

use self::company::Company;
use self::device::{Ends, Port};
use self::early::{Fallen, MOST_FALLEN};
use self::flow::{FLOW_STATE, Flow};
use self::house::{HOUSE_STATE, Start};
use self::ip::UDP_HEADERS;
use self::precedent::Precedents;
use self::schedule::Schedule;
use self::slot::PacketSlot;
use crate::budget::{BufferClass, Buffers};
use crate::byte_queue::ByteQueue;
use crate::machine::StreamId;
use crate::resources::Resources;
use crate::seed::{Map, Random};
use crate::table::{Key, Table};
use crate::timers::TimerQueue;
use crate::wg::{PeerId, padded};

/// Names a flow. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FlowId(Key);

/// Who looks after a flow above the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody yet: a connection that was accepted.
    Nobody,
    /// A kernel socket's stream.
    Stream(StreamId),
    /// The control channel of the flow's peer.
    Channel,
    /// Nobody any more: the flow ends by itself.
    Gone,
}

/// What a flow looks like from above.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowView {
    pub(crate) peer: PeerId,
    pub(crate) owner: Owner,
    /// The port on our side.
    pub(crate) local_port: u16,
    /// Opened by the other end.
    pub(crate) inbound: bool,
    /// The handshake is through, or was.
    pub(crate) established: bool,
    /// There is room for bytes to send.
    pub(crate) can_send: bool,
    /// There are received bytes.
    pub(crate) can_receive: bool,
    /// The other end has sent its FIN, and every byte before it was received.
    pub(crate) remote_fin: bool,
    /// The connection ended without both FINs: reset, timed out, or refused.
    pub(crate) broken: bool,
    /// When a packet of it last came from the other end.
    pub(crate) heard: Instant,
}

/// Why a flow could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the table of flows is full")]
    TooManyFlows,
    #[error("the memory budget is used up")]
    NoMemory,
    #[error("no port is free")]
    NoPort,
}

/// A UDP packet taken from the tunnel: the ports and where its contents lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TunnelDatagram {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) contents: Range<usize>,
}

/// Bounds of a stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackConfig {
    pub(crate) mtu: usize,
    pub(crate) max_flows: usize,
    pub(crate) max_half_open: usize,
    /// Connections are established by their SYN, see [`early`].
    pub(crate) answers_at_once: bool,
}

/// A connection as seen from our side; our own address is always the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FlowKey {
    remote: Ipv6Addr,
    remote_port: u16,
    local_port: u16,
}

/// Replies made while packets are taken in, and UDP packets, waiting to be sealed.
pub(crate) const MAX_QUEUED_BYTES: usize = 512 * 1024;
/// What packets in the making take of the memory, whatever there is to do.
pub(crate) const PACKET_BUFFERS: usize = coalesce::COALESCER + 2 * slot::SLOT;
/// Our side's ports for flows that we open. A port comes round again after all the others did.
const FIRST_EPHEMERAL: u16 = 16_384;
/// How much faster than ours smoltcp's time runs. Its retransmission timer never goes below one second, and no setting
/// reaches that; on a clock five times as fast this is the 200 ms that Linux has. Round trips are measured on the same
/// clock, so nothing else notices; durations given to smoltcp are multiplied.
const SPEED: u64 = 5;

/// See the module docs.
pub(crate) struct Stack {
    address: Ipv6Addr,
    config: StackConfig,
    epoch: Instant,
    interface: Interface,
    nothing: SocketSet<'static>,
    flows: Table<Flow>,
    by_key: Map<FlowKey, FlowId>,
    served: BTreeMap<u16, BufferClass>,
    half_open: usize,
    timers: TimerQueue<FlowId>,
    schedule: Schedule,
    /// Until when the flows of peers without a session are kept: smoltcp's own timers do not run for them.
    unreachable: TimerQueue<PeerId>,
    touched: VecDeque<FlowId>,
    precedents: Precedents,
    company: Company,
    /// Flows that were answered and are not confirmed.
    unconfirmed: usize,
    fallen: Fallen,
    queue: ByteQueue<PeerId>,
    reply: PacketSlot,
    /// The next packet of a flow, made but not yet taken.
    next: PacketSlot,
    /// Whose it is.
    next_of: Option<(PeerId, FlowId)>,
    port_cursor: u16,
    /// Flows that were looked at, for the test that idle ones are not.
    #[cfg(test)]
    polls: u64,
}

impl Stack {
    pub(crate) fn new(now: Instant, address: Ipv6Addr, config: StackConfig, random: &mut Random) -> Self {
        let mut reply = PacketSlot::new(config.mtu);
        let mut port = Port {
            mtu: config.mtu,
            ends: Ends {
                own: address,
                other: address,
            },
            incoming: None,
            outgoing: &mut reply,
        };
        let mut smoltcp = Config::new(HardwareAddress::Ip);
        smoltcp.random_seed = random.u64();
        let mut interface = Interface::new(smoltcp, &mut port, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(device::network())
                .expect("a new interface has room for an address");
        });
        Self {
            address,
            config,
            epoch: now,
            interface,
            nothing: SocketSet::new(Vec::new()),
            flows: Table::new(config.max_flows),
            by_key: Map::with_hasher(random.hasher()),
            served: BTreeMap::new(),
            half_open: 0,
            timers: TimerQueue::new(),
            schedule: Schedule::default(),
            unreachable: TimerQueue::new(),
            touched: VecDeque::new(),
            precedents: Precedents::default(),
            company: Company::default(),
            unconfirmed: 0,
            fallen: Fallen::default(),
            queue: ByteQueue::new(MAX_QUEUED_BYTES),
            next: PacketSlot::new(config.mtu),
            next_of: None,
            #[cfg(test)]
            polls: 0,
            reply,
            port_cursor: FIRST_EPHEMERAL
                + u16::try_from(random.below(u32::from(u16::MAX - FIRST_EPHEMERAL))).unwrap_or(0),
        }
    }

    /// Accepts connections to a port from now on, with buffers of at most this class.
    pub(crate) fn serve(&mut self, port: u16, largest: BufferClass) {
        self.served.insert(port, largest);
    }

    /// No longer accepts connections to a port; those there are go on.
    pub(crate) fn unserve(&mut self, port: u16) {
        self.served.remove(&port);
    }

    /// Whether a far end that can be reached has yet to hear of a flow's end, or to say its own.
    pub(crate) fn has_open_flows(&self) -> bool {
        self.flows
            .iter()
            .any(|(_, flow)| !flow.lost && !flow.is_over() && !self.schedule.is_paused(flow.peer))
    }

    /// Of how many peers something is remembered; never more than there are.
    pub(crate) fn remembered_peers(&self) -> usize {
        self.precedents.len().max(self.company.len())
    }

    pub(crate) fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// Opens a connection to a peer, with buffers of at most this class.
    #[expect(clippy::too_many_arguments, reason = "the other end, and what the flow is for")]
    pub(crate) fn connect(
        &mut self,
        now: Instant,
        peer: PeerId,
        remote: Ipv6Addr,
        port: u16,
        owner: Owner,
        largest: BufferClass,
        resources: &mut Resources,
    ) -> Result<FlowId, ConnectError> {
        let local_port = self.free_port(remote, port).ok_or(ConnectError::NoPort)?;
        let key = FlowKey {
            remote,
            remote_port: port,
            local_port,
        };
        let id = self.insert_flow(now, peer, key, false, largest, resources)?;
        let smoltcp_now = self.smoltcp_instant(now);
        let flow = self.flows.get_mut(id.0).ok_or(ConnectError::TooManyFlows)?;
        flow.owner = owner;
        // The interface's context carries the time at which the handshake's timers start.
        self.interface.poll_maintenance(smoltcp_now);
        let local = device::own(local_port);
        if let Some(house) = &mut flow.house {
            let socket = house.socket_mut();
            let connected = socket.connect(self.interface.context(), device::other(port), local);
            debug_assert!(connected.is_ok(), "a new socket can connect to a specified endpoint");
        }
        flow.observe();
        self.enqueue(id);
        Ok(id)
    }

    /// Queues a UDP packet for a peer. False if it is too large or the queue is full.
    pub(crate) fn send_udp(
        &mut self,
        peer: PeerId,
        source_port: u16,
        destination: (Ipv6Addr, u16),
        payload: &[u8],
        resources: &mut Resources,
    ) -> bool {
        let len = UDP_HEADERS + payload.len();
        if len > self.config.mtu {
            resources.counters.drop_udp_oversize += 1;
            return false;
        }
        let source = (self.address, source_port);
        let padded_len = padded(len, self.config.mtu);
        let queued = self.queue.push_with(peer, padded_len, |room| {
            ip::write_udp(&mut room[..len], source, destination, payload);
        });
        if !queued {
            resources.counters.drop_udp_queue += 1;
        }
        queued
    }

    pub(crate) fn set_owner(&mut self, id: FlowId, owner: Owner) {
        if let Some(flow) = self.flows.get_mut(id.0) {
            flow.owner = owner;
        }
    }

    /// Ends a flow whose owner has gone. With `reset` the other end gets a RST; without, what was queued and a FIN.
    pub(crate) fn release(&mut self, id: FlowId, reset: bool, resources: &mut Resources) {
        let Some(flow) = self.flows.get_mut(id.0) else {
            return;
        };
        flow.orphan();
        if reset {
            // The other end has seen a SYN at most, and nothing can be sent: there is no reason to keep it.
            flow.lost |= !flow.inbound && !flow.seen.established && self.schedule.is_paused(flow.peer);
            flow.abort();
        } else if !flow.seen.local_fin {
            flow.close();
        }
        self.enqueue(id);
        self.settle(id, resources);
    }

    /// Drops every flow of a peer that has forgotten them. Their owners find out by [`Stack::pop_touched`].
    pub(crate) fn break_flows(&mut self, peer: PeerId, resources: &mut Resources) {
        self.break_flows_but(peer, None, resources);
    }

    /// The same, but for one flow.
    pub(crate) fn break_flows_but(&mut self, peer: PeerId, keep: Option<FlowId>, resources: &mut Resources) {
        let of_peer = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.peer == peer)
            .map(|(key, _)| FlowId(key));
        let doomed: Vec<_> = of_peer.filter(|&id| Some(id) != keep).collect();
        for id in doomed {
            let Some(flow) = self.flows.get_mut(id.0) else {
                continue;
            };
            flow.abort();
            if matches!(flow.owner, Owner::Gone | Owner::Nobody) {
                self.remove(id, resources);
            } else {
                self.touch(id);
                self.enqueue(id);
            }
        }
    }

    /// Drops every flow of a peer that is no longer known, or was out of reach for too long, without a word to it.
    pub(crate) fn lose_flows(&mut self, peer: PeerId, resources: &mut Resources) {
        let of_peer = self.flows.iter().filter(|(_, flow)| flow.peer == peer);
        let doomed: Vec<_> = of_peer.map(|(key, _)| FlowId(key)).collect();
        for id in doomed {
            let Some(flow) = self.flows.get_mut(id.0) else { continue };
            flow.lost = true;
            flow.abort();
            if matches!(flow.owner, Owner::Gone | Owner::Nobody) {
                self.remove(id, resources);
            } else {
                self.touch(id);
            }
        }
        self.schedule.forget(peer);
        self.unreachable.clear(peer);
        self.precedents.forget(peer);
        self.company.forget(peer);
    }

    /// The next flow in whose life something happened since it was last returned.
    pub(crate) fn pop_touched(&mut self) -> Option<FlowId> {
        while let Some(id) = self.touched.pop_front() {
            if let Some(flow) = self.flows.get_mut(id.0) {
                flow.touched = false;
                return Some(id);
            }
        }
        None
    }

    /// Whether [`Stack::pop_touched`] may have something.
    pub(crate) fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, resources: &mut Resources) {
        while let Some(peer) = self.unreachable.pop_due(now) {
            self.lose_flows(peer, resources);
        }
        while let Some(id) = self.timers.pop_due(now) {
            self.enqueue(id);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next().into_iter().chain(self.unreachable.next()).min()
    }

    fn insert_flow(
        &mut self,
        now: Instant,
        peer: PeerId,
        key: FlowKey,
        inbound: bool,
        largest: BufferClass,
        resources: &mut Resources,
    ) -> Result<FlowId, ConnectError> {
        if self.flows.is_full() {
            resources.counters.refused_flows_full += 1;
            return Err(ConnectError::TooManyFlows);
        }
        // Nobody knows yet whether anything comes of it; but who answers may send as much as the SYN lets it.
        let mut buffers = Buffers::both(BufferClass::SMALLEST);
        let start = self.precedents.start(now, peer, &resources.budget);
        if (!inbound || start != Start::USUAL)
            && let Some(start) = start.within(largest, &resources.budget, FLOW_STATE + HOUSE_STATE, 0)
        {
            buffers.receive = start.buffers.receive;
        }
        let cost = FLOW_STATE + HOUSE_STATE + buffers.bytes();
        let affordable = resources.budget.affordable(BufferClass::SMALLEST, 0, cost, 0);
        if affordable.is_none() || !resources.budget.charge(cost) {
            resources.counters.refused_memory += 1;
            return Err(ConnectError::NoMemory);
        }
        let inserted = self
            .flows
            .insert_with(|_| Flow::new(now, peer, key, buffers, largest, inbound));
        let id = FlowId(inserted.ok_or(ConnectError::TooManyFlows)?);
        self.by_key.insert(key, id);
        resources.counters.flows_opened += 1;
        Ok(id)
    }

    /// Removes a flow that has ended, once nobody owns it.
    fn settle(&mut self, id: FlowId, resources: &mut Resources) {
        let Some(flow) = self.flows.get(id.0) else {
            return;
        };
        let abandoned = match flow.owner {
            Owner::Gone => true,
            Owner::Nobody => flow.seen.aborted || !flow.seen.established,
            Owner::Stream(_) | Owner::Channel => false,
        };
        if abandoned && (flow.lost || flow.is_over() && !flow.queued) {
            self.remove(id, resources);
        }
    }

    fn remove(&mut self, id: FlowId, resources: &mut Resources) {
        let Some(flow) = self.flows.remove(id.0) else {
            return;
        };
        self.note_fallen(&flow);
        if flow.is_half_open() {
            self.half_open -= 1;
        }
        if flow.queued && self.schedule.leave(flow.peer, id) {
            self.unreachable.clear(flow.peer);
        }
        self.by_key.remove(&flow.key);
        self.timers.clear(id);
        resources.budget.release(flow.charge());
        resources.counters.flows_closed += 1;
    }

    fn touch(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id.0)
            && !flow.touched
        {
            flow.touched = true;
            self.touched.push_back(id);
        }
    }

    fn enqueue(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id.0)
            && !flow.queued
            && !flow.lost
        {
            flow.queued = true;
            self.schedule.push(flow.peer, id);
        }
    }

    /// Asserts what must always hold, and returns what the flows are charged in all.
    pub(crate) fn check_invariants(&self) -> usize {
        assert_eq!(
            self.by_key.len(),
            self.flows.len(),
            "every flow is in the map, and nothing else is"
        );
        let mut charged = 0;
        let mut half_open = 0;
        let mut unconfirmed = 0;
        for (key, flow) in self.flows.iter() {
            assert_eq!(
                self.by_key.get(&flow.key),
                Some(&FlowId(key)),
                "the map leads to the flow"
            );
            charged += flow.charge();
            half_open += usize::from(flow.is_half_open());
            unconfirmed += usize::from(flow.unconfirmed.is_some());
        }
        assert_eq!(unconfirmed, self.unconfirmed, "unconfirmed flows are counted");
        assert!(self.fallen.len() + unconfirmed <= MOST_FALLEN);
        assert_eq!(half_open, self.half_open, "half-open flows are counted");
        assert!(half_open <= self.config.max_half_open);
        charged
    }

    fn free_port(&mut self, remote: Ipv6Addr, remote_port: u16) -> Option<u16> {
        (FIRST_EPHEMERAL..=u16::MAX).find_map(|_| {
            let port = self.port_cursor;
            self.port_cursor = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            (!self.by_key.contains_key(&FlowKey {
                remote,
                remote_port,
                local_port: port,
            }))
            .then_some(port)
        })
    }

    /// smoltcp's time: it runs [`SPEED`] times as fast as ours.
    fn smoltcp_instant(&self, now: Instant) -> smoltcp::time::Instant {
        let elapsed = now.saturating_duration_since(self.epoch).as_micros() * u128::from(SPEED);
        smoltcp::time::Instant::from_micros(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }

    /// Our time of an instant of smoltcp's, rounded up.
    fn instant_of(&self, at: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0).div_ceil(SPEED);
        self.epoch + std::time::Duration::from_micros(micros)
    }
}

#[cfg(test)]
mod tests;
