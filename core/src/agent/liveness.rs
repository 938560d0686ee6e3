//! When the relay is asked for a sign of life, and when its silence means that it is gone.

use std::time::{Duration, Instant};

/// What is known of a relay on whose control channel services are leased.
#[derive(Clone, Copy, Debug)]
pub(super) struct Liveness {
    heard: Instant,
    /// Questions since then.
    unanswered: u32,
    /// The longest silence before it is asked.
    patience: Duration,
}

/// The longest silence of a relay while visitors are connected.
const SILENCE_AT_WORK: Duration = Duration::from_secs(10);
/// The same while nobody is. NATs remember a mapping for longer, by WireGuard's experience.
const SILENCE_IDLE: Duration = Duration::from_secs(25);
/// The same at a relay whose leases are short.
const SILENCE_SHORTEST: Duration = Duration::from_secs(3);
/// How many silences are shorter than the life of a lease.
const SILENCES_PER_LEASE: u32 = 3;
/// What is not answered is asked again as TCP sends again: after this time, then twice, four and eight times as long.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Unanswered questions after which the tunnel is suspected, three seconds after the first: another handshake goes out.
const QUESTIONS_UNTIL_DOUBT: u32 = 4;
/// Unanswered questions after which the channel is given up.
const QUESTIONS_UNTIL_DOWN: u32 = 4 * QUESTIONS_UNTIL_DOUBT;

impl Liveness {
    /// A relay that was just heard, and whose leases live for so long.
    pub(super) fn new(now: Instant, lease: Duration) -> Self {
        Self {
            heard: now,
            unanswered: 0,
            patience: (lease / SILENCES_PER_LEASE).clamp(SILENCE_SHORTEST, SILENCE_IDLE),
        }
    }

    /// How long it may be silent before it is asked.
    pub(super) fn patience(&self, at_work: bool) -> Duration {
        if at_work {
            self.patience.min(SILENCE_AT_WORK)
        } else {
            self.patience
        }
    }

    /// It was last heard at this instant. Returns whether that is news.
    pub(super) fn heard(&mut self, at: Instant) -> bool {
        let is_news = at > self.heard;
        if is_news {
            (self.heard, self.unanswered) = (at, 0);
        }
        is_news
    }

    /// It is asked now. Returns for how long an answer is waited for.
    pub(super) fn ask(&mut self) -> Duration {
        let wait = ASK_AGAIN * (1 << (self.unanswered % QUESTIONS_UNTIL_DOUBT));
        self.unanswered += 1;
        wait
    }

    /// A question is out.
    pub(super) fn is_asked(&self) -> bool {
        self.unanswered > 0
    }

    /// More questions are unanswered than chance explains.
    pub(super) fn is_late(&self) -> bool {
        self.unanswered > QUESTIONS_UNTIL_DOUBT
    }

    /// The path is in doubt, as it is with every round of questions: the relay may have restarted, or moved.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.is_asked() && self.unanswered.is_multiple_of(QUESTIONS_UNTIL_DOUBT)
    }

    /// Nothing more is to be expected on this channel.
    pub(super) fn is_gone(&self) -> bool {
        self.unanswered >= QUESTIONS_UNTIL_DOWN
    }
}
