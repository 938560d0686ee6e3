//! The ready list of a runtime that is woken: which sockets have something to do.
//!
//! Every socket has a waker of its own. When the kernel reports it ready, its token goes on the list, at most once, and
//! the driver is woken; so a turn visits exactly the sockets that became ready, however many there are.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use crate::system::Token;

/// What has become ready since the driver last looked.
#[derive(Debug, Default)]
pub struct ReadyList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tokens: Vec<Token>,
    driver: Option<Waker>,
    /// The driver was woken and has not looked yet: one wake is enough for any number of tokens.
    woken: bool,
}

impl ReadyList {
    /// Wakes the driver.
    pub fn wake(&self) {
        self.change(|_| ());
    }

    /// Moves everything to the end of `work`, and has `driver` woken by what comes from now on.
    pub fn take(&self, driver: &Waker, work: &mut VecDeque<Token>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.driver {
            Some(waker) => waker.clone_from(driver),
            None => state.driver = Some(driver.clone()),
        }
        state.woken = false;
        work.extend(state.tokens.drain(..));
    }

    fn push(&self, token: Token) {
        self.change(|state| state.tokens.push(token));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let wake = !std::mem::replace(&mut state.woken, true);
        let driver = wake.then(|| state.driver.clone()).flatten();
        // Outside the lock: waking may run code of the executor.
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

/// One socket's place on the list.
#[derive(Debug)]
pub struct Source {
    inner: Arc<Inner>,
    waker: Waker,
}

#[derive(Debug)]
struct Inner {
    list: Arc<ReadyList>,
    token: Token,
    /// The token is on the ready list or in the driver's own queue.
    queued: AtomicBool,
}

impl Source {
    /// For the socket that this token names.
    #[must_use]
    pub fn new(list: &Arc<ReadyList>, token: Token) -> Self {
        let inner = Arc::new(Inner {
            list: Arc::clone(list),
            token,
            queued: AtomicBool::new(false),
        });
        let waker = Waker::from(Arc::clone(&inner));
        Self { inner, waker }
    }

    /// The context to poll the socket with.
    #[must_use]
    pub fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    /// Puts the socket into the driver's queue unless it waits somewhere already.
    pub fn queue(&self, work: &mut VecDeque<Token>) {
        if !self.inner.queued.swap(true, Ordering::AcqRel) {
            work.push_back(self.inner.token);
        }
    }

    /// Says that the socket's token was taken out of the queue. To be called before the socket is looked at: what the
    /// kernel reports while it is being served must not be lost.
    pub fn visited(&self) {
        self.inner.queued.swap(false, Ordering::AcqRel);
    }
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.list.push(self.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use portal_core::StreamId;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_socket_is_listed_once_and_the_driver_woken_once_until_it_looks() {
        let count = Arc::new(Count::default());
        let driver = Waker::from(Arc::clone(&count));
        let woken = || count.0.load(Ordering::Relaxed);
        let list = Arc::new(ReadyList::default());
        let mut work = VecDeque::new();
        list.take(&driver, &mut work);

        let a = Source::new(&list, Token::Tunnel);
        let b = Source::new(&list, Token::Stream(StreamId::from_parts(0, 0)));
        a.waker.wake_by_ref();
        a.waker.wake_by_ref();
        b.waker.wake_by_ref();
        a.queue(&mut work);
        assert_eq!((woken(), work.len()), (1, 0), "listed, not queued twice");

        list.take(&driver, &mut work);
        assert_eq!(work.len(), 2);
        a.waker.wake_by_ref();
        assert_eq!(woken(), 1, "still in the queue");
        a.visited();
        a.waker.wake_by_ref();
        assert_eq!(woken(), 2);
    }
}
