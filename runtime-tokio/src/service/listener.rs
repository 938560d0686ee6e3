//! A service that is offered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::connection::{Arriving, Connection};
use super::registry::Lease;
use super::{AddressError, Ended, ListenError, Offer, Running};

/// How long a visitor's address may take to come. The agent writes it before anything else.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Hands out a service's visitors. Dropped, it gives the lease back. See the [module docs](super).
#[derive(Debug)]
pub struct Listener {
    id: String,
    queue: mpsc::Receiver<UnixStream>,
    /// One whose address has not come whole, kept over calls that were dropped.
    arriving: Option<Arriving>,
    lease: watch::Receiver<Lease>,
    running: Arc<Running>,
}

impl Listener {
    pub(super) fn new(offer: Offer, running: &Arc<Running>) -> Result<Self, ListenError> {
        let (service, backlog) = offer.checked()?;
        let (id, (entrance, queue)) = (service.id.clone(), mpsc::channel(backlog));
        let lease = running.registry.add(service, entrance)?;
        Ok(Self {
            id,
            queue,
            arriving: None,
            lease,
            running: Arc::clone(running),
        })
    }

    /// Waits until the service can be reached, and says where: `http://<name>.<domain>/`, `tcp://<domain>:<port>`.
    ///
    /// It stays the same over restarts of both ends. While the relay is away it is the address as it was; a relay that
    /// may grant the service later is waited for.
    ///
    /// # Errors
    /// If the relay refuses the service for good, or the tunnel has ended.
    pub async fn public_address(&self) -> Result<String, AddressError> {
        let mut lease = self.lease.clone();
        let settled = lease.wait_for(|lease| *lease != Lease::Wanted).await;
        match settled.as_deref() {
            Ok(Lease::Granted(public)) => Ok(public.clone()),
            Ok(Lease::Refused(code, message)) => Err(AddressError::Refused {
                code: code.clone(),
                message: message.clone(),
            }),
            Ok(Lease::Wanted | Lease::Ended) | Err(_) => Err(Ended.into()),
        }
    }

    /// Waits for the next visitor; its address as the relay saw it, or `[::]:0` if the relay does not say.
    ///
    /// A call that is dropped loses nobody.
    ///
    /// # Errors
    /// [`Ended`] once the tunnel has ended and those who were waiting are let in. There are no others: going on after an
    /// error is in vain.
    pub async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)> {
        loop {
            let arriving = match &mut self.arriving {
                Some(arriving) => arriving,
                empty => {
                    let stream = self.queue.recv().await.ok_or(Ended)?;
                    empty.insert(Arriving::new(stream, HEADER_TIMEOUT))
                }
            };
            let header = arriving.header().await;
            let Some(arriving) = self.arriving.take() else { continue };
            match header {
                Ok(header) => {
                    let connection = Connection::new(arriving, header);
                    let visitor = connection.visitor();
                    return Ok((connection, visitor));
                }
                Err(error) => tracing::debug!(%error, service = self.id, "a visitor without an address was dropped"),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.running.registry.remove(&self.id);
    }
}
