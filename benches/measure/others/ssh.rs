//! `ssh -R`: every visitor is a channel of one connection.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::{open, version};
use crate::process::{Launch, Process, output, port};
use crate::tunnel::{Ends, Peer, Place};
use crate::worker::local;

struct Ssh {
    server: PathBuf,
    client: PathBuf,
    keys: PathBuf,
    name: String,
}

pub(super) fn peers(find: impl Fn(&str) -> io::Result<PathBuf>) -> io::Result<Vec<Box<dyn Peer>>> {
    let (server, client, keys) = (find("sshd")?, find("ssh")?, find("ssh-keygen")?);
    let name = format!("ssh -R ({})", version(&client, &["-V"])?);
    Ok(vec![Box::new(Ssh {
        server,
        client,
        keys,
        name,
    })])
}

impl Peer for Ssh {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn start(&self, service: u16, _: Place<'_>) -> io::Result<Ends> {
        let state = tempfile::tempdir()?;
        let file = |name: &str| state.path().join(name).display().to_string();
        for key in ["host", "user"] {
            output(Command::new(&self.keys).args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]))?;
        }
        // Where the system's own would have made it.
        fs::create_dir_all("/run/sshd")?;
        let (control, public) = (port(1), port(1));
        let options = |options: &[(&str, String)]| -> Vec<String> {
            options
                .iter()
                .map(|(name, value)| format!("-o{name}={value}"))
                .collect()
        };
        let server = options(&[
            ("Port", control.to_string()),
            ("ListenAddress", "127.0.0.1".into()),
            ("HostKey", file("host")),
            ("AuthorizedKeysFile", file("user.pub")),
            ("StrictModes", "no".into()),
            ("UsePAM", "no".into()),
            ("PidFile", "none".into()),
            ("PermitRootLogin", "yes".into()),
        ]);
        let mut launch = Launch::new(&self.server, &["-D", "-e", "-f", "/dev/null"]);
        launch.args.extend(server);
        let mut relay = Process::start(&launch)?;
        relay.says("listening")?;
        let client = options(&[
            ("StrictHostKeyChecking", "no".into()),
            ("UserKnownHostsFile", "/dev/null".into()),
            ("ExitOnForwardFailure", "yes".into()),
            ("IdentitiesOnly", "yes".into()),
        ]);
        let mut launch = Launch::new(&self.client, &["-N", "-F", "/dev/null"]);
        launch.args.extend(client);
        let forward = format!("127.0.0.1:{public}:127.0.0.1:{service}");
        for arg in [
            "-i",
            &file("user"),
            "-R",
            &forward,
            "-p",
            &control.to_string(),
            "127.0.0.1",
        ] {
            launch.args.push(arg.to_owned());
        }
        let client = Process::start(&launch)?;
        let addr = local(public);
        open(addr, relay, client, Some(state))
    }

    fn restarts(&self) -> bool {
        false
    }
}
