//! The layer `fio`: the same job by fio on the same bytes, as a check of this harness. Source: fio(1), version 3.33.
//!
//! The options make it the same job: registered file and buffers, offsets without a map of what was visited, one submission for each request
//! (its default), latency from before the submission (`lat`).

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use block::Bytes;
use luksbench::rounds::Quartiles;
use luksbench::run::{Job, Latency, PLAIN, Pattern, Run, Sample};
use serde_json::Value;

use super::layers::FIO;

/// What it may differ by and still agree: throughput, median latency.
const MOST_RATE: f64 = 0.05;
const MOST_LATENCY: f64 = 0.10;

const PERCENTILES: [&str; 5] = ["50", "90", "99", "99.9", "99.99"];

/// What it calls itself.
pub(super) fn version() -> Result<String> {
    let done = Command::new("fio").arg("--version").stdin(Stdio::null()).output().context("fio")?;
    ensure!(done.status.success(), "fio --version ended with {}", done.status);
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// One piece.
pub(super) struct Piece<'a> {
    pub(super) file: &'a Path,
    pub(super) data_offset: Bytes,
    pub(super) size_bytes: u64,
    pub(super) job: &'a Job,
    pub(super) direct: bool,
    pub(super) warm_up_ms: u64,
    pub(super) piece_ms: u64,
    pub(super) round: u32,
}

/// Runs it.
pub(super) fn run(piece: &Piece<'_>) -> Result<Sample> {
    let job = piece.job;
    let rw = match job.pattern {
        Pattern::SequentialRead => "read",
        Pattern::SequentialWrite => "write",
        Pattern::RandomRead => "randread",
        Pattern::RandomWrite => "randwrite",
        Pattern::RandomMixed => "randrw",
    };
    let mut fio = Command::new("fio");
    fio.args(["--name=luksbench", "--output-format=json", "--ioengine=io_uring", "--thread", "--time_based"]);
    fio.args(["--fixedbufs=1", "--registerfiles=1", "--norandommap=1", "--rwmixread=70", "--group_reporting"]);
    fio.args(["--unified_rw_reporting=1", "--lat_percentiles=1", "--clat_percentiles=0", "--allow_file_create=0"]);
    fio.arg(format!("--percentile_list={}", PERCENTILES.join(":"))).arg(format!("--rw={rw}"));
    fio.arg(format!("--offset={}", piece.data_offset.0)).arg(format!("--size={}", piece.size_bytes));
    fio.arg(format!("--bs={}", job.block_bytes)).arg(format!("--iodepth={}", job.depth));
    fio.arg(format!("--numjobs={}", job.threads)).arg(format!("--direct={}", u8::from(piece.direct)));
    fio.arg(format!("--runtime={}ms", piece.piece_ms)).arg(format!("--ramp_time={}ms", piece.warm_up_ms));
    fio.arg(format!("--randseed={}", piece.round + 1));
    // fio takes a colon for the end of a name.
    let name = piece.file.to_str().context("the path of the file is no UTF-8")?.replace(':', "\\:");
    fio.arg(format!("--filename={name}"));
    let done = fio.stdin(Stdio::null()).process_group(0).output().context("fio")?;
    ensure!(done.status.success(), "fio ended with {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    sample(&done.stdout, piece.round)
}

/// What fio says.
fn sample(output: &[u8], round: u32) -> Result<Sample> {
    // Warnings may come before it.
    let start = output.iter().position(|byte| *byte == b'{').context("fio printed no JSON")?;
    let all: Value = serde_json::from_slice(&output[start..]).context("fio's JSON")?;
    let job = &all["jobs"][0];
    let sums = &job["mixed"];
    let number = |value: &Value, name: &str| value[name].as_u64().with_context(|| format!("fio's JSON has no {name}"));
    let elapsed_ns = number(sums, "runtime")? * 1_000_000;
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a time
    let cpu_ns = |name: &str| (job[name].as_f64().unwrap_or(0.0) / 100.0 * elapsed_ns as f64) as u64;
    let lat = &sums["lat_ns"];
    let percentile = |name: &str| {
        let value: f64 = name.parse().unwrap_or(0.0);
        lat["percentile"][format!("{value:.6}")].as_u64().map(|ns| (name.to_owned(), ns))
    };
    Ok(Sample {
        round,
        bytes: number(sums, "io_bytes")?,
        requests: number(sums, "total_ios")?,
        elapsed_ns,
        user_ns: cpu_ns("usr_cpu"),
        kernel_ns: cpu_ns("sys_cpu"),
        latency: Latency {
            min_ns: number(lat, "min")?,
            mean_ns: lat["mean"].as_f64().unwrap_or(0.0),
            max_ns: number(lat, "max")?,
            percentiles_ns: PERCENTILES.into_iter().filter_map(percentile).collect(),
            histogram: String::new(),
        },
    })
}

/// How this harness compares with fio on the plain file, in words, a line for each job; empty without fio.
pub(super) fn agreement(run: &Run) -> Vec<String> {
    let ratio = |job: &str, of: &dyn Fn(&Sample) -> f64| {
        let [own, fio] = [PLAIN, FIO].map(|layer| run.samples(job, layer).iter().map(of).collect::<Vec<f64>>());
        Quartiles::of_ratios(&own, &fio)
    };
    let line = |job: &Job| {
        let rate = ratio(&job.name, &Sample::bytes_per_s)?;
        #[allow(clippy::cast_precision_loss)] // a ratio
        let median_ns = |sample: &Sample| sample.latency.percentiles_ns.get("50").map_or(0.0, |ns| *ns as f64);
        let latency = ratio(&job.name, &median_ns)?;
        let met = |ratio: &Quartiles, most: f64| (ratio.median - 1.0).abs() <= most;
        let verdict = if met(&rate, MOST_RATE) && met(&latency, MOST_LATENCY) { "agrees" } else { "differs" };
        Some(format!(
            "plain / fio, {:<15} throughput {:.3} ({:.3}-{:.3}), median latency {:.3} ({:.3}-{:.3}): {verdict}",
            job.name, rate.median, rate.low, rate.high, latency.median, latency.low, latency.high
        ))
    };
    run.jobs.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fio_says_becomes_a_sample() {
        let output = br#"note: both iodepth and something
        {"jobs":[{"usr_cpu":10.0,"sys_cpu":25.0,"mixed":{"io_bytes":40960,"total_ios":10,"runtime":20,
        "lat_ns":{"min":5,"max":50,"mean":7.5,"percentile":{"50.000000":6,"99.900000":49}}}}]}"#;
        let sample = sample(output, 3).unwrap();
        assert_eq!((sample.round, sample.bytes, sample.requests, sample.elapsed_ns), (3, 40960, 10, 20_000_000));
        assert_eq!((sample.user_ns, sample.kernel_ns), (2_000_000, 5_000_000));
        assert_eq!((sample.latency.percentiles_ns["50"], sample.latency.percentiles_ns["99.9"]), (6, 49));
        assert!(super::sample(b"fio: no", 0).is_err() && super::sample(b"{}", 0).is_err());
    }
}
