//! The conformance suite, for every pair of the runtimes that are shipped.

mod shipped;

use portal_conformance::conformance;

use shipped::{Mio, Tokio};

conformance!(mio_mio, Mio, Mio);
conformance!(mio_tokio, Mio, Tokio);
conformance!(tokio_mio, Tokio, Mio);
conformance!(tokio_tokio, Tokio, Tokio);
