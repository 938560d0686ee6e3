//! What an agent tells its operator.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Agent;
use crate::control::Kind;
use crate::identity::PublicKey;
use crate::machine::Target;
use crate::status::{MAX_LISTED, Memory, Traffic, refusals, seconds_since};

/// An agent as it is now. The list of services is bounded; what it leaves out is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its version.
    pub version: String,
    /// Its key.
    pub key: PublicKey,
    /// What it calls itself.
    pub name: String,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Its relay, as host and port.
    pub relay: String,
    /// Where it reaches or calls the relay.
    pub remote: Option<SocketAddr>,
    /// Where it stands with the relay, in one word: `resolving`, `calling`, `greeting`, `refused`, `waiting`, `serving`
    /// or `closed`.
    pub state: String,
    /// Seconds since that is so.
    pub state_s: u64,
    /// Why it is not ready, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// What it offers.
    pub services: Vec<ServiceStatus>,
    /// Services that are not listed.
    pub services_left_out: u64,
    /// Connections to targets since the start.
    pub connections: Traffic,
    /// Flows in the tunnel: connections, and the control channel.
    pub flows: u64,
    /// Visitors by UDP.
    pub associations: u64,
    /// The memory budget.
    pub memory: Memory,
    /// What was dropped or refused since the start, by counter.
    pub refusals: BTreeMap<String, u64>,
}

/// A service that an agent offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The agent's own name for it.
    pub id: String,
    /// Its kind.
    pub kind: Kind,
    /// Where it is.
    pub target: String,
    /// How people reach it, if they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<String>,
    /// Why the relay gives it no lease, if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Connections to its target, and what was carried by them.
    pub connections: Traffic,
}

impl Agent {
    /// The agent as it is now. Costs a walk over services and connections, so it is for people and not for packets.
    #[must_use]
    pub fn status(&self, now: Instant) -> AgentStatus {
        let (live, connections) = self.live_traffic();
        let mut services: Vec<_> = self.services.status().take(MAX_LISTED).collect();
        for service in &mut services {
            let live = live.get(service.id.as_str()).copied().unwrap_or_default();
            service.connections = service.connections.plus(live);
        }
        let (state, since) = self.uplink.shown();
        if state != "serving" {
            // The leases may be there again in a moment, but now nobody comes that way.
            services.iter_mut().for_each(|service| service.public = None);
        }
        let relay = &self.config.relay;
        let place = Target::Host {
            host: relay.host.clone(),
            port: relay.port,
        };
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            key: self.config.secret.public_key(),
            name: self.config.name.clone(),
            uptime_s: seconds_since(now, self.node.started),
            relay: place.to_string(),
            remote: self.node.wg.path(self.relay).map(|path| path.remote),
            state: state.into(),
            state_s: seconds_since(now, since),
            not_ready: self.not_ready(),
            services_left_out: (self.services.len() - services.len()) as u64,
            services,
            connections,
            flows: self.node.stack.flow_count() as u64,
            associations: self.associations.len() as u64,
            memory: Memory::of(&self.node.resources),
            refusals: refusals(&self.node.resources.counters),
        }
    }

    /// Why visitors cannot be served now, if they cannot: the tunnel does not carry data, or a service has no lease.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if self.node.is_closing() {
            return Some("the agent is shutting down".into());
        }
        if let Some(reason) = self.uplink.not_ready() {
            return Some(reason);
        }
        if !self.node.wg.is_ready(self.relay) {
            return Some("the tunnel to the relay has no session".into());
        }
        let lacking = self.services.status().find(|service| service.public.is_none())?;
        Some(match lacking.refused {
            Some(cause) => format!("the relay refuses the service {}: {cause}", lacking.id),
            None => format!("the service {} has no lease yet", lacking.id),
        })
    }

    /// What open connections have carried, by service, and what all ever have. One counts for the total as it ends.
    fn live_traffic(&self) -> (BTreeMap<&str, Traffic>, Traffic) {
        let mut all = self.services.carried();
        let mut live: BTreeMap<&str, Traffic> = BTreeMap::new();
        for (joined, sent, received) in self.node.stream_bytes() {
            let carried = Traffic {
                now: 1,
                total: 1,
                received,
                sent,
            };
            all = all.plus(carried);
            let of_service = live.entry(joined.service.id.as_str()).or_default();
            *of_service = of_service.plus(carried);
        }
        for (port, now) in self.associations.by_service_port() {
            if let Some(service) = self.services.at(port) {
                live.entry(service.id.as_str()).or_default().now += now;
            }
        }
        (live, all)
    }
}
