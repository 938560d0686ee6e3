//! An agent's events as lines, and which of them end the program.

use std::collections::BTreeMap;
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
    relay: RelayUri,
    key: PublicKey,
    /// There is one service, and the program ends with it.
    sole: bool,
    /// Trouble with the relay is the end.
    once: bool,
    /// Addresses that a browser opens are shown as QR codes too.
    codes: bool,
    /// By the agent's own names for them.
    services: BTreeMap<String, ServiceReport>,
    connected_before: bool,
    connected: bool,
    refusals: Refusals,
    silence: Throttle,
}

/// What was said about a service.
#[derive(Debug)]
struct ServiceReport {
    /// What is exposed, as the user wrote it.
    target: String,
    /// The address that was printed last.
    public: Option<String>,
    refusals: Refusals,
    target_failures: Throttle,
}

/// Refusals of one thing.
#[derive(Debug)]
struct Refusals {
    last: Option<(RefusalCode, String)>,
    again: Throttle,
}

/// How often a refusal that has not changed is repeated.
const REFUSAL_EVERY: Duration = Duration::from_secs(60);
const SILENCE_EVERY: Duration = Duration::from_secs(30);
const TARGET_EVERY: Duration = Duration::from_secs(5);

impl AgentReport {
    pub(crate) fn new(relay: RelayUri, key: PublicKey, sole: bool, once: bool) -> Self {
        Self {
            relay,
            key,
            sole,
            once,
            codes: false,
            services: BTreeMap::new(),
            connected_before: false,
            connected: false,
            refusals: Refusals::new(),
            silence: Throttle::new(SILENCE_EVERY),
        }
    }

    /// Shows addresses that a browser opens as QR codes too, where there is a terminal.
    pub(crate) fn show_codes(&mut self) {
        self.codes = true;
    }

    /// What is exposed from now on: the services' own names, and their targets as the user wrote them.
    pub(crate) fn set_services(&mut self, services: impl IntoIterator<Item = (String, String)>) {
        let mut before = std::mem::take(&mut self.services);
        self.services = services
            .into_iter()
            .map(|(id, target)| {
                let mut service = before.remove(&id).unwrap_or_else(ServiceReport::new);
                service.target = target;
                (id, service)
            })
            .collect();
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
            AgentEvent::AdminListening { local } => say(Say::Note(super::admin_at(local))),
            AgentEvent::RelayRefused { code, message, .. } => return self.relay_refused(now, code, &message, say),
            AgentEvent::Granted { service, public } => self.granted(&service, &public, say),
            AgentEvent::Refused { service, code, message } => {
                return self.service_refused(now, &service, code, &message, say);
            }
            AgentEvent::Revoked { service, message } => {
                let which = self.target_of(&service);
                let which = if self.sole { "the service" } else { which };
                say(Say::Problem(format!(
                    "the relay has ended {which}: {}",
                    foreign(&message)
                )));
            }
            AgentEvent::MemoryShort { refused } => say(super::memory_short(refused)),
            AgentEvent::TargetFailed { service, target, error } => {
                self.target_failed(now, &service, &target, error, say);
            }
            AgentEvent::VisitorLeft {
                service,
                visitor,
                received,
                sent,
                finished,
            } => {
                let name = visitor.map_or_else(|| "a visitor".to_owned(), |visitor| visitor.to_string());
                let of = match self.sole {
                    true => String::new(),
                    false => format!(" of {}", self.target_of(&service)),
                };
                let end = if finished { "" } else { ", broken off" };
                say(Say::Record(
                    format!("{name}{of}: {received} bytes received, {sent} sent{end}"),
                    json!({
                        "event": "connection",
                        "service": service,
                        "visitor": visitor,
                        "received": received,
                        "sent": sent,
                        "finished": finished,
                    }),
                ));
            }
            _ => {}
        }
        Verdict::GoOn
    }

    fn granted(&mut self, id: &str, public: &str, say: &mut impl FnMut(Say)) {
        self.refusals.reset();
        let Some(service) = self.services.get_mut(id) else {
            return;
        };
        service.refusals.reset();
        let (public, target) = (foreign(public), &service.target);
        if service.public.as_deref() == Some(public.as_str()) {
            return;
        }
        let result = json!({"event": "granted", "service": id, "target": target, "public": &public});
        let (line, end) = match self.sole {
            true => (public.clone(), "; Ctrl-C ends it"),
            // The address first: it has no spaces, a path may have some.
            false => (format!("{public} {target}"), ""),
        };
        say(Say::Result(line, result));
        say(Say::Note(format!("{target} is at {public}{end}")));
        if self.codes && (public.starts_with("http://") || public.starts_with("https://")) {
            say(Say::Code(public.clone()));
        }
        service.public = Some(public);
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
            say(Say::Problem(format!("{cause}; trying again\n  help: {help}")));
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
        if self.refusals.is_news(now, code, message) {
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
        id: &str,
        code: RefusalCode,
        message: &str,
        say: &mut impl FnMut(Say),
    ) -> Verdict {
        let cause = format!(
            "relay {} refuses to expose {}: {}",
            self.relay_name(),
            self.target_of(id),
            foreign(message)
        );
        let help = self.refusal_help(&code);
        // Other services may do well.
        let passing = code.may_pass();
        if self.once || self.sole && !passing {
            return Verdict::End(Hopeless {
                cause,
                help: Some(help),
            });
        }
        let Some(service) = self.services.get_mut(id) else {
            return Verdict::GoOn;
        };
        if service.refusals.is_news(now, code, message) {
            let then = if passing { "; trying again" } else { "" };
            say(Say::Problem(format!("{cause}{then}\n  help: {help}")));
        }
        Verdict::GoOn
    }

    /// The mend for a service that got no lease.
    fn refusal_help(&self, code: &RefusalCode) -> String {
        match code {
            RefusalCode::NameTaken | RefusalCode::NameInvalid => {
                "choose another name with --name, or none to be given one".into()
            }
            RefusalCode::PortBusy | RefusalCode::PortOutOfRange => {
                "choose another port with --port, or none to be given one".into()
            }
            RefusalCode::NotGranted | RefusalCode::NotAllowed => {
                format!(
                    "on the relay's machine: portal grant {}, with what is to be allowed",
                    self.key
                )
            }
            RefusalCode::KindUnavailable => "start the relay with it, or expose the target in another way".into(),
            RefusalCode::LimitReached => "end services that are not needed, or let the relay have more".into(),
            _ => "update the older of the two, agent or relay".into(),
        }
    }

    fn target_failed(&mut self, now: Instant, id: &str, target: &Target, error: DialError, say: &mut impl FnMut(Say)) {
        let Some(service) = self.services.get_mut(id) else {
            return;
        };
        let Some(skipped) = service.target_failures.admit(now) else {
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

    /// A service's target as the user wrote it. One that was taken away a moment ago goes by its own name.
    fn target_of<'a>(&'a self, id: &'a str) -> &'a str {
        self.services.get(id).map_or(id, |service| &service.target)
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

impl ServiceReport {
    fn new() -> Self {
        Self {
            target: String::new(),
            public: None,
            refusals: Refusals::new(),
            target_failures: Throttle::new(TARGET_EVERY),
        }
    }
}

impl Refusals {
    fn new() -> Self {
        Self {
            last: None,
            again: Throttle::new(REFUSAL_EVERY),
        }
    }

    /// Whether this refusal has to be said: it is another one, or the last time was long ago.
    fn is_news(&mut self, now: Instant, code: RefusalCode, message: &str) -> bool {
        let refusal = (code, message.to_owned());
        if self.last.as_ref() != Some(&refusal) {
            self.again.reset();
            self.last = Some(refusal);
        }
        self.again.admit(now).is_some()
    }

    /// What was refused is granted: the next refusal is news.
    fn reset(&mut self) {
        self.last = None;
        self.again.reset();
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
        DialError::Untrusted => {
            "name its root certificates with --target-ca, or believe it as it is with --target-insecure"
        }
        DialError::Tls => "if it speaks plain HTTP, write the target as http://",
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
        let mut report = AgentReport::new(relay, PublicKey::from_bytes([2; 32]), true, once);
        report.set_services([("3000".into(), "3000".into())]);
        report
    }

    /// As of `portal agent`.
    fn report_of_several() -> AgentReport {
        let mut report = AgentReport {
            sole: false,
            ..report(false)
        };
        report.set_services(
            [("3000#blog", "3000"), ("site", "./my site")].map(|(id, target)| (id.into(), target.into())),
        );
        report
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
    fn an_address_for_browsers_is_shown_as_a_code_if_that_is_wanted() {
        let (mut report, now) = (report(false), Instant::now());
        let codes = |report: &mut AgentReport, public: &str| -> Vec<String> {
            let said = take(report, now, granted(public)).0;
            said.into_iter()
                .filter_map(|say| match say {
                    Say::Code(text) => Some(text),
                    _ => None,
                })
                .collect()
        };
        assert!(codes(&mut report, "http://a.test/").is_empty());
        report.show_codes();
        assert_eq!(codes(&mut report, "http://b.test/"), ["http://b.test/"]);
        assert_eq!(codes(&mut report, "https://b.test/"), ["https://b.test/"]);
        assert!(codes(&mut report, "tcp://b.test:1").is_empty());
        assert!(codes(&mut report, "udp://b.test:1").is_empty());
    }

    #[test]
    fn a_connection_is_a_line_for_people_and_for_programs() {
        let (mut report, now) = (report_of_several(), Instant::now());
        let left = |visitor: Option<&str>, finished| AgentEvent::VisitorLeft {
            service: "site".into(),
            visitor: visitor.map(|visitor| visitor.parse().unwrap()),
            received: 12,
            sent: 3456,
            finished,
        };
        let (said, _) = take(&mut report, now, left(Some("192.0.2.7:4711"), true));
        let json = json!({
            "event": "connection", "service": "site", "visitor": "192.0.2.7:4711",
            "received": 12, "sent": 3456, "finished": true,
        });
        let line = "192.0.2.7:4711 of ./my site: 12 bytes received, 3456 sent".to_owned();
        assert_eq!(said, [Say::Record(line, json)]);
        let (said, _) = take(&mut report, now, left(None, false));
        let [Say::Record(line, json)] = said.as_slice() else {
            panic!("{said:?}")
        };
        assert!(line.starts_with("a visitor") && line.ends_with("broken off"), "{line}");
        assert_eq!((&json["visitor"], &json["finished"]), (&json!(null), &json!(false)));
    }

    #[test]
    fn several_services_are_told_apart() {
        let (mut report, now) = (report_of_several(), Instant::now());
        let (said, _) = take(
            &mut report,
            now,
            AgentEvent::Granted {
                service: "site".into(),
                public: "http://a.test/".into(),
            },
        );
        let Say::Result(line, json) = &said[0] else { panic!() };
        assert_eq!(line, "http://a.test/ ./my site");
        assert_eq!(
            json,
            &json!({"event": "granted", "service": "site", "target": "./my site", "public": "http://a.test/"})
        );
        let refused = || AgentEvent::Refused {
            service: "3000#blog".into(),
            code: RefusalCode::NameInvalid,
            message: "no".into(),
        };
        let (said, verdict) = take(&mut report, now, refused());
        assert!(matches!(verdict, Verdict::GoOn));
        let Say::Problem(text) = &said[0] else { panic!() };
        assert!(text.contains("expose 3000: no") && !text.contains("again"), "{text}");
        assert!(take(&mut report, now, refused()).0.is_empty(), "said once");
        let mut once = AgentReport {
            once: true,
            ..report_of_several()
        };
        assert!(matches!(take(&mut once, now, refused()).1, Verdict::End(_)));
    }

    #[test]
    fn a_service_that_stays_is_not_announced_again() {
        let (mut report, now) = (report_of_several(), Instant::now());
        let granted = |service: &str| AgentEvent::Granted {
            service: service.into(),
            public: "http://a.test/".into(),
        };
        assert_eq!(take(&mut report, now, granted("site")).0.len(), 2);
        report.set_services([("site", "./my site"), ("new", "4000")].map(|(id, target)| (id.into(), target.into())));
        assert!(take(&mut report, now, granted("site")).0.is_empty());
        assert_eq!(take(&mut report, now, granted("new")).0.len(), 2);
        assert!(take(&mut report, now, granted("3000#blog")).0.is_empty(), "it is gone");
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
