//! wireguard-go, which gives visitors a route to the service itself, and onetun, which brings them to one by a TCP of its own
//! in user space. The far end of both is a wireguard-go in a network namespace, reached over a pair of veth devices.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use super::{open, version};
use crate::network::{self, Namespace};
use crate::process::{Launch, Process, output, port};
use crate::tunnel::{Ends, Peer, Place};
use crate::worker::local;

/// Inside the tunnel, and outside.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const NEAR_OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const FAR_OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);

struct WireGuard {
    go: PathBuf,
    wg: PathBuf,
    onetun: Option<PathBuf>,
    name: String,
    namespace: Rc<Namespace>,
}

pub(super) fn peers(find: impl Fn(&str) -> io::Result<PathBuf>) -> io::Result<Vec<Box<dyn Peer>>> {
    let (go, wg) = (find("wireguard-go")?, find("wg")?);
    let namespace = Rc::new(Namespace::new("wireguard")?);
    network::veth(&namespace, NEAR_OUTSIDE, FAR_OUTSIDE)?;
    let name = version(&go, &["--version"])?;
    let by_route = WireGuard {
        go: go.clone(),
        wg: wg.clone(),
        onetun: None,
        name: name.clone(),
        namespace: Rc::clone(&namespace),
    };
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(by_route)];
    match find("onetun") {
        Ok(program) => peers.push(Box::new(WireGuard {
            name: format!("{} to {name}", version(&program, &["--version"])?),
            go,
            wg,
            onetun: Some(program),
            namespace,
        })),
        Err(error) => eprintln!("without onetun: {error}"),
    }
    Ok(peers)
}

struct Key {
    file: PathBuf,
    secret: String,
    public: String,
}

impl WireGuard {
    fn key(&self, directory: &Path, name: &str) -> io::Result<Key> {
        let secret = output(Command::new(&self.wg).arg("genkey"))?.trim().to_owned();
        let mut child = Command::new(&self.wg)
            .arg("pubkey")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().expect("piped").write_all(secret.as_bytes())?;
        let public = String::from_utf8_lossy(&child.wait_with_output()?.stdout)
            .trim()
            .to_owned();
        let file = directory.join(name);
        fs::write(&file, &secret)?;
        Ok(Key { file, secret, public })
    }

    /// Starts one end: its own key, port and address, and where the other one is.
    fn end(
        &self,
        namespace: Option<&str>,
        key: &Key,
        (own_port, own): (u16, Ipv4Addr),
        other_key: &Key,
        (other_port, other_outside, other): (u16, Ipv4Addr, Ipv4Addr),
    ) -> io::Result<Process> {
        // One of this name may not be gone yet.
        let device: &str = &format!("wg{own_port}");
        let mut launch = Launch::new(&self.go, &["--foreground", device]);
        launch.namespace = namespace.map(str::to_owned);
        // Without which it does not run where the kernel could do it itself.
        launch.variables = [
            ("LOG_LEVEL", "error"),
            ("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let process = Process::start(&launch)?;
        let run = |program: &str, args: &[&str]| match namespace {
            None => output(Command::new(program).args(args)),
            Some(namespace) => output(
                Command::new("ip")
                    .args(["netns", "exec", namespace, program])
                    .args(args),
            ),
        };
        let start = Instant::now();
        while run("ip", &["link", "show", device]).is_err() {
            if start.elapsed() > Duration::from_secs(10) {
                return Err(io::Error::other(format!("no device: {}", process.log())));
            }
            thread::sleep(Duration::from_millis(20));
        }
        let (file, own_port) = (key.file.display().to_string(), own_port.to_string());
        let (endpoint, allowed) = (format!("{other_outside}:{other_port}"), format!("{other}/32"));
        let wg = self.wg.display().to_string();
        run(
            &wg,
            &[
                "set",
                device,
                "private-key",
                &file,
                "listen-port",
                &own_port,
                "peer",
                &other_key.public,
                "endpoint",
                &endpoint,
                "allowed-ips",
                &allowed,
            ],
        )?;
        run("ip", &["addr", "add", &format!("{own}/24"), "dev", device])?;
        run("ip", &["link", "set", device, "up"])?;
        Ok(process)
    }
}

impl Peer for WireGuard {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn place(&self) -> Place<'_> {
        Place {
            far: Some(self.namespace.name()),
            near_addr: None,
        }
    }

    fn start(&self, service: u16, _: Place<'_>) -> io::Result<Ends> {
        let state = tempfile::tempdir()?;
        let (near, far) = (self.key(state.path(), "near")?, self.key(state.path(), "far")?);
        let (near_port, far_port) = (port(1), port(1));
        let at_far = (near_port, NEAR_OUTSIDE, NEAR);
        let client = self.end(Some(self.namespace.name()), &far, (far_port, FAR), &near, at_far)?;
        let (relay, addr) = match &self.onetun {
            None => {
                let at_near = (far_port, FAR_OUTSIDE, FAR);
                let relay = self.end(None, &near, (near_port, NEAR), &far, at_near)?;
                (relay, SocketAddr::from((FAR, service)))
            }
            Some(program) => {
                let public = port(1);
                let args = [
                    &format!("127.0.0.1:{public}:{FAR}:{service}"),
                    "--endpoint-addr",
                    &format!("{FAR_OUTSIDE}:{far_port}"),
                    "--endpoint-bind-addr",
                    &format!("{NEAR_OUTSIDE}:{near_port}"),
                    "--endpoint-public-key",
                    &far.public,
                    "--private-key",
                    &near.secret,
                    "--source-peer-ip",
                    &NEAR.to_string(),
                ];
                (Process::start(&Launch::new(program, &args))?, local(public))
            }
        };
        open(addr, relay, client, Some(state))
    }

    fn restarts(&self) -> bool {
        self.onetun.is_some()
    }
}
