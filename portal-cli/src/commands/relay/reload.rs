//! What a running relay reads when it is told to read its files again.

use portal_core::PlainPeer;

use super::check;
use crate::cli::{AccessMode, Command};
use crate::config::{Given, Invocation};
use crate::failure::Failure;
use crate::state::StateDir;

/// Flags that a running relay can be given anew.
pub(super) const APPLIED: [&str; 2] = ["access", "[[peer]]"];

/// What was read.
pub(super) struct Reloaded {
    pub(super) mode: AccessMode,
    pub(super) plain_peers: Vec<PlainPeer>,
    pub(super) given: Given,
}

/// Reads it. Blocks on the file system.
pub(super) fn read(state: &StateDir) -> Result<Reloaded, Failure> {
    let Invocation { cli, given } = Invocation::load()?;
    let Command::Relay(args) = cli.command else {
        unreachable!("the command line stays the same");
    };
    let looked = check::look(&args, state, &given)?;
    Ok(Reloaded {
        mode: args.access,
        plain_peers: looked.plain_peers,
        given,
    })
}
