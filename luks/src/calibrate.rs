//! What a new keyslot's key derivation shall cost: measured on this machine to a target time, or forced by the caller.
//!
//! The rules are those of luks2-format §3.6, so that slots made here are as strong as cryptsetup's:
//!
//! * PBKDF2 by process CPU time: start at 2^15 iterations and multiply until one run takes over 500 ms; then the
//!   iterations of one second × target; never under 1000.
//! * Argon2 by wall-clock time: start at t = 4 and m = 64 MiB and grow until a run takes 250 ms; then extrapolate to the
//!   target, memory first up to its cap, then passes; when too slow, passes first down to 4. 95 % to 110 % of the target is
//!   close enough.
//! * Caps: lanes at most 4 and at most the CPUs online; memory at most half of the physical memory, and without swap on a
//!   machine under 4 GiB at most half of the free memory. What the process can take now, cgroups included, is a cap too:
//!   an eighth of it is left alone.
//!
//! Forced costs skip measuring and caps, but not the floors, and not the memory that is there.

use std::time::Duration;

use block::Bytes;
use secret::Secret;

use crate::env::Env;
use crate::error::Error;
use crate::hash::HashAlg;
use crate::kdf::argon2::Cost;
use crate::kdf::{
    self, ARGON2_LANES_MAX, ARGON2_MEMORY_MAX_KIB, ARGON2_MEMORY_MIN_KIB, ARGON2_TIME_MIN, KdfParams,
    PBKDF2_ITERATIONS_MIN, SALT_BYTES, check_memory,
};
use crate::limits::PBKDF2_ITERATIONS_MAX;
use crate::metadata::keyslot::Argon2Variant;

/// Time that unlocking a new keyslot shall take unless the caller says otherwise.
pub const ITER_TIME_DEFAULT_MS: u32 = 2000;
/// Memory of Argon2 unless the caller says otherwise: 1 GiB.
pub const ARGON2_MEMORY_DEFAULT_KIB: u32 = 1 << 20;
/// Time that checking a digest shall take.
pub(crate) const PBKDF2_DIGEST_TARGET_MS: u32 = 125;

/// A PBKDF2 measurement is long enough at this.
const PBKDF2_ENOUGH: Duration = Duration::from_millis(500);
/// First PBKDF2 measurement.
const PBKDF2_START_ITERATIONS: u32 = 1 << 15;
/// A clock that stands still must not keep us measuring for ever.
const PBKDF2_GIVE_UP_ITERATIONS: u32 = 1 << 28;
/// An Argon2 measurement is good enough to extrapolate from at this.
const ARGON2_ENOUGH: Duration = Duration::from_millis(250);
/// Memory that a measured Argon2 never goes below, unless the cap is lower: 64 MiB.
const ARGON2_FLOOR_KIB: u32 = 64 << 10;
/// No machine does this work (memory × passes) in less than [`ARGON2_ENOUGH`]: its clock stands still.
const ARGON2_GIVE_UP_KIB: u64 = 1 << 28;
/// Runs of about the target's length after which the next extrapolation is taken unmeasured: on a busy machine no two
/// runs agree, and the user waits.
const ARGON2_LONG_RUNS_MAX: u32 = 3;
/// Most runs of one Argon2 calibration.
const ARGON2_RUNS_MAX: u32 = 24;
/// Under this half of the physical memory, free memory counts too where there is no swap.
const SMALL_HALF: Bytes = Bytes(2 << 30);

/// The key derivation function of a new keyslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KdfChoice {
    /// PBKDF2 with HMAC.
    Pbkdf2 {
        /// The hash.
        hash: HashAlg,
    },
    /// Argon2i.
    Argon2i,
    /// Argon2id, the default of LUKS2.
    Argon2id,
}

/// How the cost is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Measured so that unlocking takes this long on this machine.
    IterTime {
        /// The target.
        target_ms: u32,
    },
    /// Exactly this many iterations (PBKDF2) or passes (Argon2).
    Forced {
        /// The number.
        iterations: u32,
    },
}

/// The cost of a new keyslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfCost {
    /// How the cost is found.
    pub effort: Effort,
    /// Argon2 memory in KiB: the most when measured, exact when forced; 1 GiB if not given. Not for PBKDF2.
    pub memory_kib: Option<u32>,
    /// Argon2 lanes: the most when measured, exact when forced; 4 if not given. Not for PBKDF2.
    pub parallel: Option<u32>,
    /// Length of the key that will be derived; PBKDF2 takes longer for a longer one.
    pub key_size_bytes: usize,
}

impl Default for KdfCost {
    fn default() -> KdfCost {
        let effort = Effort::IterTime { target_ms: ITER_TIME_DEFAULT_MS };
        KdfCost { effort, memory_kib: None, parallel: None, key_size_bytes: 64 }
    }
}

/// Finds the parameters of a new keyslot.
///
/// # Errors
/// [`Error::KdfLimit`] for a cost below the floors or above the ceilings, [`Error::KdfParameter`] for an Argon2 cost with
/// PBKDF2, [`Error::Memory`] when the memory is not there, [`Error::Calibration`] when the clock stands still.
pub fn calibrate(env: &Env<'_>, choice: KdfChoice, cost: &KdfCost) -> Result<KdfParams, Error> {
    let variant = match choice {
        KdfChoice::Pbkdf2 { hash } => return calibrate_pbkdf2(env, hash, cost),
        KdfChoice::Argon2i => Argon2Variant::I,
        KdfChoice::Argon2id => Argon2Variant::Id,
    };
    let memory_kib = cost.memory_kib.unwrap_or(ARGON2_MEMORY_DEFAULT_KIB);
    let lanes = cost.parallel.unwrap_or(ARGON2_LANES_MAX);
    let key_len_bytes = cost.key_size_bytes.clamp(16, 64);
    match cost.effort {
        Effort::Forced { iterations } => {
            let forced = Cost { variant, time: iterations, memory_kib, lanes };
            check_memory(env, forced.memory())?;
            KdfParams::argon2(forced)
        }
        Effort::IterTime { target_ms } => {
            // The floors and ceilings hold for what was asked, before the machine lowers it.
            KdfParams::argon2(Cost { variant, time: ARGON2_TIME_MIN, memory_kib, lanes })?;
            let lanes = lanes.min(ARGON2_LANES_MAX).min(env.memory.online_cpus()).max(1);
            let cap_kib = memory_cap_kib(env, memory_kib)?;
            let target = Duration::from_millis(u64::from(target_ms));
            let (time, memory_kib) = search_argon2(cap_kib, target, &mut |time, memory_kib| {
                let cost = Cost { variant, time, memory_kib, lanes };
                let begin = env.clock.monotonic();
                kdf::argon2::derive(env, &cost, &[0x55; SALT_BYTES], b"benchmark", key_len_bytes)?;
                Ok(env.clock.monotonic().saturating_sub(begin))
            })?;
            KdfParams::argon2(Cost { variant, time, memory_kib, lanes })
        }
    }
}

fn calibrate_pbkdf2(env: &Env<'_>, hash: HashAlg, cost: &KdfCost) -> Result<KdfParams, Error> {
    let given = [("memory", cost.memory_kib), ("lanes", cost.parallel)];
    if let Some((parameter, _)) = given.into_iter().find(|(_, value)| value.is_some()) {
        return Err(Error::KdfParameter { parameter });
    }
    let iterations = match cost.effort {
        Effort::Forced { iterations } => iterations,
        Effort::IterTime { target_ms } => pbkdf2_iterations(env, hash, cost.key_size_bytes.clamp(16, 64), target_ms)?,
    };
    KdfParams::pbkdf2(hash, iterations)
}

/// The PBKDF2 iterations that derive `out_len_bytes` bytes in `target_ms` of CPU time, at least the floor.
pub(crate) fn pbkdf2_iterations(
    env: &Env<'_>,
    hash: HashAlg,
    out_len_bytes: usize,
    target_ms: u32,
) -> Result<u32, Error> {
    // A measurement as long as the target is exact enough for a short target.
    let enough = PBKDF2_ENOUGH.min(Duration::from_millis(u64::from(target_ms)));
    let passphrase = Secret::copy_of(b"benchmark")?;
    let mut iterations = PBKDF2_START_ITERATIONS;
    let taken = loop {
        let begin = env.clock.process_cpu();
        kdf::pbkdf2::derive(hash, iterations, &[0x55; SALT_BYTES], &passphrase, out_len_bytes)?;
        let taken = env.clock.process_cpu().saturating_sub(begin);
        if taken > enough {
            break taken;
        }
        let factor = match taken.as_millis() {
            0..=62 => 16,
            63..=125 => 8,
            126..=250 => 4,
            _ => 2,
        };
        iterations *= factor;
        if iterations > PBKDF2_GIVE_UP_ITERATIONS {
            return Err(Error::Calibration { what: "PBKDF2" });
        }
    };
    let wanted = u128::from(iterations) * u128::from(target_ms) * 1000 / taken.as_micros().max(1);
    Ok(u32::try_from(wanted).unwrap_or(u32::MAX).clamp(PBKDF2_ITERATIONS_MIN, PBKDF2_ITERATIONS_MAX))
}

/// The most memory that a measured Argon2 may take on this machine.
fn memory_cap_kib(env: &Env<'_>, wanted_kib: u32) -> Result<u32, Error> {
    let half = Bytes(env.memory.total().0 / 2);
    let mut cap = half;
    if half < SMALL_HALF {
        let half_free = env.memory.free_without_swap().map(|free| Bytes(free.0 / 2));
        if let Some(half_free) = half_free.filter(|half_free| half_free.0 > u64::from(ARGON2_FLOOR_KIB) * 1024) {
            cap = cap.min(half_free);
        }
    }
    let available = env.memory.available();
    cap = cap.min(Bytes(available.0 - available.0 / 8));
    let cap_kib = u32::try_from(cap.0 / 1024).unwrap_or(ARGON2_MEMORY_MAX_KIB).min(wanted_kib);
    let floor_kib = ARGON2_FLOOR_KIB.min(wanted_kib).max(ARGON2_MEMORY_MIN_KIB);
    if cap_kib < floor_kib {
        return Err(Error::Memory { needed: Bytes(u64::from(floor_kib) * 1024), available });
    }
    Ok(cap_kib)
}

/// Runs Argon2 with these passes and this memory in KiB, and says how long it took.
type MeasureArgon2<'a> = &'a mut dyn FnMut(u32, u32) -> Result<Duration, Error>;

/// Passes and memory in KiB that take about `target`.
fn search_argon2(cap_kib: u32, target: Duration, measure: MeasureArgon2<'_>) -> Result<(u32, u32), Error> {
    let search = Argon2Search { cap_kib, floor_kib: ARGON2_FLOOR_KIB.min(cap_kib), target_us: micros(target) };
    let mut at = (ARGON2_TIME_MIN, search.floor_kib);
    let (mut seen, mut long_runs) = (vec![at], 0);
    for _ in 0..ARGON2_RUNS_MAX {
        let taken_us = micros(measure(at.0, at.1)?);
        let enough_us = micros(ARGON2_ENOUGH).min(search.target_us);
        let next = if taken_us < enough_us {
            if u64::from(at.0) * u64::from(at.1) > ARGON2_GIVE_UP_KIB {
                return Err(Error::Calibration { what: "Argon2" });
            }
            // Too short to extrapolate far: at most 16 times as much work, at least twice.
            let factor = (micros(ARGON2_ENOUGH) / taken_us.max(1) + 1).clamp(2, 16);
            search.scaled(at, factor, 1)
        } else if search.is_close(taken_us) {
            return Ok(at);
        } else {
            search.scaled(at, search.target_us, taken_us)
        };
        // At a floor or a cap, or going back and forth between two neighbours: as close as it gets.
        if seen.contains(&next) {
            return if next == at || taken_us <= search.target_us { Ok(at) } else { Ok(next) };
        }
        long_runs += u32::from(taken_us >= enough_us.max(search.target_us / 2));
        if long_runs == ARGON2_LONG_RUNS_MAX {
            return Ok(next);
        }
        seen.push(next);
        at = next;
    }
    Err(Error::Calibration { what: "Argon2" })
}

struct Argon2Search {
    cap_kib: u32,
    floor_kib: u32,
    target_us: u64,
}

impl Argon2Search {
    /// 95 % to 110 % of the target.
    fn is_close(&self, taken_us: u64) -> bool {
        let percent = u128::from(taken_us) * 100;
        let target = u128::from(self.target_us);
        (target * 95..=target * 110).contains(&percent)
    }

    /// Passes and memory for `up / down` times the work: more work takes memory first, less work gives up passes first.
    fn scaled(&self, (time, memory_kib): (u32, u32), up: u64, down: u64) -> (u32, u32) {
        let (up, down) = (u128::from(up), u128::from(down.max(1)));
        let work = (u128::from(time) * u128::from(memory_kib) * up / down).max(1);
        let narrow = |value: u128| u32::try_from(value).unwrap_or(u32::MAX);
        let memory_for = |time: u32| narrow(work / u128::from(time)).clamp(self.floor_kib, self.cap_kib);
        if up >= down {
            let memory_kib = memory_for(time).max(memory_kib.min(self.cap_kib));
            (self.time_for(work, memory_kib).max(time), memory_kib)
        } else {
            let time = self.time_for(work, memory_kib).min(time);
            (time, memory_for(time).min(memory_kib))
        }
    }

    /// Passes over `memory_kib` that come nearest to `work` without going over 110 % of it; at least the floor.
    fn time_for(&self, work: u128, memory_kib: u32) -> u32 {
        let memory = u128::from(memory_kib.max(1));
        let below = work / memory;
        let above_fits = (below + 1) * memory * 100 <= work * 110;
        let nearer = (below + 1) * memory - work < work - below * memory;
        let time = if above_fits && nearer { below + 1 } else { below };
        u32::try_from(time).unwrap_or(u32::MAX).max(ARGON2_TIME_MIN)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::fixed::FixedEnv;
    use crate::kdf::Params;

    fn cost(effort: Effort) -> KdfCost {
        KdfCost { effort, ..KdfCost::default() }
    }

    fn argon2_of(params: &KdfParams) -> Cost {
        match &params.0 {
            Params::Argon2(cost) => cost.clone(),
            Params::Pbkdf2 { .. } => panic!("not Argon2: {params}"),
        }
    }

    #[test]
    fn forced_costs_are_taken_as_they_are_and_no_clock_is_read() {
        let fixed = FixedEnv::new(1, 1);
        let forced = KdfCost { memory_kib: Some(32), parallel: Some(4), ..cost(Effort::Forced { iterations: 4 }) };
        let found = argon2_of(&calibrate(&fixed.env(), KdfChoice::Argon2i, &forced).unwrap());
        assert_eq!(found, Cost { variant: Argon2Variant::I, time: 4, memory_kib: 32, lanes: 4 });
        let hash = HashAlg::Sha512;
        let found = calibrate(&fixed.env(), KdfChoice::Pbkdf2 { hash }, &cost(Effort::Forced { iterations: 1000 }));
        assert_eq!(found.unwrap().0, Params::Pbkdf2 { hash, iterations: 1000 });
        assert_eq!(fixed.clock_reads.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[test]
    fn costs_outside_the_floors_and_ceilings_are_errors() {
        let fixed = FixedEnv::new(1, 1);
        let argon2 = |iterations, memory_kib, parallel| KdfCost {
            memory_kib: Some(memory_kib),
            parallel: Some(parallel),
            ..cost(Effort::Forced { iterations })
        };
        let refused = |choice, cost: KdfCost| match calibrate(&fixed.env(), choice, &cost) {
            Err(Error::KdfLimit { parameter, .. } | Error::KdfParameter { parameter }) => parameter,
            other => panic!("{cost:?}: {other:?}"),
        };
        assert_eq!(refused(KdfChoice::Argon2id, argon2(3, 64, 1)), "time");
        assert_eq!(refused(KdfChoice::Argon2id, argon2(4, 31, 1)), "memory in KiB");
        assert_eq!(refused(KdfChoice::Argon2id, argon2(4, (4 << 20) + 1, 1)), "memory in KiB");
        assert_eq!(refused(KdfChoice::Argon2id, argon2(4, 64, 0)), "cpus");
        assert_eq!(refused(KdfChoice::Argon2id, argon2(4, 64, 5)), "cpus");
        let measured = KdfCost { memory_kib: Some(31), ..KdfCost::default() };
        assert_eq!(refused(KdfChoice::Argon2id, measured), "memory in KiB");
        let pbkdf2 = KdfChoice::Pbkdf2 { hash: HashAlg::Sha256 };
        assert_eq!(refused(pbkdf2, cost(Effort::Forced { iterations: 999 })), "iterations");
        assert_eq!(refused(pbkdf2, cost(Effort::Forced { iterations: (1 << 30) + 1 })), "iterations");
        assert_eq!(refused(pbkdf2, argon2(1000, 64, 1)), "memory");
        assert_eq!(refused(pbkdf2, KdfCost { parallel: Some(1), ..KdfCost::default() }), "lanes");
    }

    #[test]
    fn forced_memory_that_is_not_there_is_refused() {
        let mut fixed = FixedEnv::new(1, 1);
        fixed.available = Bytes::from_mib(100);
        let forced = KdfCost { memory_kib: Some(101 << 10), ..cost(Effort::Forced { iterations: 4 }) };
        assert!(matches!(calibrate(&fixed.env(), KdfChoice::Argon2id, &forced), Err(Error::Memory { .. })));
    }

    /// Each measurement of the fixed clock takes 600 ms, so that the first one of 2^15 iterations is the last.
    #[test]
    fn pbkdf2_scales_linearly_to_the_target_and_keeps_the_floor() {
        let fixed = FixedEnv::new(1, 600_000);
        let hash = HashAlg::Sha256;
        let iterations = |target_ms| pbkdf2_iterations(&fixed.env(), hash, 32, target_ms).unwrap();
        assert_eq!(iterations(2000), 32768 * 2000 / 600);
        assert_eq!(iterations(125), 32768 * 125 / 600);
        assert_eq!(iterations(1), 1000);
        assert_eq!(iterations(0), 1000);
    }

    /// A run is as long as its work says, on a machine that does `kib_per_ms` KiB per millisecond.
    fn search(cap_kib: u32, target_ms: u64, kib_per_ms: u64) -> (u32, u32, u64, usize) {
        let taken_us = |time: u32, memory_kib: u32| u64::from(time) * u64::from(memory_kib) * 1000 / kib_per_ms;
        let mut runs = 0;
        let (time, memory_kib) = search_argon2(cap_kib, Duration::from_millis(target_ms), &mut |time, memory_kib| {
            runs += 1;
            assert!(memory_kib <= cap_kib, "no measurement takes more than the cap");
            Ok(Duration::from_micros(taken_us(time, memory_kib)))
        })
        .unwrap();
        (time, memory_kib, taken_us(time, memory_kib) / 1000, runs)
    }

    #[test]
    fn argon2_takes_memory_first_up_to_its_cap_then_passes() {
        // 1 GiB × 4 passes take 1 s here: the cap is reached, the rest goes into passes.
        let (time, memory_kib, taken_ms, runs) = search(1 << 20, 2000, 4 << 20 >> 10);
        assert_eq!((time, memory_kib), (8, 1 << 20));
        assert!((1900..=2200).contains(&taken_ms), "{taken_ms}");
        assert!(runs <= 6, "{runs} runs");
        // A tenth of that speed: 1 GiB would take 10 s, so memory alone meets the target.
        let (time, memory_kib, taken_ms, _) = search(1 << 20, 2000, (4 << 20 >> 10) / 10);
        assert_eq!(time, 4);
        assert!(memory_kib < 1 << 20 && (1900..=2200).contains(&taken_ms), "{memory_kib} {taken_ms}");
    }

    #[test]
    fn argon2_never_goes_below_its_floors_and_always_ends() {
        for speed in [1, 10, 100, 1000, 10_000, 1_000_000] {
            for target_ms in [1, 50, 250, 2000, 20_000] {
                for cap_kib in [32, 1000, 64 << 10, 1 << 20, 4 << 20] {
                    let (time, memory_kib, taken_ms, runs) = search(cap_kib, target_ms, speed);
                    let case = format!("{speed} {target_ms} {cap_kib}: t={time} m={memory_kib} {taken_ms} ms");
                    assert!(time >= 4 && memory_kib >= cap_kib.min(64 << 10) && memory_kib <= cap_kib, "{case}");
                    assert!(runs <= 12, "{case}: {runs} runs");
                    let at_floor = time == 4 && memory_kib == cap_kib.min(64 << 10);
                    assert!(at_floor || taken_ms * 100 <= target_ms * 111 + 100, "{case}: too slow");
                }
            }
        }
    }

    #[test]
    fn a_clock_that_stands_still_is_an_error_for_argon2() {
        let stuck = search_argon2(1 << 20, Duration::from_secs(2), &mut |_, _| Ok(Duration::ZERO));
        assert!(matches!(stuck, Err(Error::Calibration { .. })));
    }

    #[test]
    fn memory_is_capped_by_the_machine() {
        let mut fixed = FixedEnv::new(1, 1);
        let cap = |fixed: &FixedEnv, wanted| memory_cap_kib(&fixed.env(), wanted).unwrap();
        assert_eq!(cap(&fixed, 1 << 20), 1 << 20, "16 GiB machine");
        fixed.total = Bytes::from_mib(1024);
        assert_eq!(cap(&fixed, 1 << 20), 512 << 10, "half of the physical memory");
        fixed.free_without_swap = Some(Bytes::from_mib(400));
        assert_eq!(cap(&fixed, 1 << 20), 200 << 10, "half of the free memory without swap");
        fixed.free_without_swap = Some(Bytes::from_mib(128));
        assert_eq!(cap(&fixed, 1 << 20), 512 << 10, "64 MiB or less of that does not count");
        fixed.available = Bytes::from_mib(160);
        assert_eq!(cap(&fixed, 1 << 20), 140 << 10, "a cgroup leaves less");
        fixed.available = Bytes::from_mib(64);
        assert!(matches!(memory_cap_kib(&fixed.env(), 1 << 20), Err(Error::Memory { .. })));
        assert_eq!(cap(&fixed, 32 << 10), 32 << 10, "less was asked for");
    }

    #[test]
    fn a_measured_argon2_runs_for_real() {
        let fixed = FixedEnv::new(1, 2_000_000);
        let small = KdfCost { memory_kib: Some(64), parallel: Some(9), ..KdfCost::default() };
        assert!(calibrate(&fixed.env(), KdfChoice::Argon2id, &small).is_err(), "9 lanes are over the ceiling");
        let small = KdfCost { memory_kib: Some(64), ..KdfCost::default() };
        let found = argon2_of(&calibrate(&fixed.env(), KdfChoice::Argon2id, &small).unwrap());
        assert_eq!((found.memory_kib, found.lanes, found.time), (64, 4, 4), "each run takes 2 s on that clock");
    }
}
