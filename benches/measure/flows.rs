//! What the number of connections does to the time that one packet takes, in memory, with relay and agent on one core.

use std::time::Instant;

use portal_benches::{Connection, Pair};

use crate::figures::spread;

/// What it is called on the command line.
pub(crate) const NAME: &str = "flows";

const FLOWS: [usize; 3] = [1, 100, 10_000];
/// A packet of data carries so many bytes.
const SEGMENT: usize = 1360;
const BULK: usize = 1 << 20;
const MESSAGE: usize = 128;
/// So often, the counts in turn, so that a busy moment does not fall on one alone.
const ROUNDS: usize = 41;
/// How many times as long as alone a packet may take among the most connections.
pub(crate) const MOST: f64 = 2.0;
/// The title of how many times.
pub(crate) const TIMES: &str = "times that of 1";
/// Messages in a round, each on the next connection.
const MESSAGES: usize = 500;

/// The table, and whether it holds what must.
pub(crate) fn many() -> bool {
    let mut subjects: Vec<Subject> = FLOWS.into_iter().map(Subject::new).collect();
    for _ in 0..ROUNDS {
        subjects.iter_mut().for_each(Subject::round);
    }
    println!(
        "| connections | a packet of bulk on one of them, µs | {TIMES} | a message of {MESSAGE} bytes on each in turn, µs | {TIMES} |"
    );
    println!("|---|---|---|---|---|");
    let mut held = true;
    let firsts = [0, 1].map(|index| subjects[0].median(index));
    for subject in &subjects {
        let medians = [0, 1].map(|index| subject.median(index));
        let times = [0, 1].map(|index| medians[index] / firsts[index]);
        // The second is more than a packet, and has to find a cold connection: it is told, not judged.
        let missed = if times[0] > MOST { " (missed)" } else { "" };
        held &= missed.is_empty();
        println!(
            "| {} | {:.2} | {:.2}{missed} | {:.2} | {:.2} |",
            subject.connections.len(),
            medians[0],
            times[0],
            medians[1],
            times[1]
        );
    }
    println!();
    held
}

struct Subject {
    pair: Pair,
    connections: Vec<Connection>,
    next: usize,
    micros: [Vec<f64>; 2],
}

impl Subject {
    fn new(count: usize) -> Self {
        let (mut pair, connections) = Pair::with_connections(count);
        // For the window.
        pair.upload(connections[0], 64 << 20);
        Self {
            pair,
            connections,
            next: 0,
            micros: [Vec::new(), Vec::new()],
        }
    }

    fn round(&mut self) {
        let start = Instant::now();
        self.pair.upload(self.connections[0], BULK);
        let packets = BULK.div_ceil(SEGMENT);
        self.micros[0].push(start.elapsed().as_secs_f64() * 1e6 / packets as f64);
        let start = Instant::now();
        for _ in 0..MESSAGES {
            self.next = (self.next + 1) % self.connections.len();
            self.pair.upload(self.connections[self.next], MESSAGE);
        }
        self.micros[1].push(start.elapsed().as_secs_f64() * 1e6 / MESSAGES as f64);
    }

    fn median(&self, index: usize) -> f64 {
        spread(self.micros[index].iter().copied()).map_or(f64::NAN, |[_, median, _]| median)
    }
}
