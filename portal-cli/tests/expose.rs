//! The README's first command, as a newcomer runs it.

mod common;

use std::net::SocketAddr;

use common::{Portal, eventually, free_port, get, host_of};

#[cfg(feature = "tokio")]
#[test]
fn a_folder_is_on_a_url_byte_for_byte_and_nothing_outside_it() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("site");
    std::fs::create_dir(&folder).unwrap();
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    std::fs::write(folder.join("blob.bin"), &bytes).unwrap();
    std::fs::write(folder.join("index.html"), "<!doctype html>hello").unwrap();
    std::fs::write(folder.join(".env"), "SECRET").unwrap();
    std::fs::write(home.path().join("secret.txt"), "SECRET").unwrap();
    std::os::unix::fs::symlink(home.path().join("secret.txt"), folder.join("link.txt")).unwrap();

    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let portal = Portal::start(
        home.path(),
        &["expose", folder.to_str().unwrap(), "--http", &addr.to_string()],
    );
    let url = portal.line();
    let (host, port) = host_of(&url);
    assert!(host.ends_with(".localhost") && port == addr.port(), "{url}");

    assert_eq!(
        get(addr, &format!("{host}:{port}"), "/blob.bin").unwrap(),
        (200, bytes.clone())
    );
    assert_eq!(
        get(addr, "127.0.0.1", "/blob.bin").unwrap(),
        (200, bytes),
        "the only lease answers to any host"
    );
    assert_eq!(get(addr, &host, "/").unwrap(), (200, b"<!doctype html>hello".to_vec()));
    for path in [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/link.txt",
        "/.env",
        "//etc/passwd",
    ] {
        let (status, body) = get(addr, &host, path).unwrap();
        assert!((400..500).contains(&status), "{path} gave {status}");
        assert!(
            !String::from_utf8_lossy(&body).contains("SECRET"),
            "{path} gave the secret"
        );
    }

    let ended = portal.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    assert!(ended.err.contains("3000"), "a line for each visitor: {}", ended.err);
}

#[cfg(feature = "tokio")]
#[test]
fn the_name_stays_the_same_from_one_start_to_the_next() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("page.txt"), "here").unwrap();
    let start = || {
        let http = format!("127.0.0.1:{}", free_port());
        let page = home.path().join("page.txt");
        let portal = Portal::start(home.path(), &["expose", page.to_str().unwrap(), "--http", &http]);
        let (host, _) = host_of(&portal.line());
        assert_eq!(portal.stop().status.code(), Some(0));
        host
    };
    assert_eq!(start(), start());
}

#[test]
fn a_target_that_is_not_there_yet_is_said_answered_with_502_and_served_once_it_is() {
    let home = tempfile::tempdir().unwrap();
    let (http, target) = (SocketAddr::from(([127, 0, 0, 1], free_port())), free_port());
    let portal = Portal::start(
        home.path(),
        &["expose", &target.to_string(), "--http", &http.to_string()],
    );
    let (host, _) = host_of(&portal.line());
    portal.says(&format!("nothing takes connections at 127.0.0.1:{target}"));
    assert_eq!(get(http, &host, "/").unwrap().0, 502);
    portal.says("connection refused");

    let listener = std::net::TcpListener::bind(("127.0.0.1", target)).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nup")
            .unwrap();
    });
    eventually("the target", || match get(http, &host, "/") {
        Ok((200, body)) if body == b"up" => Ok(()),
        other => Err(other),
    });
    assert_eq!(portal.stop().status.code(), Some(0));
}

#[test]
fn results_are_json_for_machines() {
    let home = tempfile::tempdir().unwrap();
    let http = format!("127.0.0.1:{}", free_port());
    let target = free_port().to_string();
    let portal = Portal::start(home.path(), &["--json", "--quiet", "expose", &target, "--http", &http]);
    let line: serde_json::Value = serde_json::from_str(&portal.line()).unwrap();
    assert_eq!(line["event"], "granted");
    assert!(line["public"].as_str().unwrap().starts_with("http://"), "{line}");
}

#[cfg(feature = "tokio")]
#[test]
fn a_connection_is_a_line_for_people_one_of_json_for_machines_and_none_if_quiet() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("page.txt"), "here").unwrap();
    let page = home.path().join("page.txt");
    // Visits once; what is said until its end.
    let visited = |flags: &[&str]| {
        let http = format!("127.0.0.1:{}", free_port());
        let args = ["expose", page.to_str().unwrap(), "--http", &http];
        let portal = Portal::start(home.path(), &[flags, &args].concat());
        let first = portal.line();
        let body = eventually("the page", || get(http.parse().unwrap(), "127.0.0.1", "/"));
        assert_eq!(body, (200, b"here".to_vec()), "{first}");
        portal.stop()
    };
    let plain = visited(&[]);
    assert_eq!(plain.out, "", "the address was the only result");
    let lines = |text: &str| text.matches("127.0.0.1:").count();
    assert!(
        plain.err.contains(" bytes received, ") && lines(&plain.err) >= 1,
        "{}",
        plain.err
    );

    let json = visited(&["--json"]);
    let line: serde_json::Value = serde_json::from_str(&json.out).expect("one line");
    assert_eq!(
        (&line["event"], &line["finished"]),
        (&"connection".into(), &true.into())
    );
    let visitor: SocketAddr = line["visitor"].as_str().unwrap().parse().unwrap();
    assert!(visitor.ip().is_loopback(), "{line}");
    assert!(
        line["received"].as_u64().unwrap() > 20 && line["sent"].as_u64().unwrap() > 50,
        "{line}"
    );
    assert!(line["service"].as_str().unwrap().contains("page.txt"), "{line}");
    assert!(!json.err.contains("bytes received"), "{}", json.err);

    for quiet in [visited(&["--quiet"]), visited(&["--quiet", "--json"])] {
        assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
    }
}

#[cfg(feature = "tokio")]
#[test]
fn an_idle_visitor_does_not_hold_up_the_end() {
    use std::io::{Read, Write};
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("page.txt"), "here").unwrap();
    let page = home.path().join("page.txt");
    let args = ["expose", page.to_str().unwrap(), "--http", "127.0.0.1:0"];
    let portal = Portal::start(home.path(), &args);
    let (_, port) = host_of(&portal.line());
    assert_ne!(port, 0, "the address has the port that was found free");
    let mut idle = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = [0; 4];
    idle.read_exact(&mut answer).unwrap();
    assert_eq!(portal.stop().status.code(), Some(0));
}

#[test]
fn a_tcp_service_has_a_port_of_its_own() {
    use std::io::{Read, Write};
    let home = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // The visitor's FIN arrives as one, and the way back stays open.
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            });
        }
    });
    let portal = Portal::start(home.path(), &["expose", &target]);
    let public = portal.line();
    let addr: SocketAddr = public
        .strip_prefix("tcp://")
        .expect("a tcp address")
        .parse()
        .expect("an address");
    let mut visitor = std::net::TcpStream::connect(addr).unwrap();
    visitor.write_all(b"there and back").unwrap();
    visitor.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    visitor.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "there and back");
    assert_eq!(portal.stop().status.code(), Some(0));
}
