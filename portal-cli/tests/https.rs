//! TLS that ends at the agent, with the real program and curl as its visitor.

#![cfg(feature = "tls")]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Ended, Portal, eventually, free_port, get, run};

/// One visit by curl.
struct Visit {
    /// curl's own exit code.
    code: Option<i32>,
    /// Status and HTTP version, as curl writes them.
    status: String,
    body: Vec<u8>,
    err: String,
}

/// Visits `url`, whose name leads here, believing only in `root`.
fn visit(url: &str, root: &Path, args: &[&str]) -> Visit {
    let (host, port) = host_of(url);
    let mut command = Command::new("curl");
    command
        .args(["-q", "-sS", "--max-time", "50", "--noproxy", "*", "--resolve"])
        .arg(format!("{host}:{port}:127.0.0.1"))
        .arg("--cacert")
        .arg(root)
        .args(["-w", "%{stderr}%{http_code} %{http_version}\n"])
        .args(args)
        .arg(url);
    let Output { status, stdout, stderr } = command.output().expect("curl runs");
    let err = String::from_utf8_lossy(&stderr).into_owned();
    Visit {
        code: status.code(),
        status: err.lines().last().unwrap_or_default().to_owned(),
        body: stdout,
        err,
    }
}

/// The host and port of an https:// address.
fn host_of(url: &str) -> (String, u16) {
    let rest = url.strip_prefix("https://").expect("an https address");
    let (host, port) = rest.trim_end_matches('/').split_once(':').expect("a port");
    (
        host.split('/').next().unwrap().to_owned(),
        port.split('/').next().unwrap().parse().unwrap(),
    )
}

/// Whether a curl is here, and whether it speaks HTTP/2; says so if not.
fn curl_speaks_http2() -> Option<bool> {
    let Ok(output) = Command::new("curl").arg("--version").output() else {
        eprintln!("skipped: there is no curl here");
        return None;
    };
    let speaks = String::from_utf8_lossy(&output.stdout).contains("HTTP2");
    if !speaks {
        eprintln!("skipped in part: this curl does not speak HTTP/2");
    }
    Some(speaks)
}

/// Where the development authority of this home keeps its root.
fn root_of(home: &Path) -> PathBuf {
    home.join(".local/state/portal/authority/root.pem")
}

/// A certificate for every name below localhost, and its key, in files that begin with `name`.
fn pair(directory: &Path, name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["*.localhost".to_owned(), "web.localhost".to_owned()]).unwrap();
    let (certificate, key) = (
        directory.join(format!("{name}.pem")),
        directory.join(format!("{name}-key.pem")),
    );
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    (text(certificate), text(key))
}

/// A server that answers each request with what it was sent, and ends.
fn echoing_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut chunk = [0; 4096];
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    match stream.read(&mut chunk) {
                        Ok(count @ 1..) => request.extend_from_slice(&chunk[..count]),
                        _ => return,
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(&request);
            });
        }
    });
    port
}

#[cfg(feature = "tokio")]
#[test]
fn a_folder_by_https_with_the_development_authority() {
    let Some(http2) = curl_speaks_http2() else { return };
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("site");
    fs::create_dir(&folder).unwrap();
    let bytes: Vec<u8> = (0..1_000_003u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(folder.join("blob.bin"), &bytes).unwrap();
    let site = folder.to_str().unwrap();
    let args = ["expose", site, "--kind", "https", "--http", "127.0.0.1:0"];
    let portal = Portal::start(home.path(), &args);
    let url = portal.line();
    let (host, _) = host_of(&url);
    assert!(host.ends_with(".localhost"), "{url}");
    let root = root_of(home.path());
    portal.says(root.to_str().unwrap());

    let blob = format!("{url}blob.bin");
    let mut protocols = vec![("--http1.1", "200 1.1")];
    if http2 {
        protocols.push(("--http2", "200 2"));
    }
    for (protocol, status) in protocols {
        for version in ["--tlsv1.2", "--tlsv1.3"] {
            let most = version.replace("--tlsv", "");
            let got = visit(&blob, &root, &[protocol, version, "--tls-max", &most]);
            assert_eq!(got.status, status, "{protocol} {version}: {}", got.err);
            assert!(got.body == bytes, "{protocol} {version}");
        }
    }
    let part = visit(&blob, &root, &["--range", "500000-500009"]);
    assert!(part.status.starts_with("206 "), "{}", part.err);
    assert_eq!(part.body, bytes[500_000..500_010]);

    // The root is what makes the difference: with another one curl lets nobody in (its exit code 60).
    let (other, _) = pair(home.path(), "other");
    assert_eq!(visit(&blob, Path::new(&other), &[]).code, Some(60));

    let ended = portal.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    let lines = ended.err.lines().filter(|line| line.starts_with("127.0.0.1:"));
    assert!(lines.count() >= 4, "a line for each visitor: {}", ended.err);

    // The next one is of the same authority.
    let before = fs::read(&root).unwrap();
    let portal = Portal::start(home.path(), &args);
    let url = portal.line();
    assert!(visit(&format!("{url}blob.bin"), &root, &[]).status.starts_with("200 "));
    assert_eq!(fs::read(&root).unwrap(), before);
    assert_eq!(portal.stop().status.code(), Some(0));
}

#[test]
fn a_certificate_of_ones_own_is_shown_and_the_target_gets_plain_http() {
    let Some(http2) = curl_speaks_http2() else { return };
    let home = tempfile::tempdir().unwrap();
    let (certificate, key) = pair(home.path(), "own");
    let target = echoing_server().to_string();
    let args = [
        "expose",
        &target,
        "--cert",
        &certificate,
        "--cert-key",
        &key,
        "--name",
        "web",
        "--http",
        "127.0.0.1:0",
    ];
    let portal = Portal::start(home.path(), &args);
    let url = portal.line();
    assert!(
        url.starts_with("https://web.localhost:"),
        "a certificate makes it https: {url}"
    );
    let got = visit(&url, Path::new(&certificate), &["-H", "X-Marker: seen"]);
    assert_eq!(got.status, "200 1.1", "{}", got.err);
    let request = String::from_utf8_lossy(&got.body).into_owned();
    assert!(
        request.starts_with("GET / HTTP/1.1\r\n") && request.contains("X-Marker: seen\r\n"),
        "{request}"
    );
    // Who would speak HTTP/2 is told to do without, as the target does not take it.
    if http2 {
        assert_eq!(visit(&url, Path::new(&certificate), &["--http2"]).status, "200 1.1");
    }
    assert!(!root_of(home.path()).exists(), "no authority is made that nobody needs");
    assert_eq!(portal.stop().status.code(), Some(0));
}

#[test]
fn a_target_that_is_down_is_said_within_tls() {
    if curl_speaks_http2().is_none() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let target = free_port().to_string();
    let args = ["expose", &target, "--kind", "https", "--http", "127.0.0.1:0"];
    let portal = Portal::start(home.path(), &args);
    let url = portal.line();
    let got = visit(&url, &root_of(home.path()), &[]);
    assert_eq!(got.status, "502 1.1", "{}", got.err);
    portal.says("connection refused");
    // It speaks no TLS, which is said too.
    let plain = format!("https://127.0.0.1:{}", echo_of_plain_text());
    let second = Portal::start(home.path(), &["expose", &plain, "--http", "127.0.0.1:0"]);
    let got = visit(&second.line(), &root_of(home.path()), &[]);
    assert_eq!(got.status, "502 1.1", "{}", got.err);
    second.says("does not speak TLS");
    assert_eq!(second.stop().status.code(), Some(0));
    assert_eq!(portal.stop().status.code(), Some(0));
}

/// A server that gives back what it gets.
fn echo_of_plain_text() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
                let _ = stream.read(&mut [0; 4096]);
            });
        }
    });
    port
}

#[test]
fn plain_http_to_an_https_name_is_sent_to_https() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    let (udp, http, https) = (free_port(), free_port(), free_port());
    let at = |port: u16| format!("127.0.0.1:{port}");
    let relay = Portal::start(
        home.path(),
        &[
            "relay",
            "--domain",
            "localhost",
            "--udp",
            &at(udp),
            "--http",
            &at(http),
            "--https",
            &at(https),
            "--ports",
            "off",
            "--access",
            "open",
            "--state-dir",
            state.to_str().unwrap(),
        ],
    );
    let uri = relay.line();
    let target = echoing_server().to_string();
    let args = ["expose", &target, "--kind", "https", "--name", "web", "--relay", &uri];
    let portal = Portal::start(home.path(), &args);
    let url = portal.line();
    assert_eq!(host_of(&url), ("web.localhost".to_owned(), https));
    let addr = SocketAddr::from(([127, 0, 0, 1], http));
    let (status, _) = get(addr, "web.localhost", "/a?b=c").unwrap();
    assert_eq!(status, 308);
    if curl_speaks_http2().is_some() {
        assert_eq!(visit(&url, &root_of(home.path()), &[]).status, "200 1.1");
    }
    assert_eq!(portal.stop().status.code(), Some(0));
    assert_eq!(relay.stop().status.code(), Some(0));
}

/// Checks how it ended, and that every text is in its message.
#[track_caller]
fn refused(ended: &Ended, code: i32, texts: &[&str]) {
    assert_eq!(ended.status.code(), Some(code), "{}", ended.err);
    for text in texts {
        assert!(ended.err.contains(text), "{text:?} is missing: {}", ended.err);
    }
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    assert_eq!(ended.out, "");
}

#[test]
fn certificates_that_cannot_be_shown_are_refused_with_the_mend() {
    let home = tempfile::tempdir().unwrap();
    let (certificate, key) = pair(home.path(), "own");
    let (_, other_key) = pair(home.path(), "other");
    let with = |certificate: &str, key: &str| {
        run(
            home.path(),
            &[
                "expose",
                "3000",
                "--cert",
                certificate,
                "--cert-key",
                key,
                "--http",
                "127.0.0.1:0",
            ],
        )
    };
    refused(
        &with(&certificate, &other_key),
        1,
        &["own.pem", "--cert and --cert-key", "one pair"],
    );
    refused(
        &with(&key, &key),
        1,
        &["own-key.pem", "no certificate", "BEGIN CERTIFICATE"],
    );
    fs::set_permissions(&certificate, fs::Permissions::from_mode(0o600)).unwrap();
    refused(
        &with(&certificate, &certificate),
        1,
        &["own.pem", "no private key", "BEGIN PRIVATE KEY"],
    );
    refused(&with("none.pem", &key), 1, &["none.pem", "spelling"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&with(&certificate, &key), 1, &["own-key.pem", "644", "chmod 600"]);
}

#[test]
fn flags_of_tls_that_do_not_go_together_are_misuse() {
    let home = tempfile::tempdir().unwrap();
    let (certificate, key) = pair(home.path(), "own");
    let site = home.path().to_str().unwrap();
    let expose = |args: &[&str]| run(home.path(), &[&["expose"], args].concat());
    refused(&expose(&["3000", "--cert", &certificate]), 2, &["--cert-key"]);
    refused(&expose(&["3000", "--cert-key", &key]), 2, &["--cert "]);
    let both = ["--cert", certificate.as_str(), "--cert-key", key.as_str()];
    refused(
        &expose(&[&["tls://127.0.0.1:8443"], &both[..]].concat()),
        2,
        &["--cert", "tls", "--kind https"],
    );
    refused(&expose(&["3000", "--http2"]), 2, &["--http2", "https"]);
    refused(
        &expose(&["https://127.0.0.1:8443", "--http2"]),
        2,
        &["--http2", "without TLS"],
    );
    refused(&expose(&[site, "--proxy"]), 2, &["--proxy", "leave it out"]);
    refused(&expose(&["udp://127.0.0.1:53", "--proxy"]), 2, &["--proxy"]);
    refused(
        &expose(&["3000", "--target-insecure"]),
        2,
        &["--target-insecure", "https://"],
    );
    refused(
        &expose(&["3000", "--target-ca", &certificate]),
        2,
        &["--target-ca", "https://"],
    );
    refused(
        &expose(&[
            "https://127.0.0.1:8443",
            "--target-ca",
            &certificate,
            "--target-insecure",
        ]),
        2,
        &["--target-ca", "--target-insecure"],
    );
}

#[test]
fn a_target_is_told_who_visits() {
    let home = tempfile::tempdir().unwrap();
    if curl_speaks_http2().is_none() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 28];
            // The look at the target at the start says nothing.
            if stream.read_exact(&mut head).is_err() {
                continue;
            }
            let rest = usize::from(u16::from_be_bytes([head[14], head[15]])) - 12;
            stream.read_exact(&mut vec![0; rest]).unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            tell.send(head).unwrap();
        }
    });
    let args = ["expose", &target, "--proxy", "--kind", "https", "--http", "127.0.0.1:0"];
    let portal = Portal::start(home.path(), &args);
    let got = visit(
        &portal.line(),
        &root_of(home.path()),
        &["-w", "%{stderr}%{local_port}\n"],
    );
    assert_eq!(got.code, Some(0), "{}", got.err);
    let port: u16 = got.status.parse().unwrap();
    let head = told.recv_timeout(common::PATIENCE).unwrap();
    // PROXY protocol v2, section 2.2: the signature, version 2 and PROXY, TCP over IPv4, and the source.
    assert_eq!(head[..12], *b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(head[12..14], [0x21, 0x11]);
    assert_eq!(head[16..20], [127, 0, 0, 1]);
    assert_eq!(u16::from_be_bytes([head[24], head[25]]), port);
    // And so is whoever runs it.
    eventually("the visitor's line", || {
        let err = portal.err();
        if err.contains(&format!("127.0.0.1:{port}: ")) {
            Ok(())
        } else {
            Err(err)
        }
    });
    assert_eq!(portal.stop().status.code(), Some(0));
}
