//! Lanes: how requests that wait for the disk leave the door open for those that do not.
//!
//! fuser has a fixed number of threads, and each runs one request to its end. If all of them waited in a suspended
//! volume, nobody could answer a `stat`, and a shell in the folder would hang. So one thread fewer than there are may
//! be in the disk at a time. The last one waits a short while for one of them to come out, and then goes in itself: while the
//! disk moves, every request has one thread from arrival to reply, and nothing is allocated or copied for it. When none comes
//! out in that time, it hands its request to a spare thread and goes back to the door, and from then on hands over without
//! waiting until the disk moves again.
//!
//! Bounds: at most [`MAX_PARKED`] requests are parked; when the queue is full, the last thread does wait. The kernel
//! itself keeps asynchronous requests below `max_background`, so that only that many programs, each blocked in a call
//! of its own, can fill it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Disk requests that may wait beside those in the threads.
pub(super) const MAX_PARKED: usize = 256;
/// How long the last thread waits for another to come out, while the disk moves.
const PATIENCE: Duration = Duration::from_millis(20);

type Job = Box<dyn FnOnce() + Send>;

/// Counts the threads in the disk and parks what is too much.
pub(super) struct Lanes {
    /// Threads in the disk now.
    inside: AtomicUsize,
    /// Threads that may be.
    limit: usize,
    /// Threads that wait for another to come out.
    waiting: AtomicUsize,
    door: Mutex<()>,
    came_out: Condvar,
    /// Set when nobody came out for [`PATIENCE`], cleared when somebody does or a parked request is done.
    stalled: Arc<AtomicBool>,
    parked: SyncSender<Job>,
}

/// One thread's place in the disk, given back on drop.
pub(super) struct Lane<'a>(&'a Lanes);

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let lanes = self.0;
        // In one order with `enter`, which counts itself as waiting before it looks whether there is room: either it sees
        // this place free, or it is seen here.
        lanes.inside.fetch_sub(1, Ordering::SeqCst);
        if lanes.stalled.load(Ordering::Relaxed) {
            lanes.stalled.store(false, Ordering::Relaxed);
        }
        if lanes.waiting.load(Ordering::SeqCst) > 0 {
            drop(lanes.door.lock().unwrap_or_else(PoisonError::into_inner));
            lanes.came_out.notify_one();
        }
    }
}

impl Lanes {
    /// Lanes for that many threads (two or more), and the spare thread, which ends when the lanes are dropped.
    pub(super) fn new(threads: usize) -> io::Result<Lanes> {
        let (parked, jobs) = sync_channel::<Job>(MAX_PARKED);
        let stalled = Arc::new(AtomicBool::new(false));
        let thread_stalled = Arc::clone(&stalled);
        std::thread::Builder::new().name("fuse-spare".to_owned()).spawn(move || run_parked(&jobs, &thread_stalled))?;
        Ok(Lanes {
            inside: AtomicUsize::new(0),
            limit: threads.saturating_sub(1).max(1),
            waiting: AtomicUsize::new(0),
            door: Mutex::new(()),
            came_out: Condvar::new(),
            stalled,
            parked,
        })
    }

    fn try_enter(&self) -> Option<Lane<'_>> {
        self.inside
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |inside| (inside < self.limit).then_some(inside + 1))
            .ok()
            .map(|_| Lane(self))
    }

    /// A place in the disk. `None` when all but one of the threads are there and the disk does not move: park the request then.
    pub(super) fn enter(&self) -> Option<Lane<'_>> {
        if let Some(lane) = self.try_enter() {
            return Some(lane);
        }
        if self.stalled.load(Ordering::Relaxed) {
            return None;
        }
        let until = Instant::now() + PATIENCE;
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let lane = loop {
            if let Some(lane) = self.try_enter() {
                break Some(lane);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break None;
            }
            door =
                self.came_out.wait_timeout(door, left).map_or_else(|poisoned| poisoned.into_inner().0, |woken| woken.0);
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        // Not while the door is held: giving a place back takes it.
        drop(door);
        if lane.is_none() {
            self.stalled.store(true, Ordering::Relaxed);
        }
        lane
    }

    /// Hands a disk request to the spare thread. Without one, or with a full queue, the caller runs it itself.
    pub(super) fn park(&self, job: impl FnOnce() + Send + 'static) {
        match self.parked.try_send(Box::new(job)) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job(),
        }
    }
}

fn run_parked(jobs: &Receiver<Job>, stalled: &AtomicBool) {
    while let Ok(job) = jobs.recv() {
        job();
        stalled.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn one_thread_always_stays_outside() {
        let lanes = Lanes::new(3).unwrap();
        let first = lanes.enter().unwrap();
        let second = lanes.enter().unwrap();
        assert!(lanes.enter().is_none());
        drop(first);
        let third = lanes.enter().unwrap();
        assert!(lanes.enter().is_none());
        drop((second, third));
        assert!(lanes.enter().is_some());
    }

    #[test]
    fn a_stalled_disk_does_not_hold_the_last_thread() {
        let lanes = Lanes::new(2).unwrap();
        let stuck = lanes.enter().unwrap();
        let (release, held) = mpsc::channel::<()>();
        let (done, finished) = mpsc::channel::<usize>();
        let start = Instant::now();
        let first_done = done.clone();
        assert!(lanes.enter().is_none());
        lanes.park(move || {
            held.recv().unwrap();
            first_done.send(0).unwrap();
        });
        for index in 1..100 {
            assert!(lanes.enter().is_none());
            let done = done.clone();
            lanes.park(move || done.send(index).unwrap());
        }
        assert!(start.elapsed() < Duration::from_secs(5), "waited for each of them");
        assert!(finished.try_recv().is_err());
        release.send(()).unwrap();
        let order: Vec<usize> = finished.iter().take(100).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
        drop(stuck);
        assert!(lanes.enter().is_some());
    }

    #[test]
    fn a_moving_disk_is_waited_for() {
        let lanes = Lanes::new(2).unwrap();
        let (entered, wait) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let lane = lanes.enter();
                    entered.send(()).unwrap();
                    drop(lane);
                }
            });
            for _ in 0..1000 {
                // The other thread is inside or not, and never for long.
                wait.recv().unwrap();
                let until = Instant::now() + Duration::from_secs(30);
                while lanes.enter().is_none() {
                    assert!(Instant::now() < until, "the door was not opened again");
                }
            }
        });
        assert_eq!(lanes.inside.load(Ordering::SeqCst), 0);
    }
}
