//! TLS at the agent: what a program hands in so that an agent can end its visitors' TLS, or speak TLS to a target.
//!
//! rustls does the protocol (TLS 1.2 and 1.3, RFC 5246 and RFC 8446) without any I/O of its own. Its random numbers come
//! from the system's generator, as boringtun's do; its time comes from a [`TlsClock`], which the agent sets.
//!
//! A connection that ends by FIN without `close_notify` counts as ended, as with most servers, for many clients never send
//! it. So TLS alone does not tell a target that a message was cut off on the way; the lengths within HTTP do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ResolvesServerCert, ServerSessionMemoryCache, WantsServerCert};
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};

pub use rustls::pki_types;

/// The wall clock of TLS: it moves with the machine's own time, from a date that comes in.
#[derive(Clone, Debug)]
pub struct TlsClock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    unix_at_start: Duration,
    /// Whole seconds since 1970.
    unix_now: AtomicU64,
}

impl TlsClock {
    /// A clock that shows `unix`, the time since 1970, at `now`.
    #[must_use]
    pub fn new(now: Instant, unix: Duration) -> Self {
        Self(Arc::new(Shared {
            start: now,
            unix_at_start: unix,
            unix_now: AtomicU64::new(unix.as_secs()),
        }))
    }

    pub(crate) fn enter(&self, now: Instant) {
        let unix = self.0.unix_at_start + now.saturating_duration_since(self.0.start);
        self.0.unix_now.store(unix.as_secs(), Ordering::Relaxed);
    }
}

impl TimeProvider for Shared {
    fn current_time(&self) -> Option<UnixTime> {
        let unix = Duration::from_secs(self.unix_now.load(Ordering::Relaxed));
        Some(UnixTime::since_unix_epoch(unix))
    }
}

/// Ends the TLS of visitors with a certificate. Cheap to clone.
#[derive(Clone)]
pub struct TlsAcceptor {
    config: Arc<ServerConfig>,
    clock: TlsClock,
}

/// Sessions that visitors may take up again, for each acceptor: a few hundred bytes each.
const RESUMABLE: usize = 256;

impl TlsAcceptor {
    /// Shows visitors this certificate; `chain` begins with it, and those that lead to its root follow.
    ///
    /// Visitors may ask for the `protocols` (ALPN, RFC 7301), the one preferred here first. A visitor who asks for none
    /// gets in without.
    ///
    /// # Errors
    /// If the key is not the certificate's, or of a kind that cannot sign.
    pub fn new(
        clock: &TlsClock,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        protocols: &[&str],
    ) -> Result<Self, TlsError> {
        let config = server(clock)?.with_single_cert(chain, key)?;
        Ok(Self::with_config(config, clock, protocols))
    }

    /// Shows visitors what `resolver` chooses for the name that they ask for.
    ///
    /// # Errors
    /// None that are known; rustls could mind its own defaults.
    pub fn with_resolver(
        clock: &TlsClock,
        resolver: Arc<dyn ResolvesServerCert>,
        protocols: &[&str],
    ) -> Result<Self, TlsError> {
        let config = server(clock)?.with_cert_resolver(resolver);
        Ok(Self::with_config(config, clock, protocols))
    }

    fn with_config(mut config: ServerConfig, clock: &TlsClock, protocols: &[&str]) -> Self {
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.session_storage = ServerSessionMemoryCache::new(RESUMABLE);
        Self {
            config: Arc::new(config),
            clock: clock.clone(),
        }
    }

    pub(crate) fn start(&self) -> Result<(ServerConnection, TlsClock), TlsError> {
        let connection = ServerConnection::new(Arc::clone(&self.config))?;
        Ok((connection, self.clock.clone()))
    }
}

impl PartialEq for TlsAcceptor {
    /// Whether they are the same one, or clones of it.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
    }
}

impl Eq for TlsAcceptor {}

impl fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAcceptor").finish_non_exhaustive()
    }
}

/// Speaks TLS to a target. Cheap to clone.
#[derive(Clone)]
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    clock: TlsClock,
}

/// Whose certificate a target may show.
#[derive(Clone, Debug)]
pub enum Trust {
    /// One that leads to one of these.
    Roots(Vec<CertificateDer<'static>>),
    /// Anybody's: nothing but the bytes on the wire is protected then.
    Anyone,
}

impl TlsConnector {
    /// Connects to targets that prove to be `name`, a host name or an address.
    ///
    /// `protocols` are offered to them (ALPN).
    ///
    /// # Errors
    /// If `name` is no name, or none of the roots can be used.
    pub fn new(clock: &TlsClock, trust: Trust, name: &str, protocols: &[&str]) -> Result<Self, TlsError> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        let provider = provider();
        let builder = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&clock.0) as _)
            .with_safe_default_protocol_versions()?;
        let mut config = match trust {
            Trust::Roots(certificates) => {
                let mut roots = RootCertStore::empty();
                let (taken, _) = roots.add_parsable_certificates(certificates);
                if taken == 0 {
                    return Err(TlsError::NoRoots);
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Trust::Anyone => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
                .with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Self {
            config: Arc::new(config),
            name,
            clock: clock.clone(),
        })
    }

    pub(crate) fn start(&self) -> Result<(ClientConnection, TlsClock), TlsError> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())?;
        Ok((connection, self.clock.clone()))
    }
}

impl PartialEq for TlsConnector {
    /// Whether they are the same one, or clones of it.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
    }
}

impl Eq for TlsConnector {}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why a certificate or a name cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The key belongs to another certificate.
    #[error("the private key is not the one of the certificate")]
    KeyMismatch,
    /// A name that TLS cannot ask for.
    #[error("{0:?} is neither a host name nor an address")]
    Name(String),
    /// None of the certificates can be a root.
    #[error("there is no usable root certificate")]
    NoRoots,
    /// Anything else that rustls minds.
    #[error("{0}")]
    Other(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InconsistentKeys(_) => Self::KeyMismatch,
            other => Self::Other(other.to_string()),
        }
    }
}

fn server(clock: &TlsClock) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, TlsError> {
    Ok(
        ServerConfig::builder_with_details(provider(), Arc::clone(&clock.0) as _)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth(),
    )
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Lets every certificate pass; signatures are checked, so that whoever shows one has its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
