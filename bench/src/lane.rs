//! One job on one layer for a while: threads, each with a [`Lane`] of its own to the bytes, keep a number of requests in flight
//! and measure the time of each from its submission to its completion.
//!
//! * A request follows as soon as one has ended; each is submitted by itself, as fio does by default.
//! * Latency is from before the submission (for an encrypting lane: before the encryption) to when the completion was taken up (for a
//!   decrypting one: after the decryption). Completions are taken up one by one, each followed by the next request, as fio does by
//!   default: one that waits for its turn is not over yet.
//! * What warms up is not counted, nor is what is still in flight at the end. Counted is what was *completed* between the two
//!   moments that bound the piece, so that the rate is true whatever was in flight at either.
//! * Nothing is allocated per request.
//! * What is written does not compress: each buffer is random, and every 512 bytes of it get eight new random ones before each
//!   write.

mod blocking;
#[allow(unsafe_code)] // The one wrapper around io_uring of this crate.
mod ring;

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::latency::Latencies;
use crate::run::Pattern;

pub use blocking::BlockingLane;
pub use ring::{Manner, RingLane};

/// Share of the reads in [`Pattern::RandomMixed`], in percent.
const READS_PERCENT: u64 = 70;
const WARMS: u8 = 0;
const MEASURES: u8 = 1;
const ENDS: u8 = 2;

/// A thread's way to the bytes: so many requests in flight, each of one block, each in the slot that is its number.
pub trait Lane {
    /// The memory of an idle slot: one block.
    fn buffer(&mut self, slot: usize) -> &mut [u8];

    /// Begins a request at `offset_bytes` in an idle slot.
    ///
    /// # Errors
    /// It was not taken.
    fn submit(&mut self, slot: usize, write: bool, offset_bytes: u64) -> Result<()>;

    /// Waits until at least one request has ended, and appends the slots of all that have.
    ///
    /// # Errors
    /// A request failed, or waiting did.
    fn wait(&mut self, ended: &mut Vec<usize>) -> Result<()>;
}

/// What is done.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    /// Which requests.
    pub pattern: Pattern,
    /// Bytes of one.
    pub block_bytes: u32,
    /// In flight for each thread.
    pub depth: u32,
    /// Threads.
    pub threads: u32,
    /// The requests lie between 0 and this.
    pub size_bytes: u64,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub piece: Duration,
    /// The same offsets follow from the same seed.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Done {
    /// Requests completed.
    pub requests: u64,
    /// The longest that a thread measured.
    pub elapsed: Duration,
    /// Of all threads.
    pub latencies: Latencies,
}

/// Runs `task`. `open` makes each thread's lane, on that thread; `at_bounds` is called as the piece begins and as it ends.
///
/// # Errors
/// What a lane reports; the others are ended then.
pub fn run(
    task: &Task,
    open: &(dyn Fn() -> Result<Box<dyn Lane>> + Sync),
    mut at_bounds: impl FnMut() -> Result<()>,
) -> Result<Done> {
    let phase = AtomicU8::new(WARMS);
    let done = thread::scope(|scope| {
        let caller = thread::current();
        let spawn = |number| {
            let (phase, caller) = (&phase, caller.clone());
            scope.spawn(move || {
                let done = open().and_then(|lane| Walk::new(task, number).drive(lane, phase));
                if done.is_err() {
                    phase.store(ENDS, Ordering::Relaxed);
                    caller.unpark();
                }
                done
            })
        };
        let running: Vec<_> = (0..task.threads.max(1)).map(spawn).collect();
        sleep(task.warm_up, &phase);
        let mut bounds = at_bounds();
        // A thread that failed has set the end already.
        let _ = phase.compare_exchange(WARMS, MEASURES, Ordering::Relaxed, Ordering::Relaxed);
        sleep(task.piece, &phase);
        phase.store(ENDS, Ordering::Relaxed);
        bounds = bounds.and_then(|()| at_bounds());
        let mut all = Vec::new();
        for thread in running {
            all.push(thread.join().map_err(|_| anyhow!("a measuring thread panicked"))??);
        }
        bounds.map(|()| all)
    })?;
    let mut sum = Done { requests: 0, elapsed: Duration::ZERO, latencies: Latencies::new()? };
    for thread in &done {
        sum.requests += thread.requests;
        sum.elapsed = sum.elapsed.max(thread.elapsed);
        sum.latencies.add(&thread.latencies)?;
    }
    Ok(sum)
}

/// Sleeps, but no longer than all goes well.
fn sleep(time: Duration, phase: &AtomicU8) {
    let until = Instant::now() + time;
    loop {
        let rest = until.saturating_duration_since(Instant::now());
        if rest.is_zero() || phase.load(Ordering::Relaxed) == ENDS {
            return;
        }
        thread::park_timeout(rest);
    }
}

/// The requests of one thread, one after the other.
struct Walk {
    pattern: Pattern,
    block_bytes: u64,
    depth: usize,
    blocks: u64,
    /// The next block of a sequential pattern.
    next: u64,
    random: Random,
}

impl Walk {
    fn new(task: &Task, thread: u32) -> Walk {
        let block_bytes = u64::from(task.block_bytes.max(1));
        let blocks = (task.size_bytes / block_bytes).max(1);
        let threads = u64::from(task.threads.max(1));
        Walk {
            pattern: task.pattern,
            block_bytes,
            depth: usize::try_from(task.depth.max(1)).unwrap_or(1),
            blocks,
            // Each begins in its own part.
            next: blocks / threads * u64::from(thread),
            random: Random(task.seed ^ (u64::from(thread) << 32)),
        }
    }

    /// Whether it writes, and where it is.
    fn step(&mut self) -> (bool, u64) {
        let block = match self.pattern {
            Pattern::SequentialRead | Pattern::SequentialWrite => {
                let block = self.next;
                self.next = if block + 1 < self.blocks { block + 1 } else { 0 };
                block
            }
            _ => self.random.below(self.blocks),
        };
        let write = match self.pattern {
            Pattern::SequentialRead | Pattern::RandomRead => false,
            Pattern::SequentialWrite | Pattern::RandomWrite => true,
            Pattern::RandomMixed => self.random.below(100) >= READS_PERCENT,
        };
        (write, block * self.block_bytes)
    }

    /// Begins the next request in `slot` and returns when.
    fn begin(&mut self, lane: &mut dyn Lane, slot: usize) -> Result<Instant> {
        let (write, offset_bytes) = self.step();
        if write {
            self.random.freshen(lane.buffer(slot));
        }
        let begun = Instant::now();
        lane.submit(slot, write, offset_bytes)?;
        Ok(begun)
    }

    fn drive(mut self, mut lane: Box<dyn Lane>, phase: &AtomicU8) -> Result<Done> {
        for slot in 0..self.depth {
            self.random.fill(lane.buffer(slot));
        }
        let mut done = Done { requests: 0, elapsed: Duration::ZERO, latencies: Latencies::new()? };
        let mut measured_since = None;
        let mut ended: Vec<usize> = Vec::with_capacity(self.depth);
        let mut begun = Vec::with_capacity(self.depth);
        for slot in 0..self.depth {
            begun.push(self.begin(&mut *lane, slot)?);
        }
        loop {
            lane.wait(&mut ended)?;
            let present = phase.load(Ordering::Relaxed);
            if present == ENDS {
                break;
            }
            for slot in ended.drain(..) {
                let now = Instant::now();
                if let Some(since) = measured_since {
                    done.latencies.record(nanoseconds(now - begun[slot]));
                    done.requests += 1;
                    done.elapsed = now - since;
                } else if present == MEASURES {
                    measured_since = Some(now);
                }
                begun[slot] = self.begin(&mut *lane, slot)?;
            }
        }
        let mut in_flight = self.depth - ended.len();
        while in_flight > 0 {
            ended.clear();
            lane.wait(&mut ended)?;
            in_flight -= ended.len();
        }
        Ok(done)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Random numbers that are good enough for offsets and for data that nobody compresses: splitmix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `limit`, evenly enough for limits far below 2^64.
    pub fn below(&mut self, limit: u64) -> u64 {
        let high = (u128::from(self.number()) * u128::from(limit)) >> 64;
        u64::try_from(high).unwrap_or(0)
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.number().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Makes filled `bytes` different from what they were, in every 512 of them.
    fn freshen(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_exact_mut(512) {
            chunk[..8].copy_from_slice(&self.number().to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
