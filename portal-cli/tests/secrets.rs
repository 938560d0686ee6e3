//! With the most talkative log there is, no secret and nothing of what visitors say is where others can read it.

// The keys of certificates are half of it.
#![cfg(feature = "tls")]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{PATIENCE, Portal, command, free_port, run};
use portal_core::tls::pki_types::PrivateKeyDer;
use portal_core::tls::pki_types::pem::PemObject as _;

/// What visitors and services say.
const MARKERS: [&str; 3] = [
    "marker-of-the-visitor-Qx7",
    "marker-of-the-service-Zk3",
    "marker-in-a-cookie-Wp9",
];

/// Something that must not be seen, in the forms in which a program might print it.
struct Secret {
    what: String,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    fn new(what: &str, bytes: &[u8], text: &str) -> Self {
        let (mut hex, mut list) = (String::new(), String::new());
        for byte in bytes {
            write!(hex, "{byte:02x}").unwrap();
            write!(list, "{byte}, ").unwrap();
        }
        let list = list.trim_end_matches(", ").to_owned();
        let url_safe = text
            .replace('+', "-")
            .replace('/', "_")
            .trim_end_matches('=')
            .to_owned();
        let forms = [hex.to_uppercase(), hex, list, text.to_owned(), url_safe].map(String::into_bytes);
        Self {
            what: what.to_owned(),
            forms: forms.into_iter().chain([bytes.to_vec()]).collect(),
        }
    }

    fn of_key_file(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap().trim().to_owned();
        let secret: portal_core::identity::SecretKey = text.parse().unwrap();
        Self::new(&format!("the key in {}", path.display()), secret.as_bytes(), &text)
    }

    /// A private key as PEM. A line of it gives it away as well as the whole.
    fn of_pem_file(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = PrivateKeyDer::from_pem_file(path).unwrap();
        let mut secret = Self::new(
            &format!("the key in {}", path.display()),
            der.secret_der(),
            &lines.concat(),
        );
        secret.forms.extend(lines.iter().map(|line| line.as_bytes().to_vec()));
        secret
    }

    fn is_in(&self, text: &[u8]) -> bool {
        self.forms
            .iter()
            .any(|form| text.windows(form.len()).any(|window| window == form))
    }
}

#[track_caller]
fn assert_clean(place: &str, text: &[u8], secrets: &[Secret]) {
    for secret in secrets {
        assert!(!secret.is_in(text), "{place} has {}", secret.what);
    }
}

/// A portal with everything in its log.
fn start(home: &Path, args: &[&str]) -> Portal {
    let mut command = command(home, args);
    command.env("PORTAL_LOG", "trace");
    Portal::spawn(command)
}

/// A service that reads until the marker and answers with its own.
fn service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut read = Vec::new();
                let mut buffer = [0; 4096];
                while !read
                    .windows(MARKERS[0].len())
                    .any(|window| window == MARKERS[0].as_bytes())
                {
                    match stream.read(&mut buffer) {
                        Ok(count @ 1..) => read.extend_from_slice(&buffer[..count]),
                        _ => return,
                    }
                }
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", MARKERS[1]);
            });
        }
    });
    port
}

/// One visit; the answer has the service's marker.
fn visit(port: u16, opening: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(opening.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(MARKERS[1]), "{answer}");
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.file_type().unwrap().is_file() {
            found.push(entry.path());
        }
    }
    found
}

/// A process and what it has started, as the kernel lists them to everybody.
fn family(pid: u32) -> Vec<u32> {
    let mut members = vec![pid];
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    for task in tasks {
        let children = task.unwrap().path().join("children");
        let children = fs::read_to_string(children).unwrap_or_default();
        for child in children.split_whitespace() {
            members.extend(family(child.parse().unwrap()));
        }
    }
    members
}

#[test]
fn no_secret_and_no_payload_is_in_logs_arguments_environments_or_state() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let state = home.join("state");
    let udp = format!("127.0.0.1:{}", free_port());
    // A plain peer whose secret the relay shares.
    let shared_file = home.join("wg.psk");
    let shared = portal_core::identity::SecretKey::from_bytes([0x5a; 32])
        .to_base64()
        .to_string();
    fs::write(&shared_file, format!("{shared}\n")).unwrap();
    fs::set_permissions(&shared_file, fs::Permissions::from_mode(0o600)).unwrap();
    let config = home.join("relay.toml");
    let peer = portal_core::identity::SecretKey::from_bytes([7; 32]).public_key();
    let table = format!(
        "[[peer]]\nkey = '{peer}'\npreshared-key = '{}'\nname = 'plain'\n",
        shared_file.display()
    );
    fs::write(&config, table).unwrap();
    let relay = start(
        home,
        &[
            "relay",
            "--config",
            config.to_str().unwrap(),
            "--domain",
            "localhost",
            "--udp",
            &udp,
            "--http",
            "127.0.0.1:0",
            "--https",
            "off",
            "--state-dir",
            state.to_str().unwrap(),
        ],
    );
    let uri = relay.line();
    let (web_key, tcp_key) = (home.join("web.key"), home.join("tcp.key"));
    let mut printed = Vec::new();
    for file in [&web_key, &tcp_key] {
        let made = run(home, &["key", "new", file.to_str().unwrap()]);
        let mut grant = command(
            home,
            &["grant", made.out.trim(), "--state-dir", state.to_str().unwrap()],
        );
        grant.env("PORTAL_LOG", "trace");
        let granted = Portal::spawn(grant).wait();
        assert!(granted.status.success(), "{}", granted.err);
        for ended in [made, granted] {
            printed.push(ended.out + &ended.err);
        }
    }
    let target = service().to_string();
    let tcp_target = format!("tcp://127.0.0.1:{target}");
    let web = [
        "expose",
        &target,
        "--relay",
        &uri,
        "--name",
        "web",
        "--key",
        web_key.to_str().unwrap(),
    ];
    let web = start(home, &web);
    let tcp = start(
        home,
        &[
            "expose",
            &tcp_target,
            "--relay",
            &uri,
            "--key",
            tcp_key.to_str().unwrap(),
        ],
    );
    let (host, http_port) = common::host_of(&web.line());
    let tcp_port = tcp.line().rsplit(':').next().unwrap().parse().unwrap();
    let request = format!(
        "POST /?q={0} HTTP/1.1\r\nHost: {host}\r\nCookie: id={1}\r\n\r\n{0}",
        MARKERS[0], MARKERS[2]
    );
    visit(http_port, &request);
    visit(tcp_port, MARKERS[0]);
    // Something that fails half-way is logged more willingly.
    let mut broken = TcpStream::connect(("127.0.0.1", http_port)).unwrap();
    write!(broken, "{} {}\r\n\r\n", MARKERS[0], MARKERS[2]).unwrap();
    broken.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = broken.read_to_end(&mut Vec::new());

    let key_files = [state.join("relay.key"), web_key, tcp_key, shared_file];
    let mut secrets: Vec<_> = key_files.iter().map(|path| Secret::of_key_file(path)).collect();
    let of_keys = secrets.len();
    secrets.extend(MARKERS.map(|marker| Secret::new(&format!("{marker:?}"), marker.as_bytes(), marker)));

    for (name, portal) in [("relay", &relay), ("web", &web), ("tcp", &tcp)] {
        for pid in family(portal.id()) {
            for part in ["cmdline", "environ"] {
                let text = fs::read(format!("/proc/{pid}/{part}")).unwrap();
                assert!(!text.is_empty());
                assert_clean(&format!("{part} of {name} ({pid})"), &text, &secrets);
            }
        }
    }
    let mut looked_at = 0;
    for path in files(home).iter().filter(|path| !key_files.contains(path)) {
        looked_at += 1;
        assert_clean(&path.display().to_string(), &fs::read(path).unwrap(), &secrets);
    }
    assert!(
        looked_at >= 3,
        "grants, bindings and agents at least, not {looked_at} files"
    );
    for (name, portal) in [("web", web), ("tcp", tcp), ("relay", relay)] {
        let ended = portal.stop();
        assert!(
            ended.err.contains("TRACE") || ended.err.contains("DEBUG"),
            "{name} logs nothing: {}",
            ended.err
        );
        printed.push(ended.out + &ended.err);
    }
    for text in &printed {
        assert_clean("what was printed", text.as_bytes(), &secrets);
    }

    // The search itself finds what is there.
    for (path, secret) in key_files.iter().zip(&secrets[..of_keys]) {
        assert!(secret.is_in(&fs::read(path).unwrap()));
    }
    assert!(secrets[of_keys].is_in(format!("{:?}", MARKERS[0].as_bytes()).as_bytes()));
}

/// The keys of certificates: one that was given, and those of the development authority.
#[test]
fn no_certificates_key_is_in_logs_arguments_or_environments() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (home.join("cert.pem"), home.join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let target = service().to_string();
    let expose = ["expose", &target, "--kind", "https", "--http", "127.0.0.1:0"];
    let files = ["--cert", cert.to_str().unwrap(), "--cert-key", key.to_str().unwrap()];
    let portals = [start(home, &expose), start(home, &[&expose[..], &files].concat())];
    for portal in &portals {
        let url = portal.line();
        let port = url.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
        // Half a ClientHello and rubbish behind it: what fails is logged more willingly.
        let mut broken = TcpStream::connect(("127.0.0.1", port)).unwrap();
        broken.write_all(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3]).unwrap();
        drop(broken);
        let visited = std::process::Command::new("curl")
            .args([
                "-ksS",
                "--noproxy",
                "*",
                "-d",
                MARKERS[0],
                &format!("https://127.0.0.1:{port}/"),
            ])
            .output();
        match visited {
            Ok(visited) => assert!(
                String::from_utf8_lossy(&visited.stdout).contains(MARKERS[1]),
                "{visited:?}"
            ),
            Err(error) => eprintln!("no visit by TLS: curl cannot be run ({error})"),
        }
    }
    let authority = home.join(".local/state/portal/authority/root-key.pem");
    let secrets = [Secret::of_pem_file(&key), Secret::of_pem_file(&authority)];
    for portal in portals {
        for part in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{}/{part}", portal.id())).unwrap();
            assert_clean(part, &text, &secrets);
        }
        let ended = portal.stop();
        assert!(ended.err.contains("TRACE"), "its log is the most talkative there is");
        assert_clean("what portal printed", (ended.out + &ended.err).as_bytes(), &secrets);
    }
}
