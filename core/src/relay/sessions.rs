//! Control channels with agents: greeting, leases, liveness, and take-over by the same key.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::access::Refusal;
use super::leases::LeaseId;
use super::{Relay, RelayEvent};
use crate::control::{Channel, ChannelError, RefusalCode, ToAgent, ToRelay, VERSION};
use crate::identity::PublicKey;
use crate::stack::{FlowId, Owner};
use crate::status::shortened;
use crate::timers::TimerQueue;
use crate::wg::PeerId;

/// All control channels, greeted or not.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) channels: BTreeMap<FlowId, Conversation>,
    pub(super) greeted: BTreeMap<PeerId, FlowId>,
    /// Which process of the agent was greeted last, for as long as its peer is known: the flows are that one's.
    processes: BTreeMap<PeerId, Process>,
    deadlines: TimerQueue<FlowId>,
}

/// One channel.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) peer: PeerId,
    channel: Channel,
    pub(super) session: Option<Session>,
}

/// What begins with an accepted hello.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) key: PublicKey,
    /// What it calls itself, cut short: part of what its peer is charged.
    pub(super) agent: String,
    pub(super) since: Instant,
    pub(super) leases: BTreeSet<LeaseId>,
}

/// A process of an agent.
#[derive(Clone, Copy, Debug)]
struct Process {
    instance: u64,
    /// Where to look for the next inner port. It goes on over sessions: a flow that is on its way to the service of an
    /// earlier one must not arrive at another service.
    next_service_port: u16,
}

/// How long leases live while nothing is heard on their channel.
const LEASE_TTL: Duration = Duration::from_secs(75);
/// How long a channel may exist before its hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Channels that one peer may have open: the one in use, and its successor after the path broke.
const CHANNELS_PER_PEER: usize = 4;
/// Inner ports of services start here; the control channel is below.
const FIRST_SERVICE_PORT: u16 = 1024;

impl Sessions {
    pub(super) fn new() -> Self {
        Self {
            channels: BTreeMap::new(),
            greeted: BTreeMap::new(),
            processes: BTreeMap::new(),
            deadlines: TimerQueue::new(),
        }
    }

    /// How many agents are served.
    pub(super) fn len(&self) -> usize {
        self.greeted.len()
    }

    pub(super) fn has(&self, peer: PeerId) -> bool {
        self.greeted.contains_key(&peer)
    }

    pub(super) fn peers(&self) -> Vec<PeerId> {
        self.greeted.keys().copied().collect()
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// What the channels are charged in all.
    pub(super) fn held(&self) -> usize {
        self.channels
            .values()
            .map(|conversation| conversation.channel.held())
            .sum()
    }

    /// The sessions, each with its peer.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &Session)> {
        self.greeted.iter().filter_map(|(&peer, flow)| {
            let session = self.channels.get(flow)?.session.as_ref()?;
            Some((peer, session))
        })
    }

    pub(super) fn session_mut(&mut self, peer: PeerId) -> Option<&mut Session> {
        let flow = self.greeted.get(&peer)?;
        self.channels.get_mut(flow)?.session.as_mut()
    }

    /// An inner port for a peer's next service, none of the `taken`.
    pub(super) fn service_port(&mut self, peer: PeerId, taken: &BTreeSet<u16>) -> Option<u16> {
        let process = self.processes.get_mut(&peer)?;
        let first = process.next_service_port;
        let mut ports = (first..=u16::MAX).chain(FIRST_SERVICE_PORT..first);
        let port = ports.find(|port| !taken.contains(port))?;
        process.next_service_port = port.checked_add(1).unwrap_or(FIRST_SERVICE_PORT);
        Some(port)
    }
}

impl Relay {
    /// A peer has opened a connection to the control port.
    pub(super) fn channel_opened(&mut self, now: Instant, flow: FlowId) {
        let Some(view) = self
            .node
            .stack
            .view(flow)
            .filter(|view| view.inbound && view.established)
        else {
            return;
        };
        let open = self
            .sessions
            .channels
            .values()
            .filter(|conversation| conversation.peer == view.peer)
            .count();
        if open >= CHANNELS_PER_PEER {
            self.node.resources.counters.refused_channels += 1;
            self.node.stack.release(flow, true, &mut self.node.resources);
            return;
        }
        self.node.stack.set_owner(flow, Owner::Channel);
        let conversation = Conversation {
            peer: view.peer,
            channel: Channel::new(flow),
            session: None,
        };
        self.sessions.channels.insert(flow, conversation);
        self.sessions.deadlines.set(flow, now + HELLO_DEADLINE);
        self.channel_touched(now, flow);
    }

    /// Something happened to a control channel.
    pub(super) fn channel_touched(&mut self, now: Instant, flow: FlowId) {
        loop {
            let Some(conversation) = self.sessions.channels.get_mut(&flow) else {
                return;
            };
            let (stack, budget) = (&mut self.node.stack, &mut self.node.resources.budget);
            let received = conversation.channel.flush(stack, budget);
            match received.and_then(|()| conversation.channel.receive::<ToRelay>(stack, budget)) {
                Ok(Some(message)) => self.message(now, flow, message),
                Ok(None) => break,
                Err(error) => {
                    self.node.resources.counters.drop_control_frame += 1;
                    self.say_error(flow, error);
                    self.end_channel(flow, false, "it sent what is no message");
                    return;
                }
            }
        }
        match self.node.stack.view(flow) {
            Some(view) if view.broken => self.end_channel(flow, true, "its connection broke"),
            Some(view) if view.remote_fin => self.end_channel(flow, false, "it closed the channel"),
            Some(view) if self.is_greeted(flow) => self.sessions.deadlines.set(flow, view.heard + LEASE_TTL),
            _ => {}
        }
    }

    pub(super) fn sessions_timeout(&mut self, now: Instant) {
        while let Some(flow) = self.sessions.deadlines.pop_due(now) {
            self.end_channel(flow, true, "it has been silent for too long");
        }
    }

    /// Tells every agent that this relay ends.
    pub(super) fn say_goodbye(&mut self) {
        let flows: Vec<_> = self.sessions.channels.keys().copied().collect();
        for flow in flows {
            self.send(
                flow,
                &ToAgent::Goaway {
                    reason: "the relay is shutting down".into(),
                    code: None,
                },
            );
            self.end_channel(flow, false, "the relay is shutting down");
        }
    }

    /// Ends the session of a peer that is refused from now on.
    pub(super) fn end_session_of(&mut self, peer: PeerId, refusal: &Refusal, reason: &'static str) {
        let Some(&flow) = self.sessions.greeted.get(&peer) else {
            return;
        };
        self.send(
            flow,
            &ToAgent::Goaway {
                reason: refusal.message.clone(),
                code: Some(refusal.code.clone()),
            },
        );
        self.end_channel(flow, false, reason);
    }

    /// A peer is no longer known at all.
    pub(super) fn forget_peer(&mut self, peer: PeerId) {
        let of_peer = self
            .sessions
            .channels
            .iter()
            .filter(|(_, conversation)| conversation.peer == peer);
        let flows: Vec<_> = of_peer.map(|(&flow, _)| flow).collect();
        for flow in flows {
            self.end_channel(flow, true, "its tunnel was given up");
        }
        self.sessions.processes.remove(&peer);
    }

    fn message(&mut self, now: Instant, flow: FlowId, message: ToRelay) {
        match message {
            ToRelay::Hello {
                version,
                agent,
                instance,
                ..
            } => self.hello(now, flow, version, agent, instance),
            ToRelay::Goaway { .. } => self.end_channel(flow, false, "it said goodbye"),
            ToRelay::Unknown => {
                let message = "this relay does not know that message".to_owned();
                self.send(
                    flow,
                    &ToAgent::Error {
                        code: RefusalCode::Unsupported,
                        message,
                    },
                );
            }
            _ if !self.is_greeted(flow) => {
                self.node.resources.counters.drop_control_frame += 1;
                self.end_channel(flow, true, "it did not say hello first");
            }
            ToRelay::Register { id, kind, name, port } => {
                if let Err(refusal) = self.register(flow, &id, kind, name.as_deref(), port)
                    && let Some(key) = self.key_of(flow)
                {
                    self.refuse(flow, key, &id, &refusal);
                }
            }
            ToRelay::Unregister { lease } => {
                let found = self
                    .leases
                    .iter()
                    .find(|(id, _)| id.number() == lease)
                    .map(|(id, _)| id);
                if let Some(id) = found
                    && let Some(conversation) = self.sessions.channels.get_mut(&flow)
                    && let Some(session) = &mut conversation.session
                    && session.leases.remove(&id)
                {
                    self.drop_lease(id);
                }
            }
        }
    }

    fn is_greeted(&self, flow: FlowId) -> bool {
        let conversation = self.sessions.channels.get(&flow);
        conversation.is_some_and(|conversation| conversation.session.is_some())
    }

    fn hello(&mut self, now: Instant, flow: FlowId, version: u32, agent: String, instance: u64) {
        let Some(conversation) = self.sessions.channels.get(&flow) else {
            return;
        };
        let peer = conversation.peer;
        let Some(key) = self.node.wg.key(peer) else {
            return;
        };
        let remote = self.node.wg.path(peer).map(|path| path.remote);
        let refusal = if version == VERSION {
            self.refuses_plain(peer, &key)
                .or_else(|| self.config.access.admits(&key).err())
        } else {
            let message =
                format!("this relay speaks version {VERSION}, the agent version {version}: update the older one");
            Some(Refusal::new(RefusalCode::Version, message))
        };
        if let Some(refusal) = refusal {
            if refusal.code == RefusalCode::NotGranted {
                self.node.event(RelayEvent::NotGranted { key, remote });
            }
            self.send(
                flow,
                &ToAgent::Goaway {
                    reason: refusal.message,
                    code: Some(refusal.code),
                },
            );
            self.end_channel(flow, false, "it was refused");
            return;
        }
        if let Some(old) = self.sessions.greeted.get(&peer).copied().filter(|&old| old != flow) {
            self.end_channel(old, true, "it came back on a new channel");
        }
        let known = self.sessions.processes.get(&peer);
        if known.is_none_or(|process| process.instance != instance) {
            // Another process: it knows nothing of the flows of the one before.
            let process = Process {
                instance,
                next_service_port: FIRST_SERVICE_PORT,
            };
            self.sessions.processes.insert(peer, process);
            self.node
                .stack
                .break_flows_but(peer, Some(flow), &mut self.node.resources);
        }
        let Some(conversation) = self.sessions.channels.get_mut(&flow) else {
            return;
        };
        if conversation.session.is_none() {
            conversation.session = Some(Session {
                key,
                agent: shortened(agent.clone()),
                since: now,
                leases: BTreeSet::new(),
            });
        }
        self.sessions.greeted.insert(peer, flow);
        self.sessions.deadlines.set(flow, now + LEASE_TTL);
        self.node.wg.set_pinned(peer, true);
        self.send(
            flow,
            &ToAgent::Welcome {
                version: VERSION,
                relay: concat!("portal/", env!("CARGO_PKG_VERSION")).into(),
                domain: self.config.domain.clone(),
                caps: Vec::new(),
                ttl_s: LEASE_TTL.as_secs() as u32,
                instance: self.instance,
            },
        );
        if let Some(remote) = remote {
            self.node.event(RelayEvent::AgentUp { key, agent, remote });
            self.note_address(peer);
        }
    }

    /// Ends a channel, and with it the session and its leases if it had one.
    fn end_channel(&mut self, flow: FlowId, reset: bool, reason: &'static str) {
        let Some(mut conversation) = self.sessions.channels.remove(&flow) else {
            return;
        };
        // What does not fit any more is lost with the channel.
        let _ = conversation
            .channel
            .flush(&mut self.node.stack, &mut self.node.resources.budget);
        conversation.channel.close(&mut self.node.resources.budget);
        self.sessions.deadlines.clear(flow);
        self.node.stack.release(flow, reset, &mut self.node.resources);
        let Some(session) = conversation.session else {
            return;
        };
        for lease in session.leases {
            self.drop_lease(lease);
        }
        if self.sessions.greeted.get(&conversation.peer) == Some(&flow) {
            self.sessions.greeted.remove(&conversation.peer);
            self.node.wg.set_pinned(conversation.peer, false);
        }
        self.node.event(RelayEvent::AgentDown {
            key: session.key,
            reason,
        });
    }

    pub(super) fn send(&mut self, flow: FlowId, message: &ToAgent) {
        let Some(conversation) = self.sessions.channels.get_mut(&flow) else {
            return;
        };
        if conversation
            .channel
            .send(&mut self.node.stack, &mut self.node.resources.budget, message)
            .is_err()
        {
            self.end_channel(flow, true, "it does not read its control channel");
        }
    }

    fn say_error(&mut self, flow: FlowId, error: ChannelError) {
        self.send(
            flow,
            &ToAgent::Error {
                code: RefusalCode::Unsupported,
                message: error.to_string(),
            },
        );
    }

    fn key_of(&self, flow: FlowId) -> Option<PublicKey> {
        self.sessions
            .channels
            .get(&flow)?
            .session
            .as_ref()
            .map(|session| session.key)
    }
}
