//! A relay and agents as processes of their own: grants, restarts, ports.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use common::{PATIENCE, Portal, eventually, free_port, free_ports, get, run};

/// A relay's places, so that it can be started again.
struct Relay {
    home: tempfile::TempDir,
    udp: String,
    http: SocketAddr,
    https: SocketAddr,
    ports: String,
}

impl Relay {
    fn new() -> Self {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let https = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let first = free_ports(51);
        let udp = format!("127.0.0.1:{}", free_port());
        Self {
            home: tempfile::tempdir().unwrap(),
            udp,
            http,
            https,
            ports: format!("{first}-{}", first + 50),
        }
    }

    fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// Starts it and returns its URI.
    fn start(&self, access: &str) -> (Portal, String) {
        let (http, https) = (self.http.to_string(), self.https.to_string());
        let state = self.state();
        let args = [
            "relay",
            "--domain",
            "localhost",
            "--udp",
            &self.udp,
            "--http",
            &http,
            "--https",
            &https,
            "--ports",
            &self.ports,
            "--access",
            access,
            "--state-dir",
            state.to_str().unwrap(),
        ];
        let portal = Portal::start(self.home.path(), &args);
        let uri = portal.line();
        assert!(uri.starts_with("portal://") && uri.contains("@localhost:"), "{uri}");
        (portal, uri)
    }

    fn agent(&self, target: &str, uri: &str, key: &Path, more: &[&str]) -> Portal {
        let mut args = vec!["expose", target, "--relay", uri, "--key", key.to_str().unwrap()];
        args.extend(more);
        Portal::start(self.home.path(), &args)
    }

    fn key(&self, name: &str) -> (PathBuf, String) {
        let file = self.home.path().join(name);
        let made = run(self.home.path(), &["key", "new", file.to_str().unwrap()]);
        assert_eq!(made.status.code(), Some(0), "{}", made.err);
        (file, made.out.trim().to_owned())
    }
}

/// A server that answers each connection with one line and what it got.
fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                let count = stream.read(&mut buffer).unwrap_or(0);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(&buffer[..count]);
            });
        }
    });
    port
}

#[test]
fn a_key_is_refused_by_name_until_it_is_granted_and_again_when_it_is_revoked() {
    let relay = Relay::new();
    let (running, uri) = relay.start("granted");
    let (file, key) = relay.key("agent.key");
    let agent = relay.agent(&server().to_string(), &uri, &file, &["--name", "blog"]);
    let command = format!("portal grant {key}");
    agent.says(&command);
    running.says(&command);

    let state = relay.state();
    let state = state.to_str().unwrap();
    let granted = run(relay.home.path(), &["grant", &key, "--state-dir", state]);
    assert_eq!(granted.status.code(), Some(0), "{}", granted.err);
    assert!(granted.err.contains("at once"), "{}", granted.err);
    let url = agent.line();
    assert_eq!(url, format!("http://blog.localhost:{}/", relay.http.port()));
    let (status, body) = get(relay.http, "blog.localhost", "/path").unwrap();
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&body).starts_with("GET /path HTTP/1.1"));
    assert_eq!(get(relay.http, "other.localhost", "/").unwrap().0, 404);

    let revoked = run(relay.home.path(), &["revoke", &key, "--state-dir", state]);
    assert_eq!(revoked.status.code(), Some(0), "{}", revoked.err);
    eventually("the end of the lease", || {
        match get(relay.http, "blog.localhost", "/") {
            Ok((404, _)) => Ok(()),
            other => Err(other),
        }
    });
    let again = run(relay.home.path(), &["revoke", &key, "--state-dir", state]);
    assert_eq!(again.status.code(), Some(1), "there is nothing left to revoke");

    assert_eq!(agent.stop().status.code(), Some(0));
    assert_eq!(running.stop().status.code(), Some(0));
    assert!(
        !relay.state().join("portal.sock").exists(),
        "the socket goes with the relay"
    );
}

#[test]
fn names_and_ports_survive_the_death_of_either_end() {
    let relay = Relay::new();
    let (running, uri) = relay.start("open");
    let (web_key, _) = relay.key("web.key");
    let (tcp_key, _) = relay.key("tcp.key");
    let target = server().to_string();
    let web = relay.agent(&target, &uri, &web_key, &["--name", "web"]);
    let tcp = relay.agent(&format!("tcp://127.0.0.1:{target}"), &uri, &tcp_key, &[]);
    let (web_url, tcp_url) = (web.line(), tcp.line());
    let port: u16 = tcp_url.rsplit(':').next().unwrap().parse().unwrap();
    let served = || {
        eventually("http", || match get(relay.http, "web.localhost", "/") {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        });
        eventually("tcp", || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"over tcp")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            if answer.ends_with("over tcp") {
                Ok(())
            } else {
                Err(std::io::Error::other(answer))
            }
        });
    };
    served();

    web.kill();
    let web = relay.agent(&target, &uri, &web_key, &["--name", "web"]);
    assert_eq!(web.line(), web_url);
    served();

    // What the relay remembers is written within a second.
    eventually("the list of agents", || {
        match std::fs::read_to_string(relay.state().join("agents.json")) {
            Ok(text) if text.matches("127.0.0.1").count() == 2 => Ok(()),
            other => Err(other),
        }
    });
    running.kill();
    let (running, again) = relay.start("open");
    assert_eq!(again, uri, "the same key");
    served();
    assert_eq!(running.stop().status.code(), Some(0));
    assert_eq!(tcp.stop().status.code(), Some(0));
    assert_eq!(web.stop().status.code(), Some(0));
}

#[test]
fn a_udp_service_answers_each_visitor() {
    let relay = Relay::new();
    let (running, uri) = relay.start("open");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = format!("udp://{}", socket.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let answer = [b"to you: ", &buffer[..count]].concat();
            let _ = socket.send_to(&answer, from);
        }
    });
    let (key, _) = relay.key("udp.key");
    let agent = relay.agent(&target, &uri, &key, &[]);
    let port: u16 = agent.line().rsplit(':').next().unwrap().parse().unwrap();
    for number in 0..5 {
        let visitor = UdpSocket::bind("127.0.0.1:0").unwrap();
        visitor.set_read_timeout(Some(PATIENCE)).unwrap();
        visitor
            .send_to(format!("visitor {number}").as_bytes(), ("127.0.0.1", port))
            .unwrap();
        let mut buffer = [0; 2048];
        let count = visitor.recv(&mut buffer).expect("the first datagram is answered");
        assert_eq!(&buffer[..count], format!("to you: visitor {number}").as_bytes());
        let address = visitor.local_addr().unwrap();
        running.says(&format!("visitor {address} at udp://localhost:{port} sends datagrams"));
    }
}

#[test]
fn a_name_belongs_to_the_first_key_that_asked_for_it() {
    let relay = Relay::new();
    let (_running, uri) = relay.start("open");
    let target = server().to_string();
    let (first, _) = relay.key("first.key");
    let (second, _) = relay.key("second.key");
    let owner = relay.agent(&target, &uri, &first, &["--name", "mine"]);
    owner.line();
    let thief = relay
        .agent(&target, &uri, &second, &["--name", "mine", "--once"])
        .wait();
    assert_eq!(thief.status.code(), Some(1));
    assert!(
        thief.err.contains("mine") && thief.err.contains("another key"),
        "{}",
        thief.err
    );
}

#[test]
fn a_second_relay_on_the_same_state_is_refused() {
    let relay = Relay::new();
    let (_running, _) = relay.start("open");
    let state = relay.state();
    let args = [
        "relay",
        "--domain",
        "localhost",
        "--udp",
        "127.0.0.1:0",
        "--state-dir",
        state.to_str().unwrap(),
    ];
    let second = run(relay.home.path(), &args);
    assert_eq!(second.status.code(), Some(1));
    assert!(second.err.contains("in use by another relay"), "{}", second.err);
}
