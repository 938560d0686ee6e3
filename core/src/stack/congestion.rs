//! How much a connection may have on its way, as losses and acknowledgements tell: CUBIC (RFC 9438), with slow start by the
//! bytes that are acknowledged (RFC 3465).
//!
//! smoltcp has CUBIC too, but takes what is on its way when a packet is sent again for the measure of the path: of several
//! that are missing, the last is sent again when next to nothing is left, and a connection that lost five packets out of
//! four thousand went on with a fourteenth of its rate. So it is told windows instead that hold what is allowed here.

use std::time::{Duration, Instant};

use super::recovery::Loss;

/// Lengths in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Congestion {
    /// What may be on its way.
    window: u32,
    /// Below it the window grows by all that is acknowledged.
    threshold: u32,
    /// The window before the last loss, which the curve comes back to and then goes beyond.
    most: u32,
    /// What a sender would have that adds a packet in each round trip (RFC 9438, section 4.3).
    friendly: f64,
    /// When the curve began.
    curve: Option<Instant>,
    /// How many seconds later it is at its plateau.
    plateau: f32,
}

/// What RFC 6928 allows to begin with.
pub(super) const FIRST_WINDOW: usize = 14_600;

/// The largest window that can be told (RFC 7323, section 2.3).
const MOST: u32 = 1 << 30;
/// The share of a window that is left after a loss (RFC 9438, section 4.6).
const BETA: f64 = 0.7;
/// How steep the curve is, in packets a second cubed (section 5).
const C: f64 = 0.4;
/// Packets that a friendly sender adds in a round trip until it has what it had before (section 4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

impl Default for Congestion {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Congestion {
    /// Of a path of which nothing is known, in packets of `mss`.
    pub(super) fn new(mss: usize) -> Self {
        let window = FIRST_WINDOW.min(mss.saturating_mul(10));
        Self {
            window: u32::try_from(window).unwrap_or(MOST),
            threshold: u32::MAX,
            most: 0,
            friendly: 0.0,
            curve: None,
            plateau: 0.0,
        }
    }

    /// Bytes that may be on their way.
    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// Others have shown that so much may be on its way.
    pub(super) fn raise(&mut self, window: usize) {
        self.window = self.window.max(u32::try_from(window).unwrap_or(MOST));
    }

    /// So many bytes have arrived of which nobody knew, out of `flight` that were on their way, in packets of `mss`.
    pub(super) fn acknowledged(
        &mut self,
        now: Instant,
        arrived: u32,
        flight: u32,
        mss: u32,
        round_trip: Option<Duration>,
    ) {
        // One that is not held back by its window says nothing of whether a larger one would do (RFC 7661).
        let grows_by_all = self.window < self.threshold;
        if flight < self.window / if grows_by_all { 4 } else { 2 } {
            self.curve = None;
            return;
        }
        if grows_by_all {
            self.window = self.window.saturating_add(arrived).min(self.threshold).min(MOST);
            return;
        }
        let (window, mss, arrived) = (f64::from(self.window), f64::from(mss), f64::from(arrived));
        let began = *self.curve.get_or_insert_with(|| {
            self.most = self.most.max(self.window);
            self.friendly = window;
            self.plateau = cube_root((f64::from(self.most) - window) / mss / C) as f32;
            now
        });
        let most = f64::from(self.most);
        let pace = if self.friendly < most { ALPHA } else { 1.0 };
        self.friendly += pace * mss * arrived / window;
        let at = now.saturating_duration_since(began) + round_trip.unwrap_or_default();
        let since = at.as_secs_f64() - f64::from(self.plateau);
        let curve = most + C * mss * since * since * since;
        let target = curve.clamp(window, 1.5 * window);
        let grown = window + (target - window) * arrived / window;
        self.window = bytes(grown.max(self.friendly)).min(MOST);
    }

    /// Packets are missing, of which at most `flight` bytes were on their way of late. Told once for all of a flight, and when
    /// the timer ran out.
    pub(super) fn lost(&mut self, loss: Loss, flight: u32, mss: u32) {
        if loss != Loss::TimedOutAgain {
            // More than that was not tried.
            let window = self.window.min(flight.saturating_mul(2));
            // Who comes to a plateau that is lower than the last one leaves room to others (RFC 9438, section 4.7).
            self.most = if window < self.most {
                bytes(f64::from(window) * (1.0 + BETA) / 2.0)
            } else {
                window
            };
            self.threshold = bytes(f64::from(window) * BETA).max(2 * mss);
        }
        self.window = if loss == Loss::Found { self.threshold } else { mss };
        self.curve = None;
    }
}

fn bytes(window: f64) -> u32 {
    // The largest buffer is far below it.
    window as u32
}

/// By Newton's way and in basic operations only: they give the same on every machine.
fn cube_root(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let mut root = value.max(1.0);
    for _ in 0..64 {
        root = (2.0 * root + value / (root * root)) / 3.0;
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::tests::some_instant;

    const MSS: u32 = 1000;
    const ROUND_TRIP: Duration = Duration::from_millis(100);

    /// All that may be on its way is, and is acknowledged in a round trip, packet by packet.
    fn round_trip(congestion: &mut Congestion, now: &mut Instant) -> u32 {
        *now += ROUND_TRIP;
        let flight = congestion.window();
        for left in (1..=flight / MSS).rev() {
            congestion.acknowledged(*now, MSS, (left * MSS).max(flight / 4 * 3), MSS, Some(ROUND_TRIP));
        }
        congestion.window()
    }

    fn after_loss(window: usize) -> (Congestion, Instant) {
        let mut congestion = Congestion::default();
        congestion.raise(window);
        congestion.lost(Loss::Found, u32::try_from(window).unwrap(), MSS);
        (congestion, some_instant())
    }

    #[test]
    fn it_begins_with_ten_packets_and_doubles() {
        assert_eq!(Congestion::default().window(), 14_600);
        let mut congestion = Congestion::new(1000);
        let mut now = some_instant();
        let windows = [(); 4].map(|()| round_trip(&mut congestion, &mut now));
        assert_eq!(windows, [20_000, 40_000, 80_000, 160_000]);
    }

    #[test]
    fn what_is_not_used_does_not_grow() {
        let mut congestion = Congestion::new(1000);
        for _ in 0..100 {
            congestion.acknowledged(some_instant(), MSS, MSS, MSS, Some(ROUND_TRIP));
        }
        assert_eq!(congestion.window(), 10_000);
    }

    #[test]
    fn a_loss_takes_three_tenths_and_the_curve_gives_them_back_slowly_at_its_plateau() {
        let (mut congestion, mut now) = after_loss(1_000_000);
        assert_eq!(congestion.window(), 700_000);
        // The cube root of 300 packets by 0.4.
        let plateau = Duration::from_secs_f64(9.09);
        let start = now;
        let mut windows = Vec::new();
        while now - start < 2 * plateau {
            windows.push(round_trip(&mut congestion, &mut now));
        }
        assert!(windows.is_sorted());
        let middle = windows[windows.len() / 2];
        assert!((990_000..=1_010_000).contains(&middle), "{middle}");
        let [first, last] = [
            windows[20] - windows[0],
            windows[windows.len() - 1] - windows[windows.len() - 21],
        ];
        assert!(first > 90_000 && last > 90_000, "{first} {last}");
        let slow = windows[windows.len() / 2 + 10] - windows[windows.len() / 2 - 10];
        assert!(slow < 15_000, "{slow}");
    }

    /// On short paths and with small windows it is as fast as those who add a packet a round trip and halve after a loss.
    #[test]
    fn a_small_window_grows_by_half_a_packet_in_a_round_trip() {
        let (mut congestion, mut now) = after_loss(30_000);
        let before = congestion.window();
        for _ in 0..10 {
            round_trip(&mut congestion, &mut now);
        }
        let grown = congestion.window() - before;
        assert!((4_500..=7_000).contains(&grown), "{grown}");
    }

    #[test]
    fn the_timer_leaves_one_packet_and_takes_the_threshold_once() {
        let mut congestion = Congestion::default();
        congestion.raise(100_000);
        congestion.lost(Loss::TimedOut, 100_000, MSS);
        assert_eq!(congestion.window(), MSS);
        congestion.lost(Loss::TimedOutAgain, 100_000, MSS);
        let mut now = some_instant();
        while round_trip(&mut congestion, &mut now) < 70_000 {
            assert!(now - some_instant() < Duration::from_secs(60));
        }
        assert!(congestion.window() < 75_000, "by doubling, up to the threshold");
    }

    #[test]
    fn a_loss_is_measured_by_what_was_tried() {
        let mut congestion = Congestion::default();
        congestion.raise(1_000_000);
        congestion.lost(Loss::Found, 100_000, MSS);
        assert_eq!(congestion.window(), 140_000);
        for _ in 0..100 {
            congestion.lost(Loss::Found, 0, MSS);
        }
        assert_eq!(congestion.window(), 2 * MSS, "and no less");
    }
}
