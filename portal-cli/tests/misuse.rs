//! Wrong use and failures: each with a message that names the thing and the mend, and the right exit code.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Ended, PATIENCE, Portal, command, free_port, free_ports, run};

/// Runs a case and checks its exit code, that every text is in its message, that it has a mend, and that nothing looks
/// like a crash.
#[track_caller]
fn case(home: &Path, args: &[&str], code: i32, texts: &[&str]) {
    check(&run(home, args), &args.join(" "), code, texts);
}

/// The same for a command that needs more than arguments.
#[track_caller]
fn case_of(command: Command, code: i32, texts: &[&str]) {
    let shown = format!("{command:?}");
    check(&Portal::spawn(command).wait(), &shown, code, texts);
}

#[track_caller]
fn check(ended: &Ended, what: &str, code: i32, texts: &[&str]) {
    let shown = format!("portal {what}\nstdout: {}\nstderr: {}", ended.out, ended.err);
    assert_eq!(ended.status.code(), Some(code), "{shown}");
    for text in texts {
        assert!(ended.err.contains(text), "{text:?} is missing\n{shown}");
    }
    let mends: &[&str] = if code == 1 {
        &["\n  help: "]
    } else {
        &["\n  help: ", "--help", "Usage"]
    };
    // Behind the last error: warnings before it have mends of their own.
    let (_, error) = ended.err.rsplit_once("error: ").unwrap_or(("", &ended.err));
    assert!(mends.iter().any(|mend| error.contains(mend)), "no mend\n{shown}");
    assert!(
        !ended.err.contains("panicked") && !ended.err.contains("backtrace"),
        "{shown}"
    );
}

/// The program under another one, as in `setpriv ... portal ARGS`, with the usual environment.
fn under(home: &Path, wrapper: &[&str], args: &[&str]) -> Command {
    let mut wrapped = Command::new(wrapper[0]);
    wrapped
        .args(&wrapper[1..])
        .arg(env!("CARGO_BIN_EXE_portal"))
        .args(args)
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    wrapped
}

/// Whether a command works here; says what is skipped if not.
fn works(what: &str, program: &str, args: &[&str]) -> bool {
    let status = Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let works = status.is_ok_and(|status| status.success());
    if !works {
        eprintln!("skipped: {what}: `{program} {}` does not work here", args.join(" "));
    }
    works
}

/// Root without its powers is refused what others are.
const NO_POWERS: [&str; 3] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];

/// A relay that serves by HTTP on some port and gives out four ports, its URI, and the first of these.
fn relay(home: &Path, access: &str) -> (Portal, String, u16) {
    let udp = format!("127.0.0.1:{}", free_port());
    let first = free_ports(4);
    let state = home.join("state");
    let relay = Portal::start(
        home,
        &[
            "relay",
            "--domain",
            "localhost",
            "--udp",
            &udp,
            "--http",
            "127.0.0.1:0",
            "--https",
            "off",
            "--ports",
            &format!("{first}-{}", first + 3),
            "--access",
            access,
            "--state-dir",
            state.to_str().unwrap(),
        ],
    );
    let uri = relay.line();
    (relay, uri, first)
}

/// A key file of this name, and its public key.
fn new_key(home: &Path, name: &str) -> (String, String) {
    let file = home.join(name).to_str().unwrap().to_owned();
    let key = run(home, &["key", "new", &file]).out.trim().to_owned();
    (file, key)
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
    let (_, key) = new_key(home, "some.key");
    case(home, &["grant", &key, "--name", "Bad!"], 2, &["--name", "lower case"]);
    case(
        home,
        &["grant", &key, "--port", "9-1"],
        2,
        &["--port", "9-1", "below its start"],
    );
    case(
        home,
        &["grant", &key, "--kind", "smoke"],
        2,
        &["smoke", "tls, tcp or udp"],
    );
    case(
        home,
        &["expose", "3000", "--name", "Not_A_Label"],
        2,
        &["Not_A_Label", "lower-case letters", "--name blog-2"],
    );
    case(
        home,
        &["expose", "3000", "--memory", "12parsecs"],
        2,
        &["--memory", "12parsecs"],
    );
    case(
        home,
        &["expose", "3000", "--memory", "1k"],
        2,
        &["--memory", "1k", "at least"],
    );
    case(
        home,
        &["expose", "tcp://h:22", "--port", "0"],
        2,
        &["--port", "1..=65535"],
    );
    case(
        home,
        &["expose", "unix:"],
        2,
        &["path", "missing", "unix:/run/app.sock"],
    );
    case(
        home,
        &["expose", "3000", "--relay", "http://relay.example.com"],
        2,
        &["portal://KEY@HOST:PORT"],
    );
    let uri = format!(
        "portal://{}@127.0.0.1:9",
        key.replace('+', "-").replace('/', "_").trim_end_matches('=')
    );
    case(
        home,
        &["expose", "3000", "--relay", &uri, "--http", "127.0.0.1:1"],
        2,
        &["--http", "--relay", "cannot be used with"],
    );
    case(
        home,
        &["relay", "--domain", "localhost", "--udp", "nonsense"],
        2,
        &["nonsense", "0.0.0.0:80"],
    );
    let with = |name: &str, value: &str, args: &[&str]| {
        let mut command = command(home, args);
        command.env(name, value);
        command
    };
    case_of(with("PORTAL_MTU", "9000", &["expose", "3000"]), 2, &["--mtu", "9000"]);
    // A variable that is there for other commands is no flag.
    let elsewhere = with(
        "PORTAL_HTTP",
        "127.0.0.1:1",
        &["expose", "3000", "--relay", &uri, "--check"],
    );
    let ended = common::Portal::spawn(elsewhere).wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    let ended = common::Portal::spawn(with("PORTAL_HTTP", "127.0.0.1:1", &["expose", "tcp://22", "--check"])).wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    case_of(
        with("PORTAL_RELAY", &uri, &["expose", "3000", "--http", "127.0.0.1:1"]),
        2,
        &["--http", "PORTAL_RELAY"],
    );
    case_of(
        with("PORTAL_LOG", "warn,portal_core=loud", &["key", "show", "x"]),
        2,
        &["PORTAL_LOG", "trace"],
    );
}

#[test]
fn the_version_names_the_runtime() {
    let home = tempfile::tempdir().unwrap();
    let said = common::run(home.path(), &["--version"]);
    let runtime = if cfg!(feature = "tokio") { "tokio" } else { "mio" };
    assert_eq!(said.out, format!("portal {} ({runtime})", env!("CARGO_PKG_VERSION")));
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_names_what_needs_it() {
    let home = tempfile::tempdir().unwrap();
    let parts = ["need TLS", "cargo build --release -p portal-cli", "tls://"];
    for args in [
        &["expose", "3000", "--kind", "https"][..],
        &["expose", "3000", "--kind", "https", "--check"],
        &["expose", "https://localhost:8443", "--kind", "http"],
    ] {
        case(home.path(), args, 2, &parts);
    }
}

#[cfg(not(feature = "tokio"))]
#[test]
fn the_small_build_serves_no_files_and_names_the_full_one() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let folder = home.to_str().unwrap();
    for args in [&["expose", folder][..], &["expose", folder, "--check"]] {
        let parts = [
            folder,
            "small build",
            "cargo build --release -p portal-cli",
            "expose the port",
        ];
        case(home, args, 2, &parts);
    }
    let file = format!("[[service]]\ntarget = '{folder}'\n");
    std::fs::write(home.join("agent.toml"), file).unwrap();
    let config = home.join("agent.toml");
    case(
        home,
        &["agent", "--config", config.to_str().unwrap(), "--check"],
        2,
        &["agent.toml, line 1", folder, "small build"],
    );
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
    case(
        home,
        &["key", "show", home.to_str().unwrap()],
        1,
        &["not a regular file"],
    );
    case(
        home,
        &["key", "new", &path("missing/a.key")],
        1,
        &["missing/a.key", "make its directory first"],
    );
    let public = portal_core::identity::PublicKey::from_bytes([9; 32]);
    let uri = format!("portal://{}@127.0.0.1:9", public.url_safe());
    case(
        home,
        &["expose", "3000", "--relay", &uri, "--key", &key],
        1,
        &["a.key", "read by others", "chmod 600"],
    );
    case(
        home,
        &[&relay[..], &["127.0.0.1:0", "--key", &key]].concat(),
        1,
        &["grants.toml"],
    );
    std::fs::remove_file(home.join("state/grants.toml")).unwrap();
    case(
        home,
        &[&relay[..], &["127.0.0.1:0", "--key", &key]].concat(),
        1,
        &["a.key", "chmod 600"],
    );
    case(
        home,
        &["revoke", &public.to_string(), "--state-dir", &state],
        1,
        &[&public.to_string(), "has no grant", "grants.toml"],
    );
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let key = portal_core::identity::PublicKey::from_bytes([9; 32]).to_string();
    let args = |state: &str| -> Vec<String> {
        let args = [
            "relay",
            "--domain",
            "127.0.0.1",
            "--udp",
            "127.0.0.1:0",
            "--state-dir",
            state,
        ];
        args.map(str::to_owned).to_vec()
    };
    let start = |state: &str, texts: &[&str]| {
        let args = args(state);
        case(home, &args.iter().map(String::as_str).collect::<Vec<_>>(), 1, texts);
    };
    std::fs::write(path("a-file"), "x").unwrap();
    start(&path("a-file"), &["a-file is a file", "--state-dir"]);
    start(&path("a-file/below"), &["a-file/below", "--state-dir"]);
    case(
        home,
        &["grant", &key, "--state-dir", &path("a-file")],
        1,
        &["a-file is a file", "--state-dir"],
    );

    for (file, contents) in [("bindings.json", "[{\"name\":\n"), ("agents.json", "[{}]")] {
        let state = path(&format!("broken-{file}"));
        std::fs::create_dir(&state).unwrap();
        std::fs::write(format!("{state}/{file}"), contents).unwrap();
        start(&state, &[file, "line", "mend that line, or move"]);
    }

    // A socket's address has 108 bytes.
    let long = path(&"d".repeat(120));
    start(&long, &["portal.sock", "too long", "--state-dir"]);
    case(
        home,
        &["grant", &key, "--state-dir", &long],
        1,
        &["portal.sock", "too long", "--state-dir"],
    );

    let (_running, ..) = relay(home, "open");
    start(
        &path("state"),
        &["in use by another relay", "stop that relay", "--state-dir"],
    );

    let closed = path("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    if works(
        "a state directory without write permission",
        NO_POWERS[0],
        &[NO_POWERS[1], NO_POWERS[2], "true"],
    ) {
        let args = args(&closed);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        case_of(
            under(home, &NO_POWERS, &args),
            1,
            &["closed", "ermission denied", "sudo"],
        );
    }

    let mut homeless = command(home, &["expose", "3000", "--relay", &uri()]);
    homeless.env_remove("HOME");
    case_of(homeless, 1, &["neither XDG_STATE_HOME nor HOME", "--key"]);
}

#[test]
fn a_relay_of_another_user_does_not_hide_ones_own_agents() {
    if !works(
        "a socket of another user",
        NO_POWERS[0],
        &[NO_POWERS[1], NO_POWERS[2], "true"],
    ) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (relay, uri, _) = relay(home, "open");
    let usual = home.join(".local/state/portal/relay");
    std::fs::create_dir_all(usual.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(home.join("state"), &usual).unwrap();
    let closed = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(usual.join("portal.sock"), closed).unwrap();
    let status = || Portal::spawn(under(home, &NO_POWERS, &["status"])).wait();
    check(
        &status(),
        "status",
        1,
        &["portal.sock may not be used by this user", "sudo"],
    );
    let agent = Portal::start(home, &["expose", "3000", "--relay", &uri]);
    let public = agent.line();
    let shown = status();
    assert_eq!(shown.status.code(), Some(0), "{}", shown.err);
    assert!(shown.out.contains(&public), "{}", shown.out);
    assert_eq!(agent.stop().status.code(), Some(0));
    assert_eq!(relay.stop().status.code(), Some(0));
}

/// The URI of a relay that does not exist.
fn uri() -> String {
    let key = portal_core::identity::PublicKey::from_bytes([9; 32]);
    format!("portal://{}@127.0.0.1:9", key.url_safe())
}

#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let full = home.join("full");
    std::fs::create_dir(&full).unwrap();
    let full = full.to_str().unwrap();
    // The mount lives in a namespace of its own and goes with it. What was granted before fills the disk but for a few
    // files' names.
    let mount = |then: &str| {
        let filled = format!("head -c 4096 /dev/zero >{full}/filling");
        format!(
            "mount -t tmpfs -o size=8k,nr_inodes=40 none {full} && {then} && {{ {filled}; head -c 8192 /dev/zero >{full}/more; true; }} 2>/dev/null"
        )
    };
    if !works("a full disk", "unshare", &["-m", "sh", "-c", &mount("true")]) {
        return;
    }
    let portal = env!("CARGO_BIN_EXE_portal");
    let (one, two) = (
        portal_core::identity::PublicKey::from_bytes([1; 32]).to_string(),
        portal_core::identity::PublicKey::from_bytes([2; 32]).to_string(),
    );
    let in_full = |before: &str, then: &str| {
        let script = format!("{}; {then}", mount(before));
        under(home, &["unshare", "-m", "sh", "-c", &script], &[])
    };
    let grant = format!("{portal} grant {one} --state-dir {full} 2>/dev/null >&2");
    case_of(
        in_full(
            &grant,
            &format!(
                "{portal} grant {two} --state-dir {full}; code=$?; grep -q {one} {full}/grants.toml || exit 9; exit $code"
            ),
        ),
        1,
        &["writing", "grants.toml", "No space left", "df -h", "untouched"],
    );
    case_of(
        in_full(
            "true",
            &format!("{portal} relay --domain localhost --udp 127.0.0.1:0 --state-dir {full}"),
        ),
        1,
        &["relay.key", "No space left", "df -h"],
    );
    case_of(
        in_full("true", &format!("{portal} key new {full}/a.key")),
        1,
        &["a.key", "No space left", "df -h"],
    );
}

#[test]
fn a_port_that_needs_a_permission_is_named_with_three_ways_out() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let state = home.join("state");
    let state = state.to_str().unwrap();
    // In a network namespace of its own the kernel's usual bound of 1024 holds.
    let wrapper = ["unshare", "--net", NO_POWERS[0], NO_POWERS[1], NO_POWERS[2]];
    if !works("a privileged port", wrapper[0], &[&wrapper[1..], &["true"]].concat()) {
        return;
    }
    let args = ["relay", "--domain", "localhost", "--state-dir", state, "--https", "off"];
    let at = |more: &[&'static str]| under(home, &wrapper, &[&args[..], more].concat());
    let ways = [
        "permission denied",
        "setcap",
        "ip_unprivileged_port_start=",
        "choose another port with",
    ];
    case_of(
        at(&["--udp", "0.0.0.0:5182", "--http", "0.0.0.0:80"]),
        1,
        &[&ways[..], &["0.0.0.0:80", "--http"]].concat(),
    );
    case_of(
        at(&["--udp", "0.0.0.0:53", "--http", "off"]),
        1,
        &[&ways[..], &["0.0.0.0:53", "--udp"]].concat(),
    );
}

#[test]
fn what_a_relay_refuses_is_said_with_the_mend() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (_running, uri, first_port) = relay(home, "open");
    let (first, _) = new_key(home, "first.key");
    let (second, _) = new_key(home, "second.key");
    let expose = |key: &str, target: &str, more: &[&str]| -> Vec<String> {
        let args = ["expose", target, "--relay", &uri, "--key", key];
        args.iter().chain(more).map(|&arg| arg.to_owned()).collect()
    };
    let refused = |key: &str, target: &str, more: &[&str], texts: &[&str]| {
        let args = expose(key, target, &[more, &["--once"]].concat());
        case(home, &args.iter().map(String::as_str).collect::<Vec<_>>(), 1, texts);
    };
    let owner = expose(&first, "3000", &["--name", "mine"]);
    let owner = Portal::start(home, &owner.iter().map(String::as_str).collect::<Vec<_>>());
    owner.line();
    refused(
        &first,
        "3001",
        &[],
        &["first.key", "in use by another portal", "a key of its own", "--key"],
    );
    refused(
        &second,
        "3000",
        &["--name", "mine"],
        &["mine belongs to another key", "another name"],
    );
    refused(
        &second,
        "tcp://127.0.0.1:22",
        &["--port", "9999"],
        &[
            "9999",
            &format!("outside this relay's range {first_port}-{}", first_port + 3),
        ],
    );
    refused(&second, "tls://127.0.0.1:8443", &[], &["does not take", "--https"]);
    owner.kill();
    let port = (first_port + 1).to_string();
    let holder = expose(&first, "tcp://127.0.0.1:22", &["--port", &port]);
    let holder = Portal::start(home, &holder.iter().map(String::as_str).collect::<Vec<_>>());
    holder.line();
    refused(
        &second,
        "tcp://127.0.0.1:22",
        &["--port", &port],
        &[&format!("{port} belongs to another key"), "another port"],
    );
}

#[test]
fn a_grant_that_does_not_cover_it_and_one_that_is_revoked_are_said() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (_running, uri, _) = relay(home, "granted");
    let state = home.join("state");
    let state = state.to_str().unwrap();
    let (file, key) = new_key(home, "agent.key");
    let done = run(
        home,
        &["grant", &key, "--name", "blog", "--kind", "http", "--state-dir", state],
    );
    assert!(done.status.success(), "{}", done.err);
    let expose = ["expose", "3000", "--relay", &uri, "--key", &file];
    case(
        home,
        &[&expose[..], &["--name", "shop", "--once"]].concat(),
        1,
        &["does not cover the name shop", "widen it", "portal grant"],
    );
    let patient = Portal::start(home, &[&expose[..], &["--name", "blog"]].concat());
    patient.line();
    assert!(run(home, &["revoke", &key, "--state-dir", state]).status.success());
    patient.says(&format!("portal grant {key}"));
    patient.says("has no grant there");
    assert_eq!(
        patient.stop().status.code(),
        Some(0),
        "it waits for a grant until it is told to end"
    );

    assert!(run(home, &["grant", &key, "--state-dir", state]).status.success());
    let impatient = Portal::start(home, &[&expose[..], &["--once"]].concat());
    impatient.line();
    assert!(run(home, &["revoke", &key, "--state-dir", state]).status.success());
    check(
        &impatient.wait(),
        "expose --once, revoked",
        1,
        &[&key, "no grant", "portal grant"],
    );
}

#[test]
fn a_target_that_cannot_be_reached_is_named_at_the_start_and_when_a_visitor_comes() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let closed = format!("127.0.0.1:{}", free_port());
    let agent = Portal::start(home, &["expose", &closed, "--http", "127.0.0.1:0"]);
    let (host, port) = common::host_of(&agent.line());
    agent.says(&format!("nothing takes connections at {closed} now"));
    agent.says("help: start the service");
    let mut visitor = TcpStream::connect(("127.0.0.1", port)).unwrap();
    visitor.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(visitor, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    visitor.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    agent.says(&format!("connecting to {closed} failed"));
    assert_eq!(agent.stop().status.code(), Some(0));

    let socket = home.join("none.sock");
    let target = format!("unix:{}", socket.display());
    let agent = Portal::start(home, &["expose", &target, "--http", "127.0.0.1:0"]);
    agent.line();
    agent.says("none.sock now");
    let agent = Portal::start(
        home,
        &["expose", "http://no-such-host.invalid:80", "--http", "127.0.0.1:0"],
    );
    agent.line();
    agent.says("no-such-host.invalid:80 now");
}

#[test]
fn a_clock_that_is_far_off_is_named() {
    if !works(
        "a wrong clock (apt-get install faketime)",
        "faketime",
        &["1999-01-01", "true"],
    ) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let key = portal_core::identity::PublicKey::from_bytes([9; 32]).url_safe();
    let uri = format!("portal://{key}@{}", silent.local_addr().unwrap());
    let expose = ["expose", "3000", "--relay", &uri, "--once"];
    let sayings = [
        "the system's clock shows",
        "time stamps",
        "sudo timedatectl set-ntp true",
    ];
    for (date, shown) in [
        ("1999-01-02", "02 Jan 1999, before"),
        ("2090-01-02", "02 Jan 2090, years ahead"),
    ] {
        case_of(
            under(home, &["faketime", &format!("{date} 12:00:00")], &expose),
            1,
            &[&sayings[..], &[shown, "does not answer"]].concat(),
        );
    }
    let right = run(home, &expose);
    assert!(!right.err.contains("clock"), "{}", right.err);
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

    // Who waits is told as well.
    let patient = Portal::start(home.path(), &args[..args.len() - 1]);
    patient.says("trying again\n  help: compare the URI");
    assert_eq!(patient.stop().status.code(), Some(0));

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
