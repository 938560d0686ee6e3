//! `portal agent`: the services that a file names.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use crate::agent::{self, Again, AgentKey, Plan, Prepared, Reload};
use crate::cli::{AgentArgs, Command, Output, ServiceArgs};
use crate::config::{Given, Invocation, Place};
use crate::failure::{Exit, Explain, Failure};
use crate::process;

/// Runs the command until it is told to end.
pub(crate) fn run(args: AgentArgs, given: Given, output: Output) -> Result<(), Failure> {
    let services = services(&args, &given)?;
    let Some(relay) = args.uplink.relay.clone() else {
        return Err(ServicesError::NoRelay(args.config).into());
    };
    if args.check.check {
        return agent::check(&args.uplink, &services, output);
    }
    process::raise_descriptor_limit();
    let plan = Plan {
        name: args.name,
        relay,
        limits: agent::limits(&args.uplink),
        key: AgentKey::take(args.uplink.key, true)?,
        services,
        bind: Ipv6Addr::UNSPECIFIED.into(),
        mtu: args.uplink.tunnel.packets.mtu,
        admin: args.uplink.tunnel.admin(),
        reload: Some(Reload { given, read }),
        once: args.uplink.once,
        codes: false,
    };
    plan.run(output)
}

/// Reads the file again.
fn read() -> Result<Again, Failure> {
    let Invocation { cli, given } = Invocation::load()?;
    let Command::Agent(args) = cli.command else {
        unreachable!("the command line stays the same");
    };
    Ok(Again {
        services: services(&args, &given)?,
        given,
    })
}

/// The services of the file, each one that can be run, and told apart. Blocks on the file system.
fn services(args: &AgentArgs, given: &Given) -> Result<Vec<Prepared>, Failure> {
    let mut places: BTreeMap<String, &Place> = BTreeMap::new();
    let mut services = Vec::new();
    let prepare = if args.check.check {
        Prepared::look
    } else {
        Prepared::new
    };
    for table in given.tables("service") {
        let args: ServiceArgs = table.parse()?;
        let service = prepare(&args).map_err(|failure| failure.within(&table.place))?;
        if let Some(first) = places.insert(service.id(), &table.place) {
            return Err(ServicesError::Alike {
                place: table.place.clone(),
                first: first.line,
                id: service.id(),
            }
            .into());
        }
        services.push(service);
    }
    if services.is_empty() {
        return Err(ServicesError::None(args.config.clone()).into());
    }
    Ok(services)
}

/// Why the services of a file cannot be run.
#[derive(Debug, thiserror::Error)]
enum ServicesError {
    #[error("{}: the relay is missing", .0.display())]
    NoRelay(PathBuf),
    #[error("{}: there is no [[service]] in it", .0.display())]
    None(PathBuf),
    #[error("{place}: this [[service]] is not told apart from the one in line {first}: both are {id}")]
    Alike { place: Place, first: usize, id: String },
}

impl Explain for ServicesError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoRelay(_) => {
                "add a line relay = \"portal://...\" with the URI that `portal relay` prints, or use --relay".into()
            }
            Self::None(_) => "add the lines:\n[[service]]\ntarget = \"3000\"".into(),
            Self::Alike { .. } => "give one of them another name, or an id of its own: id = \"...\"".into(),
        })
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}
