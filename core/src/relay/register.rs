//! Registrations: what an agent asks for, and the lease or the refusal it gets.

use std::io;
use std::net::SocketAddr;

use super::access::Refusal;
use super::ingress::{Ingress, Role, Way};
use super::leases::{Lease, LeaseId, Place, Via};
use super::{Relay, RelayEvent};
use crate::control::{Kind, RefusalCode, ToAgent};
use crate::identity::PublicKey;
use crate::node::End;
use crate::stack::FlowId;

/// An agent's own name for a service is shown in logs and kept with ports.
const MAX_SERVICE_ID: usize = 128;

impl Relay {
    /// The port of a lease is open: the agent is told.
    pub(super) fn announce(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get_mut(id) else {
            return;
        };
        lease.active = true;
        let granted = ToAgent::Granted {
            id: lease.service.clone(),
            lease: id.number(),
            public: lease.public.clone(),
            service_port: lease.service_port,
        };
        let event = RelayEvent::Leased {
            key: lease.key,
            service: lease.service.clone(),
            kind: lease.kind,
            public: lease.public.clone(),
        };
        let flow = self.sessions.greeted.get(&lease.peer).copied();
        self.node.resources.counters.leases_granted += 1;
        self.node.event(event);
        if let Some(flow) = flow {
            self.send(flow, &granted);
        }
    }

    /// The port of a lease could not be opened: the agent gets another one, or a refusal if it asked for this one.
    pub(super) fn port_failed(&mut self, id: LeaseId, error: io::ErrorKind) {
        let Some(lease) = self.leases.get_mut(id) else {
            return;
        };
        lease.listener = None;
        if lease.via != Via::Agent {
            return self.plain_port_failed(id, error);
        }
        let (peer, service, kind, asked) = (lease.peer, lease.service.clone(), lease.kind, lease.asked.1);
        let Place::Port(transport, port) = lease.place else {
            return;
        };
        self.leases.port_is_busy(transport, port, &mut self.node.resources);
        self.drop_lease(id);
        let Some(&flow) = self.sessions.greeted.get(&peer) else {
            return;
        };
        let Some(session) = self.sessions.session_mut(peer) else {
            return;
        };
        session.leases.remove(&id);
        let key = session.key;
        let failed = format!("{transport} port {port} cannot be opened on the relay ({error})");
        // Another port is as good, unless this one was asked for.
        let refusal = match asked {
            Some(_) => Some(failed),
            None => self
                .register(flow, &service, kind, None, None)
                .err()
                .map(|refusal| format!("{failed}; {}", refusal.message)),
        };
        if let Some(message) = refusal {
            self.refuse(flow, key, &service, &Refusal::new(RefusalCode::PortBusy, message));
        }
    }

    pub(super) fn register(
        &mut self,
        flow: FlowId,
        service: &str,
        kind: Kind,
        name: Option<&str>,
        port: Option<u16>,
    ) -> Result<(), Refusal> {
        let Some(conversation) = self.sessions.channels.get(&flow) else {
            return Ok(());
        };
        let (peer, Some(session)) = (conversation.peer, &conversation.session) else {
            return Ok(());
        };
        let key = session.key;
        let leases = session.leases.iter().filter_map(|&id| self.leases.get(id));
        let taken = leases.map(|lease| lease.service_port).collect();
        if session.leases.len() >= self.config.leases_per_key {
            let message = format!(
                "this agent has {} services already, as many as it may",
                session.leases.len()
            );
            return Err(Refusal::new(RefusalCode::LimitReached, message));
        }
        if service.len() > MAX_SERVICE_ID {
            return Err(Refusal::new(
                RefusalCode::NameInvalid,
                "a service's own name may have 128 bytes",
            ));
        }
        self.config.access.allows(&key, kind, name, port)?;
        let (place, binding) = match Way::of(kind) {
            Way::Shared(ingress) => {
                self.shared_port(kind, ingress)?;
                self.leases
                    .pick_name(ingress, &key, service, name, &mut self.node.resources)?
            }
            Way::Port(transport) => {
                let range = self.config.ports.clone().ok_or_else(|| {
                    Refusal::new(
                        RefusalCode::KindUnavailable,
                        format!(
                            "this relay gives out no ports, so it has none for the kind {kind}: start it with --ports"
                        ),
                    )
                })?;
                self.leases
                    .pick_port(transport, &key, service, port, &range, &mut self.node.resources)?
            }
        };
        if let Some(binding) = binding {
            self.node.event(RelayEvent::Bound(binding));
        }
        let public = self.public_address(kind, &place)?;
        let Some(service_port) = self.sessions.service_port(peer, &taken) else {
            return Ok(());
        };
        let lease = Lease {
            peer,
            key,
            service: service.to_owned(),
            kind,
            asked: (name.map(str::to_owned), port),
            place: place.clone(),
            service_port,
            via: Via::Agent,
            public,
            listener: None,
            active: false,
            visitors: 0,
        };
        let id = self.leases.insert(lease, &mut self.node.resources)?;
        if let Some(session) = self.sessions.session_mut(peer) {
            session.leases.insert(id);
        }
        match place {
            Place::Name(..) => self.announce(id),
            Place::Port(transport, port) => {
                let addr = SocketAddr::new(self.config.ports_ip, port);
                let listener = self.listen(Role::Port(id), addr, transport);
                if let Some(lease) = self.leases.get_mut(id) {
                    lease.listener = listener;
                }
            }
        }
        Ok(())
    }

    /// Ends the leases that the grants do not cover any more, and their visitors.
    pub(super) fn revoke_uncovered(&mut self) {
        let uncovered: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.via == Via::Agent)
            .filter_map(|(id, lease)| {
                let (name, port) = (lease.asked.0.as_deref(), lease.asked.1);
                let refusal = self.config.access.allows(&lease.key, lease.kind, name, port).err()?;
                Some((id, refusal))
            })
            .collect();
        for (id, refusal) in uncovered {
            let Some(lease) = self.drop_lease(id) else { continue };
            if let Some(session) = self.sessions.session_mut(lease.peer) {
                session.leases.remove(&id);
            }
            for visitor in self.node.streams_where(|visitor| visitor.lease == Some(id)) {
                self.node.drop_stream(visitor, End::Dropped);
            }
            let Some(&flow) = self.sessions.greeted.get(&lease.peer) else {
                continue;
            };
            if lease.active {
                let (code, message) = (refusal.code, refusal.message);
                let lease = id.number();
                self.send(flow, &ToAgent::Revoked { lease, code, message });
            } else {
                // The agent knows of no such lease: it waits for the answer to its question.
                self.refuse(flow, lease.key, &lease.service, &refusal);
            }
        }
    }

    fn shared_port(&self, kind: Kind, ingress: Ingress) -> Result<u16, Refusal> {
        let (addr, flag) = match ingress {
            Ingress::Https => (self.config.https, "--https"),
            Ingress::Http => (self.config.http, "--http"),
        };
        addr.map(|addr| addr.port()).ok_or_else(|| {
            Refusal::new(
                RefusalCode::KindUnavailable,
                format!("this relay does not take {kind} visitors: start it with {flag}"),
            )
        })
    }

    pub(super) fn public_address(&self, kind: Kind, place: &Place) -> Result<String, Refusal> {
        let domain = &self.config.domain;
        Ok(match place {
            Place::Port(transport, port) => format!("{transport}://{domain}:{port}"),
            Place::Name(ingress, name) => {
                let usual = match ingress {
                    Ingress::Https => 443,
                    Ingress::Http => 80,
                };
                match self.shared_port(kind, *ingress)? {
                    port if port == usual => format!("{ingress}://{name}.{domain}/"),
                    port => format!("{ingress}://{name}.{domain}:{port}/"),
                }
            }
        })
    }

    pub(super) fn refuse(&mut self, flow: FlowId, key: PublicKey, service: &str, refusal: &Refusal) {
        self.node.resources.counters.leases_refused += 1;
        let (code, message) = (refusal.code.clone(), refusal.message.clone());
        self.node.event(RelayEvent::Refused {
            key,
            service: service.to_owned(),
            code: code.clone(),
            message: message.clone(),
        });
        self.send(
            flow,
            &ToAgent::Refused {
                id: service.to_owned(),
                code,
                message,
            },
        );
    }

    pub(super) fn drop_lease(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(id, &mut self.node.resources)?;
        if let Some(listener) = lease.listener {
            self.associations.forget(listener, &mut self.node.resources);
            self.unlisten(listener);
        }
        Some(lease)
    }
}
