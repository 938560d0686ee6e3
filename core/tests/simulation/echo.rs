//! Much both ways at once, and windows that shut: where each end of a flow sends again or probes while the other does.

use std::time::Duration;

use portal_sim::{Loss, Pace, Socket};

use crate::progress::Pair;
use crate::setup::Simulation;

/// What a flow's receive buffer holds at first.
const FIRST_BUFFER: u64 = 16 * 1024;
/// Windows are told in steps of this.
const STEP: u64 = 128;

impl Simulation {
    /// A target sends back what it gets while its visitor goes on, and has something to say of its own besides.
    pub(crate) fn echo_in_bulk(&mut self) {
        let Some(pair) = self.some_pair() else { return };
        let most = self.patience_of_echo();
        let (there, back) = (self.bulk(), self.bulk());
        let closes = self.random.chance(300_000);
        let begins = self.random.chance(500_000);
        self.change_visitor(&pair, |socket| {
            socket.pace = Pace::default();
            socket.left_to_send += there;
            socket.fin_to_send = closes;
        });
        self.change_target(&pair, |socket| {
            socket.pace = Pace::default();
            socket.echoes = Some(most);
            socket.left_to_send += if begins { back } else { 0 };
        });
    }

    /// One end or both read nothing for a while, in which packets may get lost, and then go on. A target that sends back
    /// what it gets may take nothing meanwhile either, and then waits to be heard before it does.
    pub(crate) fn stop_reading(&mut self) {
        let Some(pair) = self.some_pair() else { return };
        let (there, back) = (self.bulk(), self.bulk());
        let who = self.random.below(4);
        let echoes = self.random.chance(600_000).then(|| self.patience_of_echo());
        let loss = [0, 0, 100_000, 500_000][self.random.index(4)];
        let stop = self.random.duration(Duration::from_secs(12));
        let gap = self.random.duration(Duration::from_millis(300));
        self.change_visitor(&pair, |socket| {
            socket.pace = Pace::default();
            socket.left_to_send += there;
            socket.reads = who == 1;
        });
        self.change_target(&pair, |socket| {
            socket.pace = Pace::default();
            socket.left_to_send += back;
            socket.reads = who == 0;
            socket.echoes = echoes.or(socket.echoes);
        });
        let before = self.world.sites[pair.agent].up.impairments_mut().loss.clone();
        if loss > 0 {
            self.world.impair(pair.agent, |link| link.loss = Loss::Random(loss));
        }
        self.pass(stop);
        if loss > 0 {
            self.world.impair(pair.agent, |link| link.loss = before.clone());
        }
        self.change_visitor(&pair, |socket| socket.reads = true);
        if self.random.chance(500_000) {
            self.pass(gap);
        }
        self.change_target(&pair, |socket| socket.reads = true);
    }

    /// An end that does not read gets as much as it has room for, to the byte or nearly so, and a FIN behind it.
    pub(crate) fn fill_to_the_brim(&mut self) {
        let Some(pair) = self.some_pair() else { return };
        let down = self.random.chance(500_000);
        let short = self.random.below(2 * STEP);
        let patience = self.random.duration(Duration::from_secs(20));
        let (there, back) = self.room(&pair);
        let more = if down { back } else { there }.saturating_sub(short);
        let send = |socket: &mut Socket| {
            socket.left_to_send += more;
            socket.fin_to_send = true;
        };
        let stop = |socket: &mut Socket| {
            socket.reads = false;
            socket.fin_answers_fin = false;
        };
        if down {
            self.change_visitor(&pair, stop);
            self.change_target(&pair, send);
        } else {
            self.change_target(&pair, stop);
            self.change_visitor(&pair, send);
        }
        self.pass(patience);
    }

    /// Both ends have no room left and all acknowledged, and both then have more to send. A target that waits to be heard
    /// before it reads goes on only if its visitor's window is seen to open.
    pub(crate) fn fill_both_to_the_brim(&mut self) {
        let Some(pair) = self.some_pair() else { return };
        let (there, back) = self.room(&pair);
        let short = [self.random.below(STEP), self.random.below(STEP)];
        let more = [self.bulk(), self.bulk()];
        let most = self.patience_of_echo();
        let waits = [(); 2].map(|()| self.random.duration(Duration::from_secs(3)));
        let fill = |more: u64| {
            move |socket: &mut Socket| {
                socket.pace = Pace::default();
                socket.reads = false;
                socket.left_to_send += more;
            }
        };
        self.change_visitor(&pair, fill(there.saturating_sub(short[0])));
        self.change_target(&pair, fill(back.saturating_sub(short[1])));
        self.pass(waits[0]);
        // Nothing but this has happened to them: neither has its FIN to send yet.
        self.change_visitor(&pair, |socket| socket.left_to_send += more[0]);
        self.change_target(&pair, |socket| {
            socket.left_to_send += most + more[1];
            socket.echoes = Some(most);
        });
        self.pass(waits[1]);
        self.change_visitor(&pair, |socket| socket.reads = true);
        self.change_target(&pair, |socket| socket.reads = true);
    }

    /// How much either end can send, visitor first, before the small buffer of an end that does not read is full.
    fn room(&self, pair: &Pair) -> (u64, u64) {
        let (visitor, target) = (self.visitor(pair), self.target(pair));
        let side = |socket: &Socket| socket.side.and_then(|side| self.world.ledger.get(side));
        let room = |from: &Socket, to: &Socket| {
            let sent = side(from).map_or(0, |side| side.sent) + from.left_to_send;
            let got = side(to).map_or(0, |side| side.received);
            FIRST_BUFFER.saturating_sub(sent.saturating_sub(got))
        };
        (room(visitor, target), room(target, visitor))
    }

    /// One connection that neither end has ended; a new one if there is none.
    fn some_pair(&mut self) -> Option<Pair> {
        let open = |simulation: &Self| {
            let mut pairs = simulation.pairs();
            pairs.retain(|pair| !simulation.visitor(pair).fin_to_send && !simulation.target(pair).fin_to_send);
            pairs
        };
        let mut pairs = open(self);
        if pairs.is_empty() {
            self.visit();
            self.pass(Duration::from_secs(1));
            pairs = open(self);
        }
        (!pairs.is_empty()).then(|| pairs[self.random.index(pairs.len())])
    }

    /// How much an echo has yet to send when it takes no more.
    fn patience_of_echo(&mut self) -> u64 {
        [1_000, 20_000, 200_000][self.random.index(3)]
    }

    /// From what a small buffer holds to what several do.
    fn bulk(&mut self) -> u64 {
        let most = [10_000, 100_000, 100_000, 600_000][self.random.index(4)];
        self.random.below(most)
    }

    /// Changes the visitor of a connection, if it is there still.
    fn change_visitor(&mut self, pair: &Pair, change: impl FnOnce(&mut Socket)) {
        let host = &mut self.world.relays[pair.relay];
        if host.sockets.get(&pair.visitor).is_some_and(|socket| !socket.is_over()) {
            change(host.socket(pair.visitor));
        }
    }

    /// Changes the target of a connection, if it is there still.
    fn change_target(&mut self, pair: &Pair, change: impl FnOnce(&mut Socket)) {
        let host = &mut self.world.agents[pair.agent];
        if host.sockets.get(&pair.target).is_some_and(|socket| !socket.is_over()) {
            change(host.socket(pair.target));
        }
    }
}
