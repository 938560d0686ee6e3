//! The way to the relay: its address, the tunnel, the control channel, and proof that they live.
//!
//! WireGuard's own timers would leave an agent unreachable for minutes after a relay restarts. So the agent proves the
//! path itself: when it has heard nothing on the control channel for a while it asks for a sign of life, and what is not
//! answered in time starts a handshake, then a new channel. The question is TCP's own (RFC 9293, section 3.8.4): a relay
//! that knows the channel answers it without waking it, and one that has forgotten it resets it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::liveness::Liveness;
use super::{Agent, AgentEvent};
use crate::budget::BufferClass;
use crate::control::{Channel, PORT, ToAgent, ToRelay, VERSION};
use crate::machine::{Action, Path};
use crate::stack::{FlowId, Owner};
use crate::status::shortened;
use crate::wg::WgEvent;

/// Where the agent stands with its relay.
#[derive(Debug)]
pub(super) struct Uplink {
    state: State,
    due: Instant,
    addrs: Vec<SocketAddr>,
    next_addr: usize,
    attempts: u32,
    /// Since when the relay has not been heard.
    silent_since: Instant,
    /// Channels that failed one after the other without a welcome.
    failures: u32,
    /// The relay fell silent on a channel: only a handshake tells whether it is still there.
    in_doubt: bool,
    relay_instance: Option<u64>,
    reported: u32,
    /// When services that were refused, and may be granted later, are asked for again.
    register_again: Option<Instant>,
    /// The relay has refused this agent, and why.
    refusal: Option<String>,
    /// The state in one word, and since when it is that.
    shown: (&'static str, Instant),
    /// Visitors are connected.
    at_work: bool,
}

#[derive(Debug)]
enum State {
    /// Waiting for the relay's address.
    Resolving,
    /// Handshakes go out until the tunnel is up.
    Calling,
    /// The control channel is being opened, or was and its hello is not answered.
    Greeting { channel: Channel, hello_sent: bool },
    /// Services are leased.
    Serving { channel: Channel, liveness: Liveness },
    /// The relay or the channel failed: tried again later.
    Waiting,
    /// The agent ends.
    Closed,
}

/// How long a name lookup may take before it is asked for again.
const RESOLVE_AGAIN: Duration = Duration::from_secs(15);
/// Calls go out this often at first, and then at growing intervals: in the first minutes so often that whoever waits for
/// a network to come back does not notice, and later up to the longest.
const CALL_FIRST: Duration = Duration::from_secs(1);
const CALL_EAGER: Duration = Duration::from_secs(2);
const CALL_LONGEST: Duration = Duration::from_secs(5);
/// How long it is the first minutes.
const EAGER_FOR: Duration = Duration::from_secs(120);
/// Calls after which the person is told, and the name is looked up again.
const CALLS_UNTIL_REPORT: u32 = 4;
/// How long the channel may take to open and be greeted.
const GREETING_DEADLINE: Duration = Duration::from_secs(5);
/// How long a refused agent waits before it asks again: a grant is all it takes.
const REFUSED_RETRY: Duration = Duration::from_secs(3);
/// The same for a single service.
const REGISTER_AGAIN: Duration = Duration::from_secs(15);
/// How soon a service that lost its lease asks for another one, or for the reason why it cannot have it.
const REVOKED_AGAIN: Duration = Duration::from_secs(1);
/// How long an agent waits after failures in a row.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

impl Uplink {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Resolving,
            due: now,
            addrs: Vec::new(),
            next_addr: 0,
            attempts: 0,
            silent_since: now,
            failures: 0,
            in_doubt: false,
            relay_instance: None,
            reported: 0,
            register_again: None,
            refusal: None,
            shown: ("resolving", now),
            at_work: false,
        }
    }

    /// The state in one word, and since when it is that.
    pub(super) fn shown(&self) -> (&'static str, Instant) {
        self.shown
    }

    /// Takes note of the state, should it be another one.
    pub(super) fn note_state(&mut self, now: Instant) {
        let word = self.word();
        if self.shown.0 != word {
            self.shown = (word, now);
        }
    }

    /// Why the channel carries nothing, if it does not. A question that is out and in time is no reason.
    pub(super) fn not_ready(&self) -> Option<String> {
        Some(match (&self.state, &self.refusal) {
            (State::Serving { liveness, .. }, _) if !liveness.is_late() => return None,
            (State::Serving { .. }, _) => "the relay does not answer in time".into(),
            (State::Closed, _) => "the agent is shutting down".into(),
            (_, Some(refusal)) => format!("the relay refuses this agent: {refusal}"),
            (State::Resolving, None) => "the relay's address is not known yet".into(),
            (_, None) => "there is no connection to the relay".into(),
        })
    }

    fn word(&self) -> &'static str {
        match self.state {
            State::Serving { .. } => "serving",
            State::Closed => "closed",
            // It asks again every few seconds, and is refused again.
            _ if self.refusal.is_some() => "refused",
            State::Resolving => "resolving",
            State::Calling => "calling",
            State::Greeting { .. } => "greeting",
            State::Waiting => "waiting",
        }
    }

    pub(super) fn next_timeout(&self) -> Option<(Instant, &'static str)> {
        let reason = match self.state {
            State::Resolving => "relay's address",
            State::Calling => "call to the relay",
            State::Greeting { .. } => "relay's greeting",
            State::Serving { .. } => "sign of life",
            State::Waiting => "next try",
            State::Closed => return None,
        };
        match self.register_again {
            Some(again) if again < self.due => Some((again, "refused service")),
            _ => Some((self.due, reason)),
        }
    }

    /// What the control channel is charged.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::Greeting { channel, .. } | State::Serving { channel, .. } => channel.held(),
            _ => 0,
        }
    }

    fn channel_mut(&mut self) -> Option<&mut Channel> {
        match &mut self.state {
            State::Greeting { channel, .. } | State::Serving { channel, .. } => Some(channel),
            _ => None,
        }
    }
}

impl Agent {
    /// Takes note of whether visitors are connected: there are flows beside the control channel, or associations.
    pub(super) fn note_work(&mut self, now: Instant) {
        let at_work = self.node.stack.flow_count() > 1 || self.associations.len() > 0;
        let begins = at_work && !std::mem::replace(&mut self.uplink.at_work, at_work);
        if let State::Serving { liveness, .. } = &self.uplink.state
            && begins
            && !liveness.is_asked()
        {
            self.uplink.due = self.uplink.due.min(now + liveness.patience(true));
        }
    }

    /// Does what the uplink waits for, if it is due.
    pub(super) fn uplink_due(&mut self, now: Instant) {
        if self.uplink.register_again.is_some_and(|again| again <= now) {
            self.register_missing();
        }
        if now < self.uplink.due {
            return;
        }
        match &self.uplink.state {
            State::Resolving => {
                self.resolve();
                self.uplink.due = now + RESOLVE_AGAIN;
            }
            State::Calling => self.call(now),
            State::Greeting { .. } => {
                self.uplink.in_doubt = true;
                self.channel_lost(now, "the relay does not answer on the control channel");
            }
            State::Serving { liveness, .. } if liveness.is_gone() => {
                self.uplink.in_doubt = true;
                self.channel_lost(now, "the relay has stopped answering");
            }
            State::Serving { liveness, .. } => {
                if liveness.is_in_doubt() {
                    self.node.wg.call(now, self.relay, true);
                    self.resolve();
                }
                self.ask(now);
            }
            State::Waiting => self.begin(now),
            State::Closed => {}
        }
    }

    /// The answer to a lookup of the relay's name.
    pub(super) fn resolved(&mut self, now: Instant, host: &str, addrs: &[SocketAddr]) {
        if host != self.config.relay.host {
            return;
        }
        let waited_for = matches!(self.uplink.state, State::Resolving);
        if addrs.is_empty() {
            if waited_for {
                let retry = self.backoff();
                self.uplink.due = now + retry;
                self.node.event(AgentEvent::Unresolved {
                    host: host.to_owned(),
                    retry,
                });
            }
            return;
        }
        let known = self.node.wg.path(self.relay).map(|path| path.remote);
        let moved = known.is_some_and(|known| !addrs.contains(&known));
        self.uplink.addrs = addrs.to_vec();
        self.uplink.next_addr = 0;
        if waited_for {
            self.begin(now);
        } else if moved && matches!(self.uplink.state, State::Calling | State::Serving { .. }) {
            // The relay's name leads elsewhere, and where it was nobody answers.
            self.aim();
            self.node.wg.call(now, self.relay, true);
        }
    }

    pub(super) fn tunnel_event(&mut self, now: Instant, event: WgEvent) {
        if matches!(event, WgEvent::Up(_)) {
            self.uplink.in_doubt = false;
        }
        match event {
            WgEvent::Up(_) if matches!(self.uplink.state, State::Calling) => self.open_channel(now),
            // The question before went into the dark.
            WgEvent::Up(_) => self.ask_again(now),
            // The relay called: it may have restarted. Asking finds out at once whether it still knows us.
            WgEvent::Called(_) if matches!(self.uplink.state, State::Serving { .. }) => self.ask(now),
            WgEvent::Called(_) if matches!(self.uplink.state, State::Waiting) => self.begin(now),
            _ => {}
        }
    }

    /// Something happened to the control channel.
    pub(super) fn channel_touched(&mut self, now: Instant, flow: FlowId) {
        let Some(view) = self.node.stack.view(flow) else {
            return;
        };
        if self.uplink.channel_mut().is_none_or(|channel| channel.flow != flow) {
            self.node.stack.release(flow, true, &mut self.node.resources);
            return;
        }
        if view.established
            && let State::Greeting {
                hello_sent: hello_sent @ false,
                ..
            } = &mut self.uplink.state
        {
            *hello_sent = true;
            let hello = ToRelay::Hello {
                version: VERSION,
                agent: self.config.name.clone(),
                caps: Vec::new(),
                instance: self.instance,
            };
            self.send(&hello);
        }
        loop {
            let Some(channel) = self.uplink.channel_mut().filter(|channel| channel.flow == flow) else {
                return;
            };
            let (stack, budget) = (&mut self.node.stack, &mut self.node.resources.budget);
            let flushed = channel.flush(stack, budget);
            match flushed.and_then(|()| channel.receive::<ToAgent>(stack, budget)) {
                Ok(Some(message)) => self.message(now, message),
                Ok(None) => break,
                Err(_) => {
                    self.node.resources.counters.drop_control_frame += 1;
                    return self.channel_lost(now, "the relay sent what is no message");
                }
            }
        }
        if let State::Serving { liveness, .. } = &mut self.uplink.state
            && liveness.heard(view.heard)
        {
            self.uplink.due = view.heard + liveness.patience(self.uplink.at_work);
        }
        if view.broken {
            self.channel_lost(now, "the relay has reset the control channel: it may have restarted");
        } else if view.remote_fin {
            self.channel_lost(now, "the relay has closed the control channel");
        }
    }

    /// Tells the relay that this agent ends.
    pub(super) fn say_goodbye(&mut self) {
        self.send(&ToRelay::Goaway {
            reason: "the agent is shutting down".into(),
        });
        if let Some(channel) = self.uplink.channel_mut() {
            let flow = channel.flow;
            channel.close(&mut self.node.resources.budget);
            self.node.stack.release(flow, false, &mut self.node.resources);
        }
        self.uplink.state = State::Closed;
    }

    fn message(&mut self, now: Instant, message: ToAgent) {
        match message {
            ToAgent::Welcome {
                relay, instance, ttl_s, ..
            } => self.welcome(now, relay, instance, Duration::from_secs(ttl_s.into())),
            ToAgent::Granted {
                id,
                lease,
                public,
                service_port,
            } => {
                if service_port != PORT && self.leased(&id, lease, service_port, &public) {
                    self.node.event(AgentEvent::Granted { service: id, public });
                }
            }
            ToAgent::Refused { id, code, message } => {
                if !self.services.refused(&id, &message) {
                    return self.register_missing();
                }
                if code.may_pass() {
                    self.uplink.register_again = Some(now + REGISTER_AGAIN);
                }
                self.node.event(AgentEvent::Refused {
                    service: id,
                    code,
                    message,
                });
            }
            ToAgent::Revoked { lease, message, .. } => {
                let Some(service) = self.lease_ended(lease) else {
                    return;
                };
                self.uplink.register_again = Some(now + REVOKED_AGAIN);
                let service = service.id.clone();
                self.node.event(AgentEvent::Revoked { service, message });
            }
            ToAgent::Goaway {
                reason,
                code: Some(code),
            } => {
                self.drop_channel();
                self.uplink.state = State::Waiting;
                self.uplink.due = now + REFUSED_RETRY;
                self.uplink.refusal = Some(shortened(reason.clone()));
                self.node.event(AgentEvent::RelayRefused {
                    code,
                    message: reason,
                    retry: REFUSED_RETRY,
                });
            }
            ToAgent::Goaway { reason, code: None } => self.channel_lost(now, &reason),
            ToAgent::Error { .. } | ToAgent::Unknown => {}
        }
    }

    fn welcome(&mut self, now: Instant, relay: String, instance: u64, lease: Duration) {
        let state = std::mem::replace(&mut self.uplink.state, State::Waiting);
        let State::Greeting { channel, .. } = state else {
            self.uplink.state = state;
            return;
        };
        let flow = channel.flow;
        let liveness = Liveness::new(now, lease);
        self.uplink.due = now + liveness.patience(false);
        self.uplink.state = State::Serving { channel, liveness };
        self.uplink.failures = 0;
        self.uplink.refusal = None;
        self.uplink.reported = 0;
        if self
            .uplink
            .relay_instance
            .replace(instance)
            .is_some_and(|before| before != instance)
        {
            // Another process: it knows nothing of the flows of the one before.
            self.node
                .stack
                .break_flows_but(self.relay, Some(flow), &mut self.node.resources);
        }
        self.leases_ended();
        if let Some(path) = self.node.wg.path(self.relay) {
            self.node.event(AgentEvent::RelayUp {
                remote: path.remote,
                relay,
            });
        }
        self.register_missing();
    }

    /// Asks for the services that have no lease, if there is a channel to ask on.
    pub(super) fn register_missing(&mut self) {
        self.uplink.register_again = None;
        if !matches!(self.uplink.state, State::Serving { .. }) {
            return;
        }
        for service in self.services.next_to_ask() {
            self.send(&ToRelay::Register {
                id: service.id.clone(),
                kind: service.kind,
                name: service.name.clone(),
                port: service.port,
            });
        }
    }

    /// Starts over with what is known: the address, or the tunnel, or nothing.
    fn begin(&mut self, now: Instant) {
        if self.uplink.addrs.is_empty() {
            self.uplink.state = State::Resolving;
            self.uplink.due = now;
            return self.uplink_due(now);
        }
        if self.node.wg.is_ready(self.relay) && self.uplink.failures < 2 && !self.uplink.in_doubt {
            return self.open_channel(now);
        }
        self.uplink.state = State::Calling;
        self.uplink.attempts = 0;
        self.uplink.silent_since = now;
        self.aim();
        self.call(now);
    }

    /// Points the tunnel at the next of the relay's addresses.
    fn aim(&mut self) {
        let Some(&remote) = self
            .uplink
            .addrs
            .get(self.uplink.next_addr % self.uplink.addrs.len().max(1))
        else {
            return;
        };
        self.uplink.next_addr = self.uplink.next_addr.wrapping_add(1);
        self.node.wg.set_path(self.relay, Path { remote, local_ip: None });
    }

    /// Sends a handshake, and sets when the next one goes out.
    fn call(&mut self, now: Instant) {
        let attempts = self.uplink.attempts;
        if attempts > 0 {
            self.aim();
        }
        self.node.wg.call(now, self.relay, true);
        self.uplink.attempts += 1;
        let growth = 1u32 << (attempts / CALLS_UNTIL_REPORT).min(4);
        let longest = if now < self.uplink.silent_since + EAGER_FOR {
            CALL_EAGER
        } else {
            CALL_LONGEST
        };
        let retry = (CALL_FIRST * growth).min(longest) + self.jitter(CALL_FIRST / 4);
        self.uplink.due = now + retry;
        if attempts > 0 && attempts.is_multiple_of(CALLS_UNTIL_REPORT) {
            self.resolve();
            if let Some(path) = self.node.wg.path(self.relay) {
                let since = now.saturating_duration_since(self.uplink.silent_since);
                self.node.event(AgentEvent::RelaySilent {
                    remote: path.remote,
                    since,
                    retry,
                });
            }
        }
    }

    fn open_channel(&mut self, now: Instant) {
        let remote = self.config.relay.key.overlay_address();
        let node = &mut self.node;
        match node.stack.connect(
            now,
            self.relay,
            remote,
            PORT,
            Owner::Channel,
            BufferClass::SMALLEST,
            &mut node.resources,
        ) {
            Ok(flow) => {
                self.uplink.state = State::Greeting {
                    channel: Channel::new(flow),
                    hello_sent: false,
                };
                self.uplink.due = now + GREETING_DEADLINE;
            }
            Err(_) => {
                self.uplink.state = State::Waiting;
                self.uplink.due = now + self.backoff();
            }
        }
    }

    /// Asks the relay for a sign of life on the control channel.
    fn ask(&mut self, now: Instant) {
        if let State::Serving { liveness, .. } = &mut self.uplink.state {
            self.uplink.due = now + liveness.ask();
            self.ask_again(now);
        }
    }

    /// The same once more, if an answer is waited for.
    fn ask_again(&mut self, now: Instant) {
        if let State::Serving { channel, liveness } = &self.uplink.state
            && liveness.is_asked()
        {
            self.node.stack.ask(now, channel.flow);
        }
    }

    /// The control channel is of no use any more. Flows live on: if it was only the path, they go on later.
    fn channel_lost(&mut self, now: Instant, reason: &str) {
        let was_serving = matches!(self.uplink.state, State::Serving { .. });
        // A channel that fell silent has waited long enough.
        let at_once = was_serving || self.uplink.in_doubt;
        self.drop_channel();
        self.uplink.refusal = None;
        self.uplink.failures += 1;
        self.uplink.state = State::Waiting;
        let retry = if at_once { Duration::ZERO } else { self.backoff() };
        self.uplink.due = now + retry;
        if was_serving {
            self.node.event(AgentEvent::RelayDown {
                reason: reason.to_owned(),
            });
        } else if self.uplink.failures > self.uplink.reported + CALLS_UNTIL_REPORT {
            self.uplink.reported = self.uplink.failures;
            if let Some(path) = self.node.wg.path(self.relay) {
                let since = now.saturating_duration_since(self.uplink.silent_since);
                self.node.event(AgentEvent::RelaySilent {
                    remote: path.remote,
                    since,
                    retry,
                });
            }
        }
        if at_once {
            self.begin(now);
        }
    }

    fn drop_channel(&mut self) {
        self.uplink.register_again = None;
        if let Some(channel) = self.uplink.channel_mut() {
            let flow = channel.flow;
            channel.close(&mut self.node.resources.budget);
            self.node.stack.release(flow, true, &mut self.node.resources);
        }
    }

    pub(super) fn send(&mut self, message: &ToRelay) {
        if let Some(channel) = self.uplink.channel_mut() {
            // What a relay does not read it does not acknowledge, which ends the channel.
            let _ = channel.send(&mut self.node.stack, &mut self.node.resources.budget, message);
        }
    }

    fn resolve(&mut self) {
        let (host, port) = (self.config.relay.host.clone(), self.config.relay.port);
        self.node.actions.push_back(Action::Resolve { host, port });
    }

    /// A pause that grows with the failures in a row.
    fn backoff(&mut self) -> Duration {
        let growth = 1u32 << self.uplink.failures.min(6);
        (RETRY_FIRST * growth).min(RETRY_LONGEST) + self.jitter(RETRY_FIRST)
    }

    /// Keeps agents that lost the same relay from calling in step.
    fn jitter(&mut self, up_to: Duration) -> Duration {
        let millis = u32::try_from(up_to.as_millis()).unwrap_or(u32::MAX).max(1);
        Duration::from_millis(u64::from(self.node.random.below(millis)))
    }
}
