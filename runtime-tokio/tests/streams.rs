//! TCP and Unix streams through the driver.

mod toy;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use portal_core::{Action, DialError, Target, Transport};
use portal_runtime_tokio::{Handlers, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::timeout;

use toy::{PATIENCE, Running, Told, Toy, host, pattern};

async fn listening(toy: Toy) -> (Running, SocketAddr) {
    Running::listening(toy, Settings::default(), Handlers::new()).await
}

/// Sends `len` bytes, shuts the write side, and checks that exactly they come back before the end of file.
async fn echo(stream: &mut TcpStream, len: usize) {
    const PIECE: usize = 1 << 20;
    let (mut reader, mut writer) = stream.split();
    let send = async {
        for at in (0..len).step_by(PIECE) {
            let piece = pattern(at, PIECE.min(len - at));
            writer.write_all(&piece).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let receive = async {
        let mut piece = vec![0; PIECE];
        for at in (0..len).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(len - at)];
            reader.read_exact(piece).await.unwrap();
            assert!(piece == pattern(at, piece.len()), "bytes differ behind {at}");
        }
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0, "nothing follows");
    };
    timeout(PATIENCE, async { tokio::join!(send, receive) })
        .await
        .expect("the echo goes on");
}

async fn echo_of_64_mib() {
    let (running, addr) = listening(Toy::default()).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    echo(&mut stream, 64 << 20).await;
    running.until(|toy| toy.open_streams() == 0).await;
    let finished = running.stop().await;
    assert!(finished.clean);
    assert_eq!((finished.stats.accepted, finished.stats.streams), (1, 0));
}

#[tokio::test]
async fn an_echo_is_exact_and_half_closed() {
    echo_of_64_mib().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_is_exact_on_several_threads() {
    echo_of_64_mib().await;
}

#[tokio::test]
async fn a_splice_carries_both_ways_and_both_ends() {
    let (far, far_addr) = listening(Toy::default()).await;
    let toy = Toy {
        target: Some(host(far_addr)),
        // Small and odd, so that slices wrap and both kinds of blocking are met.
        capacity: 4099,
        ..Toy::default()
    };
    let (near, addr) = listening(toy).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    echo(&mut stream, 8 << 20).await;
    near.until(|toy| toy.open_streams() == 0).await;
    far.until(|toy| toy.open_streams() == 0).await;
    assert!(near.stop().await.clean && far.stop().await.clean);
}

#[tokio::test]
async fn a_machine_without_room_stops_reading() {
    let toy = Toy {
        stalled: true,
        ..Toy::default()
    };
    let capacity = toy.capacity as u64;
    let (running, addr) = listening(toy).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();

    // More than the kernel's queues can hold: writing comes to a stop.
    let len = 64 << 20;
    let data = pattern(0, len);
    let mut written = 0;
    while let Ok(n) = timeout(Duration::from_millis(500), stream.write(&data[written..])).await {
        written += n.unwrap();
        assert!(written < len, "somebody swallows it");
    }
    running.until(move |toy| toy.moved().0 >= capacity).await;
    let (filled, _) = running.call(|toy| toy.moved()).await;
    assert_eq!(filled, capacity, "the machine's buffer and no more");
    let turns = running.handle.stats().turns;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        running.handle.stats().turns <= turns + 2,
        "a driver that is held back does not spin"
    );

    running.call(Toy::resume).await;
    let (mut reader, mut writer) = stream.split();
    let send = async {
        writer.write_all(&data[written..]).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let receive = async { reader.read_to_end(&mut back).await.unwrap() };
    timeout(PATIENCE, async { tokio::join!(send, receive) })
        .await
        .expect("goes on");
    assert!(back == data);
}

#[tokio::test]
async fn five_hundred_connections_at_once() {
    let (running, addr) = listening(Toy::default()).await;
    let mut clients = Vec::new();
    for _ in 0..500 {
        clients.push(TcpStream::connect(addr).await.unwrap());
    }
    running.until(|toy| toy.open_streams() == 500).await;
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move { echo(&mut client, 50_000).await });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    running.until(|toy| toy.open_streams() == 0).await;
    assert_eq!(running.stop().await.stats.accepted, 500);
}

#[tokio::test]
async fn a_busy_stream_does_not_starve_the_others() {
    let (running, addr) = listening(Toy::default()).await;
    let busy = tokio::spawn(async move {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let data = vec![7; 1 << 20];
        let mut sink = vec![0; 1 << 20];
        let send = async { while writer.write_all(&data).await.is_ok() {} };
        let receive = async { while reader.read(&mut sink).await.is_ok_and(|n| n > 0) {} };
        tokio::join!(send, receive)
    });
    for round in 0..50 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        echo(&mut stream, 100 + round).await;
    }
    busy.abort();
    let _ = busy.await;
    running.until(|toy| toy.open_streams() == 0).await;
}

async fn expect_reset(stream: &mut TcpStream) {
    let error = timeout(PATIENCE, stream.read(&mut [0; 16]))
        .await
        .expect("an answer")
        .expect_err("a reset, not an end of file");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_abort_is_a_reset_for_the_visitor() {
    let (mut running, addr) = listening(Toy::default()).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let accepted = |told: &Told| match told {
        Told::Accepted(id, remote, local) => Some((*id, *remote, *local)),
        _ => None,
    };
    let (id, remote, local) = running.told_that(accepted).await;
    assert_eq!((remote, local), (stream.local_addr().unwrap(), addr));
    running.call(move |toy| toy.reset(id)).await;
    expect_reset(&mut stream).await;
}

#[tokio::test]
async fn a_reset_by_the_visitor_is_an_abort() {
    let (mut running, addr) = listening(Toy::default()).await;
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_zero_linger().unwrap();
    drop(stream);
    let failed = |told: &Told| matches!(told, Told::Failed(_)).then_some(());
    running.told_that(failed).await;
    running.until(|toy| toy.open_streams() == 0).await;
}

#[tokio::test]
async fn a_reset_crosses_a_splice() {
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let toy = Toy {
        target: Some(host(far.local_addr().unwrap())),
        ..Toy::default()
    };
    let (_running, addr) = listening(toy).await;

    let mut near = TcpStream::connect(addr).await.unwrap();
    let (dialled, _) = far.accept().await.unwrap();
    dialled.set_zero_linger().unwrap();
    drop(dialled);
    expect_reset(&mut near).await;

    let near = TcpStream::connect(addr).await.unwrap();
    let (mut dialled, _) = far.accept().await.unwrap();
    near.set_zero_linger().unwrap();
    drop(near);
    expect_reset(&mut dialled).await;
}

#[tokio::test]
async fn a_refused_visitor_is_reset() {
    let toy = Toy {
        refuse: true,
        ..Toy::default()
    };
    let (running, addr) = listening(toy).await;
    expect_reset(&mut TcpStream::connect(addr).await.unwrap()).await;
    assert_eq!(running.stop().await.stats.refused, 1);
}

#[tokio::test]
async fn failed_dials_say_why() {
    // Bound and not listening: refuses, and nobody else gets the port.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = silent.local_addr().unwrap();
    let mut running = Running::start(Toy::default());
    let unresolvable = Target::Host {
        host: "portal-test.invalid".into(),
        port: 1,
    };
    let cases = [
        (host(closed), DialError::Refused),
        (unresolvable, DialError::Unresolved),
        (Target::Unix("/nowhere/socket".into()), DialError::NotFound),
        (Target::Handler("nobody".into()), DialError::Unsupported),
    ];
    let count = cases.len() as u64;
    for (target, error) in cases {
        running.call(move |toy| toy.dial(target)).await;
        assert_eq!(running.told().await, Told::DialFailed(error));
    }
    let stats = running.stop().await.stats;
    assert_eq!((stats.dials, stats.dial_failures), (count, count));
}

#[tokio::test]
async fn a_dial_ended_by_the_machine_says_nothing_more() {
    let mut running = Running::start(Toy::default());
    let target = Target::Host {
        host: "portal-test.invalid".into(),
        port: 9,
    };
    running
        .call(move |toy| {
            let id = toy.dial(target);
            toy.reset(id);
        })
        .await;
    let addr = running.listen(0, "127.0.0.1:0", Transport::Tcp).await;
    echo(&mut TcpStream::connect(addr).await.unwrap(), 10).await;
    assert_eq!(running.handle.stats().dial_failures, 0);
}

#[tokio::test]
async fn localhost_is_dialled_in_both_families() {
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Host {
        host: "localhost".into(),
        port: far.local_addr().unwrap().port(),
    };
    let mut running = Running::start(Toy::default());
    running.call(move |toy| toy.dial(target)).await;
    let (mut stream, _) = far.accept().await.unwrap();
    assert!(matches!(running.told().await, Told::Connected(_)));
    echo(&mut stream, 100_000).await;
}

#[tokio::test]
async fn a_unix_target() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    let far = UnixListener::bind(&path).unwrap();
    let toy = Toy {
        target: Some(Target::Unix(path)),
        ..Toy::default()
    };
    let (running, addr) = listening(toy).await;
    tokio::spawn(async move {
        let (mut stream, _) = far.accept().await.unwrap();
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let mut stream = TcpStream::connect(addr).await.unwrap();
    echo(&mut stream, 4 << 20).await;
    running.until(|toy| toy.open_streams() == 0).await;
}

#[tokio::test]
async fn a_handler_is_a_target_without_a_port() {
    let handlers = Handlers::new().with("echo", |mut stream| {
        tokio::spawn(async move {
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        });
    });
    let toy = Toy {
        target: Some(Target::Handler("echo".into())),
        ..Toy::default()
    };
    let (running, addr) = Running::listening(toy, Settings::default(), handlers).await;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        echo(&mut stream, 4 << 20).await;
    }
    running.until(|toy| toy.open_streams() == 0).await;
}

#[tokio::test]
async fn a_listener_can_be_closed_and_a_taken_port_is_told() {
    let (mut running, addr) = listening(Toy::default()).await;
    let mut kept = TcpStream::connect(addr).await.unwrap();
    running.until(|toy| toy.open_streams() == 1).await;

    let mut other = Running::start(Toy::default());
    let listen = Action::Listen {
        listener: portal_core::ListenerId::from_parts(0, 1),
        addr,
        transport: Transport::Tcp,
    };
    other.call(move |toy| toy.act(listen)).await;
    let failed = Told::ListenFailed(io::ErrorKind::AddrInUse);
    assert_eq!(other.told().await, failed);

    let listener = portal_core::ListenerId::from_parts(0, 1);
    running.call(move |toy| toy.act(Action::Unlisten { listener })).await;
    // A new call is answered only after the turn that closed it.
    running.call(|_| ()).await;
    let error = TcpStream::connect(addr).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    echo(&mut kept, 1000).await;
    // The same index under a new generation.
    running
        .call(|toy| {
            toy.act(Action::Listen {
                listener: portal_core::ListenerId::from_parts(0, 2),
                addr: "127.0.0.1:0".parse().unwrap(),
                transport: Transport::Tcp,
            });
        })
        .await;
    let listening = |told: &Told| match told {
        Told::Listening(addr) => Some(*addr),
        _ => None,
    };
    let addr = running.told_that(listening).await;
    echo(&mut TcpStream::connect(addr).await.unwrap(), 1000).await;
}

#[tokio::test]
async fn a_wildcard_listener_takes_both_families() {
    let mut running = Running::start(Toy::default());
    running.call(|toy| toy.listen(0, "[::]:0", Transport::Tcp)).await;
    let Told::Listening(bound) = running.told().await else {
        eprintln!("skipped: no IPv6 here");
        return;
    };
    let mut seen = HashSet::new();
    for ip in ["127.0.0.1", "::1"] {
        let addr = SocketAddr::new(ip.parse().unwrap(), bound.port());
        let Ok(mut stream) = TcpStream::connect(addr).await else {
            eprintln!("skipped: {ip} is not there");
            continue;
        };
        echo(&mut stream, 1000).await;
        let accepted = |told: &Told| match told {
            Told::Accepted(_, remote, local) => Some((*remote, *local)),
            _ => None,
        };
        let (remote, local) = running.told_that(accepted).await;
        assert_eq!(local, addr);
        assert_eq!(remote.ip(), addr.ip());
        seen.insert(remote);
    }
    assert!(!seen.is_empty());
}
