//! Bytes that travel with a SYN, and answers that do not wait for the end of a handshake: a round trip less until a target
//! is dialled, and until its first bytes are back.
//!
//! Both are as in TCP Fast Open (RFC 7413), without its cookies: who sends a SYN in here has a session of [`crate::wg`], so
//! its address is its own. An end that knows nothing of it leaves the bytes of a SYN unacknowledged, and they are sent again
//! behind the handshake.
//!
//! Nor do they arrive twice (RFC 7413, section 2.1). Only the first SYN has them, and WireGuard takes no packet two times. And
//! an end remembers whom it has answered and lost before the other end has heard of it: a SYN that comes again then is refused.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::flow::Flow;
use super::house::Builder;
use super::ip::Inner;
use super::segment::{self, HEADERS, Head, Way};
use super::{FlowId, FlowKey, Stack};
use crate::resources::Resources;
use crate::wg::PeerId;

/// What of a flow's first bytes goes with its SYN.
#[derive(Debug, Default)]
pub(super) enum Early {
    #[default]
    Nothing,
    /// These, and nobody has answered yet.
    Offered(Box<[u8]>),
    /// So many have arrived, and its owner does not know yet.
    Arrived(usize),
}

/// Flows that were lost while nobody had confirmed them: their keys, the numbers of their SYNs, and when those came.
#[derive(Debug, Default)]
pub(super) struct Fallen(VecDeque<(Instant, FlowKey, u32)>);

/// Longer than an end goes on sending its SYN.
const REMEMBERED_FOR: Duration = Duration::from_secs(30);
/// So many flows are remembered at most. While there is no room for more, connections wait for the end of their handshake.
pub(super) const MOST_FALLEN: usize = 1024;
/// What a SYN has of options: the largest segment, the scale of windows, and selective acknowledgements.
const SYN_OPTIONS: usize = 12;

impl Early {
    /// What is held for it.
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Offered(bytes) => bytes.len(),
            _ => 0,
        }
    }

    /// How many bytes have arrived, for the owner who wants to send them.
    pub(super) fn take_arrived(&mut self) -> usize {
        match self {
            Self::Arrived(bytes) => std::mem::replace(bytes, 0),
            _ => 0,
        }
    }
}

impl Fallen {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(&(came, ..)) = self.0.front()
            && now.saturating_duration_since(came) > REMEMBERED_FOR
        {
            self.0.pop_front();
        }
    }
}

impl Stack {
    /// Whether a connection is answered before its handshake is through.
    pub(super) fn answers_at_once(&mut self, now: Instant) -> bool {
        self.fallen.forget_old(now);
        self.config.answers_at_once && self.fallen.len() + self.unconfirmed < MOST_FALLEN
    }

    /// A flow is lost: its SYN is remembered if nobody has confirmed it.
    pub(super) fn note_fallen(&mut self, flow: &Flow) {
        if let Some(syn) = flow.unconfirmed {
            self.unconfirmed -= 1;
            self.fallen.0.push_back((flow.heard, flow.key, syn));
        }
    }

    /// Whether this SYN has opened a flow before that is lost.
    pub(super) fn has_fallen(&mut self, now: Instant, key: FlowKey, packet: &[u8]) -> bool {
        self.fallen.forget_old(now);
        let syn = Head::of(packet).map(|head| head.seq);
        self.fallen
            .0
            .iter()
            .any(|&(_, fallen, number)| fallen == key && Some(number) == syn)
    }

    /// Sends the first of these bytes with the SYN of a connection that was opened just now. They are to be sent by
    /// [`Stack::send`] all the same, before anything else: what has arrived is passed over there.
    pub(crate) fn send_early(&mut self, id: FlowId, bytes: &[u8], resources: &mut Resources) {
        let most = self.config.mtu - HEADERS - SYN_OPTIONS;
        let bytes = &bytes[..bytes.len().min(most)];
        if let Some(flow) = self.flows.get_mut(id.0)
            && resources.budget.charge(bytes.len())
        {
            flow.early = Early::Offered(bytes.into());
        }
    }

    /// How long a round trip to a peer takes, as far as that is known.
    pub(crate) fn round_trip(&self, peer: PeerId) -> Option<Duration> {
        self.precedents.round_trip(peer)
    }

    /// Puts what goes with a SYN into the next packet, if that is one.
    pub(super) fn add_early(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get(id.0) else { return };
        // One that is sent again has none: it might arrive as well.
        if let Early::Offered(bytes) = &flow.early
            && !flow.wire.repeated
            && Head::of(self.next.packet()).is_some_and(|head| head.syn())
        {
            let len = self.next.len();
            self.next.put_more(bytes);
            segment::lengthened(self.next.packet_mut(), len);
        }
    }

    /// The handshake is through: takes note of what has arrived with the SYN.
    pub(super) fn settle_early(&mut self, id: FlowId, resources: &mut Resources) {
        let Some(flow) = self.flows.get_mut(id.0) else { return };
        resources.budget.release(flow.early.held());
        flow.early = match flow.wire.settle_early() {
            0 => Early::Nothing,
            bytes => {
                resources.counters.flows_early += 1;
                Early::Arrived(bytes as usize)
            }
        };
    }

    /// A new flow has its SYN: answers it, and goes on as if the answer were acknowledged, and the SYN's bytes came behind it.
    pub(super) fn answer_at_once(
        &mut self,
        now: Instant,
        id: FlowId,
        peer: PeerId,
        inner: &Inner,
        packet: &mut [u8],
        resources: &mut Resources,
    ) {
        let smoltcp_now = self.smoltcp_instant(now);
        let (Some(flow), Some(head)) = (self.flows.get_mut(id.0), Head::of(packet)) else {
            return;
        };
        let Some(house) = &mut flow.house else { return };
        let mut builder = Builder {
            interface: &mut self.interface,
            mtu: self.config.mtu,
            own: self.address,
            slot: &mut self.reply,
        };
        builder.give_turn(house, smoltcp_now, &flow.key);
        if self.reply.is_empty() {
            return;
        }
        flow.wire.outgoing(now, self.reply.packet_mut());
        flow.wire.acknowledge_early(self.reply.packet_mut(), head.payload);
        // There will be no measurement before bytes are acknowledged.
        flow.wire.round_trip = self.precedents.round_trip(peer);
        let mut room = [0; segment::MADE_UP];
        let (own, key) = (self.address, flow.key);
        let acknowledgement = segment::write(&mut room, own, &key, Way::In, flow.wire.made_up_confirmation());
        flow.wire.confirm_early(packet);
        self.push_reply(peer);
        self.segment(now, peer, inner, acknowledgement, false, false, resources);
        if head.payload > 0 {
            resources.counters.flows_early += 1;
            self.segment(now, peer, inner, packet, false, true, resources);
        }
        if let Some(flow) = self.flows.get_mut(id.0) {
            flow.unconfirmed = Some(head.seq);
            self.unconfirmed += 1;
        }
    }

    /// Answers a SYN once more whose first answer was lost. Returns whether it was that.
    pub(super) fn answer_again(&mut self, now: Instant, id: FlowId, packet: &[u8]) -> bool {
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        let Some(head) = Head::of(packet).filter(|head| flow.unconfirmed == Some(head.seq)) else {
            return false;
        };
        debug_assert!(head.syn());
        flow.heard = now;
        let mss = u16::try_from(self.config.mtu - HEADERS).unwrap_or(u16::MAX);
        let answer = flow.wire.syn_again(mss);
        let (own, key, peer) = (self.address, flow.key, flow.peer);
        self.reply
            .put(|room| segment::write(room, own, &key, Way::Out, answer).len());
        self.push_reply(peer);
        true
    }
}
