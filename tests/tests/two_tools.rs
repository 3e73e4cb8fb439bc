//! `luksctl` and the real cryptsetup add and kill keyslots of one image at the same time, at random, through the file and
//! through a loop device on it. Each tries again when the other was faster, as a user would. After every round both tools
//! hold the image against a ledger: each keyslot that was added opens, each that was killed is gone.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use block::{BlockIo as _, Bytes, Direct, FileDisk, OpenMode};
use promises::Rig;
use promises::random::Random;
use promises::rig::{run, succeed};
use promises::skip::{needs_programs, needs_root};

/// Keyslots that one worker has at most: both together always fit.
const OWN_MAX: usize = 3;
/// How often a command is tried while the other tool is faster. Each time the other has succeeded, which ends.
const TRIES: u32 = 100;
const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Luksctl,
    Cryptsetup,
}

/// One image, by both ways to it.
struct Image<'a> {
    rig: &'a Rig,
    file: PathBuf,
    device: PathBuf,
}

impl<'a> Image<'a> {
    fn new(rig: &'a Rig) -> Image<'a> {
        let file = rig.path("image");
        rig.format_cheap(&file, "5M", &["--offset", "4096", "--luks2-keyslots-size", "1M", "--key-size", "256"]);
        let shown = succeed(Command::new("losetup").args(["--find", "--show"]).arg(&file));
        let device = PathBuf::from(String::from_utf8(shown.stdout).unwrap().trim());
        Image { rig, file, device }
    }

    /// A command that is ended if it hangs.
    fn command(&self, tool: Tool) -> Command {
        let mut command = Command::new("timeout");
        command.arg("120");
        match tool {
            Tool::Luksctl => command.arg(promises::bins::luksctl()).env("LUKSCTL_RUN_DIR", self.rig.run_dir()),
            Tool::Cryptsetup => command.arg("cryptsetup"),
        };
        command.stdin(std::process::Stdio::null());
        command
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        let detached = run(Command::new("losetup").arg("--detach").arg(&self.device));
        assert!(detached.status.success() || thread::panicking(), "{detached:?}");
    }
}

/// One of the two processes' side: its tool, and the keyslots that it added.
struct Worker<'a> {
    image: &'a Image<'a>,
    tool: Tool,
    random: Random,
    own: BTreeMap<u32, PathBuf>,
    killed: Vec<PathBuf>,
    made: u32,
    retries: u32,
}

impl Worker<'_> {
    fn work(&mut self, operations: u32) {
        for _ in 0..operations {
            if self.own.is_empty() || (self.own.len() < OWN_MAX && self.random.flip()) {
                self.add();
            } else {
                self.kill();
            }
        }
    }

    fn add(&mut self) {
        self.made += 1;
        let key = self.image.rig.path(&format!("{:?}-{}", self.tool, self.made));
        std::fs::write(&key, format!("passphrase {:?} {}", self.tool, self.made)).unwrap();
        let output = self.until_done(|image, tool, path| {
            let mut command = image.command(tool);
            match tool {
                Tool::Luksctl => command.args(["keyslot", "add", "-q", "--json"]),
                Tool::Cryptsetup => command.args(["-q", "-v", "luksAddKey"]),
            };
            command.args(CHEAP).arg("--key-file").arg(image.rig.key()).arg(path).arg(&key);
            command
        });
        let id = added(self.tool, &output);
        assert!(self.own.insert(id, key).is_none(), "{:?} got keyslot {id} twice", self.tool);
    }

    fn kill(&mut self) {
        let ids: Vec<u32> = self.own.keys().copied().collect();
        let id = self.random.pick(&ids);
        let key = self.own.remove(&id).unwrap();
        let by_number = self.random.flip();
        self.until_done(|image, tool, path| {
            let mut command = image.command(tool);
            command.args(match (tool, by_number) {
                (Tool::Luksctl, true) => &["keyslot", "kill", "-q"][..],
                (Tool::Luksctl, false) => &["keyslot", "remove", "-q"],
                (Tool::Cryptsetup, true) => &["-q", "luksKillSlot"],
                (Tool::Cryptsetup, false) => &["-q", "luksRemoveKey"],
            });
            if by_number {
                command.arg("--key-file").arg(image.rig.key()).arg(path).arg(id.to_string());
            } else {
                command.arg(path).arg(&key);
            }
            command
        });
        self.killed.push(key);
    }

    /// Runs a command, through the file or the loop device, until the other tool is not faster.
    fn until_done(&mut self, command: impl Fn(&Image<'_>, Tool, &Path) -> Command) -> Output {
        let image = self.image;
        for _ in 0..TRIES {
            let path = if self.random.flip() { &image.file } else { &image.device };
            let mut command = command(image, self.tool, path);
            let output = run(&mut command);
            if output.status.success() {
                return output;
            }
            assert!(was_beaten(self.tool, &output), "{command:?}: {output:?}");
            self.retries += 1;
        }
        panic!("{:?} was beaten {TRIES} times", self.tool);
    }
}

/// The number of the keyslot that was added.
fn added(tool: Tool, output: &Output) -> u32 {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    match tool {
        Tool::Luksctl => {
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            u32::try_from(json["keyslot"].as_u64().unwrap()).unwrap()
        }
        Tool::Cryptsetup => {
            let line = text.lines().find(|line| line.starts_with("Key slot ") && line.ends_with("created.")).unwrap();
            line.split(' ').nth(2).unwrap().parse().unwrap()
        }
    }
}

/// Whether a command failed because the other tool wrote in between.
fn was_beaten(tool: Tool, output: &Output) -> bool {
    let words = String::from_utf8_lossy(&output.stderr);
    match tool {
        Tool::Luksctl => words.contains("changed since it was read") || output.status.code() == Some(5),
        Tool::Cryptsetup => words.contains("concurrent") || words.contains("not updated"),
    }
}

/// Both tools agree with the ledger, through `path`.
fn check(image: &Image<'_>, workers: &[Worker<'_>], path: &Path) {
    let mut ledger: BTreeMap<u32, PathBuf> = BTreeMap::from([(0, image.rig.key())]);
    for worker in workers {
        ledger.extend(worker.own.iter().map(|(id, key)| (*id, key.clone())));
    }
    let list = succeed(image.command(Tool::Luksctl).args(["dump", "--json"]).arg(path));
    let dump: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert!(list.stderr.is_empty(), "{}", String::from_utf8_lossy(&list.stderr));
    let ids: Vec<u32> = listed(&dump);
    assert_eq!(ids, ledger.keys().copied().collect::<Vec<_>>(), "the keyslots of the header and of the ledger");
    let gone = workers.iter().filter_map(|worker| worker.killed.last());
    for tool in [Tool::Luksctl, Tool::Cryptsetup] {
        for (id, key) in &ledger {
            let opened = run(test_of(image, tool).args(["-S", &id.to_string()]).arg("-d").arg(key).arg(path));
            assert!(opened.status.success(), "{tool:?}, keyslot {id}: {opened:?}");
        }
        for key in gone.clone() {
            let opened = run(test_of(image, tool).arg("-d").arg(key).arg(path));
            assert_eq!(opened.status.code(), Some(2), "{tool:?}, a killed keyslot: {opened:?}");
        }
    }
}

fn test_of(image: &Image<'_>, tool: Tool) -> Command {
    let mut command = image.command(tool);
    command.args(match tool {
        Tool::Luksctl => &["keyslot", "test"][..],
        Tool::Cryptsetup => &["open", "--test-passphrase"],
    });
    command
}

fn listed(dump: &serde_json::Value) -> Vec<u32> {
    let slots = dump["keyslots"].as_array().unwrap();
    let mut ids: Vec<u32> = slots.iter().map(|slot| u32::try_from(slot["id"].as_u64().unwrap()).unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// Why a block device that others use is read past its page cache: the control for the test below.
#[test]
fn a_loop_device_keeps_its_pages_while_somebody_holds_it() {
    let name = "a_loop_device_keeps_its_pages_while_somebody_holds_it";
    if !needs_root(name) || !needs_programs(name, &["cryptsetup", "losetup"]) {
        return;
    }
    let rig = Rig::new("pages");
    let image = Image::new(&rig);
    let first = |path: &Path, direct| {
        let disk = FileDisk::open(path, &OpenMode { read_only: true, direct, exclusive: false }).unwrap();
        let mut block = [0; 4096];
        disk.read_at(Bytes(1 << 20), &mut block).unwrap();
        block[0]
    };
    let write = |byte: u8| {
        let mode = OpenMode { read_only: false, direct: Direct::Never, exclusive: false };
        let file = FileDisk::open(&image.file, &mode).unwrap();
        file.write_at(Bytes(1 << 20), &[byte; 4096], false).unwrap();
        file.flush().unwrap();
    };
    write(1);
    let holder = std::fs::File::open(&image.device).unwrap();
    assert_eq!(first(&image.device, Direct::Never), 1);
    write(2);
    assert_eq!(first(&image.device, Direct::IfPossible), 2, "past the page cache");
    // What the buffered read shows is the kernel's matter, and not promised.
    eprintln!("held, written through the file, read through the device: {}", first(&image.device, Direct::Never));
    drop(holder);
    write(3);
    assert_eq!(first(&image.device, Direct::IfPossible), 3);
}

#[test]
fn both_tools_change_keyslots_of_one_image_at_once() {
    let name = "both_tools_change_keyslots_of_one_image_at_once";
    if !needs_root(name) || !needs_programs(name, &["cryptsetup", "losetup", "timeout"]) {
        return;
    }
    let (rounds, each) = if promises::crash::whole() { (25, 20) } else { (4, 8) };
    let rig = Rig::new("two");
    let image = Image::new(&rig);
    let worker = |tool| Worker {
        image: &image,
        tool,
        random: Random::seeded(&format!("{tool:?}")),
        own: BTreeMap::new(),
        killed: Vec::new(),
        made: 0,
        retries: 0,
    };
    let mut workers = [worker(Tool::Luksctl), worker(Tool::Cryptsetup)];
    for round in 0..rounds {
        thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(|| worker.work(each));
            }
        });
        check(&image, &workers, if round % 2 == 0 { &image.file } else { &image.device });
    }
    let [ours, theirs] = workers.map(|worker| worker.retries);
    let all = rounds * each * 2;
    eprintln!("{all} operations in {rounds} rounds; tried again: luksctl {ours} times, cryptsetup {theirs} times");
}
