//! Runs an agent with its services: what `portal expose` and `portal agent` have in common.

mod control;
mod key;
mod probe;
mod serve;
mod service;

use std::net::{IpAddr, SocketAddr};

use portal_core::uri::RelayUri;
use portal_core::{AgentConfig, Limits, Target};
use serde_json::json;

pub(crate) use self::key::AgentKey;
pub(crate) use self::serve::{Again, Reload};
pub(crate) use self::service::Prepared;
use crate::cli::{Output, UplinkArgs};
use crate::failure::Failure;
use crate::notices::Notices;
use crate::report::agent::AgentReport;
use crate::report::{self, Console};
use crate::runtime::Servers;
use crate::{keyfile, sockets};

/// An agent that is about to run.
pub(crate) struct Plan {
    /// What it calls itself, for people.
    pub(crate) name: Option<String>,
    pub(crate) relay: RelayUri,
    pub(crate) key: AgentKey,
    pub(crate) services: Vec<Prepared>,
    /// Where its socket is.
    pub(crate) bind: IpAddr,
    pub(crate) limits: Limits,
    pub(crate) mtu: u16,
    /// Where operators ask it how it is.
    pub(crate) admin: Option<SocketAddr>,
    /// How its services change while it runs. Without, it has one and ends with it.
    pub(crate) reload: Option<Reload>,
    /// Trouble with the relay is the end.
    pub(crate) once: bool,
    /// Addresses that a browser opens are shown as QR codes too.
    pub(crate) codes: bool,
}

impl Plan {
    /// Runs the agent until a signal, or until its relay makes it hopeless.
    pub(crate) fn run(self, output: Output) -> Result<(), Failure> {
        let key = self.key.secret.public_key();
        let version = concat!("portal ", env!("CARGO_PKG_VERSION"));
        let mut config = AgentConfig::new(self.key.secret.clone(), keyfile::random()?, self.relay.clone());
        config.name = match &self.name {
            Some(name) => format!("{name}, {version}"),
            None => version.into(),
        };
        config.limits = self.limits;
        config.mtu = self.mtu;
        config.admin = self.admin;
        config.services = self.services.iter().map(Prepared::service).collect();
        let servers = Servers::default();
        for service in &self.services {
            service.add_server(&servers);
        }
        let socket = sockets::bind_udp(SocketAddr::new(self.bind, 0))?;

        // Before anything is said: whoever reads it may answer with a signal.
        let notices = Notices::new();
        notices.watch_signals(self.reload.is_some())?;
        let console = Console::new(output);
        let mut report = AgentReport::new(self.relay.clone(), key, self.reload.is_none(), self.once);
        if self.codes {
            report.show_codes();
        }
        report.set_services(self.services.iter().map(Prepared::named));
        if let Some(path) = &self.key.made {
            console.note(format!("a new key was made: {}", path.display()));
        }
        // A relay of the command's own goes without saying.
        if !self.bind.is_loopback() {
            console.note(format!(
                "exposing {} by relay {}, with the key {key}",
                texts(&self.services),
                place(&self.relay)
            ));
        }
        if let Some(authority) = self.services.iter().find_map(Prepared::authority) {
            console.note(authority.advice());
        }
        probe::all(config.services.clone(), &console);
        let control = control::open(&self.key, &console);
        if let Some(control) = &control {
            notices.listen(control)?;
        }
        let result = serve::serve(&notices, config, socket, servers, report, self.reload, &console);
        drop(control);
        console.finish();
        result
    }
}

/// What an agent may use at most.
pub(crate) fn limits(args: &UplinkArgs) -> Limits {
    Limits {
        peers: 8,
        ..args.tunnel.limits()
    }
}

/// Says what would be run, having looked at the key too. Opens no socket and makes no file.
pub(crate) fn check(uplink: &UplinkArgs, services: &[Prepared], output: Output) -> Result<(), Failure> {
    let (file, key) = AgentKey::look(uplink.key.as_deref())?;
    let relay = uplink.relay.as_ref().map(place);
    let by = match &relay {
        Some(relay) => format!("relay {relay}"),
        None => "a relay of its own on this machine".into(),
    };
    let with = match &key {
        Some(key) => format!("the key {key} ({})", file.display()),
        None => format!("a new key, to be made in {}", file.display()),
    };
    let listed: Vec<_> = services
        .iter()
        .map(|service| json!({"id": service.id(), "target": service.text(), "kind": service.kind().to_string()}))
        .collect();
    report::print_result(
        output,
        &format!("ready to expose {} by {by}\nwith {with}", texts(services)),
        &json!({
            "event": "checked",
            "services": listed,
            "relay": relay.map(|relay| relay.to_string()),
            "key": key,
            "key_file": file.to_string_lossy(),
        }),
    );
    Ok(())
}

/// The targets in one line.
fn texts(services: &[Prepared]) -> String {
    let texts: Vec<_> = services.iter().map(Prepared::text).collect();
    texts.join(", ")
}

fn place(relay: &RelayUri) -> Target {
    Target::Host {
        host: relay.host.clone(),
        port: relay.port,
    }
}
