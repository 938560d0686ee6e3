//! The agent while it runs.

use std::net::UdpSocket;
use std::time::Instant;

use portal_core::{Agent, AgentConfig, AgentEvent, Service};

use super::{Prepared, control, probe, texts};
use crate::config::Given;
use crate::failure::{Explain, Failure};
use crate::notices::{Notice, Notices, Worker};
use crate::process::Signal;
use crate::report::Console;
use crate::report::agent::{AgentReport, Verdict};
use crate::runtime::{self, Running, Servers};
use crate::sockets::BindError;

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

/// Runs the agent to its end.
pub(super) fn serve(
    notices: &Notices<AgentEvent, Result<Again, Failure>>,
    config: AgentConfig,
    socket: UdpSocket,
    servers: Servers,
    report: AgentReport,
    reload: Option<Reload>,
    console: &Console,
) -> Result<(), Failure> {
    let reload = match reload {
        Some(Reload { given, read }) => Some((given, notices.worker("reload", move |()| read())?)),
        None => None,
    };
    let offered = config.services.clone();
    let agent = Agent::new(Instant::now(), config);
    let agent = runtime::start("agent", agent, socket, &servers, notices.events()).map_err(AgentError::Runtime)?;
    let mut serving = Serving {
        agent,
        servers,
        report,
        reload,
        offered,
        failed: None,
        console,
    };
    while let Some(notice) = notices.next(None) {
        match notice {
            Notice::Event(event) => serving.heed(event),
            Notice::Signal(Signal::End) => {
                console.note("ending; a second signal ends at once");
                serving.agent.shutdown();
            }
            Notice::Signal(Signal::Hangup) => {
                if let Some((_, reader)) = &serving.reload {
                    reader.give(());
                }
            }
            Notice::Asked(question) => {
                let answer = control::answer(&question.request, &serving.agent);
                question.answer(answer);
            }
            Notice::Done(Ok(again)) => serving.offer(again),
            Notice::Done(Err(failure)) => console.problem(failure.as_kept()),
            Notice::Ended => break,
        }
    }
    serving.agent.join();
    serving.failed.map_or(Ok(()), Err)
}

struct Serving<'a> {
    agent: Running<Agent>,
    servers: Servers,
    report: AgentReport,
    /// What it was started with, and what reads that again.
    reload: Option<(Given, Worker<()>)>,
    offered: Vec<Service>,
    /// Why it ends, unless it was asked to.
    failed: Option<Failure>,
    console: &'a Console,
}

impl Serving<'_> {
    fn heed(&mut self, event: AgentEvent) {
        if let AgentEvent::AdminFailed { addr, error } = event {
            return self.fail(BindError::of_admin(addr, error));
        }
        let console = self.console;
        match self.report.take(Instant::now(), event, &mut |say| console.say(say)) {
            Verdict::GoOn => {}
            Verdict::End(reason) => self.fail(reason),
        }
    }

    /// Ends for this reason, if there was no earlier one.
    fn fail(&mut self, reason: impl Into<Failure>) {
        self.failed.get_or_insert_with(|| reason.into());
        self.agent.end_at_once();
    }

    /// Offers what was read in place of what was offered.
    fn offer(&mut self, Again { services, given }: Again) {
        let before = std::mem::replace(&mut self.offered, services.iter().map(Prepared::service).collect());
        // What is dialled and reported has to be known before the first visitor comes.
        for service in &services {
            service.add_server(&self.servers);
        }
        self.report.set_services(services.iter().map(Prepared::named));
        let set = self.offered.clone();
        if self.agent.call(move |agent, now| agent.set_services(now, set)).is_err() {
            // It has ended, which is the next thing that is heard.
            return;
        }
        self.servers.retain(|name| {
            services
                .iter()
                .any(|service| service.id() == name && service.is_served_here())
        });
        self.console.note(format!("read again: exposing {}", texts(&services)));
        let needs_restart = self
            .reload
            .as_ref()
            .and_then(|(started, _)| started.needs_restart(&given, &APPLIED));
        if let Some(text) = needs_restart {
            self.console.problem(text);
        }
        let new = self.offered.iter().filter(|service| !before.contains(service));
        probe::all(new.cloned().collect(), self.console);
    }
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("preparing the tunnel's socket: {0}")]
    Runtime(std::io::Error),
}

impl Explain for AgentError {}
