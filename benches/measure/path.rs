//! A path with distance between two network namespaces: packets go through this process, which delays and loses them as the
//! simulator's links do. The kernels that this runs on have no netem.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use portal_sim::{Impairments, Loss, Netem};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::network::{Namespace, ip};
use crate::process::output;

/// The near end, which relay and visitors have.
pub(crate) const NEAR: &str = "10.97.0.1";
const FAR: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 2);
const DEVICES: [&str; 2] = ["bench-path0", "bench-path1"];
const MTU: usize = 1500;
/// Bytes that wait in a link's buffer, as a router's of 100 Mbit/s and 100 ms would hold.
const QUEUE: usize = 1_250_000;
/// Packets taken from a device in one go.
const TRAIN: usize = 64;
/// Some kernels keep network namespaces to the ways of congestion control that users may choose.
const NO_CUBIC: &str =
    ": this kernel lets no network namespace have cubic: add it to /proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// A path, open until this is dropped.
pub(crate) struct Distance {
    pub(crate) far: Namespace,
    links: Arc<Mutex<[Netem<Vec<u8>>; 2]>>,
    ends: Arc<AtomicBool>,
    router: Option<JoinHandle<io::Result<()>>>,
}

impl Distance {
    /// Makes the far end and the devices. Needs root.
    pub(crate) fn new() -> io::Result<Self> {
        let far = Namespace::new("far")?;
        let devices = [tun(DEVICES[0])?, tun(DEVICES[1])?];
        for device in DEVICES {
            // What a scheduler makes wait is not to be lost: losses are the links' own.
            ip(&["link", "set", device, "txqueuelen", "10000"])?;
        }
        ip(&["link", "set", DEVICES[1], "netns", far.name()])?;
        ip(&["addr", "add", &format!("{NEAR}/24"), "dev", DEVICES[0]])?;
        ip(&["link", "set", DEVICES[0], "up"])?;
        ip(&["-n", far.name(), "addr", "add", &format!("{FAR}/24"), "dev", DEVICES[1]])?;
        ip(&["-n", far.name(), "link", "set", DEVICES[1], "up"])?;
        // What distributions have; some clouds' machines have another, which tells more of it than of the tunnels.
        let congestion = "printf cubic >/proc/sys/net/ipv4/tcp_congestion_control";
        for command in [
            Command::new("sh").args(["-c", congestion]),
            Command::new("ip").args(["netns", "exec", far.name(), "sh", "-c", congestion]),
        ] {
            output(command).map_err(|error| io::Error::other(format!("{error}{NO_CUBIC}")))?;
        }
        let link = |seed| Netem::new(Impairments::default(), seed);
        let links = Arc::new(Mutex::new([link(1), link(2)]));
        let ends = Arc::new(AtomicBool::new(false));
        let (shared, end) = (Arc::clone(&links), Arc::clone(&ends));
        let router = thread::Builder::new()
            .name("path".into())
            .spawn(move || route(&devices, &shared, &end))?;
        Ok(Self {
            far,
            links,
            ends,
            router: Some(router),
        })
    }

    /// What the path is like from now on: its round trip, and how many in a million packets are lost each way.
    pub(crate) fn set(&self, round_trip: Duration, loss: u32) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        for link in links.iter_mut() {
            *link.impairments_mut() = Impairments {
                latency: round_trip / 2,
                loss: Loss::Random(loss),
                queue: QUEUE,
                ..Impairments::default()
            };
        }
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.router.take().map(JoinHandle::join) {
            eprintln!("the path has failed: {error}");
        }
    }
}

/// Carries packets until it is told to end.
fn route(devices: &[File; 2], links: &Mutex<[Netem<Vec<u8>>; 2]>, ends: &AtomicBool) -> io::Result<()> {
    let mut room = vec![0; MTU];
    let mut arrived: [VecDeque<Vec<u8>>; 2] = Default::default();
    let mut wait = Duration::ZERO;
    while !ends.load(Ordering::Relaxed) {
        let mut fds = devices
            .each_ref()
            .map(|device| PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN));
        let timeout = Timespec::try_from(wait).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        wait = Duration::from_millis(100);
        let mut links = links.lock().unwrap_or_else(PoisonError::into_inner);
        for (mut device, link) in devices.iter().zip(links.iter_mut()) {
            for _ in 0..TRAIN {
                match device.read(&mut room) {
                    Ok(len) => link.handle_datagram(Instant::now(), len, room[..len].to_vec()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        let now = Instant::now();
        for (link, arrived) in links.iter_mut().zip(&mut arrived) {
            while let Some(packet) = link.poll_datagram(now) {
                arrived.push_back(packet);
            }
            if let Some(next) = link.poll_timeout() {
                wait = wait.min(next.saturating_duration_since(now));
            }
        }
        drop(links);
        for (mut device, arrived) in devices.iter().rev().zip(&mut arrived) {
            for packet in arrived.drain(..) {
                // A full device drops it, as it would on any path.
                let _ = device.write(&packet);
            }
        }
    }
    Ok(())
}

/// A new device for IP packets, which do not block.
fn tun(name: &str) -> io::Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/net/tun")?;
    attach(&device, name)?;
    Ok(device)
}

/// What linux/if.h calls `ifreq`, with flags in its union.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Of linux/if_tun.h: IP packets, and nothing in front of them.
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;

#[allow(unsafe_code)]
fn attach(device: &File, name: &str) -> io::Result<()> {
    let mut request = Request {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads an `ifreq` for this code, which the structure is.
    unsafe {
        let setter = rustix::ioctl::Setter::<TUNSETIFF, Request>::new(request);
        rustix::ioctl::ioctl(device, setter)?;
    }
    Ok(())
}
