//! What TLS means for a stream's life: its handshake's deadline, its failures, and the last word to a visitor.

use crate::http;
use crate::machine::{Action, StreamId};
use crate::node::Node;
use crate::node::stream::{End, key};
use crate::node::tls::{Failed, Said};

impl<X, E> Node<X, E> {
    /// Lets the TLS of a stream, if it has any, move what it can. False if that was its end.
    pub(super) fn pump_tls(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return false;
        };
        let (Some(tls), Some(flow)) = (&mut stream.tls, stream.flow) else {
            return true;
        };
        let pumped = tls.pump(self.latest, flow, &mut self.stack);
        // The last step of a handshake comes from the flow or from the socket.
        if !tls.is_handshaking() && stream.rest_from.is_none() {
            self.stream_deadlines.clear(id);
        }
        match pumped {
            Ok(()) if stream.farewell.is_some() => {
                self.say_farewell(id);
                false
            }
            Ok(()) => true,
            Err(failed) => {
                self.tls_failed(id, failed);
                false
            }
        }
    }

    /// Tells a visitor whose TLS ends here, and for whom there is no socket, `page`, once its TLS has begun; that is the
    /// `end`. False, having done nothing, if its TLS does not end here.
    pub(crate) fn answer_in_tls(&mut self, id: StreamId, page: Vec<u8>, end: End) -> bool {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return false;
        };
        if !stream.tls.as_ref().is_some_and(|tls| tls.ends_here()) {
            return false;
        }
        stream.farewell = Some((page, end));
        self.service(id);
        true
    }

    /// Brings a farewell on its way. It goes with the handshake's own deadline if that does not end.
    fn say_farewell(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return;
        };
        let (Some(tls), Some(flow)) = (&mut stream.tls, stream.flow) else {
            return;
        };
        let is_lost = self.stack.view(flow).is_none_or(|view| view.broken);
        let Some((page, end)) = stream.farewell.clone() else {
            return;
        };
        match tls.say_farewell(&page) {
            Said::NotYet if !is_lost => return,
            Said::NotYet | Said::OtherProtocol => return self.remove_stream(id, true, end),
            Said::All => {}
        }
        let _ = tls.pump(self.latest, flow, &mut self.stack);
        if tls.is_flow_closed() || is_lost {
            self.remove_stream(id, is_lost, end);
        }
    }

    /// The TLS of a stream cannot go on. A visitor gets the alert that says why; one who waits for a target with which
    /// there is no TLS is told so.
    pub(super) fn tls_failed(&mut self, id: StreamId, failed: Failed) {
        self.actions.push_back(Action::Abort(id));
        match failed {
            Failed::Visitor => {
                self.resources.counters.drop_tls_visitor += 1;
                let end = self.end_of_farewell(id);
                self.remove_stream(id, false, end);
            }
            Failed::Target { untrusted, began } => {
                self.resources.counters.drop_tls_target += 1;
                let end = End::TargetTls { untrusted };
                if began || !self.answer_in_tls(id, http::bad_gateway(), end) {
                    self.remove_stream(id, true, end);
                }
            }
        }
    }

    /// The TLS of a stream took too long to begin.
    pub(crate) fn tls_overdue(&mut self, id: StreamId) {
        self.resources.counters.drop_tls_timeout += 1;
        let end = self.end_of_farewell(id);
        self.drop_stream(id, end);
    }

    /// Why a stream ends that broke off: for what its visitor was to be told, or for nothing else.
    fn end_of_farewell(&self, id: StreamId) -> End {
        let farewell = self.stream(id).and_then(|stream| stream.farewell.as_ref());
        farewell.map_or(End::FlowBroken, |(_, end)| *end)
    }
}
