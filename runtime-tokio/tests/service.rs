//! Services inside a program, with a relay in the same process and real sockets on loopback.

#[allow(dead_code, unreachable_pub, reason = "shared with the example in the docs")]
mod relay;

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use portal_core::identity::SecretKey;
use portal_core::{Access, AgentEvent, DialError, Grant, RefusalCode};
use portal_runtime_tokio::service::{AddressError, Connect, Connection, Ended, ListenError, Listener, Offer, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use self::relay::TestRelay;

/// The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { timeout(PATIENCE, work).await.expect("in time") });
}

fn connect(relay: &TestRelay) -> Connect {
    Connect::new(relay.uri.clone(), SecretKey::from_bytes([2; 32]))
}

async fn tunnel(relay: &TestRelay) -> Tunnel {
    connect(relay).start().await.unwrap()
}

async fn listen(tunnel: &Tunnel, offer: Offer) -> (Listener, String) {
    let listener = tunnel.listen(offer).unwrap();
    let public = listener.public_address().await.unwrap();
    (listener, public)
}

async fn visit(public: &str) -> TcpStream {
    try_visit(public).await.unwrap()
}

async fn try_visit(public: &str) -> std::io::Result<TcpStream> {
    let port: u16 = public.rsplit(':').next().unwrap().parse().unwrap();
    TcpStream::connect(("127.0.0.1", port)).await
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE / 2, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come"));
}

/// Sends back what every visitor says, and FIN after theirs.
fn echo(mut listener: Listener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(connection);
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    })
}

async fn echoed(public: &str, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = visit(public).await.into_split();
    let sent = bytes.to_vec();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    writer.await.unwrap();
    received
}

#[test]
fn megabytes_come_back_and_half_close_is_kept() {
    run(async {
        let relay = TestRelay::start().await;
        let (listener, public) = listen(&tunnel(&relay).await, Offer::tcp()).await;
        assert!(public.starts_with("tcp://localhost:"), "{public}");
        let server = echo(listener);
        let bytes: Vec<u8> = (0..8_u32 << 20)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        assert!(echoed(&public, &bytes).await == bytes);
        server.abort();
    });
}

#[test]
fn each_side_may_close_first_and_the_visitor_is_named() {
    run(async {
        let relay = TestRelay::start().await;
        let (mut listener, public) = listen(&tunnel(&relay).await, Offer::tcp()).await;
        let mut visitor = visit(&public).await;
        let (mut connection, from) = listener.accept().await.unwrap();
        assert_eq!(from, visitor.local_addr().unwrap());
        assert_eq!(connection.visitor(), from);
        assert_eq!(connection.details().unwrap().destination, visitor.peer_addr().unwrap());

        // The service first: what the visitor still says arrives.
        connection.write_all(b"bye").await.unwrap();
        connection.shutdown().await.unwrap();
        let mut said = String::new();
        visitor.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "bye");
        sleep(Duration::from_millis(100)).await;
        visitor.write_all(b"last words").await.unwrap();
        visitor.shutdown().await.unwrap();
        let mut heard = String::new();
        connection.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "last words");
        drop(connection);
        until("the end of all visitors", async || relay.census().await.visitors == 0).await;
    });
}

#[test]
fn a_connection_dropped_unread_ends_for_the_visitor_and_holds_nothing() {
    run(async {
        let relay = TestRelay::start().await;
        let (mut listener, public) = listen(&tunnel(&relay).await, Offer::tcp()).await;
        for _ in 0..20 {
            let mut visitor = visit(&public).await;
            visitor.write_all(&[7; 100_000]).await.unwrap();
            let (connection, _) = listener.accept().await.unwrap();
            // Something is there to be read.
            sleep(Duration::from_millis(5)).await;
            drop(connection);
            let end = visitor.read(&mut [0; 1]).await;
            assert!(
                matches!(&end, Ok(0))
                    || end
                        .as_ref()
                        .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
                "{end:?}"
            );
        }
        until("the end of all visitors", async || relay.census().await.visitors == 0).await;
        until("the end of all flows", async || relay.census().await.flows <= 1).await;
    });
}

#[test]
fn several_services_come_and_go_on_one_tunnel() {
    run(async {
        let relay = TestRelay::start().await;
        let tunnel = tunnel(&relay).await;
        let (one, first) = listen(&tunnel, Offer::tcp()).await;
        let (two, second) = listen(&tunnel, Offer::tcp().id("second")).await;
        let (page, named) = listen(&tunnel, Offer::http().name("page")).await;
        let port = relay.http.port();
        assert_eq!(named, format!("http://page.localhost:{port}/"));
        assert_ne!(first, second);
        let taken = tunnel.listen(Offer::http()).unwrap_err();
        assert_eq!(taken, ListenError::IdTaken("http".into()));
        let (one, two) = (echo(one), echo(two));
        assert_eq!(echoed(&first, b"one").await, b"one");
        assert_eq!(echoed(&second, b"two").await, b"two");
        let census = relay.census().await;
        assert_eq!((census.agents, census.leases), (1, 3));

        // A listener that is dropped gives its lease back. Who is connected goes on.
        let mut visitor = visit(&second).await;
        visitor.write_all(b"x").await.unwrap();
        assert_eq!(visitor.read_u8().await.unwrap(), b'x');
        two.abort();
        until("the lease's end", async || relay.census().await.leases == 2).await;
        visitor.write_all(b"y").await.unwrap();
        assert_eq!(visitor.read_u8().await.unwrap(), b'y');
        assert_eq!(echoed(&first, b"one").await, b"one");

        // The same service again, at once, gets its address again and its own visitors.
        drop(page);
        let (mut page, again) = listen(&tunnel, Offer::http().name("page")).await;
        assert_eq!(again, named);
        let answer = tokio::spawn(async move {
            let (mut connection, _) = page.accept().await.unwrap();
            let mut head = [0; 1024];
            let len = connection.read(&mut head).await.unwrap();
            assert!(head[..len].starts_with(b"GET / HTTP/1.1"));
            connection
                .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nagain")
                .await
                .unwrap();
            page
        });
        assert_eq!(relay.get("page.localhost").await, "again");
        let _page = answer.await.unwrap();
        one.abort();
    });
}

#[test]
fn visitors_beyond_the_backlog_are_refused_and_the_others_wait() {
    run(async {
        let relay = TestRelay::start().await;
        let tunnel = tunnel(&relay).await;
        let mut events = tunnel.events();
        let (mut listener, public) = listen(&tunnel, Offer::tcp().backlog(2)).await;
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let mut visitor = visit(&public).await;
            visitor.write_all(b"w").await.unwrap();
            waiting.push(visitor);
            sleep(Duration::from_millis(50)).await;
        }
        for _ in 0..5 {
            // The reset may come before this task has seen that it is connected.
            let refused = match try_visit(&public).await {
                Ok(mut visitor) => visitor.read(&mut [0; 1]).await,
                Err(error) => Err(error),
            };
            assert!(!matches!(refused, Ok(1..)), "{refused:?}");
            let event = loop {
                match events.recv().await.unwrap() {
                    AgentEvent::TargetFailed { service, error, .. } => break (service, error),
                    _ => continue,
                }
            };
            assert_eq!(event, ("tcp".into(), DialError::Exhausted));
        }
        for visitor in &mut waiting {
            let (mut connection, from) = listener.accept().await.unwrap();
            assert_eq!(from, visitor.local_addr().unwrap());
            assert_eq!(connection.read_u8().await.unwrap(), b'w');
            connection.write_all(b"h").await.unwrap();
            assert_eq!(visitor.read_u8().await.unwrap(), b'h');
        }
        // There is room again.
        let visitor = visit(&public).await;
        let (_, from) = listener.accept().await.unwrap();
        assert_eq!(from, visitor.local_addr().unwrap());
    });
}

#[test]
fn who_is_not_read_is_held_back() {
    run(async {
        let relay = TestRelay::start().await;
        let (mut listener, public) = listen(&tunnel(&relay).await, Offer::tcp()).await;
        let mut visitor = visit(&public).await;
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut sent = 0;
        while let Ok(count) = timeout(Duration::from_millis(500), visitor.write(&[7; 64 * 1024])).await {
            sent += count.unwrap();
            assert!(sent < 64 << 20, "nothing holds the visitor back");
        }
        let mut received = 0;
        let mut buffer = vec![0; 64 * 1024];
        while received < sent {
            received += connection.read(&mut buffer).await.unwrap();
        }
        assert_eq!(received, sent);
    });
}

#[test]
fn a_relay_that_was_restarted_has_the_services_again() {
    run(async {
        let relay = TestRelay::start().await;
        let tunnel = tunnel(&relay).await;
        let mut events = tunnel.events();
        let (listener, public) = listen(&tunnel, Offer::tcp()).await;
        let server = echo(listener);
        assert_eq!(echoed(&public, b"before").await, b"before");
        let (udp, http) = (SocketAddr::from(([127, 0, 0, 1], relay.uri.port)), relay.http);
        let ports = relay.ports.clone();
        relay.kill().await;
        let _relay = TestRelay::start_at(udp, http, ports, Access::Open).await;
        let mut told = (false, false);
        loop {
            match events.recv().await.unwrap() {
                AgentEvent::RelayDown { .. } => told.0 = true,
                AgentEvent::RelayUp { .. } if told.0 => told.1 = true,
                AgentEvent::Granted { public: again, .. } if told.1 => {
                    assert_eq!(again, public);
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(echoed(&public, b"after").await, b"after");
        server.abort();
    });
}

#[test]
fn a_relay_that_is_not_there_yet_is_waited_for() {
    run(async {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = socket.local_addr().unwrap();
        drop(socket);
        let key = SecretKey::from_bytes([1; 32]).public_key().url_safe();
        let uri = format!("portal://{key}@{udp}").parse().unwrap();
        let tunnel = Connect::new(uri, SecretKey::from_bytes([2; 32])).start().await.unwrap();
        let mut events = tunnel.events();
        let listener = tunnel.listen(Offer::tcp()).unwrap();
        let early = timeout(Duration::from_millis(300), listener.public_address()).await;
        assert!(early.is_err(), "{early:?}");
        let _relay = TestRelay::start_at(udp, ([127, 0, 0, 1], 0).into(), 20_900..=20_999, Access::Open).await;
        let public = listener.public_address().await.unwrap();
        let server = echo(listener);
        assert_eq!(echoed(&public, b"late").await, b"late");
        assert!(matches!(events.recv().await.unwrap(), AgentEvent::RelayUp { .. }));
        server.abort();
    });
}

#[test]
fn refusals_for_good_are_errors_and_others_are_waited_out() {
    run(async {
        let key = SecretKey::from_bytes([2; 32]).public_key();
        let relay = TestRelay::start_for(Access::Granted(vec![Grant::all(key)])).await;
        let tunnel = tunnel(&relay).await;
        assert_eq!(tunnel.public_key(), key);
        // The relay has no ingress for TLS.
        let listener = tunnel.listen(Offer::tls()).unwrap();
        let error = listener.public_address().await.unwrap_err();
        assert!(
            matches!(&error, AddressError::Refused { code: RefusalCode::KindUnavailable, message } if !message.is_empty()),
            "{error}"
        );
        let listener = tunnel.listen(Offer::tcp().port(9)).unwrap();
        let error = listener.public_address().await.unwrap_err();
        assert!(
            matches!(
                &error,
                AddressError::Refused {
                    code: RefusalCode::PortOutOfRange,
                    ..
                }
            ),
            "{error}"
        );

        // A stranger is told, waits, and goes on asking.
        let stranger = Connect::new(relay.uri.clone(), SecretKey::from_bytes([3; 32]));
        let stranger = stranger.start().await.unwrap();
        let mut events = stranger.events();
        let listener = stranger.listen(Offer::tcp()).unwrap();
        let refused = loop {
            match events.recv().await.unwrap() {
                AgentEvent::RelayRefused { code, .. } => break code,
                _ => continue,
            }
        };
        assert_eq!(refused, RefusalCode::NotGranted);
        assert!(
            timeout(Duration::from_millis(200), listener.public_address())
                .await
                .is_err()
        );
    });
}

#[test]
fn a_shutdown_lets_connections_end_and_refuses_new_ones() {
    run(async {
        let relay = TestRelay::start().await;
        let tunnel = tunnel(&relay).await;
        let (mut listener, public) = listen(&tunnel, Offer::tcp()).await;
        let mut visitor = visit(&public).await;
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut events = tunnel.events();
        let ending = tokio::spawn({
            let tunnel = tunnel.clone();
            async move { tunnel.shutdown().await }
        });
        until("the lease's end", async || relay.census().await.leases == 0).await;
        visitor.write_all(b"still here").await.unwrap();
        visitor.shutdown().await.unwrap();
        let mut heard = String::new();
        connection.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "still here");
        assert!(!ending.is_finished());
        connection.write_all(b"so am I").await.unwrap();
        drop(connection);
        heard.clear();
        visitor.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "so am I");

        ending.await.unwrap().unwrap();
        let error = listener.accept().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert_eq!(listener.public_address().await, Err(AddressError::Ended(Ended)));
        assert_eq!(tunnel.listen(Offer::http()).unwrap_err(), ListenError::Ended(Ended));
        while let Ok(event) = events.recv().await {
            assert!(matches!(event, AgentEvent::VisitorLeft { .. }), "{event:?}");
        }
        assert!(tunnel.events().recv().await.is_err());
        assert_eq!(tunnel.shutdown().await, Ok(()), "it has ended already");
    });
}

#[test]
fn a_shutdown_has_limited_patience() {
    run(async {
        let relay = TestRelay::start().await;
        let tunnel = connect(&relay).grace(Duration::from_millis(300)).start().await.unwrap();
        let (mut listener, public) = listen(&tunnel, Offer::tcp()).await;
        let _visitor = visit(&public).await;
        let (mut connection, _) = listener.accept().await.unwrap();
        let error = tunnel.shutdown().await.unwrap_err();
        assert!(error.to_string().contains("cut"), "{error}");
        assert!(!matches!(connection.read(&mut [0; 1]).await, Ok(1..)));

        // Or none, if it is called again.
        let tunnel = connect(&relay).start().await.unwrap();
        let (mut listener, public) = listen(&tunnel, Offer::tcp()).await;
        let _visitor = visit(&public).await;
        let (mut connection, _) = listener.accept().await.unwrap();
        let begin = std::time::Instant::now();
        let (first, second) = tokio::join!(tunnel.shutdown(), tunnel.shutdown());
        assert!(first.is_err() && second.is_err());
        assert!(begin.elapsed() < Duration::from_secs(20), "the usual grace is longer");
        assert!(!matches!(connection.read(&mut [0; 1]).await, Ok(1..)));
    });
}

#[test]
fn a_tunnel_ends_with_the_last_who_holds_it() {
    run(async {
        let relay = TestRelay::start().await;
        let tunnel = tunnel(&relay).await;
        let mut events = tunnel.events();
        let (listener, public) = listen(&tunnel, Offer::tcp()).await;
        // A listener is enough.
        drop(tunnel);
        let server = echo(listener);
        assert_eq!(echoed(&public, b"here").await, b"here");
        server.abort();
        while events.recv().await.is_ok() {}
        until("the agent's end", async || {
            let census = relay.census().await;
            (census.agents, census.leases) == (0, 0)
        })
        .await;
    });
}

#[test]
fn a_connection_is_what_programs_expect() {
    fn is_io<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>() {}
    is_io::<Connection>();
    run(async {
        let relay = TestRelay::start().await;
        let error = connect(&relay).mtu(1500).start().await.unwrap_err();
        assert!(error.to_string().contains("1500") && error.to_string().contains("1280 to 1420"));
        let here = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = here.local_addr().unwrap();
        let error = connect(&relay).bind(taken).start().await.unwrap_err();
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
    });
}
