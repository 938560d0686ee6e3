//! Raw requests over an in-memory connection, against a folder that has something to steal beside it.

mod http2;

use std::{
    fs,
    future::Future,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, fs::symlink, net::UnixListener},
    path::PathBuf,
    process::Command,
};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    runtime,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::*;

/// Stands in every file that no visitor may have.
const SECRET: &str = "the-secret-contents";

#[test]
fn a_file_is_sent_to_the_byte() {
    let site = Site::new();
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    site.write("big.bin", &bytes);
    site.write("notes.txt", "ä\n");
    site.write("plain", "");

    let answer = site.get("/big.bin");
    assert_eq!((answer.status, answer.body == bytes), (200, true));
    assert_eq!(answer.header("content-length"), Some("300000"));
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));

    let answer = site.get("/notes.txt?token=1");
    assert_eq!((answer.status, answer.text()), (200, "ä\n".into()));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));

    let answer = site.get("/plain");
    assert_eq!((answer.status, answer.text()), (200, String::new()));
}

#[test]
fn names_are_decoded_and_any_byte_works() {
    let site = Site::new();
    site.write("a b?#%.txt", "odd");
    site.write(r"back\slash", "slash");
    site.write(OsStr::from_bytes(b"\xff\xfe.txt"), "bytes");
    site.write("%2e%2e", "once");

    assert_eq!(site.get("/a%20b%3f%23%25.txt").text(), "odd");
    assert_eq!(site.get("/back%5cslash").text(), "slash");
    assert_eq!(site.get("/%ff%fe.txt").text(), "bytes");
    assert_eq!(site.get("/%252e%252e").text(), "once");
}

#[test]
fn head_has_the_headers_only() {
    let site = Site::new();
    site.write("file.txt", "contents");
    site.write("sub/x", "");
    for path in ["/file.txt", "/sub/", "/missing", "/sub"] {
        let get = site.get(path);
        let head = site.ask(&format!(
            "HEAD {path} HTTP/1.1\r\nhost: x\r\nrange: bytes=0-1\r\nconnection: close\r\n\r\n"
        ));
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("etag"), get.header("etag"), "{path}");
    }
}

#[test]
fn ranges() {
    let site = Site::new();
    site.write("digits", "0123456789");
    for (range, status, body, content_range) in [
        ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
        ("bytes=7-", 206, "789", Some("bytes 7-9/10")),
        ("bytes=-2", 206, "89", Some("bytes 8-9/10")),
        ("bytes=8-99", 206, "89", Some("bytes 8-9/10")),
        ("bytes=10-", 416, "", Some("bytes */10")),
        ("bytes=0-1,4-5", 200, "0123456789", None),
        ("lines=0-1", 200, "0123456789", None),
    ] {
        let answer = site.get_with("/digits", &format!("range: {range}\r\n"));
        assert_eq!((answer.status, answer.text().as_str()), (status, body), "{range}");
        assert_eq!(answer.header("content-range"), content_range, "{range}");
    }
}

#[test]
fn a_range_is_conditional_on_the_date() {
    let site = Site::new();
    site.write("digits", "0123456789");
    let file = fs::File::options()
        .write(true)
        .open(site.root().join("digits"))
        .unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000))
        .unwrap();
    let modified = site.get("/digits").header("last-modified").unwrap().to_owned();
    assert_eq!(modified, "Sun, 09 Sep 2001 01:46:40 GMT");

    let resumed = |validator: &str| site.get_with("/digits", &format!("range: bytes=5-\r\nif-range: {validator}\r\n"));
    assert_eq!(resumed(&modified).text(), "56789");
    assert_eq!(resumed("Sun, 09 Sep 2001 01:46:41 GMT").text(), "0123456789");
    assert_eq!(resumed("W/\"1\"").text(), "0123456789");
    file.set_modified(SystemTime::now()).unwrap();
    let modified = site.get("/digits").header("last-modified").unwrap().to_owned();
    assert_eq!(
        resumed(&modified).text(),
        "0123456789",
        "it may change once more within this second"
    );
}

#[test]
fn what_has_not_changed_is_not_sent() {
    let site = Site::new();
    site.write("page.html", "<p>");
    let answer = site.get("/page.html");
    let (tag, modified) = (answer.header("etag").unwrap(), answer.header("last-modified").unwrap());
    assert!(tag.starts_with("W/\""), "{tag}");

    let strong = tag.strip_prefix("W/").unwrap();
    let old = "Fri, 09 Aug 1996 14:21:40 GMT";
    for (headers, status) in [
        (format!("if-none-match: {tag}\r\n"), 304),
        (format!("if-none-match: \"a\", {strong}\r\n"), 304),
        (format!("if-none-match: \"a\"\r\nif-none-match: {tag}\r\n"), 304),
        ("if-none-match: *\r\n".into(), 304),
        ("if-none-match: \"a\"\r\n".into(), 200),
        (format!("if-modified-since: {modified}\r\n"), 304),
        (format!("if-modified-since: {old}\r\n"), 200),
        (
            format!("if-none-match: \"a\"\r\nif-modified-since: {modified}\r\n"),
            200,
        ),
        (format!("if-unmodified-since: {old}\r\n"), 412),
    ] {
        let answer = site.get_with("/page.html", &headers);
        assert_eq!(answer.status, status, "{headers}");
        assert_eq!(answer.body.is_empty(), status != 200, "{headers}");
        if status == 304 {
            assert_eq!(answer.header("etag"), Some(tag), "{headers}");
        }
    }

    site.write("page.html", "<p>longer");
    assert_eq!(
        site.get_with("/page.html", &format!("if-none-match: {tag}\r\n")).status,
        200
    );
}

#[test]
fn folders() {
    let site = Site::new();
    site.write("sub/index.html", "<h1>index");
    site.write("sub/deeper/a.txt", "a");
    fs::create_dir_all(site.root().join("odd/index.html")).unwrap();

    let answer = site.get("/sub/");
    assert_eq!((answer.status, answer.text().as_str()), (200, "<h1>index"));
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));

    let answer = site.get("/sub/deeper?q=a%20b");
    assert_eq!(
        (answer.status, answer.header("location")),
        (307, Some("/sub/deeper/?q=a%20b"))
    );
    assert!(site.get("/sub/deeper/").text().contains("Index of /sub/deeper/"));
    assert!(
        site.get("/odd/").text().contains("<a href=\"./index.html/\">"),
        "an index.html that is a directory"
    );
    assert_eq!(site.get("/sub/index.html/").status, 404);
    assert_eq!(site.get("/sub//deeper/").status, 404);
    assert_eq!(site.get("//evil.example/%2f..").status, 404);
}

#[test]
fn a_listing_is_sorted_and_escaped() {
    let site = Site::new();
    site.write("b.txt", vec![b'x'; 1536]);
    site.write("a<script>&'\".txt", "");
    site.write("javascript:alert(1)", "");
    site.write("100% #1?.txt", "");
    site.write(OsStr::from_bytes(b"z\xff"), "");
    fs::create_dir_all(site.root().join("zz folder")).unwrap();

    let page = site.get("/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").is_some());
    let page = page.text();
    let links: Vec<_> = page
        .split("<a href=\"")
        .skip(1)
        .map(|rest| rest.split("</a>").next().unwrap())
        .collect();
    assert_eq!(
        links,
        [
            "./zz%20folder/\">zz folder/",
            "./100%25%20%231%3F.txt\">100% #1?.txt",
            "./a%3Cscript%3E%26%27%22.txt\">a&lt;script&gt;&amp;&#39;&quot;.txt",
            "./b.txt\">b.txt",
            "./javascript%3Aalert%281%29\">javascript:alert(1)",
            "./z%FF\">z\u{fffd}",
        ]
    );
    assert!(page.contains("<td>1.5 KiB</td>"), "{page}");
    let year = listing_year(&page);
    assert!((2024..2100).contains(&year), "{page}");
    assert!(
        !page.contains("../") && !page.contains(site.root().to_str().unwrap()),
        "{page}"
    );
    for link in links {
        let path = link.split('"').next().unwrap().trim_start_matches('.');
        assert_eq!(site.get(path).status, 200, "{path}");
    }
    assert!(site.get("/zz%20folder/").text().contains("<a href=\"../\">"));
}

#[test]
fn a_long_listing_says_that_it_is_cut() {
    let site = Site::new();
    for n in 0..listing::MAX_ENTRIES {
        site.write(format!("many/{n}"), "");
    }
    site.write("many/.hidden", "");
    let page = site.get("/many/").text();
    assert_eq!(page.matches("href=\"./").count(), listing::MAX_ENTRIES);
    assert!(!page.contains("there are more"));

    site.write("many/one-more", "");
    let page = site.get("/many/").text();
    assert_eq!(page.matches("href=\"./").count(), listing::MAX_ENTRIES);
    assert!(page.contains("Only 10000 entries are shown"));
}

#[test]
fn only_reading_methods() {
    let site = Site::new();
    site.write("file", "contents");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "MKCOL"] {
        let answer = site.ask(&format!(
            "{method} /file HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ));
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some("GET, HEAD")),
            "{method}"
        );
        assert!(answer.text().contains("<h1>405 Method Not Allowed</h1>"), "{method}");
    }
    assert_eq!(
        site.ask("OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .status,
        405
    );
    assert_eq!(fs::read(site.root().join("file")).unwrap(), b"contents");
}

#[test]
fn nothing_outside_the_root() {
    let site = Site::new();
    site.write("sub/file", "");
    let outside = site.outside().to_str().unwrap().to_owned();
    for path in [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/sub/../file",
        "/./sub/file",
        "/%2e%2e/secret.txt",
        "/%2E%2e%2fsecret.txt",
        "/.%2e/secret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/sub\\..\\..\\secret.txt",
        "/%252e%252e/secret.txt",
        "/%252e%252e%252fsecret.txt",
        "/%c0%ae%c0%ae/secret.txt",
        "/..%00/secret.txt",
        "/sub/file%00.txt",
        "/..;/secret.txt",
        "/.../secret.txt",
        "/%2fetc%2fpasswd",
        "//etc/passwd",
        "/../root-beside/secret.txt",
        &outside,
        &format!("/{outside}"),
        &format!("/{}", outside.replace('/', "%2f")),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = site.ask(&format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            ));
            assert!([400, 404].contains(&answer.status), "{path}: {answer:?}");
        }
        let answer = site.ask(&format!(
            "GET http://x{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        ));
        assert!([400, 404].contains(&answer.status), "{path}: {answer:?}");
    }
}

#[test]
fn links_are_followed_inside_only() {
    let site = Site::new();
    site.write("real/file.txt", "inside");
    site.write(".git/config", SECRET);
    let link = |target: PathBuf, name: &str| symlink(target, site.root().join(name)).unwrap();
    link(site.root().join("real/file.txt"), "absolute");
    link("real".into(), "relative");
    link("../root/real".into(), "around");
    link(site.outside(), "out-file");
    link(site.outside().parent().unwrap().into(), "out-folder");
    link("/".into(), "slash");
    link(site.outside().parent().unwrap().join("root-beside"), "beside");
    link(".git".into(), "visible");
    link("circle".into(), "circle");
    link("nowhere".into(), "dangling");
    link("real/file.txt".into(), ".dotted");
    link("/proc/self/root".into(), "proc");
    site.write("index-out/x", "");
    symlink(site.outside(), site.root().join("index-out/index.html")).unwrap();

    assert_eq!(site.get("/absolute").text(), "inside");
    assert_eq!(site.get("/relative/file.txt").text(), "inside");
    assert_eq!(site.get("/around/file.txt").text(), "inside");
    let outside = site.outside().to_str().unwrap().to_owned();
    for path in [
        "/out-file",
        "/out-folder",
        "/out-folder/",
        "/out-folder/secret.txt",
        "/out-folder/root/real/../../secret.txt",
        "/slash/",
        &format!("/slash{outside}"),
        "/beside/secret.txt",
        "/visible/config",
        "/visible/",
        "/circle",
        "/dangling",
        "/.dotted",
        "/proc/etc/passwd",
        "/index-out/index.html",
    ] {
        assert_eq!(site.get(path).status, 404, "{path}");
    }
    // A link that goes out and comes back ends inside.
    assert_eq!(site.get("/out-folder/root/real/file.txt").text(), "inside");

    let page = site.get("/").text();
    let listed: Vec<_> = page
        .split("href=\"./")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert_eq!(listed, ["around/", "index-out/", "real/", "relative/", "absolute"]);
    let page = site.get("/index-out/").text();
    assert!(page.contains("href=\"./x\"") && !page.contains("index.html"), "{page}");
}

#[test]
fn a_root_may_be_reached_through_a_link() {
    let site = Site::new();
    site.write("file", "inside");
    let link = site.outside().with_file_name(".link");
    symlink(site.root(), &link).unwrap();
    let site = Site {
        folder: Folder::open(&link, false).unwrap(),
        ..site
    };
    assert_eq!(site.get("/file").text(), "inside");
}

#[test]
fn dotted_names_are_hidden_unless_asked_for() {
    let mut site = Site::new();
    site.write(".git/config", "config");
    site.write("sub/.env", "env");
    site.write(".well-known/acme", "acme");
    let dotted = [
        "/.git/config",
        "/.git/",
        "/.git",
        "/%2egit/config",
        "/sub/.env",
        "/sub/%2Eenv",
    ];
    for path in dotted {
        assert_eq!(site.get(path).status, 404, "{path}");
    }
    assert_eq!(site.get("/.well-known/acme").text(), "acme");
    let page = site.get("/").text();
    assert!(page.contains(".well-known/") && !page.contains(".git"), "{page}");

    site.folder = Folder::open(&site.root(), true).unwrap();
    for path in dotted {
        assert!([200, 307].contains(&site.get(path).status), "{path}");
    }
    assert!(site.get("/").text().contains(".git/"));
    assert_eq!(site.get("/../secret.txt").status, 404);
    assert_eq!(site.get("/./sub/").status, 404);
}

#[test]
fn special_files_are_not_touched() {
    let site = Site::new();
    let fifo = site.root().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _socket = UnixListener::bind(site.root().join("socket")).unwrap();
    fs::create_dir(site.root().join("sub")).unwrap();
    symlink("../fifo", site.root().join("sub/index.html")).unwrap();
    symlink("/dev/zero", site.root().join("device")).unwrap();

    for path in ["/fifo", "/fifo/", "/socket", "/device", "/sub/index.html"] {
        assert_eq!(site.get(path).status, 404, "{path}");
    }
    assert!(site.get("/sub/").text().contains("Index of /sub/"));
    assert!(!site.get("/").text().contains("fifo"));
    assert!(matches!(Folder::open(&fifo, false), Err(FolderError::Special { .. })));
}

#[test]
fn a_single_file() {
    let site = Site::new();
    site.write(".notes.txt", "one file");
    site.write("other.txt", SECRET);
    let path = site.root().join(".notes.txt");
    let site = Site {
        folder: Folder::open(&path, false).unwrap(),
        ..site
    };
    for address in ["/", "/.notes.txt", "/%2enotes.txt", "/?a"] {
        let answer = site.get(address);
        assert_eq!((answer.status, answer.text().as_str()), (200, "one file"), "{address}");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    }
    for address in [
        "/other.txt",
        "/.notes.txt/",
        "/.notes.txt/x",
        "/../root/other.txt",
        "/x",
        "//",
        "/.",
    ] {
        assert_eq!(site.get(address).status, 404, "{address}");
    }
    assert_eq!(site.get_with("/", "range: bytes=4-\r\n").text(), "file");

    fs::rename(site.root().join("other.txt"), &path).unwrap();
    assert_eq!(
        site.get_unchecked("/").text(),
        SECRET,
        "a file that was replaced is served anew"
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(site.get("/").status, 404);
    symlink(site.outside(), &path).unwrap();
    assert_eq!(site.get("/").status, 404, "a file that gave way to a link is not");
}

#[test]
fn what_may_not_be_read() {
    let site = Site::new();
    site.write("closed.txt", SECRET);
    let path = site.root().join("closed.txt");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser reads it all the same.
    if fs::File::open(&path).is_ok() {
        return;
    }
    let answer = site.get("/closed.txt");
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("<h1>403 Forbidden</h1>"));
}

#[test]
fn errors_name_the_path_and_the_mend() {
    let missing = Folder::open(Path::new("/nowhere/at/all"), false)
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("/nowhere/at/all") && missing.contains("check the spelling"),
        "{missing}"
    );
    let device = Folder::open(Path::new("/dev/null"), false).unwrap_err().to_string();
    assert!(device.contains("/dev/null") && device.contains("a device"), "{device}");
}

#[test]
fn many_requests_on_one_connection() {
    let site = Site::new();
    site.write("a.txt", "first");
    site.write("b.txt", "second");
    run(async {
        let (mut client, served) = site.connect(64 * 1024);
        for (path, part) in [
            ("/a.txt", "first"),
            ("/missing", "404 Not Found"),
            ("/", "Index of /"),
            ("/b.txt", "second"),
        ] {
            client
                .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let answer = Answer::read(&mut client).await;
            assert!(answer.text().contains(part), "{path}: {answer:?}");
        }
        // Pipelined, and the last one asks for the end.
        let all = "GET /a.txt HTTP/1.1\r\nhost: x\r\n\r\nGET /b.txt HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        client.write_all(all.as_bytes()).await.unwrap();
        assert_eq!(Answer::read(&mut client).await.text(), "first");
        assert_eq!(Answer::read(&mut client).await.text(), "second");
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        served.await.unwrap();
    });
}

#[test]
fn a_client_that_has_closed_its_side_is_answered() {
    let site = Site::new();
    site.write("a.txt", "first");
    run(async {
        let (mut client, served) = site.connect(64 * 1024);
        let request = b"GET /a.txt HTTP/1.1\r\nhost: x\r\n\r\n";
        client.write_all(request).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(Answer::read(&mut client).await.text(), "first");
        // Not by the time-out: `run` does not wait for that.
        served.await.unwrap();
    });
}

#[test]
fn nobody_is_waited_for_without_end() {
    let site = Site::new();
    site.write("big", vec![0; 4 << 20]);
    paused(async {
        let begin = Instant::now();
        let (mut client, served) = site.connect(1024);
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ")
            .await
            .unwrap();
        served.await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), connection::HEAD_TIMEOUT.as_secs());

        let begin = Instant::now();
        let (mut client, served) = site.connect(1024);
        client.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        served.await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), stall::WRITE_STALL.as_secs());
        drop(client);
    });
}

#[test]
fn a_head_is_bounded() {
    let site = Site::new();
    let answer = site.get(&format!("/{}", "a".repeat(60_000)));
    assert_eq!(answer.status, 404, "a name that is too long is nobody's");
    let answer = site.get_with("/", &format!("x: {}\r\n", "a".repeat(70_000)));
    assert_eq!(answer.status, 431);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// The parts are what attacks are made of, together with what exists; `Site::ask` looks for the secret.
    #[test]
    fn no_path_leads_to_a_secret(parts in prop::collection::vec(part(), 0..10), hidden in any::<bool>()) {
        ATTACKED.with(|(_, folders)| {
            let site = Site { folder: folders[usize::from(hidden)].clone(), place: None };
            let answer = site.get(&format!("/{}", parts.concat()));
            prop_assert!([200, 307, 400, 404].contains(&answer.status), "{:?}", answer);
            Ok(())
        })?;
    }

    /// Whatever a path is made of, it leads to names below the root.
    #[test]
    fn every_parsed_path_stays_below(raw in prop_oneof!["/\\PC{0,40}", "/[./%20a-fA-F\\\\]{0,30}"]) {
        if let Some(parsed) = RequestPath::parse(&raw) {
            let ordinary = |component| matches!(component, std::path::Component::Normal(_));
            prop_assert!(parsed.below.components().all(ordinary), "{:?}", parsed);
            prop_assert!(!parsed.below.as_os_str().as_encoded_bytes().contains(&0), "{:?}", parsed);
            prop_assert!(!parsed.folder_address().starts_with("//"), "{:?}", parsed);
        }
    }
}

thread_local! {
    /// A site, and its folder without and with hidden names: made once, not for each case.
    static ATTACKED: (Site, [Folder; 2]) = {
        let site = Site::new();
        site.write("sub/file.txt", "public");
        site.write(".dotted/file.txt", "public");
        symlink(site.outside().parent().unwrap(), site.root().join("sub/out")).unwrap();
        symlink("sub", site.root().join("in")).unwrap();
        let folders = [false, true].map(|hidden| Folder::open(&site.root(), hidden).unwrap());
        (site, folders)
    };
}

fn part() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "/",
        "/",
        "/",
        "..",
        "../",
        "/..",
        ".",
        "%2e",
        "%2E",
        "%2f",
        "%5c",
        "\\",
        "%25",
        "%00",
        "secret.txt",
        "root",
        "sub",
        "sub/out/",
        "in/out/secret.txt",
        "in",
        "root-beside",
        "file.txt",
        ".dotted",
        "?",
        "#",
        ";",
        "%c0%ae",
        "~",
        "etc/passwd",
    ]);
    prop_oneof![8 => known.prop_map(str::to_owned), 1 => "[!-~]{1,3}"]
}

/// A folder to serve, with secrets beside it.
struct Site {
    folder: Folder,
    place: Option<TempDir>,
}

impl Site {
    fn new() -> Self {
        let place = tempfile::Builder::new().prefix("portal-folder").tempdir().unwrap();
        let root = place.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(place.path().join("secret.txt"), SECRET).unwrap();
        // A name that begins like the root's.
        fs::create_dir(place.path().join("root-beside")).unwrap();
        fs::write(place.path().join("root-beside/secret.txt"), SECRET).unwrap();
        Self {
            folder: Folder::open(&root, false).unwrap(),
            place: Some(place),
        }
    }

    fn root(&self) -> PathBuf {
        self.place.as_ref().unwrap().path().join("root")
    }

    fn outside(&self) -> PathBuf {
        self.place.as_ref().unwrap().path().join("secret.txt")
    }

    fn write(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn get(&self, path: &str) -> Answer {
        self.get_with(path, "")
    }

    fn get_with(&self, path: &str, headers: &str) -> Answer {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n"
        ))
    }

    fn get_unchecked(&self, path: &str) -> Answer {
        self.ask_unchecked(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    }

    /// Sends a request on a connection of its own; fails the test if the answer holds what nobody may have.
    fn ask(&self, request: &str) -> Answer {
        let answer = self.ask_unchecked(request);
        assert!(!answer.text().contains(SECRET), "{request}");
        if let Some(place) = &self.place {
            let place = place.path().file_name().unwrap().to_str().unwrap();
            assert!(
                request.contains(place) || !answer.text().contains(place),
                "{request}: {answer:?}"
            );
            assert!(
                request.contains(place) || !answer.head.contains(place),
                "{request}: {answer:?}"
            );
        }
        if !matches!(answer.status, 400 | 431) {
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{request}");
        }
        answer
    }

    fn ask_unchecked(&self, request: &str) -> Answer {
        run(async {
            let (mut client, served) = self.connect(64 * 1024);
            // The server may stop reading before the end of a bad request.
            let _ = client.write_all(request.as_bytes()).await;
            let answer = Answer::read_to_end(&mut client).await;
            drop(client);
            served.await.unwrap();
            answer
        })
    }

    fn connect(&self, buffer: usize) -> (DuplexStream, JoinHandle<()>) {
        let (client, server) = duplex(buffer);
        let folder = self.folder.clone();
        (client, tokio::spawn(async move { folder.serve(server).await }))
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    /// Reads one answer by its content-length.
    async fn read(client: &mut DuplexStream) -> Self {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.expect("an answer"));
        }
        let mut answer = Self::parse(&head);
        answer.body = vec![0; answer.header("content-length").unwrap().parse().unwrap()];
        client.read_exact(&mut answer.body).await.unwrap();
        answer
    }

    async fn read_to_end(client: &mut DuplexStream) -> Self {
        let mut bytes = Vec::new();
        // What was read before the connection broke is an answer, too.
        let _ = client.read_to_end(&mut bytes).await;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("the end of a head")
            + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest[2..5].parse().ok())
            .expect("a status");
        Self {
            status,
            head,
            body: bytes[end..].to_vec(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}{}",
            self.head,
            self.text().chars().take(1_000).collect::<String>()
        )
    }
}

fn listing_year(page: &str) -> i32 {
    let cell = page.rsplit("<td>").next().unwrap();
    cell[..4].parse().unwrap()
}

/// Runs on one thread, as the program does. Nothing here takes long, so that what hangs fails.
fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(20), work).await.expect("an answer in time") })
}

/// Runs with a clock that skips the waiting.
fn paused<T>(work: impl Future<Output = T>) -> T {
    runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work)
}
