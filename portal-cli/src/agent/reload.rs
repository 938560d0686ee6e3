//! Other services while the agent runs.

use std::cell::RefCell;

use portal_core::{Agent, Service};
use portal_runtime_tokio::{Handle, Handlers};

use super::{Prepared, probe, texts};
use crate::config::{Given, read_at_hangup};
use crate::failure::Failure;
use crate::process::Hangups;
use crate::report::Console;
use crate::report::agent::AgentReport;

/// What a running agent can be given anew.
const APPLIED: [&str; 1] = ["[[service]]"];

/// Where services come from a second time.
pub(crate) struct Reload {
    /// What the agent was started with.
    pub(crate) given: Given,
    /// Reads it again. Blocks on the file system.
    pub(crate) read: fn() -> Result<Again, Failure>,
}

/// What was read again.
pub(crate) struct Again {
    pub(crate) services: Vec<Prepared>,
    pub(crate) given: Given,
}

impl Reload {
    /// Acts on every hangup. Ends only with the future that it is part of.
    pub(super) async fn run(
        &self,
        mut hangups: Hangups,
        mut offered: Vec<Service>,
        handle: &Handle<Agent>,
        handlers: &Handlers,
        report: &RefCell<AgentReport>,
        console: &Console,
    ) {
        loop {
            let Again { services, given } = read_at_hangup(&mut hangups, console, self.read).await;
            let before = std::mem::replace(&mut offered, services.iter().map(Prepared::service).collect());
            // What is dialled and reported has to be known before the first visitor comes.
            for service in &services {
                service.add_handler(handlers);
            }
            report.borrow_mut().set_services(services.iter().map(Prepared::named));
            let set = offered.clone();
            if handle
                .call(move |agent, now| agent.set_services(now, set))
                .await
                .is_err()
            {
                // The agent has ended, and so does whoever waits for this.
                return std::future::pending().await;
            }
            handlers.retain(|name| {
                services
                    .iter()
                    .any(|service| service.id() == name && service.is_served_here())
            });
            console.note(format!("read again: exposing {}", texts(&services)));
            if let Some(text) = self.given.needs_restart(&given, &APPLIED) {
                console.problem(text);
            }
            for service in offered.iter().filter(|service| !before.contains(service)) {
                tokio::spawn(probe(service.clone(), console.clone()));
            }
        }
    }
}
