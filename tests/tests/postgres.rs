//! Promise: a database on an encrypted disk of ours loses nothing that it has committed, whoever takes its power or kills the
//! server of the volume.
//!
//! PostgreSQL on ext4 on a loop device over our FUSE, or over nbdfuse and our NBD socket; the image lies on a [`PowerCutDisk`].
//! Writers whose COMMIT has returned say so to a ledger on another disk, and pgbench works beside them. At random moments the
//! power goes, sometimes in the middle of the recovery of the cut before, or the server of the volume is killed; then the real
//! luksctl opens what is left, ext4 and PostgreSQL recover, and every table, index and row is held against the ledger. The
//! campaign goes on with what it found.
//!
//! Two controls that must not pass: a disk that lies about flushes, and commits that do not wait for theirs.
//!
//! `LUKS_POSTGRES_CUTS` and `LUKS_POSTGRES_KILLS` make it long (`make test-postgres`); `LUKS_SEED` repeats the choices of a run.
//! A failure prints the seed and keeps the folder with the platter, the ledger and the database's log.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use block::MemDisk;
use block::fault::{PowerCutDisk, SplitMix64};
use promises::Rig;
use promises::postgres::bookkeeping::Ledger;
use promises::postgres::load::{Committed, Load, check};
use promises::postgres::{Cluster, Programs};
use promises::random;
use promises::rig::{run, succeed};
use promises::served::{Served, in_memory, save};
use promises::skip::needs_programs;
use promises::user_space::{OpenDisk, Way, eventually};

const IMAGE_SIZE: &str = "256M";
const NAME: &str = "database";
const WRITERS: usize = 3;
/// Cuts and kills of each way in the suite.
const CUTS: u64 = 1;
const KILLS: u64 = 1;
/// Cuts until a control must have been caught.
const CUTS_OF_A_CONTROL: u64 = 10;
/// A load before its end: at least, and random beyond.
const LOAD_MS: (u64, u64) = (300, 1500);
/// One of so many cuts comes while the database recovers from the one before.
const IN_RECOVERY: u64 = 4;

fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

fn ready(test: &str, ways: &[Way]) -> Option<Programs> {
    let programs = ["mkfs.ext4", "e2fsck", "mount", "umount"];
    let can = ways.iter().all(|way| way.is_possible(test)) && needs_programs(test, &programs);
    if can { Programs::needed(test) } else { None }
}

/// A folder that the database's user may pass through.
fn rig(name: &str) -> Rig {
    let rig = Rig::new(name);
    std::fs::set_permissions(rig.path(""), Permissions::from_mode(0o711)).unwrap();
    rig
}

/// A disk with a database cluster and its tables, made once and shared.
fn prepared(programs: &Programs) -> &'static MemDisk {
    static PREPARED: OnceLock<MemDisk> = OnceLock::new();
    PREPARED.get_or_init(|| {
        let rig = rig("postgres-made");
        let (image, point) = (rig.path("image"), rig.path("mnt"));
        rig.format_cheap(&image, IMAGE_SIZE, &["--sector-size", "4096"]);
        let open = Way::Fuse.open(&rig, &image, NAME);
        let mut mkfs = Command::new("mkfs.ext4");
        succeed(mkfs.args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&open.device));
        mount(&open.device, &point).unwrap();
        let mut cluster = Cluster::new(programs, &point.join("data"), &rig.path("beside"));
        cluster.make();
        // Until here nothing has to last: the file system is synced when it is unmounted.
        cluster.start(&["fsync=off", "wal_level=minimal", "max_wal_senders=0"]);
        let mut connection = cluster.wait_until_ready().unwrap();
        Ledger::make_tables(&mut connection).unwrap();
        succeed(cluster.pgbench().args(["-i", "-q"]));
        drop(connection);
        cluster.stop();
        unmount(&point);
        open.close(&rig);
        in_memory(&image)
    })
}

/// Mounts ext4, which replays its journal.
fn mount(device: &Path, point: &Path) -> Result<(), String> {
    std::fs::create_dir_all(point).unwrap();
    let mounted = run(Command::new("mount").args(["-t", "ext4", "-o", "nosuid,nodev"]).arg(device).arg(point));
    if mounted.status.success() { Ok(()) } else { Err(format!("ext4 does not mount: {mounted:?}")) }
}

/// Unmounts it; who looks through the mounts of the machine may keep it busy for a moment.
fn unmount(point: &Path) {
    eventually("umount", || run(Command::new("umount").arg(point)).status.success());
}

/// What ends a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The power goes.
    Cut,
    /// The power goes while the database recovers from the cut before.
    CutInRecovery,
    /// The server of the volume is killed.
    Kill,
}

#[derive(Debug, Default)]
struct Counts {
    cuts: u64,
    cuts_in_recovery: u64,
    kills: u64,
    checks: u64,
    history: u64,
}

/// One way, one database, from disk to disk.
struct Campaign {
    rig: Rig,
    way: Way,
    programs: Programs,
    seed: u64,
    random: SplitMix64,
    ledger: Arc<Ledger>,
    /// What must be there.
    committed: Committed,
    settings: Vec<&'static str>,
    counts: Counts,
}

/// The layers from the image to the database's folder.
struct Stack {
    below: Served,
    open: OpenDisk,
    point: PathBuf,
}

impl Campaign {
    fn new(way: Way, programs: &Programs, seed: u64) -> Campaign {
        let rig = rig("postgres");
        std::fs::create_dir(rig.path("beside")).unwrap();
        let ledger = Arc::new(Ledger::new(seed, WRITERS, &rig.path("ledger")));
        let mut random = SplitMix64::new(seed);
        let method = random.below(3);
        let settings = vec![match method {
            0 => "wal_sync_method=fdatasync",
            1 => "wal_sync_method=fsync",
            _ => "wal_sync_method=open_datasync",
        }];
        let (programs, committed, counts) = (programs.clone(), Committed::default(), Counts::default());
        Campaign { rig, way, programs, seed, random, ledger, committed, settings, counts }
    }

    fn stand_up(&self, disk: &Arc<PowerCutDisk>) -> Result<Stack, String> {
        let below = Served::new(Arc::clone(disk), &self.rig.path("below"));
        let open = self.way.open(&self.rig, &below.file, NAME);
        let point = self.rig.path("mnt");
        match mount(&open.device, &point) {
            Ok(()) => Ok(Stack { below, open, point }),
            Err(error) => {
                open.close(&self.rig);
                below.end();
                Err(error)
            }
        }
    }

    /// After a cut the old disk still stands: it is taken down in order, and its file system must be whole.
    fn take_down(&self, stack: Stack) {
        unmount(&stack.point);
        succeed(Command::new("e2fsck").arg("-fn").arg(&stack.open.device));
        stack.open.close(&self.rig);
        stack.below.end();
    }

    /// Opens the disk, lets everything recover, compares, works on it until `end`; what the medium holds then.
    fn round(&mut self, disk: Arc<PowerCutDisk>, end: End) -> Result<Arc<PowerCutDisk>, Vec<String>> {
        let stack = self.stand_up(&disk).map_err(|error| vec![error])?;
        let mut cluster = Cluster::new(&self.programs, &stack.point.join("data"), &self.rig.path("beside"));
        cluster.start(&self.settings);
        if end == End::CutInRecovery {
            std::thread::sleep(Duration::from_micros(self.random.below(150_000)));
            let survivor = disk.cut(self.random.next_u64());
            cluster.stop_at_once();
            self.take_down(stack);
            self.counts.cuts_in_recovery += 1;
            return Ok(Arc::new(PowerCutDisk::from_disk(&survivor)));
        }
        let findings = self.recover_and_check(&mut cluster);
        if !findings.is_empty() {
            cluster.stop_at_once();
            self.take_down(stack);
            return Err(findings);
        }
        let history = self.counts.history;
        let load = Load::start(&cluster, &self.ledger, &self.rig.path("beside"), history).map_err(said)?;
        let before = self.ledger.commits();
        eventually("a commit", || self.ledger.commits() > before || load.has_broken_off());
        std::thread::sleep(Duration::from_millis(LOAD_MS.0 + self.random.below(LOAD_MS.1)));
        if end == End::Kill {
            self.kill(&stack, load);
            cluster.stop_at_once();
            self.tear_down(stack);
            return Ok(disk);
        }
        // The ledger first: all it lists had been committed when the power went.
        self.committed = load.committed();
        let survivor = disk.cut(self.random.next_u64());
        let met = load.end();
        assert!(met.is_empty(), "the disk was well, yet the writers met {met:?}\n{}", cluster.end_of_log());
        cluster.stop_at_once();
        self.take_down(stack);
        self.counts.cuts += 1;
        Ok(Arc::new(PowerCutDisk::from_disk(&survivor)))
    }

    fn recover_and_check(&mut self, cluster: &mut Cluster) -> Vec<String> {
        let mut connection = match cluster.wait_until_ready() {
            Ok(connection) => connection,
            Err(error) => return vec![error],
        };
        let (history, findings) = check(&mut connection, &self.ledger, &self.committed);
        self.counts.history = history;
        self.counts.checks += 1;
        // What was found is on the platter: it must be there from now on.
        self.committed = Committed { acknowledged: self.ledger.acknowledged(), history };
        findings
    }

    /// Kills the server of the volume; every writer must be told.
    fn kill(&mut self, stack: &Stack, load: Load) {
        stack.open.kill_server(&self.rig);
        eventually("an error for every writer", || load.has_broken_off());
        self.committed = load.committed();
        let met = load.end();
        assert_eq!(met.len(), WRITERS, "somebody wrote on a disk without a server: {met:?}");
        self.counts.kills += 1;
    }

    fn tear_down(&self, stack: Stack) {
        unmount(&stack.point);
        let closed = stack.open.tear_down(&self.rig);
        assert!(matches!(closed.status.code(), Some(0 | 4)), "{closed:?}");
        assert!(!self.rig.run_dir().join(NAME).exists(), "close left the run directory");
        stack.below.end();
    }

    /// Opens the disk a last time and compares.
    fn last_look(&mut self, disk: &Arc<PowerCutDisk>) -> Result<(), Vec<String>> {
        let stack = self.stand_up(disk).map_err(|error| vec![error])?;
        let mut cluster = Cluster::new(&self.programs, &stack.point.join("data"), &self.rig.path("beside"));
        cluster.start(&self.settings);
        let findings = self.recover_and_check(&mut cluster);
        if findings.is_empty() {
            cluster.stop();
        }
        drop(cluster);
        self.take_down(stack);
        if findings.is_empty() { Ok(()) } else { Err(findings) }
    }

    /// `cuts` and `kills` in random order; the cuts of a recovery come on top.
    fn ends(&mut self, cuts: u64, kills: u64) -> Vec<End> {
        let (mut cuts, mut kills, mut ends) = (cuts, kills, Vec::new());
        while cuts + kills > 0 {
            if self.random.below(cuts + kills) < cuts {
                cuts -= 1;
                ends.push(End::Cut);
                if self.random.below(IN_RECOVERY) == 0 {
                    ends.push(End::CutInRecovery);
                }
            } else {
                kills -= 1;
                ends.push(End::Kill);
            }
        }
        ends
    }

    /// Keeps what there is to look at and fails.
    fn fail(mut self, disk: &PowerCutDisk, what: &str, findings: &[String]) -> ! {
        let (seed, way) = (self.seed, self.way);
        save(&disk.live(), &self.rig.path("platter")).unwrap();
        let folder = self.rig.keep();
        panic!("LUKS_SEED={seed}, {way:?}, {what}, {:?}: {findings:#?}\nkept: {}", self.counts, folder.display());
    }
}

fn said(error: impl std::fmt::Display) -> Vec<String> {
    vec![error.to_string()]
}

fn loses_nothing(test: &str, way: Way) {
    let Some(programs) = ready(test, &[way]) else { return };
    let seed = random::seed(test);
    let (cuts, kills) = (number_from("LUKS_POSTGRES_CUTS", CUTS), number_from("LUKS_POSTGRES_KILLS", KILLS));
    let mut disk = Arc::new(PowerCutDisk::from_disk(prepared(&programs)));
    let mut campaign = Campaign::new(way, &programs, seed);
    for end in campaign.ends(cuts, kills) {
        match campaign.round(Arc::clone(&disk), end) {
            Ok(next) => disk = next,
            Err(findings) => campaign.fail(&disk, &format!("before a {end:?}"), &findings),
        }
    }
    if let Err(findings) = campaign.last_look(&disk) {
        campaign.fail(&disk, "at the end", &findings);
    }
    let (counts, commits) = (&campaign.counts, campaign.ledger.commits());
    assert_eq!((counts.cuts, counts.kills), (cuts, kills));
    // pgbench may come too late for a single round on a slow machine.
    let light = commits < cuts + kills || counts.history == 0 && cuts + kills > 10;
    assert!(!light, "the load was too light: {commits}, {counts:?}");
    eprintln!(
        "{way:?}, {}: {} cuts, {} more in recovery, {} kills, {} checks; {commits} commits in the ledger and {} of pgbench, all there",
        campaign.settings[0], counts.cuts, counts.cuts_in_recovery, counts.kills, counts.checks, counts.history
    );
}

#[test]
fn a_database_over_fuse_loses_nothing_that_it_committed() {
    loses_nothing("postgres: a_database_over_fuse_loses_nothing_that_it_committed", Way::Fuse);
}

#[test]
fn a_database_over_nbd_loses_nothing_that_it_committed() {
    loses_nothing("postgres: a_database_over_nbd_loses_nothing_that_it_committed", Way::Nbd);
}

/// Cuts, each of a fresh disk, until one is found out; what was found.
fn caught(test: &str, lying: bool, settings: &[&'static str]) -> Option<Vec<String>> {
    let programs = ready(test, &[Way::Fuse])?;
    let mut random = SplitMix64::new(random::seed(test));
    for cut in 1..=CUTS_OF_A_CONTROL {
        let disk = Arc::new(PowerCutDisk::from_disk(prepared(&programs)));
        disk.lie_about_flush(lying);
        let mut campaign = Campaign::new(Way::Fuse, &programs, random.next_u64());
        campaign.settings.extend(settings);
        let survivor = campaign.round(disk, End::Cut).unwrap();
        if let Err(findings) = campaign.last_look(&survivor) {
            eprintln!("caught at cut {cut}: {findings:#?}");
            return Some(findings);
        }
    }
    Some(Vec::new())
}

#[test]
fn a_disk_that_lies_about_flushes_is_caught() {
    let Some(findings) = caught("postgres: a_disk_that_lies_about_flushes_is_caught", true, &[]) else { return };
    assert!(!findings.is_empty(), "with every flush stubbed out nothing was lost: the check checks nothing");
}

#[test]
fn commits_that_do_not_wait_for_the_disk_are_caught() {
    let settings = ["synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=1GB"];
    let test = "postgres: commits_that_do_not_wait_for_the_disk_are_caught";
    let Some(findings) = caught(test, false, &settings) else { return };
    // The database itself is well: only who remembers what was committed can tell.
    assert!(!findings.is_empty() && findings.iter().all(|finding| finding.contains("lost: ")), "{findings:#?}");
}
