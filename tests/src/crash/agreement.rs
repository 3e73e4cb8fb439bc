//! The real cryptsetup on sampled platters: it opens the same keyslots with the same passphrases as we do, and sees no
//! header where we see none. It mends a broken copy whenever it opens, so each question gets a copy of its own.
#![allow(clippy::unwrap_used)]

use block::fault::SplitMix64;
use block::{BlockIo, MemDisk};
use std::path::Path;
use std::process::Command;

use super::campaign::{Choice, Recorded};
use super::operation::operations;
use super::sample;
use super::view::{Slot, View};
use crate::rig::run_with_input;

/// What was asked, and where the answers differ.
#[derive(Debug, Default)]
pub struct Agreement {
    /// Platters.
    pub states: u64,
    /// Passphrases tried on keyslots, by both.
    pub questions: u64,
    /// Each with all that reproduces it.
    pub differences: Vec<String>,
}

/// Asks both about `states` platters of cuts, on two threads.
///
/// # Panics
/// If cryptsetup cannot be started or a file not be written.
#[must_use]
pub fn compare(states: u64, seed: u64) -> Agreement {
    let folder = tempfile::Builder::new().prefix("luks-crash-").tempdir_in(memory_folder()).unwrap();
    let worker = |first: u64| {
        let mut asked = Agreement::default();
        let mut recorded: Vec<Recorded> = operations().into_iter().map(|one| Recorded::of(one, seed)).collect();
        let image = folder.path().join(format!("image-{first}"));
        for number in (first..states).step_by(2) {
            let mut random = SplitMix64::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let at = usize::try_from(random.below(recorded.len() as u64)).unwrap();
            ask(&mut recorded[at], &mut random, &image, &mut asked);
        }
        asked
    };
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| worker(1));
        (worker(0), other.join().unwrap())
    });
    let differences = one.differences.into_iter().chain(two.differences).collect();
    Agreement { states: one.states + two.states, questions: one.questions + two.questions, differences }
}

/// Where a file is in memory.
fn memory_folder() -> &'static Path {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm } else { Path::new("/tmp") }
}

fn ask(recorded: &mut Recorded, random: &mut SplitMix64, image: &Path, asked: &mut Agreement) {
    let after = usize::try_from(random.below(recorded.recording.events() as u64 + 1)).unwrap();
    let cut = recorded.recording.cut(after, None);
    let choice = match cut.count() {
        count @ ..=64 => Choice::Number(random.below(count)),
        _ => Choice::Seed(random.next_u64()),
    };
    let platter = choice.of(&cut);
    asked.states += 1;
    let Ok(view) = View::of(&platter) else {
        if run_cryptsetup(&platter, image, &["isLuks"], "") {
            asked.differences.push(recorded.case(after, choice, None, "cryptsetup sees a header"));
        }
        return;
    };
    for slot in &view.slots {
        for passphrase in passphrases(recorded, slot) {
            asked.questions += 1;
            let ours = recorded.opener.open(&platter, &view, slot, passphrase).is_some();
            let id = slot.id.to_string();
            let open = ["open", "--test-passphrase", "--key-file", "-", "-S", &id];
            if run_cryptsetup(&platter, image, &open, passphrase) != ours {
                let differs = if ours { "we open it, cryptsetup does not" } else { "cryptsetup opens it, we do not" };
                let what = format!("keyslot {id}, {passphrase:?}: {differs}");
                asked.differences.push(recorded.case(after, choice, None, &what));
            }
        }
    }
}

/// Those that the keyslot's id has before and after; all for one that only passes.
fn passphrases(recorded: &Recorded, slot: &Slot) -> Vec<&'static str> {
    let all = recorded.operation.before.iter().chain(recorded.operation.after);
    let own: Vec<&'static str> = all.clone().filter(|(id, _)| *id == slot.id).map(|(_, text)| *text).collect();
    let mut found = if own.is_empty() { all.map(|(_, text)| *text).collect() } else { own };
    found.sort_unstable();
    found.dedup();
    found
}

fn run_cryptsetup(platter: &MemDisk, image: &Path, arguments: &[&str], passphrase: &str) -> bool {
    let mut bytes = vec![0; sample::SIZE.to_usize().unwrap()];
    platter.read_at(block::Bytes(0), &mut bytes).unwrap();
    std::fs::write(image, bytes).unwrap();
    let output = run_with_input(Command::new("cryptsetup").args(arguments).arg(image), passphrase.as_bytes());
    output.status.success()
}
