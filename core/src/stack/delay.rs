//! Acknowledgements that wait for bytes to go with (RFC 9293, section 3.8.6.3).
//!
//! Who asks for little and gets little would be sent two packets: one that says that the question has arrived, and the answer.
//! Where the last answer took no time worth naming, the acknowledgement of the next question waits for the answer to that. It
//! waits for nothing where packets follow one another, since senders go by acknowledgements, nor where something is missing.

use std::time::{Duration, Instant};

use super::flow::Flow;
use super::recovery::BUSY;
use super::segment::HEADERS;
use super::{FlowId, Stack};

/// How long one waits.
const PATIENCE: Duration = Duration::from_millis(4);
const _: () = assert!(
    2 * PATIENCE.as_millis() < BUSY.as_millis(),
    "the other end would ask whether its packet has arrived"
);

/// What a flow knows of its acknowledgements.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delay {
    /// The last that was said was an answer, in time, and nothing has come since.
    pays: bool,
    /// One waits.
    waits: bool,
    /// The flow's timer was set for one, and was not set anew since.
    holds_timer: bool,
}

impl Delay {
    /// Whether one waits.
    pub(super) fn waits(self) -> bool {
        self.waits
    }

    /// It is the flow's turn: none waits any longer.
    pub(super) fn end(&mut self) {
        self.waits = false;
    }

    /// A packet goes, with all acknowledgements. `heard`: when one last came.
    pub(super) fn sent(&mut self, now: Instant, heard: Instant, has_bytes: bool) {
        self.pays = has_bytes && now.saturating_duration_since(heard) <= PATIENCE;
    }

    /// Whether the flow's timer is earlier than it must be. It is set anew now.
    pub(super) fn take_timer(&mut self) -> bool {
        std::mem::take(&mut self.holds_timer)
    }
}

impl Stack {
    /// A flow has taken in a packet with so many bytes: lets it answer, at once unless it is the only one and there may soon be
    /// something to go with the answer.
    pub(super) fn acknowledge(&mut self, now: Instant, id: FlowId, payload: usize) {
        let mss = self.config.mtu - HEADERS;
        if let Some(flow) = self.flows.get_mut(id.0).filter(|_| payload > 0) {
            let pays = std::mem::take(&mut flow.delay.pays);
            if pays && payload < mss && flow.may_delay() {
                (flow.delay.waits, flow.delay.holds_timer) = (true, true);
                return self.timers.set_no_later(id, now + PATIENCE);
            }
        }
        self.enqueue(id);
    }
}

impl Flow {
    /// Whether there is nothing to send but the acknowledgement of one packet, for which nobody waits.
    fn may_delay(&self) -> bool {
        let Some(house) = &self.house else {
            return false;
        };
        let socket = house.socket();
        self.unacknowledged == 1
            && !self.queued
            && self.seen.established
            && !self.seen.is_ending()
            && !self.need.wishes()
            && self.wire.in_flight() == 0
            && socket.send_queue() == 0
            && socket.recv_queue() <= socket.recv_capacity() / 2
            && self.wire.has_all(socket.recv_queue())
    }
}
