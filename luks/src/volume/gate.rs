//! The gate: one value (a volume's segment map) that many threads use at once and that one thread may park, drain and
//! exchange.
//!
//! A request *enters* and keeps its guard until its last byte is on its way; [`Gate::park`] lets no new request in, waits
//! until every one inside has left, and then holds the value alone. Between the two a request either runs wholly under the
//! old value or wholly under the new one, never under both.
//!
//! The counters are striped: each thread takes the read side of *its own* lock out of [`STRIPES`], so two threads share no
//! cache line per request (`Documentation/locking/lglock` of Linux 3.x, "big reader lock"). Parking takes the write side of
//! all of them, in order. That is dear, and rare.
//!
//! Queues pass through lanes of their own: see `volume/lane.rs`.
//!
//! Invariants: all stripes and lanes hold the same value whenever no park is under way; a gate without a value is *closed*: whoever
//! enters waits until it is opened or told to fail.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use block::Waker;

use super::lane::{Lane, Place};

/// Number of independent reader locks: more than the threads that serve one volume, so that few share.
const STRIPES: usize = 64;

/// Two cache lines, because x86-64 prefetches lines in pairs.
#[repr(align(128))]
struct Stripe<T>(RwLock<Option<Arc<T>>>);

/// What a closed gate does with those who come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Open,
    Closed,
    Failing,
}

/// The gate around a `T`.
pub(super) struct Gate<T> {
    stripes: Box<[Stripe<T>]>,
    waiting: Mutex<Waiting>,
    opened: Condvar,
    /// One park at a time.
    control: Mutex<()>,
    lanes: Mutex<Vec<Weak<Lane<T>>>>,
}

/// A request inside: the value stays as it is until this is dropped.
pub(super) struct Entered<'a, T> {
    guard: RwLockReadGuard<'a, Option<Arc<T>>>,
}

impl<T> Entered<'_, T> {
    /// The value in force. `None` never happens: [`Gate::enter`] gives out no guard of a closed gate.
    pub(super) fn value(&self) -> Option<&T> {
        self.guard.as_deref()
    }
}

/// The gate, parked and drained: nobody is inside and nobody gets in until this is dropped.
pub(super) struct Parked<'a, T> {
    gate: &'a Gate<T>,
    lanes: Vec<Arc<Lane<T>>>,
    stripes: Vec<RwLockWriteGuard<'a, Option<Arc<T>>>>,
    _control: MutexGuard<'a, ()>,
}

/// The gate was closed and told to send everyone away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SentAway;

/// A poisoned lock here means that a thread died between two assignments that cannot panic; the value is whole.
fn whole<G>(result: Result<G, PoisonError<G>>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// This thread's stripe: threads are numbered as they come.
fn own_stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    OWN.with(|own| *own)
}

impl<T> Gate<T> {
    /// An open gate around `value`.
    pub(super) fn new(value: T) -> Self {
        let value = Arc::new(value);
        let stripes = (0..STRIPES).map(|_| Stripe(RwLock::new(Some(Arc::clone(&value))))).collect();
        let waiting = Mutex::new(Waiting::Open);
        Gate { stripes, waiting, opened: Condvar::new(), control: Mutex::new(()), lanes: Mutex::default() }
    }

    /// A lane for a queue that `waker` wakes. Waits for a park that is under way.
    pub(super) fn join(&self, waker: Waker) -> Place<T> {
        let _control = whole(self.control.lock());
        let mut lanes = whole(self.lanes.lock());
        let value = self.stripes.first().and_then(|stripe| whole(stripe.0.read()).clone());
        let shut = value.is_none() && self.is_waiting();
        let lane = Arc::new(Lane::new(value, shut, waker));
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        Place::new(lane)
    }

    fn lanes(&self) -> Vec<Arc<Lane<T>>> {
        whole(self.lanes.lock()).iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether the gate is closed and those who come wait.
    fn is_waiting(&self) -> bool {
        *whole(self.waiting.lock()) == Waiting::Closed
    }

    /// Goes in unless the gate is closed; only a park is waited for.
    pub(super) fn try_enter(&self) -> Option<Entered<'_, T>> {
        let guard = whole(self.stripes[own_stripe()].0.read());
        guard.is_some().then_some(Entered { guard })
    }

    /// Goes in, waiting while the gate is parked or closed.
    ///
    /// # Errors
    /// [`SentAway`] if the gate is closed and [`Gate::fail_closed`] was called.
    pub(super) fn enter(&self) -> Result<Entered<'_, T>, SentAway> {
        loop {
            if let Some(entered) = self.try_enter() {
                return Ok(entered);
            }
            let mut waiting = whole(self.waiting.lock());
            while *waiting == Waiting::Closed {
                waiting = whole(self.opened.wait(waiting));
            }
            if *waiting == Waiting::Failing {
                return Err(SentAway);
            }
        }
    }

    /// Lets no one in, waits until everyone inside has left.
    pub(super) fn park(&self) -> Parked<'_, T> {
        let control = whole(self.control.lock());
        // Lanes first: a thread with requests in a lane may still pass a stripe, but never the other way round.
        let lanes = self.lanes();
        lanes.iter().for_each(|lane| lane.shut());
        lanes.iter().for_each(|lane| lane.drain());
        let stripes = self.stripes.iter().map(|stripe| whole(stripe.0.write())).collect();
        Parked { gate: self, lanes, stripes, _control: control }
    }

    /// While the gate is closed: wakes those who wait and sends them, and all who come later, away.
    pub(super) fn fail_closed(&self) {
        let mut waiting = whole(self.waiting.lock());
        if *waiting == Waiting::Closed {
            *waiting = Waiting::Failing;
            self.opened.notify_all();
            drop(waiting);
            self.lanes().iter().for_each(|lane| lane.fail());
        }
    }

    /// Whether the gate has no value.
    pub(super) fn is_closed(&self) -> bool {
        *whole(self.waiting.lock()) != Waiting::Open
    }
}

impl<T> Parked<'_, T> {
    /// The value that will be in force when the park ends; `None` if the gate is closed.
    pub(super) fn value(&self) -> Option<&T> {
        self.stripes.first().and_then(|stripe| stripe.as_deref())
    }

    /// Puts `value` in the place of the old one, which is dropped here; `None` closes the gate.
    pub(super) fn replace(&mut self, value: Option<T>) {
        let value = value.map(Arc::new);
        *whole(self.gate.waiting.lock()) = if value.is_some() { Waiting::Open } else { Waiting::Closed };
        for stripe in &mut self.stripes {
            **stripe = value.clone();
        }
        for lane in &self.lanes {
            lane.replace(value.clone());
        }
    }
}

impl<T> Drop for Parked<'_, T> {
    fn drop(&mut self) {
        // Those who woke early block on the stripe until the guards below are gone.
        self.gate.opened.notify_all();
        for lane in &self.lanes {
            lane.open(|| self.gate.is_waiting());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    #[test]
    fn a_park_waits_for_those_inside_and_keeps_others_out() {
        let gate = Gate::new(1u32);
        let inside = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let entered = gate.enter().expect("open");
                        inside.fetch_add(1, Ordering::SeqCst);
                        assert!(entered.value().is_some());
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for round in 0..200 {
                let mut parked = gate.park();
                assert_eq!(inside.load(Ordering::SeqCst), 0, "round {round}");
                parked.replace(Some(round));
                assert_eq!(parked.value(), Some(&round));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(gate.enter().expect("open").value(), Some(&199));
    }

    #[test]
    fn a_closed_gate_holds_until_opened_or_told_to_fail() {
        let gate = Gate::new(1u32);
        gate.park().replace(None);
        assert!(gate.is_closed());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.enter().map(|entered| entered.value().copied()));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            gate.park().replace(Some(2));
            assert_eq!(waiter.join().expect("joined"), Ok(Some(2)));
        });
        gate.fail_closed();
        assert!(gate.enter().is_ok(), "failing an open gate does nothing");
        gate.park().replace(None);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.enter().is_err());
            std::thread::sleep(Duration::from_millis(20));
            gate.fail_closed();
            assert!(waiter.join().expect("joined"));
        });
        assert_eq!(gate.enter().err(), Some(SentAway));
        gate.park().replace(Some(3));
        assert_eq!(gate.enter().expect("open").value(), Some(&3));
    }

    #[test]
    fn closing_drops_the_value() {
        let value = Arc::new(());
        let gate = Gate::new(Arc::clone(&value));
        gate.park().replace(None);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
