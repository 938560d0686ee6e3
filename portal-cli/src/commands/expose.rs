//! `portal expose`: an agent with one service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portal_core::{Kind, Limits};

use crate::agent::{self, AgentKey, Plan, Prepared};
use crate::cli::{ExposeArgs, Output};
use crate::config::Given;
use crate::embedded::Embedded;
use crate::failure::{Exit, Explain, Failure};
use crate::process;

/// Runs the command until it is told to end.
pub(crate) fn run(mut args: ExposeArgs, given: &Given, output: Output) -> Result<(), Failure> {
    let wants_http = given.is_flag("http");
    if args.uplink.relay.is_some() && wants_http {
        return Err(ExposeError::HttpOfRelay.into());
    }
    let service = if args.check.check {
        Prepared::look(&args.service)?
    } else {
        Prepared::new(&args.service)?
    };
    let kind = service.kind();
    if matches!(kind, Kind::Tcp | Kind::Udp) {
        if wants_http {
            return Err(ExposeError::Http(kind).into());
        }
        // It may be set in an environment for whatever is exposed there.
        args.http = None;
    }
    if args.check.check {
        return agent::check(&args.uplink, &[service], output);
    }
    process::raise_descriptor_limit();
    let limits = agent::limits(&args.uplink);
    let key = AgentKey::take(args.uplink.key, args.uplink.relay.is_some())?;
    let (relay, embedded) = match args.uplink.relay {
        Some(uri) => (uri, None),
        None => {
            let http = args.http.map(|listen| listen.0);
            let peers = Limits { peers: 64, ..limits };
            let embedded = Embedded::start(kind, http, peers)?;
            (embedded.uri.clone(), Some(embedded))
        }
    };
    let plan = Plan {
        name: None,
        relay,
        key,
        services: vec![service],
        bind: match embedded {
            Some(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        },
        limits,
        mtu: args.uplink.tunnel.packets.mtu,
        admin: args.uplink.tunnel.admin(),
        reload: None,
        once: args.uplink.once,
        codes: !args.no_qr,
    };
    let result = plan.run(output);
    drop(embedded);
    result
}

/// Why a target cannot be exposed.
#[derive(Debug, thiserror::Error)]
enum ExposeError {
    #[error("--http cannot be used with --relay: that relay has its own place for visitors")]
    HttpOfRelay,
    #[error("--http does not go with the kind {0}, whose visitors come by port")]
    Http(Kind),
}

impl Explain for ExposeError {
    fn help(&self) -> Option<String> {
        match self {
            Self::HttpOfRelay => {
                Some("leave --http out; or --relay and PORTAL_RELAY, for a relay of its own on this machine".into())
            }
            Self::Http(_) => Some("use --port, or an http:// or tls:// target".into()),
        }
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}
