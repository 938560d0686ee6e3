//! What is to be served.

use portal_core::tls::TlsAcceptor;
use portal_core::{Kind, Service, Target, names};

use super::ListenError;

/// Visitors that wait to be accepted, unless set. What a kernel's listener holds is of the same size.
const BACKLOG: usize = 128;

/// A service as it is to be: what it is, and which address it wishes for.
#[derive(Clone, Debug)]
pub struct Offer {
    service: Service,
    backlog: usize,
}

impl Offer {
    /// HTTP, or what begins like it: visitors come by host name. The relay can read what they send.
    #[must_use]
    pub fn http() -> Self {
        Self::new(Kind::Http)
    }

    /// TLS that ends in the tunnel's agent: visitors come by server name, their connections bring what was inside, and the
    /// relay cannot read it.
    #[must_use]
    pub fn https(tls: TlsAcceptor) -> Self {
        let mut offer = Self::new(Kind::Https);
        offer.service.tls = Some(tls);
        offer
    }

    /// TLS that the program ends itself: visitors come by server name, and the relay cannot read what they send.
    #[must_use]
    pub fn tls() -> Self {
        Self::new(Kind::Tls)
    }

    /// Any protocol, on a TCP port of its own.
    #[must_use]
    pub fn tcp() -> Self {
        Self::new(Kind::Tcp)
    }

    fn new(kind: Kind) -> Self {
        let id = kind.to_string();
        Self {
            service: Service {
                proxy: true,
                ..Service::new(id.clone(), kind, Target::Handler(id))
            },
            backlog: BACKLOG,
        }
    }

    /// Wishes for this name, one DNS label, below the relay's domain. Without a wish it follows from key and id.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.service.name = Some(name.into());
        self
    }

    /// Wishes for this port of the relay's. Without a wish it follows from key and id.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.service.port = Some(port);
        self
    }

    /// Sets the program's own name for the service, which is its kind unless set. It tells the services of one tunnel
    /// apart, so only one of each kind can do without.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.service.id = id.into();
        self.service.target = Target::Handler(self.service.id.clone());
        self
    }

    /// How many visitors may wait to be accepted, at least one; 128 unless set. Those beyond are refused.
    #[must_use]
    pub fn backlog(mut self, count: usize) -> Self {
        self.backlog = count.max(1);
        self
    }

    /// The service and the backlog, if they make sense.
    pub(super) fn checked(self) -> Result<(Service, usize), ListenError> {
        let Service { kind, name, port, .. } = &self.service;
        let by_port = matches!(kind, Kind::Tcp);
        if by_port && name.is_some() || !by_port && port.is_some() {
            return Err(ListenError::Misfit {
                kind: *kind,
                comes_by: if by_port { "port" } else { "name" },
            });
        }
        if let Some(name) = name {
            names::check_label(name).map_err(|source| ListenError::Name {
                name: name.clone(),
                source,
            })?;
        }
        Ok((self.service, self.backlog))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_that_nobody_can_grant_are_refused() {
        assert!(Offer::http().name("blog").checked().is_ok());
        assert!(Offer::tcp().port(20_000).checked().is_ok());
        for (offer, message) in [
            (Offer::tcp().name("blog"), "tcp come by port"),
            (Offer::http().port(80), "http come by name"),
            (Offer::http().name("my blog"), "\"my blog\""),
        ] {
            let error = offer.checked().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
