//! One TCP connection inside the tunnel: its wire, the house it lives in if it is awake, and what was seen of its life.

use std::time::Instant;

use smoltcp::socket::tcp::State;

use super::delay::Delay;
use super::early::Early;
use super::house::{HOUSE_STATE, House};
use super::need::Need;
use super::wire::Wire;
use super::{FlowKey, Owner};
use crate::budget::{BufferClass, Buffers};
use crate::wg::PeerId;

/// See the module docs.
pub(super) struct Flow {
    /// `None` while it sleeps.
    pub(super) house: Option<House>,
    pub(super) wire: Wire,
    pub(super) need: Need,
    pub(super) early: Early,
    /// The number of the other end's SYN, for as long as nothing else has come of it.
    pub(super) unconfirmed: Option<u32>,
    pub(super) peer: PeerId,
    pub(super) key: FlowKey,
    pub(super) owner: Owner,
    pub(super) inbound: bool,
    pub(super) seen: Seen,
    /// On the list of flows to send for.
    pub(super) queued: bool,
    /// When both FINs were through: time stands still for it from then on.
    pub(super) ended: Option<smoltcp::time::Instant>,
    /// Its peer is no longer known: nothing can be sent.
    pub(super) lost: bool,
    /// On the list of flows that the layer above should look at.
    pub(super) touched: bool,
    /// It sleeps and has a reason to wake.
    pub(super) wakes: bool,
    /// It has woken, and no bytes were moved since.
    pub(super) just_woken: bool,
    /// It slept when it broke, and the other end was told.
    pub(super) reset_sent: bool,
    /// Its owner has moved bytes since it was last looked at.
    pub(super) moved_bytes: bool,
    /// Packets sent in this turn.
    pub(super) sent_in_turn: u32,
    /// Data packets taken in since the last packet was sent.
    pub(super) unacknowledged: u32,
    pub(super) delay: Delay,
    /// When bytes were last moved.
    pub(super) active_at: Instant,
    /// When a packet last came.
    pub(super) heard: Instant,
    /// When the other end was last asked, in its sleep, whether it is there.
    pub(super) asked: Instant,
}

/// What has happened in a flow's life; smoltcp's state alone forgets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) established: bool,
    pub(super) remote_fin: bool,
    pub(super) local_fin: bool,
    pub(super) aborted: bool,
    pub(super) state: Option<State>,
}

impl Seen {
    /// An end was said, by us or the other side.
    pub(super) fn is_ending(self) -> bool {
        self.remote_fin || self.local_fin || self.aborted
    }
}

/// What a flow costs without its house: itself, its map entry, its timer, rounded up.
pub(super) const FLOW_STATE: usize = 768;
const _: () = assert!(
    size_of::<Flow>() + 3 * size_of::<(FlowKey, Instant, u64)>() < FLOW_STATE,
    "what a flow is charged is what it costs"
);

impl Flow {
    pub(super) fn new(
        now: Instant,
        peer: PeerId,
        key: FlowKey,
        buffers: Buffers,
        most: BufferClass,
        inbound: bool,
    ) -> Self {
        Self {
            // A new socket for each connection: smoltcp's reset() carries congestion state and options over.
            house: Some(House::new(buffers)),
            wire: Wire::default(),
            need: Need::new(now, most),
            early: Early::Nothing,
            unconfirmed: None,
            peer,
            key,
            owner: Owner::Nobody,
            inbound,
            seen: Seen::default(),
            queued: false,
            lost: false,
            ended: None,
            touched: false,
            wakes: false,
            just_woken: false,
            reset_sent: false,
            moved_bytes: false,
            sent_in_turn: 0,
            unacknowledged: 0,
            delay: Delay::default(),
            active_at: now,
            heard: now,
            asked: now,
        }
    }

    /// What the memory budget is charged for it.
    pub(super) fn charge(&self) -> usize {
        let house = self.house.as_ref();
        FLOW_STATE + self.early.held() + house.map_or(0, |house| HOUSE_STATE + house.buffers.bytes())
    }

    /// The connection's state; one that sleeps is established.
    pub(super) fn state(&self) -> State {
        match &self.house {
            Some(house) => house.socket().state(),
            None if self.seen.aborted => State::Closed,
            None => State::Established,
        }
    }

    /// Whether there is room for bytes to send, or would be as soon as there are any.
    pub(super) fn can_send(&self) -> bool {
        match &self.house {
            // One that wishes to move must come to rest first.
            Some(house) => house.socket().can_send() && !self.need.wishes(),
            None => !self.wakes && !self.seen.is_ending(),
        }
    }

    pub(super) fn can_receive(&self) -> bool {
        self.house.as_ref().is_some_and(|house| house.socket().can_recv())
    }

    /// Notes what the socket's state says and returns whether it is another one than before.
    pub(super) fn observe(&mut self) -> bool {
        let state = self.state();
        if self.seen.state == Some(state) {
            return false;
        }
        self.seen.state = Some(state);
        match state {
            State::Listen | State::SynSent | State::SynReceived | State::Closed => {}
            State::Established | State::FinWait1 | State::FinWait2 => self.establish(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => {
                self.establish();
                self.seen.remote_fin = true;
            }
        }
        true
    }

    fn establish(&mut self) {
        if !self.seen.established {
            self.seen.established = true;
            if let Some(house) = &mut self.house {
                house.establish();
            }
        }
    }

    /// Sends a FIN behind what was queued, once it is awake.
    pub(super) fn close(&mut self) {
        self.seen.local_fin = true;
        self.resume_ending();
    }

    /// Ends the connection at once.
    pub(super) fn abort(&mut self) {
        self.seen.aborted = true;
        if let Some(house) = &mut self.house {
            house.socket_mut().abort();
        }
    }

    /// The owner has gone: what is left must end by itself.
    pub(super) fn orphan(&mut self) {
        self.owner = Owner::Gone;
        self.resume_ending();
    }

    /// Nobody reads what still comes for a flow whose owner has gone. It is dropped while bytes of ours are on their way;
    /// once they have all arrived, it ends the connection (RFC 1122, section 4.2.2.13): the other end could otherwise go on
    /// for ever, by asking whether the window has opened again.
    pub(super) fn drop_unread(&mut self) {
        let Some(house) = self.house.as_mut().filter(|_| self.owner == Owner::Gone) else {
            return;
        };
        let socket = house.socket_mut();
        if socket.recv_queue() == 0 || self.seen.aborted {
            return;
        }
        if socket.state() == State::FinWait2 {
            return self.abort();
        }
        let (mut dropped, mut last) = (0, 1);
        while last > 0 {
            last = socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0);
            dropped += last;
        }
        self.wire.took(dropped);
    }

    /// Lets the socket end as the flow does, if there is one; otherwise the flow wakes for it.
    pub(super) fn resume_ending(&mut self) {
        let Some(house) = &mut self.house else {
            self.wakes |= self.seen.local_fin;
            return;
        };
        if self.owner == Owner::Gone {
            house.orphan();
        }
        if self.seen.local_fin {
            house.socket_mut().close();
        }
    }

    /// Whether the socket has nothing more to send or to wait for.
    pub(super) fn is_over(&self) -> bool {
        match self.state() {
            State::Closed => self
                .house
                .as_ref()
                .is_none_or(|house| house.socket().remote_endpoint().is_none()),
            // Both FINs are through: the ports are not used again for long, so nothing is gained by lingering.
            State::TimeWait | State::Listen => true,
            _ => false,
        }
    }

    /// Whether the connection is half open, as somebody else's SYN leaves it.
    pub(super) fn is_half_open(&self) -> bool {
        self.inbound && !self.seen.established
    }
}
