//! `dump` and `open` of a 1 TiB sparse image read no more than its header, and write nothing to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use promises::Rig;
use promises::rig::succeed;
use promises::skip::needs_programs;

/// The header's two copies and the keyslots area end where the data begins: 16 MiB by default.
const HEADER_BYTES: u64 = 16 << 20;

/// One read or write of the image in a strace log: (is a read, bytes, offset if the call is positional).
struct Access {
    read: bool,
    bytes: u64,
    offset: Option<u64>,
}

/// Runs luksctl under strace and returns what it did to `image`.
fn accesses(rig: &Rig, image: &Path, arguments: &[&str]) -> Vec<Access> {
    let log = rig.path("strace");
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-y",
        "-e",
        "trace=read,write,pread64,pwrite64,preadv,pwritev,preadv2,pwritev2,io_uring_enter",
    ]);
    command.arg("-o").arg(&log).arg(promises::bins::luksctl()).args(arguments);
    if arguments[0] == "open" {
        command.arg("--key-file").arg(rig.key());
    }
    command.arg(image).env("LUKSCTL_RUN_DIR", rig.run_dir());
    succeed(&mut command);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("io_uring_enter"), "reads through io_uring would not be seen here");
    let marker = format!("<{}>", image.canonicalize().unwrap().display());
    text.lines().filter(|line| line.contains(&marker)).filter_map(parse).collect()
}

/// `123 pread64(5</path>, "..."..., 4096, 16384) = 4096`
fn parse(line: &str) -> Option<Access> {
    let (call, result) = line.rsplit_once(") = ")?;
    let bytes = result.split(' ').next()?.parse::<u64>().ok()?;
    let name = call.split_once('(')?.0.rsplit(' ').next()?;
    let offset = (name.starts_with('p')).then(|| {
        let mut fields = call.rsplit(", ");
        let last = fields.next().unwrap();
        last.parse().or_else(|_| fields.next().unwrap().parse()).unwrap()
    });
    Some(Access { read: name.contains("read"), bytes, offset })
}

#[test]
fn dump_and_open_of_a_tebibyte_read_only_the_header() {
    let test = "lean: dump_and_open_of_a_tebibyte_read_only_the_header";
    if !needs_programs(test, &["strace"]) {
        return;
    }
    let rig = Rig::new("lean");
    let image = rig.path("image");
    rig.format_cheap(&image, "1T", &["--sparse"]);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 1 << 40);
    let mut kinds = HashSet::new();
    for arguments in [&["dump"][..], &["open", "--test-passphrase"][..], &["is-luks"][..]] {
        let accesses = accesses(&rig, &image, arguments);
        kinds.extend(accesses.iter().map(|access| access.read));
        assert!(!accesses.is_empty(), "{arguments:?}: strace saw no access to the image");
        assert!(accesses.iter().all(|access| access.read), "{arguments:?} wrote to the image");
        let total: u64 = accesses.iter().map(|access| access.bytes).sum();
        assert!(total <= 1 << 20, "{arguments:?} read {total} bytes");
        for access in &accesses {
            let offset = access.offset.expect("a positional read");
            assert!(offset + access.bytes <= HEADER_BYTES, "{arguments:?} read {} bytes at {offset}", access.bytes);
        }
    }
    assert_eq!(kinds, HashSet::from([true]));
}

#[test]
fn opening_a_tebibyte_for_use_reads_only_the_header() {
    let test = "lean: opening_a_tebibyte_for_use_reads_only_the_header";
    if !(promises::skip::needs_root(test) && promises::skip::needs_fuse(test) && needs_programs(test, &["strace"])) {
        return;
    }
    let rig = Rig::new("lean");
    let image = rig.path("image");
    rig.format_cheap(&image, "1T", &["--sparse"]);
    // The server is a process of its own: -f follows it. It outlives the client, so strace runs until close.
    let log = rig.path("strace");
    let mut strace = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=read,pread64,preadv,preadv2,io_uring_enter", "-o"])
        .arg(&log)
        .arg(promises::bins::luksctl())
        .args(["open", "--readonly", "--key-file"])
        .arg(rig.key())
        .arg(&image)
        .arg("lean")
        .env("LUKSCTL_RUN_DIR", rig.run_dir())
        .spawn()
        .unwrap();
    let device = rig.run_dir().join("lean").join("device");
    let patience = std::time::Instant::now();
    while !device.exists() {
        assert!(patience.elapsed().as_secs() < 60, "not open after a minute");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let size = succeed(Command::new("blockdev").arg("--getsize64").arg(&device));
    assert_eq!(String::from_utf8_lossy(&size.stdout).trim(), ((1_u64 << 40) - HEADER_BYTES).to_string());
    rig.close("lean");
    drop(strace.wait());
    let marker = format!("<{}>", image.canonicalize().unwrap().display());
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(&marker)).collect();
    let total: u64 = lines.iter().filter_map(|line| parse(line)).map(|access| access.bytes).sum();
    // Attaching a loop device makes the kernel look for a partition table: a few blocks of data, at both ends.
    assert!(total > 0 && total <= 2 << 20, "opening read {total} bytes:\n{}", lines.join("\n"));
}
