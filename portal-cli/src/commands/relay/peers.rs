//! The plain WireGuard peers that the relay's file names.

use std::collections::BTreeMap;

use portal_core::identity::PublicKey;
use portal_core::{PlainPeer, PlainPeerError, RelayConfig};

use crate::cli::PeerArgs;
use crate::config::{Given, Place};
use crate::failure::{Exit, Explain, Failure};
use crate::keyfile;

/// Adds the peers of the file's `[[peer]]` tables to what a relay is to be, which must be complete otherwise. Reads the
/// files with what they share.
pub(super) fn add(config: &mut RelayConfig, given: &Given) -> Result<(), Failure> {
    let mut places: BTreeMap<PublicKey, (usize, &Place)> = BTreeMap::new();
    for table in given.tables("peer") {
        let args: PeerArgs = table.parse()?;
        let shared = args.preshared_key.as_deref().map(keyfile::load_shared).transpose();
        let shared = shared.map_err(|error| Failure::from(error).within(&table.place))?;
        let (number, first) = *places
            .entry(args.key)
            .or_insert((config.plain_peers.len(), &table.place));
        if number == config.plain_peers.len() {
            config.plain_peers.push(PlainPeer {
                key: args.key,
                preshared_key: None,
                endpoint: None,
                leases: Vec::new(),
            });
        }
        let peer = &mut config.plain_peers[number];
        peer.leases.push(args.lease.lease());
        let differs = |what| {
            Failure::from(PeersError::Differs {
                place: table.place.clone(),
                first: first.line,
                what,
            })
        };
        if !agree(&mut peer.preshared_key, shared) {
            return Err(differs("preshared-key"));
        }
        if !agree(&mut peer.endpoint, args.endpoint) {
            return Err(differs("endpoint"));
        }
        // Each time anew, so that the message names the table.
        let checked = config.check_plain_peers();
        checked.map_err(|error| Failure::from(error).within(&table.place))?;
    }
    Ok(())
}

/// Takes a value that may be said several times, but not differently.
fn agree<T: PartialEq>(known: &mut Option<T>, said: Option<T>) -> bool {
    match (&known, &said) {
        (Some(known), Some(said)) => known == said,
        (None, Some(_)) => {
            *known = said;
            true
        }
        (_, None) => true,
    }
}

impl Explain for PlainPeerError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::OwnKey(_) => "the peer needs a key of its own: portal key new, or wg genkey".into(),
            Self::TooMany { .. } | Self::TooManyLeases { .. } => "take some out".into(),
            Self::WrongPlace { .. } => {
                "http and tls have a name, as in: name = \"blog\"; tcp and udp have a port, as in: port = 20022".into()
            }
            Self::BadName { .. } | Self::Conflict { .. } => "choose another name or port for one of them".into(),
            Self::Bound { .. } => {
                "choose another name or port for the peer; or free this one: stop the relay and take it out of \
                 bindings.json in the state directory"
                    .into()
            }
            Self::PortZero(_) => "a port is a number from 1 to 65535".into(),
            Self::HeaderOverUdp(_) => "leave proxy-header away".into(),
            _ => return None,
        })
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}

/// Why the tables cannot be taken together.
#[derive(Debug, thiserror::Error)]
enum PeersError {
    #[error("{place}: this [[peer]] has another {what} than the one with the same key in line {first}")]
    Differs {
        place: Place,
        first: usize,
        what: &'static str,
    },
}

impl Explain for PeersError {
    fn help(&self) -> Option<String> {
        Some("say it once, or alike each time: several tables with one key are one peer with several leases".into())
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}
