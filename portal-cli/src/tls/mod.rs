//! TLS of a service: whose certificate visitors see, and whose certificate is believed at the target.

mod authority;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portal_core::Target;
use portal_core::tls::pki_types::pem::PemObject as _;
use portal_core::tls::pki_types::{CertificateDer, PrivateKeyDer};
use portal_core::tls::{TlsAcceptor, TlsClock, TlsConnector, TlsError, Trust};

pub(crate) use self::authority::Authority;
use crate::failure::{Exit, Explain};

/// A certificate's file with those that lead to its root, and its key's.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What visitors may choose by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocols {
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 too: the target takes it without TLS.
    Http2,
}

impl Protocols {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Http1 => &["http/1.1"],
            Self::Http2 => &["h2", "http/1.1"],
        }
    }
}

/// Says that TLS can end here.
#[expect(clippy::unnecessary_wraps, reason = "not every build has TLS")]
pub(crate) fn may_end_here() -> Result<(), TlsFileError> {
    Ok(())
}

/// Shows visitors the certificate in these files.
pub(crate) fn acceptor_of_files(files: &CertificateFiles, protocols: Protocols) -> Result<TlsAcceptor, TlsFileError> {
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    TlsAcceptor::new(&clock(), chain, key, protocols.names()).map_err(|source| TlsFileError::Unusable {
        path: files.certificate.clone(),
        source,
    })
}

/// Shows visitors certificates of the local development authority.
pub(crate) fn acceptor_of_authority(
    authority: Arc<Authority>,
    protocols: Protocols,
) -> Result<TlsAcceptor, TlsFileError> {
    TlsAcceptor::with_resolver(&clock(), authority, protocols.names()).map_err(|source| TlsFileError::Target {
        host: "visitors".into(),
        source,
    })
}

/// Speaks TLS to a target. Without `insecure` it must prove who it is: by one of the roots in `roots`, if that is given,
/// by one of the system's otherwise. Nobody can stand in between on the machine itself, so there no proof is asked for
/// unless roots are given.
pub(crate) fn connector(target: &Target, roots: Option<&Path>, insecure: bool) -> Result<TlsConnector, TlsFileError> {
    let host = match target {
        Target::Host { host, .. } => host.as_str(),
        _ => "localhost",
    };
    let trust = match roots {
        _ if insecure => Trust::Anyone,
        Some(path) => Trust::Roots(certificates(path)?),
        None if is_here(target) => Trust::Anyone,
        None => Trust::Roots(system_roots()?),
    };
    TlsConnector::new(&clock(), trust, host, &["http/1.1"]).map_err(|source| TlsFileError::Target {
        host: host.to_owned(),
        source,
    })
}

fn is_here(target: &Target) -> bool {
    match target {
        Target::Host { host, .. } => {
            host == "localhost"
                || host
                    .parse()
                    .is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
        }
        _ => true,
    }
}

fn clock() -> TlsClock {
    // A clock before 1970 makes every certificate look like one of the future.
    TlsClock::new(
        Instant::now(),
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
    )
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(TlsFileError::NoSystemRoots);
    }
    Ok(found.certs)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsFileError::NoCertificate(path.to_owned())),
    }
}

/// Reads a private key that only its owner can read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let mode = path
        .metadata()
        .map_err(|source| TlsFileError::read(path, source))?
        .mode()
        & 0o777;
    // Certificate tools commonly let a group read it, which the administrator chose.
    if mode & 0o007 != 0 {
        return Err(TlsFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| TlsFileError::NoKey(path.to_owned()))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    fs::read(path).map_err(|source| TlsFileError::read(path, source))
}

/// Why a file of TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFileError {
    /// It cannot be read.
    #[error("reading {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no certificate.
    #[error("{} holds no certificate in PEM form", .0.display())]
    NoCertificate(PathBuf),
    /// It has no private key.
    #[error("{} holds no private key in PEM form", .0.display())]
    NoKey(PathBuf),
    /// Everybody can read the private key.
    #[error("the private key {} can be read by everybody (mode {mode:03o}), so it is not used", .path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Certificate and key cannot be used.
    #[error("the certificate {} cannot be used: {source}", .path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: TlsError,
    },
    /// TLS cannot be set up.
    #[error("setting up TLS for {host}: {source}")]
    Target {
        /// With whom.
        host: String,
        /// Why.
        source: TlsError,
    },
    /// The system has no roots.
    #[error("this system has no root certificates, so no target's certificate can be checked")]
    NoSystemRoots,
}

impl TlsFileError {
    fn read(path: &Path, source: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }
}

impl Explain for TlsFileError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "check the spelling, and the directory that it is relative to".into()
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run portal as a user who may read it, or give it a copy of its own".into()
            }
            Self::Read { .. } => "name a file that holds it as PEM".into(),
            Self::NoCertificate(_) => {
                "it should begin with -----BEGIN CERTIFICATE-----; ACME clients call it fullchain.pem".into()
            }
            Self::NoKey(_) => {
                "it should begin with -----BEGIN PRIVATE KEY-----, without a passphrase; ACME clients call it \
                 privkey.pem"
                    .into()
            }
            Self::Exposed { path, .. } => format!("chmod 600 {}", path.display()),
            Self::Unusable {
                source: TlsError::KeyMismatch,
                ..
            } => "give --cert and --cert-key of one pair".into(),
            Self::Unusable { .. } | Self::Target { .. } => return None,
            Self::NoSystemRoots => {
                "install them (Debian: apt install ca-certificates), name the target's with --target-ca, or do \
                 without by --target-insecure"
                    .into()
            }
        })
    }

    fn exit(&self) -> Exit {
        Exit::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn files(directory: &Path) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(vec!["web.test".to_owned()]).unwrap();
        let files = CertificateFiles {
            certificate: directory.join("cert.pem"),
            key: directory.join("key.pem"),
        };
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        crate::files::replace(&files.key, made.signing_key.serialize_pem().as_bytes()).unwrap();
        files
    }

    #[test]
    fn a_pair_is_taken_and_a_mixed_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let pair = files(directory.path());
        acceptor_of_files(&pair, Protocols::Http2).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let mixed = CertificateFiles {
            key: files(elsewhere.path()).key,
            ..pair
        };
        let error = acceptor_of_files(&mixed, Protocols::Http1).unwrap_err();
        assert!(error.to_string().contains("cert.pem"), "{error}");
        assert!(error.help().unwrap().contains("--cert-key"));
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let pair = files(directory.path());
        let swapped = CertificateFiles {
            certificate: pair.key.clone(),
            key: pair.key.clone(),
        };
        assert!(matches!(
            acceptor_of_files(&swapped, Protocols::Http1),
            Err(TlsFileError::NoCertificate(_))
        ));
        fs::set_permissions(&pair.key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = acceptor_of_files(&pair, Protocols::Http1).unwrap_err();
        assert_eq!(
            error.help().unwrap(),
            format!("chmod 600 {}", pair.key.display()),
            "{error}"
        );
        fs::remove_file(&pair.key).unwrap();
        assert!(matches!(
            acceptor_of_files(&pair, Protocols::Http1),
            Err(TlsFileError::Read { .. })
        ));
    }

    #[test]
    fn only_targets_on_the_machine_itself_need_no_proof() {
        let at = |host: &str| Target::Host {
            host: host.into(),
            port: 443,
        };
        for here in ["localhost", "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert!(is_here(&at(here)), "{here}");
        }
        for there in ["localhost.example.com", "192.168.1.5", "example.com", "0.0.0.0"] {
            assert!(!is_here(&at(there)), "{there}");
        }
    }
}
