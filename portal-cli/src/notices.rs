//! What a command waits for while its machine runs: one queue, so that its main thread is one plain loop.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::pages;
use crate::process::{self, ProcessError, Signal};
use crate::state::control::{Answer, ControlSocket, Request};

/// Notices that may wait. Whoever has one more waits; only the machine does not, as its runtime keeps its events.
pub(crate) const QUEUE: usize = 64;
/// Nothing new for so long: the start is over, and so is what came of the last notice.
const QUIET: Duration = Duration::from_secs(3);
/// And then now and then: a burst of visitors needs more of the program than the quiet after it.
const LET_GO_EVERY: Duration = Duration::from_secs(60);

/// Something to act on. `E` is what the machine tells; `D` is what comes of work that was done aside.
pub(crate) enum Notice<E, D> {
    /// The machine tells something.
    Event(E),
    /// It has ended, and has nothing more to tell.
    Ended,
    /// The system does.
    Signal(Signal),
    /// Somebody asks by the control socket.
    Asked(Question),
    /// Work that was done aside has ended.
    Done(D),
}

/// A request that waits for its answer.
pub(crate) struct Question {
    /// What is asked.
    pub(crate) request: Request,
    answer: SyncSender<Answer>,
}

impl Question {
    /// Answers it.
    pub(crate) fn answer(self, answer: Answer) {
        // A caller that has gone does not want it.
        let _ = self.answer.send(answer);
    }
}

/// The queue, with both its ends.
pub(crate) struct Notices<E, D> {
    sender: SyncSender<Notice<E, D>>,
    receiver: Receiver<Notice<E, D>>,
}

impl<E: Send + 'static, D: Send + 'static> Notices<E, D> {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        Self { sender, receiver }
    }

    /// Waits for the next, until `deadline` if there is one. Lets go meanwhile of what is not needed of the program any more.
    pub(crate) fn next(&self, deadline: Option<Instant>) -> Option<Notice<E, D>> {
        let mut pause = QUIET;
        loop {
            let pause_ends = Instant::now() + pause;
            if let Some(at) = deadline.filter(|at| *at <= pause_ends) {
                return self.wait(at);
            }
            let notice = self.wait(pause_ends);
            if notice.is_some() {
                return notice;
            }
            pages::let_go();
            pause = LET_GO_EVERY;
        }
    }

    fn wait(&self, deadline: Instant) -> Option<Notice<E, D>> {
        let left = deadline.saturating_duration_since(Instant::now());
        // There is a sender: this one's own.
        self.receiver.recv_timeout(left).ok()
    }

    /// Takes a machine's events, as a runtime gives them.
    pub(crate) fn events(&self) -> impl FnMut(Option<E>) + Send + use<E, D> {
        let sender = self.sender.clone();
        move |event| {
            // Who does not wait any more has no use for it.
            let _ = sender.send(event.map_or(Notice::Ended, Notice::Event));
        }
    }

    /// Takes signals over from the system's default, which is to die.
    pub(crate) fn watch_signals(&self, hangups: bool) -> Result<(), Failure> {
        let sender = self.sender.clone();
        process::watch_signals(hangups, move |signal| drop(sender.send(Notice::Signal(signal))))?;
        Ok(())
    }

    /// Takes the requests that come by a control socket, one at a time.
    pub(crate) fn listen(&self, control: &ControlSocket) -> Result<(), Failure> {
        let sender = self.sender.clone();
        control.serve(move |request| {
            let (answer, answered) = sync_channel(1);
            sender.send(Notice::Asked(Question { request, answer })).ok()?;
            answered.recv().ok()
        })?;
        Ok(())
    }

    /// Starts a thread that does what may take long, one job after the other.
    pub(crate) fn worker<J: Send + 'static>(
        &self,
        name: &str,
        mut work: impl FnMut(J) -> D + Send + 'static,
    ) -> Result<Worker<J>, Failure> {
        let sender = self.sender.clone();
        let (jobs, waiting) = sync_channel::<J>(1);
        let work = move || {
            for job in waiting {
                // Who does not wait any more does not want it.
                let _ = sender.send(Notice::Done(work(job)));
            }
        };
        let thread = thread::Builder::new().name(name.into());
        thread.spawn(work).map_err(ProcessError::Thread)?;
        Ok(Worker { jobs })
    }
}

/// A thread that works aside.
pub(crate) struct Worker<J> {
    jobs: SyncSender<J>,
}

impl<J> Worker<J> {
    /// Hands it a job. One may wait while another is done; a third is not taken.
    pub(crate) fn give(&self, job: J) {
        let _ = self.jobs.try_send(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_aside_comes_back_and_waiting_has_an_end() {
        let notices = Notices::<(), u32>::new();
        let (begin, began) = (Instant::now(), Duration::from_millis(20));
        assert!(notices.next(Some(begin + began)).is_none());
        assert!(begin.elapsed() >= began);
        assert!(notices.next(Some(begin)).is_none(), "a deadline that is over");
        let (go, wait) = sync_channel::<()>(0);
        let worker = notices.worker("test", move |job: u32| {
            wait.recv().unwrap();
            job
        });
        let worker = worker.unwrap();
        worker.give(1);
        go.send(()).unwrap();
        assert!(matches!(notices.next(None), Some(Notice::Done(1))));
        worker.give(2);
        // It is taken up at some time, and then one more may wait.
        thread::sleep(Duration::from_millis(50));
        for job in 3..9 {
            worker.give(job);
        }
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert!(matches!(notices.next(None), Some(Notice::Done(2))));
        assert!(matches!(notices.next(None), Some(Notice::Done(3))));
        assert!(notices.next(Some(Instant::now() + began)).is_none());
    }

    #[test]
    fn events_come_in_order_and_the_end_comes_last() {
        let notices = Notices::<u32, ()>::new();
        let mut take = notices.events();
        for event in [Some(1), Some(2), None] {
            take(event);
        }
        assert!(matches!(notices.next(None), Some(Notice::Event(1))));
        assert!(matches!(notices.next(None), Some(Notice::Event(2))));
        assert!(matches!(notices.next(None), Some(Notice::Ended)));
    }
}
