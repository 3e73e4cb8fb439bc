//! `luksbench crypto`: AES-256-XTS in place on each kernel of dmcrypt, on one thread or more: against the machine's limit and
//! against `aes` + `xts-mode`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use dmcrypt::{Kernel, SectorSize};
use luksbench::contender::{self, Direction, Entry};
use luksbench::limit::{Limit, Width};
use luksbench::rounds::{Case, Plan, Quartiles, Rates, interleaved};
use serde::Serialize;

const ROUNDS: usize = 15;

/// Largest buffer that can be asked for.
const MAX_BUFFER_BYTES: usize = 1 << 30;

/// Shorter pieces would measure the clock.
const MIN_PIECE: Duration = Duration::from_micros(50);

/// Options of `luksbench crypto`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Buffer sizes, multiples of 4096 bytes; K and M are powers of 1024
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4K,64K,1M", value_parser = size)]
    sizes: Vec<usize>,
    /// Numbers of threads, each on its own memory; the limit runs on as many
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1", value_parser = threads)]
    threads: Vec<usize>,
    /// Time for the whole run, in seconds, as far as the buffer sizes allow
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
}

/// The measurement of one kernel, direction, sector size and buffer size.
#[derive(Serialize)]
struct Row {
    kernel: String,
    operation: &'static str,
    sector_bytes: u32,
    buffer_bytes: usize,
    threads: usize,
    dmcrypt_gb_per_s: f64,
    xts_mode_gb_per_s: f64,
    /// To aes + xts-mode.
    ratio: f64,
    /// None where the machine has no AES instruction that can be measured.
    percent_of_limit: Option<f64>,
    limit: Option<&'static str>,
}

#[derive(Serialize)]
struct LimitRow {
    instruction: &'static str,
    threads: usize,
    gb_per_s: f64,
}

#[derive(Serialize)]
struct Report {
    engine: String,
    cipher: &'static str,
    rounds: usize,
    limits: Vec<LimitRow>,
    rows: Vec<Row>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut entries: Vec<Entry> =
        Kernel::ALL.into_iter().rev().filter(|kernel| kernel.is_available()).map(contender::kernel).collect();
    entries.push(contender::xts_mode());
    let cases = args.sizes.len() * args.threads.len() * 4;
    // A contender's turn: itself and the limit, each with a third of warming.
    let turns = (cases * ROUNDS * entries.len()) as f64 * 8.0 / 3.0;
    let plan = Plan { rounds: ROUNDS, piece: Duration::from_secs_f64(args.seconds / turns).max(MIN_PIECE) };
    let mut rows = Vec::with_capacity(cases * entries.len());
    let mut limits = Limits::default();
    for sector_size in [SectorSize::S4096, SectorSize::S512] {
        for &call_bytes in &args.sizes {
            contender::check(&entries, sector_size, call_bytes)?;
            for (direction, &threads) in
                Direction::ALL.iter().flat_map(|way| args.threads.iter().map(move |n| (*way, n)))
            {
                let case = Case { sector_size, call_bytes, buffers: 1, direction, threads };
                let rates = interleaved(case, &entries, plan)?;
                if threads == args.threads[0] {
                    limits.add(&entries, &rates);
                }
                rows.extend(rows_of(case, &entries, &rates));
            }
        }
    }
    let report = Report {
        engine: dmcrypt::kernel_and_reason(),
        cipher: "aes-xts-plain64, 512-bit key",
        rounds: ROUNDS,
        limits: limits.rows(args.threads[0]),
        rows,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// One row per kernel; the last entry is what they are compared with.
fn rows_of(case: Case, entries: &[Entry], rates: &[Rates]) -> Vec<Row> {
    let Some((theirs, ours)) = rates.split_last() else { return Vec::new() };
    let gb_per_s = |rates: &Rates| Quartiles::of(&rates.own).map_or(0.0, |rate| rate.median / 1e9);
    let row = |(entry, rates): (&Entry, &Rates)| Row {
        kernel: entry.name.clone(),
        operation: case.direction.name(),
        sector_bytes: case.sector_size.bytes(),
        buffer_bytes: case.call_bytes,
        threads: case.threads,
        dmcrypt_gb_per_s: gb_per_s(rates),
        xts_mode_gb_per_s: gb_per_s(theirs),
        ratio: Quartiles::of_ratios(&rates.own, &theirs.own).map_or(0.0, |ratio| ratio.median),
        percent_of_limit: rates.of_limit().map(|fraction| fraction.median * 100.0),
        limit: entry.limit.map(|limit| limit.width().instruction()),
    };
    entries.iter().zip(ours).map(row).collect()
}

/// Rates of the limits over the whole run, widest first.
#[derive(Default)]
struct Limits([Vec<f64>; 3]);

impl Limits {
    const WIDTHS: [Width; 3] = [Width::Zmm, Width::Ymm, Width::Xmm];

    fn add(&mut self, entries: &[Entry], rates: &[Rates]) {
        for (entry, rates) in entries.iter().zip(rates) {
            for (width, all) in Self::WIDTHS.into_iter().zip(&mut self.0) {
                if entry.limit.map(Limit::width) == Some(width) {
                    all.extend(&rates.limit);
                }
            }
        }
    }

    fn rows(&self, threads: usize) -> Vec<LimitRow> {
        let row = |(width, rates): (Width, &Vec<f64>)| {
            Some(LimitRow { instruction: width.instruction(), threads, gb_per_s: Quartiles::of(rates)?.median / 1e9 })
        };
        Self::WIDTHS.into_iter().zip(&self.0).filter_map(row).collect()
    }
}

fn print(report: &Report) {
    println!("kernel in use: {}", report.engine);
    println!("cipher: {}, in place, all threads together, medians of {} rounds", report.cipher, report.rounds);
    for limit in &report.limits {
        let threads = limit.threads;
        println!(
            "limit, {} back to back, 14 rounds a block, threads {threads}: {:.2} GB/s",
            limit.instruction, limit.gb_per_s
        );
    }
    println!(
        "{:<8} {:>7} {:>10} {:>7}  {:<9} {:>9}  {:<20} {:>16}",
        "", "sector", "buffer", "threads", "kernel", "GB/s", "of the limit", "x aes + xts-mode"
    );
    for row in &report.rows {
        let of_limit = match (row.percent_of_limit, row.limit) {
            (Some(percent), Some(limit)) => format!("{percent:5.1}% {limit}"),
            _ => "-".into(),
        };
        println!(
            "{:<8} {:>5} B {:>6} KiB {:>7}  {:<9} {:>9.2}  {:<20} {:>16.2}",
            row.operation,
            row.sector_bytes,
            row.buffer_bytes / 1024,
            row.threads,
            row.kernel,
            row.dmcrypt_gb_per_s,
            of_limit,
            row.ratio
        );
    }
}

/// "64K" to bytes; whole 4096-byte sectors only.
fn size(text: &str) -> Result<usize> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix(['M', 'm']).map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    let count: usize = digits.parse().with_context(|| format!("{text:?} is no size"))?;
    match count.checked_mul(unit) {
        Some(bytes) if bytes > 0 && bytes.is_multiple_of(4096) && bytes <= MAX_BUFFER_BYTES => Ok(bytes),
        _ => bail!("{text:?} is not a multiple of 4096 bytes up to 1024M"),
    }
}

/// A number of threads.
fn threads(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(count @ 1..=256) => Ok(count),
        _ => bail!("{text:?} is no number of threads from 1 to 256"),
    }
}

fn seconds(text: &str) -> Result<f64> {
    let value: f64 = text.parse().with_context(|| format!("{text:?} is no number of seconds"))?;
    if !(0.01..=3600.0).contains(&value) {
        bail!("{value} is not between 0.01 and 3600 seconds");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_sectors() {
        assert_eq!(size("4K").unwrap(), 4096);
        assert_eq!(size("8192").unwrap(), 8192);
        assert_eq!(size("1M").unwrap(), 1 << 20);
        for bad in ["", "0", "K", "5000", "1025M", "99999999999999999999", "-4K"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn threads_have_bounds() {
        assert_eq!(threads("2").unwrap(), 2);
        for bad in ["", "0", "-1", "257", "x"] {
            assert!(threads(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn seconds_have_bounds() {
        assert!(seconds("0.5").is_ok());
        for bad in ["0", "-1", "nan", "inf", "4000"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_kernel_is_compared_with_the_last_entry() {
        let entries = [contender::kernel(Kernel::Portable), contender::xts_mode()];
        let case = Case {
            sector_size: SectorSize::S512,
            call_bytes: 4096,
            buffers: 1,
            direction: Direction::Encrypt,
            threads: 1,
        };
        let rates = [
            Rates { own: vec![4e9, 6e9, 5e9], limit: vec![8e9, 8e9, 10e9] },
            Rates { own: vec![1e9, 2e9, 1e9], limit: vec![] },
        ];
        let rows = rows_of(case, &entries, &rates);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].dmcrypt_gb_per_s, rows[0].xts_mode_gb_per_s, rows[0].ratio), (5.0, 1.0, 4.0));
        assert_eq!(rows[0].percent_of_limit, Some(50.0));
    }
}
