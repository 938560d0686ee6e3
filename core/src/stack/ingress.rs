//! Packets from the tunnel: to their flow, or a new one.

use std::net::Ipv6Addr;
use std::time::Instant;

use smoltcp::socket::tcp::State;

use super::coalesce;
use super::device::{self, Ends, Port};
use super::house::Builder;
use super::ip::{self, Inner, Payload};
use super::segment::{self, HEADERS, Head, count};
use super::{FlowId, FlowKey, Stack, TunnelDatagram};
use crate::resources::Resources;
use crate::wg::{PeerId, padded};

/// Data packets after which an acknowledgement leaves at once; behind the last one of a batch one leaves in any case. RFC 9293
/// (3.8.6.3) asks for one every second packet, which its senders count: a kernel's goes by the bytes, and so does ours (see
/// `congestion`). Each one costs both ends a quarter of what a packet of data does.
const ACKNOWLEDGE_EVERY: u32 = 8;
/// So many bytes without a hole: the path does not lose one packet in three thousand.
const LOSSLESS: u32 = 4 << 20;

impl Stack {
    /// Takes in a packet of a peer whose source address was checked. TCP is dealt with here; a UDP packet is returned.
    pub(crate) fn ingress(
        &mut self,
        now: Instant,
        peer: PeerId,
        packet: &mut [u8],
        resources: &mut Resources,
    ) -> Option<TunnelDatagram> {
        // smoltcp does not see the addresses.
        let is_ours = |inner: &Inner| inner.destination == self.address && is_somebody(inner.source);
        let Some(inner) = ip::parse(packet).filter(is_ours) else {
            resources.counters.drop_inner_packet += 1;
            return None;
        };
        match inner.payload {
            Payload::Udp(contents) => Some(TunnelDatagram {
                source_port: inner.source_port,
                destination_port: inner.destination_port,
                contents,
            }),
            Payload::Tcp { opens, has_data } => {
                self.segment(now, peer, &inner, packet, opens, has_data, resources);
                None
            }
        }
    }

    /// How long a packet of TCP may become by those that carry it on, given its headers: each one that is out of order is
    /// news to the other end, and where packets are lost, acknowledgements are, and need others behind them.
    pub(crate) fn most_coalesced(&self, headers: &[u8]) -> usize {
        let flow = self
            .by_key
            .get(&segment::key_of(headers))
            .and_then(|id| self.flows.get(id.0));
        let (Some(head), Some(flow)) = (Head::of(headers), flow) else {
            return 0;
        };
        let unread = flow
            .house
            .as_ref()
            .map_or(0, |house| count(house.socket().recv_queue()));
        if !flow.seen.established || !flow.wire.expects(head.seq, unread) {
            0
        } else if flow.wire.unbroken < LOSSLESS {
            HEADERS + ACKNOWLEDGE_EVERY as usize * (self.config.mtu - HEADERS)
        } else {
            coalesce::MOST
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parsed packet taken apart, and what it acts on"
    )]
    pub(super) fn segment(
        &mut self,
        now: Instant,
        peer: PeerId,
        inner: &Inner,
        packet: &mut [u8],
        opens: bool,
        has_data: bool,
        resources: &mut Resources,
    ) {
        let key = FlowKey {
            remote: inner.source,
            remote_port: inner.source_port,
            local_port: inner.destination_port,
        };
        let known = self.by_key.get(&key).copied();
        let id = match known {
            Some(id) if opens && self.answer_again(now, id, packet) => return,
            None if opens && self.has_fallen(now, key, packet) => {
                resources.counters.refused_lost_flow += 1;
                None
            }
            None if opens && self.served.contains_key(&key.local_port) => {
                match self.accept(now, peer, key, resources) {
                    Some(id) => Some(id),
                    // Full: no answer, so that the other end tries again.
                    None => return,
                }
            }
            None => {
                resources.counters.refused_closed_port += u64::from(opens);
                None
            }
            known => known,
        };
        let Some(id) = id else {
            return self.refuse(now, peer, inner.source, packet);
        };
        let sleeps = self.flows.get(id.0).is_some_and(|flow| flow.house.is_none());
        if sleeps && self.ingress_asleep(now, id, packet, resources) {
            return;
        }
        let Some(is_new) = self.take_in(now, peer, id, packet, has_data && !opens, resources) else {
            return;
        };
        self.push_reply(peer);
        self.mend(now, id);
        if is_new {
            self.settle_early(id, resources);
            if let Some(flow) = self.flows.get(id.0) {
                self.precedents.measured(flow);
            }
            self.move_in(now, id, resources);
        }
        if known.is_none() && self.answers_at_once(now) {
            self.answer_at_once(now, id, peer, inner, packet, resources);
        }
        self.touch(id);
        let brings_bytes = has_data && !opens;
        self.acknowledge(now, id, if brings_bytes { packet.len() - HEADERS } else { 0 });
    }

    /// Answers a packet of no connection with a RST, which is what smoltcp answers to it where there is no socket.
    fn refuse(&mut self, now: Instant, peer: PeerId, other: Ipv6Addr, packet: &mut [u8]) {
        let smoltcp_now = self.smoltcp_instant(now);
        let mut port = Port {
            mtu: self.config.mtu,
            ends: Ends {
                own: self.address,
                other,
            },
            incoming: Some(packet),
            outgoing: &mut self.reply,
        };
        self.interface
            .poll_ingress_single(smoltcp_now, &mut port, &mut self.nothing);
        self.push_reply(peer);
    }

    /// Gives a packet to the socket of its flow, with what that would not see by itself, and notes what has come of it. What
    /// it answers is in the slot of replies. Returns whether the connection was established by it; `None` if it has ended.
    fn take_in(
        &mut self,
        now: Instant,
        peer: PeerId,
        id: FlowId,
        packet: &mut [u8],
        brings_bytes: bool,
        resources: &mut Resources,
    ) -> Option<bool> {
        let smoltcp_now = self.smoltcp_instant(now);
        let flow = self.flows.get_mut(id.0)?;
        if flow.seen.state == Some(State::TimeWait) {
            // Both FINs are through and only unread bytes are left, which smoltcp would clear when TIME-WAIT ends.
            return None;
        }
        let house = flow.house.as_mut()?;
        let unread = count(house.socket().recv_queue()) + u32::from(flow.seen.remote_fin);
        let unacknowledged = count(house.socket().send_queue());
        let news = match flow.seen.established {
            true => flow.wire.late_news(packet, unread, unacknowledged),
            false => None,
        };
        let mut builder = Builder {
            interface: &mut self.interface,
            mtu: self.config.mtu,
            own: self.address,
            slot: &mut self.reply,
        };
        if let Some(news) = news {
            builder.feed(house, smoltcp_now, &flow.key, news);
            resources.counters.late_acknowledgements += 1;
        }
        flow.wire.incoming(now, packet, || self.company.has(now, peer, id));
        resources.counters.queues_shortened += u64::from(flow.wire.queue.take_shortened());
        flow.heard = now;
        if flow.unconfirmed.take().is_some() {
            self.unconfirmed -= 1;
        }
        let was_half_open = flow.is_half_open();
        let before = flow.seen;
        let house = flow.house.as_mut()?;
        builder.hand_in(house, smoltcp_now, &flow.key, packet);
        if !builder.slot.is_empty() {
            flow.wire.outgoing(now, builder.slot.packet_mut());
        }
        if flow.observe() && matches!(before.state, Some(State::Listen | State::SynSent)) {
            flow.wire.met(packet);
        }
        if flow.seen.state == Some(State::TimeWait) {
            flow.ended.get_or_insert(smoltcp_now);
        }
        if was_half_open && !flow.is_half_open() {
            self.half_open -= 1;
        }
        if brings_bytes {
            flow.active_at = now;
            flow.just_woken = false;
            let payload = packet.len().saturating_sub(HEADERS);
            flow.need.arrived(now, payload, flow.wire.round_trip);
            // Several may have been put together.
            flow.unacknowledged += count(payload.div_ceil(self.config.mtu - HEADERS));
            let house = flow.house.as_mut()?;
            // What has more to say acknowledges with that, in its turn and in order.
            let speaks =
                flow.wire.has_unsent(house.socket().send_queue()) || self.next_of.is_some_and(|(_, next)| next == id);
            if flow.unacknowledged >= ACKNOWLEDGE_EVERY && builder.slot.is_empty() && !speaks {
                flow.unacknowledged = 0;
                builder.give_turn(house, smoltcp_now, &flow.key);
                if !builder.slot.is_empty() {
                    flow.wire.outgoing(now, builder.slot.packet_mut());
                }
            }
        }
        Some(!before.established && flow.seen.established)
    }

    /// Queues the reply that was made, if one was.
    pub(super) fn push_reply(&mut self, peer: PeerId) {
        if self.reply.is_empty() {
            return;
        }
        self.reply.make_ready();
        while !self.reply.is_empty() {
            let padded_len = padded(self.reply.len(), self.config.mtu);
            // A full queue loses a reply, as a network does.
            self.queue.push(peer, self.reply.padded(padded_len));
            self.reply.advance();
        }
    }

    /// Makes a flow for a connection that a peer opens.
    fn accept(&mut self, now: Instant, peer: PeerId, key: FlowKey, resources: &mut Resources) -> Option<FlowId> {
        if self.half_open >= self.config.max_half_open {
            resources.counters.refused_half_open += 1;
            return None;
        }
        let largest = *self.served.get(&key.local_port)?;
        let id = self.insert_flow(now, peer, key, true, largest, resources).ok()?;
        let flow = self.flows.get_mut(id.0)?;
        if let Some(house) = &mut flow.house {
            let listening = house.socket_mut().listen(device::own(key.local_port));
            debug_assert!(listening.is_ok(), "a new socket can listen on a port that is not 0");
        }
        flow.observe();
        self.half_open += 1;
        Some(id)
    }
}

/// Whether an answer to this address has one place to go to.
fn is_somebody(address: Ipv6Addr) -> bool {
    !address.is_multicast() && !address.is_unspecified()
}
