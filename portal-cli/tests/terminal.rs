//! What `portal expose` shows on a terminal, and only there.

#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use common::{command, eventually, free_port, get, host_of};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

const BLOCKS: [char; 2] = ['\u{2580}', '\u{2588}'];

/// A portal with its stderr on a terminal.
struct OnTerminal {
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl OnTerminal {
    fn start(home: &Path, columns: u16, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let size = Winsize {
            ws_row: 50,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&screen, size).unwrap();
        let terminal = ioctl_tiocgptpeer(&screen, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let mut command = command(home, args);
        command
            .env("TERM", "xterm-256color")
            .envs(variables.iter().copied())
            .stderr(Stdio::from(terminal));
        let child = command.spawn().unwrap();
        // It holds the terminal's other end: with it gone, the screen's end is seen.
        drop(command);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut screen, copy) = (File::from(screen), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..count]);
                *copy.lock().unwrap() = String::from_utf8_lossy(&bytes).into_owned();
            }
        });
        Self { child, shown }
    }

    /// What is on the screen once it has this text.
    fn shows(&self, text: &str) -> String {
        eventually(&format!("{text:?} on the screen"), || {
            let shown = self.shown.lock().unwrap().clone();
            if shown.contains(text) { Ok(shown) } else { Err(shown) }
        })
    }

    /// Everything that was shown until its end.
    fn end(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.shows("ending;")
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A web server, by its port.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhere");
        }
    });
    port.to_string()
}

#[test]
fn a_code_of_the_address_follows_it() {
    let home = tempfile::tempdir().unwrap();
    let page = server();
    let args = ["expose", &page, "--http", "127.0.0.1:0"];
    let portal = OnTerminal::start(home.path(), 100, &args, &[]);
    portal.shows("Ctrl-C ends it");
    let shown = portal.end();
    let code: Vec<_> = shown.lines().filter(|line| line.contains(BLOCKS)).collect();
    // The smallest code for an address has 25 modules, two rows to a line.
    assert!(code.len() >= 13, "{shown}");
    for line in &code {
        assert!(line.starts_with("\x1b[38;5;16;48;5;231m"), "{line:?}");
        assert!(line.trim_end().ends_with("\x1b[0m"), "{line:?}");
    }
    let address = shown.find("is at http://").expect("the address");
    assert!(address < shown.find(BLOCKS).unwrap(), "{shown}");
}

#[test]
fn there_is_none_where_it_does_not_fit_or_is_not_wanted() {
    let home = tempfile::tempdir().unwrap();
    let page = server();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = format!("tcp://{}", listener.local_addr().unwrap());
    let http = ["--http", "127.0.0.1:0"];
    for (columns, args, variables) in [
        (20, [&["expose", &page], http.as_slice()].concat(), [("TERM", "xterm")]),
        (
            100,
            [&["expose", &page, "--no-qr"], http.as_slice()].concat(),
            [("TERM", "xterm")],
        ),
        (
            100,
            [&["expose", &page], http.as_slice()].concat(),
            [("PORTAL_NO_QR", "1")],
        ),
        (100, [&["expose", &page], http.as_slice()].concat(), [("NO_COLOR", "1")]),
        (100, [&["expose", &page], http.as_slice()].concat(), [("TERM", "dumb")]),
        (
            100,
            [&["--json", "expose", &page], http.as_slice()].concat(),
            [("TERM", "xterm")],
        ),
        (100, vec!["expose", &tcp], [("TERM", "xterm")]),
    ] {
        let portal = OnTerminal::start(home.path(), columns, &args, &variables);
        portal.shows("Ctrl-C ends it");
        let shown = portal.end();
        assert!(!shown.contains(BLOCKS), "{args:?} {variables:?}: {shown}");
    }
}

#[test]
fn quiet_leaves_the_screen_empty() {
    let home = tempfile::tempdir().unwrap();
    let (page, port) = (server(), free_port());
    let http = format!("127.0.0.1:{port}");
    let mut portal = OnTerminal::start(home.path(), 100, &["expose", &page, "--http", &http, "--quiet"], &[]);
    let mut line = String::new();
    let out = portal.child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let (host, _) = host_of(line.trim());
    assert_eq!(get(http.parse().unwrap(), &host, "/").unwrap().0, 200);
    let pid = rustix::process::Pid::from_child(&portal.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(portal.child.wait().unwrap().success());
    assert_eq!(*portal.shown.lock().unwrap(), "");
}
