//! The relay while it runs.

use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use portal_core::uri::RelayUri;
use portal_core::{Access, Ingress, Relay, RelayConfig, RelayEvent, Status, Transport};
use serde_json::json;

use super::keep::Keeper;
use super::{RelayError, access, check, reload};
use crate::cli::AccessMode;
use crate::config::Given;
use crate::failure::Failure;
use crate::notices::{Notice, Notices};
use crate::process::Signal;
use crate::report::relay::RelayReport;
use crate::report::{Console, Say};
use crate::runtime::{self, Running, Servers};
use crate::sockets::BindError;
use crate::state::control::{Answer, ControlSocket, RELAY_SOCKET, Request};
use crate::state::{Book, Draft, StateDir, StateError};

/// A relay that is about to run.
pub(super) struct Setup<'a> {
    pub(super) config: RelayConfig,
    pub(super) socket: UdpSocket,
    pub(super) uri: RelayUri,
    pub(super) state: StateDir,
    pub(super) book: Book,
    pub(super) mode: AccessMode,
    pub(super) given: &'a Given,
}

/// Work that was done aside.
enum Done {
    Written(Result<(), StateError>),
    Read(Result<reload::Reloaded, Failure>),
}

impl Setup<'_> {
    /// Runs it to its end.
    pub(super) fn serve(self, console: &Console) -> Result<(), Failure> {
        let Self { config, state, .. } = self;
        let notices = Notices::new();
        notices.watch_signals(true)?;
        let control = ControlSocket::bind(state.file(RELAY_SOCKET))?;
        notices.listen(&control)?;
        let writer = notices.worker("writer", |draft: Draft| Done::Written(draft.write()))?;
        let files = state.clone();
        let reader = notices.worker("reload", move |()| Done::Read(reload::read(&files)))?;
        let waiting = usize::from(config.http.is_some()) + usize::from(config.https.is_some());
        let relay = Relay::new(Instant::now(), config);
        let relay = runtime::start("relay", relay, self.socket, &Servers::default(), notices.events());
        let mut serving = Serving {
            relay: relay.map_err(RelayError::Runtime)?,
            keeper: Keeper::new(Instant::now(), self.book, writer),
            report: RelayReport::new(state.path().to_owned()),
            state,
            uri: self.uri,
            mode: self.mode,
            given: self.given,
            has_reloaded: false,
            waiting,
            failed: None,
            console,
        };
        if waiting == 0 {
            serving.say_uri();
        }
        loop {
            match notices.next(serving.keeper.deadline()) {
                None => {}
                Some(Notice::Event(event)) => serving.heed(&event),
                Some(Notice::Signal(Signal::End)) => {
                    console.note("ending; a second signal ends at once");
                    serving.relay.shutdown();
                }
                Some(Notice::Signal(Signal::Hangup)) => reader.give(()),
                Some(Notice::Asked(question)) => {
                    let answer = serving.answer(&question.request);
                    question.answer(answer);
                }
                Some(Notice::Done(Done::Written(result))) => serving.written(&result),
                Some(Notice::Done(Done::Read(Ok(reloaded)))) => serving.apply(reloaded),
                Some(Notice::Done(Done::Read(Err(failure)))) => console.problem(failure.as_kept()),
                Some(Notice::Ended) => break,
            }
            serving.keep();
        }
        let Serving {
            relay,
            mut keeper,
            failed,
            ..
        } = serving;
        keeper.count_lost(Instant::now(), relay.lost_events());
        let relay = relay.join();
        if keeper.is_in_doubt() {
            keeper.adopt(Instant::now(), relay.kept());
        }
        while keeper.is_writing() {
            if let Some(Notice::Done(Done::Written(result))) = notices.next(None) {
                keeper.written(Instant::now(), &result);
            }
        }
        keeper.finish()?;
        failed.map_or(Ok(()), Err)
    }
}

struct Serving<'a> {
    relay: Running<Relay>,
    keeper: Keeper,
    report: RelayReport,
    state: StateDir,
    uri: RelayUri,
    mode: AccessMode,
    /// What it was started with.
    given: &'a Given,
    /// It was told to read its files again.
    has_reloaded: bool,
    /// Listeners that are not there yet.
    waiting: usize,
    /// Why it ends, unless it was asked to.
    failed: Option<Failure>,
    console: &'a Console,
}

impl Serving<'_> {
    fn heed(&mut self, event: &RelayEvent) {
        self.keeper.note(Instant::now(), event);
        match event {
            RelayEvent::Listening { .. } if self.waiting > 0 => {
                self.waiting -= 1;
                if self.waiting == 0 {
                    self.say_uri();
                }
            }
            RelayEvent::ListenFailed { ingress, addr, error } => {
                self.fail(listen_failed(*ingress, *addr, *error));
            }
            RelayEvent::AdminFailed { addr, error } => self.fail(BindError::of_admin(*addr, *error)),
            &RelayEvent::PeerPortFailed {
                key,
                transport,
                addr,
                error,
            } => {
                let error = BindError {
                    what: "visitors of a plain peer",
                    flag: "another port in its [[peer]]",
                    transport,
                    addr,
                    error,
                };
                let failure = Failure::from(error).within(&format!("peer {key}"));
                // A relay at work goes on with the rest.
                if self.has_reloaded {
                    self.console.problem(failure.as_problem());
                } else {
                    self.fail(failure);
                }
            }
            RelayEvent::PlainPeersRefused { error } => self.fail(error.clone()),
            _ => {}
        }
        if let Some(say) = self.report.take(Instant::now(), event) {
            self.console.say(say);
        }
    }

    /// Ends for this reason, if there was no earlier one.
    fn fail(&mut self, reason: impl Into<Failure>) {
        self.failed.get_or_insert_with(|| reason.into());
        self.relay.end_at_once();
    }

    /// Does what there is to do for what the relay remembers.
    fn keep(&mut self) {
        let now = Instant::now();
        self.keeper.count_lost(now, self.relay.lost_events());
        if self.keeper.wants_all(now)
            // If it has ended, that is the next thing that is heard, and it is asked once more then.
            && let Ok(kept) = self.relay.call(|relay, _| relay.kept())
        {
            self.keeper.adopt(now, kept);
        }
        self.keeper.write_if_due(now);
    }

    fn written(&mut self, result: &Result<(), StateError>) {
        self.keeper.written(Instant::now(), result);
        if let Err(error) = result {
            self.console.problem(format!(
                "what the relay remembers cannot be kept: {error}; trying again"
            ));
        }
    }

    /// What there is to say to `portal grant`, `portal revoke` and `portal status`.
    fn answer(&self, request: &Request) -> Answer {
        match request {
            Request::Status => match self.relay.call(|relay, now| relay.status(now)) {
                Ok(status) => Answer {
                    ok: true,
                    status: Some(Status::Relay(status)),
                    ..Answer::default()
                },
                Err(error) => Answer::failed(&error),
            },
            Request::Reload => match access(self.mode, &self.state) {
                Ok(access) => {
                    let open = access == Access::Open;
                    match self.relay.call(move |relay, now| relay.set_access(now, access)) {
                        Ok(()) => Answer {
                            ok: true,
                            open,
                            ..Answer::default()
                        },
                        Err(error) => Answer::failed(&error),
                    }
                }
                Err(failure) => Answer::failed(&failure),
            },
        }
    }

    /// Acts on what was read again.
    fn apply(&mut self, reloaded: reload::Reloaded) {
        // Here and not with the rest: a revocation that came in between has been confirmed and must hold. It is read on
        // this thread as well, and what is read last is handed on last.
        let access = match access(reloaded.mode, &self.state) {
            Ok(access) => access,
            Err(failure) => return self.console.problem(failure.as_problem()),
        };
        self.mode = reloaded.mode;
        let served = match &access {
            Access::Open => "everybody is served".to_owned(),
            Access::Granted(grants) if grants.len() == 1 => "1 key with a grant is served".into(),
            Access::Granted(grants) => format!("{} keys with a grant are served", grants.len()),
        };
        self.has_reloaded = true;
        let plain_peers = reloaded.plain_peers;
        let plain = check::and_peers(plain_peers.len());
        let changed = self.relay.call(move |relay, now| {
            relay.set_access(now, access);
            relay.set_plain_peers(now, plain_peers)
        });
        match changed {
            Ok(Ok(())) => self.console.note(format!("read again: {served}{plain}")),
            Ok(Err(error)) => {
                self.console.note(format!("read again: {served}"));
                self.console.problem(Failure::from(error).as_problem());
            }
            // It has ended, which is the next thing that is heard.
            Err(_) => return,
        }
        if let Some(text) = self.given.needs_restart(&reloaded.given, &reload::APPLIED) {
            self.console.problem(text);
        }
    }

    fn say_uri(&self) {
        let uri = self.uri.to_string();
        self.console
            .say(Say::Result(uri.clone(), json!({"event": "ready", "uri": uri})));
        self.console.note(format!(
            "the relay runs; agents reach it with: portal expose TARGET --relay {uri}"
        ));
    }
}

fn listen_failed(ingress: Ingress, addr: SocketAddr, error: std::io::ErrorKind) -> BindError {
    let (what, flag) = match ingress {
        Ingress::Http => ("HTTP visitors", "--http"),
        Ingress::Https => ("TLS visitors", "--https"),
    };
    BindError {
        what,
        flag,
        transport: Transport::Tcp,
        addr,
        error,
    }
}
