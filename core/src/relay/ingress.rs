//! Visitors: from an accepted connection to the lease it is for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::leases::{LeaseId, Place, Via};
use super::{Relay, listener_key};
use crate::budget::BufferClass;
use crate::control::Kind;
use crate::http;
use crate::identity::PublicKey;
use crate::machine::{ListenerId, StreamId, Transport};
use crate::node::{End, Stream};
use crate::proxy::ProxyHeader;
use crate::sni;
use crate::stack::Owner;
use crate::wg::source_prefix;

/// The shared listeners of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ingress {
    /// Plain HTTP, by Host.
    Http,
    /// TLS, by server name.
    Https,
}

impl fmt::Display for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// How visitors of a kind of service come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// By the name that they ask for.
    Shared(Ingress),
    /// By a port of its own.
    Port(Transport),
}

impl Way {
    pub(super) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Http => Self::Shared(Ingress::Http),
            Kind::Https | Kind::Tls => Self::Shared(Ingress::Https),
            Kind::Tcp => Self::Port(Transport::Tcp),
            Kind::Udp => Self::Port(Transport::Udp),
        }
    }
}

/// A public socket.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) role: Role,
    pub(super) addr: SocketAddr,
    /// The system has opened it.
    pub(super) open: bool,
}

/// Whom a public socket's visitors are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// For the lease they name.
    Shared(Ingress),
    /// For this lease.
    Port(LeaseId),
    /// They are operators.
    Admin,
}

/// What a relay keeps with a visitor's connection.
#[derive(Debug)]
pub struct Visitor {
    /// What counts as one source for the limit.
    pub(super) source: IpAddr,
    pub(super) remote: SocketAddr,
    local: SocketAddr,
    /// That of the socket to which it came.
    role: Role,
    /// The lease it was matched to, which may have ended since.
    pub(super) lease: Option<LeaseId>,
    /// The key for whose bounds it counts, once it is carried.
    pub(super) key: Option<PublicKey>,
    /// Its public address.
    pub(super) public: String,
}

/// What a visitor asked for, found in its first bytes.
#[derive(Default)]
struct Wish {
    name: String,
    authority: Option<String>,
    alpn: Option<Vec<u8>>,
}

/// How long a visitor may take to say what it wants.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// For how long the first bytes of a visitor at a port are waited for, in parts of a round trip to the agent, and at most: who
/// speaks first does so at once, and its bytes then travel with the flow's SYN. Whoever waits to be spoken to loses that.
const FIRST_BYTES_PART: u32 = 8;
const FIRST_BYTES_AT_MOST: Duration = Duration::from_millis(4);
/// Over a shorter path there is nothing to be gained: timers are no finer.
const FIRST_BYTES_AT_LEAST: Duration = Duration::from_millis(1);
/// How many bytes they are at most: about what a SYN has room for.
const FIRST_BYTES: usize = 1024;

impl Relay {
    pub(super) fn accept_visitor(
        &mut self,
        now: Instant,
        listener: ListenerId,
        remote: SocketAddr,
        local: SocketAddr,
    ) -> Option<StreamId> {
        let role = self.listeners.get(listener_key(listener))?.role;
        let (limit, patience) = match role {
            Role::Admin => return self.node.accept_operator(now),
            Role::Shared(Ingress::Http) => (http::MAX_LEN, HEAD_DEADLINE),
            Role::Shared(Ingress::Https) => (sni::MAX_LEN, HEAD_DEADLINE),
            Role::Port(lease) => match self.first_bytes_patience(lease) {
                Some(patience) => (FIRST_BYTES, patience),
                None => (0, Duration::ZERO),
            },
        };
        let source = source_prefix(remote.ip());
        let of_source = self.sources.get(&source).copied().unwrap_or(0);
        if of_source >= self.config.visitors_per_source {
            self.node.resources.counters.refused_visitor_source += 1;
            return None;
        }
        let visitor = Visitor {
            source,
            remote,
            local,
            role,
            lease: None,
            key: None,
            public: String::new(),
        };
        let id = self.node.insert_stream(Stream::with_head(visitor, limit))?;
        *self.sources.entry(source).or_default() += 1;
        self.node.resources.counters.visitors_accepted += 1;
        match role {
            Role::Port(lease) if limit == 0 => self.carry(now, id, lease, Wish::default()),
            _ => self.node.stream_deadlines.set(id, now + patience),
        }
        Some(id)
    }

    /// For how long the first bytes of a visitor at the port of a lease are waited for, if at all.
    fn first_bytes_patience(&self, lease: LeaseId) -> Option<Duration> {
        let lease = self.leases.get(lease).filter(|lease| lease.via == Via::Agent)?;
        let patience = self.node.stack.round_trip(lease.peer)? / FIRST_BYTES_PART;
        (patience >= FIRST_BYTES_AT_LEAST).then(|| patience.min(FIRST_BYTES_AT_MOST))
    }

    /// Looks at what a visitor has said so far and does what follows from it.
    pub(super) fn route(&mut self, now: Instant, id: StreamId) {
        let Some(stream) = self.node.stream(id) else {
            return;
        };
        let (Some(head), is_over) = (stream.head(), stream.head_is_over()) else {
            return;
        };
        let Some(role) = stream.data.as_ref().map(|visitor| visitor.role) else {
            return;
        };
        match role {
            Role::Shared(Ingress::Http) => match http::parse(head) {
                Ok(http::Parsed::Complete(request)) => self.route_http(now, id, &request),
                Ok(http::Parsed::Incomplete) if !is_over => {}
                Ok(http::Parsed::Incomplete) => self.refuse_head(id, None),
                Err(error) => {
                    let status = if matches!(error, http::HeadError::TooLong | http::HeadError::TooManyHeaders) {
                        (431, "Request Header Fields Too Large")
                    } else {
                        (400, "Bad Request")
                    };
                    let page = http::response(
                        status.0,
                        status.1,
                        &[],
                        &format!("{} {}: {error}\n", status.0, status.1),
                    );
                    self.refuse_head(id, Some(page));
                }
            },
            Role::Shared(Ingress::Https) => match sni::parse(head) {
                Ok(sni::Parsed::Complete(hello)) => self.route_tls(now, id, hello),
                Ok(sni::Parsed::Incomplete) if !is_over => {}
                Ok(sni::Parsed::Incomplete) | Err(_) => self.refuse_head(id, None),
            },
            Role::Port(lease) if !head.is_empty() || is_over => self.carry(now, id, lease, Wish::default()),
            Role::Port(_) | Role::Admin => {}
        }
    }

    fn route_http(&mut self, now: Instant, id: StreamId, request: &http::RequestHead) {
        let host = request.host.clone().unwrap_or_default();
        if let Some(lease) = self.named(Ingress::Http, &host) {
            let wish = Wish {
                name: host.clone(),
                authority: Some(host),
                alpn: None,
            };
            return self.carry(now, id, lease, wish);
        }
        let elsewhere = self
            .named(Ingress::Https, &host)
            .and_then(|lease| self.leases.get(lease));
        let page = match elsewhere {
            Some(lease) if lease.kind == Kind::Https => {
                // The other forms of a target name no path.
                let path = request.target.strip_prefix('/').unwrap_or_default();
                let location = format!("{}{path}", lease.public);
                let text = format!("308 Permanent Redirect: {}\n", lease.public);
                http::response(308, "Permanent Redirect", &[("location", &location)], &text)
            }
            _ => {
                self.node.resources.counters.drop_unknown_name += 1;
                let what = if host.is_empty() { "a name" } else { host.as_str() };
                let text = format!("404 Not Found: nothing is served under {what} here\n");
                http::response(404, "Not Found", &[], &text)
            }
        };
        self.node.answer(id, page);
    }

    fn route_tls(&mut self, now: Instant, id: StreamId, hello: sni::ClientHello) {
        let name = hello.server_name.unwrap_or_default();
        match self.named(Ingress::Https, &name) {
            Some(lease) => {
                let wish = Wish {
                    name: name.clone(),
                    authority: Some(name),
                    alpn: hello.alpn.into_iter().next(),
                };
                self.carry(now, id, lease, wish);
            }
            None => {
                self.node.resources.counters.drop_unknown_name += 1;
                self.node.answer(id, sni::ALERT_UNRECOGNIZED_NAME.to_vec());
            }
        }
    }

    /// The lease for a host name, or the only one where that answers to every name.
    fn named(&self, ingress: Ingress, host: &str) -> Option<LeaseId> {
        let label = self.label(host);
        let named = label.and_then(|label| self.leases.by_name(ingress, label));
        let sole = || {
            self.config
                .sole_lease_answers
                .then(|| self.leases.sole(ingress))
                .flatten()
        };
        named.or_else(sole)
    }

    /// The label under our domain that a host name has.
    fn label<'a>(&self, host: &'a str) -> Option<&'a str> {
        let label = host.strip_suffix(self.config.domain.as_str())?.strip_suffix('.')?;
        (!label.contains('.')).then_some(label)
    }

    /// Opens the flow for a visitor whose lease is known.
    fn carry(&mut self, now: Instant, id: StreamId, lease: LeaseId, wish: Wish) {
        let lease_id = lease;
        let Some(lease) = self.leases.get_mut(lease).filter(|lease| lease.active) else {
            return self.node.drop_stream(id, End::Dropped);
        };
        if lease.visitors >= self.config.visitors_per_lease {
            self.node.resources.counters.refused_visitor_lease += 1;
            return self.node.drop_stream(id, End::Dropped);
        }
        let lease_key = lease.key;
        let (peer, service_port, public, via) = (lease.peer, lease.service_port, lease.public.clone(), lease.via);
        let is_http = matches!(&lease.place, Place::Name(Ingress::Http, _));
        let on_broken = match &lease.place {
            Place::Name(Ingress::Http, _) => Some(http::bad_gateway as fn() -> Vec<u8>),
            Place::Name(Ingress::Https, _) => Some((|| sni::ALERT_INTERNAL_ERROR.to_vec()) as fn() -> Vec<u8>),
            Place::Port(..) => None,
        };
        let Some(overlay) = self.node.wg.overlay(peer) else {
            return self.node.drop_stream(id, End::Dropped);
        };
        let Some(visitor) = self.node.stream_mut(id).and_then(|stream| stream.data.as_mut()) else {
            return;
        };
        if !self.quotas.open(lease_key) {
            self.node.resources.counters.refused_visitor_key += 1;
            return self.node.drop_stream(id, End::Dropped);
        }
        visitor.public = public;
        visitor.lease = Some(lease_id);
        visitor.key = Some(lease_key);
        lease.visitors += 1;
        let (source, destination) = (visitor.remote, visitor.local);
        self.leases.came(lease_id);
        let mut unique_id = self.node.random.u64().to_be_bytes().to_vec();
        unique_id.extend(self.node.random.u64().to_be_bytes());
        let header = ProxyHeader {
            source,
            destination,
            authority: wish.authority.filter(|_| !wish.name.is_empty()),
            alpn: wish.alpn,
            unique_id: Some(unique_id),
        };
        let mut prefix = Vec::new();
        if via.takes_proxy_header() {
            header.encode(&mut prefix);
        }
        self.node.stream_deadlines.clear(id);
        let node = &mut self.node;
        match node.stack.connect(
            now,
            peer,
            overlay,
            service_port,
            Owner::Stream(id),
            BufferClass::LARGEST,
            &mut node.resources,
        ) {
            Ok(flow) => {
                self.node.meter(id, lease_key);
                self.node.join(id, flow, prefix, on_broken);
                self.await_plain_peer(now, id, peer);
            }
            Err(error) => {
                if is_http {
                    let text = format!("503 Service Unavailable: {error}\n");
                    self.node.answer(
                        id,
                        http::response(503, "Service Unavailable", &[("retry-after", "5")], &text),
                    );
                } else {
                    self.node.drop_stream(id, End::Dropped);
                }
            }
        }
    }

    /// Ends a visitor whose first bytes make no sense, with a page if it speaks HTTP.
    fn refuse_head(&mut self, id: StreamId, page: Option<Vec<u8>>) {
        self.node.resources.counters.drop_head_malformed += 1;
        match page {
            Some(page) => self.node.answer(id, page),
            None => self.node.drop_stream(id, End::Dropped),
        }
    }

    /// A visitor took too long to say what it wants, or to close after it was answered; or it waits to be spoken to.
    pub(super) fn visitor_overdue(&mut self, now: Instant, id: StreamId) {
        if self.node.operator_overdue(id) || self.node.rest_overdue(id) || self.plain_overdue(id) {
            return;
        }
        let Some(stream) = self.node.stream(id) else {
            return;
        };
        if let (Some(_), Some(Role::Port(lease))) = (stream.head(), stream.data.as_ref().map(|visitor| visitor.role)) {
            return self.carry(now, id, lease, Wish::default());
        }
        if !stream.is_answered() {
            self.node.resources.counters.drop_head_timeout += 1;
        }
        self.node.drop_stream(id, End::Dropped);
    }
}
