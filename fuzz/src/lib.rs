//! What is fuzzed: a function for each target, with what must hold for any bytes.
//!
//! The functions are apart from libFuzzer, so that the corpora can be replayed by an ordinary test.

#![forbid(unsafe_code)]

mod flows;
mod handshakes;
mod lives;
mod parsers;
mod tunnel;

pub use flows::flows;
pub use handshakes::handshakes;
pub use lives::core_ops;
pub use parsers::{client_hello, config_file, control_frames, http_head, inner_packet, names_and_uris, proxy_header};
pub use tunnel::{relay_datagrams, tls_visitor};

/// A target: its name, which is also its corpus' folder, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 12] = [
    ("client_hello", client_hello),
    ("config_file", config_file),
    ("control_frames", control_frames),
    ("core_ops", core_ops),
    ("flows", flows),
    ("handshakes", handshakes),
    ("http_head", http_head),
    ("inner_packet", inner_packet),
    ("names_and_uris", names_and_uris),
    ("proxy_header", proxy_header),
    ("relay_datagrams", relay_datagrams),
    ("tls_visitor", tls_visitor),
];
