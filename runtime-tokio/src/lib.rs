//! The tokio runtime of Portal.
