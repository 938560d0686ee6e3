//! `portal grant` and `portal revoke`: who is served, from the relay's own machine.

use std::path::PathBuf;

use portal_core::Grant;
use portal_core::identity::PublicKey;
use serde_json::json;

use crate::cli::{GrantArgs, Output, RevokeArgs};
use crate::failure::{Explain, Failure};
use crate::report;
use crate::state::control::{self, RELAY_SOCKET, Request};
use crate::state::{self, StateDir};

/// Gives a key a grant, in place of the one it had.
pub(crate) fn grant(args: GrantArgs, output: Output) -> Result<(), Failure> {
    let state = StateDir::locate(args.state.state_dir.as_deref())?;
    state.make()?;
    let grant = Grant {
        key: args.key,
        names: args.names,
        ports: args.ports.into_iter().map(|range| range.0).collect(),
        kinds: args.kinds,
        flows: args.flows,
        rate: args.rate.map(|rate| rate.0),
    };
    let replaced = state.edit_grants(|grants| state::put(grants, grant))?;
    let did = if replaced { "changed" } else { "granted" };
    tell(&state, args.key, did, output)
}

/// Takes a key's grant away.
pub(crate) fn revoke(args: &RevokeArgs, output: Output) -> Result<(), Failure> {
    let state = StateDir::locate(args.state.state_dir.as_deref())?;
    state.make()?;
    if !state.edit_grants(|grants| state::take(grants, &args.key))? {
        let (key, state_dir) = (args.key, state.path().to_owned());
        return Err(GrantError::Unknown { key, state_dir }.into());
    }
    tell(&state, args.key, "revoked", output)
}

/// Has the running relay act on it.
fn tell(state: &StateDir, key: PublicKey, did: &'static str, output: Output) -> Result<(), Failure> {
    let answer = control::ask(&state.file(RELAY_SOCKET), &Request::Reload)?;
    let running = answer.is_some();
    let effect = match &answer {
        None => format!(
            "no relay runs with the state directory {}: it takes effect when one starts",
            state.path().display()
        ),
        Some(answer) if !answer.ok => {
            let cause = answer.error.clone().unwrap_or_default();
            return Err(GrantError::Refused(cause).into());
        }
        Some(answer) if answer.open => "but the running relay serves everybody (--access open)".into(),
        Some(_) => "the running relay acts on it at once".into(),
    };
    report::print_result(
        output,
        &format!("{did} {key}"),
        &json!({"key": key, "did": did, "running": running, "state_dir": state.path().to_string_lossy()}),
    );
    report::print_note(output, &effect);
    Ok(())
}

/// Why a grant could not be changed.
#[derive(Debug, thiserror::Error)]
enum GrantError {
    /// There is nothing to revoke.
    #[error("the key {key} has no grant in {}", .state_dir.display())]
    Unknown {
        /// The key.
        key: PublicKey,
        /// Where it was looked for.
        state_dir: PathBuf,
    },
    /// The relay could not act on it.
    #[error("the change is written, but the running relay cannot act on it: {0}")]
    Refused(String),
}

impl Explain for GrantError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => {
                Some("the grants are listed in grants.toml there; another relay has --state-dir".into())
            }
            Self::Refused(_) => None,
        }
    }
}
