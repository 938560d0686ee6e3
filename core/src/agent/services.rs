//! What an agent offers, and which of it has a lease.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Agent, ServiceStatus};
use crate::control::{Kind, ToRelay};
use crate::machine::Target;
use crate::status::{Traffic, shortened};
use crate::tls::{TlsAcceptor, TlsConnector};

/// What an agent offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The agent's own name for it; unique among its services.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub target: Target,
    /// The name wished for.
    pub name: Option<String>,
    /// The port wished for.
    pub port: Option<u16>,
    /// What ends the visitors' TLS; needed for [`Kind::Https`], and not used for other kinds.
    pub tls: Option<TlsAcceptor>,
    /// What speaks TLS to the target; not for UDP.
    pub target_tls: Option<TlsConnector>,
    /// Whether connections to the target begin with a PROXY v2 header that names the visitor. Not for UDP.
    pub proxy: bool,
}

impl Service {
    /// A service without wishes.
    #[must_use]
    pub fn new(id: impl Into<String>, kind: Kind, target: Target) -> Self {
        Self {
            id: id.into(),
            kind,
            target,
            name: None,
            port: None,
            tls: None,
            target_tls: None,
            proxy: false,
        }
    }

    /// What the relay is asked for.
    fn wish(&self) -> Wish {
        (self.kind, self.name.clone(), self.port)
    }

    /// Whether a lease for the one is as good for the other.
    fn has_lease_of(&self, other: &Self) -> bool {
        self.id == other.id && self.wish() == other.wish()
    }
}

/// A kind, and the name and the port wished for.
type Wish = (Kind, Option<String>, Option<u16>);

/// The services, and the inner ports at which the flows of those with a lease arrive.
#[derive(Debug)]
pub(super) struct Services {
    offered: Vec<Offer>,
    leased: BTreeMap<u16, Leased>,
    /// What the relay was asked for and has not answered, by service, be it offered still or not. An answer names the
    /// service and not the wish, and answers need not come in the order of the questions: so none is asked for anew
    /// before.
    awaited: BTreeMap<String, Wish>,
    /// What was carried for all services there ever were, without the connections that are open now.
    carried: Traffic,
}

#[derive(Debug)]
struct Offer {
    service: Arc<Service>,
    /// Why the relay has refused a lease.
    refused: Option<String>,
    /// What was carried, without the connections that are open now.
    carried: Traffic,
}

#[derive(Debug)]
struct Leased {
    service: Arc<Service>,
    /// The lease's number at the relay.
    number: u64,
    /// How people reach it.
    public: String,
    /// What datagrams have carried. Moved to the offer when the lease ends.
    datagrams: Traffic,
}

impl Services {
    pub(super) fn new(offered: impl IntoIterator<Item = Service>) -> Self {
        Self {
            offered: offered.into_iter().map(Offer::new).collect(),
            leased: BTreeMap::new(),
            awaited: BTreeMap::new(),
            carried: Traffic::default(),
        }
    }

    /// The service whose flows arrive at an inner port.
    pub(super) fn at(&self, port: u16) -> Option<&Arc<Service>> {
        self.leased.get(&port).map(|leased| &leased.service)
    }

    pub(super) fn len(&self) -> usize {
        self.offered.len()
    }

    /// The services for people, each with what it has carried but for the connections that are open now.
    pub(super) fn status(&self) -> impl Iterator<Item = ServiceStatus> {
        let leases: BTreeMap<_, _> = self
            .leased
            .values()
            .map(|leased| (&leased.service.id, leased))
            .collect();
        self.offered.iter().map(move |offer| {
            let leased = leases.get(&offer.service.id);
            let datagrams = leased.map(|leased| leased.datagrams).unwrap_or_default();
            ServiceStatus {
                id: offer.service.id.clone(),
                kind: offer.service.kind,
                target: offer.service.target.to_string(),
                public: leased.map(|leased| leased.public.clone()),
                refused: offer.refused.clone(),
                connections: offer.carried.plus(datagrams),
            }
        })
    }

    /// What was carried in all.
    pub(super) fn carried(&self) -> Traffic {
        self.carried
    }

    /// A service's connection has ended.
    pub(super) fn carried_by(&mut self, id: &str, received: u64, sent: u64) {
        let traffic = Traffic {
            now: 0,
            total: 1,
            received,
            sent,
        };
        self.carried = self.carried.plus(traffic);
        self.add(id, traffic);
    }

    /// Datagrams were carried for the service at an inner port.
    pub(super) fn carried_at(&mut self, port: u16, traffic: Traffic) {
        if let Some(leased) = self.leased.get_mut(&port)
            && leased.service.kind == Kind::Udp
        {
            leased.datagrams = leased.datagrams.plus(traffic);
            self.carried = self.carried.plus(traffic);
        }
    }

    fn add(&mut self, id: &str, traffic: Traffic) {
        if let Some(offer) = self.offered.iter_mut().find(|offer| offer.service.id == id) {
            offer.carried = offer.carried.plus(traffic);
        }
    }

    /// Keeps what the datagrams of an ended lease have carried.
    fn keep(&mut self, leased: &Leased) {
        self.add(&leased.service.id, leased.datagrams);
    }

    /// Those that have no lease and for which none was asked. They count as asked for from now on.
    pub(super) fn next_to_ask(&mut self) -> Vec<Arc<Service>> {
        let Self {
            offered,
            leased,
            awaited,
            ..
        } = self;
        let has_lease = |id: &str| leased.values().any(|leased| leased.service.id == id);
        let mut to_ask = Vec::new();
        for Offer { service, .. } in offered {
            if !awaited.contains_key(&service.id) && !has_lease(&service.id) {
                awaited.insert(service.id.clone(), service.wish());
                to_ask.push(Arc::clone(service));
            }
        }
        to_ask
    }

    /// The relay has answered for a service. Returns the offer that the answer is for: `None` if there is none, or none
    /// any more that wishes what was asked for.
    fn answered(&mut self, id: &str) -> Option<&mut Offer> {
        let wish = self.awaited.remove(id);
        let offer = self.offered.iter_mut().find(|offer| offer.service.id == id)?;
        wish.is_none_or(|wish| wish == offer.service.wish()).then_some(offer)
    }

    /// The relay refuses a lease: it may be asked again. False if that is no news, as the service is gone or wishes
    /// something else by now.
    pub(super) fn refused(&mut self, id: &str, cause: &str) -> bool {
        let Some(offer) = self.answered(id) else {
            return false;
        };
        offer.refused = Some(shortened(cause.to_owned()));
        true
    }

    /// A service has a lease. Returns the inner port and number of the one it had before; `Err` if there is no such
    /// service.
    fn lease(&mut self, id: &str, port: u16, number: u64, public: &str) -> Result<Option<(u16, u64)>, NoSuchService> {
        let offer = self.answered(id).ok_or(NoSuchService)?;
        offer.refused = None;
        let service = Arc::clone(&offer.service);
        let before = self.leased.iter().find(|(_, leased)| leased.service.id == id);
        let before = before.map(|(&port, leased)| (port, leased.number));
        let mut leased = Leased {
            service,
            number,
            public: public.to_owned(),
            datagrams: Traffic::default(),
        };
        if let Some(old) = before.and_then(|(port, _)| self.leased.remove(&port)) {
            leased.datagrams = old.datagrams;
        }
        if let Some(other) = self.leased.insert(port, leased) {
            self.keep(&other);
        }
        Ok(before.filter(|&(_, before)| before != number))
    }

    /// A lease has ended. Returns its inner port and service.
    fn end_lease(&mut self, number: u64) -> Option<(u16, Arc<Service>)> {
        let (&port, _) = self.leased.iter().find(|(_, leased)| leased.number == number)?;
        let leased = self.leased.remove(&port)?;
        self.keep(&leased);
        Some((port, leased.service))
    }

    /// All leases are gone, and what was asked is forgotten. Returns their inner ports.
    fn end_leases(&mut self) -> impl Iterator<Item = u16> + use<> {
        self.awaited.clear();
        let leased = std::mem::take(&mut self.leased);
        for leased in leased.values() {
            self.keep(leased);
        }
        leased.into_keys()
    }

    /// Offers these from now on. Leases stay with the services that still want the same; returns the inner ports and
    /// numbers of the others.
    fn replace(&mut self, offered: Vec<Service>) -> Vec<(u16, u64)> {
        let before = std::mem::replace(&mut self.offered, offered.into_iter().map(Offer::new).collect());
        for offer in &mut self.offered {
            if let Some(old) = before.iter().find(|old| old.service.id == offer.service.id) {
                offer.carried = old.carried;
            }
        }
        let (mut ended, mut carried) = (Vec::new(), Vec::new());
        self.leased.retain(|&port, leased| {
            let heir = self
                .offered
                .iter()
                .find(|offer| offer.service.has_lease_of(&leased.service));
            match heir {
                Some(offer) => {
                    leased.service = Arc::clone(&offer.service);
                    true
                }
                None => {
                    ended.push((port, leased.number));
                    carried.push((leased.service.id.clone(), leased.datagrams));
                    false
                }
            }
        });
        for (id, traffic) in carried {
            self.add(&id, traffic);
        }
        ended
    }
}

impl Offer {
    fn new(service: Service) -> Self {
        Self {
            service: Arc::new(service),
            refused: None,
            carried: Traffic::default(),
        }
    }
}

/// The relay speaks of a service that is not offered (any more), or no longer as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NoSuchService;

impl Agent {
    /// The relay has given a service a lease.
    pub(super) fn leased(&mut self, id: &str, number: u64, port: u16, public: &str) -> bool {
        match self.services.lease(id, port, number, public) {
            Ok(before) => {
                if let Some((old, number)) = before {
                    // Asked for anew before the first answer was here: the later lease is the one that was meant.
                    self.give_back(old, number);
                }
                self.node.stack.serve(port, crate::budget::BufferClass::LARGEST);
                true
            }
            Err(NoSuchService) => {
                self.send(&ToRelay::Unregister { lease: number });
                self.register_missing();
                false
            }
        }
    }

    /// The relay has ended a lease. Returns the service that had it.
    pub(super) fn lease_ended(&mut self, number: u64) -> Option<Arc<Service>> {
        let (port, service) = self.services.end_lease(number)?;
        self.close_port(port);
        Some(service)
    }

    /// The relay knows of no lease any more.
    pub(super) fn leases_ended(&mut self) {
        for port in self.services.end_leases() {
            self.close_port(port);
        }
    }

    /// Puts other services in place of those offered so far, and settles it with the relay.
    pub(super) fn replace_services(&mut self, services: Vec<Service>) {
        for (port, number) in self.services.replace(services) {
            self.give_back(port, number);
        }
    }

    fn give_back(&mut self, port: u16, number: u64) {
        if self.services.at(port).is_none() {
            self.close_port(port);
        }
        self.send(&ToRelay::Unregister { lease: number });
    }

    /// No lease leads to an inner port any more. Connections go on; visitors by UDP would come by another port.
    fn close_port(&mut self, port: u16) {
        self.node.stack.unserve(port);
        self.associations.forget_port(&mut self.node, port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(id: &str, name: Option<&str>) -> Service {
        let target = Target::Handler(id.into());
        Service {
            name: name.map(Into::into),
            ..Service::new(id, Kind::Http, target)
        }
    }

    #[test]
    fn leases_stay_with_services_that_want_the_same() {
        let mut services = Services::new([service("a", None), service("b", None), service("c", None)]);
        for (number, id) in ["a", "b", "c"].into_iter().enumerate() {
            let port = 1024 + u16::try_from(number).unwrap();
            assert_eq!(services.lease(id, port, number as u64, "public"), Ok(None));
        }
        let moved = Service {
            target: Target::Handler("elsewhere".into()),
            ..service("a", None)
        };
        let ended = services.replace(vec![moved, service("b", Some("shop")), service("d", None)]);
        assert_eq!(ended, [(1025, 1), (1026, 2)], "one asks for another name, one is gone");
        let target = services.at(1024).map(|service| service.target.clone());
        assert_eq!(target, Some(Target::Handler("elsewhere".into())));
        let asked = |services: &mut Services| -> Vec<_> {
            services
                .next_to_ask()
                .iter()
                .map(|service| service.id.clone())
                .collect()
        };
        assert_eq!(asked(&mut services), ["b", "d"]);
        services.replace(vec![
            service("a", None),
            service("b", Some("shop")),
            service("d", Some("deli")),
        ]);
        assert!(
            asked(&mut services).is_empty(),
            "the answers for both are still to come"
        );
        assert!(services.refused("b", "no"));
        assert_eq!(asked(&mut services), ["b"]);
        assert!(!services.refused("d", "no"), "it wishes another name by now");
        assert_eq!(asked(&mut services), ["d"]);
        assert_eq!(services.lease("d", 1030, 9, "public"), Ok(None));
    }

    #[test]
    fn a_second_lease_replaces_the_first_and_a_stranger_gets_none() {
        let mut services = Services::new([service("a", None)]);
        assert_eq!(services.lease("a", 1024, 7, "public"), Ok(None));
        assert_eq!(services.lease("a", 1024, 7, "public"), Ok(None), "said again");
        assert_eq!(services.lease("a", 1025, 8, "public"), Ok(Some((1024, 7))));
        assert!(services.at(1024).is_none() && services.at(1025).is_some());
        assert_eq!(services.lease("z", 1026, 9, "public"), Err(NoSuchService));
        assert_eq!(services.end_lease(8).map(|(port, _)| port), Some(1025));
        assert!(services.end_lease(8).is_none() && services.next_to_ask().len() == 1);
    }
}
