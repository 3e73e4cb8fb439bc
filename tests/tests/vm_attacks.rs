//! Promise: whoever races `open`, exchanges the image under it, or has put something where its names lead, gets neither a
//! second device on one image, nor a device on another file, nor anything left behind; and who lacks the kernel's parts is
//! told which.
//!
//! Runs in the VM lane.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use promises::backend::{Backend, SMALL_HEADER, SMALL_HEADER_BYTES, format_small};
use promises::crypt_volume::{attempt, starts_clean};
use promises::rig::{refused, run, run_with_input, succeed, words};
use promises::{Rig, kernel_leftovers, vm};
use rustix::process::{Pid, Signal, kill_process};

const IMAGE_BYTES: u64 = SMALL_HEADER_BYTES + (4 << 20);
const WRONG: i32 = 1;
const NO_SUCH: i32 = 4;
const BUSY: i32 = 5;
const RACERS: usize = 4;
const DEADLINE: Duration = Duration::from_secs(120);

fn image(rig: &Rig, called: &str) -> PathBuf {
    let image = rig.path(called);
    format_small(rig, &image, IMAGE_BYTES, false, &[]);
    image
}

fn started(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Several at once, of which one may win; the names that are open then.
fn race(rig: &Rig, commands: Vec<(String, Command)>, what: &str) -> String {
    let racers: Vec<(String, Child)> =
        commands.into_iter().map(|(name, mut command)| (name, started(&mut command))).collect();
    let mut winners = Vec::new();
    for (name, racer) in racers {
        let output = racer.wait_with_output().unwrap();
        if output.status.success() {
            winners.push(name);
        } else {
            assert_eq!(output.status.code(), Some(BUSY), "{what}: {output:?}");
            assert!(words(&output).contains("hint: "), "{what}: {output:?}");
        }
    }
    assert_eq!(winners.len(), 1, "{what}: {winners:?}");
    let loops = promises::leftovers::loop_devices();
    assert_eq!(loops.len(), 1, "{what}: {loops:?} on {}", rig.path("").display());
    winners.remove(0)
}

#[test]
fn vm_attacks_one_of_many_opens_wins() {
    if !starts_clean("vm_attacks_one_of_many_opens_wins") {
        return;
    }
    let rig = Rig::new("race");
    let images: Vec<PathBuf> = (0..RACERS).map(|number| image(&rig, &format!("image-{number}"))).collect();
    for backend in Backend::OURS {
        let command = |image: &Path, name: &str, run_dir: &Path| {
            let mut command = backend.open_command(&rig, image, name, &[]);
            command.env("LUKSCTL_RUN_DIR", run_dir);
            command
        };
        let own = rig.run_dir();
        let one_name = images.iter().map(|image| ("same".to_owned(), command(image, "same", &own))).collect();
        let winner = race(&rig, one_name, &format!("{backend:?}: one name for several images"));
        backend.close(&rig, &winner);
        kernel_leftovers::demand_none(&rig, &[], "one name");

        let names: Vec<String> = (0..RACERS).map(|number| format!("name-{number}")).collect();
        let one_image = names.iter().map(|name| (name.clone(), command(&images[0], name, &own))).collect();
        let winner = race(&rig, one_image, &format!("{backend:?}: one image under several names"));
        backend.close(&rig, &winner);
        kernel_leftovers::demand_none(&rig, &[], "one image");

        // Nothing but the image itself is shared: no registry sees all of them.
        let apart = names.iter().map(|name| {
            let folder = rig.path(&format!("run-of-{name}"));
            (name.clone(), command(&images[0], name, &folder))
        });
        let winner = race(&rig, apart.collect(), &format!("{backend:?}: one image, several run directories"));
        let folder = rig.path(&format!("run-of-{winner}"));
        succeed(rig.luksctl(&["close", &winner]).env("LUKSCTL_RUN_DIR", folder));
        kernel_leftovers::demand_none(&rig, &[], "several run directories");
    }
}

fn has_open(process: u32, file: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|to| to == file))
}

/// Waits until the process has had the image open for a while: it derives a key, its header is read.
fn wait_until_unlocking(opening: &mut Child, image: &Path) {
    let until = Instant::now() + DEADLINE;
    let mut looks = 0;
    while looks < 10 {
        assert!(opening.try_wait().unwrap().is_none() && Instant::now() < until, "it never unlocked");
        sleep(Duration::from_millis(20));
        looks = if has_open(opening.id(), image) { looks + 1 } else { 0 };
    }
}

#[test]
fn vm_attacks_an_image_that_is_exchanged_while_it_is_unlocked() {
    let test = "vm_attacks_an_image_that_is_exchanged_while_it_is_unlocked";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let rig = Rig::new("exchanged");
    let (image, precious) = (rig.path("image"), rig.path("precious"));
    fs::write(&precious, vec![0x5a; usize::try_from(IMAGE_BYTES).unwrap()]).unwrap();
    let mut format = rig.luksctl(&["format", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "200000"]);
    format.args(SMALL_HEADER).args(["--size", &IMAGE_BYTES.to_string(), "--key-file"]).arg(rig.key()).arg(&image);
    succeed(&mut format);

    let mut opening = started(&mut Backend::Dm.open_command(&rig, &image, "volume", &[]));
    wait_until_unlocking(&mut opening, &image);
    let process = Pid::from_raw(i32::try_from(opening.id()).unwrap()).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    assert!(!Path::new("/dev/mapper/volume").exists(), "it was open already");
    fs::rename(&image, rig.path("aside")).unwrap();
    std::os::unix::fs::symlink(&precious, &image).unwrap();
    kill_process(process, Signal::CONT).unwrap();

    refused(&opening.wait_with_output().unwrap(), NO_SUCH, &["somebody exchanged it"]);
    kernel_leftovers::demand_none(&rig, &[], "an exchanged image");
    assert!(fs::read(&precious).unwrap().iter().all(|byte| *byte == 0x5a), "the other file was written to");
    fs::remove_file(&image).unwrap();
    fs::rename(rig.path("aside"), &image).unwrap();
    let _ = Backend::Dm.open(&rig, &image, "volume");
    Backend::Dm.close(&rig, "volume");
    kernel_leftovers::demand_none(&rig, &[], "the image itself");
}

#[test]
fn vm_attacks_names_that_lead_elsewhere() {
    if !starts_clean("vm_attacks_names_that_lead_elsewhere") {
        return;
    }
    let rig = Rig::new("names");
    let image = image(&rig, "image");
    let open = |name: &str| run(&mut Backend::Dm.open_command(&rig, &image, name, &[]));
    for name in ["", "..", "../up", "a/b", "a b", "a\nb", "ä", "a\\x2fb", ".lock", "\u{1b}[2J"] {
        let output = open(name);
        refused(&output, WRONG, &["cannot name a volume", "hint: "]);
        assert!(!words(&output).contains('\u{1b}'), "{output:?}");
        let closed = run(&mut rig.luksctl(&["close", "--", name]));
        assert!(matches!(closed.status.code(), Some(WRONG | NO_SUCH)), "{name:?}: {closed:?}");
    }
    // A name that only the kernel keeps for itself.
    refused(&open("control"), WRONG, &["reserved in /dev/mapper"]);
    kernel_leftovers::demand_none(&rig, &[], "bad names");
    assert!(Path::new("/dev/mapper/control").exists());

    // What lies at the path of the node is no node: it stays, and nothing is opened beside it. Where udevd runs the folder
    // is udevd's, which puts its link there.
    if !vm::has_udev() {
        let node = Path::new("/dev/mapper/taken");
        fs::write(node, "precious").unwrap();
        refused(&open("taken"), WRONG, &["/dev/mapper/taken"]);
        kernel_leftovers::demand_none(&rig, &["taken"], "a file at the node's path");
        assert_eq!(fs::read_to_string(node).unwrap(), "precious");
        fs::remove_file(node).unwrap();
    }

    // A run directory that is a link, or that others may write to.
    let (real, link) = (rig.path("real"), rig.path("link"));
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let mut opening = Backend::Dm.open_command(&rig, &image, "volume", &[]);
    refused(&run(opening.env("LUKSCTL_RUN_DIR", &link)), WRONG, &["it is no directory", "hint: "]);
    succeed(Command::new("chmod").arg("777").arg(&real));
    refused(&run(opening.env("LUKSCTL_RUN_DIR", &real)), WRONG, &["others may write to it", "hint: "]);
    assert_eq!(fs::read_dir(&real).unwrap().count(), 0);
    kernel_leftovers::demand_none(&rig, &[], "a bad run directory");
}

/// What a person sees who has not got all of it.
#[test]
fn vm_attacks_what_the_kernel_lacks_is_named() {
    if !starts_clean("vm_attacks_what_the_kernel_lacks_is_named") {
        return;
    }
    let rig = Rig::new("lacks");
    let image = image(&rig, "image");
    // In a mount namespace of its own /dev/mapper is empty.
    let without_mapper = |backend: &str| {
        let script = "mount -t tmpfs none /dev/mapper && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", script, "bash"]).arg(promises::bins::luksctl());
        command.args(["open", "--backend", backend, "--key-file"]).arg(rig.key()).arg(&image).arg("volume");
        run(command.env("LUKSCTL_RUN_DIR", rig.run_dir()).stdin(Stdio::null()))
    };
    refused(&without_mapper("dm"), WRONG, &["dm-crypt cannot be used", "device-mapper", "luksctl doctor"]);
    kernel_leftovers::demand_none(&rig, &[], "no device-mapper");
    let served = without_mapper("auto");
    assert!(served.status.success(), "{served:?}");
    assert!(words(&served).contains("dm-crypt not possible") && words(&served).contains("device-mapper"), "{served:?}");
    Backend::Fuse.close(&rig, "volume");
    kernel_leftovers::demand_none(&rig, &[], "the way out");

    // No crypt target: its module is not to be found.
    let found = succeed(Command::new("modinfo").args(["-n", "dm_crypt"]));
    let module = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    let aside = module.with_extension("aside");
    succeed(Command::new("rmmod").arg("dm_crypt"));
    fs::rename(&module, &aside).unwrap();
    let output = run(&mut Backend::Dm.open_command(&rig, &image, "volume", &[]));
    fs::rename(&aside, &module).unwrap();
    refused(&output, WRONG, &["dm-crypt cannot be used", "crypt", "hint: "]);
    kernel_leftovers::demand_none(&rig, &[], "no crypt target");
    assert!(attempt("modprobe", &["dm_crypt"]).status.success());
    let _ = Backend::Dm.open(&rig, &image, "volume");
    Backend::Dm.close(&rig, "volume");

    // No right: another user may not read the image, or may, and is told what the kernel's path wants and what else there is.
    let as_other = |options: &[&str]| {
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "65534", "--clear-groups", "--"]).arg(promises::bins::luksctl()).arg("open");
        other.args(options).arg(&image).arg("volume").env("LUKSCTL_RUN_DIR", "/tmp/luksctl-65534");
        run_with_input(&mut other, b"no key at all")
    };
    let denied = as_other(&["--backend", "dm"]);
    assert!(!denied.status.success(), "{denied:?}");
    for text in ["Permission denied", "hint: ", "root"] {
        assert!(words(&denied).contains(text), "{text:?} is not in {}", words(&denied));
    }
    succeed(Command::new("chmod").arg("755").arg(rig.path("")));
    succeed(Command::new("chmod").arg("666").arg(&image));
    refused(&as_other(&["--backend", "dm"]), WRONG, &["dm-crypt cannot be used", "needs root", "hint: "]);
    kernel_leftovers::demand_none(&rig, &[], "no right");
}
