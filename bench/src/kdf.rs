//! `luksbench kdf`: what each key derivation costs on this machine, and what `luksctl format` would choose here and why.
//!
//! The choice is made by the code that `format` uses (`luks::calibrate`); the costs are those of `luks::kdf::derive`, which
//! unlocks. Argon2 is measured by the wall clock, PBKDF2 by the processor time of the process, as the choice does.

use std::time::Duration;

use anyhow::{Context as _, Result};
use luks::HashAlg;
use luks::calibrate::{ARGON2_MEMORY_DEFAULT_KIB, Effort, ITER_TIME_DEFAULT_MS, KdfChoice, KdfCost, calibrate};
use luks::env::Env;
use luks::kdf::{ARGON2_LANES_MAX, ARGON2_TIME_MIN, derive};
use luks::limits::Limits;
use luks::metadata::keyslot::{Argon2Variant, Kdf};
use secret::Secret;
use serde::Serialize;
use session::SystemEnv;

/// PBKDF2 iterations of one measurement: some tens of milliseconds.
const PBKDF2_ITERATIONS: u32 = 200_000;
/// Length of the derived key: AES-256-XTS, as `format` has it.
const KEY_BYTES: usize = 64;
/// Each is measured so often, and the least counts: others on the machine only ever add.
const REPEATS: usize = 3;

/// Options of `luksbench kdf`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Argon2 memory sizes to measure, in MiB
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64,256,1024", value_parser = clap::value_parser!(u32).range(1..=4096))]
    memory_mib: Vec<u32>,
    /// Time that unlocking shall take, in milliseconds, as for luksctl format
    #[arg(long, value_name = "MS", default_value_t = ITER_TIME_DEFAULT_MS, value_parser = clap::value_parser!(u32).range(1..=600_000))]
    iter_time: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// One derivation.
#[derive(Serialize)]
struct Row {
    kdf: String,
    /// Iterations or passes.
    cost: u32,
    memory_kib: u32,
    lanes: u32,
    /// Least of some; `None` where the machine has not the memory.
    milliseconds: Option<f64>,
    /// PBKDF2.
    iterations_per_s: Option<f64>,
    /// Argon2: memory times passes.
    gib_per_s: Option<f64>,
    /// Why it was not measured.
    absent: Option<String>,
}

/// What a new keyslot would get.
#[derive(Serialize)]
struct Choice {
    format: &'static str,
    parameters: String,
    memory_kib: u32,
    /// Of one derivation with them.
    milliseconds: f64,
    why: String,
}

#[derive(Serialize)]
struct Report {
    target_ms: u32,
    key_bytes: usize,
    rows: Vec<Row>,
    choices: Vec<Choice>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let system = SystemEnv;
    let env = system.env();
    let lanes = ARGON2_LANES_MAX.min(env.memory.online_cpus()).max(1);
    let mut rows = Vec::new();
    for hash in ["sha256", "sha512"] {
        rows.push(pbkdf2(&env, hash)?);
    }
    for variant in [Argon2Variant::I, Argon2Variant::Id] {
        for memory_mib in &args.memory_mib {
            rows.push(argon2(&env, variant, memory_mib << 10, lanes)?);
        }
    }
    let choices = vec![luks2(&env, args.iter_time)?, luks1(&env, args.iter_time)?];
    let report = Report { target_ms: args.iter_time, key_bytes: KEY_BYTES, rows, choices };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// A salt with no meaning: no time depends on it.
fn salt() -> String {
    format!("{}=", "A".repeat(43))
}

/// Time of one derivation, the least of some: processor time and by the wall clock.
fn timed(env: &Env<'_>, kdf: &Kdf, repeats: usize) -> Result<(Duration, Duration), luks::Error> {
    let passphrase = Secret::copy_of(b"benchmark")?;
    let mut least = (Duration::MAX, Duration::MAX);
    for _ in 0..repeats {
        let begin = (env.clock.process_cpu(), env.clock.monotonic());
        derive(env, &Limits::default(), kdf, &passphrase, KEY_BYTES)?;
        least.0 = least.0.min(env.clock.process_cpu().saturating_sub(begin.0));
        least.1 = least.1.min(env.clock.monotonic().saturating_sub(begin.1));
    }
    Ok(least)
}

fn pbkdf2(env: &Env<'_>, hash: &str) -> Result<Row> {
    let kdf = Kdf::Pbkdf2 { hash: hash.to_owned(), iterations: PBKDF2_ITERATIONS, salt: salt() };
    let (taken, _) = timed(env, &kdf, REPEATS)?;
    Ok(Row {
        kdf: format!("pbkdf2-{hash}"),
        cost: PBKDF2_ITERATIONS,
        memory_kib: 0,
        lanes: 1,
        milliseconds: Some(taken.as_secs_f64() * 1e3),
        iterations_per_s: Some(f64::from(PBKDF2_ITERATIONS) / taken.as_secs_f64().max(1e-9)),
        gib_per_s: None,
        absent: None,
    })
}

fn argon2(env: &Env<'_>, variant: Argon2Variant, memory_kib: u32, lanes: u32) -> Result<Row> {
    let time = ARGON2_TIME_MIN;
    let kdf = Kdf::Argon2 { variant, time, memory_kib, cpus: lanes, salt: salt() };
    let repeats = if memory_kib > 256 << 10 { 1 } else { REPEATS };
    let (taken, absent) = match timed(env, &kdf, repeats) {
        Ok((_, taken)) => (Some(taken), None),
        Err(error @ (luks::Error::Memory { .. } | luks::Error::Secret(_))) => (None, Some(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let work_gib = f64::from(memory_kib) * f64::from(time) / f64::from(1 << 20);
    Ok(Row {
        kdf: if variant == Argon2Variant::I { "argon2i" } else { "argon2id" }.to_owned(),
        cost: time,
        memory_kib,
        lanes,
        milliseconds: taken.map(|taken| taken.as_secs_f64() * 1e3),
        iterations_per_s: None,
        gib_per_s: taken.map(|taken| work_gib / taken.as_secs_f64().max(1e-9)),
        absent,
    })
}

/// What a LUKS2 keyslot gets unless told otherwise.
fn luks2(env: &Env<'_>, target_ms: u32) -> Result<Choice> {
    let cost = KdfCost { effort: Effort::IterTime { target_ms }, key_size_bytes: KEY_BYTES, ..KdfCost::default() };
    let params = calibrate(env, KdfChoice::Argon2id, &cost)?;
    let kdf = params.kdf(env)?;
    let (_, taken) = timed(env, &kdf, 1)?;
    let Kdf::Argon2 { time, memory_kib, .. } = kdf else { anyhow::bail!("the choice is not Argon2: {params}") };
    let machine = Machine { half_kib: env.memory.total().0 / 2048, available_kib: env.memory.available().0 / 1024 };
    Ok(Choice {
        format: "luks2",
        parameters: params.to_string(),
        memory_kib,
        milliseconds: taken.as_secs_f64() * 1e3,
        why: why_argon2(time, memory_kib, target_ms, &machine),
    })
}

/// What bounds the memory.
struct Machine {
    half_kib: u64,
    available_kib: u64,
}

fn why_argon2(time: u32, memory_kib: u32, target_ms: u32, machine: &Machine) -> String {
    let memory = u64::from(memory_kib);
    let room_kib = machine.available_kib - machine.available_kib / 8;
    if time == ARGON2_TIME_MIN && memory_kib <= 64 << 10 {
        return format!("the least there is: {ARGON2_TIME_MIN} passes over 64 MiB already take {target_ms} ms or more");
    }
    if memory_kib == ARGON2_MEMORY_DEFAULT_KIB {
        return format!(
            "Argon2id makes guessing cost memory. 1 GiB is the most without --pbkdf-memory; what is left of {target_ms} ms went into passes"
        );
    }
    if time == ARGON2_TIME_MIN {
        return format!(
            "Argon2id makes guessing cost memory: as much as {ARGON2_TIME_MIN} passes go over in {target_ms} ms"
        );
    }
    let bound = if memory == machine.half_kib {
        "half of the physical memory is the most"
    } else if room_kib < machine.half_kib {
        "seven eighths of the memory that the process can take now are the most"
    } else {
        "half of the free memory is the most where there is no swap"
    };
    format!("Argon2id makes guessing cost memory; {bound}, what is left of {target_ms} ms went into passes")
}

/// What a LUKS1 keyslot gets, which knows PBKDF2 only.
fn luks1(env: &Env<'_>, target_ms: u32) -> Result<Choice> {
    let hash = HashAlg::parse("sha256")?;
    let cost = KdfCost { effort: Effort::IterTime { target_ms }, key_size_bytes: KEY_BYTES, ..KdfCost::default() };
    let params = calibrate(env, KdfChoice::Pbkdf2 { hash }, &cost).context("PBKDF2")?;
    let (taken, _) = timed(env, &params.kdf(env)?, 1)?;
    Ok(Choice {
        format: "luks1",
        parameters: params.to_string(),
        memory_kib: 0,
        milliseconds: taken.as_secs_f64() * 1e3,
        why: format!(
            "LUKS1 has PBKDF2 only; as many iterations as {target_ms} ms of processor time allow, never under 1000"
        ),
    })
}

fn print(report: &Report) {
    println!(
        "one derivation of {} bytes; PBKDF2 in processor time, Argon2 by the clock; least of a few",
        report.key_bytes
    );
    println!("{:<14} {:>8} {:>9} {:>6} {:>9}  speed", "", "cost", "memory", "lanes", "ms");
    for row in &report.rows {
        let memory = if row.memory_kib == 0 { "-".to_owned() } else { format!("{} MiB", row.memory_kib >> 10) };
        let speed = match (row.iterations_per_s, row.gib_per_s, &row.absent) {
            (Some(iterations), ..) => format!("{:.2} M iterations/s", iterations / 1e6),
            (_, Some(gib), _) => format!("{gib:.2} GiB/s"),
            (.., absent) => absent.clone().unwrap_or_default(),
        };
        let milliseconds = row.milliseconds.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        println!("{:<14} {:>8} {memory:>9} {:>6} {milliseconds:>9}  {speed}", row.kdf, row.cost, row.lanes);
    }
    println!();
    for choice in &report.choices {
        println!("luksctl format --type {} --iter-time {} would choose here:", choice.format, report.target_ms);
        println!("  {} ({:.0} ms when tried)", choice.parameters, choice.milliseconds);
        println!("  why: {}", choice.why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_follows_the_choice() {
        let roomy = Machine { half_kib: 8 << 20, available_kib: 15 << 20 };
        let of = |time, memory_kib, machine: &Machine| why_argon2(time, memory_kib, 2000, machine);
        assert!(of(9, 1 << 20, &roomy).contains("1 GiB is the most"));
        assert!(of(4, 700 << 10, &roomy).contains("as much as 4 passes"));
        assert!(of(4, 64 << 10, &roomy).contains("the least there is"));
        let small = Machine { half_kib: 512 << 10, available_kib: 900 << 10 };
        assert!(of(12, 512 << 10, &small).contains("half of the physical memory"));
        let cgroup = Machine { half_kib: 8 << 20, available_kib: 400 << 10 };
        assert!(of(12, 350 << 10, &cgroup).contains("seven eighths"));
        assert!(of(12, 200 << 10, &small).contains("half of the free memory"));
    }

    #[test]
    fn a_salt_has_the_length_of_luks() {
        let kdf = Kdf::Pbkdf2 { hash: "sha256".into(), iterations: 1000, salt: salt() };
        let system = SystemEnv;
        assert!(timed(&system.env(), &kdf, 1).unwrap().0 > Duration::ZERO);
    }
}
