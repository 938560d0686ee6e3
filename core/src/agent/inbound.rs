//! Flows from the relay: their PROXY header is read, their target dialled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Agent, Service};
use crate::control::Kind;
use crate::machine::Action;
use crate::node::{Stream, Tls};
use crate::proxy;
use crate::stack::FlowId;
use crate::timers::TimerQueue;

/// What an agent keeps with a connection to a local target.
#[derive(Debug)]
pub struct Joined {
    /// What it is for, as it was when the visitor came.
    pub(super) service: Arc<Service>,
    /// Who the visitor is, as the relay says.
    pub(super) visitor: Option<SocketAddr>,
}

/// Flows whose header has not come whole.
#[derive(Debug)]
pub(super) struct Inbound {
    waiting: TimerQueue<FlowId>,
}

/// How long a flow may take to bring its header.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

impl Inbound {
    pub(super) fn new() -> Self {
        Self {
            waiting: TimerQueue::new(),
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.waiting.next()
    }
}

impl Agent {
    /// Something happened to a flow that has no target yet.
    pub(super) fn flow_touched(&mut self, now: Instant, flow: FlowId) {
        let Some(view) = self
            .node
            .stack
            .view(flow)
            .filter(|view| view.inbound && view.established)
        else {
            return;
        };
        // The relay may not have heard yet that this agent ends.
        if self.node.is_closing() {
            return self.refuse_flow(flow);
        }
        let Some(service) = self.services.at(view.local_port).map(Arc::clone) else {
            return self.refuse_flow(flow);
        };
        let mut header = Ok(proxy::Parsed::Incomplete);
        let mut lead = Vec::new();
        self.node.stack.drain(flow, &mut |bytes| {
            header = proxy::parse(bytes);
            match header {
                Ok(proxy::Parsed::Complete { len, .. }) => {
                    if service.proxy {
                        lead = bytes[..len].to_vec();
                    }
                    len
                }
                _ => 0,
            }
        });
        match header {
            // The visitor is gone already: nobody needs the dial.
            Ok(proxy::Parsed::Complete { .. }) if view.broken => self.refuse_flow(flow),
            Ok(proxy::Parsed::Complete { header, .. }) => {
                self.inbound.waiting.clear(flow);
                let visitor = header.map(|header| header.source);
                let target = service.target.clone();
                let Some(tls) = self.tls_of(&service) else {
                    return self.refuse_flow(flow);
                };
                let stream = Stream::joined(Joined { service, visitor }, Some(flow), false).with(lead, tls);
                match self.node.insert_stream(stream) {
                    Some(stream) => {
                        self.node.actions.push_back(Action::Dial { stream, target });
                        self.node.service(stream);
                    }
                    None => self.refuse_flow(flow),
                }
            }
            Ok(proxy::Parsed::Incomplete) if view.broken || view.remote_fin => self.bad_header(flow),
            Ok(proxy::Parsed::Incomplete) => self.inbound.waiting.set_no_later(flow, now + HEADER_DEADLINE),
            Err(_) => self.bad_header(flow),
        }
    }

    /// The TLS of a new connection; `None` if it cannot be had.
    fn tls_of(&mut self, service: &Service) -> Option<Option<Box<Tls>>> {
        let acceptor = match service.kind {
            Kind::Https => Some(service.tls.as_ref()),
            _ => None,
        };
        let started = match acceptor {
            Some(None) => None,
            acceptor => Tls::start(acceptor.flatten(), service.target_tls.as_ref()).ok(),
        };
        if started.is_none() {
            self.node.resources.counters.drop_tls_visitor += 1;
        }
        started
    }

    pub(super) fn inbound_due(&mut self, now: Instant) {
        while let Some(id) = self.node.stream_deadlines.pop_due(now) {
            if !self.node.operator_overdue(id) && !self.node.rest_overdue(id) {
                self.node.tls_overdue(id);
            }
        }
        while let Some(flow) = self.inbound.waiting.pop_due(now) {
            self.bad_header(flow);
        }
    }

    fn bad_header(&mut self, flow: FlowId) {
        self.node.resources.counters.drop_proxy_header += 1;
        self.refuse_flow(flow);
    }

    fn refuse_flow(&mut self, flow: FlowId) {
        self.inbound.waiting.clear(flow);
        self.node.stack.release(flow, true, &mut self.node.resources);
    }
}
