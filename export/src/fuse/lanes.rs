//! Lanes: how requests that wait for the disk leave the door open for those that do not.
//!
//! fuser has a fixed number of threads, and each runs one request to its end. If all of them waited in a suspended
//! volume, nobody could answer a `stat`, and a shell in the folder would hang. So one thread fewer than there are may
//! wait in the disk at a time. The last one hands its disk request to a spare thread and waits for it a short while
//! (so that it takes no more than its share while the disk works); when the disk does not answer in that time it goes
//! back to the door, and from then on hands over without waiting until the disk moves again.
//!
//! Bounds: at most [`MAX_PARKED`] requests are parked; when the queue is full, the last thread does wait. The kernel
//! itself keeps asynchronous requests below `max_background`, so that only that many programs, each blocked in a call
//! of its own, can fill it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

/// Disk requests that may wait beside those in the threads.
pub(super) const MAX_PARKED: usize = 256;
/// How long the last thread waits for a request that it handed over, while the disk moves.
const PATIENCE: Duration = Duration::from_millis(20);

type Job = Box<dyn FnOnce() + Send>;

/// Counts the threads in the disk and parks what is too much.
pub(super) struct Lanes {
    /// Threads in the disk now.
    inside: AtomicUsize,
    /// Threads that may be.
    limit: usize,
    /// Set when a parked request outlasted [`PATIENCE`], cleared when one is done.
    stalled: Arc<AtomicBool>,
    parked: SyncSender<Job>,
}

/// One thread's place in the disk, given back on drop.
pub(super) struct Lane<'a>(&'a Lanes);

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Release);
    }
}

impl Lanes {
    /// Lanes for that many threads (two or more), and the spare thread, which ends when the lanes are dropped.
    pub(super) fn new(threads: usize) -> io::Result<Lanes> {
        let (parked, jobs) = sync_channel::<Job>(MAX_PARKED);
        let stalled = Arc::new(AtomicBool::new(false));
        let thread_stalled = Arc::clone(&stalled);
        std::thread::Builder::new().name("fuse-spare".to_owned()).spawn(move || run_parked(&jobs, &thread_stalled))?;
        Ok(Lanes { inside: AtomicUsize::new(0), limit: threads.saturating_sub(1).max(1), stalled, parked })
    }

    /// A place in the disk, unless all but one of the threads are there.
    pub(super) fn enter(&self) -> Option<Lane<'_>> {
        self.inside
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |inside| (inside < self.limit).then_some(inside + 1))
            .ok()
            .map(|_| Lane(self))
    }

    /// Hands a disk request to the spare thread. Without one, or with a full queue, the caller runs it itself.
    pub(super) fn park(&self, job: impl FnOnce() + Send + 'static) {
        if self.stalled.load(Ordering::Relaxed) {
            self.send(Box::new(job));
            return;
        }
        let (done, wait) = channel::<()>();
        self.send(Box::new(move || {
            job();
            // Nobody waits any more after a stall.
            let _ = done.send(());
        }));
        if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = wait.recv_timeout(PATIENCE) {
            self.stalled.store(true, Ordering::Relaxed);
        }
    }

    fn send(&self, job: Job) {
        match self.parked.try_send(job) {
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
    use std::time::Instant;

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
        let (release, held) = mpsc::channel::<()>();
        let (done, finished) = mpsc::channel::<usize>();
        let start = Instant::now();
        let first_done = done.clone();
        lanes.park(move || {
            held.recv().unwrap();
            first_done.send(0).unwrap();
        });
        for index in 1..100 {
            let done = done.clone();
            lanes.park(move || done.send(index).unwrap());
        }
        assert!(start.elapsed() < Duration::from_secs(5), "waited for each of them");
        assert!(finished.try_recv().is_err());
        release.send(()).unwrap();
        let order: Vec<usize> = finished.iter().take(100).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_moving_disk_is_waited_for() {
        let lanes = Lanes::new(2).unwrap();
        let (done, finished) = mpsc::channel::<()>();
        lanes.park(move || done.send(()).unwrap());
        finished.try_recv().expect("done before park returns");
    }
}
