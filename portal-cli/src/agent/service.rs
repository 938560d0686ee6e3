//! A service as it was asked for, and what it takes to run it.

use portal_core::{Kind, Service, Target};
use portal_runtime_tokio::Handlers;
use tokio::net::UnixStream;

use crate::cli::ServiceArgs;
use crate::failure::{Exit, Explain, Failure};
use crate::folder::{Folder, FolderError};
use crate::target::{Offer, Place};

/// A service that can be run: its target makes sense, and what is served from here is open.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    offer: Offer,
    args: ServiceArgs,
    folder: Option<Folder>,
}

impl Prepared {
    /// Looks at what a service was given. Blocks on the file system.
    pub(crate) fn new(args: &ServiceArgs) -> Result<Self, Failure> {
        let offer = Offer::parse(&args.target)?;
        match offer.kind {
            Kind::Http | Kind::Https | Kind::Tls if args.port.is_some() => {
                return Err(ServiceError::Port(offer.kind).into());
            }
            Kind::Tcp | Kind::Udp if args.name.is_some() => return Err(ServiceError::Name(offer.kind).into()),
            _ => {}
        }
        let folder = match &offer.place {
            Place::Server(_) => None,
            Place::Files(path) => Some(Folder::open(path, args.hidden)?),
        };
        Ok(Self {
            offer,
            args: args.clone(),
            folder,
        })
    }

    /// The target as it was given.
    pub(crate) fn text(&self) -> &str {
        &self.offer.text
    }

    /// What visitors speak.
    pub(crate) fn kind(&self) -> Kind {
        self.offer.kind
    }

    /// For the core. Several services of one key need names of their own; a target may be there more than once with
    /// another public name or port each.
    pub(crate) fn service(&self) -> Service {
        let id = self.id();
        let target = match &self.offer.place {
            Place::Server(target) => target.clone(),
            Place::Files(_) => Target::Handler(id.clone()),
        };
        Service {
            name: self.args.name.clone(),
            port: self.args.port,
            ..Service::new(id, self.offer.kind, target)
        }
    }

    /// Adds the server of its files, if it has one, to what the agent can dial.
    pub(crate) fn add_handler(&self, handlers: Handlers) -> Handlers {
        let Some(folder) = self.folder.clone() else {
            return handlers;
        };
        handlers.with(self.id(), move |connection: UnixStream| {
            let folder = folder.clone();
            tokio::spawn(async move { folder.serve(connection).await });
        })
    }

    /// Its own name among the services of its agent.
    pub(crate) fn id(&self) -> String {
        if let Some(id) = &self.args.id {
            return id.clone();
        }
        let port = self.args.port.map(|port| port.to_string());
        self.offer.service_id(self.args.name.as_deref().or(port.as_deref()))
    }
}

/// Why a service cannot be exposed.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error("--port does not go with the kind {0}, whose visitors come by name")]
    Port(Kind),
    #[error("--name does not go with the kind {0}, whose visitors come by port")]
    Name(Kind),
}

impl Explain for ServiceError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Port(_) => Some("use --name, or a tcp:// or udp:// target".into()),
            Self::Name(_) => Some("use --port, or an http:// or tls:// target".into()),
        }
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}

impl Explain for FolderError {}
