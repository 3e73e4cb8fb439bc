//! An open volume as an NBD socket, used by the programs that people have: libnbd's, qemu's, fio. And what they are told when
//! something goes wrong.
//!
//! `LUKS_NBD_SECONDS` makes each load longer than its one second.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use promises::Rig;
use promises::rig::{run, succeed};
use promises::skip::{needs_fuse, needs_programs, needs_root};
use serde_json::Value;

const MIB: usize = 1 << 20;
/// Seconds of each load in the suite, and what makes them more.
const SECONDS: &str = "1";
const SECONDS_VARIABLE: &str = "LUKS_NBD_SECONDS";

/// Formats an image, opens it as `name`, and returns the URI that was printed.
fn open(rig: &Rig, size: &str, name: &str, options: &[&str]) -> String {
    let image = rig.path("image");
    if !image.exists() {
        rig.format_cheap(&image, size, &["--sector-size", "4096"]);
    }
    let mut command = rig.luksctl(&["open", "-q", "--backend", "nbd", "--key-file"]);
    let output = succeed(command.arg(rig.key()).args(options).arg(&image).arg(name));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A program of the system. Debian's own Python has libnbd, whichever comes first on the PATH.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        sleep(Duration::from_millis(20));
    }
}

/// Bytes that look like none of their neighbours.
fn noise(path: &Path, len_bytes: usize) {
    let mut random = block::fault::SplitMix64::new(41);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.next_u64().to_le_bytes()).flatten().take(len_bytes).collect();
    std::fs::write(path, bytes).unwrap();
}

/// A client that has connected, says so on its standard output, and waits.
fn sitting_client(uri: &str, python: &str) -> Child {
    let mut command = program("nbdsh");
    let code = format!("{python}\nprint('here', flush=True)\nimport time\ntime.sleep(60)");
    command.args(["-u", uri, "-c", &code]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = [0; 4];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    child
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn libnbd_and_qemu_read_and_write_the_same_bytes() {
    let test = "nbd: libnbd_and_qemu_read_and_write_the_same_bytes";
    if !needs_programs(test, &["nbdinfo", "nbdcopy", "nbdsh", "qemu-img", "qemu-io"]) {
        return;
    }
    let rig = Rig::new("nbd");
    let uri = open(&rig, "80M", "disk", &[]);
    let socket = rig.run_dir().canonicalize().unwrap().join("disk/nbd");
    assert_eq!(uri, format!("nbd+unix:///?socket={}", socket.display()));
    let status = json(&succeed(&mut rig.luksctl(&["status", "--json", "disk"])));
    assert_eq!((status["uri"].as_str(), status["backend"].as_str()), (Some(uri.as_str()), Some("nbd")));
    assert_eq!(status["device"].as_str(), socket.to_str());
    let size = status["size_bytes"].as_u64().unwrap();

    // What the content looks like nbdinfo asks file(1), and prints rubbish where that is not installed.
    let info = json(&succeed(program("nbdinfo").args(["--no-content", "--json", &uri])));
    let export = &info["exports"][0];
    assert_eq!(info["structured"], true);
    // A volume gives nothing up, so it must not be asked: nbdfuse would take a trim for a hole that reads as zeros.
    assert_eq!(export["can_trim"], false, "{info}");
    for can in ["can_fua", "can_flush", "can_zero", "can_multi_conn", "can_df", "can_fast_zero"] {
        assert_eq!(export[can], true, "{can}: {info}");
    }
    assert_eq!((export["export-size"].as_u64(), export["is_read_only"].as_bool()), (Some(size), Some(false)));
    let names = json(&succeed(program("nbdinfo").args(["--list", "--json", &uri])));
    assert_eq!(names["exports"][0]["export-name"], "disk");
    let map = json(&succeed(program("nbdinfo").args(["--map", "--json", &uri])));
    assert!(map.as_array().unwrap().iter().all(|extent| extent["type"] == 0), "{map}");

    // In, out, and what is below is what the header's own reader sees.
    let (plain, back) = (rig.path("plain"), rig.path("back"));
    noise(&plain, 48 * MIB);
    succeed(program("nbdcopy").args(["--flush", "--connections=4"]).arg(&plain).arg(&uri));
    succeed(program("nbdcopy").args(["--connections=4"]).arg(&uri).arg(&back));
    let same = |copy: &Path| std::fs::read(copy).unwrap()[..48 * MIB] == std::fs::read(&plain).unwrap()[..];
    assert!(same(&back));
    let qcow = rig.path("qcow");
    succeed(program("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2", &uri]).arg(&qcow));
    succeed(program("qemu-img").args(["check", "-q"]).arg(&qcow));
    succeed(program("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2", &uri]).arg(&qcow));
    succeed(program("qemu-img").args(["convert", "-n", "-f", "qcow2", "-O", "raw"]).arg(&qcow).arg(&uri));
    let patterns = "write -P 0x5a 4096 65536;write -z 8192 4096;discard 12288 4096;write -f -P 7 1111 2222;flush;\
                    read -P 0x5a 4096 4096;read -P 0 8192 4096;read -P 0x5a 16384 53248;read -P 7 1111 2222";
    let mut qemu_io = program("qemu-io");
    for pattern in patterns.split(';') {
        qemu_io.args(["-c", pattern.trim()]);
    }
    let said = succeed(qemu_io.args(["-f", "raw", &uri]));
    assert!(!String::from_utf8_lossy(&said.stdout).contains("failed"), "{said:?}");

    // Odd requests: a whole 32 MiB, one byte over the end, no block at all, a command nobody announced.
    let odd = format!(
        "h.set_strict_mode(0)\nassert len(h.pread(32<<20, 5)) == 32<<20\n\
         def refused(call, errno):\n    try:\n        call()\n    except nbd.Error as e:\n        assert e.errno == errno, e\n    \
         else:\n        raise SystemExit('not refused')\n\
         refused(lambda: h.pread(2, {size}-1), 'EINVAL')\nrefused(lambda: h.pwrite(b'ab', {size}-1), 'ENOSPC')\n\
         refused(lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO), 'ENOTSUP')\nrefused(lambda: h.cache(512, 0), 'EINVAL')\n\
         h.pwrite(b'xyz', 777, nbd.CMD_FLAG_FUA)\nassert h.pread(5, 776)[1:4] == b'xyz'"
    );
    succeed(program("nbdsh").args(["-u", &uri, "-c", &odd]));
    rig.close("disk");
    let copied = rig.path("copied");
    succeed(rig.luksctl(&["copy-out", "-q", "--key-file"]).arg(rig.key()).arg(rig.path("image")).arg(&copied));
    let copied = std::fs::read(copied).unwrap();
    assert_eq!((&copied[777..780], copied[1111], copied[8192]), (&b"xyz"[..], 7, 0));
    assert!(copied[MIB..48 * MIB] == std::fs::read(&plain).unwrap()[MIB..]);
}

#[test]
fn fio_finds_no_mismatch() {
    if !needs_programs("nbd: fio_finds_no_mismatch", &["fio"]) {
        return;
    }
    let rig = Rig::new("nbd-fio");
    let uri = open(&rig, "60M", "disk", &[]);
    // fio takes blocks of one size only: with many it finds its own overlaps, on any disk.
    for block in ["--bs=4k", "--bs=1536", "--bs=256k"] {
        let mut fio = program("fio");
        fio.args([
            "--name=verify",
            "--ioengine=nbd",
            "--size=30M",
            "--rw=randrw",
            "--verify=crc32c",
            "--verify_fatal=1",
        ]);
        fio.args([block, "--offset=512", "--iodepth=32", "--fsync=64", "--verify_backlog=256", "--time_based"]);
        fio.arg(format!("--runtime={}", seconds())).arg(format!("--uri={uri}"));
        let said = succeed(fio.current_dir(rig.path("")));
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(text.contains("err= 0"), "{text}");
    }
    rig.close("disk");
}

/// Every kind of request, any size and alignment, over two connections, beside a model of the disk.
const MODEL: &str = r#"
import random, time, os
random.seed(SEED)
other = nbd.NBD()
h.set_strict_mode(0)
other.set_strict_mode(0)
other.connect_uri(h.get_uri())
size = 8 << 20
h.zero(size, 0)
model = bytearray(size)
end = time.time() + SECONDS
while time.time() < end:
    c = random.choice([h, other])
    length = int(2 ** random.uniform(0, 18))
    at = random.randrange(size - length + 1)
    if random.random() < 0.5:
        length, at = max(512, length // 512 * 512), at // 512 * 512
        length = min(length, size - at)
    what = random.random()
    if what < 0.4:
        data = os.urandom(length)
        c.pwrite(data, at, random.choice([0, nbd.CMD_FLAG_FUA]))
        model[at:at + length] = data
    elif what < 0.5:
        c.zero(length, at, random.choice([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA]))
        model[at:at + length] = bytes(length)
    elif what < 0.55:
        try:
            c.trim(length, at)
        except nbd.Error as e:
            assert e.errno == 'EINVAL', e
        else:
            raise SystemExit('a trim was done')
    elif what < 0.6:
        c.flush()
    else:
        assert c.pread(length, at) == model[at:at + length], (at, length)
assert h.pread(size, 0) == bytes(model)
"#;

#[test]
fn any_mixture_of_requests_is_what_a_model_says() {
    if !needs_programs("nbd: any_mixture_of_requests_is_what_a_model_says", &["nbdsh"]) {
        return;
    }
    let rig = Rig::new("nbd-model");
    let uri = open(&rig, "40M", "disk", &[]);
    let seed = std::process::id();
    let model = MODEL.replace("SEED", &seed.to_string()).replace("SECONDS", &seconds());
    let said = run(program("nbdsh").args(["-u", &uri, "-c", &model]));
    assert!(said.status.success(), "seed {seed}: {said:?}");
    rig.close("disk");
}

fn seconds() -> String {
    std::env::var(SECONDS_VARIABLE).unwrap_or_else(|_| SECONDS.to_owned())
}

#[test]
fn nbdfuse_makes_it_a_file_again() {
    let test = "nbd: nbdfuse_makes_it_a_file_again";
    if !(needs_fuse(test) && needs_programs(test, &["nbdfuse", "fusermount3"])) {
        return;
    }
    let rig = Rig::new("nbd-fuse");
    let uri = open(&rig, "20M", "disk", &[]);
    let folder = rig.path("mnt");
    std::fs::create_dir(&folder).unwrap();
    let mut child = program("nbdfuse").arg(&folder).arg(&uri).spawn().unwrap();
    let file = folder.join("nbd");
    eventually("the mount", || file.exists());
    let (plain, data) = (rig.path("plain"), 3 * MIB);
    noise(&plain, data);
    let bytes = std::fs::read(&plain).unwrap();
    let disk = std::fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &bytes, 12345).unwrap();
    disk.sync_all().unwrap();
    let mut there = vec![0; data];
    std::os::unix::fs::FileExt::read_exact_at(&disk, &mut there, 12345).unwrap();
    assert!(there == bytes);
    // A hole is punched by zeros or refused.
    let punched = run(program("fallocate").args(["-p", "-o", "16384", "-l", "8192"]).arg(&file));
    let mut hole = vec![0; 8192];
    std::os::unix::fs::FileExt::read_exact_at(&disk, &mut hole, 16384).unwrap();
    let expected = if punched.status.success() { vec![0; 8192] } else { bytes[16384 - 12345..][..8192].to_vec() };
    assert!(hole == expected, "{punched:?}");
    drop(disk);
    succeed(program("fusermount3").arg("-u").arg(&folder));
    child.wait().unwrap();
    rig.close("disk");
}

#[test]
fn a_connected_client_keeps_it_open_and_is_named() {
    if !needs_programs("nbd: a_connected_client_keeps_it_open_and_is_named", &["nbdsh"]) {
        return;
    }
    let rig = Rig::new("nbd-busy");
    let uri = open(&rig, "20M", "disk", &[]);
    let client = sitting_client(&uri, "h.pwrite(b'kept', 0)");
    let refused = run(&mut rig.luksctl(&["close", "disk"]));
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains(&format!("(process {})", client.id())), "{words}");
    succeed(program("nbdsh").args(["-u", &uri, "-c", "assert h.pread(4, 0) == b'kept'"]));
    let refused = run(&mut rig.luksctl(&["resize", "disk"]));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("open through nbd"), "{refused:?}");
    end(client);
    rig.close("disk");
    assert!(!rig.run_dir().join("disk").exists());
}

#[test]
fn a_read_only_volume_takes_nothing() {
    if !needs_programs("nbd: a_read_only_volume_takes_nothing", &["nbdinfo", "qemu-io"]) {
        return;
    }
    let rig = Rig::new("nbd-ro");
    let uri = open(&rig, "20M", "disk", &["--readonly"]);
    let info = json(&succeed(program("nbdinfo").args(["--no-content", "--json", &uri])));
    assert_eq!(info["exports"][0]["is_read_only"], true);
    let wrote = run(program("qemu-io").args(["-f", "raw", "-c", "write 0 512", &uri]));
    assert!(!wrote.status.success(), "{wrote:?}");
    succeed(program("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 512", &uri]));
    rig.close("disk");
}

#[test]
fn suspended_requests_wait_and_a_killed_server_is_an_error() {
    if !needs_programs("nbd: suspended_requests_wait_and_a_killed_server_is_an_error", &["nbdsh"]) {
        return;
    }
    let rig = Rig::new("nbd-suspend");
    let uri = open(&rig, "20M", "disk", &[]);
    succeed(program("nbdsh").args(["-u", &uri, "-c", "h.pwrite(b'before', 0)\nh.flush()"]));
    succeed(&mut rig.luksctl(&["suspend", "disk"]));
    let read = |code: &str| {
        let code = format!("print('asks', flush=True)\n{code}\nprint('done', flush=True)");
        let mut command = program("nbdsh");
        command.args(["-u", &uri, "-c", &code]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        child
    };
    let mut waiting = read("assert h.pread(6, 0) == b'before'");
    sleep(Duration::from_millis(300));
    assert!(waiting.try_wait().unwrap().is_none(), "a read of a suspended volume waits");
    succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg("disk"));
    assert!(waiting.wait().unwrap().success());

    succeed(&mut rig.luksctl(&["suspend", "disk"]));
    let waiting = read("h.pread(6, 0)");
    sleep(Duration::from_millis(300));
    let status = json(&succeed(&mut rig.luksctl(&["status", "--json", "disk"])));
    let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let failed = waiting.wait_with_output().unwrap();
    assert!(!failed.status.success() && String::from_utf8_lossy(&failed.stderr).contains("nbd_pread"), "{failed:?}");
    eventually("the death", || run(&mut rig.luksctl(&["status", "disk"])).status.code() == Some(10));
    rig.close("disk");
    assert!(!rig.run_dir().join("disk").exists());
}

#[test]
fn an_image_that_shrank_is_an_io_error_and_the_server_lives() {
    let test = "nbd: an_image_that_shrank_is_an_io_error_and_the_server_lives";
    if !needs_programs(test, &["nbdsh"]) {
        return;
    }
    let rig = Rig::new("nbd-shrink");
    let uri = open(&rig, "40M", "disk", &[]);
    let shrink = format!(
        "import os\nn = h.get_size()\nos.truncate('{}', 20 << 20)\n\
         try:\n    h.pread(4096, n - 4096)\nexcept nbd.Error as e:\n    assert e.errno == 'EIO', e\n\
         else:\n    raise SystemExit('read behind the end of the image')\n\
         assert len(h.pread(4096, 0)) == 4096",
        rig.path("image").display()
    );
    succeed(program("nbdsh").args(["-u", &uri, "-c", &shrink]));
    succeed(program("nbdsh").args(["-u", &uri, "-c", "h.pread(512, 0)"]));
    rig.close("disk");
}

#[test]
fn without_device_mapper_and_fuse_auto_takes_the_socket_and_says_why() {
    let test = "nbd: without_device_mapper_and_fuse_auto_takes_the_socket_and_says_why";
    if !(needs_root(test) && needs_programs(test, &["unshare", "mount", "mknod", "nbdinfo"])) {
        return;
    }
    let rig = Rig::new("nbd-auto");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let open = rig.luksctl(&["open", "--backend", "auto"]);
    let script = format!(
        "set -e\nmount -t tmpfs -o mode=755 none /dev\nmknod -m 666 /dev/null c 1 3\nmknod -m 666 /dev/zero c 1 5\n\
         mknod -m 666 /dev/random c 1 8\nmknod -m 666 /dev/urandom c 1 9\n\
         exec {:?} open --json --key-file {:?} {:?} disk",
        open.get_program(),
        rig.key(),
        image
    );
    let mut unshare = program("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", &script]).env("LUKSCTL_RUN_DIR", rig.run_dir());
    let opened = json(&succeed(&mut unshare));
    let opened = &opened["opened"];
    assert_eq!(opened["backend"], "nbd", "{opened}");
    let reasons: Vec<&str> =
        opened["not_possible"].as_array().unwrap().iter().filter_map(|other| other["backend"].as_str()).collect();
    assert_eq!(reasons, ["dm-crypt", "ublk", "fuse"]);
    assert!(opened["not_possible"][1]["reason"].as_str().unwrap().contains("/dev"), "{opened}");
    assert!(opened["not_possible"][2]["reason"].as_str().unwrap().contains("/dev/fuse does not open"), "{opened}");
    succeed(program("nbdinfo").arg(opened["uri"].as_str().unwrap()));
    rig.close("disk");
}

#[test]
fn what_a_socket_cannot_be_is_refused_before_anything_is_asked() {
    let rig = Rig::new("nbd-refuse");
    let image: PathBuf = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let refusal = |arguments: &[&str]| {
        let output = run(rig.luksctl(arguments).arg("--backend").arg("nbd").arg("--key-file").arg(rig.path("none")));
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let image = image.to_str().unwrap();
    let long = "x".repeat(100);
    assert!(refusal(&["open", image, "disk", "--no-loop"]).contains("nbd cannot be used: it has no --no-loop"));
    assert!(refusal(&["open", image, "disk", "--allow-discards"]).contains("--allow-discards; dm-crypt has"));
    // Without the driver, or without the right to use it.
    if !Path::new("/sys/block/nbd0").exists() {
        let words = refusal(&["open", image, "disk", "--attach"]);
        assert!(words.contains("modprobe nbd") || words.contains("only root"), "{words}");
    }
    let open_long = run(rig.luksctl(&["open", image, &long, "--backend", "nbd", "--key-file"]).arg(rig.key()));
    let words = String::from_utf8_lossy(&open_long.stderr).into_owned();
    assert!(words.contains("Unix sockets end at 107"), "{words}");
    std::fs::create_dir(rig.path("mnt")).unwrap();
    let mount =
        run(rig.luksctl(&["mount", "--backend", "nbd", "--key-file"]).arg(rig.key()).arg(image).arg(rig.path("mnt")));
    assert!(String::from_utf8_lossy(&mount.stderr).contains("cannot be mounted"), "{mount:?}");
    assert_eq!(std::fs::read_dir(rig.run_dir()).unwrap().flatten().filter(|entry| entry.path().is_dir()).count(), 0);
}
