//! What a running relay does when it is told to read its files again.

use std::cell::Cell;

use portal_core::{Access, Relay};
use portal_runtime_tokio::Handle;

use super::access;
use crate::cli::{AccessMode, Command};
use crate::config::{Given, Invocation, read_at_hangup};
use crate::failure::Failure;
use crate::process::Hangups;
use crate::report::Console;
use crate::state::StateDir;

/// Flags that a running relay can be given anew.
const APPLIED: [&str; 1] = ["access"];

/// What was read.
struct Reloaded {
    mode: AccessMode,
    access: Access,
    given: Given,
}

/// Acts on every hangup. Ends only with the future that it is part of.
pub(super) async fn at_hangups(
    mut hangups: Hangups,
    handle: &Handle<Relay>,
    state: &StateDir,
    mode: &Cell<AccessMode>,
    given: &Given,
    console: &Console,
) {
    loop {
        let state = state.clone();
        let Reloaded {
            mode: new,
            access,
            given: again,
        } = read_at_hangup(&mut hangups, console, move || read(&state)).await;
        mode.set(new);
        let served = match &access {
            Access::Open => "everybody is served".to_owned(),
            Access::Granted(grants) if grants.len() == 1 => "1 key with a grant is served".into(),
            Access::Granted(grants) => format!("{} keys with a grant are served", grants.len()),
        };
        if handle
            .call(move |relay, now| relay.set_access(now, access))
            .await
            .is_err()
        {
            // The relay has ended, and so does whoever waits for this.
            return std::future::pending().await;
        }
        console.note(format!("read again: {served}"));
        if let Some(text) = given.needs_restart(&again, &APPLIED) {
            console.problem(text);
        }
    }
}

fn read(state: &StateDir) -> Result<Reloaded, Failure> {
    let Invocation { cli, given } = Invocation::load()?;
    let Command::Relay(args) = cli.command else {
        unreachable!("the command line stays the same");
    };
    Ok(Reloaded {
        mode: args.access,
        access: access(args.access, state)?,
        given,
    })
}
