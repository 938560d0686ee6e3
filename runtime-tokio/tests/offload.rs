//! A kernel that refuses trains. A socket without checksums is one: Linux then answers GSO with "invalid argument".
//!
//! The option can be set safely only from outside, so the test starts itself once more behind a few lines of Python,
//! with such a socket as its standard input; without Python it is skipped.

mod toy;

use std::env;
use std::io::IsTerminal;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;

use portal_runtime_tokio::{Driver, Handlers, Settings};

use toy::{Running, Toy, pattern};

const CHILD: &str = "PORTAL_TEST_CHILD";

const PYTHON: &str = r#"
import os, socket, sys
SO_NO_CHECK = 11
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
s.bind(("127.0.0.1", 0))
os.dup2(s.fileno(), 0)
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_refused_train_is_sent_in_parts() {
    if env::var_os(CHILD).is_some() {
        return child();
    }
    if !cfg!(target_os = "linux") {
        return;
    }
    let output = Command::new("python3")
        .args(["-c", PYTHON])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "a_refused_train_is_sent_in_parts"])
        .env(CHILD, "1")
        .output();
    match output {
        // Its output is kept apart: a second "test result" would be counted as a test of its own.
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("skipped: no python3 ({error})"),
    }
}

fn child() {
    assert!(!std::io::stdin().is_terminal());
    let socket = UdpSocket::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let to = Running::start(Toy::default());
        let (driver, handle, _events) =
            Driver::new(Toy::default(), socket, Settings::default(), Handlers::new()).unwrap();
        let task = tokio::spawn(driver.run());
        let addr = to.tunnel;
        for _ in 0..2 {
            let send = move |toy: &mut Toy, _| {
                (0..20).for_each(|n| toy.send(addr, pattern(n, 1000)));
            };
            handle.call(send).await.unwrap();
            to.until(|toy| toy.received.len() >= 20).await;
            let received = to.call(|toy| std::mem::take(&mut toy.received)).await;
            for (n, (_, payload)) in received.into_iter().enumerate() {
                assert!(payload == pattern(n, 1000), "datagram {n}");
            }
        }
        handle.shutdown();
        let stats = task.await.unwrap().stats;
        println!("{stats:?}");
        assert_eq!((stats.tunnel_tx_datagrams, stats.tunnel_tx_errors), (40, 0));
        assert!(stats.gso_fallbacks <= 1, "learnt after the first");
    });
}
