//! The leases of a relay: which name and which port belong to which key, now and for good.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::access::Refusal;
use super::ingress::Ingress;
use crate::control::{Kind, RefusalCode};
use crate::identity::{PublicKey, derived_name, derived_port};
use crate::machine::{ListenerId, Transport};
use crate::names::check_label;
use crate::resources::Resources;
use crate::status::Traffic;
use crate::table::{Key, Table};
use crate::wg::PeerId;

/// Names a lease. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LeaseId(Key);

impl LeaseId {
    /// The number by which agents know it.
    pub(crate) fn number(self) -> u64 {
        u64::from(self.0.generation) << 32 | u64::from(self.0.index)
    }
}

/// The relay's grant of a public name or port to a key.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) peer: PeerId,
    pub(crate) key: PublicKey,
    /// The agent's own name for the service.
    pub(crate) service: String,
    pub(crate) kind: Kind,
    /// The name and the port that the agent asked for, if it did.
    pub(crate) asked: (Option<String>, Option<u16>),
    pub(crate) place: Place,
    /// The port inside the tunnel to which its flows go.
    pub(crate) service_port: u16,
    /// Who serves it.
    pub(crate) via: Via,
    /// How people reach it.
    pub(crate) public: String,
    /// Its own listener, for the kinds that have one.
    pub(crate) listener: Option<ListenerId>,
    /// The agent has been told.
    pub(crate) active: bool,
    /// Connections to it.
    pub(crate) visitors: u32,
}

/// Who is at the other end of a lease's flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// An agent, which reads a PROXY header.
    Agent,
    /// A plain WireGuard peer: its leases are the configuration's, whatever grants say.
    Plain {
        /// Its service reads a PROXY header.
        proxy_header: bool,
    },
}

impl Via {
    pub(crate) fn takes_proxy_header(self) -> bool {
        matches!(self, Self::Agent | Self::Plain { proxy_header: true })
    }
}

/// What is leased.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A name at one of the shared listeners.
    Name(Ingress, String),
    /// A port.
    Port(Transport, u16),
}

/// What belongs to a key beyond its leases and the relay's restarts. The program keeps these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Binding {
    /// A name.
    Name {
        /// The DNS label.
        name: String,
        /// Whose it is.
        key: PublicKey,
    },
    /// A port for one service.
    Port {
        /// The port number, the same for TCP and UDP.
        port: u16,
        /// Whose it is.
        key: PublicKey,
        /// The agent's own name for the service.
        service: String,
    },
}

/// All leases and bindings.
#[derive(Debug)]
pub(crate) struct Leases {
    table: Table<(Lease, Traffic)>,
    /// What was carried for all leases there ever were.
    carried: Traffic,
    by_place: BTreeMap<Place, LeaseId>,
    names: BTreeMap<String, PublicKey>,
    ports: BTreeMap<u16, (PublicKey, String)>,
    /// Ports the operating system refused: not tried again until asked for by number.
    busy: BTreeMap<(Transport, u16), ()>,
}

/// What a lease is charged: its entries and texts, rounded up.
const LEASE_CHARGE: usize = 1024;
/// What a binding is charged: its entry and its texts, rounded up.
const BINDING_CHARGE: usize = 256;
/// Names and ports that keys may hold for good. Far above what a relay of this size serves, and far below its memory.
const MAX_BINDINGS: usize = 65_536;
const MAX_BINDINGS_PER_KEY: usize = 256;
/// How many derived names are tried when others hold them.
const NAME_TRIES: u32 = 16;

impl Leases {
    /// Bindings of earlier runs are charged although the budget may have become too small for them: what belongs to
    /// somebody is not given away. New things are refused then.
    pub(crate) fn new(capacity: usize, bindings: impl IntoIterator<Item = Binding>, resources: &mut Resources) -> Self {
        let mut leases = Self {
            table: Table::new(capacity),
            carried: Traffic::default(),
            by_place: BTreeMap::new(),
            names: BTreeMap::new(),
            ports: BTreeMap::new(),
            busy: BTreeMap::new(),
        };
        for binding in bindings.into_iter().take(MAX_BINDINGS) {
            match binding {
                Binding::Name { name, key } => drop(leases.names.insert(name, key)),
                Binding::Port { port, key, service } => drop(leases.ports.insert(port, (key, service))),
            }
        }
        resources
            .budget
            .charge_regardless(leases.binding_count() * BINDING_CHARGE);
        leases
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.table.get(id.0).map(|(lease, _)| lease)
    }

    pub(crate) fn get_mut(&mut self, id: LeaseId) -> Option<&mut Lease> {
        self.table.get_mut(id.0).map(|(lease, _)| lease)
    }

    /// What a lease has carried, without the connections that are open now.
    pub(crate) fn traffic(&self, id: LeaseId) -> Traffic {
        self.table.get(id.0).map(|(_, traffic)| *traffic).unwrap_or_default()
    }

    /// The same for all leases there ever were.
    pub(crate) fn traffic_of_all(&self) -> Traffic {
        self.carried
    }

    /// A visitor has come to a lease.
    pub(crate) fn came(&mut self, id: LeaseId) {
        self.add(
            id,
            Traffic {
                total: 1,
                ..Traffic::default()
            },
        );
    }

    /// Bytes went from and to a visitor of a lease, which may have ended since.
    pub(crate) fn carried(&mut self, id: LeaseId, received: u64, sent: u64) {
        let traffic = Traffic {
            received,
            sent,
            ..Traffic::default()
        };
        self.add(id, traffic);
    }

    fn add(&mut self, id: LeaseId, traffic: Traffic) {
        self.carried = self.carried.plus(traffic);
        if let Some((_, of_lease)) = self.table.get_mut(id.0) {
            *of_lease = of_lease.plus(traffic);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.table.iter().map(|(key, (lease, _))| (LeaseId(key), lease))
    }

    pub(crate) fn by_name(&self, ingress: Ingress, name: &str) -> Option<LeaseId> {
        self.by_place.get(&Place::Name(ingress, name.to_owned())).copied()
    }

    /// The lease of this ingress, if there is exactly one.
    pub(crate) fn sole(&self, ingress: Ingress) -> Option<LeaseId> {
        let mut there = self
            .iter()
            .filter(|(_, lease)| matches!(lease.place, Place::Name(at, _) if at == ingress));
        let (id, _) = there.next()?;
        there.next().is_none().then_some(id)
    }

    pub(crate) fn insert(&mut self, lease: Lease, resources: &mut Resources) -> Result<LeaseId, Refusal> {
        let full = || Refusal::new(RefusalCode::LimitReached, "the relay holds as many leases as it may");
        if self.table.is_full() {
            return Err(full());
        }
        charge(LEASE_CHARGE, resources)?;
        let place = lease.place.clone();
        let id = LeaseId(
            self.table
                .insert_with(|_| (lease, Traffic::default()))
                .ok_or_else(full)?,
        );
        self.by_place.insert(place, id);
        Ok(id)
    }

    pub(crate) fn remove(&mut self, id: LeaseId, resources: &mut Resources) -> Option<Lease> {
        let (lease, _) = self.table.remove(id.0)?;
        resources.budget.release(LEASE_CHARGE);
        self.by_place.remove(&lease.place);
        Some(lease)
    }

    /// Gives the name or port of a lease that has ended to whoever comes for it, unless it is among `kept`.
    pub(crate) fn unbind(&mut self, lease: &Lease, kept: &[Binding], resources: &mut Resources) {
        let is_kept = kept.iter().any(|binding| match (binding, &lease.place) {
            (Binding::Name { name, key }, Place::Name(_, own)) => name == own && *key == lease.key,
            (Binding::Port { port, key, .. }, Place::Port(_, own)) => port == own && *key == lease.key,
            _ => false,
        });
        // One name or port may be leased at two ingresses or over two transports.
        let is_leased = match &lease.place {
            Place::Name(_, name) => [Ingress::Http, Ingress::Https]
                .iter()
                .any(|&ingress| self.by_name(ingress, name).is_some()),
            Place::Port(_, port) => self.is_leased(*port),
        };
        if is_kept || is_leased {
            return;
        }
        let unbound = match &lease.place {
            Place::Name(_, name) => self.names.remove(name).is_some(),
            Place::Port(_, port) => self.ports.remove(port).is_some(),
        };
        if unbound {
            resources.budget.release(BINDING_CHARGE);
        }
    }

    /// How many names and ports belong to keys, leased now or not.
    pub(crate) fn binding_count(&self) -> usize {
        self.names.len() + self.ports.len()
    }

    /// The names and ports that belong to keys, leased now or not.
    pub(crate) fn bindings(&self) -> impl Iterator<Item = Binding> {
        let names = self.names.iter().map(|(name, &key)| Binding::Name {
            name: name.clone(),
            key,
        });
        let ports = self.ports.iter().map(|(&port, (key, service))| Binding::Port {
            port,
            key: *key,
            service: service.clone(),
        });
        names.chain(ports)
    }

    /// What the leases and bindings are charged in all.
    pub(crate) fn held(&self) -> usize {
        self.table.len() * LEASE_CHARGE + self.binding_count() * BINDING_CHARGE
    }

    /// Finds a name for a service: the one asked for if the key may have it, or one derived from the key. Returns what
    /// has to be kept, if that is new.
    pub(crate) fn pick_name(
        &mut self,
        ingress: Ingress,
        key: &PublicKey,
        service: &str,
        wanted: Option<&str>,
        resources: &mut Resources,
    ) -> Result<(Place, Option<Binding>), Refusal> {
        let name = match wanted {
            Some(name) => {
                check_label(name).map_err(|error| {
                    Refusal::new(
                        RefusalCode::NameInvalid,
                        format!("the name \"{name}\" cannot be used: {error}"),
                    )
                })?;
                if self.names.get(name).is_some_and(|owner| owner != key) {
                    return Err(Refusal::new(
                        RefusalCode::NameTaken,
                        format!("the name {name} belongs to another key: choose another name"),
                    ));
                }
                name.to_owned()
            }
            None => (0..NAME_TRIES)
                .map(|attempt| match attempt {
                    0 => derived_name(key, service),
                    _ => derived_name(key, &format!("{service}#{attempt}")),
                })
                .find(|name| {
                    self.names.get(name).is_none_or(|owner| owner == key) && self.by_name(ingress, name).is_none()
                })
                .ok_or_else(|| {
                    Refusal::new(RefusalCode::NameTaken, "no derived name is free: ask for one by --name")
                })?,
        };
        let place = Place::Name(ingress, name.clone());
        if self.by_place.contains_key(&place) {
            return Err(Refusal::new(
                RefusalCode::NameTaken,
                format!("another service of this agent has the name {name} already"),
            ));
        }
        // A derived name needs no binding: nobody else's key gives it.
        if wanted.is_none() || self.names.contains_key(&name) {
            return Ok((place, None));
        }
        self.admit_binding(key, resources)?;
        self.names.insert(name.clone(), *key);
        Ok((place, Some(Binding::Name { name, key: *key })))
    }

    /// Finds a port for a service: the one asked for, the one it had before, or one derived from the key.
    pub(crate) fn pick_port(
        &mut self,
        transport: Transport,
        key: &PublicKey,
        service: &str,
        wanted: Option<u16>,
        range: &RangeInclusive<u16>,
        resources: &mut Resources,
    ) -> Result<(Place, Option<Binding>), Refusal> {
        let mine = |owner: &(PublicKey, String)| owner.0 == *key && owner.1 == service;
        let port = match wanted {
            Some(port) if !range.contains(&port) => {
                return Err(Refusal::new(
                    RefusalCode::PortOutOfRange,
                    format!(
                        "port {port} is outside this relay's range {}-{}",
                        range.start(),
                        range.end()
                    ),
                ));
            }
            Some(port) if self.ports.get(&port).is_some_and(|owner| owner.0 != *key) => {
                return Err(Refusal::new(
                    RefusalCode::PortBusy,
                    format!("port {port} belongs to another key: choose another port, or none to be given one"),
                ));
            }
            Some(port) => port,
            None => {
                let bound = self
                    .ports
                    .iter()
                    .find(|(port, owner)| mine(owner) && range.contains(port));
                let first = bound.map_or_else(|| derived_port(key, service, range.clone()), |(&port, _)| port);
                let free = || {
                    (first..=*range.end()).chain(*range.start()..first).filter(|&port| {
                        !self.by_place.contains_key(&Place::Port(transport, port))
                            && !self.busy.contains_key(&(transport, port))
                    })
                };
                // When every port is bound, one that nobody leases now changes hands.
                free()
                    .find(|port| self.ports.get(port).is_none_or(mine))
                    .or_else(|| free().find(|&port| !self.is_leased(port)))
                    .ok_or_else(|| {
                        Refusal::new(
                            RefusalCode::LimitReached,
                            format!("no port of {}-{} is free on this relay", range.start(), range.end()),
                        )
                    })?
            }
        };
        let place = Place::Port(transport, port);
        if self.by_place.contains_key(&place) {
            return Err(Refusal::new(
                RefusalCode::PortBusy,
                format!("{transport} port {port} is leased to another service already"),
            ));
        }
        if self.ports.get(&port).is_some_and(mine) {
            return Ok((place, None));
        }
        // A port that changes hands is charged already.
        if !self.ports.contains_key(&port) {
            self.admit_binding(key, resources)?;
        }
        self.ports.insert(port, (*key, service.to_owned()));
        Ok((
            place,
            Some(Binding::Port {
                port,
                key: *key,
                service: service.to_owned(),
            }),
        ))
    }

    fn is_leased(&self, port: u16) -> bool {
        [Transport::Tcp, Transport::Udp]
            .iter()
            .any(|&transport| self.by_place.contains_key(&Place::Port(transport, port)))
    }

    /// The operating system refused a port: its binding is undone, and it is not picked again.
    pub(crate) fn port_is_busy(&mut self, transport: Transport, port: u16, resources: &mut Resources) {
        if self.ports.remove(&port).is_some() {
            resources.budget.release(BINDING_CHARGE);
        }
        self.busy.insert((transport, port), ());
    }

    /// Charges one more binding of a key, if it may have one.
    fn admit_binding(&self, key: &PublicKey, resources: &mut Resources) -> Result<(), Refusal> {
        let names = self.names.values().filter(|owner| *owner == key).count();
        let ports = self.ports.values().filter(|owner| owner.0 == *key).count();
        let (all, of_key) = (self.binding_count(), names + ports);
        if all >= MAX_BINDINGS || of_key >= MAX_BINDINGS_PER_KEY {
            return Err(Refusal::new(
                RefusalCode::LimitReached,
                format!("this key holds {of_key} names and ports and the relay {all}: more are not given out"),
            ));
        }
        charge(BINDING_CHARGE, resources)
    }
}

fn charge(bytes: usize, resources: &mut Resources) -> Result<(), Refusal> {
    if resources.budget.charge(bytes) {
        return Ok(());
    }
    resources.counters.refused_memory += 1;
    Err(Refusal::new(
        RefusalCode::LimitReached,
        "the relay's memory is used up: it may have more by --memory",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn resources() -> Resources {
        Resources::new(8 << 20)
    }

    fn code<T>(result: Result<T, Refusal>) -> RefusalCode {
        result.err().expect("refused").code
    }

    #[test]
    fn a_requested_name_is_bound_to_its_key() {
        let mut pool = resources();
        let mut leases = Leases::new(8, [], &mut pool);
        let (place, binding) = leases
            .pick_name(Ingress::Http, &key(1), "web", Some("shop"), &mut pool)
            .unwrap();
        assert_eq!(place, Place::Name(Ingress::Http, "shop".into()));
        assert_eq!(
            binding,
            Some(Binding::Name {
                name: "shop".into(),
                key: key(1)
            })
        );
        assert_eq!(
            code(leases.pick_name(Ingress::Https, &key(2), "web", Some("shop"), &mut pool)),
            RefusalCode::NameTaken
        );
        assert_eq!(
            code(leases.pick_name(Ingress::Https, &key(2), "web", Some("Shop"), &mut pool)),
            RefusalCode::NameInvalid
        );
        let mut restarted = Leases::new(8, binding, &mut pool);
        assert_eq!(
            code(restarted.pick_name(Ingress::Http, &key(2), "web", Some("shop"), &mut pool)),
            RefusalCode::NameTaken
        );
        assert_eq!(
            restarted
                .pick_name(Ingress::Http, &key(1), "web", Some("shop"), &mut pool)
                .unwrap()
                .1,
            None
        );
    }

    #[test]
    fn a_derived_name_is_stable_and_steps_aside_for_a_squatter() {
        let mut pool = resources();
        let mut leases = Leases::new(8, [], &mut pool);
        let (first, _) = leases
            .pick_name(Ingress::Http, &key(1), "web", None, &mut pool)
            .unwrap();
        assert_eq!(
            leases
                .pick_name(Ingress::Http, &key(1), "web", None, &mut pool)
                .unwrap()
                .0,
            first
        );
        let Place::Name(_, name) = first.clone() else { panic!() };
        let mut squatted = Leases::new(8, [Binding::Name { name, key: key(9) }], &mut pool);
        let (second, _) = squatted
            .pick_name(Ingress::Http, &key(1), "web", None, &mut pool)
            .unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn ports_are_stable_within_the_range_and_run_out_with_a_name() {
        let mut pool = resources();
        let range = 100..=102;
        let mut leases = Leases::new(8, [], &mut pool);
        let (place, binding) = leases
            .pick_port(Transport::Tcp, &key(1), "db", None, &range, &mut pool)
            .unwrap();
        assert!(binding.is_some());
        assert_eq!(
            leases
                .pick_port(Transport::Tcp, &key(1), "db", None, &range, &mut pool)
                .unwrap(),
            (place.clone(), None)
        );
        let Place::Port(_, port) = place else { panic!() };
        assert_eq!(
            code(leases.pick_port(Transport::Tcp, &key(2), "x", Some(port), &range, &mut pool)),
            RefusalCode::PortBusy
        );
        assert_eq!(
            code(leases.pick_port(Transport::Tcp, &key(2), "x", Some(99), &range, &mut pool)),
            RefusalCode::PortOutOfRange
        );
        let second = leases
            .pick_port(Transport::Tcp, &key(2), "x", None, &range, &mut pool)
            .unwrap()
            .0;
        let third = leases
            .pick_port(Transport::Udp, &key(3), "y", None, &range, &mut pool)
            .unwrap()
            .0;
        assert_ne!(second, third);
        let fourth = leases
            .pick_port(Transport::Tcp, &key(4), "z", None, &range, &mut pool)
            .unwrap();
        assert!(fourth.1.is_some(), "a port that is bound but not leased changes hands");
        for port in range.clone() {
            leases.port_is_busy(Transport::Tcp, port, &mut pool);
        }
        let refused = leases.pick_port(Transport::Tcp, &key(1), "db", None, &range, &mut pool);
        assert_eq!(
            code(refused),
            RefusalCode::LimitReached,
            "a port the system refused is not picked again"
        );
    }

    #[test]
    fn bindings_are_charged_and_refused_when_memory_is_used_up() {
        let name = |number: u32| Binding::Name {
            name: format!("n{number}"),
            key: key(9),
        };
        let mut pool = Resources::new(10 * BINDING_CHARGE);
        let mut leases = Leases::new(8, (0..9).map(name), &mut pool);
        assert_eq!(
            (pool.budget.used(), leases.held()),
            (9 * BINDING_CHARGE, 9 * BINDING_CHARGE)
        );
        leases
            .pick_name(Ingress::Http, &key(1), "web", Some("one"), &mut pool)
            .unwrap();
        assert_eq!(
            code(leases.pick_name(Ingress::Http, &key(1), "web", Some("two"), &mut pool)),
            RefusalCode::LimitReached
        );
        let port = leases.pick_port(Transport::Tcp, &key(1), "db", None, &(100..=102), &mut pool);
        assert_eq!(code(port), RefusalCode::LimitReached);
        assert_eq!(pool.counters.refused_memory, 2);
        assert_eq!(leases.held(), pool.budget.used());
        assert!(
            leases
                .pick_name(Ingress::Http, &key(1), "web", Some("one"), &mut pool)
                .is_ok(),
            "what a key has costs nothing more"
        );

        let mut small = Resources::new(BINDING_CHARGE);
        let mut kept = Leases::new(8, (0..9).map(name), &mut small);
        assert_eq!(small.budget.used(), kept.held());
        assert_eq!(
            code(kept.pick_name(Ingress::Http, &key(1), "web", Some("n8"), &mut small)),
            RefusalCode::NameTaken,
            "no name is given away because the budget shrank"
        );
    }

    #[test]
    fn a_port_that_changes_hands_or_is_given_up_is_charged_once() {
        let mut pool = resources();
        let mut leases = Leases::new(8, [], &mut pool);
        let range = 100..=100;
        for byte in 1..=3 {
            let picked = leases.pick_port(Transport::Tcp, &key(byte), "db", None, &range, &mut pool);
            assert!(picked.unwrap().1.is_some());
            assert_eq!((leases.binding_count(), pool.budget.used()), (1, BINDING_CHARGE));
        }
        leases.port_is_busy(Transport::Tcp, 100, &mut pool);
        leases.port_is_busy(Transport::Udp, 100, &mut pool);
        assert_eq!((leases.held(), pool.budget.used()), (0, 0));
    }
    #[test]
    fn leases_in_all_are_bounded_and_charged() {
        let lease = |port: u16| Lease {
            peer: PeerId::for_tests(1),
            key: key(1),
            service: "db".into(),
            kind: Kind::Tcp,
            asked: (None, None),
            place: Place::Port(Transport::Tcp, port),
            service_port: 1024,
            via: Via::Agent,
            public: String::new(),
            listener: None,
            active: false,
            visitors: 0,
        };
        let mut pool = resources();
        let mut leases = Leases::new(1, [], &mut pool);
        let id = leases.insert(lease(1), &mut pool).unwrap();
        assert_eq!(code(leases.insert(lease(2), &mut pool)), RefusalCode::LimitReached);
        assert_eq!((pool.budget.used(), leases.held()), (LEASE_CHARGE, LEASE_CHARGE));
        assert!(leases.remove(id, &mut pool).is_some());
        assert_eq!(pool.budget.used(), 0);

        let mut poor = Resources::new(LEASE_CHARGE - 1);
        let mut leases = Leases::new(1, [], &mut poor);
        assert_eq!(code(leases.insert(lease(1), &mut poor)), RefusalCode::LimitReached);
        assert_eq!(poor.counters.refused_memory, 1);
    }
}
