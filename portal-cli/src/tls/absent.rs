//! In place of TLS, where the program was built without it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use portal_core::Target;
use portal_core::tls::{TlsAcceptor, TlsConnector};

use crate::failure::{Exit, Explain};

/// A certificate's file with those that lead to its root, and its key's.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "nobody reads them here")]
pub(crate) struct CertificateFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What visitors may choose by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocols {
    Http1,
    Http2,
}

/// What cannot be there.
#[derive(Debug)]
pub(crate) enum Authority {}

impl Authority {
    pub(crate) fn of_user() -> Result<Arc<Self>, NoTls> {
        Err(NoTls)
    }

    pub(crate) fn advice(&self) -> String {
        match *self {}
    }
}

/// Says that TLS cannot end here.
pub(crate) fn may_end_here() -> Result<(), NoTls> {
    Err(NoTls)
}

pub(crate) fn acceptor_of_files(_files: &CertificateFiles, _protocols: Protocols) -> Result<TlsAcceptor, NoTls> {
    Err(NoTls)
}

#[expect(clippy::needless_pass_by_value, reason = "as in the full build")]
pub(crate) fn acceptor_of_authority(authority: Arc<Authority>, _protocols: Protocols) -> Result<TlsAcceptor, NoTls> {
    match *authority {}
}

pub(crate) fn connector(_target: &Target, _roots: Option<&Path>, _insecure: bool) -> Result<TlsConnector, NoTls> {
    Err(NoTls)
}

/// There is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("the kind https and https:// targets need TLS, and this build of portal has none")]
pub(crate) struct NoTls;

impl Explain for NoTls {
    fn help(&self) -> Option<String> {
        Some(
            "take the full build, made with: cargo build --release -p portal-cli\nor have the service end TLS itself, with \
             a tls:// target, whose bytes pass untouched"
                .into(),
        )
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}
