//! The measured numbers, as they are printed and as JSON.

use dmcrypt::SectorSize;
use luksbench::contender::{Direction, Entry, XTS_MODE};
use luksbench::limit::{Limit, Width};
use luksbench::rounds::{Case, Plan, Quartiles, Rates};
use serde::Serialize;

use crate::{AWS_LC, OPENSSL, aws_lc, cases, openssl};

/// A whole run.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Name, family and model of the processor.
    pub(crate) processor: String,
    /// The kernel that luksctl would take here, and why.
    pub(crate) kernel_in_use: String,
    /// Versions, as the libraries say them.
    pub(crate) openssl: String,
    pub(crate) aws_lc: String,
    pub(crate) contenders: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) piece_us: u128,
    /// Shapes (sector and buffer size) in which all contenders gave the same bytes.
    pub(crate) shapes_checked: usize,
    pub(crate) cases: Vec<Measured>,
    pub(crate) targets: Vec<Target>,
}

/// Quartiles of the limits further apart than this are the work of others.
const CALM_SPREAD: f64 = 0.025;

/// One case with all contenders.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) sector_bytes: u32,
    pub(crate) call_bytes: usize,
    pub(crate) operation: &'static str,
    pub(crate) threads: usize,
    pub(crate) single_sector: bool,
    /// How often it was measured; this is the calmest attempt.
    pub(crate) attempts: usize,
    pub(crate) limits: Vec<LimitRate>,
    pub(crate) rows: Vec<Row>,
}

/// A limit, as it was in one case.
#[derive(Serialize)]
pub(crate) struct LimitRate {
    pub(crate) instruction: &'static str,
    pub(crate) gb_per_s: Quartiles,
}

/// One contender in one case. Ratios are taken inside each round.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) contender: String,
    pub(crate) gb_per_s: Quartiles,
    /// Time of one call, for single sectors.
    pub(crate) call_ns: f64,
    /// The instruction that it is measured by.
    pub(crate) limit: Option<&'static str>,
    pub(crate) of_limit: Option<Quartiles>,
    pub(crate) to_xts_mode: Option<Quartiles>,
    pub(crate) to_aws_lc: Option<Quartiles>,
    pub(crate) to_openssl: Option<Quartiles>,
}

/// One of the targets.
#[derive(Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) operation: &'static str,
    pub(crate) wanted: String,
    /// None if this run did not measure it.
    pub(crate) reached: Option<String>,
    pub(crate) met: Option<bool>,
}

impl Report {
    pub(crate) fn new(entries: &[Entry], plan: Plan, shapes_checked: usize) -> Report {
        Report {
            processor: processor(),
            kernel_in_use: dmcrypt::kernel_and_reason(),
            openssl: openssl::version(),
            aws_lc: aws_lc::version(),
            contenders: entries.iter().map(|entry| entry.name.clone()).collect(),
            rounds: plan.rounds,
            piece_us: plan.piece.as_micros(),
            shapes_checked,
            cases: Vec::new(),
            targets: Vec::new(),
        }
    }
}

impl Measured {
    pub(crate) fn new(case: Case, entries: &[Entry], rates: &[Rates]) -> Measured {
        let named = |name: &str| {
            entries.iter().position(|entry| entry.name == name).map(|index| rates[index].own.as_slice()).unwrap_or(&[])
        };
        let (xts_mode, aws_lc, openssl) = (named(XTS_MODE), named(AWS_LC), named(OPENSSL));
        let row = |(entry, rates): (&Entry, &Rates)| {
            let gb_per_s = scaled(Quartiles::of(&rates.own)?);
            Some(Row {
                contender: entry.name.clone(),
                gb_per_s,
                call_ns: (case.threads * case.call_bytes) as f64 / gb_per_s.median,
                limit: entry.limit.map(|limit| limit.width().instruction()),
                of_limit: rates.of_limit(),
                to_xts_mode: Quartiles::of_ratios(&rates.own, xts_mode),
                to_aws_lc: Quartiles::of_ratios(&rates.own, aws_lc),
                to_openssl: Quartiles::of_ratios(&rates.own, openssl),
            })
        };
        Measured {
            name: cases::name(&case),
            sector_bytes: case.sector_size.bytes(),
            call_bytes: case.call_bytes,
            operation: case.direction.name(),
            threads: case.threads,
            single_sector: cases::is_single(&case),
            attempts: 1,
            limits: limits(entries, rates),
            rows: entries.iter().zip(rates).filter_map(row).collect(),
        }
    }

    /// How far apart the quartiles of its limits are, of their median; that of the most restless one.
    pub(crate) fn limit_spread(&self) -> f64 {
        let spread = |limit: &LimitRate| (limit.gb_per_s.high - limit.gb_per_s.low) / limit.gb_per_s.median;
        self.limits.iter().map(spread).fold(0.0, f64::max)
    }

    /// Whether somebody else was at work on the machine: nothing but that moves a limit, which needs no memory.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.limit_spread() > CALM_SPREAD
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, sector_size: SectorSize, call_bytes: usize, direction: Direction) -> bool {
        self.sector_bytes == sector_size.bytes()
            && self.call_bytes == call_bytes
            && self.operation == direction.name()
            && self.threads == 1
    }

    pub(crate) fn row(&self, contender: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.contender == contender)
    }
}

/// The three limits, widest first, each over all its measurements in the case.
fn limits(entries: &[Entry], rates: &[Rates]) -> Vec<LimitRate> {
    let of = |width: Width| {
        let pairs = entries.iter().zip(rates).filter(|(entry, _)| entry.limit.map(Limit::width) == Some(width));
        let all: Vec<f64> = pairs.flat_map(|(_, rates)| rates.limit.iter().copied()).collect();
        Some(LimitRate { instruction: width.instruction(), gb_per_s: scaled(Quartiles::of(&all)?) })
    };
    Width::ALL.into_iter().rev().filter_map(of).collect()
}

/// Bytes to gigabytes.
fn scaled(rates: Quartiles) -> Quartiles {
    Quartiles { low: rates.low / 1e9, median: rates.median / 1e9, high: rates.high / 1e9 }
}

/// As in `AMD EPYC, family 26, model 2`: hypervisors hide the model's name, not the family.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    format!("{}, family {}, model {}", field("model name"), field("cpu family"), field("model"))
}
