//! HTTP/2 with a client that is not ours, and frames made by hand where no client would make them.

use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONTENT_RANGE, HeaderName};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::sleep;

use super::super::connection::{HEAD_TIMEOUT, MAX_STREAMS, PREFACE};
use super::super::stall::WRITE_STALL;
use super::*;

type Client = SendRequest<Empty<Bytes>>;

#[test]
fn requests_are_answered_as_over_http1() {
    let site = Site::new();
    site.write("digits", "0123456789");
    site.write("sub/a.txt", "a");
    run(async {
        let (mut client, served) = connect(&site).await;
        let whole = get(&mut client, "/digits", &[]).await;
        assert_eq!((whole.status, whole.text()), (200, "0123456789".into()));
        assert_eq!(whole.version, Version::HTTP_2);
        assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));

        for (range, status, body, content_range) in [
            ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
            ("bytes=-2", 206, "89", Some("bytes 8-9/10")),
            ("bytes=10-", 416, "", Some("bytes */10")),
            ("bytes=0-1,4-5", 200, "0123456789", None),
        ] {
            let answer = get(&mut client, "/digits", &[(RANGE, range)]).await;
            assert_eq!((answer.status, answer.text().as_str()), (status, body), "{range}");
            assert_eq!(answer.header(CONTENT_RANGE.as_str()), content_range, "{range}");
        }

        let tag = whole.header("etag").unwrap();
        let answer = get(&mut client, "/digits", &[(IF_NONE_MATCH, tag)]).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0));
        let modified = whole.header("last-modified").unwrap();
        let answer = get(&mut client, "/digits", &[(IF_MODIFIED_SINCE, modified)]).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0));
        let answer = get(&mut client, "/digits", &[(IF_NONE_MATCH, "\"other\"")]).await;
        assert_eq!(answer.status, 200);

        let answer = get(&mut client, "/sub/", &[]).await;
        assert!(answer.text().contains("Index of /sub/") && answer.text().contains("href=\"./a.txt\""));
        let answer = get(&mut client, "/sub?q", &[]).await;
        assert_eq!((answer.status, answer.header("location")), (307, Some("/sub/?q")));
        for path in ["/missing", "/%2e%2e/secret.txt", "/.git/config"] {
            let answer = get(&mut client, path, &[]).await;
            assert_eq!(answer.status, 404, "{path}");
            assert!(answer.text().contains("<h1>404 Not Found</h1>"), "{path}");
        }
        let mut head = request("/digits", &[]);
        *head.method_mut() = Method::HEAD;
        let answer = Reply::read(client.send_request(head).await.unwrap()).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        assert_eq!(answer.header("content-length"), Some("10"));
        let mut post = request("/digits", &[]);
        *post.method_mut() = Method::POST;
        let answer = Reply::read(client.send_request(post).await.unwrap()).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));

        drop(client);
        served.await.unwrap();
    });
}

#[test]
fn many_files_at_once_on_one_connection() {
    let site = Site::new();
    let contents = |n: usize| -> Vec<u8> { (0..40_000 + n * 1_000).map(|i| ((i * 7 + n) % 251) as u8).collect() };
    for n in 0..50 {
        site.write(format!("{n}.bin"), contents(n));
    }
    run(async {
        let (client, served) = connect(&site).await;
        // Each of them four times: more than may be open at once.
        assert!(4 * 50 > MAX_STREAMS as usize);
        let mut tasks = tokio::task::JoinSet::new();
        for n in (0..4 * 50).map(|n| n % 50) {
            let mut client = client.clone();
            tasks.spawn(async move { (n, get(&mut client, &format!("/{n}.bin"), &[]).await) });
        }
        let mut answered = 0;
        while let Some(done) = tasks.join_next().await {
            let (n, answer) = done.unwrap();
            assert!(answer.status == 200 && answer.body == contents(n), "{n}");
            answered += 1;
        }
        assert_eq!(answered, 200);
        drop(client);
        served.await.unwrap();
    });
}

#[test]
fn the_preface_may_come_in_pieces_and_must_be_whole() {
    let site = Site::new();
    run(async {
        let (mut client, served) = site.connect(64 * 1024);
        for byte in PREFACE {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        let mut head = [0; 9];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(head[3], SETTINGS, "the server's own come first");
        drop(client);
        served.await.unwrap();
    });
    let broken = site.ask_unchecked("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
    assert_eq!(broken.status, 400, "read as HTTP/1.1");
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let site = Site::new();
    site.write("a.txt", "a");
    run(async {
        let (mut client, served) = connect(&site).await;
        let long = "a".repeat(20_000);
        let refused = client.send_request(request("/a.txt", &[(IF_NONE_MATCH, &long)])).await;
        assert_eq!(refused.unwrap().status(), 431);
        assert_eq!(get(&mut client, "/a.txt", &[]).await.text(), "a");
        drop(client);
        served.await.unwrap();
    });
}

#[test]
fn who_never_reads_is_not_waited_for() {
    let site = Site::new();
    site.write("big", vec![0; 4 << 20]);
    paused(async {
        let begin = Instant::now();
        let (mut client, served) = site.connect(1024);
        client.write_all(&opening()).await.unwrap();
        // A window that is never the bound: what stalls is the connection.
        client
            .write_all(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()))
            .await
            .unwrap();
        client.write_all(&get_frame(1)).await.unwrap();
        served.await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), WRITE_STALL.as_secs());
        drop(client);

        let begin = Instant::now();
        let (client, served) = site.connect(1024);
        served.await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), HEAD_TIMEOUT.as_secs(), "it said nothing");
        drop(client);

        let begin = Instant::now();
        let (mut client, served) = site.connect(1024);
        client.write_all(&PREFACE[..20]).await.unwrap();
        served.await.unwrap();
        assert_eq!(
            begin.elapsed().as_secs(),
            HEAD_TIMEOUT.as_secs(),
            "it stopped in the preface"
        );
    });
}

#[test]
fn a_response_that_is_left_unread_is_given_up_and_the_others_go_on() {
    let site = Site::new();
    site.write("big", vec![0; 4 << 20]);
    site.write("a.txt", "a");
    paused(async {
        let (mut client, served) = connect(&site).await;
        let begin = Instant::now();
        let unread = client.send_request(request("/big", &[])).await.unwrap();
        // The connection is busy all the while.
        while begin.elapsed() < WRITE_STALL - Duration::from_secs(5) {
            sleep(Duration::from_secs(10)).await;
            assert_eq!(get(&mut client, "/a.txt", &[]).await.text(), "a");
        }
        sleep(Duration::from_secs(15)).await;
        let failed = unread.into_body().collect().await.expect_err("it was reset");
        assert!(failed.to_string().contains("body"), "{failed}");
        assert_eq!(get(&mut client, "/a.txt", &[]).await.text(), "a");
        drop(client);
        served.await.unwrap();
    });
}

#[test]
fn a_slow_download_goes_on_for_as_long_as_it_moves() {
    let site = Site::new();
    site.write("big", vec![7; 1 << 20]);
    paused(async {
        let (mut client, served) = connect(&site).await;
        let begin = Instant::now();
        let mut body = client.send_request(request("/big", &[])).await.unwrap().into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            let len = frame.unwrap().into_data().unwrap().len();
            received += len;
            // 1000 bytes a second; the client grants more whenever it has read half of its window.
            sleep(Duration::from_millis(len as u64)).await;
        }
        assert_eq!(received, 1 << 20);
        assert!(begin.elapsed() > 5 * WRITE_STALL, "{:?}", begin.elapsed());
        drop(client);
        served.await.unwrap();
    });
}

#[test]
fn an_idle_connection_is_closed_and_a_silent_one_too() {
    let site = Site::new();
    site.write("a.txt", "a");
    paused(async {
        let (mut client, served) = connect(&site).await;
        assert_eq!(get(&mut client, "/a.txt", &[]).await.text(), "a");
        let begin = Instant::now();
        served.await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
        assert!(client.is_closed() || client.ready().await.is_err());

        // Answers neither pings nor the goodbye.
        let begin = Instant::now();
        let (mut client, served) = site.connect(64 * 1024);
        client.write_all(&opening()).await.unwrap();
        served.await.unwrap();
        assert!(begin.elapsed() <= HEAD_TIMEOUT + WRITE_STALL, "{:?}", begin.elapsed());
    });
}

#[test]
fn requests_that_are_taken_back_at_once_do_no_harm() {
    let site = Site::new();
    site.write("a.txt", "a");
    run(async {
        let (mut flood, flooded) = site.connect(64 * 1024);
        flood.write_all(&opening()).await.unwrap();
        let flooding = tokio::spawn(async move {
            for stream in (1..).step_by(2).take(20_000) {
                let mut frames = get_frame(stream);
                frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                if flood.write_all(&frames).await.is_err() {
                    return stream;
                }
            }
            // The bound may not have been met if each one was looked at in time.
            u32::MAX
        });
        let (mut client, served) = connect(&site).await;
        for _ in 0..20 {
            assert_eq!(get(&mut client, "/a.txt", &[]).await.text(), "a");
        }
        let last = flooding.await.unwrap();
        drop(client);
        flooded.await.unwrap();
        served.await.unwrap();
        assert!(last < 2_000, "the flood was let in up to stream {last}");
        // What was begun for it has ended with it.
        while runtime::Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

/// RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A preface, and settings that grant every stream all the window there can be (SETTINGS_INITIAL_WINDOW_SIZE).
fn opening() -> Vec<u8> {
    let mut window = vec![0, 4];
    window.extend(((1_u32 << 31) - 1).to_be_bytes());
    [PREFACE.as_slice(), &frame(SETTINGS, 0, 0, &window)].concat()
}

/// `GET /big`, with END_STREAM and END_HEADERS: RFC 7541, appendix A, for the method and scheme.
fn get_frame(stream: u32) -> Vec<u8> {
    let path = b"\x04\x04/big";
    frame(HEADERS, 0x5, stream, &[b"\x82\x86".as_slice(), path].concat())
}

/// A client with small windows, which hold back what is not read.
async fn connect(site: &Site) -> (Client, JoinHandle<()>) {
    let (client, served) = site.connect(64 * 1024);
    let (client, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(1 << 20)
        .handshake(TokioIo::new(client))
        .await
        .unwrap();
    tokio::spawn(async move {
        // It ends as the server wants; the requests tell.
        let _ = connection.await;
    });
    (client, served)
}

fn request(path: &str, headers: &[(HeaderName, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::get(format!("https://x{path}"));
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    request.body(Empty::new()).unwrap()
}

async fn get(client: &mut Client, path: &str, headers: &[(HeaderName, &str)]) -> Reply {
    client.ready().await.unwrap();
    Reply::read(client.send_request(request(path, headers)).await.unwrap()).await
}

struct Reply {
    version: Version,
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    async fn read(response: Response<hyper::body::Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert!(!String::from_utf8_lossy(&body).contains(SECRET));
        Self {
            version: head.version,
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
