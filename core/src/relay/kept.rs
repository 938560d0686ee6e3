//! What a relay wants to find again after a restart.

use std::net::SocketAddr;

use super::{Binding, Relay};
use crate::identity::PublicKey;

/// What a program keeps for a relay, in whole: see [`Relay::kept`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Names and ports that belong to keys, leased now or not: for [`RelayConfig::bindings`](super::RelayConfig::bindings).
    pub bindings: Vec<Binding>,
    /// The agents and plain peers that are there now: for [`RelayConfig::recent`](super::RelayConfig::recent), beside
    /// those of earlier.
    pub recent: Vec<(PublicKey, SocketAddr)>,
}

impl Relay {
    /// All that [`RelayEvent::Bound`](super::RelayEvent::Bound) and [`RelayEvent::AgentAt`](super::RelayEvent::AgentAt)
    /// have told so far and that holds now: for a program that has lost events.
    ///
    /// # Cost
    /// A copy of every binding, of which there can be tens of thousands.
    #[must_use]
    pub fn kept(&self) -> Kept {
        let agents = self.sessions.peers().into_iter();
        let peers = agents.chain(self.plain.up());
        let recent = peers.filter_map(|peer| Some((self.node.wg.key(peer)?, self.node.wg.path(peer)?.remote)));
        Kept {
            bindings: self.leases.bindings().collect(),
            recent: recent.collect(),
        }
    }
}
