//! What a relay of ours never does: one made of the tunnel's layers alone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Agent, AgentConfig, Service};
use crate::batch::TransmitBatch;
use crate::budget::BufferClass;
use crate::control::Kind;
use crate::identity::SecretKey;
use crate::machine::{Action, Machine, Path, SocketEvent, StreamId, Target};
use crate::node::{DEFAULT_MTU, Limits, Node};
use crate::stack::{FlowId, Owner};
use crate::timers::tests::some_instant;
use crate::uri::RelayUri;
use crate::wg::PeerId;

/// An agent with a service, and a relay that it trusts and should not.
struct Ends {
    now: Instant,
    agent: Agent,
    relay: Node<(), ()>,
    /// The agent, as the relay knows it.
    peer: PeerId,
    /// Whom the agent wanted to reach, and over what.
    dialled: usize,
    udp_dialled: usize,
}

const RELAY: [u8; 32] = [1; 32];
const AGENT: [u8; 32] = [2; 32];
const LEASED: u16 = 1024;
const RELAY_ADDR: &str = "203.0.113.1:51820";
const AGENT_ADDR: &str = "192.0.2.7:40000";

impl Ends {
    fn new() -> Self {
        let now = some_instant();
        let (relay, agent) = (SecretKey::from_bytes(RELAY), SecretKey::from_bytes(AGENT));
        let uri = RelayUri {
            key: relay.public_key(),
            host: "203.0.113.1".into(),
            port: 51820,
        };
        let mut config = AgentConfig::new(agent.clone(), AGENT, uri);
        config.services = vec![Service::new("web", Kind::Tcp, Target::Handler("web".into()))];
        let mut node = Node::new(now, &relay, DEFAULT_MTU, &Limits::default(), true, RELAY);
        let peer = node.wg.add_peer(now, agent.public_key(), None, &mut node.resources);
        Self {
            now,
            agent: Agent::new(now, config),
            relay: node,
            peer: peer.expect("room for a peer"),
            dialled: 0,
            udp_dialled: 0,
        }
    }

    /// Time passes, a millisecond at a time.
    fn run(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.now += Duration::from_millis(1);
            while let Some(action) = self.agent.poll_action() {
                match action {
                    Action::Resolve { host, .. } => {
                        let addrs = [RELAY_ADDR.parse().expect("an address")];
                        let resolved = SocketEvent::Resolved {
                            host: &host,
                            addrs: &addrs,
                        };
                        self.agent.handle_socket(self.now, resolved);
                    }
                    Action::Dial { .. } => self.dialled += 1,
                    Action::DialUdp { .. } => self.udp_dialled += 1,
                    _ => {}
                }
            }
            let mut batch = TransmitBatch::new(16, 2000);
            while self.agent.poll_transmit(self.now, &mut batch) {
                let stride = batch.segment_size().unwrap_or(batch.contents().len());
                self.relay
                    .handle_datagram(self.now, path(AGENT_ADDR), batch.contents(), stride, |_, _, _, _| {});
            }
            while self.relay.poll_transmit(self.now, &mut batch) {
                let stride = batch.segment_size().unwrap_or(batch.contents().len());
                let mut bytes = batch.contents().to_vec();
                self.agent
                    .handle_datagram(self.now, path(RELAY_ADDR), &mut bytes, stride);
            }
            while self.relay.poll_event().is_some() {}
            if self.agent.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                self.agent.handle_timeout(self.now);
            }
            self.relay.handle_timeout(self.now);
            self.agent.check_invariants();
        }
    }

    /// The agent has a lease for its service, whose flows come to this port.
    fn lease(&mut self, port: u16) {
        assert!(self.agent.leased("web", 1, port, "public"));
    }

    /// The relay opens a flow to a port of the agent.
    fn open(&mut self, port: u16) -> FlowId {
        let remote = SecretKey::from_bytes(AGENT).public_key().overlay_address();
        let owner = Owner::Stream(StreamId::from_parts(0, 0));
        let Node { stack, resources, .. } = &mut self.relay;
        let opened = stack.connect(
            self.now,
            self.peer,
            remote,
            port,
            owner,
            BufferClass::SMALLEST,
            resources,
        );
        opened.expect("room for a flow")
    }

    fn is_open(&self, flow: FlowId) -> bool {
        let view = self.relay.stack.view(flow);
        view.is_some_and(|view| !view.broken && !view.remote_fin)
    }
}

fn path(addr: &str) -> Path {
    Path {
        remote: addr.parse::<SocketAddr>().expect("an address"),
        local_ip: None,
    }
}

#[test]
fn a_relay_reaches_nothing_by_flows_for_leases_that_the_agent_does_not_have() {
    let mut ends = Ends::new();
    ends.run(100);
    assert!(ends.relay.wg.is_ready(ends.peer), "the agent has called");
    ends.lease(LEASED);
    let used = ends.agent.node.resources.budget.used();
    let mut flows = Vec::new();
    for port in (1..2000).filter(|&port| port != LEASED) {
        flows.push(ends.open(port));
        if flows.len().is_multiple_of(100) {
            ends.run(5);
        }
    }
    ends.run(100);
    let open = flows.iter().filter(|&&flow| ends.is_open(flow)).count();
    assert_eq!((open, ends.dialled), (0, 0), "all are reset, and nobody is called");
    assert_eq!(ends.agent.connection_count(), 0);
    assert_eq!(ends.agent.node.resources.budget.used(), used);

    let Node { stack, resources, .. } = &mut ends.relay;
    let to = SecretKey::from_bytes(AGENT).public_key().overlay_address();
    for port in 1..200 {
        stack.send_udp(ends.peer, 9, (to, port), b"anybody?", resources);
    }
    ends.run(100);
    assert_eq!(ends.udp_dialled, 0);
}

/// A flow for the service that it does have begins with a header that the agent must understand.
#[test]
fn a_relay_that_does_not_say_who_visits_gets_no_connection() {
    let mut ends = Ends::new();
    ends.run(100);
    ends.lease(LEASED);
    let (rubbish, half) = (ends.open(LEASED), ends.open(LEASED));
    ends.run(50);
    ends.relay.stack.send(rubbish, b"GET / HTTP/1.1\r\n\r\n");
    ends.relay.stack.send(half, &b"\r\n\r\n\0\r\nQUIT\n"[..8]);
    ends.run(50);
    assert!(!ends.is_open(rubbish) && ends.is_open(half));
    ends.run(10_100);
    assert!(!ends.is_open(half), "half a header is not waited for");
    assert_eq!((ends.dialled, ends.agent.connection_count()), (0, 0));
    assert_eq!(ends.agent.node.resources.counters.drop_proxy_header, 2);
}
