// A relay on loopback, in this process. Included by the example of `service` too, so it takes no inner attributes.

use portal_core::identity::SecretKey;
use portal_core::uri::RelayUri;
use portal_core::{Access, Census, Ingress, Relay, RelayConfig, RelayEvent};
use portal_runtime_tokio::{Driver, Events, Handle, Handlers, Settings};

pub struct TestRelay {
    pub uri: RelayUri,
    /// Where HTTP visitors come in.
    pub http: std::net::SocketAddr,
    /// What it gives out.
    pub ports: std::ops::RangeInclusive<u16>,
    handle: Handle<Relay>,
    running: tokio::task::JoinHandle<()>,
    _events: Events<RelayEvent>,
}

impl TestRelay {
    pub async fn start() -> Self {
        Self::start_for(Access::Open).await
    }

    pub async fn start_for(access: Access) -> Self {
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_at(any, any, ports_of_its_own(), access).await
    }

    /// With its tunnel at `udp`, HTTP visitors at `http`, and these ports to give out.
    pub async fn start_at(
        udp: std::net::SocketAddr,
        http: std::net::SocketAddr,
        ports: std::ops::RangeInclusive<u16>,
        access: Access,
    ) -> Self {
        let socket = std::net::UdpSocket::bind(udp).unwrap();
        let secret = SecretKey::from_bytes([1; 32]);
        let uri = RelayUri {
            key: secret.public_key(),
            host: "127.0.0.1".into(),
            port: socket.local_addr().unwrap().port(),
        };
        let mut config = RelayConfig::new(secret, [1; 32], "localhost".into());
        config.http = Some(http);
        config.ports = Some(ports.clone());
        config.ports_ip = [127, 0, 0, 1].into();
        config.access = access;
        let now = tokio::time::Instant::now().into_std();
        let (driver, handle, mut events) =
            Driver::new(Relay::new(now, config), socket, Settings::default(), Handlers::new()).unwrap();
        let running = tokio::spawn(async move {
            driver.run().await;
        });
        let http = loop {
            match events.recv().await.expect("the relay runs") {
                RelayEvent::Listening {
                    ingress: Ingress::Http,
                    local,
                } => break local,
                event => assert!(!matches!(event, RelayEvent::ListenFailed { .. }), "{event:?}"),
            }
        };
        Self {
            uri,
            http,
            ports,
            handle,
            running,
            _events: events,
        }
    }

    /// Ends it at once, as a crash would: nobody is told.
    pub async fn kill(self) {
        self.running.abort();
        self.running.await.expect_err("it was cut");
    }

    pub async fn census(&self) -> Census {
        let census = self.handle.call(|relay, _| {
            relay.check_invariants();
            relay.census()
        });
        census.await.unwrap()
    }

    /// The body of the page at the root of a host.
    pub async fn get(&self, host: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = tokio::net::TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer of HTTP");
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        body.to_owned()
    }
}

/// Ports that no other relay of this process has, below those that the system gives out by itself.
fn ports_of_its_own() -> std::ops::RangeInclusive<u16> {
    static RELAYS: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let number = RELAYS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let first = 21_000 + 50 * number;
    first..=first + 49
}
