//! The core's own machines over real sockets on loopback.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use portal_core::identity::SecretKey;
use portal_core::{
    Access, Agent, AgentConfig, AgentEvent, Ingress, Kind, Relay, RelayConfig, RelayEvent, Service, Target,
};
use portal_runtime_tokio::{Driver, Events, Handle, Handlers, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    relay: Handle<Relay>,
    agent: Handle<Agent>,
    public: String,
    http: SocketAddr,
    _events: (Events<RelayEvent>, Events<AgentEvent>),
}

/// A relay and an agent with one service, up to the lease.
async fn start(kind: Kind, target: Target, handlers: Handlers) -> Running {
    let key = |byte| SecretKey::from_bytes([byte; 32]);
    let (relay_socket, agent_socket) = (
        UdpSocket::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    let uri = format!(
        "portal://{}@{}",
        key(1).public_key().url_safe(),
        relay_socket.local_addr().unwrap()
    );
    let mut config = RelayConfig::new(key(1), [1; 32], "localhost".into());
    config.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config.ports = Some(42_000..=43_999);
    config.ports_ip = [127, 0, 0, 1].into();
    config.access = Access::Open;
    let now = tokio::time::Instant::now().into_std();
    let (driver, relay, mut relay_events) = Driver::new(
        Relay::new(now, config),
        relay_socket,
        Settings::default(),
        Handlers::new(),
    )
    .unwrap();
    tokio::spawn(driver.run());
    let http = loop {
        match relay_events.recv().await.expect("the relay runs") {
            RelayEvent::Listening {
                ingress: Ingress::Http,
                local,
            } => break local,
            event => assert!(!matches!(event, RelayEvent::ListenFailed { .. }), "{event:?}"),
        }
    };
    let mut config = AgentConfig::new(key(2), [2; 32], uri.parse().unwrap());
    config.services.push(Service::new("it", kind, target));
    let (driver, agent, mut agent_events) =
        Driver::new(Agent::new(now, config), agent_socket, Settings::default(), handlers).unwrap();
    tokio::spawn(driver.run());
    let public = loop {
        if let AgentEvent::Granted { public, .. } = agent_events.recv().await.expect("the agent runs") {
            break public;
        }
    };
    Running {
        relay,
        agent,
        public,
        http,
        _events: (relay_events, agent_events),
    }
}

/// A TCP server that sends back what it gets, and says FIN when it was told so.
async fn echo_server() -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    Target::Host {
        host: addr.ip().to_string(),
        port: addr.port(),
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

async fn visit(running: &Running) -> TcpStream {
    let port: u16 = running.public.rsplit(':').next().unwrap().parse().unwrap();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

#[tokio::test]
async fn megabytes_come_back_byte_for_byte_and_half_close_is_kept() {
    let work = async {
        let running = start(Kind::Tcp, echo_server().await, Handlers::new()).await;
        let (mut read, mut write) = visit(&running).await.into_split();
        let bytes = pattern(32 << 20);
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        writer.await.unwrap();
        assert!(
            received == bytes,
            "{} of {} bytes came back",
            received.len(),
            bytes.len()
        );
        running.relay.call(|relay, _| relay.check_invariants()).await.unwrap();
        running.agent.call(|agent, _| agent.check_invariants()).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, work).await.expect("in time");
}

#[tokio::test]
async fn a_handler_serves_http_without_a_port() {
    let work = async {
        let handlers = Handlers::new().with("hello", |mut stream: tokio::net::UnixStream| {
            tokio::spawn(async move {
                let mut head = vec![0; 1000];
                let len = stream.read(&mut head).await.unwrap();
                assert!(head[..len].starts_with(b"GET /x HTTP/1.1"));
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello")
                    .await
                    .unwrap();
            });
        });
        let running = start(Kind::Http, Target::Handler("hello".into()), handlers).await;
        let host = running
            .public
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let mut socket = TcpStream::connect(running.http).await.unwrap();
        let request = format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
    };
    tokio::time::timeout(PATIENCE, work).await.expect("in time");
}

#[tokio::test]
async fn five_hundred_visitors_at_once() {
    let work = async {
        let running = start(Kind::Tcp, echo_server().await, Handlers::new()).await;
        let mut visitors = Vec::new();
        for number in 0..500 {
            visitors.push((number, visit(&running).await));
        }
        let mut tasks = tokio::task::JoinSet::new();
        for (number, mut socket) in visitors {
            tasks.spawn(async move {
                let bytes = format!("visitor {number} ").repeat(50);
                socket.write_all(bytes.as_bytes()).await.unwrap();
                socket.shutdown().await.unwrap();
                let mut answer = String::new();
                socket.read_to_string(&mut answer).await.unwrap();
                assert_eq!(answer, bytes);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let census = running.relay.call(|relay, _| relay.census()).await.unwrap();
        assert_eq!(census.visitors, 0);
    };
    tokio::time::timeout(PATIENCE, work).await.expect("in time");
}
