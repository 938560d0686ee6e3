//! Time, calls, look-ups and the end.

mod toy;

use std::io;
use std::time::Duration;

use portal_core::{Action, Target, Transport};
use portal_runtime_tokio::{Handlers, Settings, Stopped};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use toy::{PATIENCE, Running, Told, Toy};

const MINUTE: Duration = Duration::from_secs(60);

/// tokio's timers have this resolution.
const TICK: Duration = Duration::from_millis(2);

async fn told_timeout(running: &mut Running) -> Instant {
    match running.events.recv().await {
        Some(Told::Timeout(at)) => Instant::from_std(at),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_honoured() {
    let start = Instant::now();
    let toy = Toy {
        deadline: Some((start + 60 * MINUTE).into_std()),
        ..Toy::default()
    };
    let mut running = Running::start(toy);
    let at = told_timeout(&mut running).await;
    assert!(at >= start + 60 * MINUTE && at <= start + 60 * MINUTE + TICK);
    let finished = running.stop().await;
    assert_eq!(finished.machine.timeouts.len(), 1);
    assert!(finished.stats.turns < 10, "the driver slept");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_may_move() {
    let start = Instant::now();
    let set = move |minutes: u32| move |toy: &mut Toy| toy.deadline = Some((start + minutes * MINUTE).into_std());
    let mut running = Running::start(Toy::default());
    running.call(set(30)).await;
    running.call(set(10)).await;
    let at = told_timeout(&mut running).await;
    assert!(at >= start + 10 * MINUTE && at <= start + 10 * MINUTE + TICK);

    running.call(set(20)).await;
    running.call(set(40)).await;
    let at = told_timeout(&mut running).await;
    assert!(at >= start + 40 * MINUTE && at <= start + 40 * MINUTE + TICK);

    // In the past: at once.
    running.call(set(1)).await;
    let before = Instant::now();
    assert!(told_timeout(&mut running).await <= before + TICK);
}

#[tokio::test(start_paused = true)]
async fn a_suspended_host_needs_one_call() {
    let start = Instant::now();
    let mut running = Running::start(Toy::default());
    running
        .call(move |toy| toy.deadline = Some((start + MINUTE).into_std()))
        .await;
    tokio::time::advance(600 * MINUTE).await;
    assert!(told_timeout(&mut running).await >= start + 600 * MINUTE);
    assert_eq!(running.call(|toy| toy.timeouts.len()).await, 1);
}

#[tokio::test]
async fn calls_come_back_until_the_end() {
    let running = Running::start(Toy::default());
    let handle = running.handle.clone();
    let calls = (0..1000).map(|n| {
        let handle = handle.clone();
        tokio::spawn(async move {
            handle
                .call(move |toy, _| {
                    toy.resolves += 1;
                    n
                })
                .await
        })
    });
    for (n, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), Ok(n));
    }
    let finished = running.stop().await;
    assert!(finished.clean);
    assert_eq!(finished.machine.resolves, 1000);
    assert_eq!(handle.call(|_, _| ()).await, Err(Stopped));
    assert_eq!(handle.stats(), finished.stats);
}

#[tokio::test]
async fn a_driver_without_handles_goes_on() {
    let (running, addr) = Running::listening(Toy::default(), Settings::default(), Handlers::new()).await;
    let Running {
        handle, events, task, ..
    } = running;
    drop((handle, events));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    // Whether a reset or an end of file: the socket is closed, and so is the listener.
    assert!(matches!(stream.read(&mut back).await, Ok(0) | Err(_)));
    let error = TcpStream::connect(addr).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn events_nobody_takes_are_dropped_and_counted() {
    let settings = Settings {
        event_queue: 4,
        ..Settings::default()
    };
    let mut running = Running::start_with(Toy::default(), "127.0.0.1:0", settings, Handlers::new());
    running
        .call(|toy| (0..10).for_each(|_| toy.act(Action::Event(Told::Local(Vec::new())))))
        .await;
    running.call(|_| ()).await;
    assert_eq!(running.handle.stats().event_drops, 6);
    for _ in 0..4 {
        assert!(running.events.try_recv().is_some());
    }
    assert!(running.events.try_recv().is_none());
}

#[tokio::test]
async fn names_are_resolved_once_at_a_time() {
    let mut running = Running::start(Toy::default());
    let resolve = |host: &'static str| {
        move |toy: &mut Toy| {
            for _ in 0..3 {
                toy.act(Action::Resolve {
                    host: host.into(),
                    port: 7,
                });
            }
        }
    };
    running.call(resolve("portal-test.invalid")).await;
    let nothing = Told::Resolved("portal-test.invalid".into(), Vec::new());
    assert_eq!(running.told().await, nothing);

    running.call(resolve("::1")).await;
    let literal = Told::Resolved("::1".into(), vec!["[::1]:7".parse().unwrap()]);
    for _ in 0..3 {
        assert_eq!(running.told().await, literal);
    }

    running.call(resolve("localhost")).await;
    let Told::Resolved(_, addrs) = running.told().await else {
        panic!("an answer");
    };
    assert!(!addrs.is_empty() && addrs.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 7));
    assert_eq!(running.call(|toy| toy.resolves).await, 5);
}

#[tokio::test]
async fn a_shutdown_waits_for_open_streams() {
    let (running, addr) = Running::listening(Toy::default(), Settings::default(), Handlers::new()).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    running.until(|toy| toy.open_streams() == 1).await;
    running.handle.shutdown();
    running.call(|_| ()).await;
    let error = TcpStream::connect(addr).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    // A listener asked for now is refused.
    running
        .call(|toy| {
            toy.listen(5, "127.0.0.1:0", Transport::Tcp);
        })
        .await;

    stream.write_all(b"still here").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"still here");
    let finished = timeout(PATIENCE, running.task).await.expect("ends").unwrap();
    assert!(finished.clean);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_when_patience_does() {
    let toy = Toy {
        never_finished: true,
        ..Toy::default()
    };
    let running = Running::start(toy);
    running.call(|_| ()).await;
    let start = Instant::now();
    running.handle.shutdown();
    let finished = running.task.await.unwrap();
    let grace = Settings::default().shutdown_grace;
    assert!(start.elapsed() >= grace && start.elapsed() <= grace + TICK);
    assert!(!finished.clean);
}

#[tokio::test(start_paused = true)]
async fn a_second_shutdown_ends_at_once() {
    let toy = Toy {
        never_finished: true,
        ..Toy::default()
    };
    let running = Running::start(toy);
    running.call(|_| ()).await;
    let start = Instant::now();
    running.handle.shutdown();
    running.call(|_| ()).await;
    running.handle.shutdown();
    assert!(!running.task.await.unwrap().clean);
    assert!(start.elapsed() <= TICK);
}

#[tokio::test]
async fn the_last_words_are_sent() {
    let a = Running::start(Toy::default());
    let b = Running::start(Toy::default());
    let addr = b.tunnel;
    let handle = a.handle.clone();
    a.call(move |toy| {
        toy.send(addr, b"goodbye".to_vec());
        handle.shutdown();
    })
    .await;
    assert!(timeout(PATIENCE, a.task).await.expect("ends").unwrap().clean);
    b.until(|toy| toy.received.len() == 1).await;
}

#[tokio::test]
async fn what_was_spawned_ends_with_the_driver() {
    let (ended, mut end) = tokio::sync::mpsc::channel(1);
    let handlers = Handlers::new().with("watch", move |mut stream| {
        let ended = ended.clone();
        tokio::spawn(async move {
            let _ = stream.read(&mut [0; 16]).await;
            let _ = ended.send(()).await;
        });
    });
    let mut running = Running::start_with(Toy::default(), "127.0.0.1:0", Settings::default(), handlers);
    running.call(|toy| toy.dial(Target::Handler("watch".into()))).await;
    assert!(matches!(running.told().await, Told::Connected(_)));
    running.handle.shutdown();
    running.handle.shutdown();
    assert!(!running.task.await.unwrap().clean);
    timeout(PATIENCE, end.recv())
        .await
        .expect("the handler sees it")
        .unwrap();
}
