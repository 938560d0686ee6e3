//! bore: plaintext TCP, a connection of its own for each visitor.

use std::io;
use std::path::PathBuf;

use super::{open, version};
use crate::process::{Launch, Process, port};
use crate::tunnel::{Ends, Peer, Place};
use crate::worker::local;

struct Bore {
    program: PathBuf,
    name: String,
}

pub(super) fn peers(find: impl Fn(&str) -> io::Result<PathBuf>) -> io::Result<Vec<Box<dyn Peer>>> {
    let program = find("bore")?;
    let name = format!("{} (not encrypted)", version(&program, &["--version"])?);
    Ok(vec![Box::new(Bore { program, name })])
}

impl Peer for Bore {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn start(&self, service: u16, _: Place<'_>) -> io::Result<Ends> {
        let public = port(1).to_string();
        // Its own port is always the same one.
        let bind = ["--bind-addr", "127.0.0.1", "--bind-tunnels", "127.0.0.1"];
        let mut relay = Process::start(&Launch::new(&self.program, &[&["server"][..], &bind].concat()))?;
        relay.says("listening")?;
        let service = service.to_string();
        let client = ["local", &service, "--to", "127.0.0.1", "--port", &public];
        let client = Process::start(&Launch::new(&self.program, &client))?;
        let addr = local(public.parse().map_err(io::Error::other)?);
        open(addr, relay, client, None)
    }
}
