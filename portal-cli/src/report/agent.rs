//! An agent's events as lines, and which of them end the program.

use std::time::{Duration, Instant};

use portal_core::identity::PublicKey;
use portal_core::uri::RelayUri;
use portal_core::{AgentEvent, DialError, RefusalCode, Target};
use serde_json::json;

use super::{Say, Throttle, foreign};
use crate::failure::Explain;

/// What the program does after an event.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It goes on.
    GoOn,
    /// It ends.
    End(Hopeless),
}

/// Turns events into lines.
#[derive(Debug)]
pub(crate) struct AgentReport {
    /// What is exposed, as the user wrote it.
    target: String,
    relay: RelayUri,
    key: PublicKey,
    /// Trouble with the relay is the end.
    once: bool,
    /// The address that was printed last.
    public: Option<String>,
    connected_before: bool,
    connected: bool,
    last_refusal: Option<(RefusalCode, String)>,
    refusals: Throttle,
    silence: Throttle,
    target_failures: Throttle,
}

/// How often a refusal that has not changed is repeated.
const REFUSAL_EVERY: Duration = Duration::from_secs(60);
const SILENCE_EVERY: Duration = Duration::from_secs(30);
const TARGET_EVERY: Duration = Duration::from_secs(5);

impl AgentReport {
    pub(crate) fn new(target: String, relay: RelayUri, key: PublicKey, once: bool) -> Self {
        Self {
            target,
            relay,
            key,
            once,
            public: None,
            connected_before: false,
            connected: false,
            last_refusal: None,
            refusals: Throttle::new(REFUSAL_EVERY),
            silence: Throttle::new(SILENCE_EVERY),
            target_failures: Throttle::new(TARGET_EVERY),
        }
    }

    /// What to say about an event, and what to do.
    pub(crate) fn take(&mut self, now: Instant, event: AgentEvent, say: &mut impl FnMut(Say)) -> Verdict {
        match event {
            AgentEvent::Unresolved { host, .. } => {
                let cause = format!("the relay's name {} has no address", foreign(&host));
                return self.trouble(now, cause, "check its spelling, and this machine's DNS", say);
            }
            AgentEvent::RelaySilent { remote, since, .. } => {
                let cause = format!(
                    "relay {remote} does not answer ({} s): it may be down, UDP may be blocked on the way, or the key \
                     in the URI may be wrong",
                    since.as_secs().max(1)
                );
                let help = "compare the URI with the one that the relay printed, and let UDP through to it";
                return self.trouble(now, cause, help, say);
            }
            AgentEvent::RelayUp { remote, .. } => {
                self.silence.reset();
                self.connected = true;
                if std::mem::replace(&mut self.connected_before, true) {
                    say(Say::Note(format!("connected to relay {remote} again")));
                }
            }
            AgentEvent::RelayDown { reason } => {
                self.connected = false;
                say(Say::Problem(format!(
                    "the connection to relay {} is lost: {}; trying again",
                    self.relay_name(),
                    foreign(&reason)
                )));
            }
            AgentEvent::RelayRefused { code, message, .. } => return self.relay_refused(now, code, &message, say),
            AgentEvent::Granted { public, .. } => self.granted(&public, say),
            AgentEvent::Refused { code, message, .. } => return self.service_refused(now, code, &message, say),
            AgentEvent::Revoked { message, .. } => {
                say(Say::Problem(format!(
                    "the relay has ended the service: {}",
                    foreign(&message)
                )));
            }
            AgentEvent::TargetFailed { target, error, .. } => self.target_failed(now, &target, error, say),
            AgentEvent::VisitorLeft {
                visitor,
                received,
                sent,
                finished,
                ..
            } => {
                let visitor = visitor.map_or_else(|| "a visitor".to_owned(), |visitor| visitor.to_string());
                let end = if finished { "" } else { ", broken off" };
                say(Say::Note(format!(
                    "{visitor}: {received} bytes received, {sent} sent{end}"
                )));
            }
            _ => {}
        }
        Verdict::GoOn
    }

    fn granted(&mut self, public: &str, say: &mut impl FnMut(Say)) {
        self.last_refusal = None;
        self.refusals.reset();
        let public = foreign(public);
        if self.public.as_deref() == Some(public.as_str()) {
            return;
        }
        let result = json!({"event": "granted", "target": &self.target, "public": &public});
        say(Say::Result(public.clone(), result));
        say(Say::Note(format!("{} is at {public}; Ctrl-C ends it", self.target)));
        self.public = Some(public);
    }

    /// The relay cannot be reached.
    fn trouble(&mut self, now: Instant, cause: String, help: &'static str, say: &mut impl FnMut(Say)) -> Verdict {
        if self.once {
            return Verdict::End(Hopeless {
                cause,
                help: Some(help.into()),
            });
        }
        if self.silence.admit(now).is_some() {
            say(Say::Problem(format!("{cause}; trying again")));
        }
        Verdict::GoOn
    }

    fn relay_refused(&mut self, now: Instant, code: RefusalCode, message: &str, say: &mut impl FnMut(Say)) -> Verdict {
        let (cause, help) = match code {
            RefusalCode::NotGranted => (
                format!(
                    "relay {} refuses this agent's key {}: it has no grant there",
                    self.relay_name(),
                    self.key
                ),
                format!("on the relay's machine: portal grant {}", self.key),
            ),
            _ => (
                format!("relay {} refuses this agent: {}", self.relay_name(), foreign(message)),
                String::new(),
            ),
        };
        if self.once {
            return Verdict::End(Hopeless {
                cause,
                help: Some(help).filter(|help| !help.is_empty()),
            });
        }
        if self.is_news(now, code, message) {
            let help = if help.is_empty() {
                help
            } else {
                format!("\n  help: {help}")
            };
            say(Say::Problem(format!("{cause}; trying again{help}")));
        }
        Verdict::GoOn
    }

    fn service_refused(
        &mut self,
        now: Instant,
        code: RefusalCode,
        message: &str,
        say: &mut impl FnMut(Say),
    ) -> Verdict {
        let cause = format!(
            "relay {} refuses to expose {}: {}",
            self.relay_name(),
            self.target,
            foreign(message)
        );
        if self.once || !code.may_pass() {
            return Verdict::End(Hopeless { cause, help: None });
        }
        if self.is_news(now, code, message) {
            say(Say::Problem(format!("{cause}; trying again")));
        }
        Verdict::GoOn
    }

    fn target_failed(&mut self, now: Instant, target: &Target, error: DialError, say: &mut impl FnMut(Say)) {
        let Some(skipped) = self.target_failures.admit(now) else {
            return;
        };
        let more = match skipped {
            0 => String::new(),
            more => format!(" ({more} more before this)"),
        };
        say(Say::Problem(format!(
            "a visitor came, but connecting to {target} failed: {error}{more}\n  help: {}",
            target_help(error)
        )));
    }

    /// Whether this refusal has to be said: it is another one, or the last time was long ago.
    fn is_news(&mut self, now: Instant, code: RefusalCode, message: &str) -> bool {
        let refusal = (code, message.to_owned());
        if self.last_refusal.as_ref() != Some(&refusal) {
            self.refusals.reset();
            self.last_refusal = Some(refusal);
        }
        self.refusals.admit(now).is_some()
    }

    fn relay_name(&self) -> String {
        let (host, port) = (&self.relay.host, self.relay.port);
        Target::Host {
            host: host.clone(),
            port,
        }
        .to_string()
    }
}

/// The mend for a target that cannot be reached.
pub(crate) fn target_help(error: DialError) -> &'static str {
    match error {
        DialError::Refused => "start the service there, or check the port",
        DialError::NotFound => "start the service that makes this socket, or check the path",
        DialError::Unresolved => "check the spelling of the host, and this machine's DNS",
        DialError::TimedOut | DialError::Unreachable => "check the address, and that no firewall is in between",
        DialError::PermissionDenied => "run portal as a user who may connect to it",
        DialError::Exhausted => "raise the limit of open files (ulimit -n)",
        _ => "check that it takes connections",
    }
}

/// The agent is not going to be of use.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub(crate) struct Hopeless {
    cause: String,
    help: Option<String>,
}

impl Explain for Hopeless {
    fn help(&self) -> Option<String> {
        self.help.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(once: bool) -> AgentReport {
        let relay = RelayUri {
            key: PublicKey::from_bytes([1; 32]),
            host: "relay.test".into(),
            port: 51820,
        };
        AgentReport::new("3000".into(), relay, PublicKey::from_bytes([2; 32]), once)
    }

    fn take(report: &mut AgentReport, now: Instant, event: AgentEvent) -> (Vec<Say>, Verdict) {
        let mut said = Vec::new();
        let verdict = report.take(now, event, &mut |say| said.push(say));
        (said, verdict)
    }

    fn granted(public: &str) -> AgentEvent {
        AgentEvent::Granted {
            service: "3000".into(),
            public: public.into(),
        }
    }

    #[test]
    fn an_address_is_printed_once_unless_it_changes() {
        let (mut report, now) = (report(false), Instant::now());
        let (said, _) = take(&mut report, now, granted("http://a.test/"));
        assert!(matches!(&said[0], Say::Result(text, _) if text == "http://a.test/"));
        assert!(take(&mut report, now, granted("http://a.test/")).0.is_empty());
        let (said, _) = take(&mut report, now, granted("http://b.test/"));
        assert!(matches!(&said[0], Say::Result(text, _) if text == "http://b.test/"));
    }

    #[test]
    fn a_missing_grant_names_the_key_and_the_command_once_a_minute() {
        let (mut report, now) = (report(false), Instant::now());
        let refused = || AgentEvent::RelayRefused {
            code: RefusalCode::NotGranted,
            message: "no".into(),
            retry: Duration::from_secs(3),
        };
        let (said, _) = take(&mut report, now, refused());
        let Say::Problem(text) = &said[0] else { panic!() };
        assert!(
            text.contains(&format!("portal grant {}", PublicKey::from_bytes([2; 32]))),
            "{text}"
        );
        assert!(take(&mut report, now + Duration::from_secs(59), refused()).0.is_empty());
        assert_eq!(take(&mut report, now + Duration::from_secs(60), refused()).0.len(), 1);
        let (_, verdict) = take(&mut self::report(true), now, refused());
        assert!(matches!(verdict, Verdict::End(_)));
    }

    #[test]
    fn a_refusal_that_cannot_pass_is_the_end() {
        let (mut report, now) = (report(false), Instant::now());
        let refused = |code| AgentEvent::Refused {
            service: "3000".into(),
            code,
            message: "no".into(),
        };
        assert!(matches!(
            take(&mut report, now, refused(RefusalCode::NameTaken)).1,
            Verdict::GoOn
        ));
        assert!(matches!(
            take(&mut report, now, refused(RefusalCode::KindUnavailable)).1,
            Verdict::End(_)
        ));
    }

    #[test]
    fn a_target_that_is_down_is_named_once_in_five_seconds() {
        let (mut report, now) = (report(false), Instant::now());
        let failed = || AgentEvent::TargetFailed {
            service: "3000".into(),
            target: Target::Host {
                host: "127.0.0.1".into(),
                port: 3000,
            },
            error: DialError::Refused,
        };
        let (said, _) = take(&mut report, now, failed());
        let Say::Problem(text) = &said[0] else { panic!() };
        assert!(
            text.contains("127.0.0.1:3000") && text.contains("refused") && text.contains("start"),
            "{text}"
        );
        assert!(take(&mut report, now + Duration::from_secs(4), failed()).0.is_empty());
        let (said, _) = take(&mut report, now + Duration::from_secs(6), failed());
        assert!(matches!(&said[0], Say::Problem(text) if text.contains("1 more")));
    }
}
