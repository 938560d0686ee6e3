//! Accepting when the process runs out of descriptors. In a process of its own, under a low limit.

mod toy;

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use portal_runtime_tokio::{Handlers, Settings};

use toy::{PATIENCE, Running, Toy};

const CHILD: &str = "PORTAL_TEST_CHILD";
const CLIENTS: usize = 100;

#[test]
fn accepting_goes_on_once_descriptors_are_free() {
    if env::var_os(CHILD).is_some() {
        return child();
    }
    let exe = env::current_exe().unwrap();
    let spawned = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 40 && exec \"$0\" --exact --nocapture accepting_goes_on_once_descriptors_are_free",
        ])
        .arg(exe)
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        eprintln!("skipped: no shell");
        return;
    };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = |what: &str| loop {
        let line = lines.next().expect("the child lives").unwrap();
        if let Some((_, rest)) = line.split_once(what) {
            return rest.to_owned();
        }
    };

    let addr = said("listening ");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| TcpStream::connect(&addr).expect("the kernel's queue takes it"))
        .collect();
    said("paused");
    // In the order of arrival: those that were accepted make room for those that wait.
    for mut client in clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).expect("accepted in the end");
    }
    drop(child.stdin.take());
    assert_eq!(said("accepted "), CLIENTS.to_string());
    assert!(child.wait().unwrap().success());
}

/// An echo that says where it listens, that it had to pause, and in the end how many it accepted.
fn child() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (running, addr) = Running::listening(Toy::default(), Settings::default(), Handlers::new()).await;
        println!("listening {addr}");
        while running.handle.stats().emfile_pauses == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("paused");
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
        ended.await.unwrap().unwrap();
        running.until(|toy| toy.open_streams() == 0).await;
        println!("accepted {}", running.handle.stats().accepted);
    });
}
