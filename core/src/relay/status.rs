//! What a relay tells its operator.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Relay;
use super::ingress::{Ingress, Role};
use super::leases::LeaseId;
use crate::control::Kind;
use crate::identity::PublicKey;
use crate::status::{MAX_LISTED, Memory, Traffic, refusals, seconds_since};
use crate::wg::PeerId;

/// A relay as it is now. Lists are bounded; what they leave out is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Its version.
    pub version: String,
    /// Its key.
    pub key: PublicKey,
    /// The domain under which it gives out names.
    pub domain: String,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Why it is not ready, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// Who has a control channel or a lease, those that are up the longest first.
    pub agents: Vec<AgentSeen>,
    /// Agents that are not listed.
    pub agents_left_out: u64,
    /// What is leased.
    pub leases: Vec<LeaseStatus>,
    /// Leases that are not listed.
    pub leases_left_out: u64,
    /// WireGuard peers, those without a control channel among them.
    pub peers: u64,
    /// All visitors since the start, those who found no lease among them; bytes are those of leases.
    pub visitors: Traffic,
    /// Flows in the tunnels: connections, and control channels.
    pub flows: u64,
    /// Visitors by UDP.
    pub associations: u64,
    /// The memory budget.
    pub memory: Memory,
    /// What was dropped or refused since the start, by counter.
    pub refusals: BTreeMap<String, u64>,
}

/// An agent as its relay sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSeen {
    /// Its key.
    pub key: PublicKey,
    /// What it calls itself; nothing to be trusted. Empty for a peer without a control channel.
    pub name: String,
    /// Where it is, if that is known.
    pub remote: Option<SocketAddr>,
    /// Seconds since something came from it, whatever it was.
    pub heard_s: u64,
    /// Seconds since its control channel was opened, if it has one.
    pub up_s: Option<u64>,
    /// How many leases it has.
    pub leases: u64,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// How people reach it.
    pub public: String,
    /// Its kind.
    pub kind: Kind,
    /// The agent's own name for the service; nothing to be trusted.
    pub service: String,
    /// Whose it is.
    pub key: PublicKey,
    /// Its visitors, and what was carried for them.
    pub visitors: Traffic,
}

impl Relay {
    /// The relay as it is now. Costs a walk over agents, leases and connections, so it is for people and not for packets.
    #[must_use]
    pub fn status(&self, now: Instant) -> RelayStatus {
        let (live, carried) = self.live_traffic();
        let census = self.census();
        let leases = self.leases.iter().take(MAX_LISTED).map(|(id, lease)| LeaseStatus {
            public: lease.public.clone(),
            kind: lease.kind,
            service: lease.service.clone(),
            key: lease.key,
            visitors: live.get(&id).copied().unwrap_or_default().plus(self.leases.traffic(id)),
        });
        let leases: Vec<_> = leases.collect();
        let mut agents = self.agents_seen(now);
        let agents_left_out = agents.len().saturating_sub(MAX_LISTED) as u64;
        agents.truncate(MAX_LISTED);
        RelayStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            key: self.config.secret.public_key(),
            domain: self.config.domain.clone(),
            uptime_s: seconds_since(now, self.node.started),
            not_ready: self.not_ready(),
            agents,
            agents_left_out,
            leases_left_out: (census.leases - leases.len()) as u64,
            leases,
            peers: census.peers as u64,
            visitors: Traffic {
                now: census.visitors as u64,
                total: self.counters().visitors_accepted,
                ..carried
            },
            flows: census.flows as u64,
            associations: self.associations.len() as u64,
            memory: Memory::of(&self.node.resources),
            refusals: refusals(self.counters()),
        }
    }

    /// Why visitors cannot be served now, if they cannot: for whoever sends them here.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if self.node.is_closing() {
            return Some("the relay is shutting down".into());
        }
        let is_open = |ingress: Ingress| {
            let mut all = self.listeners.iter().map(|(_, listener)| listener);
            all.any(|listener| listener.role == Role::Shared(ingress) && listener.open)
        };
        let wanted = [
            (Ingress::Http, self.config.http.is_some()),
            (Ingress::Https, self.config.https.is_some()),
        ];
        let (ingress, _) = wanted
            .into_iter()
            .find(|&(ingress, wanted)| wanted && !is_open(ingress))?;
        Some(format!("the listener for {ingress} visitors is not open"))
    }

    /// What open connections have carried, by lease, and what all leases ever have, open connections among it.
    fn live_traffic(&self) -> (BTreeMap<LeaseId, Traffic>, Traffic) {
        let mut all = self.leases.traffic_of_all();
        let mut live: BTreeMap<LeaseId, Traffic> = BTreeMap::new();
        for (visitor, received, sent) in self.node.stream_bytes() {
            let Some(lease) = visitor.lease else { continue };
            let carried = Traffic {
                now: 1,
                total: 0,
                received,
                sent,
            };
            all = all.plus(carried);
            let of_lease = live.entry(lease).or_default();
            *of_lease = of_lease.plus(carried);
        }
        for (lease, now) in self.associations.by_lease() {
            live.entry(lease).or_default().now += now;
        }
        (live, all)
    }

    fn agents_seen(&self, now: Instant) -> Vec<AgentSeen> {
        let mut leases: BTreeMap<PeerId, u64> = BTreeMap::new();
        for (_, lease) in self.leases.iter() {
            *leases.entry(lease.peer).or_default() += 1;
        }
        let sessions: BTreeMap<_, _> = self.sessions.iter().collect();
        let peers: BTreeSet<PeerId> = leases.keys().chain(sessions.keys()).copied().collect();
        let mut agents: Vec<_> = peers
            .into_iter()
            .filter_map(|peer| {
                let session = sessions.get(&peer);
                Some(AgentSeen {
                    key: self.node.wg.key(peer)?,
                    name: session.map(|session| session.agent.clone()).unwrap_or_default(),
                    remote: self.node.wg.path(peer).map(|path| path.remote),
                    heard_s: seconds_since(now, self.node.wg.heard(peer)?),
                    up_s: session.map(|session| seconds_since(now, session.since)),
                    leases: leases.get(&peer).copied().unwrap_or_default(),
                })
            })
            .collect();
        agents.sort_by_key(|agent| std::cmp::Reverse(agent.up_s));
        agents
    }
}
