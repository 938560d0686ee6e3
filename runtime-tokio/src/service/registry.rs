//! The services of a tunnel, as the program wishes them and as the relay grants them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use portal_core::{AgentEvent, DialError, RefusalCode, Service};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{Notify, watch};

use super::{Ended, ListenError};
use crate::Handlers;

/// Where a service stands with the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// The relay was asked, or will be.
    Wanted,
    /// It can be reached there, or could until the relay went away.
    Granted(String),
    /// The relay will not have it.
    Refused(RefusalCode, String),
    /// The tunnel has ended.
    Ended,
}

/// See the module docs. Shared by listeners, the supervisor and, by the handlers, the driver.
#[derive(Debug)]
pub(super) struct Registry {
    services: Mutex<Services>,
    changed: Notify,
    handlers: Handlers,
}

#[derive(Debug, Default)]
struct Services {
    by_id: BTreeMap<String, Entry>,
    /// Those taken away since the agent was told last. One of the same id may be there again: it needs a lease of its own.
    gone: BTreeSet<String>,
    ended: bool,
}

#[derive(Debug)]
struct Entry {
    service: Service,
    lease: watch::Sender<Lease>,
}

impl Registry {
    pub(super) fn new(handlers: Handlers) -> Self {
        Self {
            services: Mutex::default(),
            changed: Notify::new(),
            handlers,
        }
    }

    /// Adds a service whose visitors are put into `queue`.
    pub(super) fn add(
        &self,
        service: Service,
        queue: mpsc::Sender<UnixStream>,
    ) -> Result<watch::Receiver<Lease>, ListenError> {
        let mut services = self.lock();
        if services.ended {
            return Err(Ended.into());
        }
        let id = service.id.clone();
        if services.by_id.contains_key(&id) {
            return Err(ListenError::IdTaken(id));
        }
        self.handlers
            .set_refusing(&id, move |stream| match queue.try_send(stream) {
                Ok(()) => Ok(()),
                Err(TrySendError::Full(_)) => Err(DialError::Exhausted),
                Err(TrySendError::Closed(_)) => Err(DialError::Refused),
            });
        let (lease, granted) = watch::channel(Lease::Wanted);
        services.by_id.insert(id, Entry { service, lease });
        self.changed.notify_one();
        Ok(granted)
    }

    /// Takes a service away.
    pub(super) fn remove(&self, id: &str) {
        let mut services = self.lock();
        if services.by_id.remove(id).is_some() {
            // Under the lock, or it could be that of the next service of this id.
            self.handlers.retain(|name| name != id);
            services.gone.insert(id.to_owned());
            self.changed.notify_one();
        }
    }

    /// Waits until [`Registry::offers`] has news.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What the agent is to offer, one list after the other.
    pub(super) fn offers(&self) -> Vec<Vec<Service>> {
        let mut services = self.lock();
        let gone = std::mem::take(&mut services.gone);
        let offer = |keep: &dyn Fn(&str) -> bool| -> Vec<Service> {
            let kept = services.by_id.iter().filter(|(id, _)| keep(id));
            kept.map(|(_, entry)| entry.service.clone()).collect()
        };
        let all = offer(&|_| true);
        if gone.iter().any(|id| services.by_id.contains_key(id)) {
            return vec![offer(&|id| !gone.contains(id)), all];
        }
        vec![all]
    }

    /// Takes in what the agent says.
    pub(super) fn take(&self, event: &AgentEvent) {
        let services = self.lock();
        let set = |id: &str, lease: Lease| {
            if let Some(entry) = services.by_id.get(id) {
                entry.lease.send_replace(lease);
            }
        };
        match event {
            AgentEvent::Granted { service, public } => set(service, Lease::Granted(public.clone())),
            // It is asked for again.
            AgentEvent::Revoked { service, .. } => set(service, Lease::Wanted),
            AgentEvent::Refused { service, code, message } if !code.may_pass() => {
                set(service, Lease::Refused(code.clone(), message.clone()));
            }
            AgentEvent::RelayRefused { code, message, .. } if !code.may_pass() => {
                for id in services.by_id.keys() {
                    set(id, Lease::Refused(code.clone(), message.clone()));
                }
            }
            _ => {}
        }
    }

    /// The agent has ended: nothing is added from now on, and those who wait are told.
    pub(super) fn end(&self) {
        let mut services = self.lock();
        services.ended = true;
        self.handlers.retain(|_| false);
        for entry in services.by_id.values() {
            entry.lease.send_replace(Lease::Ended);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use portal_core::{Kind, Target};

    use super::*;

    fn service(id: &str) -> Service {
        Service::new(id, Kind::Http, Target::Handler(id.into()))
    }

    fn add(registry: &Registry, id: &str) -> Result<watch::Receiver<Lease>, ListenError> {
        registry.add(service(id), mpsc::channel(1).0)
    }

    fn offers(registry: &Registry) -> Vec<Vec<String>> {
        let ids = |services: Vec<Service>| services.into_iter().map(|service| service.id).collect();
        registry.offers().into_iter().map(ids).collect()
    }

    #[test]
    fn a_service_that_comes_back_at_once_gets_a_lease_of_its_own() {
        let registry = Registry::new(Handlers::new());
        let old = add(&registry, "a").unwrap();
        add(&registry, "b").unwrap();
        assert_eq!(offers(&registry), [["a", "b"]]);
        assert_eq!(add(&registry, "a").unwrap_err(), ListenError::IdTaken("a".into()));

        registry.remove("a");
        assert!(old.has_changed().is_err(), "it is told no more");
        let new = add(&registry, "a").unwrap();
        assert_eq!(offers(&registry), [vec!["b"], vec!["a", "b"]]);
        assert_eq!(offers(&registry), [["a", "b"]]);
        registry.remove("b");
        assert_eq!(offers(&registry), [["a"]]);
        assert_eq!(*new.borrow(), Lease::Wanted);
    }

    #[test]
    fn what_the_relay_says_reaches_its_service() {
        let registry = Registry::new(Handlers::new());
        let (a, b) = (add(&registry, "a").unwrap(), add(&registry, "b").unwrap());
        let refused = |code| AgentEvent::Refused {
            service: "a".into(),
            code,
            message: "no".into(),
        };
        registry.take(&refused(RefusalCode::NameTaken));
        assert_eq!(*a.borrow(), Lease::Wanted, "it may be granted later");
        registry.take(&refused(RefusalCode::KindUnavailable));
        assert_eq!(*a.borrow(), Lease::Refused(RefusalCode::KindUnavailable, "no".into()));
        assert_eq!(*b.borrow(), Lease::Wanted);
        registry.take(&AgentEvent::Granted {
            service: "b".into(),
            public: "http://b.test/".into(),
        });
        assert_eq!(*b.borrow(), Lease::Granted("http://b.test/".into()));
        registry.end();
        assert_eq!((&*a.borrow(), &*b.borrow()), (&Lease::Ended, &Lease::Ended));
        assert_eq!(add(&registry, "c").unwrap_err(), ListenError::Ended(Ended));
    }
}
