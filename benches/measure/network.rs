//! Network namespaces for what does not run on loopback. All of it is made inside a namespace of this process's own, which
//! ends with it.

use std::io;
use std::net::Ipv4Addr;
use std::process::Command;

use crate::process::output;

/// Hidden first argument of a process that has a network of its own.
const INSIDE: &str = ":inside";

/// The arguments proper, and whether this process has a network of its own.
pub(crate) fn inside(args: &[String]) -> (&[String], bool) {
    match args.split_first() {
        Some((first, rest)) if first == INSIDE => (rest, true),
        _ => (args, false),
    }
}

/// Runs this program with these arguments, with a network of its own.
pub(crate) fn run_inside(args: &[String]) -> io::Result<bool> {
    let mut again = Command::new("unshare");
    again.args(["--net", "--"]).arg(std::env::current_exe()?).arg(INSIDE);
    Ok(again.args(args).status()?.success())
}

/// A namespace beside this process's own. It is removed when this is dropped.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new(what: &str) -> io::Result<Self> {
        let name = format!("portal-bench-{}-{what}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// Joins a namespace to this process's by a cable.
pub(crate) fn veth(namespace: &Namespace, near: Ipv4Addr, far: Ipv4Addr) -> io::Result<()> {
    let (name, far_name) = (namespace.name(), "bench-far");
    ip(&[
        "link",
        "add",
        "bench-near",
        "type",
        "veth",
        "peer",
        "name",
        far_name,
        "netns",
        name,
    ])?;
    ip(&["addr", "add", &format!("{near}/24"), "dev", "bench-near"])?;
    ip(&["link", "set", "bench-near", "up"])?;
    ip(&["-n", name, "addr", "add", &format!("{far}/24"), "dev", far_name])?;
    ip(&["-n", name, "link", "set", far_name, "up"])
}

pub(crate) fn ip(args: &[&str]) -> io::Result<()> {
    output(Command::new("ip").args(args))
        .map(drop)
        .map_err(|error| io::Error::other(format!("{error} ({})", args.join(" "))))
}
