//! Benches of Portal.
