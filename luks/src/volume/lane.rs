//! A lane: how a queue passes the gate. A thread that waits on a descriptor must not block on a lock, and its requests begin
//! and end in different calls, so it holds no guard; instead the gate's value itself goes out with it.
//!
//! While a queue has requests inside, it has the value; when the last one has ended, it brings the value back. A park shuts all
//! lanes and waits until every value is home. So a queue touches nothing that other threads touch: its lane has a lock of its
//! own, taken when the first request goes in and the last one out, and no count of references changes.
//!
//! Invariants: the value is out, or home, or the gate is closed; a lane that is shut lets nothing in, and its queue is woken
//! when it is opened again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use block::Waker;

/// A queue's way through a gate around a `T`.
pub(super) struct Lane<T> {
    state: Mutex<State<T>>,
    came_home: Condvar,
    /// Whether nothing may go in now: parked, or closed and not failing. Changed only under the lock.
    shut: AtomicBool,
    waker: Waker,
}

struct State<T> {
    /// `None` while it is out and while the gate is closed.
    home: Option<Arc<T>>,
    out: bool,
    parked: bool,
}

/// Why a queue was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Not now: the queue will be woken.
    Shut,
    /// The gate is closed and sends everyone away.
    SentAway,
}

impl<T> Lane<T> {
    pub(super) fn new(value: Option<Arc<T>>, shut: bool, waker: Waker) -> Lane<T> {
        let state = Mutex::new(State { home: value, out: false, parked: false });
        Lane { state, came_home: Condvar::new(), shut: AtomicBool::new(shut), waker }
    }

    /// A lock is held for assignments that cannot panic, so what a dead thread left is whole.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing may go in now.
    pub(super) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// Takes the value out.
    pub(super) fn enter(&self) -> Result<Arc<T>, Refused> {
        let mut state = self.state();
        if self.is_shut() {
            return Err(Refused::Shut);
        }
        let value = state.home.take().ok_or(Refused::SentAway)?;
        state.out = true;
        Ok(value)
    }

    /// Brings the value home.
    pub(super) fn leave(&self, value: Arc<T>) {
        let mut state = self.state();
        state.home = Some(value);
        state.out = false;
        if state.parked {
            self.came_home.notify_all();
        }
    }

    /// Lets nothing in from now on.
    pub(super) fn shut(&self) {
        let mut state = self.state();
        state.parked = true;
        self.shut.store(true, Ordering::Release);
    }

    /// Waits until the value is home.
    pub(super) fn drain(&self) {
        let mut state = self.state();
        while state.out {
            state = self.came_home.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts another value in the place of the one at home.
    pub(super) fn replace(&self, value: Option<Arc<T>>) {
        self.state().home = value;
    }

    /// Ends a park. `is_waiting` says whether those who come to a gate without a value are to wait.
    pub(super) fn open(&self, is_waiting: impl FnOnce() -> bool) {
        let mut state = self.state();
        state.parked = false;
        let shut = state.home.is_none() && is_waiting();
        self.shut.store(shut, Ordering::Release);
        drop(state);
        self.waker.wake();
    }

    /// Lets those in, to be sent away, who wait before a gate without a value.
    pub(super) fn fail(&self) {
        let state = self.state();
        if !state.parked && !state.out && state.home.is_none() {
            self.shut.store(false, Ordering::Release);
        }
        drop(state);
        self.waker.wake();
    }
}

/// A queue's place in its lane: the value while it is out. It goes home when this is dropped.
pub(super) struct Place<T> {
    pub(super) lane: Arc<Lane<T>>,
    value: Option<Arc<T>>,
}

impl<T> Place<T> {
    pub(super) fn new(lane: Arc<Lane<T>>) -> Place<T> {
        Place { lane, value: None }
    }

    /// The value, while it is out.
    pub(super) fn value(&self) -> Option<&T> {
        self.value.as_deref()
    }

    /// Goes in with one more request.
    pub(super) fn enter(&mut self) -> Result<(), Refused> {
        if self.value.is_none() {
            self.value = Some(self.lane.enter()?);
        } else if self.lane.is_shut() {
            return Err(Refused::Shut);
        }
        Ok(())
    }

    /// The last request has ended.
    pub(super) fn leave(&mut self) {
        if let Some(value) = self.value.take() {
            self.lane.leave(value);
        }
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.leave();
    }
}
