//! Datagrams: the tunnel with its trains, public and local sockets.

mod toy;

use std::net::SocketAddr;
use std::time::Duration;

use portal_core::{Action, DialError, ListenerId, Path, Target, Transport, UdpSocketRef};
use portal_runtime_tokio::{Handlers, Settings};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use toy::{PATIENCE, Running, Told, Toy, host, pattern, udp_id};

fn numbered(n: usize, len: usize) -> Vec<u8> {
    let mut payload = pattern(n, len);
    payload[..8].copy_from_slice(&(n as u64).to_be_bytes());
    payload
}

/// Sends numbered datagrams from one tunnel to another, a train at a time, and checks each.
async fn trains(from: &Running, to: &Running, rounds: usize, train: usize, len: usize) {
    let addr = to.tunnel;
    for round in 0..rounds {
        let first = round * train;
        from.call(move |toy| {
            for n in first..first + train {
                toy.send(addr, numbered(n, len));
            }
        })
        .await;
        to.until(move |toy| toy.received.len() >= train).await;
        let received = to.call(|toy| std::mem::take(&mut toy.received)).await;
        assert_eq!(received.len(), train);
        for (n, (path, payload)) in (first..).zip(received) {
            assert_eq!(path.remote, from.tunnel);
            assert_eq!(path.local_ip, Some(to.tunnel.ip()));
            assert!(payload == numbered(n, len), "datagram {n}");
        }
    }
}

#[tokio::test]
async fn trains_cross_the_tunnel_both_ways() {
    let (a, b) = (Running::start(Toy::default()), Running::start(Toy::default()));
    trains(&a, &b, 40, 40, 1400).await;
    trains(&b, &a, 40, 40, 1400).await;
    // Short ones, more than one train may hold.
    trains(&a, &b, 5, 150, 100).await;

    let largest = b.call(|toy| toy.largest_train).await;
    let (sent, received) = (a.handle.stats(), b.handle.stats());
    assert_eq!(sent.tunnel_tx_datagrams, 40 * 40 + 5 * 150);
    assert_eq!(sent.tunnel_tx_datagrams, received.tunnel_rx_datagrams);
    assert_eq!((sent.tunnel_tx_errors, sent.gso_fallbacks), (0, 0));
    // Kernels without GSO or GRO carry them one by one.
    println!(
        "{} calls sent, {} received, largest train {largest}",
        sent.tunnel_tx_calls, received.tunnel_rx_calls
    );
    if cfg!(target_os = "linux") && sent.tunnel_tx_calls < sent.tunnel_tx_datagrams {
        assert!(largest > 1);
        assert!(received.tunnel_rx_calls < received.tunnel_rx_datagrams);
    }
}

#[tokio::test]
async fn one_receive_buffer_and_no_trains() {
    let settings = Settings {
        receive_buffers: 1,
        gso_segments: 1,
        tunnel_socket_buffer: Some(1 << 20),
        ..Settings::default()
    };
    let start = || {
        let toy = Toy::default();
        Running::start_with(toy, "127.0.0.1:0", settings.clone(), Handlers::new())
    };
    let (a, b) = (start(), start());
    trains(&a, &b, 10, 20, 1200).await;
    let stats = a.stop().await.stats;
    assert_eq!(stats.tunnel_tx_calls, stats.tunnel_tx_datagrams);
}

#[tokio::test]
async fn datagrams_of_all_sizes_cross_the_tunnel() {
    let (a, b) = (Running::start(Toy::default()), Running::start(Toy::default()));
    let addr = b.tunnel;
    for sizes in [
        vec![0],
        vec![0, 0],
        vec![7, 7, 3],
        vec![7, 7, 0],
        vec![65_000],
        vec![1, 2, 0, 2],
    ] {
        let wanted: Vec<_> = sizes.iter().map(|len| pattern(1, *len)).collect();
        let count = sizes.len();
        let sent = wanted.clone();
        a.call(move |toy| {
            for payload in sent {
                toy.send(addr, payload);
            }
        })
        .await;
        b.until(move |toy| toy.received.len() >= count).await;
        let received = b.call(|toy| std::mem::take(&mut toy.received)).await;
        let received: Vec<_> = received.into_iter().map(|(_, payload)| payload).collect();
        assert!(received == wanted, "{sizes:?}");
    }
}

#[tokio::test]
async fn an_answer_comes_from_the_address_that_was_asked() {
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let Ok(probe) = std::net::UdpSocket::bind(bind) else {
            eprintln!("skipped: {bind} cannot be bound");
            continue;
        };
        drop(probe);
        let tunnel = Running::start_with(Toy::default(), bind, Settings::default(), Handlers::new());
        let port = tunnel.tunnel.port();
        // All of 127/8 is this host on Linux.
        let asked: SocketAddr = ([127, 0, 0, 2], port).into();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"ask", asked).await.unwrap();
        tunnel.until(|toy| !toy.received.is_empty()).await;
        let (path, payload) = tunnel.call(|toy| toy.received.remove(0)).await;
        assert_eq!(payload, b"ask");
        let here = Path {
            remote: client.local_addr().unwrap(),
            local_ip: Some(asked.ip()),
        };
        assert_eq!(path, here, "canonical, whatever the socket");

        tunnel
            .call(move |toy| toy.transmit(UdpSocketRef::Tunnel, Some(path), b"answer".to_vec()))
            .await;
        let mut buffer = [0; 16];
        let (n, from) = timeout(PATIENCE, client.recv_from(&mut buffer))
            .await
            .expect("in time")
            .unwrap();
        assert_eq!((&buffer[..n], from), (&b"answer"[..], asked));
    }
}

#[tokio::test]
async fn a_source_address_that_is_gone_costs_nothing() {
    let cases = [
        ("0.0.0.0:0", "127.0.0.1:0", "192.0.2.55"),
        ("[::]:0", "127.0.0.1:0", "192.0.2.55"),
        ("[::]:0", "[::1]:0", "2001:db8::55"),
    ];
    for (from, to, gone) in cases {
        if [from, to].iter().any(|addr| std::net::UdpSocket::bind(addr).is_err()) {
            eprintln!("skipped: no {from} or {to} here");
            continue;
        }
        let start = |addr| Running::start_with(Toy::default(), addr, Settings::default(), Handlers::new());
        let (a, b) = (start(from), start(to));
        let path = Path {
            remote: b.tunnel,
            local_ip: Some(gone.parse().unwrap()),
        };
        for _ in 0..2 {
            a.call(move |toy| {
                for n in 0..10 {
                    toy.transmit(UdpSocketRef::Tunnel, Some(path), numbered(n, 1000));
                }
            })
            .await;
            b.until(|toy| toy.received.len() >= 10).await;
            let received = b.call(|toy| std::mem::take(&mut toy.received)).await;
            assert_eq!(received.len(), 10);
        }
        let stats = a.stop().await.stats;
        assert_eq!((stats.tunnel_tx_datagrams, stats.tunnel_tx_errors), (20, 0));
        if stats.source_fallbacks > 0 && stats.tunnel_tx_calls < 20 {
            assert_eq!(stats.tunnel_tx_calls, 2, "trains live on");
        }
        println!("{from} to {to}: {} fallbacks", stats.source_fallbacks);
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_counted() {
    let a = Running::start(Toy::default());
    let b = Running::start(Toy::default());
    let (there, alive) = ("[2001:db8::1]:9".parse().unwrap(), b.tunnel);
    a.call(move |toy| {
        toy.send(there, vec![1; 100]);
        toy.send(there, vec![1; 100]);
        toy.send(alive, vec![2; 100]);
    })
    .await;
    b.until(|toy| toy.received.len() == 1).await;
    let stats = a.stop().await.stats;
    assert_eq!((stats.tunnel_tx_errors, stats.tunnel_tx_datagrams), (2, 1));
}

#[tokio::test]
async fn a_public_socket_echoes() {
    let mut running = Running::start(Toy::default());
    let addr = running.listen(3, "127.0.0.1:0", Transport::Udp).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(addr).await.unwrap();
        clients.push(client);
    }
    let mut buffer = vec![0; 65_536];
    for len in [0, 1, 1200, 9000, 65_487] {
        for client in &clients {
            client.send(&pattern(len, len)).await.unwrap();
            let n = timeout(PATIENCE, client.recv(&mut buffer))
                .await
                .expect("in time")
                .unwrap();
            assert!(buffer[..n] == pattern(len, len), "{len} bytes");
        }
    }
    // A train leaves a public socket as single datagrams.
    let remote = clients[0].local_addr().unwrap();
    running
        .call(move |toy| {
            let path = Path { remote, local_ip: None };
            let socket = UdpSocketRef::Public(ListenerId::from_parts(3, 1));
            for len in [20, 20, 20, 0] {
                toy.transmit(socket, Some(path), pattern(0, len));
            }
        })
        .await;
    for len in [20, 20, 20, 0] {
        let n = timeout(PATIENCE, clients[0].recv(&mut buffer))
            .await
            .expect("in time")
            .unwrap();
        assert_eq!(n, len);
    }
    let stats = running.stop().await.stats;
    assert_eq!(stats.udp_tx_datagrams, stats.udp_rx_datagrams + 4);
}

#[tokio::test]
async fn a_local_socket_reaches_its_target_at_once() {
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut running = Running::start(Toy::default());
    for (index, name) in ["127.0.0.1", "localhost"].into_iter().enumerate() {
        let id = udp_id(index as u32);
        let target = Target::Host {
            host: name.into(),
            port: far.local_addr().unwrap().port(),
        };
        running
            .call(move |toy| toy.act(Action::DialUdp { socket: id, target }))
            .await;
        assert_eq!(running.told().await, Told::UdpConnected(id));
        running
            .call(move |toy| toy.transmit(UdpSocketRef::Local(id), None, b"ask".to_vec()))
            .await;
        let mut buffer = [0; 16];
        let (n, from) = timeout(PATIENCE, far.recv_from(&mut buffer))
            .await
            .expect("in time")
            .unwrap();
        assert_eq!(&buffer[..n], b"ask");
        far.send_to(b"", from).await.unwrap();
        far.send_to(b"answer", from).await.unwrap();
        assert_eq!(running.told().await, Told::Local(Vec::new()));
        assert_eq!(running.told().await, Told::Local(b"answer".to_vec()));
        running.call(move |toy| toy.act(Action::CloseUdp { socket: id })).await;
        running
            .call(move |toy| toy.transmit(UdpSocketRef::Local(id), None, b"late".to_vec()))
            .await;
    }
    assert_eq!(running.stop().await.stats.udp_tx_drops, 2);
}

#[tokio::test]
async fn a_local_target_may_start_late() {
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = far.local_addr().unwrap();
    drop(far);
    let mut running = Running::start(Toy::default());
    let (id, target) = (udp_id(0), host(addr));
    running
        .call(move |toy| toy.act(Action::DialUdp { socket: id, target }))
        .await;
    assert_eq!(running.told().await, Told::UdpConnected(id));
    let ask = move |toy: &mut Toy| toy.transmit(UdpSocketRef::Local(id), None, b"ask".to_vec());
    for _ in 0..3 {
        running.call(ask).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let far = UdpSocket::bind(addr).await.unwrap();
    running.call(ask).await;
    let mut buffer = [0; 16];
    let n = timeout(PATIENCE, far.recv(&mut buffer))
        .await
        .expect("in time")
        .unwrap();
    assert_eq!(&buffer[..n], b"ask");
    assert_eq!(running.handle.stats().dial_failures, 0);
}

#[tokio::test]
async fn a_local_socket_that_cannot_be_opened_is_told() {
    let mut running = Running::start(Toy::default());
    let unresolvable = Target::Host {
        host: "portal-test.invalid".into(),
        port: 1,
    };
    for (target, error) in [
        (unresolvable, DialError::Unresolved),
        (Target::Unix("/nowhere".into()), DialError::Unsupported),
    ] {
        let socket = udp_id(0);
        running
            .call(move |toy| toy.act(Action::DialUdp { socket, target }))
            .await;
        assert_eq!(running.told().await, Told::UdpFailed(error));
    }
}
