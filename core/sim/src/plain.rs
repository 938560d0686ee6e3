//! A plain WireGuard peer: boringtun and smoltcp as they are, with none of the core's code, and a service that sends back
//! what it gets.

use std::collections::VecDeque;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use mock_instant::MockClock;
use portal_core::identity::{PresharedKey, PublicKey, SecretKey};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv6Packet, Ipv6Repr, UdpPacket, UdpRepr};

use crate::netem::Netem;
use crate::world::Packet;

/// See the module docs.
pub struct PlainHost {
    /// The address of its WireGuard socket.
    pub addr: SocketAddr,
    /// It runs. One that does not takes nothing and does nothing.
    pub on: bool,
    /// The connections that its services took, those that have ended among them.
    pub connections: Vec<Connection>,
    /// UDP payloads that it got and sent back, with their ports.
    pub datagrams: Vec<(u16, Vec<u8>)>,
    /// How many handshakes it began or answered.
    pub handshakes: u64,
    pub(crate) relay: SocketAddr,
    pub(crate) up: Netem<Packet>,
    pub(crate) down: Netem<Packet>,
    secret: SecretKey,
    relay_key: PublicKey,
    shared: Option<PresharedKey>,
    ports: Vec<u16>,
    epoch: Instant,
    tunn: Tunn,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    out: Vec<Vec<u8>>,
    tick: Instant,
    calls: bool,
}

/// A TCP connection to one of its services.
#[derive(Debug)]
pub struct Connection {
    /// The service's port.
    pub port: u16,
    /// What came.
    pub received: Vec<u8>,
    /// Nothing more will.
    pub is_over: bool,
    handle: SocketHandle,
    to_send: VecDeque<u8>,
    opened: bool,
}

/// The inner MTU that `portal wg-conf` writes.
const MTU: usize = 1280;
/// What a socket buffers each way.
const BUFFER: usize = 64 * 1024;
const KEEPALIVE_S: u16 = 25;
/// How often boringtun's timers are looked at.
const TICK: Duration = Duration::from_millis(250);

impl PlainHost {
    pub(crate) fn new(
        epoch: Instant,
        secret: SecretKey,
        shared: Option<PresharedKey>,
        addr: SocketAddr,
        relay: (SocketAddr, PublicKey),
        ports: &[u16],
        links: [Netem<Packet>; 2],
    ) -> Self {
        let [up, down] = links;
        let mut wire = Wire::default();
        let (tunn, interface) = fresh(&secret, shared.as_ref(), &relay.1, &mut wire);
        let mut host = Self {
            addr,
            on: true,
            connections: Vec::new(),
            datagrams: Vec::new(),
            handshakes: 0,
            relay: relay.0,
            up,
            down,
            secret,
            relay_key: relay.1,
            shared,
            ports: ports.to_vec(),
            epoch,
            tunn,
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            out: Vec::new(),
            tick: epoch,
            calls: true,
        };
        host.listen();
        host
    }

    /// Its address inside the tunnel.
    #[must_use]
    pub fn overlay(&self) -> Ipv6Addr {
        self.secret.public_key().overlay_address()
    }

    /// It forgets its sessions and connections, and calls the relay again: a reboot. As with
    /// [`World::restart_agent`](crate::World::restart_agent) its timestamps count from the world's beginning.
    pub fn restart(&mut self) {
        let (shared, relay) = (self.shared.as_ref(), &self.relay_key);
        (self.tunn, self.interface) = fresh(&self.secret, shared, relay, &mut self.wire);
        self.sockets = SocketSet::new(Vec::new());
        for connection in &mut self.connections {
            connection.is_over = true;
        }
        self.calls = true;
        self.listen();
    }

    /// It will not begin a handshake at its start by itself, as one that has no endpoint of the relay's does not.
    pub fn waits_to_be_called(&mut self) {
        self.calls = false;
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.on.then_some(self.tick)
    }

    /// Takes a datagram off the wire.
    pub(crate) fn take(&mut self, now: Instant, datagram: &[u8]) {
        if !self.on {
            return;
        }
        self.lend_clock(now);
        let mut buffer = vec![0; datagram.len().max(148) + 32];
        let mut input = datagram;
        loop {
            match self.tunn.decapsulate(Some(self.relay.ip()), input, &mut buffer) {
                TunnResult::WriteToNetwork(reply) => {
                    self.handshakes += u64::from(matches!(reply[0], 1 | 2));
                    self.out.push(reply.to_vec());
                }
                TunnResult::WriteToTunnelV6(packet, source) if source == self.relay_key.overlay_address() => {
                    let packet = packet.to_vec();
                    self.packet(packet);
                    return;
                }
                _ => return,
            }
            // Packets may have waited for the session.
            input = &[];
        }
    }

    /// Does all there is to do at this instant, and gives the datagrams to send.
    pub(crate) fn turn(&mut self, now: Instant) -> Vec<Vec<u8>> {
        if !self.on {
            return Vec::new();
        }
        self.lend_clock(now);
        let mut buffer = [0; 2048];
        if now >= self.tick {
            self.tick = now + TICK;
            if let TunnResult::WriteToNetwork(message) = self.tunn.update_timers(&mut buffer) {
                self.handshakes += u64::from(message[0] == 1);
                self.out.push(message.to_vec());
            }
        }
        if std::mem::take(&mut self.calls)
            && let TunnResult::WriteToNetwork(message) = self.tunn.format_handshake_initiation(&mut buffer, false)
        {
            self.handshakes += 1;
            self.out.push(message.to_vec());
        }
        let micros = now.duration_since(self.epoch).as_micros();
        let at = smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX));
        loop {
            self.interface.poll(at, &mut self.wire, &mut self.sockets);
            let served = self.serve();
            let idle = self.wire.outgoing.is_empty();
            for packet in self.wire.outgoing.drain(..) {
                if let TunnResult::WriteToNetwork(sealed) = self.tunn.encapsulate(&packet, &mut buffer) {
                    self.out.push(sealed.to_vec());
                }
            }
            if idle && !served {
                return std::mem::take(&mut self.out);
            }
        }
    }

    fn lend_clock(&self, now: Instant) {
        MockClock::set_time(Duration::from_secs(1) + now.duration_since(self.epoch));
    }

    fn listen(&mut self) {
        for port in self.ports.clone() {
            self.listen_on(port);
        }
    }

    fn listen_on(&mut self, port: u16) {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(port).expect("a new socket can listen");
        let handle = self.sockets.add(socket);
        self.connections.push(Connection {
            port,
            received: Vec::new(),
            is_over: false,
            handle,
            to_send: VecDeque::new(),
            opened: false,
        });
    }

    /// Moves bytes of the services. Returns whether there was anything to move.
    fn serve(&mut self) -> bool {
        let mut moved = false;
        let mut taken = Vec::new();
        for connection in self.connections.iter_mut().filter(|connection| !connection.is_over) {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            if !connection.opened && socket.state() != tcp::State::Listen {
                connection.opened = true;
                taken.push(connection.port);
            }
            while socket.can_recv() {
                moved = true;
                let read = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap_or_default();
                connection.to_send.extend(&read);
                connection.received.extend(read);
            }
            while socket.can_send() && !connection.to_send.is_empty() {
                moved = true;
                let (front, _) = connection.to_send.as_slices();
                let sent = socket.send_slice(front).unwrap_or(0);
                connection.to_send.drain(..sent);
            }
            if socket.state() == tcp::State::CloseWait && connection.to_send.is_empty() {
                moved = true;
                socket.close();
            }
            if connection.opened && socket.state() == tcp::State::Closed {
                connection.is_over = true;
                self.sockets.remove(connection.handle);
            }
        }
        for port in taken {
            moved = true;
            self.listen_on(port);
        }
        moved
    }

    /// Takes a packet out of the tunnel: UDP is answered here, the rest is smoltcp's.
    fn packet(&mut self, mut packet: Vec<u8>) {
        let ip = Ipv6Packet::new_checked(&packet[..]).expect("a well-formed packet from the relay");
        if ip.next_header() != IpProtocol::Udp {
            let whole = ip.total_len();
            packet.truncate(whole);
            self.wire.incoming.push_back(packet);
            return;
        }
        let (source, destination) = (ip.src_addr(), ip.dst_addr());
        let udp = UdpPacket::new_checked(ip.payload()).expect("a well-formed datagram from the relay");
        assert!(udp.verify_checksum(&IpAddress::Ipv6(source), &IpAddress::Ipv6(destination)));
        let ports = UdpRepr {
            src_port: udp.dst_port(),
            dst_port: udp.src_port(),
        };
        self.datagrams.push((udp.dst_port(), udp.payload().to_vec()));
        let answer = [b"echo ", udp.payload()].concat();
        let repr = Ipv6Repr {
            src_addr: destination,
            dst_addr: source,
            next_header: IpProtocol::Udp,
            payload_len: 8 + answer.len(),
            hop_limit: 64,
        };
        let mut reply = vec![0; 48 + answer.len()];
        let mut ip = Ipv6Packet::new_unchecked(&mut reply[..]);
        repr.emit(&mut ip);
        ports.emit(
            &mut UdpPacket::new_unchecked(ip.payload_mut()),
            &IpAddress::Ipv6(destination),
            &IpAddress::Ipv6(source),
            answer.len(),
            |room| room.copy_from_slice(&answer),
            &ChecksumCapabilities::default(),
        );
        self.wire.outgoing.push_back(reply);
    }
}

/// A tunnel and an interface that know nothing yet, made at the world's beginning.
fn fresh(secret: &SecretKey, shared: Option<&PresharedKey>, relay: &PublicKey, wire: &mut Wire) -> (Tunn, Interface) {
    MockClock::set_time(Duration::from_secs(1));
    let tunn = Tunn::new(
        x25519::StaticSecret::from(*secret.as_bytes()),
        x25519::PublicKey::from(*relay.as_bytes()),
        shared.map(|shared| *shared.as_bytes()),
        Some(KEEPALIVE_S),
        7,
        None,
    );
    *wire = Wire::default();
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = u64::from(secret.as_bytes()[1]);
    let mut interface = Interface::new(config, wire, smoltcp::time::Instant::ZERO);
    interface.update_ip_addrs(|addresses| {
        let overlay = IpAddress::Ipv6(secret.public_key().overlay_address());
        addresses.push(IpCidr::new(overlay, 8)).expect("room for an address");
    });
    (tunn, interface)
}

/// Packets between smoltcp and the tunnel.
#[derive(Debug, Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}
