//! Interleaved rounds: in each, every contender runs once, right after the limit that it is measured by; ratios are
//! taken inside a round, and the median over the rounds is what counts.
//!
//! With several threads all run the same contender at the same time, each on its own memory, from a common start; the
//! slowest one's time counts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use dmcrypt::SectorSize;
use serde::Serialize;

use crate::contender::{Contender, Direction, Entry};
use crate::limit::Limit;

/// What warms a contender is taken from the start of its buffer, so that a large one is not gone through twice.
const WARM_BYTES: usize = 64 << 10;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Size of an encryption sector.
    pub sector_size: SectorSize,
    /// Bytes given to one call.
    pub call_bytes: usize,
    /// How many such buffers the calls go through in turn: more than one makes a call independent of the last one's
    /// bytes.
    pub buffers: usize,
    /// Which way.
    pub direction: Direction,
    /// Threads that do the same at the same time.
    pub threads: usize,
}

/// How it is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rounds, each with every contender.
    pub rounds: usize,
    /// Least time for one piece: one contender, or its limit, in one round. One call may take longer.
    pub piece: Duration,
}

/// One contender's bytes per second in each round.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    /// Its own.
    pub own: Vec<f64>,
    /// The limit's, measured next to it; empty if the machine has no such limit.
    pub limit: Vec<f64>,
}

impl Rates {
    /// Fraction of the limit, inside each round.
    #[must_use]
    pub fn of_limit(&self) -> Option<Quartiles> {
        Quartiles::of_ratios(&self.own, &self.limit)
    }
}

/// The middle and the spread of one number over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quartiles {
    /// A quarter of the rounds is below.
    pub low: f64,
    /// The one to quote.
    pub median: f64,
    /// A quarter of the rounds is above.
    pub high: f64,
}

impl Quartiles {
    /// `None` of nothing.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Quartiles> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        Some(Quartiles { low: sorted[last / 4], median: sorted[last / 2], high: sorted[last - last / 4] })
    }

    /// Of the ratios inside each round.
    #[must_use]
    pub fn of_ratios(values: &[f64], to: &[f64]) -> Option<Quartiles> {
        Quartiles::of(&values.iter().zip(to).map(|(value, to)| value / to).collect::<Vec<_>>())
    }
}

/// How often each thing is done in a piece.
struct Piece {
    calls: u64,
    warm_bytes: usize,
    warm_calls: u64,
    limit: Option<(Limit, u64)>,
}

/// Times of one thread's pieces, as `[round][contender]`: its own and the limit's.
type Times = Vec<Vec<(Duration, Duration)>>;

/// Measures all of them; the rates are in the order of `entries`.
///
/// # Errors
/// What an implementation reports.
pub fn interleaved(case: Case, entries: &[Entry], plan: Plan) -> Result<Vec<Rates>> {
    let mut lanes = Vec::with_capacity(case.threads);
    for _ in 0..case.threads {
        let contenders = entries.iter().map(|entry| entry.build(case.sector_size)).collect::<Result<Vec<_>>>()?;
        lanes.push(Lane { contenders, memory: Memory::new(case.call_bytes * case.buffers), failure: None });
    }
    let mut pieces = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        pieces.push(lanes[0].plan_piece(case, index, entry.limit, plan.piece)?);
    }
    let gate = Gate { lanes: case.threads, arrived: AtomicUsize::new(0) };
    let times: Result<Vec<Times>> = thread::scope(|scope| {
        let running: Vec<_> =
            lanes.into_iter().map(|lane| scope.spawn(|| lane.run(case, &pieces, plan.rounds, &gate))).collect();
        running.into_iter().map(|lane| lane.join().map_err(|_| anyhow!("a measuring thread panicked"))?).collect()
    });
    let times = times?;
    Ok(pieces.iter().enumerate().map(|(index, piece)| rates(case, index, piece, &times, plan.rounds)).collect())
}

/// Bytes per second out of all threads' times of one contender.
fn rates(case: Case, index: usize, piece: &Piece, times: &[Times], rounds: usize) -> Rates {
    let mut rates = Rates::default();
    for round in 0..rounds {
        let slowest = |pick: fn(&(Duration, Duration)) -> Duration| {
            times.iter().map(|lane| pick(&lane[round][index])).max().unwrap_or_default().as_secs_f64()
        };
        let bytes = (case.threads * case.call_bytes) as f64 * piece.calls as f64;
        rates.own.push(bytes / slowest(|times| times.0));
        if let Some((limit, passes)) = piece.limit {
            rates.limit.push((case.threads as u64 * limit.pass_bytes() * passes) as f64 / slowest(|times| times.1));
        }
    }
    rates
}

/// One thread's contenders and memory.
struct Lane {
    contenders: Vec<Box<dyn Contender>>,
    memory: Memory,
    failure: Option<anyhow::Error>,
}

impl Lane {
    /// Finds out how often to repeat.
    fn plan_piece(&mut self, case: Case, index: usize, limit: Option<Limit>, time: Duration) -> Result<Piece> {
        let contender = &mut self.contenders[index];
        let sector_bytes = case.sector_size.bytes() as usize;
        let warm_bytes = case.call_bytes.min(WARM_BYTES.max(sector_bytes));
        let mut failure = None;
        let mut count = |area: &mut [u8], call_bytes: usize, time: Duration| {
            times_in(time, |calls| {
                if let Err(error) = contender.repeat(case.direction, area, call_bytes, calls) {
                    failure.get_or_insert(error);
                }
            })
        };
        let warm_calls = count(&mut self.memory.area()[..warm_bytes], warm_bytes, time / 3);
        let calls = count(self.memory.area(), case.call_bytes, time);
        if let Some(error) = failure {
            return Err(error);
        }
        let limit = limit.map(|limit| (limit, times_in(time, |passes| limit.run(passes))));
        Ok(Piece { calls, warm_bytes, warm_calls, limit })
    }

    /// All rounds. An error is kept for the end: the other threads wait at the gate.
    fn run(mut self, case: Case, pieces: &[Piece], rounds: usize, gate: &Gate) -> Result<Times> {
        let mut turn = 0;
        let mut times = vec![vec![(Duration::ZERO, Duration::ZERO); pieces.len()]; rounds];
        for (round, times) in times.iter_mut().enumerate() {
            for nth in 0..pieces.len() {
                // Who runs after whom changes from round to round.
                let index = (round + nth) % pieces.len();
                let piece = &pieces[index];
                if let Some((limit, passes)) = piece.limit {
                    limit.run(passes / 3);
                    gate.pass(&mut turn);
                    let start = Instant::now();
                    limit.run(passes);
                    times[index].1 = start.elapsed();
                }
                self.repeat(case.direction, index, piece.warm_bytes, Some(piece.warm_bytes), piece.warm_calls);
                gate.pass(&mut turn);
                let start = Instant::now();
                self.repeat(case.direction, index, case.call_bytes, None, piece.calls);
                times[index].0 = start.elapsed();
            }
        }
        self.failure.map_or(Ok(times), Err)
    }

    /// Calls one contender, on the whole area or its start.
    fn repeat(&mut self, direction: Direction, index: usize, call_bytes: usize, within: Option<usize>, calls: u64) {
        let area = self.memory.area();
        let area = match within {
            Some(len_bytes) => &mut area[..len_bytes],
            None => area,
        };
        if let Err(error) = self.contenders[index].repeat(direction, area, call_bytes, calls) {
            self.failure.get_or_insert(error);
        }
    }
}

/// What is encrypted, from the start of a page as the buffers of block devices are: off a 64-byte boundary each wide
/// load and store touches two cache lines, which costs the widest kernel one or two percent.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
    len_bytes: usize,
}

impl Memory {
    const ALIGN_BYTES: usize = 4096;

    fn new(len_bytes: usize) -> Memory {
        let bytes: Vec<u8> = (0..len_bytes + Self::ALIGN_BYTES).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect();
        let start = bytes.as_ptr().align_offset(Self::ALIGN_BYTES).min(Self::ALIGN_BYTES);
        Memory { bytes, start, len_bytes }
    }

    fn area(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len_bytes]
    }
}

/// Lets no thread pass before all have arrived; spins, as waking up takes longer than what is measured.
struct Gate {
    lanes: usize,
    arrived: AtomicUsize,
}

impl Gate {
    fn pass(&self, turn: &mut usize) {
        *turn += self.lanes;
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0_u32;
        while self.arrived.load(Ordering::Acquire) < *turn {
            std::hint::spin_loop();
            spins += 1;
            if spins.is_multiple_of(4096) {
                thread::yield_now();
            }
        }
    }
}

/// How many times fit into `time`; at least 1.
fn times_in(time: Duration, mut work: impl FnMut(u64)) -> u64 {
    let mut count = 1;
    loop {
        let start = Instant::now();
        work(count);
        let elapsed = start.elapsed();
        if elapsed >= time / 2 || count >= 1 << 40 {
            let times = time.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
            #[allow(clippy::cast_possible_truncation)] // saturates
            return ((count as f64 * times) as u64).max(1);
        }
        count *= 2;
    }
}

/// The median; the lower one of two. Zero when there is none.
#[must_use]
pub fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::xts_mode;

    #[test]
    fn median_is_the_middle() {
        let of = |values: &[u64]| median(values.iter().map(|&ms| Duration::from_millis(ms)).collect());
        assert_eq!(of(&[]), Duration::ZERO);
        assert_eq!(of(&[7]), Duration::from_millis(7));
        assert_eq!(of(&[9, 1, 100]), Duration::from_millis(9));
        assert_eq!(of(&[4, 3, 2, 1]), Duration::from_millis(2));
    }

    #[test]
    fn quartiles_are_of_the_ratios_inside_each_round() {
        assert_eq!(Quartiles::of(&[]), None);
        assert_eq!(Quartiles::of(&[5.0, 1.0, 4.0, 2.0, 3.0]), Some(Quartiles { low: 2.0, median: 3.0, high: 4.0 }));
        let ratios = Quartiles::of_ratios(&[2.0, 40.0, 6.0], &[1.0, 10.0, 2.0]);
        assert_eq!(ratios, Some(Quartiles { low: 2.0, median: 3.0, high: 4.0 }));
    }

    #[test]
    fn memory_starts_on_a_page() {
        for len_bytes in [512, 4096, 1 << 20] {
            let mut memory = Memory::new(len_bytes);
            assert_eq!((memory.area().len(), memory.area().as_ptr().addr() % 4096), (len_bytes, 0));
        }
    }

    #[test]
    fn the_slowest_thread_counts() {
        let case = Case {
            sector_size: SectorSize::S512,
            call_bytes: 1000,
            buffers: 1,
            direction: Direction::Encrypt,
            threads: 2,
        };
        let piece = Piece { calls: 3, warm_bytes: 1000, warm_calls: 1, limit: None };
        let times = |ms| vec![vec![(Duration::from_millis(ms), Duration::ZERO)]];
        let rates = rates(case, 0, &piece, &[times(2), times(4)], 1);
        assert_eq!((rates.own, rates.limit), (vec![6000.0 / 0.004], vec![]));
    }

    #[test]
    fn every_round_has_every_contender() {
        for threads in [1, 2] {
            let case = Case {
                sector_size: SectorSize::S4096,
                call_bytes: 4096,
                buffers: 2,
                direction: Direction::Decrypt,
                threads,
            };
            let plan = Plan { rounds: 3, piece: Duration::from_micros(50) };
            let rates = interleaved(case, &[xts_mode(), xts_mode()], plan).unwrap();
            assert_eq!(rates.len(), 2);
            for rates in rates {
                assert_eq!(rates.own.len(), 3);
                assert!(rates.own.iter().chain(&rates.limit).all(|rate| rate.is_finite() && *rate > 0.0));
                assert_eq!(rates.of_limit().is_some(), Limit::widest().is_some());
            }
        }
    }

    #[test]
    fn a_failure_comes_back_from_all_threads() {
        struct Failing(u32);
        impl Contender for Failing {
            fn crypt(&mut self, _: Direction, _: u64, _: &mut [u8]) -> Result<()> {
                self.0 += 1;
                if self.0 > 2 { Err(anyhow!("no more")) } else { Ok(()) }
            }
        }
        let case = Case {
            sector_size: SectorSize::S512,
            call_bytes: 512,
            buffers: 1,
            direction: Direction::Encrypt,
            threads: 2,
        };
        let entry = Entry::new("failing", None, |_| Ok(Box::new(Failing(0))));
        let plan = Plan { rounds: 2, piece: Duration::from_micros(50) };
        assert_eq!(interleaved(case, &[entry], plan).unwrap_err().to_string(), "no more");
    }
}
