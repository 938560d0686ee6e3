//! What a relay would be: for `portal relay --check`, and before a running one takes what it has read again.

use std::path::PathBuf;

use portal_core::identity::{PublicKey, SecretKey};
use portal_core::{PlainPeer, PlainPeerError, RelayConfig};
use serde_json::json;

use super::{Addresses, RelayError, access, peers};
use crate::cli::{AccessMode, Output, RelayArgs};
use crate::config::Given;
use crate::failure::Failure;
use crate::state::StateDir;
use crate::values::{Domain, Switch};
use crate::{keyfile, report};

/// What a relay would be.
pub(super) struct Looked {
    domain: Domain,
    addresses: Addresses,
    key_file: PathBuf,
    key: Option<PublicKey>,
    pub(super) plain_peers: Vec<PlainPeer>,
}

/// Reads what the relay would read. Opens no socket and makes no file.
pub(super) fn look(args: &RelayArgs, state: &StateDir, given: &Given) -> Result<Looked, Failure> {
    let domain = args.domain.clone().ok_or(RelayError::NoDomain)?;
    let book = state.book()?;
    access(args.access, state)?;
    let key_file = args.key.clone().unwrap_or_else(|| state.file("relay.key"));
    let key = keyfile::look(&key_file)?;
    let addresses = Addresses::of(args, &domain);
    // The peers have to go with the rest, which is all that this is made for.
    let mut config = RelayConfig::new(SecretKey::from_bytes([0; 32]), [0; 32], domain.to_string());
    (config.http, config.https, config.bindings) = (addresses.http, addresses.https, book.bindings());
    peers::add(&mut config, given)?;
    if let Some(key) = key
        && config.plain_peers.iter().any(|peer| peer.key == key)
    {
        return Err(PlainPeerError::OwnKey(key).into());
    }
    Ok(Looked {
        domain,
        addresses,
        key_file,
        key,
        plain_peers: config.plain_peers,
    })
}

/// Says what the relay would do.
pub(super) fn check(args: &RelayArgs, state: &StateDir, given: &Given, output: Output) -> Result<(), Failure> {
    let looked = look(args, state, given)?;
    let grants = state.grants()?.len();
    let Looked {
        domain, key_file, key, ..
    } = &looked;
    let Addresses { udp, http, https } = looked.addresses;
    let plain = and_peers(looked.plain_peers.len());
    let switched = |addr: Option<std::net::SocketAddr>| addr.map_or("off".to_owned(), |addr| addr.to_string());
    let ports = match &args.ports {
        Switch::Off => "off".to_owned(),
        Switch::On(range) => format!("{}-{}", range.0.start(), range.0.end()),
    };
    let served = match args.access {
        AccessMode::Open => "everybody".to_owned(),
        AccessMode::Granted if grants == 1 => "1 key with a grant".into(),
        AccessMode::Granted => format!("{grants} keys with a grant"),
    };
    let with = match key {
        Some(key) => format!("the key {key} ({})", key_file.display()),
        None => format!("a new key, to be made in {}", key_file.display()),
    };
    report::print_result(
        output,
        &format!(
            "ready to serve {domain}: agents at {udp}, HTTP at {}, TLS at {}, ports {ports}\nfor {served}{plain}, with {with}, \
             and its state in {}",
            switched(http),
            switched(https),
            state.path().display()
        ),
        &json!({
            "event": "checked",
            "domain": domain.to_string(),
            "udp": udp,
            "http": http,
            "https": https,
            "ports": ports,
            "open": args.access == AccessMode::Open,
            "grants": grants,
            "peers": looked.plain_peers.len(),
            "key": key,
            "key_file": key_file.to_string_lossy(),
            "state_dir": state.path().to_string_lossy(),
        }),
    );
    Ok(())
}

/// What stands behind those who are served by their grants.
pub(super) fn and_peers(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => ", and 1 plain peer".into(),
        count => format!(", and {count} plain peers"),
    }
}
