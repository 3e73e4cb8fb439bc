//! `luksbench exports`: each export with and without the cipher, against the ceiling that transport and cipher set together.
//!
//! A request at depth 1 goes through the transport and then through the cipher, one after the other. So with T the bytes a
//! second of the same server on a plain image and C those of the cipher alone on requests of the same size, no encrypted
//! export gets beyond 1/(1/T + 1/C): the ceiling. All three are measured in the same rounds, next to each other, and the
//! ratio is taken inside a round.
//!
//! Every server is a process of its own (`serve-export`) on one image; the plain one serves the bytes of its data segment. This
//! process is the client.

mod clients;
pub(crate) mod contestants;
pub(crate) mod nbd_client;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dmcrypt::{CipherSpec, SectorCipher, SectorSize};
use luksbench::rounds::Quartiles;
use serde::Serialize;

pub(crate) use server::{ServeArgs, run as serve};

use clients::{Client, Measure, pass};
use contestants::{Contestants, Pair};

/// What the encrypted export shall reach of its ceiling, and NBD of nbdkit's LUKS filter.
const CEILING_TARGET: f64 = 0.95;
const FILTER_TARGET: f64 = 2.0;
/// The client's and the cipher's memory.
const REQUEST_SIZES_BYTES: [usize; 2] = [1 << 20, 4 << 10];

/// Options of `luksbench exports`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for image and mounts: a tmpfs, so that no disk is measured
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    folder: PathBuf,
    /// Size of the volume in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=65536))]
    size_mib: u64,
    /// Rounds, each with every export
    #[arg(long, default_value_t = 41, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Least time for one export in one round
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10000))]
    piece_ms: u64,
    /// Which request's time counts in a piece: 50 for the median; a low one leaves out what others on the machine delayed
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    percentile: u8,
    /// Threads of each server, 0 for its default
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Only this export: fuse, loop, nbd. May be repeated
    #[arg(long, value_name = "EXPORT")]
    only: Vec<String>,
    /// Few short rounds: shows that it works, no numbers to quote
    #[arg(long)]
    quick: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Case {
    write: bool,
    request_bytes: usize,
}

impl Case {
    fn words(self) -> String {
        format!("{} {} KiB", if self.write { "write" } else { "read" }, self.request_bytes >> 10)
    }
}

/// What came out for one export and one kind of request; bytes per second.
#[derive(Serialize)]
struct Line {
    export: String,
    case: Case,
    plain: Quartiles,
    encrypted: Quartiles,
    cipher: Quartiles,
    of_ceiling: Quartiles,
    /// NBD: how many times as fast as nbdkit's LUKS filter.
    of_filter: Option<Quartiles>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (rounds, piece_ms) = if args.quick { (5, 10) } else { (args.rounds, args.piece_ms) };
    let measure = Measure { piece: Duration::from_millis(piece_ms), percentile: args.percentile };
    let mut contestants = Contestants::start(&args.folder, args.size_mib, args.threads, &args.only)?;
    if contestants.pairs.is_empty() {
        bail!("no export can be served here: {}", contestants.absent.join("; "));
    }
    let mut lines = Vec::new();
    for request_bytes in REQUEST_SIZES_BYTES {
        for write in [false, true] {
            lines.extend(measure_case(&mut contestants, Case { write, request_bytes }, rounds, measure)?);
        }
    }
    contestants.stop()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(());
    }
    println!("depth 1, {rounds} rounds, median (quartiles); GB/s for 1 MiB, thousand requests a second for 4 KiB");
    println!("the time of a request: percentile {} of each piece of {piece_ms} ms", args.percentile);
    println!("ceiling = 1/(1/plain + 1/cipher), inside each round; target {CEILING_TARGET}");
    for line in &lines {
        print(line);
    }
    contestants.absent.iter().for_each(|absent| println!("not here: {absent}"));
    Ok(())
}

fn print(line: &Line) {
    let scale = |rate: f64| {
        if line.case.request_bytes >= 1 << 20 { rate / 1e9 } else { rate / line.case.request_bytes as f64 / 1e3 }
    };
    let (plain, sealed, cipher) = (&line.plain, &line.encrypted, &line.cipher);
    let ceiling = 1.0 / (1.0 / plain.median + 1.0 / cipher.median);
    println!(
        "{:12} {:12} plain {:7.2}  cipher {:8.2}  ceiling {:7.2}  encrypted {:7.2} ({:.2}-{:.2})  of the ceiling {}",
        line.export,
        line.case.words(),
        scale(plain.median),
        scale(cipher.median),
        scale(ceiling),
        scale(sealed.median),
        scale(sealed.low),
        scale(sealed.high),
        judged(&line.of_ceiling, CEILING_TARGET),
    );
    if let Some(of_filter) = &line.of_filter {
        println!("{:25} x nbdkit --filter=luks {}", "", judged(of_filter, FILTER_TARGET));
    }
}

fn judged(ratio: &Quartiles, target: f64) -> String {
    let verdict = if ratio.median >= target { "met" } else { "missed" };
    format!("{:.3} ({:.3}-{:.3}) {verdict}", ratio.median, ratio.low, ratio.high)
}

/// One kind of request on every export, in rounds.
fn measure_case(contestants: &mut Contestants, case: Case, rounds: u32, measure: Measure) -> Result<Vec<Line>> {
    let mut cipher = CipherAlone::new(case.request_bytes)?;
    let count = contestants.pairs.len();
    let mut rates = vec![PairRates::default(); count];
    let mut filter = Vec::new();
    // The first round warms.
    for round in 0..=rounds {
        for (pair, rates) in contestants.pairs.iter_mut().zip(&mut rates) {
            let sample = Sample::take(pair, &mut cipher, case, measure, round)?;
            if round > 0 {
                rates.push(sample);
            }
        }
        if let Some(client) = &mut contestants.filter {
            let rate = pass(client.as_mut(), case.write, case.request_bytes, measure)?;
            if round > 0 {
                filter.push(rate);
            }
        }
    }
    let mut lines = Vec::new();
    for (pair, rates) in contestants.pairs.iter().zip(rates) {
        let quartiles = |values: &[f64]| Quartiles::of(values).context("no round was measured");
        let is_nbd = pair.name == contestants::NBD;
        lines.push(Line {
            export: pair.name.to_owned(),
            case,
            plain: quartiles(&rates.plain)?,
            encrypted: quartiles(&rates.encrypted)?,
            cipher: quartiles(&rates.cipher)?,
            of_ceiling: quartiles(&rates.of_ceiling)?,
            of_filter: if is_nbd { Quartiles::of_ratios(&rates.encrypted, &filter) } else { None },
        });
    }
    Ok(lines)
}

/// Three rates of one round.
struct Sample {
    plain: f64,
    encrypted: f64,
    cipher: f64,
}

impl Sample {
    /// Plain and encrypted in turns of who is first, then the cipher alone.
    fn take(pair: &mut Pair, cipher: &mut CipherAlone, case: Case, measure: Measure, round: u32) -> Result<Sample> {
        let go = |client: &mut Box<dyn Client>| pass(client.as_mut(), case.write, case.request_bytes, measure);
        let (plain, encrypted) = if round.is_multiple_of(2) {
            let plain = go(&mut pair.plain)?;
            (plain, go(&mut pair.encrypted)?)
        } else {
            let encrypted = go(&mut pair.encrypted)?;
            (go(&mut pair.plain)?, encrypted)
        };
        Ok(Sample {
            plain,
            encrypted,
            cipher: cipher.rate(case.write, Measure { piece: measure.piece / 4, ..measure })?,
        })
    }
}

#[derive(Clone, Default)]
struct PairRates {
    plain: Vec<f64>,
    encrypted: Vec<f64>,
    cipher: Vec<f64>,
    of_ceiling: Vec<f64>,
}

impl PairRates {
    fn push(&mut self, sample: Sample) {
        self.of_ceiling.push(sample.encrypted * (1.0 / sample.plain + 1.0 / sample.cipher));
        self.plain.push(sample.plain);
        self.encrypted.push(sample.encrypted);
        self.cipher.push(sample.cipher);
    }
}

/// The cipher as a volume uses it: a read is decrypted in place, a write encrypted from one buffer into another.
struct CipherAlone {
    cipher: Box<dyn SectorCipher>,
    from: block::AlignedBuf,
    to: block::AlignedBuf,
}

impl CipherAlone {
    fn new(request_bytes: usize) -> Result<CipherAlone> {
        let spec = CipherSpec::parse("aes-xts-plain64")?;
        let key: Vec<u8> = (0..64).collect();
        let cipher = dmcrypt::build(&spec, &key, SectorSize::S4096)?;
        let buffer = || block::AlignedBuf::zeroed(request_bytes);
        Ok(CipherAlone { cipher, from: buffer(), to: buffer() })
    }

    fn rate(&mut self, write: bool, measure: Measure) -> Result<f64> {
        let mut iv_sector = 0;
        measure.rate(self.to.len(), || {
            iv_sector += 8;
            if write {
                self.cipher.encrypt(iv_sector, &self.from, &mut self.to);
            } else {
                self.cipher.decrypt_in_place(iv_sector, &mut self.to);
            }
            Ok(())
        })
    }
}
