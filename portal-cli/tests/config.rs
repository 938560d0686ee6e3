//! Files: a relay and an agent that are started with one, looked at with --check, and told to read it again.

#![cfg_attr(
    not(feature = "tokio"),
    allow(dead_code, unused_imports, reason = "tests that serve files are not there")
)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Ended, PATIENCE, Portal, command, eventually, free_port, free_ports, get, run};

/// A home with files in it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A command that runs in it, so that files have short names.
    fn command(&self, args: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = command(self.path(), args);
        command.current_dir(self.path()).envs(variables.iter().copied());
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        Portal::spawn(self.command(args, &[])).wait()
    }

    fn start(&self, args: &[&str]) -> Portal {
        Portal::spawn(self.command(args, &[]))
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// A relay that serves everybody, by a file; the file's text comes back to be changed.
    fn relay(&self) -> (Portal, String, SocketAddr, String) {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let first = free_ports(51);
        let text = format!(
            "domain = 'localhost'\nudp = '127.0.0.1:{}'\nhttp = '{http}'\nhttps = 'off'\nports = '{first}-{}'\n\
             state_dir = 'state'\naccess = 'open'\n",
            free_port(),
            first + 50
        );
        self.write("relay.toml", &text);
        let relay = self.start(&["relay", "--config", "relay.toml"]);
        let uri = relay.line();
        (relay, uri, http, text)
    }
}

/// A wrong use and what it says.
#[track_caller]
fn refused(ended: &Ended, code: i32, texts: &[&str]) {
    assert_eq!(ended.status.code(), Some(code), "{}", ended.err);
    for text in texts {
        assert!(ended.err.contains(text), "{text:?} is missing: {}", ended.err);
    }
    assert!(ended.out.is_empty() && !ended.err.contains("panicked"), "{}", ended.err);
}

/// A server that says its name at the start of a connection and then sends back what it gets, until either end closes.
fn server(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = stream.write_all(name.as_bytes());
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn port_of(public: &str) -> u16 {
    public.rsplit(':').next().unwrap().parse().expect("a port")
}

/// Connects to a `tcp://` service, and reads the name of the server behind it.
fn visit(port: u16, name: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut found = vec![0; name.len()];
    stream.read_exact(&mut found)?;
    if found == name.as_bytes() {
        return Ok(stream);
    }
    Err(std::io::Error::other(String::from_utf8_lossy(&found).into_owned()))
}

fn echo(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text.as_bytes());
}

/// The lines of an agent with several services: addresses by targets.
fn lines(agent: &Portal, count: usize) -> std::collections::BTreeMap<String, String> {
    (0..count)
        .map(|_| {
            let line = agent.line();
            let (public, target) = line.split_once(' ').expect("an address and a target");
            (target.to_owned(), public.to_owned())
        })
        .collect()
}

#[cfg(feature = "tokio")]
#[test]
fn an_agent_serves_two_services_through_a_relay_with_a_file() {
    let home = Home::new();
    let (relay, uri, http, _) = home.relay();
    std::fs::create_dir(home.path().join("my site")).unwrap();
    home.write("my site/page.txt", "the page");
    let echo_port = server("echo");
    home.write(
        "agent.toml",
        &format!(
            "relay = '{uri}'\nkey = 'agent.key'\n[[service]]\ntarget = './my site'\nname = 'site'\n\
             [[service]]\ntarget = 'tcp://{echo_port}'\n"
        ),
    );
    let agent = home.start(&["agent", "--config", "agent.toml"]);
    let public = lines(&agent, 2);
    assert_eq!(public["./my site"], format!("http://site.localhost:{}/", http.port()));
    assert_eq!(
        get(http, "site.localhost", "/page.txt").unwrap(),
        (200, b"the page".to_vec())
    );
    let port = port_of(&public[&format!("tcp://{echo_port}")]);
    echo(&mut visit(port, "echo").unwrap(), "there and back");
    agent.says("./my site is at http://site.localhost");
    assert_eq!(agent.stop().status.code(), Some(0));

    // The same over variables, for machines, and with a name for people.
    let args = ["--json", "agent", "--name", "attic"];
    let agent = Portal::spawn(home.command(&args, &[("PORTAL_CONFIG", "agent.toml")]));
    let mut seen = Vec::new();
    for _ in 0..2 {
        let line: serde_json::Value = serde_json::from_str(&agent.line()).unwrap();
        assert_eq!(line["event"], "granted");
        seen.push((line["service"].to_string(), line["target"].to_string()));
    }
    seen.sort();
    assert_eq!(seen[0], ("\"./my site#site\"".into(), "\"./my site\"".into()));
    relay.says("attic");
    assert_eq!(agent.stop().status.code(), Some(0));
    assert_eq!(relay.stop().status.code(), Some(0));
}

#[cfg(feature = "tokio")]
#[test]
fn a_refused_service_does_not_end_its_agent() {
    let home = Home::new();
    let (_relay, uri, http, _) = home.relay();
    home.write("page.txt", "here");
    home.write(
        "agent.toml",
        &format!(
            "relay = '{uri}'\n[[service]]\ntarget = 'tls://127.0.0.1:1'\n[[service]]\ntarget = './page.txt'\nname = 'a'\n"
        ),
    );
    let agent = home.start(&["agent", "--config", "agent.toml"]);
    assert_eq!(lines(&agent, 1).keys().collect::<Vec<_>>(), ["./page.txt"]);
    agent.says("refuses to expose tls://127.0.0.1:1: ");
    assert_eq!(get(http, "a.localhost", "/").unwrap().0, 200);
    assert_eq!(agent.stop().status.code(), Some(0));

    let once = home.run(&["agent", "--config", "agent.toml", "--once"]);
    assert_eq!(once.status.code(), Some(1));
    assert!(once.err.contains("refuses to expose tls://127.0.0.1:1"), "{}", once.err);
}

#[test]
fn flags_go_before_variables_and_variables_before_the_file() {
    let home = Home::new();
    home.write(
        "relay.toml",
        "domain = 'file.test'\nstate-dir = 'state'\nhttp = 8001\nhttps = 8002\njson = true\n",
    );
    let check = |args: &[&str], variables: &[(&str, &str)]| {
        let args = [&["relay", "--check", "--config", "relay.toml"], args].concat();
        let ended = Portal::spawn(home.command(&args, variables)).wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
        let said: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
        ["domain", "http", "https", "udp"].map(|name| said[name].as_str().unwrap().to_owned())
    };
    assert_eq!(check(&[], &[]), ["file.test", "[::]:8001", "[::]:8002", "[::]:51820"]);
    let variables = [
        ("PORTAL_DOMAIN", "variable.test"),
        ("PORTAL_HTTP", "8003"),
        ("PORTAL_UDP", "8004"),
    ];
    assert_eq!(
        check(&["--http", "8005"], &variables),
        ["variable.test", "[::]:8005", "[::]:8002", "[::]:8004"]
    );
    assert_eq!(home.files(), ["relay.toml"], "nothing is made");
}

#[cfg(feature = "tokio")]
#[test]
fn check_says_what_would_be_run_and_makes_nothing() {
    let home = Home::new();
    let key = portal_core::identity::PublicKey::from_bytes([9; 32]).url_safe();
    home.write(
        "agent.toml",
        &format!("relay = 'portal://{key}@relay.test:51820'\nkey = 'a.key'\n[[service]]\ntarget = '3000'\n[[service]]\ntarget = '.'\n"),
    );
    let agent = home.run(&["agent", "--config", "agent.toml", "--check"]);
    assert_eq!(agent.status.code(), Some(0), "{}", agent.err);
    assert!(agent.out.contains("3000, . by relay relay.test:51820"), "{}", agent.out);
    assert!(agent.out.contains("a new key, to be made in a.key"), "{}", agent.out);

    let expose = Portal::spawn(home.command(&["expose", "."], &[("PORTAL_CHECK", "1")])).wait();
    assert_eq!(expose.status.code(), Some(0), "{}", expose.err);
    assert!(
        expose.out.contains("ready to expose . by a relay of its own"),
        "{}",
        expose.out
    );

    let relay = home.run(&["relay", "--domain", "t.test", "--state-dir", "state", "--check"]);
    assert_eq!(relay.status.code(), Some(0), "{}", relay.err);
    assert!(
        relay.out.contains("ready to serve t.test: agents at [::]:51820"),
        "{}",
        relay.out
    );
    assert_eq!(home.files(), ["agent.toml"], "nothing is made");

    let made = home.run(&["key", "new", "a.key"]).out;
    let agent = home.run(&["agent", "--config", "agent.toml", "--check"]);
    assert!(agent.out.contains(made.trim()), "{}", agent.out);
    std::fs::set_permissions(
        home.path().join("a.key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    refused(
        &home.run(&["agent", "--config", "agent.toml", "--check"]),
        1,
        &["a.key", "chmod 600"],
    );
    refused(&home.run(&["expose", "./gone", "--check"]), 1, &["./gone"]);
    std::fs::create_dir(home.path().join("state")).unwrap();
    home.write("state/grants.toml", "[[grant]\n");
    refused(
        &home.run(&["relay", "--domain", "t.test", "--state-dir", "state", "--check"]),
        1,
        &["grants.toml, line 1"],
    );
    refused(&home.run(&["relay", "--check"]), 2, &["domain"]);
}

#[test]
fn mistakes_in_files() {
    let home = Home::new();
    let key = portal_core::identity::PublicKey::from_bytes([9; 32]).url_safe();
    let relay = |text: &str| {
        home.write("relay.toml", text);
        home.run(&["relay", "--config", "relay.toml"])
    };
    refused(
        &relay("domain = 'a.test'\nacces = 'open'\n"),
        2,
        &["relay.toml, line 2", "\"acces\"", "did you mean access?"],
    );
    refused(
        &relay("mtu = 9000\n"),
        2,
        &["relay.toml, line 1: mtu = 9000", "1280..=1420", "largest packet"],
    );
    refused(&relay("access = 'maybe'\n"), 2, &["access = 'maybe'", "open, granted"]);
    refused(
        &relay("domain = a.test\n"),
        2,
        &["relay.toml, line 1", "texts need quotes"],
    );
    refused(
        &relay("[[service]]\ntarget = '1'\n"),
        2,
        &["line 1", "no table [[service]]", "there is [[peer]]"],
    );
    refused(&relay("http = 8080\n"), 2, &["domain is missing"]);
    refused(
        &home.run(&["relay", "--config", "none.toml"]),
        1,
        &["none.toml", "no such file"],
    );
    refused(
        &home.run(&["relay", "--config", "."]),
        1,
        &["configuration .", "directory"],
    );
    // A flag does not heal the file.
    refused(
        &home.run(&["relay", "--config", "relay.toml", "--mtu", "1"]),
        2,
        &["--mtu", "1280"],
    );

    let agent = |text: &str| {
        let text = text.replace("RELAY", &format!("relay = 'portal://{key}@127.0.0.1:1'"));
        home.write("agent.toml", &text);
        home.run(&["agent", "--config", "agent.toml"])
    };
    refused(&home.run(&["agent"]), 2, &["--config"]);
    refused(&agent("RELAY\n"), 2, &["agent.toml", "no [[service]]"]);
    refused(
        &agent("[[service]]\ntarget = '3000'\n"),
        2,
        &["agent.toml", "relay is missing", "--relay"],
    );
    refused(
        &agent("relay = 'x'\n"),
        2,
        &["agent.toml, line 1: relay = 'x'", "portal://"],
    );
    refused(&agent("RELAY\n[[service]]\n"), 2, &["line 2", "\"target\"", "missing"]);
    refused(
        &agent("RELAY\n[[service]]\ntarget = '99999'\n"),
        2,
        &["agent.toml, line 2: ", "99999", "1 to 65535"],
    );
    refused(
        &agent("RELAY\n[[service]]\ntarget = '3000'\nport = 1\n"),
        2,
        &["agent.toml, line 2: ", "kind http"],
    );
    refused(
        &agent("RELAY\n[[service]]\ntarget = './gone'\n"),
        1,
        &["agent.toml, line 2: ", "./gone"],
    );
    refused(
        &agent("RELAY\n[[service]]\ntarget = '1'\nnane = 'x'\n"),
        2,
        &["line 4", "did you mean name?"],
    );
    refused(
        &agent("RELAY\n[[service]]\ntarget = '1'\n[[service]]\ntarget = '1'\n"),
        2,
        &["line 4", "line 2", "id = \"...\""],
    );
    let told_apart = "RELAY\n[[service]]\ntarget = '1'\n[[service]]\ntarget = '1'\nname = 'b'\n[[service]]\ntarget = '1'\n\
                      id = 'c'\n";
    home.write(
        "agent.toml",
        &told_apart.replace("RELAY", &format!("relay = 'portal://{key}@127.0.0.1:1'")),
    );
    assert_eq!(
        home.run(&["agent", "--config", "agent.toml", "--check"]).status.code(),
        Some(0)
    );
}

#[cfg(feature = "tokio")]
#[test]
fn a_hangup_gives_an_agent_other_services_while_a_connection_goes_on() {
    let home = Home::new();
    let (_relay, uri, http, _) = home.relay();
    std::fs::create_dir(home.path().join("one")).unwrap();
    std::fs::create_dir(home.path().join("two")).unwrap();
    home.write("one/page.txt", "one");
    home.write("two/page.txt", "two");
    let (stays, goes) = (server("stays"), server("goes"));
    let head = format!("relay = '{uri}'\nkey = 'agent.key'\n[[service]]\ntarget = 'tcp://{stays}'\n");
    home.write(
        "agent.toml",
        &format!(
            "{head}[[service]]\ntarget = 'tcp://{goes}'\n[[service]]\ntarget = './one'\nname = 'files'\nid = 'files'\n"
        ),
    );
    let agent = home.start(&["agent", "--config", "agent.toml"]);
    let public = lines(&agent, 3);
    let stays_port = port_of(&public[&format!("tcp://{stays}")]);
    let goes_port = port_of(&public[&format!("tcp://{goes}")]);
    let mut visitor = visit(stays_port, "stays").unwrap();
    echo(&mut visitor, "before");
    assert_eq!(
        get(http, "files.localhost", "/page.txt").unwrap(),
        (200, b"one".to_vec())
    );

    // A broken file changes nothing.
    home.write("agent.toml", &format!("{head}[[service]]\ntarget = \n"));
    agent.signal("HUP");
    agent.says("all stays as it is: agent.toml, line 6");
    echo(&mut visitor, "after a broken file");
    drop(visit(goes_port, "goes").unwrap());

    // One goes, one comes, one is served from another folder now, and a flag cannot change.
    home.write(
        "agent.toml",
        &format!(
            "mtu = 1400\n{head}[[service]]\ntarget = './two'\nname = 'files'\nid = 'files'\n\
             [[service]]\ntarget = './two/page.txt'\nname = 'new'\n"
        ),
    );
    agent.signal("HUP");
    assert_eq!(
        agent.line(),
        format!("http://new.localhost:{}/ ./two/page.txt", http.port()),
        "the others are not announced again"
    );
    agent.says("read again: exposing ");
    agent.says("needs a restart to have an effect: mtu\n");
    assert_eq!(get(http, "new.localhost", "/").unwrap(), (200, b"two".to_vec()));
    assert_eq!(
        get(http, "files.localhost", "/page.txt").unwrap(),
        (200, b"two".to_vec())
    );
    eventually("the end of the removed service", || match visit(goes_port, "goes") {
        Err(_) => Ok(()),
        Ok(_) => Err("it still answers"),
    });
    echo(&mut visitor, "after it all");
    drop(visit(stays_port, "stays").unwrap());
    assert_eq!(agent.stop().status.code(), Some(0));
}

#[cfg(feature = "tokio")]
#[test]
fn a_hangup_changes_the_plain_peers_of_a_relay() {
    let home = Home::new();
    let (relay, _, http, text) = home.relay();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let key = home.run(&["key", "new", "peer.key"]).out.trim().to_owned();
    let peer = |name: &str| format!("{text}[[peer]]\nkey = '{key}'\nname = '{name}'\ntarget-port = 80\n");
    home.write("relay.toml", &peer("shop"));
    relay.signal("HUP");
    relay.says("read again: everybody is served, and 1 plain peer");
    relay.says(&format!("port 80 at http://shop.localhost:{}/", http.port()));

    // A port that cannot be had costs nobody else anything.
    let port = held.local_addr().unwrap().port();
    home.write(
        "relay.toml",
        &format!("{}[[peer]]\nkey = '{key}'\nkind = 'tcp'\nport = {port}\n", peer("blog")),
    );
    relay.signal("HUP");
    relay.says(&format!("port 80 at http://blog.localhost:{}/", http.port()));
    relay.says("another port in its [[peer]]");
    assert_eq!(get(http, "shop.localhost", "/").unwrap().0, 404);

    home.write("relay.toml", &text);
    relay.signal("HUP");
    eventually("the end of the lease", || match get(http, "blog.localhost", "/") {
        Ok((404, _)) => Ok(()),
        other => Err(other),
    });
    assert!(!relay.err().contains("needs a restart"), "{}", relay.err());
    assert_eq!(relay.stop().status.code(), Some(0));
}

#[cfg(feature = "tokio")]
#[test]
fn a_hangup_has_the_relay_read_grants_and_file_again() {
    let home = Home::new();
    let (relay, uri, http, text) = home.relay();
    home.write("page.txt", "here");
    let key = home.run(&["key", "new", "agent.key"]).out.trim().to_owned();
    let args = [
        "expose",
        "./page.txt",
        "--relay",
        &uri,
        "--key",
        "agent.key",
        "--name",
        "page",
    ];
    let agent = home.start(&args);
    agent.line();

    // From open to granted: the agent has no grant, so it is served no longer.
    home.write(
        "relay.toml",
        &text
            .replace("'open'", "'granted'")
            .replace("'localhost'", "'example.test'"),
    );
    relay.signal("HUP");
    relay.says("read again: 0 keys with a grant are served");
    relay.says("needs a restart to have an effect: domain");
    agent.says(&format!("portal grant {key}"));
    eventually("the end of the lease", || match get(http, "page.localhost", "/") {
        Ok((404, _)) => Ok(()),
        other => Err(other),
    });

    // A broken file, or broken grants, change nothing.
    home.write("relay.toml", "access = 'nobody'\n");
    relay.signal("HUP");
    relay.says("all stays as it is: relay.toml, line 1");
    home.write("relay.toml", &(text.clone() + "[[peer]]\nnmae = 'x'\n"));
    relay.signal("HUP");
    relay.says("did you mean name?");
    home.write("relay.toml", &text.replace("domain", "#"));
    relay.signal("HUP");
    relay.says("the relay's domain is missing");
    assert_eq!(relay.err().matches("read again: ").count(), 1, "{}", relay.err());
    home.write("relay.toml", &text.replace("'open'", "'granted'"));
    home.write("state/grants.toml", "[[grant]\n");
    relay.signal("HUP");
    relay.says("grants.toml, line 1");

    // A grant by hand counts after a hangup.
    home.write("state/grants.toml", &format!("[[grant]]\nkey = '{key}'\n"));
    relay.signal("HUP");
    relay.says("read again: 1 key with a grant is served");
    eventually("the lease", || match get(http, "page.localhost", "/") {
        Ok((200, body)) if body == b"here" => Ok(()),
        other => Err(other),
    });

    // And `portal grant` goes by what the relay serves now.
    let state = home.path().join("state");
    let granted = run(home.path(), &["grant", &key, "--state-dir", state.to_str().unwrap()]);
    assert!(granted.err.contains("acts on it at once"), "{}", granted.err);
    assert_eq!(agent.stop().status.code(), Some(0));
    assert_eq!(relay.stop().status.code(), Some(0));
}
