//! Servers and crowds of visitors in processes of their own: a process may hold no more than so many files, and every
//! connection has four ends. A worker is this very program, with a hidden first argument.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::target::{self, request, visit};

/// A running worker. It ends when this is dropped.
pub(crate) struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one, in another network namespace if one is named.
    fn start(args: &[&str], namespace: Option<&str>) -> io::Result<Self> {
        let program = std::env::current_exe()?;
        let mut command = match namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
        };
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().expect("piped");
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(stdout),
            child,
        })
    }

    fn tell(&mut self, order: &str) -> io::Result<String> {
        let stdin = self.stdin.as_mut().expect("open while this lives");
        writeln!(stdin, "{order}")?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err(io::Error::other("a worker has ended"));
        }
        match line.trim().split_once("failed: ") {
            Some((_, why)) => Err(io::Error::other(why.to_owned())),
            None => Ok(line.trim().to_owned()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Which tells it.
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// What a server does with a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Service {
    Echo,
    /// The same, with a thread for each connection: none waits for another's turn.
    EchoByThreads,
    Bulk,
}

/// A server in a process of its own.
pub(crate) struct Server {
    pub(crate) port: u16,
    _worker: Worker,
}

impl Server {
    pub(crate) fn start(service: Service, namespace: Option<&str>) -> io::Result<Self> {
        let service = match service {
            Service::Echo => "echo",
            Service::EchoByThreads => "echo by threads",
            Service::Bulk => "bulk",
        };
        let mut worker = Worker::start(&[SERVE, service], namespace)?;
        let port = worker.answer()?.parse().map_err(io::Error::other)?;
        Ok(Self { port, _worker: worker })
    }
}

/// Connections that stay open, spread over processes.
pub(crate) struct Crowd {
    addr: SocketAddr,
    workers: Vec<Worker>,
    count: usize,
}

/// So many of a crowd to a process.
const SHARE: usize = 10_000;

impl Crowd {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            workers: Vec::new(),
            count: 0,
        }
    }

    /// Adds visitors until there are so many; each has made one small request and got its answer.
    pub(crate) fn grow_to(&mut self, count: usize) -> io::Result<()> {
        while self.count < count {
            if self.count == self.workers.len() * SHARE {
                let (addr, first) = (self.addr.to_string(), self.count.to_string());
                self.workers.push(Worker::start(&[VISIT, &addr, &first], None)?);
            }
            let more = (count - self.count).min(self.workers.len() * SHARE - self.count);
            let worker = self.workers.last_mut().expect("just added");
            worker
                .tell(&format!("open {more}"))
                .map_err(|error| io::Error::other(format!("of {count} visitors, after {}: {error}", self.count)))?;
            self.count += more;
        }
        Ok(())
    }

    /// Has some of all of them make another request.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        self.workers
            .iter_mut()
            .try_for_each(|worker| worker.tell("check").map(drop))
    }
}

/// How long a visitor waits for his answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Hidden first arguments.
const SERVE: &str = ":serve";
const VISIT: &str = ":visit";

/// Whether this process is a worker by its arguments.
pub(crate) fn is_worker(args: &[String]) -> bool {
    args.first().is_some_and(|first| first == SERVE || first == VISIT)
}

/// The worker's side.
pub(crate) fn run(args: &[String]) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args {
        [what, service] if what == SERVE => {
            let port = runtime.block_on(async {
                match service.as_str() {
                    "echo" => target::echo().await,
                    "echo by threads" => target::echo_by_threads(),
                    _ => target::bulk().await,
                }
            })?;
            println!("{port}");
            runtime.block_on(async {
                let over = tokio::task::spawn_blocking(|| io::stdin().lines().for_each(drop));
                over.await.map_err(io::Error::other)
            })
        }
        [what, addr, first] if what == VISIT => {
            let addr = addr.parse().map_err(io::Error::other)?;
            visitors(&runtime, addr, first.parse().map_err(io::Error::other)?)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn visitors(runtime: &tokio::runtime::Runtime, addr: SocketAddr, first: usize) -> io::Result<()> {
    let mut visitors: Vec<TcpStream> = Vec::new();
    for line in io::stdin().lines() {
        let line = line?;
        let done = match line.split_once(' ') {
            Some(("open", count)) => {
                let count: usize = count.parse().map_err(io::Error::other)?;
                runtime.block_on(open(addr, first, count, &mut visitors))
            }
            _ => runtime.block_on(async {
                for visitor in visitors.iter_mut().step_by(97) {
                    request(visitor).await?;
                }
                Ok(())
            }),
        };
        match done {
            Ok(()) => println!("ok"),
            Err(error) => println!("failed: with {} open here: {error}", visitors.len()),
        }
    }
    Ok(())
}

async fn open(addr: SocketAddr, first: usize, count: usize, visitors: &mut Vec<TcpStream>) -> io::Result<()> {
    for _ in 0..count {
        let visitor = timeout(PATIENCE, async {
            let mut visitor = visit(addr, first + visitors.len()).await?;
            request(&mut visitor).await?;
            Ok::<_, io::Error>(visitor)
        });
        visitors.push(visitor.await??);
    }
    Ok(())
}

/// Where visitors find a port of this machine.
pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
