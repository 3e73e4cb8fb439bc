//! Promise: an open volume can be suspended, resumed, resized, refreshed and closed by luksctl and by cryptsetup, whoever
//! opened it, and what it holds stays.
//!
//! Runs in the VM lane. What tables and memory say of keys is in `vm_lifecycle_keys.rs`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small, status};
use promises::crypt_volume::{attempt, dmsetup_table, run as output_of, starts_clean, volume_keys};
use promises::random::Random;
use promises::rig::{run, succeed};
use promises::{Rig, kernel_leftovers, vm};

/// A read that has to block is given this long to be wrong.
const GRACE: Duration = Duration::from_secs(2);
/// What has to come back is waited for this long.
const DEADLINE: Duration = Duration::from_secs(120);
const DATA_BYTES: u64 = 16 << 20;
const WRONG_KEY: i32 = 2;
const NAME: &str = "lifecycle";

fn make_image(rig: &Rig, sector_size: &str) -> PathBuf {
    let image = rig.path(&format!("image-{sector_size}"));
    format_small(rig, &image, SMALL_HEADER_BYTES + DATA_BYTES, false, &["--sector-size", sector_size]);
    image
}

fn forget_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Programs that read the device, each at another place; they block for as long as nobody resumes it.
fn readers(device: &Path) -> Vec<Child> {
    let mut children = Vec::new();
    for (place, direct) in [("0", true), ("0", false), ("700", true), ("2000", false)] {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", device.display())).args(["bs=4096", "count=1", &format!("skip={place}")]);
        dd.args(if direct { &["iflag=direct"][..] } else { &[] });
        children.push(dd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    }
    children
}

fn assert_none_ended(children: &mut [Child], when: &str) {
    std::thread::sleep(GRACE);
    for child in children {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{when}: a read ended with {ended:?}");
    }
}

fn assert_all_read(children: Vec<Child>, byte: u8) {
    let until = Instant::now() + DEADLINE;
    for mut child in children {
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "a read does not come back after resume");
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == [byte; 4096], "{:?}", output.status);
    }
}

#[test]
fn vm_lifecycle_suspend_wipes_the_key_and_resume_restores_it() {
    let test = "vm_lifecycle_suspend_wipes_the_key_and_resume_restores_it";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    for backend in Backend::OURS {
        let rig = Rig::new("suspend");
        let image = make_image(&rig, "4096");
        let device = backend.open(&rig, &image, NAME);
        let table = (backend == Backend::Dm).then(|| dmsetup_table(NAME));
        let content = OpenOptions::new().write(true).open(&device).unwrap();
        content.write_all_at(&vec![0xa7; 10 << 20], 0).unwrap();
        content.sync_all().unwrap();
        drop(content);
        forget_caches();

        succeed(&mut rig.luksctl(&["suspend", NAME]));
        assert_eq!(status(&rig, NAME)["state"], "suspended", "{backend:?}");
        if let Some(table) = &table {
            assert_no_key(table);
        }
        assert_eq!(volume_keys(), Vec::<String>::new());
        let mut waiting = readers(&device);
        assert_none_ended(&mut waiting, "suspended");
        let wrong = rig.path("wrong");
        fs::write(&wrong, "not the key of this rig").unwrap();
        let refused = run(rig.luksctl(&["resume", "--key-file"]).arg(&wrong).arg(NAME));
        assert_eq!(refused.status.code(), Some(WRONG_KEY), "{backend:?}: {refused:?}");
        assert_none_ended(&mut waiting, "after a wrong passphrase");
        if let Some(table) = &table {
            assert_no_key(table);
            assert!(!attempt("dmsetup", &["resume", NAME]).status.success(), "the kernel resumes without a key");
        }

        succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg(NAME));
        assert_all_read(waiting, 0xa7);
        assert_eq!(status(&rig, NAME)["state"], "open", "{backend:?}");
        if let Some(table) = &table {
            assert_eq!(&dmsetup_table(NAME), table, "the table is as before");
        }
        backend.close(&rig, NAME);
        kernel_leftovers::demand_none(&rig, &[], "suspend and resume");
    }
}

/// The table of the suspended mapping, compared with the one from before.
fn assert_no_key(before: &str) {
    let shown = dmsetup_table(NAME);
    let (old, new): (Vec<&str>, Vec<&str>) = (before.split(' ').collect(), shown.split(' ').collect());
    assert!(old[4].contains(":logon:"), "{before}");
    assert!(new[4] == "-" || new[4] == "00".repeat(64), "the table of a suspended volume shows a key: {shown}");
    assert_eq!((&old[..4], &old[5..]), (&new[..4], &new[5..]));
    let info = output_of("dmsetup", &["info", "-c", "--noheadings", "-o", "suspended", NAME]);
    assert_eq!(info, "Suspended");
}

/// The options that unlock with the rig's key, for a command of luksctl or cryptsetup.
fn with_key(rig: &Rig, command: &mut Command) {
    succeed(command.arg("--key-file").arg(rig.key()));
}

fn size_bytes(device: &Path) -> u64 {
    output_of("blockdev", &["--getsize64", &device.display().to_string()]).parse().unwrap()
}

/// Writes blocks of the first [`WRITTEN_BYTES`] of the device until told to stop; what must be there then.
fn write_until(device: &Path, stop: &AtomicBool, writes: &AtomicU64, mut random: Random) -> Vec<u8> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_CLOEXEC).open(device).unwrap();
    let mut model = vec![0_u8; WRITTEN_BYTES];
    file.write_all_at(&model, 0).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let len = 4096 * (1 + random.below(16));
        let at = random.below(WRITTEN_BYTES as u64 / 4096 - 16) * 4096;
        let piece: Vec<u8> =
            std::iter::repeat_n(random.number().to_le_bytes(), usize::try_from(len / 8).unwrap()).flatten().collect();
        file.write_all_at(&piece, at).unwrap();
        file.sync_data().unwrap();
        model[usize::try_from(at).unwrap()..][..piece.len()].copy_from_slice(&piece);
        writes.fetch_add(1, Ordering::Relaxed);
    }
    model
}

const WRITTEN_BYTES: usize = 4 << 20;

#[test]
fn vm_lifecycle_resizes_while_somebody_writes() {
    let test = "vm_lifecycle_resizes_while_somebody_writes";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let rig = Rig::new("resize");
    let image = make_image(&rig, "4096");
    let device = Backend::Dm.open(&rig, &image, NAME);
    let mut random = Random::seeded("resize");
    // Past the writer's part, never to be lost, whatever is cut off and given back.
    let upper: Vec<u8> =
        (0..DATA_BYTES - WRITTEN_BYTES as u64).map(|at| (at / 512 * 37 + at).to_le_bytes()[0]).collect();
    let file = OpenOptions::new().write(true).open(&device).unwrap();
    file.write_all_at(&upper, WRITTEN_BYTES as u64).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let cycles = if vm::is_full() { 40 } else { 6 };
    let model = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&device, &stop, &writes, Random::seeded("writer")));
        for cycle in 0..cycles {
            let before = writes.load(Ordering::Relaxed);
            let until = Instant::now() + DEADLINE;
            while writes.load(Ordering::Relaxed) < before + 3 && !writer.is_finished() {
                assert!(Instant::now() < until, "cycle {cycle}: the writer stands still");
                std::thread::sleep(Duration::from_millis(2));
            }
            let wanted = if cycle % 2 == 1 {
                with_key(&rig, &mut rig.luksctl(&["resize", NAME]));
                DATA_BYTES
            } else {
                let wanted = WRITTEN_BYTES as u64 + 4096 * random.below((DATA_BYTES - WRITTEN_BYTES as u64) / 4096);
                with_key(&rig, &mut rig.luksctl(&["resize", "--device-size", &wanted.to_string(), NAME]));
                wanted
            };
            assert_eq!(size_bytes(&device), wanted, "cycle {cycle}");
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    assert_eq!(size_bytes(&device), DATA_BYTES);
    forget_caches();
    let found = fs::read(&device).unwrap();
    assert!(found[..WRITTEN_BYTES] == model, "what was written meanwhile differs");
    assert!(found[WRITTEN_BYTES..] == upper, "what was cut off and given back differs");

    // The image grew: the volume follows when it is told to.
    OpenOptions::new().write(true).open(&image).unwrap().set_len(SMALL_HEADER_BYTES + 2 * DATA_BYTES).unwrap();
    with_key(&rig, &mut rig.luksctl(&["resize", NAME]));
    assert_eq!(size_bytes(&device), 2 * DATA_BYTES);
    Backend::Dm.close(&rig, NAME);
    kernel_leftovers::demand_none(&rig, &[], "resize");
    eprintln!("{} writes during {cycles} resizes", writes.load(Ordering::Relaxed));
}

/// The two tools.
const TOOLS: [Backend; 2] = [Backend::Dm, Backend::Cryptsetup];
/// Flags that both know, as they stand in a table.
const FLAGS: [(&str, &str); 5] = [
    ("--allow-discards", "allow_discards"),
    ("--perf-same_cpu_crypt", "same_cpu_crypt"),
    ("--perf-submit_from_crypt_cpus", "submit_from_crypt_cpus"),
    ("--perf-no_read_workqueue", "no_read_workqueue"),
    ("--perf-no_write_workqueue", "no_write_workqueue"),
];

/// One volume that both tools work on.
struct Shared<'a> {
    rig: &'a Rig,
    image: PathBuf,
    sector_bytes: u64,
    device: PathBuf,
    size_bytes: u64,
    flags: Vec<&'static str>,
}

impl Shared<'_> {
    fn tool(&self, tool: Backend, arguments: &[&str], key: bool) {
        let mut command = match tool {
            Backend::Cryptsetup => {
                let mut command = Command::new("cryptsetup");
                command.arg("-q").args(arguments);
                command
            }
            _ => self.rig.luksctl(arguments),
        };
        if key {
            command.arg("--key-file").arg(self.rig.key());
        }
        succeed(&mut command);
    }

    /// Both tools and the kernel say the same of it.
    fn demand_shown(&self, state: &str) {
        let ours = status(self.rig, NAME);
        assert_eq!(ours["state"], state, "{ours}");
        assert_eq!(ours["size_bytes"], self.size_bytes, "{ours}");
        assert_eq!(ours["cipher"], "aes-xts-plain64", "{ours}");
        assert_eq!(ours["sector_size_bytes"], self.sector_bytes, "{ours}");
        assert_eq!(fs::canonicalize(ours["device"].as_str().unwrap()).unwrap(), self.device, "{ours}");
        let key = if state == "suspended" { "wiped" } else { "keyring" };
        assert_eq!(ours["key_location"], key, "{ours}");
        let theirs = output_of("cryptsetup", &["status", NAME]);
        let line =
            |what: &str| theirs.lines().find_map(|line| line.trim().strip_prefix(what)).unwrap_or_default().trim();
        assert_eq!(line("size:"), format!("{} sectors", self.size_bytes / 512), "{theirs}");
        assert_eq!(theirs.contains("(suspended)"), state == "suspended", "{theirs}");
        assert_eq!(size_bytes(&self.device), self.size_bytes);
        let table = dmsetup_table(NAME);
        for (_, word) in FLAGS {
            let wanted = self.flags.contains(&word);
            assert_eq!(table.split(' ').any(|found| found == word), wanted, "{word}: {table}");
            assert_eq!(ours["flags"].as_array().unwrap().iter().any(|found| found == word), wanted, "{word}: {ours}");
        }
    }

    fn resize(&mut self, tool: Backend, random: &mut Random) {
        if random.flip() {
            self.size_bytes = DATA_BYTES;
            return self.tool(tool, &["resize", NAME], true);
        }
        self.size_bytes = 4096 * (256 + random.below(DATA_BYTES / 4096 - 256));
        // A bare number is sectors to cryptsetup, and refused by luksctl.
        let unit = if tool == Backend::Dm { "s" } else { "" };
        self.tool(tool, &["resize", "--size", &format!("{}{unit}", self.size_bytes / 512), NAME], true);
    }
}

/// Some of the flags: what the command line says, and the table.
fn some_flags(random: &mut Random) -> (Vec<&'static str>, Vec<&'static str>) {
    FLAGS.into_iter().filter(|_| random.below(3) == 0).unzip()
}

fn sequence(rig: &Rig, random: &mut Random, number: u64) {
    let (sector, sector_bytes) = random.pick(&[("512", 512), ("4096", 4096)]);
    let (opener, closer) = (random.pick(&TOOLS), random.pick(&TOOLS));
    let image = rig.path(&format!("image-{sector}"));
    let (options, flags) = some_flags(random);
    eprint!("{number}: {opener:?} opens with sectors of {sector}");
    succeed(&mut opener.open_command(rig, &image, NAME, &options));
    let device = opener.device(rig, NAME);
    let mut shared = Shared { rig, image, sector_bytes, device, size_bytes: DATA_BYTES, flags };
    shared.demand_shown("open");
    let marker = vec![random.number().to_le_bytes()[0]; 64 << 10];
    let file = OpenOptions::new().write(true).open(&shared.device).unwrap();
    file.write_all_at(&marker, 0).and_then(|()| file.sync_all()).unwrap();
    drop(file);
    for _ in 0..1 + random.below(4) {
        let tool = random.pick(&TOOLS);
        match random.below(3) {
            0 => {
                shared.resize(tool, random);
                eprint!(", {tool:?} resizes to {}", shared.size_bytes);
            }
            1 => {
                let next = random.pick(&TOOLS);
                eprint!(", {tool:?} suspends, {next:?} resumes");
                shared.tool(tool, &[if tool == Backend::Dm { "suspend" } else { "luksSuspend" }, NAME], false);
                shared.demand_shown("suspended");
                shared.tool(next, &[if next == Backend::Dm { "resume" } else { "luksResume" }, NAME], true);
            }
            _ => {
                let (options, flags) = some_flags(random);
                eprint!(", {tool:?} refreshes with {options:?}");
                shared.flags = flags;
                if tool == Backend::Cryptsetup {
                    // Its refresh makes a mapping as long as the data again; ours keeps what it was resized to.
                    shared.size_bytes = DATA_BYTES;
                }
                shared.tool(tool, &[&["refresh"], &options[..], &[NAME]].concat(), true);
            }
        }
        shared.demand_shown("open");
    }
    forget_caches();
    let mut found = vec![0; marker.len()];
    File::open(&shared.device).unwrap().read_exact_at(&mut found, 0).unwrap();
    assert!(found == marker, "the content differs");
    eprintln!(", {closer:?} closes");
    succeed(&mut closer.close_command(rig, NAME));
    if opener == Backend::Dm && closer == Backend::Cryptsetup && random.flip() {
        // What luksctl keeps of a volume that somebody else closed goes with the next open, or with a close.
        let closed = run(&mut rig.luksctl(&["close", NAME]));
        assert!(matches!(closed.status.code(), Some(0 | 4)), "{closed:?}");
        kernel_leftovers::demand_none(rig, &[], "this sequence");
    }
    assert!(!kernel_leftovers::has_loop(&shared.image), "the loop device stays");
}

#[test]
fn vm_lifecycle_luksctl_and_cryptsetup_take_turns() {
    let test = "vm_lifecycle_luksctl_and_cryptsetup_take_turns";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let rig = Rig::new("turns");
    let _images = ["512", "4096"].map(|sector| make_image(&rig, sector));
    let mut random = Random::seeded("turns");
    let sequences = if vm::is_full() { 50 } else { 6 };
    for number in 0..sequences {
        sequence(&rig, &mut random, number);
    }
    let closed = run(&mut rig.luksctl(&["close", NAME]));
    assert!(matches!(closed.status.code(), Some(0 | 4)), "{closed:?}");
    kernel_leftovers::demand_none(&rig, &[], "all sequences");
}

/// The flags that the header keeps, which both tools read alike.
fn kept_flags(rig: &Rig, image: &Path) -> Vec<String> {
    let output = succeed(rig.luksctl(&["flags", "--json"]).arg(image)).stdout;
    let shown: serde_json::Value = serde_json::from_slice(&output).unwrap();
    let ours: Vec<String> = serde_json::from_value(shown["flags"].clone()).unwrap();
    let dump = output_of("cryptsetup", &["luksDump", &image.display().to_string()]);
    let line = dump.lines().find_map(|line| line.strip_prefix("Flags:")).unwrap();
    let theirs: Vec<&str> = line.split_whitespace().filter(|word| *word != "(no" && *word != "flags)").collect();
    assert_eq!(ours, theirs, "{dump}");
    ours
}

/// Opens, refreshes if there are flags for that, closes; the flags of the table at each point, then those of the header.
fn flags_after(rig: &Rig, image: &Path, tool: Backend, open: &[&str], refresh: Option<&[&str]>) -> [Vec<String>; 3] {
    let table_flags = || {
        let table = dmsetup_table(NAME);
        let known = |word: &&str| FLAGS.iter().any(|(_, flag)| flag == word);
        let found: Vec<String> = table.split(' ').filter(known).map(str::to_owned).collect();
        assert_eq!(status(rig, NAME)["flags"], serde_json::json!(found), "{table}");
        found
    };
    succeed(&mut tool.open_command(rig, image, NAME, open));
    let opened = table_flags();
    if let Some(flags) = refresh {
        let mut command = if tool == Backend::Dm { rig.luksctl(&["refresh"]) } else { Command::new("cryptsetup") };
        command.args(if tool == Backend::Dm { &[][..] } else { &["refresh"] }).args(flags);
        with_key(rig, command.arg(NAME));
    }
    let refreshed = table_flags();
    tool.close(rig, NAME);
    [opened, refreshed, kept_flags(rig, image)]
}

#[test]
fn vm_lifecycle_flags_that_one_tool_keeps_the_other_applies() {
    let test = "vm_lifecycle_flags_that_one_tool_keeps_the_other_applies";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let rig = Rig::new("kept");
    let [discards, same_cpu, _, no_read, no_write] = FLAGS.map(|(option, _)| option);
    let steps: [(&[&str], Option<&[&str]>); 4] = [
        (&["--persistent", discards, no_read], None),
        (&[same_cpu], None),
        (&["--persistent", same_cpu], None),
        (&[discards], Some(&["--persistent", no_write, discards])),
    ];
    let mut seen = TOOLS.map(|_| Vec::new());
    for (keeper, seen) in TOOLS.into_iter().zip(&mut seen) {
        let image = rig.path(&format!("image-{keeper:?}"));
        format_small(&rig, &image, SMALL_HEADER_BYTES + DATA_BYTES, keeper == Backend::Cryptsetup, &[]);
        assert_eq!(kept_flags(&rig, &image), Vec::<String>::new());
        for (open, refresh) in steps {
            seen.push(flags_after(&rig, &image, keeper, open, refresh));
            if !vm::is_full() && refresh.is_none() && !open.contains(&no_read) {
                continue;
            }
            // Without any word of its own each tool applies what is kept.
            let [ours, theirs] = TOOLS.map(|reader| flags_after(&rig, &image, reader, &[], None));
            assert_eq!(ours, theirs, "{keeper:?} was told {open:?}, {refresh:?}");
            seen.push(ours);
        }
    }
    let [ours, theirs] = seen;
    assert_eq!(ours, theirs);
    // Control: it is these flags, and not none.
    assert_eq!(ours[0][2], ["allow-discards", "no-read-workqueue"]);
    assert_eq!(ours[1][0], ["allow_discards", "no_read_workqueue"]);
    kernel_leftovers::demand_none(&rig, &[], "kept flags");
}
