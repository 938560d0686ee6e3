//! Progress: a connection whose way is whole and whose ends read does not stand still.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use portal_core::StreamId;
use portal_sim::{Loss, Side, SideId, Socket};

use crate::setup::Simulation;

/// A connection of which both ends are there and know each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) relay: usize,
    pub(crate) visitor: StreamId,
    pub(crate) agent: usize,
    pub(crate) target: StreamId,
}

/// What was seen of connections that should make progress, by the side that waits.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    marks: BTreeMap<SideId, Mark>,
}

/// What had come when a side was last seen to get something, or first seen to wait with nothing in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    count: u64,
    /// It counts what has come to the other side as well.
    either: bool,
    since: Instant,
}

/// A flow sends again or probes a window after 12 seconds at most. This is a dozen lost in a row, and far from the 300
/// seconds after which it breaks.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often is looked in a time that passes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A grant that bounds the rate more than this makes connections wait for each other.
const LEAST_RATE: u64 = 50_000;
/// How long everything may take to find out what has ended while it was cut off.
const RECOVERY: Duration = Duration::from_secs(60);

impl Progress {
    /// Something came between that is over already.
    pub(crate) fn forget(&mut self) {
        self.marks.clear();
    }
}

impl Simulation {
    /// Time passes, and no connection may stand still in it.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.world.now + duration;
        loop {
            let left = end.saturating_duration_since(self.world.now);
            self.world.run(left.min(LOOK_EVERY));
            self.check_progress();
            if left <= LOOK_EVERY {
                return;
            }
        }
    }

    /// With everything healed, all that was or will be sent arrives, and no connection breaks any more.
    pub(crate) fn bring_all_over(&mut self) {
        self.pass(RECOVERY);
        let sides = |pair: &Pair| [self.visitor(pair).side, self.target(pair).side];
        let known: Vec<_> = self.pairs().iter().flat_map(sides).flatten().collect();
        self.pass(Duration::from_secs(740));
        for id in known {
            let side = self.world.ledger.get(id).expect("not forgotten");
            assert!(!side.broken, "{id:?} broke by itself: {side:?}");
        }
        for pair in self.pairs() {
            for socket in [self.visitor(&pair), self.target(&pair)] {
                assert_eq!(socket.left_to_send, 0, "{socket:?} of {pair:?} could not send all");
            }
        }
        self.listen_to_events();
    }

    /// The connections of which both ends are there.
    pub(crate) fn pairs(&self) -> Vec<Pair> {
        let mut targets = BTreeMap::new();
        for (agent, host) in self.world.agents.iter().enumerate() {
            let live = host.sockets.iter().filter(|(_, socket)| !socket.is_over());
            targets.extend(live.filter_map(|(&id, socket)| Some((socket.side?, (agent, id)))));
        }
        let mut pairs = Vec::new();
        for (relay, host) in self.world.relays.iter().enumerate() {
            for (&visitor, socket) in host.sockets.iter().filter(|(_, socket)| !socket.is_over()) {
                let side = socket.side.and_then(|side| self.world.ledger.get(side));
                let peer = side.filter(|side| !side.answered).and_then(|side| side.peer);
                if let Some(&(agent, target)) = peer.and_then(|peer| targets.get(&peer)) {
                    pairs.push(Pair {
                        relay,
                        visitor,
                        agent,
                        target,
                    });
                }
            }
        }
        pairs
    }

    pub(crate) fn visitor(&self, pair: &Pair) -> &Socket {
        &self.world.relays[pair.relay].sockets[&pair.visitor]
    }

    pub(crate) fn target(&self, pair: &Pair) -> &Socket {
        &self.world.agents[pair.agent].sockets[&pair.target]
    }

    fn check_progress(&mut self) {
        let now = self.world.now;
        let mut marks = BTreeMap::new();
        for pair in self.pairs() {
            let (visitor, target) = (self.visitor(&pair), self.target(&pair));
            // With a way that is not whole, and readers that do not read, nothing is promised.
            if !self.is_whole(&pair) || !visitor.reads || !target.reads {
                continue;
            }
            // What is slow one way may take its time the other way too, as a window opens by steps only; and an echo
            // reads nothing while it has much to send.
            let paces = !(visitor.pace.pause.is_zero() && target.pace.pause.is_zero());
            let either = paces || visitor.echoes.is_some() || target.echoes.is_some();
            for (from, to) in [(visitor, target), (target, visitor)] {
                let Some((id, sender, receiver)) = self.sides(from, to) else {
                    continue;
                };
                if !is_waiting(from, sender, receiver) {
                    continue;
                }
                let other = if either { got(sender) } else { 0 };
                let count = got(receiver) + other;
                let before = self.progress.marks.get(&id);
                let before = before.filter(|mark| mark.count == count && mark.either == either);
                let since = before.map_or(now, |mark| mark.since);
                assert!(
                    now - since < PATIENCE,
                    "{id:?} has waited for {:?}: {pair:?}\n{from:?} {sender:?}\n{to:?} {receiver:?}",
                    now - since
                );
                marks.insert(id, Mark { count, either, since });
            }
        }
        self.progress.marks = marks;
    }

    /// Who receives, and what the ledger knows of both.
    fn sides(&self, from: &Socket, to: &Socket) -> Option<(SideId, &Side, &Side)> {
        let (from, to) = (from.side?, to.side?);
        Some((to, self.world.ledger.get(from)?, self.world.ledger.get(to)?))
    }

    /// Nothing is between the ends but what a connection has to bear.
    fn is_whole(&self, pair: &Pair) -> bool {
        let (world, now) = (&self.world, self.world.now);
        let site = &world.sites[pair.agent];
        let links = [&site.up, &site.down].map(portal_sim::Netem::impairments);
        let (_, rate) = self.bounds[pair.agent];
        links
            .into_iter()
            .all(|link| !link.partitioned && !matches!(link.loss, Loss::Bursts { .. }))
            && !world.relays[pair.relay].is_away(now)
            && !world.agents[pair.agent].is_away(now)
            && !self.ended[pair.agent]
            && (rate == 0 || rate >= LEAST_RATE)
    }
}

/// Whether there is anything that has yet to come.
fn is_waiting(from: &Socket, sender: &Side, receiver: &Side) -> bool {
    from.left_to_send > 0 || from.fin_to_send && !receiver.fin_received || sender.sent > receiver.received
}

fn got(side: &Side) -> u64 {
    side.received + u64::from(side.fin_received)
}
