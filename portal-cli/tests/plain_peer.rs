//! `portal wg-conf` and the `[[peer]]` tables of a relay's file. That WireGuard itself takes what is printed is shown by
//! `tests/interop/wireguard-go`.

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Portal, free_port, run};
use portal_core::identity::{PublicKey, SecretKey};

const SECRET: [u8; 32] = [9; 32];

fn peer() -> PublicKey {
    SecretKey::from_bytes(SECRET).public_key()
}

fn relay() -> PublicKey {
    SecretKey::from_bytes([7; 32]).public_key()
}

fn uri() -> String {
    format!("portal://{}@relay.example.com:51820", relay().url_safe())
}

/// A file for its owner only; its path.
fn secret_file(home: &Path, name: &str, text: &str) -> String {
    let path = home.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn key_file(home: &Path) -> String {
    secret_file(home, "wg.key", &SecretKey::from_bytes(SECRET).to_base64())
}

/// Runs a command that must end well; what it printed.
#[track_caller]
fn printed(home: &Path, args: &[&str]) -> (String, String) {
    let ended = run(home, args);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    (ended.out, ended.err)
}

/// Runs a command that must fail, and looks for what its message must have.
#[track_caller]
fn refused(home: &Path, args: &[&str], code: i32, texts: &[&str]) {
    let ended = run(home, args);
    let shown = format!("portal {}\n{}", args.join(" "), ended.err);
    assert_eq!(ended.status.code(), Some(code), "{shown}");
    for text in texts {
        assert!(ended.err.contains(text), "{text:?} is missing\n{shown}");
    }
    assert!(!ended.err.contains("panicked"), "{shown}");
}

#[test]
fn the_file_is_what_wg_quick_reads() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let key = key_file(home);
    let shared = secret_file(home, "wg.psk", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n");
    let (secret, peer, relay) = (SecretKey::from_bytes(SECRET).to_base64(), peer(), relay());
    let (overlay, relay_overlay) = (peer.overlay_address(), relay.overlay_address());
    let uri = uri();
    let args = [
        "wg-conf",
        "--key",
        &key,
        "--relay",
        &uri,
        "--preshared-key",
        &shared,
        "--name",
        "blog",
        "--target-port",
        "8080",
        "--proxy-header",
        "--mtu",
        "1400",
    ];
    let (out, err) = printed(home, &args);
    assert_eq!(
        out,
        format!(
            "# A plain WireGuard peer of a portal relay: {peer}\n\
             # Save it as /etc/wireguard/portal.conf with mode 600, then: wg-quick up portal\n\
             #\n\
             # Let the service listen here, or on every address:\n\
             #   [{overlay}]:8080 (TCP)\n\
             # It must read a PROXY protocol v2 header at the start of each connection.\n\
             #\n\
             # What the relay's file (portal relay --config) needs:\n\
             #   [[peer]]\n\
             #   key = \"{peer}\"\n\
             #   preshared-key = \"{shared}\"\n\
             #   kind = \"http\"\n\
             #   name = \"blog\"\n\
             #   target-port = 8080\n\
             #   proxy-header = true\n\
             \n\
             [Interface]\n\
             PrivateKey = {secret}\n\
             Address = {overlay}/128\n\
             MTU = 1400\n\
             \n\
             [Peer]\n\
             PublicKey = {relay}\n\
             PresharedKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n\
             Endpoint = relay.example.com:51820\n\
             AllowedIPs = {relay_overlay}/128\n\
             PersistentKeepalive = 25"
        )
    );
    assert!(err.contains("a secret") && err.contains("chmod 600"), "{err}");
    assert!(!err.contains(&secret));
}

#[test]
fn without_a_key_file_there_is_no_secret_in_it() {
    let home = tempfile::tempdir().unwrap();
    let (peer, uri) = (peer(), uri());
    let key = peer.to_string();
    for key in [key.clone(), peer.url_safe()] {
        let (out, err) = printed(
            home.path(),
            &["wg-conf", &key, "--relay", &uri, "--kind", "udp", "--port", "20053"],
        );
        assert!(out.contains("\nPrivateKey = fill-in-the-private-key\n"), "{out}");
        assert!(out.contains("\nMTU = 1280\n") && !out.contains("PresharedKey"), "{out}");
        assert!(
            out.contains(&format!("#   [{}]:20053 (UDP)\n", peer.overlay_address())),
            "{out}"
        );
        assert!(err.contains("filled in") && !err.contains("secret"), "{err}");
    }
    let (out, _) = printed(home.path(), &["wg-conf", &key, "--relay", &uri, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["peer"], key);
    assert_eq!(json["overlay"], peer.overlay_address().to_string());
    assert_eq!(json["endpoint"], "relay.example.com:51820");
    assert_eq!((&json["mtu"], &json["secret"]), (&1280.into(), &false.into()));
    assert!(json["config"].as_str().unwrap().contains("[Interface]\n"));
    assert!(json["relay_table"].as_str().unwrap().starts_with("[[peer]]\n"));
}

#[test]
fn what_makes_no_sense_is_said() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (key, uri) = (peer().to_string(), uri());
    let key_path = key_file(home);
    let with = |rest: &[&'static str]| -> Vec<String> {
        let all = ["wg-conf", &key, "--relay", &uri]
            .into_iter()
            .chain(rest.iter().copied());
        all.map(str::to_owned).collect()
    };
    #[track_caller]
    fn misused(home: &Path, args: &[String], texts: &[&str]) {
        refused(home, &args.iter().map(String::as_str).collect::<Vec<_>>(), 2, texts);
    }
    refused(
        home,
        &["wg-conf", "--relay", &uri],
        2,
        &["missing", "wg pubkey", "--key"],
    );
    refused(
        home,
        &["wg-conf", &key],
        2,
        &["the relay is missing", "--relay portal://"],
    );
    refused(
        home,
        &["wg-conf", "abc", "--relay", &uri],
        2,
        &["abc", "a key has 44 characters"],
    );
    refused(
        home,
        &["wg-conf", &key, "--relay", "relay.example.com"],
        2,
        &["--relay", "portal://"],
    );
    refused(
        home,
        &["wg-conf", &key, "--key", &key_path, "--relay", &uri],
        2,
        &["--key"],
    );
    let own = relay().to_string();
    refused(home, &["wg-conf", &own, "--relay", &uri], 2, &[&own, "the relay's own"]);
    misused(home, &with(&["--mtu", "9000"]), &["--mtu", "1280"]);
    misused(home, &with(&["--kind", "https"]), &["https", "--kind tls"]);
    misused(home, &with(&["--kind", "ftp"]), &["ftp", "use http"]);
    misused(home, &with(&["--kind", "tcp"]), &["--port is missing"]);
    misused(
        home,
        &with(&["--kind", "tcp", "--name", "x"]),
        &["--name cannot be", "use --port"],
    );
    misused(home, &with(&["--port", "80"]), &["--port cannot be", "use --name"]);
    misused(home, &with(&["--name", "My.Blog"]), &["My.Blog", "lower case"]);
    misused(
        home,
        &with(&["--kind", "udp", "--port", "53", "--proxy-header"]),
        &["--proxy-header", "udp"],
    );
    misused(home, &with(&["--relay-side"]), &["--name is missing"]);

    let missing = home.join("none.psk");
    let missing = missing.to_str().unwrap();
    refused(
        home,
        &["wg-conf", &key, "--relay", &uri, "--preshared-key", missing],
        1,
        &["none.psk", "wg genpsk"],
    );
    refused(
        home,
        &["wg-conf", "--key", missing, "--relay", &uri],
        1,
        &["none.psk", "portal key new"],
    );
    fs::set_permissions(&key_path, fs::Permissions::from_mode(0o644)).unwrap();
    refused(
        home,
        &["wg-conf", "--key", &key_path, "--relay", &uri],
        1,
        &["wg.key", "chmod 600"],
    );
}

/// The flags of a relay on loopback with this file.
fn relay_args(home: &Path, text: &str) -> Vec<String> {
    let config = home.join("relay.toml");
    fs::write(&config, text).unwrap();
    let state = home.join("state");
    let udp = format!("127.0.0.1:{}", free_port());
    let http = format!("127.0.0.1:{}", free_port());
    let args = [
        "relay",
        "--domain",
        "localhost",
        "--udp",
        &udp,
        "--http",
        &http,
        "--https",
        "off",
        "--config",
        config.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
    ];
    args.map(str::to_owned).to_vec()
}

#[test]
fn the_relays_half_is_what_the_relay_reads() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let key = peer().to_string();
    let shared = secret_file(home, "wg.psk", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n");
    let side = |rest: &[&str]| printed(home, &[&["wg-conf", &key, "--relay-side"], rest].concat()).0;
    let web = side(&["--name", "shop", "--target-port", "8080", "--preshared-key", &shared]);
    assert_eq!(
        web,
        format!(
            "[[peer]]\nkey = \"{key}\"\npreshared-key = \"{shared}\"\nkind = \"http\"\nname = \"shop\"\n\
             target-port = 8080"
        )
    );
    let port = free_port().to_string();
    let ssh = side(&[
        "--kind",
        "tcp",
        "--port",
        &port,
        "--target-port",
        "22",
        "--proxy-header",
    ]);
    let args = relay_args(home, &format!("{web}\n\n{ssh}\n"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (said, _) = printed(home, &[&args[..], &["--check"]].concat());
    assert!(said.contains("and 1 plain peer,"), "{said}");

    let relay = Portal::start(home, &args);
    relay.line();
    let short = peer().short();
    relay.says(&format!("{short} serves port 8080 at http://shop.localhost"));
    relay.says(&format!("{short} serves port 22 at tcp://localhost:{port}"));
    assert_eq!(relay.stop().status.code(), Some(0));
}

#[test]
fn mistakes_in_a_peers_table_are_named_with_their_line() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (a, b) = (peer(), relay());
    let shop = |key: PublicKey| format!("[[peer]]\nkey = \"{key}\"\nname = \"shop\"\n");
    #[track_caller]
    fn wrong(home: &Path, text: &str, texts: &[&str]) {
        let args = relay_args(home, text);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(home, &[&args[..], &["--check"]].concat(), 2, texts);
        refused(home, &args, 2, texts);
    }
    let (a_text, b_text) = (a.to_string(), b.to_string());
    let both = shop(a) + &shop(b);
    wrong(
        home,
        &both,
        &[
            "relay.toml, line 4",
            &a_text,
            &b_text,
            "both have the name shop",
            "another name",
        ],
    );
    wrong(
        home,
        &(shop(a) + "nmae = 'x'\n"),
        &["line 4", "nmae", "did you mean name?"],
    );
    wrong(home, "[[peer]]\nname = 'x'\n", &["line 1", "\"key\"", "missing"]);
    wrong(home, "[[pear]]\nname = 'x'\n", &["line 1", "[[pear]]", "[[peer]]"]);
    wrong(
        home,
        "[[peer]]\nkey = 'abc'\n",
        &["line 2", "key = 'abc'", "44 characters"],
    );
    wrong(
        home,
        &format!("[[peer]]\nkey = '{a}'\n"),
        &["line 1", "http lease, which needs a name", "tcp and udp have a port"],
    );
    wrong(
        home,
        &(shop(a) + "kind = 'tls'\n"),
        &["takes no tls visitors", "--https"],
    );
    wrong(home, &(shop(a) + "kind = 'https'\n"), &["https", "kind tls"]);
    wrong(
        home,
        &(shop(a) + "endpoint = 'home.example.com:51820'\n"),
        &["line 4", "endpoint"],
    );
    wrong(
        home,
        &(shop(a) + "target-port = 0\n"),
        &["line 4", "target-port", "1..=65535"],
    );
    let differing = format!(
        "{}endpoint = '192.0.2.1:1'\n[[peer]]\nkey = '{a}'\nname = 'b'\nendpoint = '192.0.2.2:1'\n",
        shop(a)
    );
    wrong(home, &differing, &["line 5", "another endpoint", "line 1"]);

    let bound = home.join("state/bindings.json");
    fs::create_dir_all(home.join("state")).unwrap();
    fs::write(
        &bound,
        format!("[{{\"name\":{{\"name\":\"shop\",\"key\":\"{b}\"}}}}]\n"),
    )
    .unwrap();
    wrong(
        home,
        &shop(a),
        &["line 1", &a_text, &b_text, "belongs to the agent", "bindings.json"],
    );
    fs::remove_file(bound).unwrap();

    let args = relay_args(home, &(shop(a) + "preshared-key = '/nowhere/wg.psk'\n"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    refused(home, &args, 1, &["line 1", "/nowhere/wg.psk", "wg genpsk"]);
}

#[test]
fn a_port_of_a_peer_that_is_in_use_ends_the_relay() {
    let home = tempfile::tempdir().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let key = peer();
    let args = relay_args(
        home.path(),
        &format!("[[peer]]\nkey = '{key}'\nkind = 'tcp'\nport = {port}\n"),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    refused(
        home.path(),
        &args,
        1,
        &[&key.to_string(), &port.to_string(), "in use", "ss -ltnp", "[[peer]]"],
    );
}
