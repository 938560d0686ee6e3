//! When a relay writes what it remembers: soon after it has changed, seldom enough, one write at a time, and never on the
//! thread that moves bytes or on the one that answers.

use std::time::{Duration, Instant};

use portal_core::{Kept, RelayEvent};

use crate::notices::{self, Worker};
use crate::runtime;
use crate::state::{Book, Draft, StateError};

/// How long a change waits to be written: others may come with it. A relay that is killed forgets what is not written,
/// and an agent that it forgot has to find out by itself that the relay is back, which takes it 15 s.
const WRITE_AFTER: Duration = Duration::from_millis(20);
/// How often is written at most.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// When a write that failed is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(10);
/// How often the relay is asked for all of it at most.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Events that are older than what the relay says of itself: those that were on their way when it was asked.
const OLDER: usize = runtime::EVENTS + notices::QUEUE + 1;

/// The book of a running relay.
///
/// A flood of visitors can make events of the relay be lost, but nobody's name may be given away for that. So if some
/// were, the relay itself is asked; and for as long as events may be older than its answer, it is asked again instead of
/// believing them.
pub(super) struct Keeper {
    book: Book,
    /// Writes a draft, and tells of its end.
    writer: Worker<Draft>,
    /// A draft is being written. No other is before it has ended, or an older one could be the last to reach the disk.
    writing: bool,
    /// When there is something to be written, and before when not.
    write_at: Option<Instant>,
    write_next: Instant,
    /// When the relay is to be asked, and before when not.
    ask_at: Option<Instant>,
    ask_next: Instant,
    /// How many of the relay's events are known to be lost.
    lost: u64,
    /// Events to come that may be older than what the relay has said.
    older: usize,
}

impl Keeper {
    pub(super) fn new(now: Instant, book: Book, writer: Worker<Draft>) -> Self {
        Self {
            book,
            writer,
            writing: false,
            write_at: None,
            write_next: now,
            ask_at: None,
            ask_next: now,
            lost: 0,
            older: 0,
        }
    }

    /// Takes what is to be remembered of an event.
    pub(super) fn note(&mut self, now: Instant, event: &RelayEvent) {
        let is_older = self.older > 0;
        self.older = self.older.saturating_sub(1);
        if !Book::concerns(event) {
            return;
        }
        if is_older {
            return self.ask_soon(now);
        }
        let changed = self.book.note(event);
        self.write_soon(now, changed);
    }

    /// So many events were lost so far.
    pub(super) fn count_lost(&mut self, now: Instant, lost: u64) {
        if lost != self.lost {
            tracing::warn!(count = lost.saturating_sub(self.lost), "events of the relay were lost");
            self.lost = lost;
            self.ask_soon(now);
        }
    }

    /// When to call [`Keeper::wants_all`] or [`Keeper::write_if_due`] at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.ask_at, self.write_at.filter(|_| !self.writing)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether it is time to ask the relay for all of it, for [`Keeper::adopt`].
    pub(super) fn wants_all(&self, now: Instant) -> bool {
        self.ask_at.is_some_and(|at| at <= now)
    }

    /// Takes all that the relay knows.
    pub(super) fn adopt(&mut self, now: Instant, kept: Kept) {
        (self.ask_at, self.ask_next, self.older) = (None, now + ASK_EVERY, OLDER);
        let changed = self.book.adopt(kept);
        self.write_soon(now, changed);
    }

    /// Has it written if it is time.
    pub(super) fn write_if_due(&mut self, now: Instant) {
        if !self.writing && self.write_at.is_some_and(|at| at <= now) {
            (self.write_at, self.write_next, self.writing) = (None, now + WRITE_EVERY, true);
            self.writer.give(self.book.draft());
        }
    }

    /// A write has ended.
    pub(super) fn written(&mut self, now: Instant, result: &Result<(), StateError>) {
        self.writing = false;
        if result.is_err() {
            self.book.not_written();
            self.write_at = Some(now + WRITE_AGAIN);
        }
    }

    /// Whether a write has not ended.
    pub(super) fn is_writing(&self) -> bool {
        self.writing
    }

    /// Whether what the relay said last may not be the last word.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.ask_at.is_some()
    }

    /// Writes what is left, after the last write has ended. Waits for the disk.
    pub(super) fn finish(mut self) -> Result<(), StateError> {
        self.book.draft().write()
    }

    fn ask_soon(&mut self, now: Instant) {
        self.ask_at.get_or_insert(now.max(self.ask_next));
    }

    fn write_soon(&mut self, now: Instant, changed: bool) {
        if changed && self.write_at.is_none() {
            self.write_at = Some((now + WRITE_AFTER).max(self.write_next));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notices::{Notice, Notices};
    use crate::state::StateDir;
    use portal_core::Binding;
    use portal_core::identity::PublicKey;

    fn port(key: u8) -> Binding {
        Binding::Port {
            port: 20_000,
            key: PublicKey::from_bytes([key; 32]),
            service: "db".into(),
        }
    }

    #[test]
    fn what_was_lost_is_asked_for_and_older_news_does_not_undo_it() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(directory.path())).unwrap();
        let notices = Notices::<(), Result<(), StateError>>::new();
        let writer = notices.worker("writer", |draft: Draft| draft.write()).unwrap();
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut keeper = Keeper::new(start, state.book().unwrap(), writer);
        let write = |keeper: &mut Keeper, now| {
            keeper.write_if_due(now);
            assert!(keeper.is_writing());
            let Some(Notice::Done(result)) = notices.next(None) else {
                panic!()
            };
            keeper.written(now, &result);
            state.book().unwrap().bindings()
        };

        keeper.count_lost(at(0), 0);
        keeper.note(at(0), &RelayEvent::Bound(port(1)));
        assert_eq!(keeper.deadline(), Some(at(0) + WRITE_AFTER));
        assert!(!keeper.wants_all(at(0)));
        assert_eq!(write(&mut keeper, at(20)), [port(1)]);

        keeper.count_lost(at(50), 7);
        assert!(keeper.wants_all(at(50)) && keeper.is_in_doubt());
        let bindings = vec![port(2)];
        let kept = || Kept {
            bindings: bindings.clone(),
            recent: Vec::new(),
        };
        keeper.adopt(at(50), kept());
        assert!(!keeper.is_in_doubt());
        assert_eq!(write(&mut keeper, at(120)), bindings);

        // This was said before, and comes after.
        keeper.note(at(130), &RelayEvent::Bound(port(1)));
        assert_eq!(keeper.deadline(), Some(at(50) + ASK_EVERY));
        assert!(!keeper.wants_all(at(1049)), "not all the time");
        assert!(keeper.wants_all(at(1050)));
        keeper.adopt(at(1050), kept());
        assert_eq!(keeper.deadline(), None, "nothing has changed");

        // Once all of those have come, what is told is believed again.
        for _ in 0..OLDER {
            keeper.note(
                at(1060),
                &RelayEvent::PeerDown {
                    key: PublicKey::from_bytes([3; 32]),
                },
            );
        }
        assert_eq!(keeper.deadline(), None);
        keeper.note(at(1070), &RelayEvent::Bound(port(3)));
        assert!(!keeper.is_in_doubt());
        assert_eq!(write(&mut keeper, at(1090)), [port(3)]);
    }
}
