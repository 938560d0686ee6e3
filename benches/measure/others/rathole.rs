//! rathole: TCP, plain or encrypted by Noise, with connections made in advance.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::open;
use crate::process::{Launch, Process, output, port};
use crate::tunnel::{Ends, Peer, Place};

struct Rathole {
    program: PathBuf,
    name: String,
    /// Private and public.
    noise: Option<[String; 2]>,
}

pub(super) fn peers(find: impl Fn(&str) -> io::Result<PathBuf>) -> io::Result<Vec<Box<dyn Peer>>> {
    let program = find("rathole")?;
    let said = output(Command::new(&program).arg("--version"))?;
    let version = said.lines().find_map(|line| line.strip_prefix("Build Version:"));
    let version = format!("rathole {}", version.unwrap_or_default().trim());
    let keys = output(Command::new(&program).arg("--genkey"))?;
    let mut keys = keys
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.ends_with(':'));
    let mut key = || keys.next().map(str::to_owned).ok_or_else(|| io::Error::other("no key"));
    let noise = [key()?, key()?];
    let plain = Rathole {
        program: program.clone(),
        name: format!("{version}, plain TCP (not encrypted)"),
        noise: None,
    };
    let noise = Rathole {
        program,
        name: format!("{version}, Noise"),
        noise: Some(noise),
    };
    Ok(vec![Box::new(plain), Box::new(noise)])
}

impl Rathole {
    fn transport(&self, side: &str, key_of: &str, key: usize) -> String {
        match &self.noise {
            None => String::new(),
            Some(keys) => format!(
                "[{side}.transport]\ntype = \"noise\"\n[{side}.transport.noise]\n{key_of} = \"{}\"\n",
                keys[key]
            ),
        }
    }
}

impl Peer for Rathole {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn goes_far(&self) -> bool {
        true
    }

    fn start(&self, service: u16, place: Place<'_>) -> io::Result<Ends> {
        let state = tempfile::tempdir()?;
        let near = place.near_addr.unwrap_or("127.0.0.1");
        let (control, public) = (port(1), port(1));
        let (server, client) = (state.path().join("server.toml"), state.path().join("client.toml"));
        fs::write(
            &server,
            format!(
                "[server]\nbind_addr = \"{near}:{control}\"\ndefault_token = \"of no matter\"\n{}\
                 [server.services.it]\nbind_addr = \"{near}:{public}\"\n",
                self.transport("server", "local_private_key", 0)
            ),
        )?;
        fs::write(
            &client,
            format!(
                "[client]\nremote_addr = \"{near}:{control}\"\ndefault_token = \"of no matter\"\n{}\
                 [client.services.it]\nlocal_addr = \"127.0.0.1:{service}\"\n",
                self.transport("client", "remote_public_key", 1)
            ),
        )?;
        let start = |side: &str, file: &PathBuf, namespace: Option<&str>| {
            Process::start(&Launch {
                namespace: namespace.map(str::to_owned),
                ..Launch::new(&self.program, &[side, &file.display().to_string()])
            })
        };
        let relay = start("--server", &server, None)?;
        let client = start("--client", &client, place.far)?;
        let addr = SocketAddr::new(near.parse().map_err(io::Error::other)?, public);
        open(addr, relay, client, Some(state))
    }
}
