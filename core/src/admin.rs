//! What a machine answers its operator over HTTP: metrics, health, readiness, status.
//!
//! An operator's connection is a stream that belongs to nobody: it has no data of the machine's, so it cannot count for a
//! lease or a source. It takes neither a visitor's place nor a visitor's memory, for it is most wanted when those are
//! used up.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::budget::Budget;
use crate::http;
use crate::machine::StreamId;
use crate::node::{End, Node, Owned, Stream};
use crate::resources::Resources;
use crate::status::Status;

/// Connections at a time.
pub(crate) const MAX_CONNECTIONS: usize = 16;
/// What they are charged in all, from the start, if there are to be any: heads, and answers that are on their way.
const MEMORY: usize = 1024 * 1024;
/// How long a request's head may take.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// What `/metrics` is: OpenMetrics, which Prometheus reads.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The operators' share of a node.
#[derive(Debug)]
pub(crate) struct Admin {
    /// Memory of their own. Empty if there is no listener for them.
    pub(crate) budget: Budget,
    pub(crate) connections: usize,
    /// The listener can be reached from this machine only.
    is_loopback: bool,
}

impl Admin {
    pub(crate) fn new() -> Self {
        Self {
            budget: Budget::new(0),
            connections: 0,
            is_loopback: false,
        }
    }

    /// Takes the operators' memory out of the machine's, for a listener at `addr`.
    pub(crate) fn enable(&mut self, addr: SocketAddr, resources: &mut Resources) {
        self.is_loopback = addr.ip().to_canonical().is_loopback();
        if resources.budget.charge(MEMORY) {
            self.budget = Budget::new(MEMORY);
        }
    }

    /// What the machine is charged for operators.
    pub(crate) fn held(&self) -> usize {
        self.budget.limit()
    }
}

/// A machine that can be asked how it is.
pub(crate) trait Operated: Owned {
    /// Counters and gauges as OpenMetrics text.
    fn metrics_text(&self) -> String;
    /// Why it is not ready, if it is not.
    fn why_not_ready(&self) -> Option<String>;
    /// All there is to say.
    fn status_now(&self, now: Instant) -> Status;
}

impl<X, E> Node<X, E> {
    /// Takes an operator's connection, unless there are as many as there may be.
    pub(crate) fn accept_operator(&mut self, now: Instant) -> Option<StreamId> {
        if self.admin.connections >= MAX_CONNECTIONS {
            self.resources.counters.refused_operators += 1;
            return None;
        }
        let id = self.insert_stream(Stream::of_operator(http::MAX_LEN))?;
        self.stream_deadlines.set(id, now + HEAD_DEADLINE);
        Some(id)
    }

    /// The time of a stream is over. Returns whether it was an operator's, which is then dropped.
    pub(crate) fn operator_overdue(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.stream(id).filter(|stream| stream.data.is_none()) else {
            return false;
        };
        if !stream.is_answered() {
            self.resources.counters.drop_operator_request += 1;
        }
        self.drop_stream(id, End::Dropped);
        true
    }
}

/// A stream's head has grown. Returns whether it is an operator's, which is answered once the head is whole.
pub(crate) fn head_grew<M: Operated>(machine: &mut M, now: Instant, id: StreamId) -> bool {
    let node = machine.node();
    let Some(stream) = node.stream(id).filter(|stream| stream.data.is_none()) else {
        return false;
    };
    let Some(head) = stream.head() else {
        return true;
    };
    let request = match http::parse(head) {
        Ok(http::Parsed::Complete(request)) => request,
        Ok(http::Parsed::Incomplete) if !stream.head_is_over() => return true,
        Ok(http::Parsed::Incomplete) => {
            node.resources.counters.drop_operator_request += 1;
            node.drop_stream(id, End::Dropped);
            return true;
        }
        Err(error) => {
            node.resources.counters.drop_operator_request += 1;
            let page = Page::text(400, "Bad Request", format!("400 Bad Request: {error}\n"));
            answer(machine, id, &page, false);
            return true;
        }
    };
    let is_foreign = node.admin.is_loopback && !request.host.as_deref().is_none_or(is_local_name);
    let page = if is_foreign {
        node.resources.counters.drop_operator_request += 1;
        Page::text(
            421,
            "Misdirected Request",
            "421 Misdirected Request: ask for an address or for localhost\n",
        )
    } else {
        page(machine, now, &request)
    };
    answer(machine, id, &page, request.method == "HEAD");
    true
}

/// What is answered.
struct Page {
    status: u16,
    reason: &'static str,
    headers: &'static [(&'static str, &'static str)],
    kind: &'static str,
    body: String,
}

impl Page {
    fn text(status: u16, reason: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            headers: &[],
            kind: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }
}

fn page<M: Operated>(machine: &M, now: Instant, request: &http::RequestHead) -> Page {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Page {
            headers: &[("allow", "GET, HEAD")],
            ..Page::text(405, "Method Not Allowed", "405 Method Not Allowed: ask with GET\n")
        };
    }
    let path = request.target.split('?').next().unwrap_or_default();
    match path {
        "/metrics" => Page {
            kind: OPENMETRICS,
            ..Page::text(200, "OK", machine.metrics_text())
        },
        "/healthz" => Page::text(200, "OK", "ok\n"),
        "/readyz" => match machine.why_not_ready() {
            None => Page::text(200, "OK", "ready\n"),
            Some(reason) => Page::text(503, "Service Unavailable", one_line(&reason)),
        },
        "/status" => Page {
            kind: "application/json",
            // Every part of a status can be written as JSON.
            ..Page::text(
                200,
                "OK",
                serde_json::to_string(&machine.status_now(now)).unwrap_or_default() + "\n",
            )
        },
        _ => Page::text(
            404,
            "Not Found",
            "404 Not Found: there are /metrics, /healthz, /readyz and /status\n",
        ),
    }
}

fn answer<M: Operated>(machine: &mut M, id: StreamId, page: &Page, without_body: bool) {
    let mut bytes = http::response_of(page.status, page.reason, page.headers, page.kind, &page.body);
    if without_body {
        bytes.truncate(bytes.len() - page.body.len());
    }
    let node = machine.node();
    if bytes.len() > node.admin.budget.limit() - node.admin.budget.used() {
        let text = "503 Service Unavailable: other answers are still on their way\n";
        bytes = http::response(503, "Service Unavailable", &[("retry-after", "5")], text);
    }
    node.answer(id, bytes);
}

/// Whether a host names this machine by itself. A name of DNS may be one that a web page has had lead here, so as to read
/// with the browser of whoever sits at this machine.
fn is_local_name(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
}

/// A reason may have come from afar.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().filter(|c| !c.is_control()).collect();
    line.push('\n');
    line
}
