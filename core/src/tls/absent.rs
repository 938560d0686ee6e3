//! In place of TLS, where this was built without the feature `tls`: nobody can make what an agent would need for it.

/// What would end visitors' TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsAcceptor {}

/// What would speak TLS to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsConnector {}

/// Why TLS would not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {}
