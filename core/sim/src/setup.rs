//! The usual relay, agent and service, so that tests only say what is special.

use std::net::SocketAddr;

use portal_core::identity::SecretKey;
use portal_core::{Access, AgentConfig, Kind, RelayConfig, Service, Target};

/// Where visitors of tests come from.
pub const VISITOR_ADDR: &str = "198.51.100.9:1234";

/// The domain of every relay.
pub const DOMAIN: &str = "tunnel.test";

/// The tunnel socket of relay number `relay`.
#[must_use]
pub fn relay_addr(relay: usize) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1 + low_byte(relay)], 51820))
}

/// The address that agent number `agent` begins with, as others see it.
#[must_use]
pub fn agent_addr(agent: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7 + low_byte(agent)], 40000))
}

/// The address that plain peer number `plain` begins with.
#[must_use]
pub fn plain_addr(plain: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 101 + low_byte(plain)], 51820))
}

/// A key that is the same in every run.
#[must_use]
pub fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

/// The key of relay number `relay`.
#[must_use]
pub fn relay_key(relay: usize) -> SecretKey {
    key(0x10 + low_byte(relay))
}

/// The key of agent number `agent`.
#[must_use]
pub fn agent_key(agent: usize) -> SecretKey {
    key(0x40 + low_byte(agent))
}

/// Relay number `relay`: every kind of ingress, and open to all.
#[must_use]
pub fn relay_config(relay: usize) -> RelayConfig {
    let at = |port| Some(SocketAddr::new(relay_addr(relay).ip(), port));
    let mut config = RelayConfig::new(relay_key(relay), [1 + low_byte(relay); 32], DOMAIN.into());
    config.http = at(80);
    config.https = at(443);
    config.ports = Some(20_000..=20_099);
    config.ports_ip = relay_addr(relay).ip();
    config.access = Access::Open;
    config
}

/// Agent number `agent` of relay number `relay`.
#[must_use]
pub fn agent_config(agent: usize, relay: usize, services: Vec<Service>) -> AgentConfig {
    let key = relay_key(relay).public_key().url_safe();
    let uri = format!("portal://{key}@relay{relay}.test:51820");
    let uri = uri.parse().expect("a well-formed URI");
    let mut config = AgentConfig::new(agent_key(agent), [0x80 + low_byte(agent); 32], uri);
    config.services = services;
    config.name = format!("agent {agent}");
    config
}

/// A service on `port` of the agent's own host. Kinds with a name ask for "web".
#[must_use]
pub fn service(kind: Kind, port: u16) -> Service {
    let target = Target::Host {
        host: "127.0.0.1".into(),
        port,
    };
    Service {
        name: matches!(kind, Kind::Http | Kind::Https | Kind::Tls).then(|| "web".into()),
        ..Service::new(kind.to_string(), kind, target)
    }
}

fn low_byte(number: usize) -> u8 {
    u8::try_from(number % 32).unwrap_or(0)
}
