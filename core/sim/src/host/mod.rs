//! One machine with the kernel around it: it is driven as a runtime drives it, by the rules of the core's docs.

mod actions;
mod pump;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::{
    ByteStream, DialError, ListenerId, Machine, StreamId, Target, TransmitBatch, Transport, UdpId, UdpSocketRef,
};

use crate::ledger::Ledger;
use crate::random::Random;
use crate::socket::Socket;
use crate::trace::Trace;
use crate::udp::UdpLedger;

/// What the kernel and the targets of a host do. Shares are out of a million.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// What targets that are dialled do.
    pub targets: TargetScript,
    /// How long a dial takes at most.
    pub dial_delay: Duration,
    /// Every dial fails with this.
    pub dial_error: Option<DialError>,
    /// How many dials fail for another reason.
    pub dial_fails: u32,
    /// Ports that cannot be opened.
    pub busy_ports: BTreeSet<u16>,
    /// How many sockets cannot be opened although their port is free.
    pub listen_fails: u32,
    /// What the relay's name resolves to.
    pub addresses: Vec<SocketAddr>,
    /// How long a lookup takes at most.
    pub resolve_delay: Duration,
    /// How many lookups find nothing.
    pub resolve_fails: u32,
    /// UDP targets send back what they get.
    pub udp_echo: bool,
}

/// What a target does with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetScript {
    /// Sends back what it gets, and a FIN for a FIN.
    Echo,
    /// Keeps what it gets.
    Keep,
    /// Sends modelled bytes, as many as this at most, and a FIN for a FIN.
    Model {
        /// At most this many beyond the opening.
        most: u64,
    },
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            targets: TargetScript::Echo,
            dial_delay: Duration::ZERO,
            dial_error: None,
            dial_fails: 0,
            busy_ports: BTreeSet::new(),
            listen_fails: 0,
            addresses: Vec::new(),
            resolve_delay: Duration::ZERO,
            resolve_fails: 0,
            udp_echo: false,
        }
    }
}

/// See the module docs.
pub struct Host<M: Machine> {
    /// The machine.
    pub machine: M,
    /// The address of its tunnel socket, as its own host sees it.
    pub addr: SocketAddr,
    /// Its TCP sockets, those that are over among them until [`Host::forget_ended`].
    pub sockets: BTreeMap<StreamId, Socket>,
    /// Its open public sockets.
    pub listeners: BTreeMap<ListenerId, (SocketAddr, Transport)>,
    /// Its open local UDP sockets, and whereto they are connected.
    pub udp: BTreeMap<UdpId, Target>,
    /// What it told its program.
    pub events: Vec<M::Event>,
    /// UDP payloads it sent that are not of the model.
    pub datagrams: Vec<(UdpSocketRef, Option<SocketAddr>, Vec<u8>)>,
    /// How often it asked for an address.
    pub resolves: usize,
    /// What it dialled.
    pub dials: Vec<(StreamId, Target)>,
    /// What its kernel does.
    pub behaviour: Behaviour,
    /// The process exists. One that does not takes nothing and does nothing.
    pub on: bool,
    /// The longest datagram it sent.
    pub longest_datagram: usize,
    pub(crate) suspended_until: Option<Instant>,
    pub(crate) heard: BTreeSet<SocketAddr>,
    /// Local UDP sockets that are not open yet.
    dialling_udp: BTreeSet<UdpId>,
    work: BTreeSet<StreamId>,
    pending: BTreeMap<(Instant, u64), Pending>,
    number: u64,
    honoured: Option<Instant>,
    /// When it last did something, and how much since the clock moved.
    striven: (Option<Instant>, u32),
    batch: TransmitBatch,
}

/// What surrounds a host while it has its turn.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Instant,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) udp: &'a mut UdpLedger,
    pub(crate) random: &'a mut Random,
    pub(crate) trace: &'a mut Trace,
    /// Datagrams that leave the tunnel socket.
    pub(crate) out: &'a mut Vec<(SocketAddr, Vec<u8>)>,
}

/// What the kernel will tell the machine later.
#[derive(Debug)]
enum Pending {
    Dialled(StreamId),
    DialFailed(StreamId, DialError),
    Resolved(String, Vec<SocketAddr>),
    UdpDialled(UdpId, Target),
    /// A paced socket goes on.
    Resume(StreamId),
}

/// Datagrams to a train.
const TRAIN: usize = 32;

impl<M: Machine> Host<M> {
    pub(crate) fn new(machine: M, addr: SocketAddr, behaviour: Behaviour) -> Self {
        Self {
            machine,
            addr,
            sockets: BTreeMap::new(),
            listeners: BTreeMap::new(),
            udp: BTreeMap::new(),
            events: Vec::new(),
            datagrams: Vec::new(),
            resolves: 0,
            dials: Vec::new(),
            behaviour,
            on: true,
            longest_datagram: 0,
            suspended_until: None,
            heard: BTreeSet::new(),
            dialling_udp: BTreeSet::new(),
            work: BTreeSet::new(),
            pending: BTreeMap::new(),
            number: 0,
            honoured: None,
            striven: (None, 0),
            batch: TransmitBatch::new(TRAIN, 65_000),
        }
    }

    /// The listener on a port.
    #[must_use]
    pub fn listener(&self, port: u16, transport: Transport) -> Option<ListenerId> {
        let mut all = self.listeners.iter();
        all.find(|(_, (addr, kind))| addr.port() == port && *kind == transport)
            .map(|(&id, _)| id)
    }

    /// A socket, to change its script.
    ///
    /// # Panics
    /// If the machine was never given it, or it was forgotten.
    pub fn socket(&mut self, id: StreamId) -> &mut Socket {
        self.work.insert(id);
        self.sockets.get_mut(&id).expect("a socket that the machine was given")
    }

    /// Adds a socket that the machine has accepted.
    pub fn insert(&mut self, id: StreamId, socket: Socket) {
        let before = self.sockets.insert(id, socket);
        assert!(before.is_none(), "the machine gave {id:?} out twice");
        self.work.insert(id);
    }

    /// Forgets sockets that are over and events told so far.
    pub fn forget_ended(&mut self) {
        self.sockets.retain(|_, socket| !socket.is_over());
        self.events.clear();
        self.dials.clear();
    }

    /// Whether it neither runs nor takes datagrams at `now`.
    #[must_use]
    pub fn is_away(&self, now: Instant) -> bool {
        !self.on || self.suspended_until.is_some_and(|until| now < until)
    }

    /// A socket fails: the program or the network on its far side is gone.
    pub(crate) fn abort(&mut self, now: Instant, id: StreamId, ledger: &mut Ledger) {
        let Some(socket) = self.sockets.get_mut(&id).filter(|socket| !socket.is_over()) else {
            return;
        };
        if let Some(side) = socket.side {
            ledger.broke(side);
        }
        // Its end comes as an action.
        if let Some(mut stream) = self.machine.stream(now, id) {
            stream.abort();
        }
    }

    /// When something is due here.
    pub(crate) fn next_due(&mut self) -> Option<Instant> {
        if !self.on {
            return None;
        }
        if let Some(until) = self.suspended_until {
            return Some(until);
        }
        let machine = self.machine.poll_timeout().map(|(at, _)| at);
        let kernel = self.pending.first_key_value().map(|(&(at, _), _)| at);
        machine.into_iter().chain(kernel).min()
    }

    /// The process ends: every socket is reset from outside, and the machine hears of nothing any more.
    pub(crate) fn kill(&mut self, ledger: &mut Ledger) {
        for socket in self.sockets.values_mut().filter(|socket| !socket.is_over()) {
            socket.reset = true;
            if let Some(side) = socket.side {
                ledger.broke(side);
            }
        }
    }

    fn later(&mut self, at: Instant, what: Pending) {
        self.number += 1;
        self.pending.insert((at, self.number), what);
    }
}
