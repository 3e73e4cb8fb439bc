//! EIO and ENOSPC at every operation of the disk: the same promise as after a cut, on the disk as it is read then and on
//! what a power cut leaves of it. The handle refuses further changes until it is reloaded, then takes them; and what ended
//! in the old state works when it is tried again.

use block::fault::{Counts, Fault, Op};
use block::{BlockErrorKind, MemDisk};
use luks::Error;

use super::campaign::{Choice, Recorded, Tally, run, store_of};
use super::operation::{Handle, Handle1, Operation, Run};
use super::promise::Progress;
use super::surroundings::Surroundings;
use super::{Store, sample};

/// One way to fail: which operations of the disk, the answer, whether all later ones fail too, whether a part is written.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    op: Op,
    kind: BlockErrorKind,
    sticky: bool,
    torn: bool,
}

/// Every way that is tried.
pub const WAYS: [Way; 5] = [
    Way { op: Op::Change, kind: BlockErrorKind::Io, sticky: false, torn: false },
    Way { op: Op::Change, kind: BlockErrorKind::Io, sticky: true, torn: true },
    Way { op: Op::Change, kind: BlockErrorKind::NoSpace, sticky: true, torn: false },
    Way { op: Op::Change, kind: BlockErrorKind::NoSpace, sticky: false, torn: true },
    Way { op: Op::Read, kind: BlockErrorKind::Io, sticky: false, torn: false },
];
/// Platters of a power cut after the error.
const CUTS_AFTER: u64 = 6;

impl Recorded {
    /// Lets every operation of the disk fail, one at a time, in this way.
    pub fn fail_everywhere(&mut self, way: Way) -> Tally {
        let mut tally = Tally::default();
        for nth in 1.. {
            match self.fail_at(way, nth) {
                Ok(None) => break,
                Ok(Some(states)) => {
                    tally.cuts += 1;
                    tally.states += states;
                }
                Err(why) => tally.losses.push(format!("{}, {way:?} at {nth}: {why}", self.operation.name)),
            }
        }
        tally
    }

    /// Runs the operation with operation `nth` of the disk failing; how many platters were looked at, or `None` if it does
    /// not do so many.
    fn fail_at(&mut self, way: Way, nth: u64) -> Result<Option<u64>, String> {
        let store = store_of(&self.recording.live(0));
        let surroundings = Surroundings::new(self.run_seed());
        let mut called = Called::open(self.operation.run, &store);
        let before = arrived(store.counts(), way.op);
        let written_bytes = if way.torn { 512 * usize::try_from(nth).unwrap_or(1) } else { 0 };
        store.fail(Fault { op: way.op, nth, sticky: way.sticky, kind: way.kind, written_bytes });
        let result = match &mut called {
            Called::Container(edit, handle) => edit(handle, &surroundings),
            Called::Container1(edit, handle) => edit(handle, &surroundings),
            Called::Disk(change) => change(&store, &surroundings),
        };
        if arrived(store.counts(), way.op) < before + nth {
            return Ok(None);
        }
        if way.op == Op::Change && result.is_ok() {
            return Err("the error was swallowed".to_owned());
        }
        store.heal();
        let states = self.hold_after_error(&store)?;
        let left = store.inner().live();
        if let Err(Error::Block(_)) = &result {
            called.refuses_until_reloaded(way)?;
        }
        if result.is_err() {
            self.works_again(&left)?;
        }
        Ok(Some(states))
    }

    fn hold_after_error(&mut self, store: &Store) -> Result<u64, String> {
        let Some(recording) = store.inner().recorded() else { return Err("no recording".to_owned()) };
        self.promise.add_steps(&recording)?;
        self.promise.hold(&recording.live(recording.events()), Progress::Broken, &mut self.opener)?;
        let cut = recording.cut(recording.events(), None);
        let count = cut.count().min(CUTS_AFTER);
        for number in 0..count {
            let choice = if count < CUTS_AFTER { Choice::Number(number) } else { Choice::Seed(number) };
            let held = self.promise.hold(&choice.of(&cut), Progress::Broken, &mut self.opener);
            held.map_err(|why| format!("and power cut, {choice:?}: {why}"))?;
        }
        Ok(1 + count)
    }

    /// What ended in the old state can be tried again.
    fn works_again(&mut self, left: &MemDisk) -> Result<(), String> {
        if !self.promise.is_old(left, &mut self.opener) {
            return Ok(());
        }
        let store = store_of(left);
        run(&self.operation, &store, self.run_seed()).map_err(|error| format!("tried again: {error}"))?;
        self.promise
            .hold(&store.inner().live(), Progress::Done, &mut self.opener)
            .map(drop)
            .map_err(|why| format!("tried again: {why}"))
    }
}

fn arrived(counts: Counts, op: Op) -> u64 {
    match op {
        Op::Read => counts.reads,
        _ => counts.writes + counts.zeroes + counts.discards + counts.flushes,
    }
}

/// What an operation is called on, opened before the fault.
enum Called {
    Container(fn(&mut Handle, &Surroundings) -> Result<(), Error>, Box<Handle>),
    Container1(fn(&mut Handle1, &Surroundings) -> Result<(), Error>, Box<Handle1>),
    Disk(fn(&Store, &Surroundings) -> Result<(), Error>),
}

impl Called {
    fn open(run: Run, store: &Store) -> Called {
        match run {
            Run::Edit(edit) => Called::Container(edit, Box::new(sample::open(store))),
            Run::Edit1(edit) => Called::Container1(edit, Box::new(sample::open1(store))),
            Run::Disk(change) => Called::Disk(change),
        }
    }

    /// A write failed: the handle takes no change until it has read the header again.
    fn refuses_until_reloaded(&mut self, way: Way) -> Result<(), String> {
        let on_handle = !matches!(self, Called::Disk(_));
        if on_handle && way.op == Op::Change && !matches!(self.touch(), Err(Error::Poisoned)) {
            return Err("the handle is not poisoned".to_owned());
        }
        match self {
            Called::Container(_, handle) => handle.reload(),
            Called::Container1(_, handle) => handle.reload(),
            Called::Disk(_) => return Ok(()),
        }
        .map_err(|error| format!("reload: {error}"))?;
        self.touch().map_err(|error| format!("after reload: {error}"))
    }

    /// A change that any handle takes.
    fn touch(&mut self) -> Result<(), Error> {
        const UUID: &str = "bbbbbbbb-bbbb-4ccc-8ddd-eeeeeeeeeeee";
        match self {
            Called::Container(_, handle) => handle.set_uuid(UUID),
            Called::Container1(_, handle) => handle.set_uuid(UUID),
            Called::Disk(_) => Ok(()),
        }
    }
}

/// A handle whose header another one has changed since: the operation is refused and writes nothing. Nothing to check for
/// operations on a whole disk, which read it themselves.
///
/// # Errors
/// If it was not refused, or something was written.
pub fn refuses_a_stale_handle(operation: &Operation, seed: u64) -> Result<(), String> {
    let surroundings = Surroundings::new(seed);
    let store = store_of(&(operation.start)(&surroundings));
    let mut called = Called::open(operation.run, &store);
    Called::open(operation.run, &store).touch().map_err(|error| error.to_string())?;
    let before = arrived(store.counts(), Op::Change);
    let result = match &mut called {
        Called::Container(edit, handle) => edit(handle, &surroundings),
        Called::Container1(edit, handle) => edit(handle, &surroundings),
        Called::Disk(_) => return Ok(()),
    };
    let unwritten = arrived(store.counts(), Op::Change) == before;
    match result {
        Err(Error::ConcurrentUpdate { .. } | Error::ChangedSinceRead) if unwritten => Ok(()),
        other => Err(format!("{}, a stale handle: {other:?}, nothing written: {unwritten}", operation.name)),
    }
}
