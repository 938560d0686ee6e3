//! Seeded simulation: relays and agents live through a random life, and what must always hold is checked after each
//! step.
//!
//! `SEED` is the first seed and `SEEDS` how many are run, `STEPS` how long each is. A failure names what repeats it.

mod actions;
mod attacks;
mod checks;
mod echo;
mod progress;
mod setup;

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::time::Instant;

use portal_sim::ErrorsPanic;
use setup::Simulation;

/// What `cargo test` runs.
const SEEDS: u64 = 32;
const STEPS: u64 = 300;
/// How many seeds are run twice to see that both runs are the same.
const TWICE: u64 = 3;

#[test]
fn random_lives_keep_every_invariant() {
    let (first, seeds, steps) = (setting("SEED", 0), setting("SEEDS", SEEDS), setting("STEPS", STEPS));
    let failed: Vec<_> = (first..first + seeds)
        .filter(|&seed| survive(seed, steps).is_none())
        .collect();
    assert!(
        failed.is_empty(),
        "these seeds failed, of {seeds} from {first} on: {failed:?}"
    );
}

#[test]
fn equal_seeds_give_equal_traces() {
    let (first, steps) = (setting("SEED", 0), setting("STEPS", STEPS));
    for seed in first..first + TWICE {
        let (once, again) = (survive(seed, steps), survive(seed, steps));
        assert!(once.is_some(), "seed {seed} failed");
        assert_eq!(once, again, "two runs of seed {seed} differ");
    }
}

/// The hash of one life, unless it fails.
fn survive(seed: u64, steps: u64) -> Option<u64> {
    catch_unwind(AssertUnwindSafe(|| live(seed, steps))).ok()
}

/// One life. Returns the hash of all that was sent and told.
fn live(seed: u64, steps: u64) -> u64 {
    tracing::subscriber::with_default(ErrorsPanic, || {
        let mut blame = Blame { seed, steps, step: 0 };
        let mut simulation = Simulation::new(origin(), seed);
        for step in 0..steps {
            blame.step = step;
            simulation.step();
            simulation.check();
        }
        blame.step = steps;
        simulation.finish();
        if setting("VERBOSE", 0) > 0 {
            simulation.report(seed);
        }
        simulation.world.trace.hash()
    })
}

/// Says what repeats a failure.
struct Blame {
    seed: u64,
    steps: u64,
    step: u64,
}

impl Drop for Blame {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, steps, step } = self;
            eprintln!(
                "seed {seed} failed at step {step} of {steps}: \
                 SEED={seed} SEEDS=1 STEPS={steps} cargo test -p portal-core --test simulation random_lives"
            );
        }
    }
}

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "how wide to run is the caller's choice")]
fn setting<T: FromStr<Err: Display>>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{name}={text} is no number: {error}")),
        Err(_) => default,
    }
}
