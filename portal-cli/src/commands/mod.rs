//! The commands, one module each.

pub(crate) mod agent;
pub(crate) mod completions;
pub(crate) mod expose;
pub(crate) mod grant;
pub(crate) mod health;
pub(crate) mod key;
pub(crate) mod relay;
pub(crate) mod status;
pub(crate) mod wg_conf;
