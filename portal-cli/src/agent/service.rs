//! A service as it was asked for, and what it takes to run it.

use std::sync::Arc;

use portal_core::names::{LabelError, check_label};
use portal_core::tls::{TlsAcceptor, TlsConnector};
use portal_core::{Kind, Service, Target};

use crate::cli::ServiceArgs;
use crate::failure::{Exit, Explain, Failure};
use crate::folder::Folder;
use crate::runtime::Servers;
use crate::target::{Offer, Place};
use crate::tls::{self, Authority, CertificateFiles, Protocols};

/// A service that can be run: its target makes sense, and what is served from here is open.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    offer: Offer,
    kind: Kind,
    args: ServiceArgs,
    folder: Option<Folder>,
    tls: Option<TlsAcceptor>,
    target_tls: Option<TlsConnector>,
    authority: Option<Arc<Authority>>,
}

impl Prepared {
    /// Looks at what a service was given, and makes a development authority if it needs one and there is none. Blocks on
    /// the file system.
    pub(crate) fn new(args: &ServiceArgs) -> Result<Self, Failure> {
        let mut prepared = Self::look(args)?;
        if prepared.kind == Kind::Https && prepared.tls.is_none() {
            let authority = Authority::of_user()?;
            prepared.tls = Some(tls::acceptor_of_authority(
                Arc::clone(&authority),
                prepared.protocols(),
            )?);
            prepared.authority = Some(authority);
        }
        Ok(prepared)
    }

    /// The same, but makes nothing: good for checks only.
    pub(crate) fn look(args: &ServiceArgs) -> Result<Self, Failure> {
        let offer = Offer::parse(&args.target)?;
        let kind = kind(&offer, args)?;
        check(&offer, kind, args)?;
        if kind == Kind::Https {
            tls::may_end_here()?;
        }
        let folder = match &offer.place {
            Place::Server(_) => None,
            Place::Files(path) => Some(Folder::open(path, args.hidden)?),
        };
        let target_tls = match &offer.place {
            Place::Server(target) if offer.tls => {
                let roots = args.target_ca.as_deref();
                Some(tls::connector(target, roots, args.target_insecure)?)
            }
            _ => None,
        };
        let mut prepared = Self {
            offer,
            kind,
            args: args.clone(),
            folder,
            tls: None,
            target_tls,
            authority: None,
        };
        if let (Some(certificate), Some(key)) = (&args.cert, &args.cert_key) {
            let files = CertificateFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            };
            prepared.tls = Some(tls::acceptor_of_files(&files, prepared.protocols())?);
        }
        Ok(prepared)
    }

    /// The development authority that signs for it, if one does.
    pub(crate) fn authority(&self) -> Option<&Authority> {
        self.authority.as_deref()
    }

    fn protocols(&self) -> Protocols {
        // The folder server takes both, as it finds them.
        if self.args.http2 || self.folder.is_some() {
            Protocols::Http2
        } else {
            Protocols::Http1
        }
    }

    /// The target as it was given.
    pub(crate) fn text(&self) -> &str {
        &self.offer.text
    }

    /// What visitors speak.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
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
            tls: self.tls.clone(),
            target_tls: self.target_tls.clone(),
            proxy: self.args.proxy,
            ..Service::new(id, self.kind, target)
        }
    }

    /// Adds the server of its files, if it has one, to what the agent can dial.
    pub(super) fn add_server(&self, servers: &Servers) {
        if let Some(folder) = &self.folder {
            servers.set(self.id(), folder);
        }
    }

    /// Whether it has a server.
    pub(super) fn is_served_here(&self) -> bool {
        self.folder.is_some()
    }

    /// Its own name, and the target as it was given.
    pub(super) fn named(&self) -> (String, String) {
        (self.id(), self.offer.text.clone())
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

/// What visitors speak: what they are to speak if that goes with the target, otherwise what the target is.
fn kind(offer: &Offer, args: &ServiceArgs) -> Result<Kind, ServiceError> {
    let wanted = match args.kind {
        Some(kind) => kind,
        // A certificate is there to be shown.
        None if args.cert.is_some() && offer.kind == Kind::Http => Kind::Https,
        None => offer.kind,
    };
    let goes = match (offer.kind, wanted) {
        (target, wanted) if target == wanted => true,
        (Kind::Http | Kind::Https, Kind::Tcp) => !matches!(offer.place, Place::Files(_)),
        (Kind::Http | Kind::Https | Kind::Tcp, Kind::Http | Kind::Https) => true,
        (Kind::Tls, Kind::Tcp) | (Kind::Tcp, Kind::Tls) => true,
        _ => false,
    };
    if !goes {
        return Err(ServiceError::Kind(wanted, offer.text.clone()));
    }
    Ok(wanted)
}

/// Flags that contradict the kind or the target.
fn check(offer: &Offer, kind: Kind, args: &ServiceArgs) -> Result<(), ServiceError> {
    let is_named = matches!(kind, Kind::Http | Kind::Https | Kind::Tls);
    if let Some(name) = &args.name
        && let Err(cause) = check_label(name)
    {
        return Err(ServiceError::Label(name.clone(), cause));
    }
    if args.port.is_some() && is_named {
        return Err(ServiceError::Port(kind));
    }
    if args.name.is_some() && !is_named {
        return Err(ServiceError::Name(kind));
    }
    if args.cert.is_some() && kind != Kind::Https {
        return Err(ServiceError::Certificate(kind));
    }
    if args.http2 && (kind != Kind::Https || offer.tls) {
        return Err(ServiceError::Http2);
    }
    if args.proxy && (kind == Kind::Udp || matches!(offer.place, Place::Files(_))) {
        return Err(ServiceError::Proxy);
    }
    if (args.target_ca.is_some() || args.target_insecure) && !offer.tls {
        return Err(ServiceError::TargetTls);
    }
    Ok(())
}

/// Why a service cannot be exposed.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error("--port does not go with the kind {0}, whose visitors come by name")]
    Port(Kind),
    #[error("--name does not go with the kind {0}, whose visitors come by port")]
    Name(Kind),
    #[error("the name {0:?} cannot be used: {1}")]
    Label(String, LabelError),
    #[error("--kind {0} does not go with the target {1}")]
    Kind(Kind, String),
    #[error("--cert does not go with the kind {0}, for which no TLS ends here")]
    Certificate(Kind),
    #[error("--http2 goes with the kind https and a target without TLS only")]
    Http2,
    #[error("--proxy goes with TCP and Unix targets only")]
    Proxy,
    #[error("--target-ca and --target-insecure go with https:// targets only")]
    TargetTls,
}

impl Explain for ServiceError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Port(_) => "use --name, or a tcp:// or udp:// target".into(),
            Self::Name(_) => "use --port, or an http:// or tls:// target".into(),
            Self::Label(..) => {
                "a name is one part of a host name: lower-case letters, digits and hyphens, as in --name blog-2".into()
            }
            Self::Kind(..) => "http, https and tcp targets can be any of these kinds; tls targets can be tcp too, udp \
                               targets are udp, files and folders http or https"
                .into(),
            Self::Certificate(_) => "add --kind https, or leave --cert out".into(),
            Self::Http2 => "leave it out: visitors get HTTP/1.1 then, which every server takes".into(),
            Self::Proxy => "leave it out; the log shows who visits".into(),
            Self::TargetTls => "write the target as https://HOST:PORT, or leave them out".into(),
        })
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}
