//! Runs an operation once, recording, and then holds every platter that a cut can leave against its promise.

#![allow(clippy::panic)]

use block::MemDisk;
use block::fault::{Cut, FaultDisk, PowerCutDisk, Recording};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::mending::Mended;
use super::operation::{Operation, Run, operations};
use super::promise::{Progress, Promise};
use super::surroundings::Surroundings;
use super::view::Opener;
use super::{Store, sample};

/// How many platters of a cut are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// All of them, if there are at most so many.
    pub exhaustive_max: u64,
    /// This many samples otherwise.
    pub samples: u64,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cut points.
    pub cuts: u64,
    /// Cut points of which every platter was looked at.
    pub exhaustive: u64,
    /// Platters.
    pub states: u64,
    /// What of them there was to mend.
    pub mended: Mended,
    /// Broken promises, each with all that reproduces it.
    pub losses: Vec<String>,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: Tally) -> Tally {
        self.cuts += other.cuts;
        self.exhaustive += other.exhaustive;
        self.states += other.states;
        self.mended = self.mended.plus(other.mended);
        self.losses.extend(other.losses);
        self
    }
}

/// One platter of a cut.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// By its number.
    Number(u64),
    /// By a seed.
    Seed(u64),
}

impl Choice {
    /// The platter.
    #[must_use]
    pub fn of(self, cut: &Cut) -> MemDisk {
        match self {
            Choice::Number(number) => cut.nth(number),
            Choice::Seed(seed) => cut.sampled(seed),
        }
    }
}

/// An operation that ran undisturbed on a recording disk.
pub struct Recorded {
    /// The operation.
    pub operation: Operation,
    /// What arrived at the disk.
    pub recording: Recording,
    /// What must be true of every cut.
    pub promise: Promise,
    /// Remembers what opens.
    pub opener: Opener,
    seed: u64,
}

/// A recording disk that holds what `disk` holds.
#[must_use]
pub fn store_of(disk: &MemDisk) -> Store {
    let store = Arc::new(FaultDisk::new(PowerCutDisk::from_disk(disk)));
    store.inner().record();
    store
}

/// Runs `operation` on `store`.
///
/// # Errors
/// Those of the operation.
pub fn run(operation: &Operation, store: &Store, seed: u64) -> Result<(), luks::Error> {
    let surroundings = Surroundings::new(seed);
    match operation.run {
        Run::Edit(edit) => edit(&mut sample::open(store), &surroundings),
        Run::Edit1(edit) => edit(&mut sample::open1(store), &surroundings),
        Run::Disk(change) => change(store, &surroundings),
    }
}

/// Calls `work` with the number and the value of every operation, on all processors; the results in the same order.
///
/// # Panics
/// If `work` does.
pub fn on_each<T: Send>(work: impl Fn(usize, Operation) -> T + Sync) -> Vec<T> {
    let (all, next) = (operations(), AtomicUsize::new(0));
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(operation) = all.get(number) else { return done };
            done.push((number, work(number, *operation)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Another sequence than that of the sample, or the new salts would be the old ones.
fn run_seed(seed: u64) -> u64 {
    !seed
}

impl Recorded {
    /// Runs `operation` on its sample disk.
    ///
    /// # Panics
    /// If the undisturbed run fails or breaks a promise.
    #[must_use]
    pub fn of(operation: Operation, seed: u64) -> Recorded {
        let store = store_of(&(operation.start)(&Surroundings::new(seed)));
        if let Err(error) = run(&operation, &store, run_seed(seed)) {
            panic!("{}: {error}", operation.name);
        }
        let Some(recording) = store.inner().recorded() else { panic!("{}: no recording", operation.name) };
        let mut opener = Opener::default();
        match Promise::of(operation, &recording, &mut opener) {
            Ok(promise) => Recorded { operation, recording, promise, opener, seed },
            Err(why) => panic!("{} undisturbed: {why}", operation.name),
        }
    }

    /// Holds the platters of every cut against the promise; with the flush `swallowed` taken out, until the first loss. Then
    /// only the cuts from that flush to the next are different ones: the others are those of the undisturbed run.
    pub fn cut_everywhere(&mut self, effort: Effort, swallowed: Option<usize>) -> Tally {
        let mut tally = Tally::default();
        for after in 0..=self.recording.events() {
            if swallowed.is_some_and(|flush| self.recording.flushes_before(after) != flush + 1) {
                continue;
            }
            let cut = self.recording.cut(after, swallowed);
            let count = cut.count();
            let all = count <= effort.exhaustive_max;
            if after == self.recording.events() && count > 1 {
                let why = "success was said, and not all of it is durable";
                tally.losses.push(self.case(after, Choice::Number(0), swallowed, why));
                return tally;
            }
            tally.cuts += 1;
            tally.exhaustive += u64::from(all);
            let choices = if all { count } else { effort.samples };
            for number in 0..choices {
                let choice = if all { Choice::Number(number) } else { self.sample(after, number) };
                tally.states += 1;
                match self.hold(after, &choice.of(&cut)) {
                    Ok(mended) => tally.mended = tally.mended.plus(mended),
                    Err(why) => tally.losses.push(self.case(after, choice, swallowed, &why)),
                }
                if swallowed.is_some() && !tally.losses.is_empty() {
                    return tally;
                }
            }
        }
        tally
    }

    /// The seed of the operation's own randomness.
    #[must_use]
    pub fn run_seed(&self) -> u64 {
        run_seed(self.seed)
    }

    /// The first sample has lost all it can; the others depend on seed, cut and number.
    fn sample(&self, after: usize, number: u64) -> Choice {
        match number {
            0 => Choice::Number(0),
            _ => Choice::Seed(self.seed.wrapping_mul(31).wrapping_add(after as u64).wrapping_mul(100_003) + number),
        }
    }

    fn hold(&mut self, after: usize, platter: &MemDisk) -> Result<Mended, String> {
        let progress = if after == self.recording.events() { Progress::Done } else { Progress::Broken };
        self.promise.hold(platter, progress, &mut self.opener)
    }

    /// A loss, with what is needed to see it again.
    #[must_use]
    pub fn case(&self, after: usize, choice: Choice, swallowed: Option<usize>, why: &str) -> String {
        let without = swallowed.map(|flush| format!(", without flush {flush}")).unwrap_or_default();
        format!(
            "{}{without}, {}, {choice:?}: {why}; again with LUKS_CRASH_SEED={} LUKS_CRASH_ONLY='{}'",
            self.operation.name,
            self.recording.describe(after),
            self.seed,
            self.operation.name
        )
    }
}
