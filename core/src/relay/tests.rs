//! What an agent of ours never does: a client made of the tunnel's layers alone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Binding, Relay, RelayConfig, RelayEvent};
use crate::batch::TransmitBatch;
use crate::budget::BufferClass;
use crate::control::{Channel, Kind, PORT, ToAgent, ToRelay, VERSION};
use crate::identity::SecretKey;
use crate::machine::{Action, Machine, Path};
use crate::node::{Limits, Node};
use crate::relay::{Access, Grant};
use crate::stack::{FlowId, Owner};
use crate::timers::tests::some_instant;
use crate::wg::PeerId;

/// A relay, and a peer of it that opens what connections it likes.
struct Ends {
    now: Instant,
    relay: Relay,
    client: Node<(), ()>,
    peer: PeerId,
    /// The relay's events.
    told: Vec<RelayEvent>,
}

const RELAY: [u8; 32] = [1; 32];
const CLIENT: [u8; 32] = [2; 32];

impl Ends {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    /// A relay that has these bindings from an earlier run.
    fn with(bindings: Vec<Binding>) -> Self {
        let now = some_instant();
        let mut config = RelayConfig::new(SecretKey::from_bytes(RELAY), RELAY, "relay.test".into());
        config.access = Access::Open;
        config.ports = Some(20_000..=20_009);
        config.bindings = bindings;
        let key = config.secret.public_key();
        let secret = SecretKey::from_bytes(CLIENT);
        let mut client = Node::new(now, &secret, config.mtu, &Limits::default(), false, CLIENT);
        let path = path("203.0.113.1:51820");
        let peer = client.wg.add_peer(now, key, Some(path), &mut client.resources);
        let peer = peer.expect("room for a peer");
        client.wg.call(now, peer, false);
        Self {
            now,
            relay: Relay::new(now, config),
            client,
            peer,
            told: Vec::new(),
        }
    }

    /// Time passes, a millisecond at a time.
    fn run(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.now += Duration::from_millis(1);
            let mut batch = TransmitBatch::new(16, 2000);
            while self.client.poll_transmit(self.now, &mut batch) {
                let stride = batch.segment_size().unwrap_or(batch.contents().len());
                let mut bytes = batch.contents().to_vec();
                self.relay
                    .handle_datagram(self.now, path("192.0.2.7:40000"), &mut bytes, stride);
            }
            while let Some(action) = self.relay.poll_action() {
                if let Action::Event(event) = action {
                    self.told.push(event);
                }
            }
            while self.relay.poll_transmit(self.now, &mut batch) {
                let stride = batch.segment_size().unwrap_or(batch.contents().len());
                self.client.handle_datagram(
                    self.now,
                    path("203.0.113.1:51820"),
                    batch.contents(),
                    stride,
                    |_, _, _, _| {},
                );
            }
            while self.client.poll_event().is_some() {}
            if self.relay.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                self.relay.handle_timeout(self.now);
            }
            self.client.handle_timeout(self.now);
            self.relay.check_invariants();
        }
    }

    fn open_channel(&mut self) -> FlowId {
        let remote = SecretKey::from_bytes(RELAY).public_key().overlay_address();
        let Node { stack, resources, .. } = &mut self.client;
        let opened = stack.connect(
            self.now,
            self.peer,
            remote,
            PORT,
            Owner::Channel,
            BufferClass::SMALLEST,
            resources,
        );
        opened.expect("room for a flow")
    }

    fn is_open(&self, flow: FlowId) -> bool {
        let view = self.client.stack.view(flow);
        view.is_some_and(|view| view.established && !view.broken && !view.remote_fin)
    }
}

fn path(addr: &str) -> Path {
    Path {
        remote: addr.parse::<SocketAddr>().expect("an address"),
        local_ip: None,
    }
}

#[test]
fn a_peer_has_four_control_channels_and_the_fifth_is_refused_by_name() {
    let mut ends = Ends::new();
    let flows: Vec<_> = (0..5).map(|_| ends.open_channel()).collect();
    ends.run(50);
    assert_eq!(ends.relay.counters().refused_channels, 1);
    assert_eq!(ends.relay.sessions.channels.len(), 4);
    let open: Vec<_> = flows.iter().map(|&flow| ends.is_open(flow)).collect();
    assert_eq!(open.iter().filter(|&&open| open).count(), 4, "{open:?}");

    // They say no hello, so they do not stay, and there is room again.
    ends.run(11_000);
    assert_eq!(ends.relay.sessions.channels.len(), 0);
    let later = ends.open_channel();
    ends.run(50);
    assert!(ends.is_open(later));
    assert_eq!(ends.relay.counters().refused_channels, 1);
}

#[test]
fn a_lease_that_is_revoked_while_its_port_opens_is_refused() {
    let mut ends = Ends::new();
    let mut channel = Channel::new(ends.open_channel());
    ends.run(50);
    let hello = ToRelay::Hello {
        version: VERSION,
        agent: "by hand".into(),
        caps: Vec::new(),
        instance: 1,
    };
    let register = ToRelay::Register {
        id: "db".into(),
        kind: Kind::Tcp,
        name: None,
        port: None,
    };
    for message in [hello, register] {
        let Node { stack, resources, .. } = &mut ends.client;
        channel.send(stack, &mut resources.budget, &message).unwrap();
    }
    // Nobody here opens the port.
    ends.run(50);
    assert_eq!(ends.relay.census().leases, 1);
    let mut grant = Grant::all(SecretKey::from_bytes(CLIENT).public_key());
    grant.kinds = vec![Kind::Udp];
    ends.relay.set_access(ends.now, Access::Granted(vec![grant]));
    ends.run(50);
    assert_eq!(ends.relay.census().leases, 0);
    let mut answers = Vec::new();
    let Node { stack, resources, .. } = &mut ends.client;
    while let Some(answer) = channel.receive::<ToAgent>(stack, &mut resources.budget).unwrap() {
        answers.push(answer);
    }
    assert!(
        matches!(&answers[..], [ToAgent::Welcome { .. }, ToAgent::Refused { id, .. }] if id == "db"),
        "{answers:?}"
    );
}

#[test]
fn what_is_kept_is_what_was_told_and_what_was_given() {
    let old = Binding::Name {
        name: "old".into(),
        key: SecretKey::from_bytes([9; 32]).public_key(),
    };
    let mut ends = Ends::with(vec![old.clone()]);
    assert_eq!(ends.relay.kept().recent, []);
    assert_eq!(ends.relay.kept().bindings, std::slice::from_ref(&old));
    let mut channel = Channel::new(ends.open_channel());
    ends.run(50);
    let hello = ToRelay::Hello {
        version: VERSION,
        agent: "by hand".into(),
        caps: Vec::new(),
        instance: 1,
    };
    let register = |id: &str, kind, port| ToRelay::Register {
        id: id.into(),
        kind,
        name: None,
        port,
    };
    let (any, asked) = (
        register("db", Kind::Tcp, None),
        register("dns", Kind::Udp, Some(20_003)),
    );
    for message in [hello, any, asked] {
        let Node { stack, resources, .. } = &mut ends.client;
        channel.send(stack, &mut resources.budget, &message).unwrap();
    }
    ends.run(50);
    let mut told = vec![old];
    let mut recent = Vec::new();
    for event in &ends.told {
        match event {
            RelayEvent::Bound(binding) => told.push(binding.clone()),
            RelayEvent::AgentAt { key, remote } => recent.push((*key, *remote)),
            _ => {}
        }
    }
    assert_eq!(told.len(), 3, "{told:?}");
    let mut kept = ends.relay.kept();
    kept.bindings.sort();
    told.sort();
    assert_eq!(kept.bindings, told);
    assert_eq!(kept.recent.len(), 1);
    assert_eq!(kept.recent.last(), recent.last());
}

/// What a channel of the client's costs the relay once it has said all of this, as far as it is let, and heard nothing.
fn bomb(ends: &mut Ends, bytes: &[u8]) -> FlowId {
    let flow = ends.open_channel();
    ends.run(50);
    let mut rest = bytes;
    for _ in 0..400 {
        let sent = ends.client.stack.send(flow, rest);
        rest = &rest[sent..];
        ends.run(5);
    }
    // As long as a greeting is waited for.
    ends.run(10_000);
    flow
}

fn frame(json: &[u8]) -> Vec<u8> {
    let len = u16::try_from(json.len()).expect("a frame's length");
    [&len.to_be_bytes(), json].concat()
}

#[test]
fn a_control_frame_bomb_costs_its_channel_and_nothing_else() {
    let mut ends = Ends::new();
    let before = ends.relay.node.resources.budget.used();
    let hello = frame(br#"{"type":"hello","version":1}"#);
    let deep = [b"[".repeat(8000), b"]".repeat(8000)].concat();
    let longest = frame(&[b"{\"type\":\"\"".to_vec(), vec![b' '; 16_000], b"}".to_vec()].concat());
    let bombs = [
        ("a length beyond the longest", [&hello[..], &[0xff; 40_000]].concat()),
        ("a frame that is no message", [&hello[..], &frame(&deep)].concat()),
        ("long frames without a greeting", longest.repeat(100)),
        (
            "questions whose answers are not read",
            [&hello[..], &frame(br#"{"type":"unheard of"}"#).repeat(100_000)].concat(),
        ),
    ];
    for (what, bytes) in bombs {
        let flow = bomb(&mut ends, &bytes);
        assert_eq!(ends.relay.sessions.channels.len(), 0, "{what}");
        ends.client.stack.release(flow, true, &mut ends.client.resources);
        ends.run(100);
        let left = ends.relay.node.resources.budget.used().saturating_sub(before);
        assert!(left < 64 * 1024, "{what} leaves {left} bytes");
        // The next one is served.
        let next = ends.open_channel();
        ends.run(50);
        assert!(ends.is_open(next), "after {what}");
        ends.client.stack.release(next, true, &mut ends.client.resources);
        ends.run(50);
    }
}
