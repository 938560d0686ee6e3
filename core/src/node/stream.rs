//! A kernel socket and the flow it is joined to: FIN for FIN, RST for RST, and each side read only as fast as the other
//! takes it.

use crate::budget::{Budget, KERNEL_SOCKET};
use crate::machine::{Action, StreamId};
use crate::node::Node;
use crate::node::meter::{Lane, Metered, Meters};
use crate::node::tls::Tls;
use crate::stack::{FlowId, Owner};
use crate::table::Key;

/// One visitor connection (at a relay) or one connection to a local target (at an agent). `X` is what the machine keeps
/// with it.
#[derive(Debug)]
pub(crate) struct Stream<X> {
    /// `None` for an operator's connection.
    pub(crate) data: Option<X>,
    /// The flow it is joined to, once there is one.
    pub(crate) flow: Option<FlowId>,
    /// The kernel socket is connected.
    pub(super) connected: bool,
    /// Bytes read from the socket before anything is known of the flow.
    pub(super) head: Option<Vec<u8>>,
    pub(super) head_limit: usize,
    /// Bytes that go into the flow before those read from the socket.
    pub(super) prefix: Vec<u8>,
    /// Bytes for the socket in front of those that the flow brings.
    pub(super) lead: Vec<u8>,
    /// What stands between flow and socket, if anything does.
    pub(super) tls: Option<Box<Tls>>,
    /// What it has to do with its key's rate.
    pub(super) metered: Metered,
    /// Bytes for the socket made here, after which it is closed.
    pub(super) answer: Option<Vec<u8>>,
    /// What the visitor is told within its TLS, as there is no socket for it, and what the stream ends with then.
    pub(super) farewell: Option<(Vec<u8>, End)>,
    /// What is answered if the flow breaks before it brought a byte.
    on_broken: Option<fn() -> Vec<u8>>,
    pub(super) read_wanted: bool,
    pub(super) read_ended: bool,
    pub(super) write_wanted: bool,
    pub(super) write_ended: bool,
    pub(super) from_socket: u64,
    pub(super) to_socket: u64,
    /// The flow broke, and its last bytes are to be taken from here on before the deadline.
    pub(super) rest_from: Option<u64>,
    /// What the memory budget is charged for it: its state and the bytes held here.
    pub(super) held: usize,
}

/// How a stream ended, told to the machine once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides said FIN.
    Finished,
    /// The kernel socket failed.
    SocketFailed,
    /// The flow was reset, timed out or could not be opened.
    FlowBroken,
    /// The target does not speak TLS, or shows a certificate that is not trusted.
    TargetTls { untrusted: bool },
    /// The machine ended it.
    Dropped,
}

/// A stream that has ended.
#[derive(Debug)]
pub(crate) struct Ended<X> {
    pub(crate) data: X,
    pub(crate) end: End,
    pub(crate) from_socket: u64,
    pub(crate) to_socket: u64,
}

/// What a stream is charged besides the bytes it holds: its entries here and in the runtime, and its socket.
const STREAM_STATE: usize = 768 + KERNEL_SOCKET;
/// How long the TLS handshakes of a stream may take.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a socket that was answered here may take to close.
const LINGER: std::time::Duration = std::time::Duration::from_secs(5);
/// How long a socket may take nothing of what a broken flow has left for it.
const REST: std::time::Duration = std::time::Duration::from_secs(60);

impl<X> Stream<X> {
    /// A connected socket whose first bytes, at most `limit`, decide what becomes of it.
    pub(crate) fn with_head(data: X, limit: usize) -> Self {
        Self {
            head: Some(Vec::new()),
            head_limit: limit,
            ..Self::joined(data, None, true)
        }
    }

    /// An operator's connection, which is answered here and belongs to nobody.
    pub(crate) fn of_operator(limit: usize) -> Self {
        Self {
            head: Some(Vec::new()),
            head_limit: limit,
            ..Self::new(None, None, true)
        }
    }

    /// A socket for a flow; `connected` or still being dialled.
    pub(crate) fn joined(data: X, flow: Option<FlowId>, connected: bool) -> Self {
        Self::new(Some(data), flow, connected)
    }

    fn new(data: Option<X>, flow: Option<FlowId>, connected: bool) -> Self {
        Self {
            data,
            flow,
            connected,
            head: None,
            head_limit: 0,
            prefix: Vec::new(),
            lead: Vec::new(),
            tls: None,
            metered: Metered::default(),
            answer: None,
            farewell: None,
            on_broken: None,
            read_wanted: false,
            read_ended: false,
            write_wanted: false,
            write_ended: false,
            from_socket: 0,
            to_socket: 0,
            rest_from: None,
            held: 0,
        }
    }

    /// The same, with bytes that the socket gets first, and with TLS between flow and socket.
    pub(crate) fn with(self, lead: Vec<u8>, tls: Option<Box<Tls>>) -> Self {
        Self { lead, tls, ..self }
    }

    /// What it is charged when it holds no bytes.
    pub(super) fn charge(&self) -> usize {
        STREAM_STATE + self.tls.as_ref().map_or(0, |tls| tls.charge())
    }

    /// The bytes read so far while nothing else is known.
    pub(crate) fn head(&self) -> Option<&[u8]> {
        self.head.as_deref()
    }

    /// Whether the head can grow no more.
    pub(crate) fn head_is_over(&self) -> bool {
        self.read_ended || self.head.as_ref().is_some_and(|head| head.len() >= self.head_limit)
    }

    /// Bytes read from its socket.
    pub(super) fn bytes_read(&self) -> u64 {
        self.from_socket
    }

    /// Whether its visitor was already answered here.
    pub(crate) fn is_answered(&self) -> bool {
        self.answer.is_some()
    }
}

impl<X, E> Node<X, E> {
    pub(crate) fn stream(&self, id: StreamId) -> Option<&Stream<X>> {
        self.streams.get(key(id))
    }

    /// The streams whose data `wanted` picks, in order.
    pub(crate) fn streams_where(&self, wanted: impl Fn(&X) -> bool) -> Vec<StreamId> {
        let picked = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.data.as_ref().is_some_and(&wanted));
        picked
            .map(|(key, _)| StreamId {
                index: key.index,
                generation: key.generation,
            })
            .collect()
    }

    /// Each stream's data, the bytes read from its socket, and those written to it.
    pub(crate) fn stream_bytes(&self) -> impl Iterator<Item = (&X, u64, u64)> {
        let streams = self.streams.iter();
        streams.filter_map(|(_, stream)| Some((stream.data.as_ref()?, stream.from_socket, stream.to_socket)))
    }

    /// What the streams are charged in all, those of operators, which have their own budget, left out.
    pub(crate) fn streams_held(&self) -> usize {
        let (mut held, mut of_operators, mut operators) = (0, 0, 0);
        for (_, stream) in self.streams.iter() {
            if stream.data.is_some() {
                held += stream.held;
            } else {
                of_operators += stream.held;
                operators += 1;
            }
        }
        assert_eq!(
            (of_operators, operators),
            (self.admin.budget.used(), self.admin.connections),
            "what operators are charged is held"
        );
        held
    }

    pub(crate) fn stream_mut(&mut self, id: StreamId) -> Option<&mut Stream<X>> {
        self.streams.get_mut(key(id))
    }

    /// Whether there are bytes of its key's to move in this direction, as far as the flow goes.
    pub(super) fn could_move(&self, id: StreamId, lane: Lane) -> bool {
        let Some(stream) = self.streams.get(key(id)) else {
            return false;
        };
        let view = stream.flow.and_then(|flow| self.stack.view(flow));
        view.is_some_and(|view| match lane {
            Lane::Fill => stream.prefix.is_empty() && !stream.read_ended && view.can_send,
            Lane::Drain => stream.lead.is_empty() && view.can_receive,
        })
    }

    pub(super) fn meters_and_stream(&mut self, id: StreamId) -> (&mut Meters, Option<&mut Stream<X>>) {
        (&mut self.meters, self.streams.get_mut(key(id)))
    }

    /// Asserts what must always hold between streams and the rates of their keys.
    pub(super) fn check_meters(&self) {
        let lanes = [Lane::Fill, Lane::Drain];
        let waits = |stream: &Stream<X>| lanes.iter().filter(|&&lane| stream.metered.waits(lane)).count();
        let waiting = self.streams.iter().map(|(_, stream)| waits(stream)).sum();
        let metered = |id| self.stream(id).map(|stream| &stream.metered);
        self.meters.check_invariants(waiting, metered);
    }

    /// How many streams there are beside those of operators.
    pub(crate) fn stream_count(&self) -> usize {
        self.streams.len() - self.admin.connections
    }

    /// Whose memory a stream takes.
    pub(super) fn budget_of(&mut self, of_operator: bool) -> &mut Budget {
        if of_operator {
            &mut self.admin.budget
        } else {
            &mut self.resources.budget
        }
    }

    /// Adds a stream, unless there are as many as there may be or memory is short, and asks for its bytes. One that is to
    /// be dialled waits for its first [`Node::service`], which may already be its end.
    pub(crate) fn insert_stream(&mut self, mut stream: Stream<X>) -> Option<StreamId> {
        let of_operator = stream.data.is_none();
        if !of_operator && self.stream_count() >= self.max_streams {
            self.resources.counters.refused_streams_full += 1;
            return None;
        }
        stream.held = stream.charge() + stream.lead.len();
        if !self.budget_of(of_operator).charge(stream.held) {
            self.resources.counters.refused_memory += 1;
            return None;
        }
        let is_connected = stream.connected;
        let inserted = self.streams.insert_with(|_| stream)?;
        self.admin.connections += usize::from(of_operator);
        let id = StreamId {
            index: inserted.index,
            generation: inserted.generation,
        };
        if let Some(stream) = self.streams.get(inserted) {
            if let Some(flow) = stream.flow {
                self.stack.set_owner(flow, Owner::Stream(id));
            }
            if stream.tls.is_some() {
                self.stream_deadlines.set(id, self.latest + HANDSHAKE);
            }
        }
        if is_connected {
            self.service(id);
        }
        Some(id)
    }

    /// Joins a stream whose head is known to a flow that was opened just now: `prefix` goes first, then the head, then what is
    /// read.
    pub(crate) fn join(&mut self, id: StreamId, flow: FlowId, mut prefix: Vec<u8>, on_broken: Option<fn() -> Vec<u8>>) {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return;
        };
        if let Some(head) = stream.head.take() {
            prefix.extend_from_slice(&head);
        }
        stream.flow = Some(flow);
        stream.on_broken = on_broken;
        self.stack.set_owner(flow, Owner::Stream(id));
        if self.hold(id, prefix.len()) {
            self.stack.send_early(flow, &prefix, &mut self.resources);
            if let Some(stream) = self.streams.get_mut(key(id)) {
                stream.prefix = prefix;
            }
            self.service(id);
        }
    }

    /// Charges a stream for the bytes it holds from now on. If there is no memory for them, the stream is dropped.
    pub(super) fn hold(&mut self, id: StreamId, bytes: usize) -> bool {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return false;
        };
        let held = stream.charge() + bytes;
        let (before, of_operator) = (stream.held, stream.data.is_none());
        if !self.budget_of(of_operator).recharge(before, held) {
            self.resources.counters.refused_memory += 1;
            self.drop_stream(id, End::Dropped);
            return false;
        }
        if let Some(stream) = self.streams.get_mut(key(id)) {
            stream.held = held;
        }
        true
    }

    /// The kernel socket of a stream that was being dialled is connected.
    pub(crate) fn connected(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(key(id)) {
            stream.connected = true;
            self.service(id);
        }
    }

    /// Answers the socket from here, then closes it; its stream deadline is set. No flow has anything to do with it any
    /// more.
    pub(crate) fn answer(&mut self, id: StreamId, bytes: Vec<u8>) {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return;
        };
        stream.head = None;
        stream.prefix = Vec::new();
        if let Some(flow) = stream.flow.take() {
            self.stack.release(flow, true, &mut self.resources);
        }
        if self.hold(id, bytes.len()) {
            if let Some(stream) = self.streams.get_mut(key(id)) {
                stream.answer = Some(bytes);
            }
            self.stream_deadlines.set(id, self.latest + LINGER);
            self.service(id);
        }
    }

    /// Ends a stream at once: RST to the socket and to the flow.
    pub(crate) fn drop_stream(&mut self, id: StreamId, end: End) {
        self.actions.push_back(Action::Abort(id));
        self.remove_stream(id, true, end);
    }

    /// Ends a stream that took too long over the rest of a broken flow, unless it has taken some of it meanwhile. False if that
    /// is not what its deadline is for.
    pub(crate) fn rest_overdue(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return false;
        };
        match stream.rest_from {
            None => return false,
            Some(taken) if taken == stream.to_socket => self.drop_stream(id, End::FlowBroken),
            Some(_) => {
                stream.rest_from = Some(stream.to_socket);
                self.stream_deadlines.set(id, self.latest + REST);
            }
        }
        true
    }

    /// Ends a stream whose flow is of no use, with a page if its visitor can be told that way.
    pub(crate) fn break_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(key(id)) else {
            return;
        };
        if let (Some(page), 0) = (stream.on_broken, stream.to_socket) {
            return self.answer(id, page());
        }
        self.drop_stream(id, End::FlowBroken);
    }

    /// Brings both sides of a stream to where they can be: asks for bytes, passes ends on, and ends it.
    pub(crate) fn service(&mut self, id: StreamId) {
        if !self.pump_tls(id) {
            return;
        }
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return;
        };
        if !stream.connected {
            // What the flow brought waits. If it broke meanwhile, nobody needs the dial any more.
            if stream
                .flow
                .and_then(|flow| self.stack.view(flow))
                .is_none_or(|view| view.broken)
            {
                self.actions.push_back(Action::Abort(id));
                self.remove_stream(id, true, End::FlowBroken);
            }
            return;
        }
        let Some(flow) = stream.flow else {
            return self.service_alone(id);
        };
        let Some(view) = self.stack.view(flow) else {
            self.drop_stream(id, End::FlowBroken);
            return;
        };
        let (can_receive, has_ended) = match &stream.tls {
            // What TLS has to say behind the end is for nobody.
            Some(tls) => (!tls.to_socket().is_empty() && !stream.write_ended, tls.has_ended()),
            None => (view.can_receive, view.remote_fin),
        };
        if view.broken && !can_receive {
            return self.break_stream(id);
        }
        // One that only takes bytes after it has sent its own will never take these: there is nowhere to send to.
        if view.broken && stream.rest_from.is_none() {
            stream.rest_from = Some(stream.to_socket);
            self.stream_deadlines.set(id, self.latest + REST);
        }
        if !stream.prefix.is_empty() && view.can_send {
            let sent = self.stack.send(flow, &stream.prefix);
            stream.prefix.drain(..sent);
            if stream.prefix.is_empty() {
                stream.prefix = Vec::new();
                self.resources.budget.release(stream.held - STREAM_STATE);
                stream.held = STREAM_STATE;
                if stream.read_ended {
                    self.stack.close(flow);
                }
            }
        }
        let has_room = match &stream.tls {
            Some(tls) => tls.can_take(),
            None => stream.prefix.is_empty() && self.stack.view(flow).is_some_and(|view| view.can_send),
        };
        let waits = |lane| stream.metered.waits(lane);
        if has_room && !stream.read_ended && !stream.read_wanted && !waits(Lane::Fill) {
            stream.read_wanted = true;
            self.actions.push_back(Action::WantRead(id));
        }
        if can_receive || !stream.lead.is_empty() {
            if !stream.write_wanted && !stream.write_ended && !waits(Lane::Drain) {
                stream.write_wanted = true;
                self.actions.push_back(Action::WantWrite(id));
            }
            return;
        }
        if has_ended && !stream.write_ended {
            stream.write_ended = true;
            self.actions.push_back(Action::Shutdown(id));
        }
        let all_sent = match &stream.tls {
            Some(tls) => tls.is_flow_closed(),
            None => stream.prefix.is_empty(),
        };
        if stream.write_ended && stream.read_ended && all_sent {
            self.actions.push_back(Action::Close(id));
            self.remove_stream(id, false, End::Finished);
        }
    }

    /// The same for a stream without a flow: its head is being read, or it is answered from here.
    fn service_alone(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return;
        };
        let reads = stream.answer.is_some() || stream.head.as_ref().is_some_and(|head| head.len() < stream.head_limit);
        if reads && !stream.read_ended && !stream.read_wanted {
            stream.read_wanted = true;
            self.actions.push_back(Action::WantRead(id));
        }
        let Some(answer) = &stream.answer else { return };
        if !answer.is_empty() {
            if !stream.write_wanted {
                stream.write_wanted = true;
                self.actions.push_back(Action::WantWrite(id));
            }
            return;
        }
        if !stream.write_ended {
            stream.write_ended = true;
            self.actions.push_back(Action::Shutdown(id));
        }
        // Closing before the visitor has done so would reset the connection and could take the answer with it.
        if stream.read_ended {
            self.actions.push_back(Action::Close(id));
            self.remove_stream(id, false, End::Dropped);
        }
    }

    pub(super) fn remove_stream(&mut self, id: StreamId, reset: bool, end: End) {
        let Some(stream) = self.streams.remove(key(id)) else {
            return;
        };
        let of_operator = stream.data.is_none();
        self.budget_of(of_operator).release(stream.held);
        self.admin.connections -= usize::from(of_operator);
        self.stream_deadlines.clear(id);
        self.meters.leave(&stream.metered);
        if let Some(flow) = stream.flow {
            self.stack.release(flow, reset, &mut self.resources);
        }
        let Stream {
            data,
            from_socket,
            to_socket,
            ..
        } = stream;
        if let Some(data) = data {
            self.ended.push_back(Ended {
                data,
                end,
                from_socket,
                to_socket,
            });
        }
    }
}

pub(super) fn key(id: StreamId) -> Key {
    Key {
        index: id.index,
        generation: id.generation,
    }
}
