//! What a relay and an agent have in common: the tunnel's layers stacked up, the streams joined to them, and the queues
//! towards the runtime. It takes no decision about who may do what.

mod byte_path;
mod closing;
mod meter;
mod stream;
mod stream_tls;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
mod tls;

use std::collections::VecDeque;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::admin::{Admin, MAX_CONNECTIONS};
use crate::batch::{Destination, TransmitBatch};
use crate::byte_queue::ByteQueue;
use crate::identity::SecretKey;
use crate::machine::{Action, Path, StreamId, UdpSocketRef};
use crate::resources::Resources;
use crate::seed::Random;
use crate::stack::{Coalescer, FlowId, MAX_QUEUED_BYTES, Owner, PACKET_BUFFERS, Stack, StackConfig, TunnelDatagram};
use crate::table::Table;
use crate::timers::TimerQueue;
use crate::wg::{DATA_OVERHEAD, PEER_CHARGE, PeerId, Wg, WgEvent};

pub use self::byte_path::StreamMut;
use self::meter::Meters;
pub(crate) use self::stream::{End, Ended, Stream};
pub(crate) use self::tls::Tls;

/// Bounds that both machines have. Each is enforced where the thing is made, and counted when it refuses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes for peers, flows, buffers and queues; at least 4 MiB.
    pub memory: usize,
    /// Peers, strangers among them.
    pub peers: usize,
    /// Flows in the tunnel.
    pub flows: usize,
    /// Flows that a peer opened and did not complete.
    pub half_open: usize,
    /// Kernel sockets of visitors or local targets.
    pub streams: usize,
    /// UDP associations.
    pub associations: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 256 * 1024 * 1024,
            peers: 4096,
            flows: 32_768,
            half_open: 1024,
            streams: 32_768,
            associations: 4096,
        }
    }
}

/// The inner MTU unless set: with 80 bytes around it, it fits any path that carries 1,360.
pub const DEFAULT_MTU: u16 = 1280;

/// What a machine built on a [`Node`] offers to its streams.
pub trait Owned {
    #[doc(hidden)]
    type Data;
    #[doc(hidden)]
    type Event;
    #[doc(hidden)]
    fn node(&mut self) -> &mut Node<Self::Data, Self::Event>;
    /// A stream's head has more bytes, or its socket ended within it.
    #[doc(hidden)]
    fn head_grew(&mut self, now: Instant, id: StreamId);
    /// Deals with what the last input set in motion.
    #[doc(hidden)]
    fn settle(&mut self, now: Instant);
}

/// See the module docs. `X` is what the machine keeps with a stream, `E` its event.
pub struct Node<X, E> {
    pub(crate) wg: Wg,
    pub(crate) stack: Stack,
    pub(crate) resources: Resources,
    pub(crate) random: Random,
    pub(crate) actions: VecDeque<Action<E>>,
    pub(crate) stream_deadlines: TimerQueue<StreamId>,
    pub(crate) admin: Admin,
    meters: Meters,
    max_streams: usize,
    streams: Table<Stream<X>>,
    ended: VecDeque<Ended<X>>,
    datagrams: ByteQueue<Destination>,
    coalescer: Coalescer,
    pub(crate) started: Instant,
    latest: Instant,
    honoured: Option<Instant>,
    /// Set once the end was asked for: until when far ends are waited for.
    lingers_until: Option<Instant>,
}

/// Something the machine above has to look at.
#[derive(Debug)]
pub(crate) enum NodeEvent<X> {
    /// The tunnel to a peer has changed.
    Tunnel(WgEvent),
    /// Something happened to a flow that is no stream's.
    Flow(FlowId, Owner),
    /// A stream has ended.
    Ended(Ended<X>),
}

/// A machine with less could not hold its own queues and a handful of flows.
const SMALLEST_MEMORY: usize = 4 * 1024 * 1024;
/// UDP payloads waiting for public and local sockets.
const MAX_DATAGRAM_BYTES: usize = 512 * 1024;
/// What a machine is charged from the start: its queues, and the fixed tables of the `wg` module and of the stack.
const FIXED_CHARGE: usize = MAX_DATAGRAM_BYTES + MAX_QUEUED_BYTES + PACKET_BUFFERS + 256 * 1024;
/// By how much a deadline that did not move is pushed.
const STUCK_PUSH: Duration = Duration::from_secs(1);

impl<X, E> std::fmt::Debug for Node<X, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("counters", &self.resources.counters)
            .finish_non_exhaustive()
    }
}

impl<X, E> Node<X, E> {
    pub(crate) fn new(
        now: Instant,
        secret: &SecretKey,
        mtu: u16,
        limits: &Limits,
        admit_strangers: bool,
        seed: [u8; 32],
    ) -> Self {
        let mut random = Random::new(seed);
        let mut resources = Resources::new(limits.memory.max(SMALLEST_MEMORY));
        let queues = resources.budget.charge(FIXED_CHARGE);
        debug_assert!(queues, "a budget holds its own queues");
        // Peers may take a quarter of the memory: flows are what it is for.
        let max_peers = limits.peers.min(limits.memory / 4 / PEER_CHARGE).max(1);
        let config = StackConfig {
            mtu: usize::from(mtu.clamp(1280, 1420)),
            max_flows: limits.flows,
            max_half_open: limits.half_open,
            // Whoever may be anybody has to show that answers reach it.
            answers_at_once: !admit_strangers,
        };
        Self {
            wg: Wg::new(now, secret, max_peers, admit_strangers, &mut random),
            stack: Stack::new(now, secret.public_key().overlay_address(), config, &mut random),
            resources,
            random,
            actions: VecDeque::new(),
            stream_deadlines: TimerQueue::new(),
            admin: Admin::new(),
            meters: Meters::new(),
            max_streams: limits.streams,
            streams: Table::new(limits.streams.saturating_add(MAX_CONNECTIONS)),
            ended: VecDeque::new(),
            datagrams: ByteQueue::new(MAX_DATAGRAM_BYTES),
            coalescer: Coalescer::new(),
            started: now,
            latest: now,
            honoured: None,
            lingers_until: None,
        }
    }

    /// Asserts what must always hold. `held` is what the machine above was charged for its own parts.
    pub(crate) fn check_invariants(&self, held: usize) {
        self.check_meters();
        let peers = self.wg.check_invariants();
        assert!(self.stack.remembered_peers() <= peers / PEER_CHARGE);
        let parts = [
            ("queues", FIXED_CHARGE),
            ("peers", peers),
            ("flows", self.stack.check_invariants()),
            ("streams", self.streams_held()),
            ("operators", self.admin.held()),
            ("the machine", held),
        ];
        let sum: usize = parts.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(sum, self.resources.budget.used(), "what is charged is held: {parts:?}");
        let counters = &self.resources.counters;
        assert_eq!(
            counters.flows_opened - counters.flows_closed,
            self.stack.flow_count() as u64
        );
    }

    /// Time as this machine sees it: it never runs back.
    pub(crate) fn clamp(&mut self, now: Instant) -> Instant {
        self.latest = self.latest.max(now);
        self.latest
    }

    pub(crate) fn event(&mut self, event: E) {
        self.actions.push_back(Action::Event(event));
    }

    /// Opens the datagrams of a batch; UDP packets among them are given to `udp` with their peer.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        path: Path,
        batch: &[u8],
        stride: usize,
        mut udp: impl FnMut(&mut Self, PeerId, TunnelDatagram, &[u8]),
    ) {
        let mut coalescer = std::mem::replace(&mut self.coalescer, Coalescer::NONE);
        for datagram in batch.chunks(stride.max(1)) {
            self.resources.counters.datagrams_received += 1;
            let opened = self.wg.open(now, path, datagram, coalescer.room(), &mut self.resources);
            let Some((peer, len)) = opened else {
                coalescer.nothing_came();
                continue;
            };
            if coalescer.append(peer, len, |headers| self.stack.most_coalesced(headers)) {
                self.resources.counters.packets_coalesced += 1;
                continue;
            }
            self.take_in(now, coalescer.take(), &mut udp);
            if !coalescer.hold(peer, len) {
                self.take_in(now, coalescer.take(), &mut udp);
            }
        }
        self.take_in(now, coalescer.take(), &mut udp);
        self.coalescer = coalescer;
    }

    fn take_in(
        &mut self,
        now: Instant,
        packet: Option<(PeerId, &mut [u8])>,
        udp: &mut impl FnMut(&mut Self, PeerId, TunnelDatagram, &[u8]),
    ) {
        let Some((peer, packet)) = packet else { return };
        if let Some(datagram) = self.stack.ingress(now, peer, packet, &mut self.resources) {
            let contents = datagram.contents.clone();
            udp(self, peer, datagram, &packet[contents]);
        }
    }

    /// Queues a UDP payload for a public or local socket.
    pub(crate) fn send_datagram(&mut self, socket: UdpSocketRef, remote: Option<SocketAddr>, payload: &[u8]) {
        let path = remote.map(|remote| Path { remote, local_ip: None });
        if self.datagrams.push(Destination { socket, path }, payload) {
            self.resources.counters.udp_from_tunnel += 1;
        } else {
            self.resources.counters.drop_udp_queue += 1;
        }
    }

    /// Queues a UDP payload into the tunnel.
    pub(crate) fn send_into_tunnel(&mut self, peer: PeerId, from: u16, to: (Ipv6Addr, u16), payload: &[u8]) {
        if self.stack.send_udp(peer, from, to, payload, &mut self.resources) {
            self.resources.counters.udp_to_tunnel += 1;
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.honoured = Some(now);
        self.wg.handle_timeout(now, &mut self.resources);
        self.stack.handle_timeout(now, &mut self.resources);
        self.meters_due(now);
    }

    /// The earliest of the node's deadlines and the machine's own.
    pub(crate) fn poll_timeout(&mut self, own: Option<(Instant, &'static str)>) -> Option<(Instant, &'static str)> {
        let candidates = [
            own,
            self.wg.poll_timeout().map(|at| (at, "wireguard timer")),
            self.stack.poll_timeout().map(|at| (at, "tcp timer")),
            self.stream_deadlines.next().map(|at| (at, "stream deadline")),
            self.meters.next_timeout().map(|at| (at, "rate limit")),
            self.linger_timeout().map(|at| (at, "end")),
        ];
        let (mut at, reason) = candidates.into_iter().flatten().min_by_key(|&(at, _)| at)?;
        if let Some(honoured) = self.honoured
            && at <= honoured
        {
            debug_assert!(false, "the deadline of a {reason} did not move after it was honoured");
            self.resources.counters.stuck_deadlines += 1;
            at = honoured + STUCK_PUSH;
        }
        Some((at, reason))
    }

    /// The next thing for the machine above to look at. Streams are dealt with on the way.
    pub(crate) fn poll_event(&mut self) -> Option<NodeEvent<X>> {
        if let Some(event) = self.wg.poll_event() {
            match event {
                WgEvent::Up(peer) => self.stack.resume(peer),
                WgEvent::Dropped(peer) => self.stack.lose_flows(peer, &mut self.resources),
                WgEvent::Down(_) | WgEvent::Called(_) | WgEvent::Moved(_) => {}
            }
            return Some(NodeEvent::Tunnel(event));
        }
        while let Some(flow) = self.stack.pop_touched() {
            match self.stack.view(flow).map(|view| view.owner) {
                Some(Owner::Stream(id)) => self.service(id),
                Some(owner @ (Owner::Nobody | Owner::Channel)) => {
                    return Some(NodeEvent::Flow(flow, owner));
                }
                Some(Owner::Gone) | None => {}
            }
        }
        self.ended.pop_front().map(NodeEvent::Ended)
    }

    /// Fills the next train: small control messages first, then datagrams for other sockets, then the tunnel's packets.
    pub(crate) fn poll_transmit(&mut self, now: Instant, batch: &mut TransmitBatch) -> bool {
        batch.clear();
        while let Some((path, len)) = self.wg.peek_control() {
            let destination = Destination {
                socket: UdpSocketRef::Tunnel,
                path: Some(path),
            };
            if !batch.fits(destination, len) || self.wg.poll_control(batch.reserve()).is_none() {
                break;
            }
            batch.commit(destination, len);
            self.resources.counters.datagrams_sent += 1;
        }
        if !batch.is_empty() {
            return true;
        }
        while let Some((destination, payload)) = self.datagrams.front() {
            if !batch.fits(destination, payload.len()) {
                break;
            }
            batch.reserve()[..payload.len()].copy_from_slice(payload);
            batch.commit(destination, payload.len());
            self.datagrams.pop();
        }
        if !batch.is_empty() {
            return true;
        }
        self.transmit_packets(now, batch);
        if batch.is_empty() && self.wg.peek_control().is_some() {
            return self.poll_transmit(now, batch);
        }
        !batch.is_empty()
    }

    fn transmit_packets(&mut self, now: Instant, batch: &mut TransmitBatch) {
        loop {
            let Self {
                wg, stack, resources, ..
            } = self;
            let mut to_call = Vec::new();
            let next = stack.peek_packet(now, |peer| wg.is_ready(peer), |peer| to_call.push(peer), resources);
            for peer in to_call {
                self.wg.call(now, peer, false);
            }
            let Some((peer, len)) = next else { break };
            let Some(path) = self.wg.path(peer) else {
                break;
            };
            let destination = Destination {
                socket: UdpSocketRef::Tunnel,
                path: Some(path),
            };
            if !batch.fits(destination, len + DATA_OVERHEAD) {
                if batch.is_empty() {
                    // Cannot be sent by this runtime's buffer at all: drop it rather than stand still.
                    self.stack.take_packet();
                    continue;
                }
                self.stack.rotate_peer();
                break;
            }
            match self.wg.seal(now, peer, self.stack.packet(), batch.reserve()) {
                Some(sealed) if sealed == len + DATA_OVERHEAD => {
                    batch.commit(destination, sealed);
                    self.stack.take_packet();
                    self.resources.counters.packets_sealed += 1;
                    self.resources.counters.datagrams_sent += 1;
                }
                // The session ended just now, or the room behind the train is too small for the sealer's liking.
                _ if batch.is_empty() => self.stack.take_packet(),
                _ => break,
            }
        }
    }
}
