//! Wrong use and failures: each with a message that names the thing and the mend, and the right exit code.

mod common;

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use common::{free_port, run};

/// Runs a case and checks its exit code, that every text is in its message, and that nothing looks like a crash.
#[track_caller]
fn case(home: &std::path::Path, args: &[&str], code: i32, texts: &[&str]) {
    let ended = run(home, args);
    let shown = format!(
        "portal {}\nstdout: {}\nstderr: {}",
        args.join(" "),
        ended.out,
        ended.err
    );
    assert_eq!(ended.status.code(), Some(code), "{shown}");
    for text in texts {
        assert!(ended.err.contains(text), "{text:?} is missing\n{shown}");
    }
    assert!(
        !ended.err.contains("panicked") && !ended.err.contains("backtrace"),
        "{shown}"
    );
}

#[test]
fn misuse_ends_with_code_2() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    case(home, &[], 2, &["Usage"]);
    case(home, &["exposé"], 2, &["unrecognized subcommand"]);
    case(home, &["expose"], 2, &["TARGET"]);
    case(home, &["expose", "99999"], 2, &["99999", "1 to 65535"]);
    case(
        home,
        &["expose", "udp://127.0.0.1:53", "--kind", "https"],
        2,
        &["--kind https", "udp://127.0.0.1:53"],
    );
    case(home, &["expose", "ftp://127.0.0.1:21"], 2, &["ftp://"]);
    case(home, &["expose", "tcp://127.0.0.1"], 2, &["port", "missing"]);
    case(home, &["expose", "3000", "--port", "20000"], 2, &["--port", "--name"]);
    case(
        home,
        &["expose", "tcp://127.0.0.1:22", "--name", "ssh"],
        2,
        &["--name", "--port"],
    );
    case(
        home,
        &["expose", "3000", "--relay", "relay.example.com"],
        2,
        &["--relay", "portal://"],
    );
    case(
        home,
        &["expose", "3000", "--relay", "portal://abc@relay.example.com:51820"],
        2,
        &["--relay", "key"],
    );
    case(home, &["expose", "3000", "--mtu", "9000"], 2, &["--mtu", "1280"]);
    case(home, &["relay"], 2, &["domain", "--domain"]);
    case(home, &["relay", "--domain", "not a name"], 2, &["--domain"]);
    case(
        home,
        &["relay", "--domain", "localhost", "--ports", "30000-20000"],
        2,
        &["--ports"],
    );
    case(
        home,
        &["relay", "--domain", "localhost", "--access", "maybe"],
        2,
        &["--access", "open", "granted"],
    );
    case(home, &["grant", "not-a-key"], 2, &["not-a-key"]);
}

#[test]
fn failures_end_with_code_1() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    case(home, &["expose", "./nothing-here"], 1, &["nothing-here"]);

    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap().to_string();
    case(
        home,
        &["expose", "3000", "--http", &addr],
        1,
        &[&addr, "in use", "ss -ltnp"],
    );

    let held = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap().to_string();
    let state = path("state");
    let relay = ["relay", "--domain", "localhost", "--state-dir", &state, "--udp"];
    case(
        home,
        &[&relay[..], &[&addr]].concat(),
        1,
        &[&addr, "in use", "ss -lunp"],
    );
    case(
        home,
        &[&relay[..], &["203.0.113.77:51820"]].concat(),
        1,
        &["203.0.113.77", "not an address of this machine"],
    );

    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(home.join("state/grants.toml"), "[[grant]]\nkey = \"abc\"\n").unwrap();
    case(
        home,
        &[&relay[..], &["127.0.0.1:0"]].concat(),
        1,
        &["grants.toml", "line 2"],
    );

    let key = path("a.key");
    assert_eq!(run(home, &["key", "new", &key]).status.code(), Some(0));
    case(home, &["key", "new", &key], 1, &["a.key"]);
    case(home, &["key", "show", &path("none.key")], 1, &["none.key"]);
    std::fs::write(home.join("bad.key"), "this is no key\n").unwrap();
    std::fs::set_permissions(home.join("bad.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    case(home, &["key", "show", &path("bad.key")], 1, &["bad.key"]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    case(home, &["key", "show", &key], 1, &["a.key", "chmod 600"]);
    case(home, &["key", "show", home.to_str().unwrap()], 1, &[]);
}

#[test]
fn a_relay_that_does_not_answer_is_named_with_the_likely_causes() {
    let home = tempfile::tempdir().unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let key = portal_core::identity::PublicKey::from_bytes([9; 32]).url_safe();
    let uri = format!("portal://{key}@{}", silent.local_addr().unwrap());
    let args = ["expose", "3000", "--relay", &uri, "--once"];
    case(
        home.path(),
        &args,
        1,
        &["does not answer", "key in the URI may be wrong", "UDP"],
    );

    let unknown = format!("portal://{key}@no-such-host.invalid:51820");
    case(
        home.path(),
        &["expose", "3000", "--relay", &unknown, "--once"],
        1,
        &["no-such-host.invalid", "no address"],
    );
}

#[test]
fn a_relay_with_another_key_than_the_uri_says_does_not_answer() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    let udp = format!("127.0.0.1:{}", free_port());
    let relay = common::Portal::start(
        home.path(),
        &[
            "relay",
            "--domain",
            "localhost",
            "--udp",
            &udp,
            "--http",
            "off",
            "--https",
            "off",
            "--state-dir",
            state.to_str().unwrap(),
        ],
    );
    relay.line();
    let key = portal_core::identity::SecretKey::from_bytes([9; 32])
        .public_key()
        .url_safe();
    let uri = format!("portal://{key}@{udp}");
    case(
        home.path(),
        &["expose", "3000", "--relay", &uri, "--once"],
        1,
        &["does not answer", "may be wrong"],
    );
}

#[test]
fn a_key_that_was_not_granted_fails_at_once_with_once() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    let udp = format!("127.0.0.1:{}", free_port());
    let relay = common::Portal::start(
        home.path(),
        &[
            "relay",
            "--domain",
            "127.0.0.1",
            "--udp",
            &udp,
            "--ports",
            "off",
            "--state-dir",
            state.to_str().unwrap(),
        ],
    );
    let uri = relay.line();
    let key_file = home.path().join("k");
    let key = run(home.path(), &["key", "new", key_file.to_str().unwrap()]).out;
    let args = [
        "expose",
        "3000",
        "--relay",
        &uri,
        "--key",
        key_file.to_str().unwrap(),
        "--once",
    ];
    case(home.path(), &args, 1, &[key.trim(), "portal grant"]);
}
