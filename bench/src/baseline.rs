//! A baseline: what this machine's cipher reaches of the machine's AES limit, and a run of `luksbench io`, kept in a file to
//! be compared with later.
//!
//! The cipher is measured for itself since most disks hide it: a cipher a tenth slower costs nothing where each request
//! waits for the disk. Each sweep over all cases is a process of its own, and the median of its rounds is one value: rounds
//! right after each other share what disturbs them, and where a process lies in memory alone can make one case of the cipher
//! a third slower for as long as it lives (one in seven did, on Zen 5). Pieces are short, so that few of them are interrupted
//! and what runs beside is the same for a piece and its limit.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use dmcrypt::{Kernel, SectorSize};
use serde::{Deserialize, Serialize};

use crate::contender::{self, Contender, Direction, Entry};
use crate::rounds::{Case, Plan, interleaved};
use crate::run::{Machine, Run};
use crate::saved::{self, Saved};

/// Version of the JSON; another is refused.
pub const FORMAT: u32 = 1;

/// Sweeps of one measurement, each a process.
pub const SWEEPS: usize = 16;
/// Rounds of each case in a sweep, and the time of a piece.
const ROUNDS: usize = 41;
const PIECE: Duration = Duration::from_micros(120);
/// What a call gets: in the second-level cache of everything.
const CALL_BYTES: usize = 64 << 10;

const MAX_SERIES: usize = 256;
const MAX_ROUNDS: usize = 100_000;
const MAX_SWEEPS: usize = 1000;
const MAX_TEXT_BYTES: usize = 4096;

/// What was saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// [`FORMAT`].
    pub baseline_format: u32,
    /// When, seconds since 1970-01-01 UTC.
    pub saved_unix_s: u64,
    /// Where.
    pub machine: Machine,
    /// The cipher against the limit.
    pub crypto: Vec<CryptoSeries>,
    /// A run of `luksbench io`, if one was given.
    pub run: Option<Run>,
}

/// The cipher in one case, bytes per second in each round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CryptoSeries {
    /// `encrypt` or `decrypt`.
    pub direction: String,
    /// Encryption sector in bytes.
    pub sector_bytes: u32,
    /// Bytes given to one call.
    pub call_bytes: usize,
    /// What it is measured against, next to it: the machine's AES instruction, or a portable implementation where it has none.
    pub reference: String,
    /// Rounds of a sweep, after which all other cases had their turn.
    pub sweep_rounds: usize,
    /// Ours.
    pub own: Vec<f64>,
    /// The reference's.
    pub limit: Vec<f64>,
}

impl CryptoSeries {
    /// "cipher encrypt, 512 B sectors".
    #[must_use]
    pub fn name(&self) -> String {
        format!("cipher {}, {} B sectors", self.direction, self.sector_bytes)
    }
}

impl Baseline {
    /// A baseline of now, on this machine.
    #[must_use]
    pub fn of(crypto: Vec<CryptoSeries>, run: Option<Run>) -> Baseline {
        let saved_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Baseline { baseline_format: FORMAT, saved_unix_s, machine: this_machine(), crypto, run }
    }

    /// Holds it against what the comparison takes for granted.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn check(&self) -> Result<()> {
        if self.crypto.len() > MAX_SERIES {
            bail!("{} series, more than {MAX_SERIES}", self.crypto.len());
        }
        for (nth, series) in self.crypto.iter().enumerate() {
            let name = series.name();
            if self.crypto[..nth].iter().any(|other| other.name() == name) {
                bail!("{name} is there twice");
            }
            let texts = [&series.direction, &series.reference, &self.machine.cpu, &self.machine.kernel];
            if let Some(text) = texts.into_iter().find(|text| text.len() > MAX_TEXT_BYTES) {
                bail!("a text of {} bytes, more than {MAX_TEXT_BYTES}", text.len());
            }
            if series.own.len() != series.limit.len() || series.own.len() > MAX_ROUNDS {
                bail!("{name}: {} rounds against {}; at most {MAX_ROUNDS}", series.own.len(), series.limit.len());
            }
            if series.sweep_rounds == 0 || !series.own.len().is_multiple_of(series.sweep_rounds) {
                bail!("{name}: {} rounds in sweeps of {}", series.own.len(), series.sweep_rounds);
            }
            if series.own.len() / series.sweep_rounds > MAX_SWEEPS {
                bail!("{name}: more than {MAX_SWEEPS} sweeps");
            }
            let odd = |rate: &&f64| !(rate.is_finite() && **rate > 0.0);
            if let Some(rate) = series.own.iter().chain(&series.limit).find(odd) {
                bail!("{name}: a rate of {rate}");
            }
        }
        Ok(())
    }

    /// Writes it in one step, readable for others, over nothing but another baseline.
    ///
    /// # Errors
    /// The file is something else, or cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        may_write(path)?;
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        write_whole(path, &text)
    }
}

/// Sees to it that a baseline may be written there.
///
/// # Errors
/// There is something else.
pub fn may_write(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() && !matches!(saved::read(path), Ok(Saved::Baseline(_))) {
        bail!("{} exists and is no baseline: it is left alone", path.display());
    }
    Ok(())
}

/// Writes a file in one step: it is whole or as before.
///
/// # Errors
/// Of the file system.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".luksbench-").tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)
    };
    write().map(drop).with_context(|| format!("cannot write {}", path.display()))
}

/// Where baselines are kept: `$XDG_STATE_HOME/luksbench/baseline.json`, or in `~/.local/state`.
///
/// # Errors
/// There is neither variable nor home.
pub fn default_path() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    let state = state.context("neither XDG_STATE_HOME nor HOME says where baselines are kept: give --file")?;
    Ok(state.join("luksbench/baseline.json"))
}

/// Adds the rounds of `more` to the same series.
pub fn add(series: &mut Vec<CryptoSeries>, more: Vec<CryptoSeries>) {
    for more in more {
        match series.iter_mut().find(|series| series.name() == more.name()) {
            Some(series) => {
                series.own.extend(more.own);
                series.limit.extend(more.limit);
            }
            None => series.push(more),
        }
    }
}

/// One sweep: the cipher that volumes get here, in every case; `slowed_percent` slows it down on purpose.
///
/// # Errors
/// What the cipher reports.
pub fn sweep(slowed_percent: u32) -> Result<Vec<CryptoSeries>> {
    let entry = entry(dmcrypt::kernel(), slowed_percent);
    let reference = entry.limit.map(|limit| limit.width().instruction().to_owned());
    let mut entries = vec![entry];
    if reference.is_none() {
        entries.push(contender::xts_mode());
    }
    let mut all = Vec::new();
    for sector_size in [SectorSize::S512, SectorSize::S4096] {
        for direction in Direction::ALL {
            let case = Case { sector_size, call_bytes: CALL_BYTES, buffers: 1, direction, threads: 1 };
            let mut rates = interleaved(case, &entries, Plan { rounds: ROUNDS, piece: PIECE })?.into_iter();
            let own = rates.next().unwrap_or_default();
            let limit = rates.next().map_or(own.limit, |theirs| theirs.own);
            all.push(CryptoSeries {
                direction: direction.name().to_owned(),
                sector_bytes: sector_size.bytes(),
                call_bytes: CALL_BYTES,
                reference: reference.clone().unwrap_or_else(|| contender::XTS_MODE.to_owned()),
                sweep_rounds: ROUNDS,
                own: own.own,
                limit,
            });
        }
    }
    Ok(all)
}

/// The kernel, as it is or slowed down.
fn entry(kernel: Kernel, slowed_percent: u32) -> Entry {
    let entry = contender::kernel(kernel);
    if slowed_percent == 0 {
        return entry;
    }
    Entry::new(entry.name.clone(), entry.limit, move |sector_size| {
        let cipher = entry.build(sector_size)?;
        Ok(Box::new(Slowed {
            cipher,
            sector_bytes: sector_size.bytes() as usize,
            percent: slowed_percent as usize,
            due: 0,
        }))
    })
}

/// Does a part of each call twice: the control, which shows that a slower cipher would be found.
struct Slowed {
    cipher: Box<dyn Contender>,
    sector_bytes: usize,
    /// By this much fewer bytes a second.
    percent: usize,
    /// Bytes to be done twice, times 100 - percent.
    due: usize,
}

impl Contender for Slowed {
    fn crypt(&mut self, direction: Direction, iv_sector: u64, sectors: &mut [u8]) -> Result<()> {
        self.cipher.crypt(direction, iv_sector, sectors)?;
        let of = 100 - self.percent;
        self.due += sectors.len() * self.percent;
        let again = (self.due / of / self.sector_bytes * self.sector_bytes).min(sectors.len());
        self.due -= again * of;
        if again > 0 { self.cipher.crypt(direction, iv_sector, &mut sectors[..again]) } else { Ok(()) }
    }
}

/// This machine, as far as the cipher is concerned.
fn this_machine() -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let cpus = std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    Machine {
        cpu: model.unwrap_or(std::env::consts::ARCH).to_owned(),
        cpus,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        aes_kernel: dmcrypt::kernel_and_reason(),
        versions: [("luksbench".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
        ..Machine::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::simulated::run;

    fn small() -> Baseline {
        let series = |direction: &str| CryptoSeries {
            direction: direction.into(),
            sector_bytes: 512,
            call_bytes: CALL_BYTES,
            reference: "vaesenc zmm".into(),
            sweep_rounds: 4,
            own: vec![1e9; 8],
            limit: vec![2e9; 8],
        };
        let crypto = vec![series("encrypt"), series("decrypt")];
        Baseline {
            baseline_format: FORMAT,
            saved_unix_s: 1,
            machine: this_machine(),
            crypto,
            run: Some(run(1, 6, |_, _| 1.0)),
        }
    }

    #[test]
    fn a_baseline_comes_back_and_replaces_only_its_like() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("baseline.json");
        let mut baseline = small();
        baseline.save(&path).unwrap();
        baseline.saved_unix_s = 2;
        baseline.save(&path).unwrap();
        let Saved::Baseline(read) = saved::read(&path).unwrap() else { panic!("no baseline") };
        assert_eq!(*read, baseline);
        let other = folder.path().join("other");
        for foreign in ["", "{}", "a letter", &serde_json::to_string(&run(1, 6, |_, _| 1.0)).unwrap()] {
            fs::write(&other, foreign).unwrap();
            assert!(baseline.save(&other).unwrap_err().to_string().contains("is left alone"));
            assert_eq!(fs::read_to_string(&other).unwrap(), foreign);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |change: &dyn Fn(&mut Baseline)| {
            let mut baseline = small();
            change(&mut baseline);
            format!("{:#}", saved::parse(&serde_json::to_string(&baseline).unwrap()).unwrap_err())
        };
        assert!(refused(&|baseline| baseline.crypto[1].direction = "encrypt".into()).contains("is there twice"));
        assert!(refused(&|baseline| baseline.crypto[1].own[3] = 0.0).contains("a rate of 0"));
        assert!(refused(&|baseline| baseline.crypto[1].own.truncate(3)).contains("3 rounds against 8"));
        assert!(
            refused(&|baseline| baseline.run = Some(Run { format: 7, ..run(1, 6, |_, _| 1.0) }))
                .contains("format is 7")
        );
    }

    #[test]
    fn a_tenth_slower_is_a_ninth_done_twice() {
        struct Counting(std::sync::Arc<std::sync::atomic::AtomicUsize>);
        impl Contender for Counting {
            fn crypt(&mut self, _: Direction, _: u64, sectors: &mut [u8]) -> Result<()> {
                self.0.fetch_add(sectors.len(), std::sync::atomic::Ordering::Relaxed);
                Ok(())
            }
        }
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut slowed = Slowed { cipher: Box::new(Counting(count.clone())), sector_bytes: 512, percent: 10, due: 0 };
        for _ in 0..1000 {
            slowed.crypt(Direction::Encrypt, 0, &mut [0; 4096]).unwrap();
        }
        let done = count.load(std::sync::atomic::Ordering::Relaxed);
        assert!((done as f64 / 4_096_000.0 - 10.0 / 9.0).abs() < 1e-3, "{done}");
    }
}
