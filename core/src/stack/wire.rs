//! A connection as its other end knows it, whichever socket stands behind it.
//!
//! A flow changes its socket (see `house`), and each socket has sequence numbers and a window scale of its own. The other
//! end must see one connection: packets are translated on their way out and in. What must be known of a connection to
//! give it another socket, and to keep it without one, is noted here on the way.

use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, Ipv6Packet, TcpControl, TcpPacket, TcpRepr};

use super::congestion::Congestion;
use super::queue::Queue;
use super::recovery::{Loss, Recovery};
use super::segment::{
    self, ACK, BLANK, FIN, Head, RST, SYN, at, count, is_after, number, scale_option, write_u16, write_u32,
};

/// What we announce as the scale of our windows, whatever the socket's own is: windows up to 8 MiB.
const ANNOUNCED_SHIFT: u8 = 7;
/// The largest window that can be told to an end that does not scale windows.
pub(super) const UNSCALED_WINDOW: usize = 65_535;

/// What the other end said of itself in its SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Remote {
    mss: Option<u16>,
    scale: Option<u8>,
    sack: bool,
}

/// See the module docs. Sequence numbers are those on the wire, unless said otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wire {
    remote: Remote,
    /// Behind the last byte that was taken out of the socket.
    taken: u32,
    /// Behind the last byte that was put into the socket.
    put: u32,
    /// What our numbers on the wire are ahead of the socket's.
    offset: u32,
    /// The scale of the socket's own windows.
    shift: u8,
    /// The window that the other end told last, as it stood in the packet.
    window: u16,
    /// The window that the socket was told last.
    heard_window: u16,
    /// Up to where the other end takes bytes, as far as the socket has heard.
    edge: u32,
    /// What the other end has acknowledged.
    acknowledged: u32,
    /// Behind the last byte that is known to have arrived behind missing ones, if any has (RFC 2018).
    arrived_there: u32,
    /// Behind the last byte that we have sent.
    sent: u32,
    /// The same without what only asks whether a window has opened.
    in_earnest: u32,
    /// The socket believes that the window is shut: what it sends only asks.
    shut: bool,
    /// Behind the last byte that has arrived, in order or not.
    arrived: u32,
    /// How many bytes have arrived since one did that left others out.
    pub(super) unbroken: u32,
    /// What we have acknowledged last, and the window told with it as it stood in the packet.
    told: (u32, u16),
    /// The round trip, once it was measured.
    pub(super) round_trip: Option<Duration>,
    /// A number whose acknowledgement tells the round trip, when it was sent, and how much was on its way up to it.
    sample: Option<(u32, Instant, u32)>,
    pub(super) queue: Queue,
    pub(super) congestion: Congestion,
    pub(super) recovery: Recovery,
    /// Less may be on its way than the socket was told.
    pub(super) has_less: bool,
    /// The most that was on its way since this was last asked.
    pub(super) most_in_flight: u32,
    /// Something was sent again since this was last asked.
    pub(super) repeated: bool,
    /// How many bytes our SYN had, until [`Wire::settle_early`]; none if they were not taken.
    early: u32,
}

impl Wire {
    /// Notes what the other end's SYN says, which the socket has just taken.
    pub(super) fn met(&mut self, packet: &[u8]) {
        let Some(head) = Head::of(packet) else { return };
        let parsed = Ipv6Packet::new_checked(packet).ok().and_then(|ip| {
            let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
            let ends = (IpAddress::Ipv6(ip.src_addr()), IpAddress::Ipv6(ip.dst_addr()));
            TcpRepr::parse(&tcp, &ends.0, &ends.1, &ChecksumCapabilities::ignored())
                .ok()
                .map(|repr| Remote {
                    mss: repr.max_seg_size,
                    scale: repr.window_scale,
                    sack: repr.sack_permitted,
                })
        });
        self.remote = parsed.unwrap_or_default();
        self.congestion = Congestion::new(self.remote_mss());
        self.taken = head.seq.wrapping_add(1);
        self.arrived = self.taken;
        self.window = head.window;
        if self.remote.scale.is_none() {
            self.shift = 0;
        } else if let Some(scale) = self.remote.scale {
            // The window of a SYN is not scaled.
            self.window = head.window >> scale;
        }
    }

    /// Translates a packet that the socket made, and notes what it tells.
    pub(super) fn outgoing(&mut self, now: Instant, packet: &mut [u8]) {
        let Some(head) = Head::of(packet) else { return };
        let seq = head.seq.wrapping_add(self.offset);
        write_u32(packet, at::SEQ, seq);
        let end = head.end().wrapping_add(self.offset);
        if head.syn() {
            if let Some(option) = scale_option(packet) {
                self.shift = packet[option];
                packet[option] = ANNOUNCED_SHIFT;
            }
            if !self.repeated {
                (self.put, self.sent, self.in_earnest, self.acknowledged) = (end, end, end, seq);
                self.early = head.payload;
            }
            self.told = (head.ack, head.window);
            // Of one that was sent again nobody can tell which one is answered.
            self.sample = (!self.repeated).then_some((end, now, 0));
            self.repeated = true;
            return;
        }
        let window = self.on_wire(usize::from(head.window) << self.shift);
        write_u16(packet, at::WINDOW, window);
        if head.flags & RST == 0 {
            self.told = (head.ack, window);
        }
        if end == seq {
            return;
        }
        if !self.shut && is_after(end, self.in_earnest) {
            self.in_earnest = end;
        }
        if is_after(end, self.sent) {
            self.sent = end;
            self.sample
                .get_or_insert((end, now, end.wrapping_sub(self.acknowledged)));
            self.most_in_flight = self.most_in_flight.max(self.in_flight());
            self.recovery.sent(now, self.round_trip);
        } else if !is_keep_alive(seq, end, self.sent) {
            if let Some(loss) = self.recovery.sent_again(now, seq, end, self.sent) {
                let mss = count(self.remote_mss());
                self.congestion
                    .lost(loss, self.most_in_flight.max(self.in_flight()), mss);
                if loss != Loss::Found {
                    self.arrived_there = self.acknowledged;
                    self.has_less = true;
                }
            }
            self.repeated = true;
            self.sample = None;
        }
    }

    /// The acknowledgement in a packet of the other end of which a socket takes nothing else, as its bytes have all arrived
    /// before or lie beyond the window. smoltcp drops such a packet with all that it says. Its answers name the number that
    /// it sends next, which it sets back when it sends again, and which is too far while a window is shut: if both ends do
    /// either at once, neither would ever hear of the other's acknowledgement, or that its window is open again.
    ///
    /// `unread` bytes wait in the socket (an end counts as one), and `unacknowledged` have been put into it and are not
    /// known to have arrived. The packet is as it came, not translated, and the socket gets it next.
    pub(super) fn late_news(&mut self, packet: &[u8], unread: u32, unacknowledged: u32) -> Option<TcpRepr<'static>> {
        let head = Head::of(packet)?;
        let next = self.taken.wrapping_add(unread);
        let known = self.put.wrapping_sub(unacknowledged);
        let is_plain = head.flags & (SYN | RST | ACK) == ACK;
        if !is_plain || is_after(known, head.ack) || is_after(head.ack, self.sent) {
            return None;
        }
        let is_old = is_after(next, head.seq) && !is_after(head.end(), next);
        let is_dropped = is_old || !self.is_in_window(head.end());
        let window = self.window_for_socket(&head);
        let edge = head
            .ack
            .wrapping_add(u32::from(window) << self.remote.scale.unwrap_or(0));
        // A window that is not used up is no news: the same acknowledgement over and over would mean that bytes are missing.
        let opens = !is_after(self.edge, self.sent) && is_after(edge, self.edge);
        let is_news = head.ack != known || opens;
        if !is_dropped || is_news {
            self.edge = edge;
            self.shut = window == 0;
        }
        (is_dropped && is_news).then(|| TcpRepr {
            seq_number: number(next),
            ack_number: Some(number(head.ack.wrapping_sub(self.offset))),
            window_len: window,
            ..BLANK
        })
    }

    /// Translates a packet that is for the socket, and notes what it tells. `has_company`: see [`Queue::measured`].
    pub(super) fn incoming(&mut self, now: Instant, packet: &mut [u8], has_company: impl FnOnce() -> bool) {
        let Some(mut head) = Head::of(packet) else { return };
        if head.flags & (SYN | RST | FIN) == FIN && head.seq.wrapping_add(head.payload) == self.told.0 {
            // smoltcp drops a packet that has only bytes that have arrived before, and the end behind them with it.
            head.keep_end(packet);
        }
        if head.flags & (SYN | RST | FIN) == FIN && !self.is_in_window(head.seq.wrapping_add(head.payload)) {
            // smoltcp takes what fits, and the end as if the rest had come too. Both come again.
            packet[at::FLAGS] &= !FIN;
        }
        if head.payload > 0 && self.is_in_window(head.end()) && is_after(head.end(), self.arrived) {
            let leaves_hole = is_after(head.seq, self.arrived);
            self.unbroken = if leaves_hole {
                0
            } else {
                self.unbroken.saturating_add(head.payload)
            };
            self.arrived = head.end();
        }
        if !head.acknowledges() {
            return;
        }
        let offset = if self.early > 0 {
            self.answered_early(&head)
        } else {
            self.offset
        };
        let known = (self.acknowledged, self.heard_window);
        if !is_after(self.acknowledged, head.ack) && !is_after(head.ack, self.sent) {
            let (flight, arrived) = (self.in_flight(), head.ack.wrapping_sub(self.acknowledged));
            self.acknowledged = head.ack;
            if let Some(edge) = segment::arrived_behind_missing(packet)
                && is_after(edge, head.ack)
                && !is_after(edge, self.sent)
                && (is_after(edge, self.arrived_there) || !is_after(self.arrived_there, head.ack))
            {
                self.arrived_there = edge;
            }
            if head.ack != known.0 {
                if !self.recovery.is_mending() {
                    let mss = count(self.remote_mss());
                    self.congestion.acknowledged(now, arrived, flight, mss, self.round_trip);
                }
                self.recovery
                    .acknowledged(now, head.ack, self.in_flight(), self.round_trip);
            }
            if !head.syn() {
                self.window = usable(head.window);
            }
            if let Some((end, at, bytes)) = self.sample
                && !is_after(end, head.ack)
            {
                let took = now.saturating_duration_since(at);
                self.round_trip = Some(self.round_trip.map_or(took, |old| (old * 7 + took) / 8));
                self.queue.measured(now, took, bytes, has_company());
                self.sample = None;
            }
        }
        // Nobody looks at the checksum from here on: the packet passed the AEAD.
        let window = self.no_repetition(&head, self.window_for_socket(&head));
        self.has_less = false;
        if (head.ack, window) == known && head.payload == 0 && self.in_flight() > 0 {
            self.recovery.said_again();
        }
        if window != head.window {
            write_u16(packet, at::WINDOW, window);
        }
        if offset != 0 {
            write_u32(packet, at::ACK, head.ack.wrapping_sub(offset));
        }
    }

    /// What is in an answer to a SYN that had bytes, of which the socket knows nothing: what our numbers are ahead of its.
    fn answered_early(&mut self, head: &Head) -> u32 {
        let early = self.early;
        if head.ack == self.put {
            if head.syn() {
                self.offset = early;
            }
            return early;
        }
        if head.syn() && head.ack == self.put.wrapping_sub(early) {
            (self.put, self.sent, self.in_earnest) = (head.ack, head.ack, head.ack);
            self.early = 0;
            self.sample = None;
        }
        0
    }

    /// How many bytes have arrived with our SYN, which was answered.
    pub(super) fn settle_early(&mut self) -> u32 {
        std::mem::take(&mut self.early)
    }

    /// The bytes of the other end's SYN are taken, and the socket's answer to it is to say so.
    pub(super) fn acknowledge_early(&mut self, answer: &mut [u8], bytes: u32) {
        self.told.0 = self.told.0.wrapping_add(bytes);
        write_u32(answer, at::ACK, self.told.0);
        // Nobody has acknowledged it after a round trip.
        self.sample = None;
    }

    /// A made-up acknowledgement of our answer to the other end's SYN.
    pub(super) fn made_up_confirmation(&self) -> TcpRepr<'static> {
        self.made_up_ack(self.put)
    }

    /// Makes of a SYN with bytes the packet that would have brought them behind that acknowledgement.
    pub(super) fn confirm_early(&self, packet: &mut [u8]) {
        write_u32(packet, at::SEQ, self.taken);
        write_u32(packet, at::ACK, self.put);
        write_u16(packet, at::WINDOW, self.window);
        packet[at::FLAGS] = ACK;
    }

    /// Our SYN once more, which was not answered, without the bytes that went with it: they might arrive as well.
    pub(super) fn open_again(&mut self, mss: u16) -> TcpRepr<'static> {
        // Nobody could tell which of the two is answered.
        self.sample = None;
        TcpRepr {
            control: TcpControl::Syn,
            seq_number: number(self.acknowledged),
            window_len: self.told.1,
            window_scale: Some(ANNOUNCED_SHIFT),
            max_seg_size: Some(mss),
            sack_permitted: true,
            ..BLANK
        }
    }

    /// Our answer to the other end's SYN once more, of which nothing was acknowledged.
    pub(super) fn syn_again(&self, mss: u16) -> TcpRepr<'static> {
        TcpRepr {
            control: TcpControl::Syn,
            seq_number: number(self.acknowledged.wrapping_sub(1)),
            ack_number: Some(number(self.told.0)),
            window_len: u16::try_from(self.promised()).unwrap_or(u16::MAX),
            window_scale: self.scales().then_some(ANNOUNCED_SHIFT),
            max_seg_size: Some(mss),
            sack_permitted: self.remote.sack,
            ..BLANK
        }
    }

    /// The window of a packet as the socket should hear it: a shut one only while there is something to send, and nothing
    /// on its way. One that is open by a crack is not probed, and the first bytes into it are what a probe would be.
    ///
    /// Of any other one the last unit is left alone, see [`usable`], and what would only queue up, see [`Queue`].
    ///
    /// smoltcp goes on to probe a shut one after nothing is left to send, in FIN-WAIT-2 without a pause. And when it begins
    /// to probe it forgets to send again what is on its way, which never arrives then if it was lost.
    fn window_for_socket(&self, head: &Head) -> u16 {
        if is_after(self.put, head.ack) && !is_after(self.in_earnest, head.ack) {
            usable(head.window).min(self.limit())
        } else {
            usable(head.window).min(self.limit()).max(1)
        }
    }

    /// The window that the other end told last, as the socket is to hear it.
    fn limited_window(&self) -> u16 {
        self.window.min(self.limit())
    }

    /// The same window, or one next to it where only our end is on its way: after the third acknowledgement that is like the
    /// one before, smoltcp would send again at once what there are no bytes of, and stop the timer by which it does so.
    fn no_repetition(&mut self, head: &Head, window: u16) -> u16 {
        let only_end = head.ack == self.put && self.sent == self.put.wrapping_add(1);
        let window = match window {
            1 if only_end && self.heard_window == 1 => 2,
            // Nor is it to find again what is being mended.
            _ if (only_end || self.recovery.goes_on()) && self.heard_window == window && window > 1 => window - 1,
            _ => window,
        };
        self.heard_window = window;
        window
    }

    /// What may be on its way, as a window stands in a packet; at least one unit. While packets are being mended, what has
    /// arrived behind them is no longer on its way (forward acknowledgement, Mathis and Mahdavi, 1996).
    fn limit(&self) -> u16 {
        // A window that ends within a packet would have it cut.
        let mut window = self.congestion.window().next_multiple_of(count(self.remote_mss()));
        if self.recovery.is_mending() && is_after(self.arrived_there, self.acknowledged) {
            window = window.saturating_add(self.arrived_there.wrapping_sub(self.acknowledged));
        }
        let unit = 1 << self.remote.scale.unwrap_or(0);
        let units = self.queue.limit().min(window).div_ceil(unit);
        u16::try_from(units).unwrap_or(u16::MAX).max(1)
    }

    /// So many bytes were taken out of the socket.
    pub(super) fn took(&mut self, bytes: usize) {
        self.taken = self.taken.wrapping_add(count(bytes));
    }

    /// So many bytes were put into the socket.
    pub(super) fn put(&mut self, bytes: usize) {
        self.put = self.put.wrapping_add(count(bytes));
    }

    /// Bytes sent and not acknowledged.
    pub(super) fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.acknowledged)
    }

    /// Whether nothing is missing in front of what has arrived, of which so much waits in the socket.
    pub(super) fn has_all(&self, unread: usize) -> bool {
        self.arrived == self.taken.wrapping_add(count(unread))
    }

    /// Whether bytes have arrived that others are missing in front of, given that all before those were taken.
    pub(super) fn has_holes(&self) -> bool {
        is_after(self.arrived, self.taken)
    }

    /// Whether bytes that begin with this number come next, of which `unread` before them wait in the socket, and none behind
    /// them have arrived.
    pub(super) fn expects(&self, seq: u32, unread: u32) -> bool {
        let next = self.taken.wrapping_add(unread);
        seq == next && !is_after(self.arrived, next)
    }

    /// Whether a packet has nothing for a socket: it acknowledges what was acknowledged and brings no new byte. `None` if
    /// it does; otherwise whether it wants to be answered.
    pub(super) fn is_mere_sign_of_life(&self, packet: &[u8]) -> Option<bool> {
        let head = Head::of(packet)?;
        let is_plain = head.flags & (FIN | SYN | RST | ACK) == ACK && head.ack == self.put;
        let asks = head.seq == self.taken.wrapping_sub(1) && head.payload <= 1;
        let tells = head.seq == self.taken && head.payload == 0;
        (is_plain && (asks || tells)).then_some(asks)
    }

    /// The window that the other end told last, in bytes.
    pub(super) fn remote_window(&self) -> usize {
        usize::from(self.window) << self.remote.scale.unwrap_or(0)
    }

    /// The window that we told last, in bytes.
    pub(super) fn promised(&self) -> usize {
        usize::from(self.told.1) << self.announced_shift()
    }

    /// Whether windows can be larger than [`UNSCALED_WINDOW`].
    pub(super) fn scales(&self) -> bool {
        self.remote.scale.is_some()
    }

    /// The most bytes in a packet that the other end takes.
    pub(super) fn remote_mss(&self) -> usize {
        match self.remote.mss {
            // The value for those who do not say (RFC 9293, 3.7.1).
            None | Some(0) => 536,
            // smoltcp takes nobody at their word who says less.
            Some(mss) => usize::from(mss).max(48),
        }
    }

    /// Whether the other end should hear of a window of this size: it is another one than it knows of, or what was taken
    /// is not acknowledged.
    pub(super) fn is_news(&self, window: usize) -> bool {
        self.told != (self.taken, self.on_wire(window))
    }

    /// The field of a packet that tells a window.
    fn on_wire(&self, window: usize) -> u16 {
        u16::try_from(window >> self.announced_shift()).unwrap_or(u16::MAX)
    }

    fn announced_shift(&self) -> u8 {
        if self.scales() { ANNOUNCED_SHIFT } else { 0 }
    }

    fn is_in_window(&self, end: u32) -> bool {
        let edge = self
            .told
            .0
            .wrapping_add(u32::from(self.told.1) << self.announced_shift());
        !is_after(end, edge)
    }

    /// A made-up SYN of the other end, behind which its numbers go on as they are.
    pub(super) fn made_up_syn(&self) -> TcpRepr<'static> {
        TcpRepr {
            control: TcpControl::Syn,
            seq_number: number(self.taken.wrapping_sub(1)),
            window_len: u16::MAX,
            window_scale: self.remote.scale,
            max_seg_size: self.remote.mss,
            sack_permitted: self.remote.sack,
            ..BLANK
        }
    }

    /// A made-up acknowledgement of the other end, `ack` being the socket's number.
    pub(super) fn made_up_ack(&self, ack: u32) -> TcpRepr<'static> {
        TcpRepr {
            seq_number: number(self.taken),
            ack_number: Some(number(ack)),
            window_len: self.limited_window(),
            ..BLANK
        }
    }

    /// The same as [`Wire::repetition`], but with the window as it is now.
    pub(super) fn correction(
        &mut self,
        unread: usize,
        remote_fin: bool,
        unacknowledged: usize,
    ) -> Option<TcpRepr<'static>> {
        self.heard_window = self.limited_window().max(1);
        self.repetition(unread, remote_fin, unacknowledged)
    }

    /// A made-up acknowledgement that says what the last one said. `None` while a window is shut. `unread` bytes wait in the
    /// socket, and behind them the other end's end if that has come; `unacknowledged` have been put into it and are not known
    /// there to have arrived.
    pub(super) fn repetition(
        &self,
        unread: usize,
        remote_fin: bool,
        unacknowledged: usize,
    ) -> Option<TcpRepr<'static>> {
        let known = self.put.wrapping_sub(count(unacknowledged));
        let next = self
            .taken
            .wrapping_add(count(unread))
            .wrapping_add(u32::from(remote_fin));
        (!self.shut).then(|| TcpRepr {
            seq_number: number(next),
            ack_number: Some(number(known.wrapping_sub(self.offset))),
            window_len: self.heard_window.max(1),
            ..BLANK
        })
    }

    /// Whether not all of the bytes that wait in the socket to be acknowledged have been sent.
    pub(super) fn has_unsent(&self, waiting: usize) -> bool {
        count(waiting) > self.in_flight()
    }

    /// A made-up packet of the other end that a socket answers with its acknowledgement, whatever there is to say.
    pub(super) fn made_up_question(&self, ack: u32) -> TcpRepr<'static> {
        TcpRepr {
            seq_number: number(self.taken.wrapping_sub(1)),
            payload: &[0],
            ..self.made_up_ack(ack)
        }
    }

    /// Another socket stands behind the connection: its next number to send is `next`, its buffer for receiving so large.
    pub(super) fn housed(&mut self, next: u32, receive: usize) {
        self.offset = self.put.wrapping_sub(next);
        self.shift = if self.scales() { own_shift(receive) } else { 0 };
        self.arrived = self.taken;
        self.heard_window = self.limited_window();
        let heard = u32::from(self.heard_window) << self.remote.scale.unwrap_or(0);
        self.edge = self.put.wrapping_add(heard);
        self.in_earnest = self.put;
        self.shut = self.window == 0;
        self.has_less = false;
        self.most_in_flight = 0;
        self.repeated = false;
        self.sample = None;
    }

    /// Our acknowledgement, as it is sent while no socket is there, with a window of so many bytes.
    pub(super) fn acknowledgement(&mut self, window: usize) -> TcpRepr<'static> {
        self.told = (self.taken, self.on_wire(window));
        TcpRepr {
            seq_number: number(self.put),
            ack_number: Some(number(self.taken)),
            window_len: self.told.1,
            ..BLANK
        }
    }

    /// A question whether the other end is still there (RFC 9293, 3.8.4).
    pub(super) fn keep_alive(&mut self, window: usize) -> TcpRepr<'static> {
        TcpRepr {
            seq_number: number(self.put.wrapping_sub(1)),
            payload: &[0],
            ..self.acknowledgement(window)
        }
    }

    /// The end of the connection, if no socket is there to say it.
    pub(super) fn reset(&self) -> TcpRepr<'static> {
        TcpRepr {
            control: TcpControl::Rst,
            seq_number: number(self.put),
            ack_number: Some(number(self.taken)),
            ..BLANK
        }
    }
}

/// What may be used of a window, as it stands in a packet: all but its last unit. Windows are told in units of up to 128
/// bytes, rounded down with each acknowledgement anew, and smoltcp takes nothing beyond what it has told last: of a flight
/// that fills the window to the last byte it would refuse the end, which would then be missing until a timer runs out.
fn usable(window: u16) -> u16 {
    window - u16::from(window > 1)
}

/// The scale that smoltcp gives the windows of a buffer.
fn own_shift(receive: usize) -> u8 {
    u8::try_from((usize::BITS - receive.leading_zeros()).saturating_sub(16)).unwrap_or(0)
}

/// One byte that was acknowledged long ago asks only for a sign of life.
fn is_keep_alive(seq: u32, end: u32, sent: u32) -> bool {
    end == sent && end.wrapping_sub(seq) == 1
}

#[cfg(test)]
mod tests {
    use super::super::segment::tests::{KEY, OWN};
    use super::super::segment::{Way, write};
    use super::*;

    #[test]
    fn the_round_trip_is_smoothed_and_what_was_sent_again_does_not_count() {
        let start = crate::timers::tests::some_instant();
        let at = |ms| start + Duration::from_millis(ms);
        let mut wire = Wire {
            remote: Remote {
                scale: Some(7),
                ..Remote::default()
            },
            ..Wire::default()
        };
        let mut room = [0; 200];
        let mut exchange = |sent: &[u64], acknowledged: u64, seq: u32| {
            for &ms in sent {
                let repr = TcpRepr {
                    seq_number: number(seq),
                    payload: &[1; 100],
                    ..BLANK
                };
                wire.outgoing(at(ms), write(&mut room, OWN, &KEY, Way::Out, repr));
            }
            let repr = TcpRepr {
                ack_number: Some(number(seq + 100)),
                window_len: 10,
                ..BLANK
            };
            wire.incoming(at(acknowledged), write(&mut room, OWN, &KEY, Way::In, repr), || false);
            (wire.round_trip, wire.in_flight(), wire.remote_window())
        };
        let ms = Duration::from_millis;
        // Of ten units of a window nine are used.
        assert_eq!(exchange(&[0], 80, 0), (Some(ms(80)), 0, 1152));
        assert_eq!(exchange(&[100, 300], 380, 100), (Some(ms(80)), 0, 1152));
        assert_eq!(exchange(&[400], 560, 200), (Some(ms(90)), 0, 1152));
    }
}
