//! What a running relay does when it is told to read its files again.

use std::cell::Cell;

use portal_core::{Access, Relay};
use portal_runtime_tokio::Handle;

use super::{access, check};
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
        let files = state.clone();
        let Reloaded {
            mode: new,
            given: again,
        } = read_at_hangup(&mut hangups, console, move || read(&files)).await;
        // Here and not with the rest: a revocation that came in between has been confirmed and must hold. It is read on
        // this thread as well, and what is read last is handed on last.
        let access = match access(new, state) {
            Ok(access) => access,
            Err(failure) => {
                console.problem(failure.as_problem());
                continue;
            }
        };
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
    check::look(&args, state, &given)?;
    Ok(Reloaded {
        mode: args.access,
        given,
    })
}
