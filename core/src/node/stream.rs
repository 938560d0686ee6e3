//! A kernel socket and the flow it is joined to: FIN for FIN, RST for RST, and each side read only as fast as the other
//! takes it.

use crate::budget::Budget;
use crate::http;
use crate::machine::{Action, ByteStream, StreamId};
use crate::node::meter::{Hand, Lane, Metered, Meters};
use crate::node::tls::{CHUNK, Failed, Said, Tls};
use crate::node::{Node, Owned};
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
    connected: bool,
    /// Bytes read from the socket before anything is known of the flow.
    head: Option<Vec<u8>>,
    head_limit: usize,
    /// Bytes that go into the flow before those read from the socket.
    prefix: Vec<u8>,
    /// Bytes for the socket in front of those that the flow brings.
    lead: Vec<u8>,
    /// What stands between flow and socket, if anything does.
    tls: Option<Box<Tls>>,
    /// What it has to do with its key's rate.
    pub(super) metered: Metered,
    /// Bytes for the socket made here, after which it is closed.
    answer: Option<Vec<u8>>,
    /// What the visitor is told within its TLS, as there is no socket for it, and what the stream ends with then.
    farewell: Option<(Vec<u8>, End)>,
    /// What is answered if the flow breaks before it brought a byte.
    on_broken: Option<fn() -> Vec<u8>>,
    read_wanted: bool,
    read_ended: bool,
    write_wanted: bool,
    write_ended: bool,
    from_socket: u64,
    to_socket: u64,
    /// What the memory budget is charged for it: its state and the bytes held here.
    held: usize,
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

/// What a stream is charged besides the bytes it holds.
const STREAM_STATE: usize = 512;
/// How much is read of a head at a time.
const HEAD_STEP: usize = 2048;
/// How long the TLS handshakes of a stream may take.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a socket that was answered here may take to close.
const LINGER: std::time::Duration = std::time::Duration::from_secs(5);
/// Bytes of a visitor who was already answered are thrown away through this.
const DISCARD: usize = 4096;

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
            held: 0,
        }
    }

    /// The same, with bytes that the socket gets first, and with TLS between flow and socket.
    pub(crate) fn with(self, lead: Vec<u8>, tls: Option<Box<Tls>>) -> Self {
        Self { lead, tls, ..self }
    }

    /// What it is charged when it holds no bytes.
    fn charge(&self) -> usize {
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
    fn budget_of(&mut self, of_operator: bool) -> &mut Budget {
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

    /// Joins a stream whose head is known to a flow: `prefix` goes first, then the head, then what is read.
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
            if let Some(stream) = self.streams.get_mut(key(id)) {
                stream.prefix = prefix;
            }
            self.service(id);
        }
    }

    /// Charges a stream for the bytes it holds from now on. If there is no memory for them, the stream is dropped.
    fn hold(&mut self, id: StreamId, bytes: usize) -> bool {
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

    /// Lets the TLS of a stream, if it has any, move what it can. False if that was its end.
    fn pump_tls(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(key(id)) else {
            return false;
        };
        let (Some(tls), Some(flow)) = (&mut stream.tls, stream.flow) else {
            return true;
        };
        let pumped = tls.pump(self.latest, flow, &mut self.stack);
        // The last step of a handshake comes from the flow or from the socket.
        if !tls.is_handshaking() {
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
    fn tls_failed(&mut self, id: StreamId, failed: Failed) {
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

    fn remove_stream(&mut self, id: StreamId, reset: bool, end: End) {
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

/// A stream's byte path, borrowed from its machine.
#[derive(Debug)]
pub struct StreamMut<'a, M> {
    machine: &'a mut M,
    now: std::time::Instant,
    id: StreamId,
}

impl<'a, M: Owned> StreamMut<'a, M> {
    pub(crate) fn new(machine: &'a mut M, now: std::time::Instant, id: StreamId) -> Option<Self> {
        machine.node().streams.get(key(id))?;
        Some(Self { machine, now, id })
    }
}

impl<M: Owned> StreamMut<'_, M> {
    /// The same as [`ByteStream::fill`] where TLS stands between socket and flow.
    fn fill_tls(&mut self, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let stream = node.streams.get_mut(key(self.id))?;
        let tls = stream.tls.as_mut()?;
        if !tls.can_take() || stream.farewell.is_some() {
            stream.read_wanted = false;
            return None;
        }
        let mut chunk = [0; CHUNK];
        let count = read(&mut chunk).min(CHUNK);
        stream.from_socket += count as u64;
        match tls.take(self.now, &chunk[..count]) {
            Ok(()) => {
                // A target that says within TLS that it has ended need not say it again by FIN.
                if tls.has_target_ended() {
                    (stream.read_ended, stream.read_wanted) = (true, false);
                }
                node.service(self.id);
            }
            Err(failed) => node.tls_failed(self.id, failed),
        }
        self.machine.settle(self.now);
        Some(count)
    }

    /// The same as [`ByteStream::fill`] where no rate is in the way.
    fn fill_freely(&mut self, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let stream = node.streams.get_mut(key(self.id))?;
        if stream.read_ended {
            return None;
        }
        if let Some(len) = stream.head.as_ref().map(Vec::len) {
            let room = HEAD_STEP.min(stream.head_limit - len);
            if room == 0 {
                stream.read_wanted = false;
                return None;
            }
            if !node.hold(self.id, len + room) {
                self.machine.settle(self.now);
                return None;
            }
            let stream = node.streams.get_mut(key(self.id))?;
            let head = stream.head.as_mut()?;
            head.resize(len + room, 0);
            let count = read(&mut head[len..]).min(room);
            head.truncate(len + count);
            stream.from_socket += count as u64;
            self.machine.head_grew(self.now, self.id);
            return Some(count);
        }
        if stream.answer.is_some() {
            return Some(read(&mut [0; DISCARD]).min(DISCARD));
        }
        if stream.tls.is_some() {
            return self.fill_tls(read);
        }
        let filled = match stream.flow {
            Some(flow) if stream.prefix.is_empty() => node.stack.fill(flow, read),
            _ => None,
        };
        match filled {
            Some(count) => stream.from_socket += count as u64,
            None => stream.read_wanted = false,
        }
        filled
    }

    /// The same as [`ByteStream::drain`] where no rate is in the way.
    fn drain_freely(&mut self, write: &mut dyn FnMut(&[u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let stream = node.streams.get_mut(key(self.id))?;
        let drained = match (&mut stream.answer, stream.flow) {
            (Some(answer), _) if !answer.is_empty() => {
                let count = write(answer).min(answer.len());
                answer.drain(..count);
                Some(count)
            }
            (None, Some(_)) if !stream.lead.is_empty() => {
                let count = write(&stream.lead).min(stream.lead.len());
                stream.lead.drain(..count);
                if stream.lead.is_empty() {
                    stream.lead = Vec::new();
                    node.resources.budget.release(stream.held - stream.charge());
                    stream.held = stream.charge();
                }
                // The header is none of the visitor's bytes.
                return Some(count);
            }
            (None, Some(flow)) => match &mut stream.tls {
                None => node.stack.drain(flow, write),
                Some(tls) if tls.to_socket().is_empty() => None,
                Some(tls) => {
                    let count = write(tls.to_socket()).min(tls.to_socket().len());
                    tls.took(count);
                    Some(count)
                }
            },
            _ => None,
        };
        match drained {
            Some(count) => stream.to_socket += count as u64,
            None => stream.write_wanted = false,
        }
        let is_empty = match (&stream.answer, stream.flow) {
            (Some(answer), _) => answer.is_empty(),
            (None, Some(flow)) => match &stream.tls {
                Some(tls) => tls.to_socket().is_empty(),
                None => node.stack.view(flow).is_none_or(|view| !view.can_receive),
            },
            (None, None) => true,
        };
        if is_empty {
            // The end may be behind the last byte.
            stream.write_wanted = false;
            node.service(self.id);
            self.machine.settle(self.now);
        }
        drained
    }

    /// Says what became of the bytes that were in hand.
    fn moved(&mut self, lane: Lane, hand: Hand, moved: Option<usize>, offered: usize) {
        let (node, bytes) = (self.machine.node(), moved.unwrap_or(0));
        if node.moved(self.now, self.id, lane, hand, bytes, offered) {
            self.machine.settle(self.now);
        }
    }
}

impl<M: Owned> ByteStream for StreamMut<'_, M> {
    fn fill(&mut self, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let Some(hand) = node.allowance(self.now, self.id, Lane::Fill) else {
            // Its turn brings the next WantRead.
            node.stream_mut(self.id)?.read_wanted = false;
            return None;
        };
        if hand.is_free() {
            return self.fill_freely(read);
        }
        let mut offered = 0;
        let filled = self.fill_freely(&mut |room| {
            offered = hand.most_of(room.len());
            read(&mut room[..offered]).min(offered)
        });
        self.moved(Lane::Fill, hand, filled, offered);
        filled
    }

    fn drain(&mut self, write: &mut dyn FnMut(&[u8]) -> usize) -> Option<usize> {
        let node = self.machine.node();
        let Some(hand) = node.allowance(self.now, self.id, Lane::Drain) else {
            // Its turn brings the next WantWrite.
            node.stream_mut(self.id)?.write_wanted = false;
            return None;
        };
        if hand.is_free() {
            return self.drain_freely(write);
        }
        let mut offered = 0;
        let drained = self.drain_freely(&mut |bytes| {
            offered = hand.most_of(bytes.len());
            write(&bytes[..offered]).min(offered)
        });
        self.moved(Lane::Drain, hand, drained, offered);
        drained
    }

    fn shutdown(&mut self) {
        let node = self.machine.node();
        let Some(stream) = node.streams.get_mut(key(self.id)) else {
            return;
        };
        if stream.farewell.is_some() {
            return;
        }
        stream.read_ended = true;
        stream.read_wanted = false;
        match (&mut stream.tls, stream.flow) {
            (Some(tls), _) => {
                if let Err(failed) = tls.socket_ended() {
                    node.tls_failed(self.id, failed);
                    return self.machine.settle(self.now);
                }
            }
            (None, Some(flow)) if stream.prefix.is_empty() => node.stack.close(flow),
            _ => {}
        }
        if stream.head.is_some() {
            self.machine.head_grew(self.now, self.id);
        } else {
            node.service(self.id);
        }
        self.machine.settle(self.now);
    }

    fn abort(&mut self) {
        let node = self.machine.node();
        // A socket that has gone is no news where its visitor is being told so.
        if node.stream(self.id).is_some_and(|stream| stream.farewell.is_none()) {
            node.actions.push_back(Action::Close(self.id));
            node.remove_stream(self.id, true, End::SocketFailed);
            self.machine.settle(self.now);
        }
    }
}

fn key(id: StreamId) -> Key {
    Key {
        index: id.index,
        generation: id.generation,
    }
}
