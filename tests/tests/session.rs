//! Open volumes as a process of their own: they outlive the shell, refuse what would lose data, survive hostile clients,
//! and end without a trace.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use block::fault::{FaultDisk, Op};
use block::{BlockErrorKind, Bytes, MemDisk};
use promises::Rig;
use promises::rig::{mount_points, run, succeed};
use promises::skip::{needs_fuse, needs_programs, needs_root};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

fn ready(test: &str) -> bool {
    needs_root(test) && needs_fuse(test)
}

fn status(rig: &Rig, name: &str) -> serde_json::Value {
    let output = rig.luksctl(&["status", "--json", name]).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 10)), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn server(rig: &Rig, name: &str) -> Pid {
    Pid::from_raw(i32::try_from(status(rig, name)["pid"].as_i64().unwrap()).unwrap()).unwrap()
}

fn open(rig: &Rig, image: &Path, name: &str, options: &[&str]) -> Output {
    run(rig.luksctl(&["open", "--backend", "fuse", "--key-file"]).arg(rig.key()).args(options).arg(image).arg(name))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// No entry, no mount, no loop device of this rig.
fn assert_clean(rig: &Rig) {
    let left: Vec<_> =
        std::fs::read_dir(rig.run_dir()).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts: Vec<_> = mount_points().into_iter().filter(|point| point.starts_with(rig.path(""))).collect();
    assert!(mounts.is_empty(), "{mounts:?}");
    for device in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        assert!(!backing.starts_with(rig.path("").to_str().unwrap()), "{} is on {backing}", device.path().display());
    }
}

/// Waits until `done`, ten seconds at most.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_open_volume_outlives_its_shell_and_holds_none_of_its_files() {
    if !ready("session: an_open_volume_outlives_its_shell_and_holds_none_of_its_files") {
        return;
    }
    let rig = Rig::new("shell");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    // Descriptor 9 is a pipe of the shell: whoever reads its other end waits for the last holder.
    let open = rig.luksctl(&["open", "--backend", "fuse", "--key-file"]);
    let script = format!(
        "exec 9>&1; {:?} open --backend fuse --key-file {:?} {:?} shell >/dev/null 2>&1; echo opened; sleep 60",
        open.get_program(),
        rig.key(),
        image
    );
    let mut shell = Command::new("sh")
        .args(["-c", &script])
        .env("LUKSCTL_RUN_DIR", rig.run_dir())
        .current_dir(rig.path(""))
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = shell.stdout.take().unwrap();
    let mut word = [0; 7];
    output.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"opened\n");
    let group = Pid::from_child(&shell);
    for signal in [Signal::HUP, Signal::INT, Signal::KILL] {
        // The shell may be gone after the first.
        let _ = kill_process_group(group, signal);
    }
    shell.wait().unwrap();
    // Ends only when nobody holds the pipe: the server does not.
    output.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(status(&rig, "shell")["state"], "open");
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", server(&rig, "shell").as_raw_nonzero())).unwrap();
    assert_eq!(cwd, Path::new("/"));
    rig.close("shell");
    assert_clean(&rig);
}

#[test]
fn suspended_io_waits_and_goes_on_after_resume() {
    if !ready("session: suspended_io_waits_and_goes_on_after_resume") {
        return;
    }
    let rig = Rig::new("suspend");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let device = rig.open(&image, "held");
    std::fs::write(rig.path("wrong"), b"no key of this volume").unwrap();
    succeed(&mut rig.luksctl(&["suspend", "held"]));
    assert_eq!(status(&rig, "held")["state"], "suspended");
    let again = run(&mut rig.luksctl(&["suspend", "held"]));
    assert!(!again.status.success() && stderr(&again).contains("suspended already"), "{again:?}");

    let read = Command::new("dd")
        .args(["bs=4096", "count=1", "skip=100", "iflag=direct", "status=none"])
        .arg(format!("if={}", device.display()))
        .stdout(Stdio::piped())
        .spawn();
    let mut reader = read.unwrap();
    sleep(Duration::from_millis(500));
    assert!(reader.try_wait().unwrap().is_none(), "a suspended volume was read");

    let wrong = run(rig.luksctl(&["resume", "--key-file"]).arg(rig.path("wrong")).arg("held"));
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(reader.try_wait().unwrap().is_none(), "a wrong passphrase opened the gate");
    succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg("held"));
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout.len() == 4096, "{:?}", output.status);
    assert_eq!(status(&rig, "held")["state"], "open");

    // Closing a suspended volume that nobody holds needs no key.
    succeed(&mut rig.luksctl(&["suspend", "held"]));
    rig.close("held");
    assert_clean(&rig);
}

#[test]
fn a_suspended_volume_that_writes_wait_for_is_not_closed() {
    if !ready("session: a_suspended_volume_that_writes_wait_for_is_not_closed") {
        return;
    }
    let rig = Rig::new("waiting");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let device = rig.open(&image, "held");
    succeed(&mut rig.luksctl(&["suspend", "held"]));
    // The page cache takes the data and the descriptor is on its way out: no list of open files shows a user any more.
    let path = device.clone();
    let writer = std::thread::spawn(move || {
        std::fs::File::options().write(true).open(path).unwrap().write_all(&vec![0x5a; 1 << 20]).unwrap();
    });
    sleep(Duration::from_millis(500));
    assert!(!writer.is_finished(), "the data went somewhere");
    let closed = run(&mut rig.luksctl(&["close", "held"]));
    assert_eq!(closed.status.code(), Some(5), "{closed:?}");
    assert_eq!(status(&rig, "held")["state"], "suspended");
    succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg("held"));
    writer.join().unwrap();
    rig.close("held");
    let device = rig.open(&image, "held");
    let mut written = vec![0; 1 << 20];
    std::fs::File::open(device).unwrap().read_exact(&mut written).unwrap();
    assert!(written.iter().all(|byte| *byte == 0x5a), "a write that was waited for is lost");
    rig.close("held");
    assert_clean(&rig);
}

#[test]
fn a_suspended_volume_is_not_resumed_over_another_header() {
    if !ready("session: a_suspended_volume_is_not_resumed_over_another_header") {
        return;
    }
    let rig = Rig::new("other");
    let (image, header) = (rig.path("image"), rig.path("header"));
    rig.format_cheap(&image, "20M", &["--header", header.to_str().unwrap()]);
    let opened = open(&rig, &image, "other", &["--header", header.to_str().unwrap()]);
    assert!(opened.status.success(), "{opened:?}");
    succeed(&mut rig.luksctl(&["suspend", "other"]));
    // The same passphrase, the same place, but a header with another key: going on would write garbage.
    rig.format_cheap(&rig.path("image2"), "20M", &["--header", rig.path("header2").to_str().unwrap()]);
    std::fs::copy(rig.path("header2"), &header).unwrap();
    let refused = run(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg("other"));
    assert!(!refused.status.success() && stderr(&refused).contains("another volume"), "{refused:?}");
    assert_eq!(status(&rig, "other")["state"], "suspended");
    rig.close("other");
    assert_clean(&rig);
}

#[test]
fn a_volume_in_use_is_not_closed_and_its_user_is_named() {
    let test = "session: a_volume_in_use_is_not_closed_and_its_user_is_named";
    if !(ready(test) && needs_programs(test, &["mkfs.ext4", "mount", "umount"])) {
        return;
    }
    let rig = Rig::new("busy");
    let (image, mount) = (rig.path("image"), rig.path("mnt"));
    std::fs::create_dir(&mount).unwrap();
    rig.format_cheap(&image, "40M", &[]);
    let device = rig.open(&image, "busy");
    succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device));
    succeed(Command::new("mount").arg(&device).arg(&mount));

    let refused = run(&mut rig.luksctl(&["close", "busy"]));
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(stderr(&refused).contains(mount.to_str().unwrap()), "{refused:?}");
    let pid = server(&rig, "busy");
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        kill_process(pid, signal).unwrap();
    }
    sleep(Duration::from_millis(300));
    std::fs::write(mount.join("file"), b"still here").unwrap();
    assert_eq!(status(&rig, "busy")["state"], "open");
    succeed(Command::new("umount").arg(&mount));

    let mut holder = Command::new("sleep").arg("60").stdin(std::fs::File::open(&device).unwrap()).spawn().unwrap();
    eventually("the exec of sleep", || {
        std::fs::read_to_string(format!("/proc/{}/comm", holder.id())).unwrap().trim() == "sleep"
    });
    let refused = run(&mut rig.luksctl(&["close", "busy"]));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(stderr(&refused).contains(&format!("sleep (process {})", holder.id())), "{refused:?}");

    // Unused, it obeys SIGTERM, and ends as close would.
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the end of the server", || !rig.run_dir().join("busy").exists());
    assert_clean(&rig);
    let device = rig.open(&image, "busy");
    succeed(Command::new("mount").arg(&device).arg(&mount));
    assert_eq!(std::fs::read(mount.join("file")).unwrap(), b"still here");
    succeed(Command::new("umount").arg(&mount));
    rig.close("busy");
}

#[test]
fn a_failed_open_leaves_nothing_behind() {
    let test = "session: a_failed_open_leaves_nothing_behind";
    if !(ready(test) && needs_programs(test, &["unshare"])) {
        return;
    }
    let rig = Rig::new("failed");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let before = std::fs::read(&image).unwrap();
    std::fs::write(rig.path("wrong"), b"wrong").unwrap();
    let wrong =
        run(rig.luksctl(&["open", "--backend", "fuse", "--key-file"]).arg(rig.path("wrong")).arg(&image).arg("failed"));
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert_clean(&rig);

    for name in ["../up", ".hidden", "a/b", &"x".repeat(101)] {
        let refused = open(&rig, &image, name, &[]);
        assert_eq!(refused.status.code(), Some(1), "{name}: {refused:?}");
    }
    let longest = "x".repeat(100);
    assert!(open(&rig, &image, &longest, &[]).status.success());
    rig.close(&longest);

    // A machine without FUSE, in a mount namespace of its own.
    let no_fuse = run(Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec \"$@\"")
        .arg("sh")
        .arg(promises::bins::luksctl())
        .args(["open", "--backend", "fuse", "--key-file"])
        .arg(rig.key())
        .arg(&image)
        .arg("failed")
        .env("LUKSCTL_RUN_DIR", rig.run_dir()));
    assert!(!no_fuse.status.success() && stderr(&no_fuse).contains("there is no /dev/fuse"), "{no_fuse:?}");
    assert_clean(&rig);
    assert!(std::fs::read(&image).unwrap() == before, "a failed open changed the image");
}

#[test]
fn a_client_killed_in_the_middle_takes_its_server_along() {
    if !ready("session: a_client_killed_in_the_middle_takes_its_server_along") {
        return;
    }
    let rig = Rig::new("abandoned");
    let image = rig.path("image");
    let costs = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "4000000"];
    succeed(rig.luksctl(&["format", "-q", "--size", "20M"]).args(costs).arg("--key-file").arg(rig.key()).arg(&image));
    for wait_ms in [0, 30, 100, 1000] {
        let mut command = rig.luksctl(&["open", "--backend", "fuse", "--key-file"]);
        let mut client = command.arg(rig.key()).arg(&image).arg("abandoned").stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(wait_ms));
        client.kill().unwrap();
        client.wait().unwrap();
        let lists_nothing = || {
            let output = run(&mut rig.luksctl(&["list", "--json"]));
            String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<String>() == "[]"
        };
        // A client that dies between making the folder and starting the server leaves a folder for close to clean.
        eventually("the end of the abandoned server", || {
            let nothing = lists_nothing();
            if !nothing && wait_ms <= 30 {
                let _ = run(&mut rig.luksctl(&["close", "abandoned"]));
            }
            nothing
        });
    }
    assert_clean(&rig);
}

#[test]
fn garbage_and_idle_clients_do_not_disturb_a_server() {
    if !ready("session: garbage_and_idle_clients_do_not_disturb_a_server") {
        return;
    }
    let rig = Rig::new("garbage");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let _device = rig.open(&image, "noisy");
    let control = rig.run_dir().join("noisy/control");
    let connect = || UnixStream::connect(&control).unwrap();
    let noise: Vec<u8> = (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    for garbage in [
        &b"\n\n\n"[..],
        b"{}\n",
        b"{\"v\":1}\n",
        b"{\"v\":7,\"verb\":\"stop\"}\n",
        b"{\"v\":1,\"secret\":true,\"verb\":\"unlock\"}\n\xff\xff\xff\xff",
        b"{\"v\":1,\"verb\":\"resume\"}\n",
        b"GET / HTTP/1.1\r\n\r\n",
        &noise,
    ] {
        let mut stream = connect();
        // The server may hang up in the middle.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(!answer.contains("\"done\"") && !answer.contains("\"stopped\""), "{answer}");
    }
    let mut idle: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    for stream in &mut idle {
        stream.write_all(b"{\"v\":1,").unwrap();
    }
    let begun = Instant::now();
    assert_eq!(status(&rig, "noisy")["state"], "open");
    rig.close("noisy");
    assert!(begun.elapsed() < Duration::from_secs(5), "idle clients delayed close by {:?}", begun.elapsed());
    assert_clean(&rig);
}

#[test]
fn eight_mebibytes_of_lockable_memory_are_enough() {
    let test = "session: eight_mebibytes_of_lockable_memory_are_enough";
    if !(ready(test) && needs_programs(test, &["prlimit", "setpriv"])) {
        return;
    }
    let rig = Rig::new("memlock");
    let image = rig.path("image");
    let costs = ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "65536"];
    succeed(rig.luksctl(&["format", "-q", "--size", "20M"]).args(costs).arg("--key-file").arg(rig.key()).arg(&image));
    succeed(
        Command::new("prlimit")
            .args(["--memlock=8388608:8388608", "setpriv", "--bounding-set=-ipc_lock,-sys_resource"])
            .arg(promises::bins::luksctl())
            .args(["open", "--backend", "fuse", "--key-file"])
            .arg(rig.key())
            .arg(&image)
            .arg("small")
            .env("LUKSCTL_RUN_DIR", rig.run_dir()),
    );
    let denied = status(&rig, "small")["denied"].to_string();
    assert!(denied.contains("the limit is 8388608 bytes"), "the limit was not in force: {denied}");
    let device = rig.run_dir().join("small/device");
    succeed(Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=3", "conv=fsync", "status=none"]).arg({
        let mut of = std::ffi::OsString::from("of=");
        of.push(&device);
        of
    }));
    rig.close("small");
    assert_clean(&rig);
}

#[test]
fn after_a_lost_flush_every_write_fails_until_reopened() {
    if !ready("session: after_a_lost_flush_every_write_fails_until_reopened") {
        return;
    }
    let rig = Rig::new("flush");
    let (plain, mount) = (rig.path("plain"), rig.path("faulty"));
    std::fs::create_dir(&mount).unwrap();
    rig.format_cheap(&plain, "20M", &[]);
    let disk = MemDisk::new(Bytes(std::fs::metadata(&plain).unwrap().len()));
    block::BlockIo::write_at(&disk, Bytes(0), &std::fs::read(&plain).unwrap(), false).unwrap();
    let faulty = Arc::new(FaultDisk::new(disk));
    let below = export::fuse::serve(Arc::clone(&faulty), &mount, &export::fuse::FuseOptions::default()).unwrap();
    let device = rig.open(below.file_path(), "lossy");

    let write = |byte: u8| -> std::io::Result<()> {
        let mut file = std::fs::File::options().write(true).open(&device)?;
        file.write_all(&vec![byte; 65536])?;
        file.sync_all()
    };
    write(1).unwrap();
    faulty.fail_once(Op::Flush, 1, BlockErrorKind::Io);
    write(2).expect_err("the flush below failed");
    // The disk below is well again, but what it lost stays lost.
    write(3).expect_err("a later flush vouched for lost writes");
    let report = run(&mut rig.luksctl(&["status", "lossy"]));
    assert_eq!(report.status.code(), Some(10), "{report:?}");
    assert!(stderr(&report).contains("failed: reopen"), "{report:?}");
    let closed = run(&mut rig.luksctl(&["close", "lossy"]));
    assert!(!closed.status.success() && stderr(&closed).contains("last writes were lost"), "{closed:?}");
    assert_clean_of(&rig, "lossy");

    let device_again = rig.open(below.file_path(), "lossy");
    assert_eq!(device_again, device);
    write(4).unwrap();
    rig.close("lossy");
    below.unmount_within(Duration::from_secs(10)).unwrap();
}

fn assert_clean_of(rig: &Rig, name: &str) {
    assert!(!rig.run_dir().join(name).exists(), "{name} is still registered");
}
