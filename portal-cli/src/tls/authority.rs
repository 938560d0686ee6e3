//! The local development authority: it signs certificates for the names of `https` services that have none of their own.
//!
//! Its root is made on first use and stays on the machine. Whoever trusts it sees no warning; nobody else has a reason to
//! trust it, so it is for trying things out and for circles in which the root can be handed round.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use portal_core::identity::PublicKey;
use portal_core::tls::pki_types::pem::PemObject as _;
use portal_core::tls::pki_types::{CertificateDer, PrivateKeyDer};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};

use super::{TlsFileError, private_key};
use crate::failure::Explain;
use crate::{files, state};

/// A root with its key, and the certificates that it has signed in this run.
pub(crate) struct Authority {
    root_file: PathBuf,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    leaf_key: KeyPair,
    signing_key: Arc<dyn SigningKey>,
    signed: Mutex<BTreeMap<String, Signed>>,
}

struct Signed {
    until: SystemTime,
    key: Arc<CertifiedKey>,
}

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a certificate is good for: what every browser takes.
const LEAF_LIFE: Duration = Duration::from_secs(397 * 24 * 3600);
/// A certificate with less than this left is made anew.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Names that are kept; an agent has a handful.
const MAX_NAMES: usize = 64;
/// The name shown to a visitor who asks for none.
const NO_NAME: &str = "localhost";

impl Authority {
    /// The user's own, made if there is none.
    pub(crate) fn of_user() -> Result<Arc<Self>, AuthorityError> {
        let state = state::user_state_dir().ok_or(AuthorityError::NoHome)?;
        Self::load_or_create(&state.join("authority"))
    }

    fn load_or_create(directory: &Path) -> Result<Arc<Self>, AuthorityError> {
        let (root_file, key_file) = (directory.join("root.pem"), directory.join("root-key.pem"));
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| AuthorityError::Write { path, source }
        };
        files::create_directory(directory).map_err(write(directory))?;
        if !key_file.exists() {
            let key = KeyPair::generate()?.serialize_pem();
            match files::create(&key_file, key.as_bytes()) {
                // Another process was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => created.map_err(write(&key_file))?,
            }
        }
        let key = KeyPair::try_from(&private_key(&key_file)?)?;
        let params = root_params(&key, SystemTime::now());
        if !root_file.exists() {
            let root = params.self_signed(&key)?.pem();
            match files::create(&root_file, root.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => created.map_err(write(&root_file))?,
            }
        }
        let root = CertificateDer::from_pem_file(&root_file).map_err(|_| AuthorityError::Broken(root_file.clone()))?;
        // A root beside another key would vouch for nothing that is signed here.
        let public = key.public_key_raw();
        if !root.windows(public.len()).any(|part| part == public) {
            return Err(AuthorityError::Broken(root_file));
        }
        let leaf_key = KeyPair::generate()?;
        let der = PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into());
        let signing_key = any_supported_type(&der).map_err(|_| AuthorityError::Broken(key_file))?;
        Ok(Arc::new(Self {
            root_file,
            root,
            issuer: Issuer::new(params, key),
            leaf_key,
            signing_key,
            signed: Mutex::new(BTreeMap::new()),
        }))
    }

    /// What a person has to know to have no warnings.
    pub(crate) fn advice(&self) -> String {
        let root = self.root_file.display();
        format!(
            "visitors are shown a certificate of this machine's own development authority, which browsers warn of \
             until they trust its root, {root}\n  curl: --cacert {root}\n  Debian, Ubuntu: sudo install -m 644 \
             {root} /usr/local/share/ca-certificates/portal-development.crt && sudo update-ca-certificates\n  Firefox, \
             Chrome: import it as an authority in the settings for certificates\n  with a certificate of your own: \
             --cert FILE --cert-key FILE"
        )
    }

    fn certificate(&self, name: &str, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = signed.get(name).filter(|found| now + RENEW_BEFORE < found.until) {
            return Some(Arc::clone(&found.key));
        }
        let until = now + LEAF_LIFE;
        let leaf = match self.sign(name, now, until) {
            Ok(leaf) => leaf,
            Err(error) => {
                tracing::warn!(name, %error, "signing a certificate");
                return None;
            }
        };
        let key = Arc::new(CertifiedKey::new(
            vec![leaf, self.root.clone()],
            Arc::clone(&self.signing_key),
        ));
        if signed.len() >= MAX_NAMES {
            signed.clear();
        }
        signed.insert(
            name.to_owned(),
            Signed {
                until,
                key: Arc::clone(&key),
            },
        );
        Some(key)
    }

    fn sign(&self, name: &str, now: SystemTime, until: SystemTime) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut names = vec![name.to_owned()];
        if name == NO_NAME {
            names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
        }
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name(name));
        // Visitors' clocks may be a little behind.
        params.not_before = (now - DAY).into();
        params.not_after = until.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&self.leaf_key, &self.issuer)?.der().clone())
    }
}

impl ResolvesServerCert for Authority {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate(hello.server_name().unwrap_or(NO_NAME), SystemTime::now())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("root_file", &self.root_file)
            .finish_non_exhaustive()
    }
}

/// What the root says of itself. Its name follows from its key, so that two roots in one store are told apart.
fn root_params(key: &KeyPair, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - DAY).into();
    params.not_after = (now + ROOT_LIFE).into();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Portal development authority");
    name.push(
        DnType::CommonName,
        format!("Portal development root {}", fingerprint(key)),
    );
    params.distinguished_name = name;
    params
}

/// A short text that is different for each key.
fn fingerprint(key: &KeyPair) -> String {
    let tail: [u8; 32] = *key.public_key_raw().last_chunk().unwrap_or(&[0; 32]);
    PublicKey::from_bytes(tail).short()
}

/// A common name has 64 characters at most (RFC 5280, appendix A.1); what counts is the alternative name.
fn common_name(name: &str) -> &str {
    if name.len() <= 64 { name } else { "portal" }
}

/// Why there is no development authority.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// A file cannot be written.
    #[error("making the development authority's {}: {source}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file makes no sense.
    #[error("the development authority's {} cannot be used", .0.display())]
    Broken(PathBuf),
    /// The key's file.
    #[error("the development authority: {0}")]
    File(#[from] TlsFileError),
    /// The certificate could not be made.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Where it is kept is not known.
    #[error("there is no place for the development authority: neither XDG_STATE_HOME nor HOME is set")]
    NoHome,
}

impl Explain for AuthorityError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Write { .. } | Self::NoHome => {
                Some("name a certificate of your own with --cert and --cert-key, or set XDG_STATE_HOME".into())
            }
            Self::Broken(path) => Some(format!(
                "move {} away to have a new authority made, which has to be trusted anew",
                path.parent().unwrap_or(path).display()
            )),
            Self::File(error) => error.help(),
            Self::Make(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};

    fn is_trusted(authority: &Authority, name: &str, now: SystemTime) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .unwrap();
        let shown = authority.certificate(name, SystemTime::now()).unwrap();
        let unix = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        let asked = ServerName::try_from(name.to_owned()).unwrap();
        verifier
            .verify_server_cert(&shown.cert[0], &shown.cert[1..], &asked, &[], unix)
            .is_ok()
    }

    #[test]
    fn whoever_trusts_the_root_trusts_the_names() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("authority");
        let authority = Authority::load_or_create(&directory).unwrap();
        let now = SystemTime::now();
        let long = format!("{}.example.com", "a".repeat(63));
        for name in ["blog.tunnel.example.com", "localhost", long.as_str()] {
            assert!(is_trusted(&authority, name, now), "{name}");
        }
        assert!(!is_trusted(&authority, "blog.example.com", now + LEAF_LIFE + DAY));
        let again = Authority::load_or_create(&directory).unwrap();
        assert_eq!(again.root, authority.root, "it stays the same");
        let other = Authority::load_or_create(&home.path().join("other")).unwrap();
        assert_ne!(other.root, authority.root);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&directory.join("root-key.pem").metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_root_without_its_key_is_not_used() {
        let home = tempfile::tempdir().unwrap();
        Authority::load_or_create(home.path()).unwrap();
        std::fs::remove_file(home.path().join("root-key.pem")).unwrap();
        let error = Authority::load_or_create(home.path()).unwrap_err();
        assert!(error.to_string().contains("root.pem cannot be used"), "{error}");
        let help = error.help().unwrap();
        assert!(help.contains(&format!("move {} away", home.path().display())), "{help}");
    }

    #[test]
    fn certificates_are_kept_renewed_and_bounded() {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(home.path()).unwrap();
        let now = SystemTime::now();
        let first = authority.certificate("a.test", now).unwrap();
        assert!(Arc::ptr_eq(
            &first,
            &authority.certificate("a.test", now + DAY).unwrap()
        ));
        let later = now + LEAF_LIFE - RENEW_BEFORE;
        assert!(!Arc::ptr_eq(&first, &authority.certificate("a.test", later).unwrap()));
        for number in 0..200 {
            authority.certificate(&format!("n{number}.test"), now).unwrap();
        }
        assert!(authority.signed.lock().unwrap().len() <= MAX_NAMES);
    }
}
