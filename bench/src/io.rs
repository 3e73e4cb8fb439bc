//! `luksbench io`: five jobs on the file itself and on every layer above it that this machine has, in turns.
//!
//! Invariants: all layers work on the same bytes of one test file, which is written all over before anything is measured, or of an image
//! that is there, which is only read. A sample is
//! kept only if every layer got through the same job in the same round, so what is compared lies next to each other in time. Whatever
//! is made is taken away again: after errors, after Ctrl-C, and all but the test file after SIGKILL.

mod cpu;
mod data;
mod existing;
mod fio;
mod layers;
mod machine;
mod nbd_lane;
mod options;
mod progress;
mod queue_lane;
mod stop;
mod target;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use luksbench::lane::{self, RingLane, Task};
use luksbench::report::{self, Look};
use luksbench::run::{FORMAT, Job, Measurement, Run, Sample, Settings};
use luksbench::targets::{self, Targets};

use cpu::CpuTime;
use data::{Data, Plan};
use layers::{Below, Layers, Ready};
use progress::Progress;
use stop::Stop;

pub(crate) use options::Args;

/// Standard output, as the name of a file.
const STDOUT: &str = "-";
/// Longest piece in which a disk may stand still.
const LONGEST_STILL: Duration = Duration::from_secs(60);

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let stop = Stop::watch()?;
    let plan = Plan::of(args)?;
    let (size, sector_bytes) = (plan.size, plan.sector_bytes);
    let jobs = args.chosen_jobs(size.0, plan.may_write())?;
    let names = layers::names(&args.layers)?;
    let targets = match &args.targets {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            targets::parse(&text).with_context(|| path.display().to_string())?
        }
        None => targets::compiled_in()?,
    };
    for report in [&args.json, &args.html].into_iter().flatten().filter(|path| !is_stdout(path)) {
        ensure!(report.symlink_metadata().is_err(), "{} exists: luksbench overwrites no report", report.display());
    }
    let mut progress = Progress::new(args.quiet);
    let data = plan.take(&args.target)?;
    let mut remarks: Vec<String> = target::left_behind(data.path())
        .iter()
        .map(|left| format!("{} was left behind by a run that was killed: remove it", left.display()))
        .collect();
    match &data {
        Data::Made(file) => file.prepare(size, sector_bytes, &stop, &mut |share| {
            progress.say(&format!("writing the test file, {:.0}%", share * 100.0), None);
        })?,
        Data::There(_) => remarks.push(
            "an image that was there: it was only read, and decrypted under a key that is not its own; holes in it cost the disk nothing".into(),
        ),
    }
    let below = below(args, &data, &mut remarks);
    let mut layers = Layers::start(&names, below)?;
    let mut run = Run {
        format: FORMAT,
        started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        machine: machine::describe(data.path(), layers.ready.iter().any(Ready::is_fio)),
        settings: Settings { size_bytes: size.0, sector_bytes, ..settings(args, below) },
        layers: layers.all.clone(),
        measurements: no_measurements(&jobs, &layers),
        jobs,
        interrupted: false,
        remarks,
    };
    add_remarks(&mut run);
    progress.next_part();
    let measured = rounds(&mut run, &layers, below, &stop, &mut progress);
    let stopped = layers.stop();
    drop((layers, data));
    progress.clear();
    measured?;
    stopped?;
    ensure!(
        run.measurements.iter().any(|of| !of.samples.is_empty()),
        "stopped before one round was whole: nothing to report"
    );
    print(args, &run, &targets)
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new(STDOUT)
}

/// How the file is reached on this machine.
fn below<'a>(args: &Args, data: &'a Data, remarks: &mut Vec<String>) -> Below<'a> {
    let file = data.path();
    let direct = !args.buffered && layers::can_be_direct(file);
    if !direct && !args.buffered {
        remarks.push("this file system has no direct I/O: everything went through the page cache".to_owned());
    }
    let ring = RingLane::probe();
    if let Err(why) = &ring {
        remarks.push(format!(
            "no io_uring here ({why:#}): requests to files went one after the other by pread and pwrite, whatever the depth"
        ));
    }
    Below {
        file,
        data_offset: data.offset(),
        header: data.header(),
        direct,
        io_uring: ring.is_ok(),
        as_fio: args.layers.iter().any(|name| name == layers::FIO),
    }
}

fn settings(args: &Args, below: Below<'_>) -> Settings {
    Settings {
        target: args.target.display().to_string(),
        rounds: args.rounds,
        piece_ms: milliseconds(args.duration),
        warm_up_ms: milliseconds(args.warm_up),
        direct: below.direct,
        queue: if below.io_uring { "io_uring" } else { "pread" }.to_owned(),
        ..Settings::default()
    }
}

fn milliseconds(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds).as_millis()).unwrap_or(u64::MAX)
}

fn no_measurements(jobs: &[Job], layers: &Layers) -> Vec<Measurement> {
    let of_job = |job: &Job| {
        let job = job.name.clone();
        let of_layer =
            move |ready: &Ready| Measurement { job: job.clone(), layer: ready.name.to_owned(), samples: Vec::new() };
        layers.ready.iter().map(of_layer).collect::<Vec<_>>()
    };
    jobs.iter().flat_map(of_job).collect()
}

fn add_remarks(run: &mut Run) {
    let works_in_kernel = |name: &str| [layers::FUSE_LOOP, "ublk", "dm-crypt"].contains(&name);
    if run.layers.iter().any(|layer| layer.absent.is_none() && works_in_kernel(&layer.name)) {
        let words =
            "processor time is that of client and server; what kernel workers did (loop, dm-crypt, ublk) is not in it";
        run.remarks.push(words.to_owned());
    }
    if !run.settings.direct && run.layers.len() > 1 {
        run.remarks.push("through the page cache each layer's cache answers, not the layer below".to_owned());
    }
}

/// All rounds, until somebody stops them.
fn rounds(run: &mut Run, layers: &Layers, below: Below<'_>, stop: &Stop, progress: &mut Progress) -> Result<()> {
    let began = Instant::now();
    let count = layers.ready.len();
    let all = u64::from(run.settings.rounds) * (run.jobs.len() * count) as u64;
    let mut ended = 0;
    for round in 0..run.settings.rounds {
        for number in 0..run.jobs.len() {
            let mut samples: Vec<Option<Sample>> = vec![None; count];
            for nth in 0..count {
                if stop.is_wanted() {
                    run.interrupted = true;
                    return Ok(());
                }
                // Who comes first changes with each round.
                let index = (round as usize + nth) % count;
                let (job, ready) = (&run.jobs[number], &layers.ready[index]);
                let what = format!("round {} of {}: {} on {}", round + 1, run.settings.rounds, job.name, ready.name);
                progress.say(&what, left(&run.settings, began, ended, all));
                let sample = piece(&run.settings, job, ready, below, round);
                samples[index] = Some(sample.with_context(|| format!("{} on {}", job.name, ready.name))?);
                ended += 1;
            }
            let of_job = &mut run.measurements[number * count..(number + 1) * count];
            for (measurement, sample) in of_job.iter_mut().zip(samples) {
                measurement.samples.extend(sample);
            }
        }
    }
    Ok(())
}

/// How long the rest takes, if it goes on as so far.
fn left(settings: &Settings, began: Instant, ended: u64, all: u64) -> Option<Duration> {
    let planned = Duration::from_millis(settings.piece_ms + settings.warm_up_ms);
    let each = if ended == 0 { planned } else { began.elapsed().div_f64(ended as f64) };
    Some(each.mul_f64((all - ended) as f64))
}

/// One job on one layer in one round.
fn piece(settings: &Settings, job: &Job, ready: &Ready, below: Below<'_>, round: u32) -> Result<Sample> {
    if ready.is_fio() {
        return fio::run(&fio::Piece {
            file: below.file,
            data_offset: below.data_offset,
            size_bytes: settings.size_bytes,
            job,
            direct: below.direct,
            warm_up_ms: settings.warm_up_ms,
            piece_ms: settings.piece_ms,
            round,
        });
    }
    let task = Task {
        pattern: job.pattern,
        block_bytes: job.block_bytes,
        depth: job.depth,
        threads: job.threads,
        size_bytes: settings.size_bytes,
        warm_up: Duration::from_millis(settings.warm_up_ms),
        piece: Duration::from_millis(settings.piece_ms),
        // The same for all layers of a round.
        seed: u64::from(round) + 1,
    };
    let (done, cpu) = measure(task, ready, below, job)?;
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Ok(Sample {
        round,
        bytes: done.requests * u64::from(job.block_bytes),
        requests: done.requests,
        elapsed_ns: nanoseconds(done.elapsed),
        user_ns: nanoseconds(cpu.user),
        kernel_ns: nanoseconds(cpu.kernel),
        latency: done.latencies.summary(),
    })
}

/// What ended within the piece, and its processor time. A disk that stands still for the whole of it gets a longer one.
fn measure(mut task: Task, ready: &Ready, below: Below<'_>, job: &Job) -> Result<(lane::Done, CpuTime)> {
    loop {
        let mut times = Vec::with_capacity(2);
        let done = lane::run(&task, &|| ready.lane(job, below), || {
            times.push(CpuTime::now(ready.server_pid())?);
            Ok(())
        })?;
        let [before, after] = times[..] else { anyhow::bail!("a piece has two ends") };
        if done.requests > 0 {
            return Ok((done, after.since(before)));
        }
        ensure!(task.piece < LONGEST_STILL, "no request ended within {} s", task.piece.as_secs());
        task.piece = (task.piece * 4).min(LONGEST_STILL);
    }
}

/// The table, and the files that were asked for.
fn print(args: &Args, run: &Run, targets: &Targets) -> Result<()> {
    let json = format!("{}\n", serde_json::to_string_pretty(run)?);
    if let Some(path) = &args.html {
        write_new(path, &report::html(run, targets))?;
    }
    let mut text = report::table(run, targets, Look::of_stdout());
    for line in fio::agreement(run) {
        text.extend([line.as_str(), "\n"]);
    }
    match &args.json {
        Some(path) if is_stdout(path) => text = json,
        Some(path) => write_new(path, &json)?,
        None => {}
    }
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("writing {}", path.display()))
}
