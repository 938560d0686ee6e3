//! What an operator sees of running portals, and bounds: `portal status`, `portal health`, `--admin`, and what a grant
//! allows.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Ended, PATIENCE, Portal, command, eventually, free_port, get, run};
use serde_json::Value;

/// A home with a relay that serves everybody on TCP ports.
struct Place {
    home: tempfile::TempDir,
    udp: String,
    ports: String,
    admin: SocketAddr,
}

impl Place {
    fn new() -> Self {
        let first = free_port().min(65_000);
        Self {
            home: tempfile::tempdir().unwrap(),
            udp: format!("127.0.0.1:{}", free_port()),
            ports: format!("{first}-{}", first + 50),
            admin: SocketAddr::from(([127, 0, 0, 1], free_port())),
        }
    }

    fn state(&self) -> String {
        self.home.path().join("state").to_str().unwrap().to_owned()
    }

    fn relay(&self, access: &str) -> (Portal, String) {
        let (state, admin) = (self.state(), self.admin.to_string());
        let args = [
            "relay",
            "--domain",
            "127.0.0.1",
            "--udp",
            &self.udp,
            "--ports",
            &self.ports,
            "--access",
            access,
            "--state-dir",
            &state,
            "--admin",
            &admin,
        ];
        let portal = Portal::start(self.home.path(), &args);
        let uri = portal.line();
        (portal, uri)
    }

    fn agent(&self, uri: &str, target: &str, more: &[&str]) -> Portal {
        let mut args = vec!["expose", target, "--relay", uri];
        args.extend(more);
        Portal::start(self.home.path(), &args)
    }

    fn run(&self, args: &[&str]) -> Ended {
        run(self.home.path(), args)
    }

    /// The status objects that are printed.
    fn json(&self, args: &[&str]) -> Vec<Value> {
        let ended = self.run(&[&["status", "--json"], args].concat());
        assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
        ended
            .out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn agents(&self) -> PathBuf {
        self.home.path().join(".local/state/portal")
    }
}

/// A TCP service that sends back what it gets.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
                let _ = std::io::copy(&mut reader, &mut writer);
                let _ = writer.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    target
}

fn visit(public: &str) -> TcpStream {
    let stream = TcpStream::connect(public.strip_prefix("tcp://").expect("a tcp address")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn say(visitor: &mut TcpStream, bytes: &[u8]) {
    visitor.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    visitor.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn status_shows_relay_and_agents_with_what_they_carried() {
    let place = Place::new();
    let (relay, uri) = place.relay("open");
    let target = echo();
    let agent = place.agent(&uri, &target, &[]);
    let public = agent.line();
    let mut visitor = visit(&public);
    say(&mut visitor, &[7; 1000]);

    let state = place.state();
    let of_relay = &place.json(&["--state-dir", &state])[0];
    assert_eq!(
        (&of_relay["role"], &of_relay["domain"]),
        (&"relay".into(), &"127.0.0.1".into())
    );
    let lease = &of_relay["leases"][0];
    assert_eq!(lease["public"], public);
    assert_eq!(
        lease["visitors"],
        serde_json::json!({"now": 1, "total": 1, "received": 1000, "sent": 1000})
    );
    let seen = &of_relay["agents"][0];
    assert_eq!((&seen["leases"], &seen["key"]), (&1.into(), &lease["key"]));
    assert!(of_relay["memory"]["used"].as_u64() > Some(0) && of_relay.get("not_ready").is_none());

    // Without flags: what runs as this user, here the agent alone.
    let agents = place.json(&[]);
    let [of_agent] = &agents[..] else { panic!("{agents:?}") };
    assert_eq!(
        (&of_agent["role"], &of_agent["state"]),
        (&"agent".into(), &"serving".into())
    );
    assert_eq!(
        (&of_agent["key"], &of_agent["services"][0]["public"]),
        (&lease["key"], &public.clone().into())
    );
    assert_eq!(of_agent["services"][0]["connections"]["received"], 1000);

    let shown = place.run(&["status", "--state-dir", &state]);
    for part in ["relay 127.0.0.1, key ", "  ready\n", "1000 B", &public, "memory in use"] {
        assert!(shown.out.contains(part), "{part} is not in\n{}", shown.out);
    }
    let shown = place.run(&["status"]);
    assert!(
        shown.out.contains("serving for ") && shown.out.contains(&public),
        "{}",
        shown.out
    );
    assert_eq!(agent.stop().status.code(), Some(0));
    assert_eq!(relay.stop().status.code(), Some(0));
}

#[test]
fn nothing_running_is_said_with_where_was_looked() {
    let place = Place::new();
    for args in [&["status"][..], &["status", "--json"], &["health"]] {
        let ended = place.run(args);
        assert_eq!(ended.status.code(), Some(1), "{args:?}");
        let user = place.agents();
        for part in ["no relay and no agent is running", user.to_str().unwrap(), "help: "] {
            assert!(ended.err.contains(part), "{}", ended.err);
        }
    }
    let ended = place.run(&["status", "--state-dir", "/no/such/place"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.err.contains("/no/such/place"), "{}", ended.err);
}

#[test]
fn watching_shows_rates_and_goes_on() {
    let place = Place::new();
    let (_relay, uri) = place.relay("open");
    let agent = place.agent(&uri, &echo(), &[]);
    let public = agent.line();
    let watch = Portal::start(
        place.home.path(),
        &["status", "--watch", "--every", "1", "--state-dir", &place.state()],
    );
    let mut visitor = visit(&public);
    let line_of = |watch: &Portal| loop {
        let line = watch.line();
        if line.contains(&public) {
            return line;
        }
    };
    line_of(&watch);
    eventually("a rate", || {
        say(&mut visitor, &[1; 20_000]);
        let line = line_of(&watch);
        // Bytes received and sent in all, and by the second.
        if line.matches("KiB").count() == 4 {
            Ok(())
        } else {
            Err(line)
        }
    });
}

#[test]
fn health_is_an_exit_code_by_socket_and_by_address() {
    let place = Place::new();
    let (relay, uri) = place.relay("granted");
    let (state, admin) = (place.state(), place.admin.to_string());
    let healthy = |args: &[&str]| {
        let ended = place.run(&[&["health"], args].concat());
        let lines = ended.out.lines().count() + ended.err.lines().filter(|line| line.starts_with("error")).count();
        assert_eq!(lines, 1, "one line: {}{}", ended.out, ended.err);
        (ended.status.code(), ended.err)
    };
    eventually("the relay's health", || match healthy(&["--admin", &admin]) {
        (Some(0), _) => Ok(()),
        other => Err(other),
    });
    assert_eq!(healthy(&["--state-dir", &state]).0, Some(0));

    let of_agent = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let agent = place.agent(&uri, &echo(), &["--admin", &of_agent.port().to_string()]);
    agent.says(&format!("http://{of_agent}/metrics"));
    agent.says("portal grant");
    for args in [&[][..], &["--admin", &of_agent.to_string()]] {
        let (code, err) = healthy(args);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("not ready") && err.contains("refuses this agent"), "{err}");
    }
    assert_eq!(get(of_agent, "localhost", "/healthz").unwrap(), (200, b"ok\n".to_vec()));
    assert_eq!(get(of_agent, "localhost", "/readyz").unwrap().0, 503);

    let key = place.json(&[])[0]["key"].as_str().unwrap().to_owned();
    assert_eq!(
        place.run(&["grant", &key, "--state-dir", &state]).status.code(),
        Some(0)
    );
    agent.line();
    eventually("the agent's health", || match healthy(&[]) {
        (Some(0), _) => Ok(()),
        other => Err(other),
    });
    assert_eq!(
        get(of_agent, "localhost", "/readyz").unwrap(),
        (200, b"ready\n".to_vec())
    );
    let mut asked = command(place.home.path(), &["health"]);
    asked.env("PORTAL_ADMIN", of_agent.to_string());
    assert_eq!(Portal::spawn(asked).wait().status.code(), Some(0));

    relay.kill();
    eventually("the loss of the relay", || match healthy(&[]) {
        (Some(1), _) => Ok(()),
        other => Err(other),
    });
    let (code, err) = healthy(&["--admin", &admin]);
    assert!(
        code == Some(1) && err.contains(&admin) && err.contains("refused"),
        "{err}"
    );
    assert_eq!(healthy(&["--state-dir", &state]).0, Some(1), "a killed relay is none");
}

#[test]
fn metrics_are_served_and_an_address_in_use_is_the_end() {
    let place = Place::new();
    let (relay, uri) = place.relay("open");
    relay.says(&format!("http://{}/metrics", place.admin));
    let (status, body) = get(place.admin, "localhost", "/metrics").unwrap();
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    assert!(
        text.contains("portal_relay_leases 0\n") && text.ends_with("# EOF\n"),
        "{text}"
    );
    let (status, body) = get(place.admin, "localhost", "/status").unwrap();
    let json: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &json["role"]), (200, &"relay".into()));
    assert_eq!(get(place.admin, "localhost", "/").unwrap().0, 404);

    let ended = place
        .agent(&uri, &echo(), &["--admin", &place.admin.to_string()])
        .wait();
    assert_eq!(ended.status.code(), Some(1));
    for part in ["listening for operators on tcp", "in use by another program", "--admin"] {
        assert!(ended.err.contains(part), "{}", ended.err);
    }
    let ended = place.run(&["relay", "--domain", "x.test", "--admin", "localhost:1"]);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.err);
}

#[test]
fn sockets_are_for_their_owner_and_leftovers_do_no_harm() {
    let place = Place::new();
    let (_relay, uri) = place.relay("open");
    let socket = |name: &str| place.agents().join(name);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let first = place.agent(&uri, &echo(), &[]);
    first.line();
    let second = place.agent(&uri, &echo(), &[]);
    second.line();
    assert_eq!(
        (mode(&socket("agent.sock")), mode(&socket("agent-2.sock"))),
        (0o600, 0o600)
    );
    assert_eq!(place.json(&[]).len(), 2);

    first.kill();
    assert!(socket("agent.sock").exists(), "a killed process leaves it");
    assert_eq!(place.json(&[]).len(), 1);
    let again = place.agent(&uri, &echo(), &[]);
    again.line();
    assert_eq!(place.json(&[]).len(), 2);
    assert_eq!(second.stop().status.code(), Some(0));
    assert_eq!(again.stop().status.code(), Some(0));
    assert!(!socket("agent.sock").exists() && !socket("agent-2.sock").exists());

    // Without a relay, one key serves any number of agents at a time.
    let alone = || {
        let args = ["expose", "3000", "--http", "127.0.0.1:0"];
        let portal = Portal::start(place.home.path(), &args);
        portal.line();
        portal
    };
    let (one, two) = (alone(), alone());
    let agents = place.json(&[]);
    assert_eq!(agents.len(), 2);
    assert!(agents.iter().all(|agent| agent["state"] == "serving"), "{agents:?}");
    one.kill();
    let three = alone();
    assert_eq!(place.json(&[]).len(), 2);
    assert_eq!(
        (two.stop().status.code(), three.stop().status.code()),
        (Some(0), Some(0))
    );
    let left = std::fs::read_dir(place.agents()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|name| !name.to_string_lossy().ends_with(".sock")),
        "{left:?}"
    );
}

#[test]
fn a_grant_bounds_connections_and_rate_and_changes_act_at_once() {
    let place = Place::new();
    let (_relay, uri) = place.relay("granted");
    let state = place.state();
    let agent = place.agent(&uri, &echo(), &[]);
    let key = eventually("the agent's socket", || {
        let ended = place.run(&["status", "--json"]);
        serde_json::from_str::<Value>(&ended.out).map(|status| status["key"].as_str().unwrap().to_owned())
    });
    let grant = |more: &[&str]| {
        let ended = place.run(&[&["grant", &key, "--state-dir", &state][..], more].concat());
        assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    };
    grant(&["--flows", "1", "--rate", "64K"]);
    let file = std::fs::read_to_string(place.home.path().join("state/grants.toml")).unwrap();
    assert!(
        file.contains("flows = 1\n") && file.contains("rate = 65536\n"),
        "{file}"
    );

    let public = agent.line();
    let mut first = visit(&public);
    say(&mut first, b"one");
    let refused = |visitor: &mut TcpStream| {
        let _ = visitor.write_all(b"two");
        !matches!(visitor.read(&mut [0; 8]), Ok(1..))
    };
    assert!(refused(&mut visit(&public)), "a second connection");
    let status = &place.json(&["--state-dir", &state])[0];
    assert_eq!(status["refusals"]["refused_visitor_key"], 1);

    // 128 KiB there and back are 256 KiB, of which some are let through at once.
    let start = Instant::now();
    let writer = std::thread::spawn({
        let mut stream = first.try_clone().unwrap();
        move || stream.write_all(&[3; 128 << 10])
    });
    first.read_exact(&mut vec![0; 128 << 10]).unwrap();
    writer.join().unwrap().unwrap();
    let took = start.elapsed();
    assert!(
        (Duration::from_secs(3)..Duration::from_secs(20)).contains(&took),
        "{took:?}"
    );

    grant(&[]);
    say(&mut visit(&public), b"any number");
    let start = Instant::now();
    for _ in 0..16 {
        say(&mut first, &[4; 16 << 10]);
    }
    assert!(start.elapsed() < took, "as fast as it can");
    for wrong in [["--flows", "0"], ["--rate", "0"], ["--rate", "fast"]] {
        let ended = place.run(&[&["grant", &key, "--state-dir", &state][..], &wrong].concat());
        assert_eq!(ended.status.code(), Some(2), "{wrong:?}: {}", ended.err);
    }
}
