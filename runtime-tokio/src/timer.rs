//! The driver's one timer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

/// Wakes the driver at the next deadline, or a little earlier: a deadline that moves later leaves the timer as it is,
/// which spares a trip through tokio's timer wheel on nearly every turn and costs one idle turn when it fires.
#[derive(Debug)]
pub(crate) struct Timer {
    sleep: Pin<Box<Sleep>>,
    armed: Option<Instant>,
}

impl Timer {
    pub(crate) fn new() -> Self {
        Self {
            sleep: Box::pin(tokio::time::sleep_until(tokio::time::Instant::now())),
            armed: None,
        }
    }

    /// Arranges for a wake-up by `deadline`. Ready if it has come already. tokio rounds up, so it is never early.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        loop {
            if let Some(deadline) = deadline
                && self.armed.is_none_or(|armed| deadline < armed)
            {
                self.sleep.as_mut().reset(tokio::time::Instant::from_std(deadline));
                self.armed = Some(deadline);
            }
            let Some(armed) = self.armed else {
                return Poll::Pending;
            };
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
            if deadline.is_some_and(|deadline| deadline <= armed) {
                return Poll::Ready(());
            }
        }
    }
}

/// The clock that tokio's timers follow, which a test can hold and move.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
