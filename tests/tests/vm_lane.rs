//! Promise: what our userspace dm-crypt writes, a stock kernel's dm-crypt reads byte for byte, and the reverse.
//!
//! Runs in the VM lane (`tests/vm/run`), where a real dm-crypt is; cryptsetup drives it, `luksctl` serves through FUSE and
//! a loop device. The first tests say what the lane promises to every other test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fmt::Write as _;
use std::fs;
use std::io::{IoSlice, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use dmcrypt::{CipherSpec, Kernel, SectorSize};
use nix::libc::ALG_OP_ENCRYPT;
use nix::sys::socket::{
    AddressFamily, AlgAddr, ControlMessage, MsgFlags, SockFlag, SockType, bind, sendmsg, setsockopt, socket, sockopt,
};
use sha2::{Digest as _, Sha256};

use promises::disk_model::make_tree;
use promises::rig::{run, succeed};
use promises::{Rig, vm};

const SECTOR_SIZES: [&str; 2] = ["512", "4096"];
/// Cipher and key size in bits.
const CIPHERS: [(&str, &str); 3] =
    [("aes-xts-plain64", "512"), ("aes-xts-plain64", "256"), ("aes-cbc-essiv:sha256", "256")];
/// With a header of 1 MiB, see `Case::options`.
const IMAGE_SIZE: &str = "8M";
/// As the cheap `luksctl format` of a rig: TCG is slow.
const CHEAP_KDF: [&str; 5] = ["-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

#[test]
fn vm_the_kernel_is_the_one_that_the_lane_promises() {
    if !vm::needs_vm("vm_the_kernel_is_the_one_that_the_lane_promises") {
        return;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(release.starts_with("6.12."), "the guest runs {release}");
    for node in ["/dev/mapper/control", "/dev/loop-control", "/dev/fuse", "/dev/ublk-control"] {
        assert!(Path::new(node).exists(), "the guest has no {node}");
    }
    let targets = String::from_utf8(succeed(Command::new("dmsetup").arg("targets")).stdout).unwrap();
    for target in ["crypt", "flakey", "log-writes", "linear", "error"] {
        assert!(targets.lines().any(|line| line.split(' ').next() == Some(target)), "no {target} in\n{targets}");
    }
    // The other modules are there for who asks for them.
    for module in ["brd", "nbd", "xfs", "dm-snapshot", "dm-integrity", "raid1", "algif_skcipher"] {
        succeed(Command::new("modprobe").args(["--dry-run", module]));
    }
}

#[test]
fn vm_udevd_runs_in_its_round_only() {
    if !vm::needs_vm("vm_udevd_runs_in_its_round_only") {
        return;
    }
    assert_eq!(Path::new("/run/udev/control").exists(), vm::has_udev(), "udevd's socket");
    let alive = fs::read_dir("/proc").unwrap().flatten().any(|process| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim_end() == "systemd-udevd")
    });
    assert_eq!(alive, vm::has_udev(), "udevd's process");
}

/// The lane's check of itself: fails if it is told to, so that the lane can show that it notices.
#[test]
fn vm_fails_when_the_lane_checks_itself() {
    if vm::needs_vm("vm_fails_when_the_lane_checks_itself") {
        assert_eq!(vm::wanted_breakage().as_deref(), None, "as the lane wanted");
    }
}

/// SHA-256 of what OpenSSL on a real processor makes of [`aes_plaintext`], as sector 5, under the key 00 01 … 3f.
const AES_ANSWER: &str = "9315e2bea1ce37967acbd8997d4a81c0cf85034643721f4c1da135194fc28e1f";

fn aes_plaintext() -> Vec<u8> {
    (0..=u8::MAX).cycle().take(4096).collect()
}

fn aes_key() -> Vec<u8> {
    (0..64).collect()
}

/// What a driver of the kernel makes of it.
fn encrypted_by_kernel(driver: &str) -> nix::Result<Vec<u8>> {
    let algorithm = socket(AddressFamily::Alg, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(algorithm.as_raw_fd(), &AlgAddr::new("skcipher", driver))?;
    setsockopt(&algorithm, sockopt::AlgSetKey::default(), &aes_key())?;
    let operation = rustix::net::accept(&algorithm).map_err(|errno| nix::Error::from_raw(errno.raw_os_error()))?;
    let (mut iv, mut ciphertext) = ([0; 16], vec![0; 4096]);
    iv[0] = 5;
    let orders = [ControlMessage::AlgSetIv(&iv), ControlMessage::AlgSetOp(&ALG_OP_ENCRYPT)];
    let plaintext = aes_plaintext();
    let sent = sendmsg::<()>(operation.as_raw_fd(), &[IoSlice::new(&plaintext)], &orders, MsgFlags::empty(), None)?;
    assert_eq!(sent, plaintext.len());
    assert_eq!(nix::unistd::read(&operation, &mut ciphertext)?, plaintext.len());
    Ok(ciphertext)
}

/// An emulator that computes a vector instruction wrongly makes every other test fail for no reason that they could tell;
/// this one names it, and the lane's verdict says so (tests/vm/judge knows the test by its name).
#[test]
fn vm_the_emulator_computes_aes_as_a_processor_does() {
    if !vm::needs_vm("vm_the_emulator_computes_aes_as_a_processor_does") {
        return;
    }
    let mut found = Vec::new();
    for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
        let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
        let cipher = dmcrypt::build_with(kernel, &spec, &aes_key(), SectorSize::try_from(4096).unwrap()).unwrap();
        let mut bytes = aes_plaintext();
        cipher.encrypt_in_place(5, &mut bytes);
        found.push((format!("luksctl's {kernel}"), bytes));
    }
    // In software, and by whatever instructions the kernel has drivers for here.
    let mut drivers = vec!["xts(ecb(aes-generic))".to_owned()];
    for entry in fs::read_to_string("/proc/crypto").unwrap().split("\n\n") {
        let field = |name: &str| {
            let line = entry.lines().find(|line| line.split(':').next().is_some_and(|field| field.trim() == name));
            line.and_then(|line| line.split_once(": ")).map_or("", |(_, value)| value)
        };
        if (field("name"), field("type"), field("internal")) == ("xts(aes)", "skcipher", "no") {
            drivers.push(field("driver").to_owned());
        }
    }
    for driver in drivers {
        let bytes = encrypted_by_kernel(&driver).unwrap_or_else(|error| panic!("{driver}: {error}"));
        found.push((format!("the kernel's {driver}"), bytes));
    }
    // The lane's check of itself.
    if vm::wanted_breakage().is_some() {
        found.push(("the lane itself, on purpose".to_owned(), aes_plaintext()));
    }
    let is_wrong = |bytes: &[u8]| {
        let digest = Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        digest != AES_ANSWER
    };
    let (wrong, right): (Vec<_>, Vec<_>) = found.iter().partition(|(_, bytes)| is_wrong(bytes));
    let names = |all: &[&(String, Vec<u8>)]| all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("; ");
    eprintln!("AES is right as computed by {}", names(&right));
    assert!(right.len() >= 3 || !wrong.is_empty(), "too few ways to compute AES");
    assert!(wrong.is_empty(), "AES is wrong as computed by {}", names(&wrong));
}

#[test]
fn vm_the_kernel_reads_what_luksctl_wrote() {
    let test = "vm_the_kernel_reads_what_luksctl_wrote";
    if !(vm::needs_vm(test) && vm::is_round_for(test, false)) {
        return;
    }
    for_every_case(true, |case| {
        let (rig, image) = (Rig::new("ours"), case.rig_path("image"));
        let (image, mount) = (rig.path(&image), rig.path("mount"));
        fs::create_dir(&mount).unwrap();
        rig.format_cheap(&image, IMAGE_SIZE, &case.options());
        let plain = {
            let device = open_with_luksctl(&rig, &image);
            fill(&rig, &device, &mount);
            let plain = read_all(&device);
            rig.close("volume");
            plain
        };
        let mapping = Mapping::open(&rig, &image, "lane-ours");
        check_table(&mapping, case);
        assert!(read_all(&mapping.device()) == plain, "{case:?}: the kernel's plaintext differs");
        check(&rig, &mapping.device(), &mount);
        mapping.close();
    });
}

#[test]
fn vm_luksctl_reads_what_the_kernel_wrote() {
    let test = "vm_luksctl_reads_what_the_kernel_wrote";
    if !(vm::needs_vm(test) && vm::is_round_for(test, false)) {
        return;
    }
    for_every_case(false, |case| {
        let (rig, image) = (Rig::new("theirs"), case.rig_path("image"));
        let (image, mount) = (rig.path(&image), rig.path("mount"));
        fs::create_dir(&mount).unwrap();
        fs::File::create_new(&image).unwrap().set_len(8 << 20).unwrap();
        let mut format = Command::new("cryptsetup");
        format.args(["luksFormat", "--type", "luks2"]).args(CHEAP_KDF).args(case.options());
        succeed(format.arg("--key-file").arg(rig.key()).arg(&image));
        let plain = {
            let mapping = Mapping::open(&rig, &image, "lane-theirs");
            check_table(&mapping, case);
            fill(&rig, &mapping.device(), &mount);
            let plain = read_all(&mapping.device());
            mapping.close();
            plain
        };
        let device = open_with_luksctl(&rig, &image);
        assert!(read_all(&device) == plain, "{case:?}: luksctl's plaintext differs");
        check(&rig, &device, &mount);
        rig.close("volume");
    });
}

/// Each combination of cipher and sector size; the short lane takes every other one, `first` or second, which for both
/// directions together is each of them, and each cipher for both.
fn for_every_case(first: bool, each: impl Fn(&Case)) {
    for (number, (cipher, key_bits)) in CIPHERS.into_iter().enumerate() {
        for (parity, sector_size) in SECTOR_SIZES.into_iter().enumerate() {
            if !vm::is_full() && ((number + parity) % 2 == 0) != first {
                continue;
            }
            let case = Case { cipher, key_bits, sector_size };
            eprintln!("{case:?}");
            each(&case);
        }
    }
}

#[derive(Debug)]
struct Case {
    cipher: &'static str,
    key_bits: &'static str,
    sector_size: &'static str,
}

impl Case {
    /// The options, which luksctl and cryptsetup spell the same.
    fn options(&self) -> [&str; 10] {
        let [cipher, key_bits, sector_size] = [self.cipher, self.key_bits, self.sector_size];
        #[rustfmt::skip]
        let options = [
            "--cipher", cipher, "--key-size", key_bits, "--sector-size", sector_size,
            "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "992k",
        ];
        options
    }

    fn rig_path(&self, name: &str) -> String {
        format!("{name}-{}-{}", self.key_bits, self.sector_size)
    }
}

/// A volume that cryptsetup opened through the kernel; closed when dropped.
struct Mapping {
    name: &'static str,
}

impl Mapping {
    fn open(rig: &Rig, image: &Path, name: &'static str) -> Mapping {
        succeed(Command::new("cryptsetup").args(["open", "--key-file"]).arg(rig.key()).arg(image).arg(name));
        Mapping { name }
    }

    fn device(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.name)
    }

    fn close(self) {
        succeed(Command::new("cryptsetup").arg("close").arg(self.name));
        assert!(!self.device().exists(), "{} is still there", self.device().display());
        std::mem::forget(self);
    }
}

impl Drop for Mapping {
    /// After a failed test, so that the next one finds the name free.
    fn drop(&mut self) {
        eprintln!("closing {}: {:?}", self.name, run(Command::new("cryptsetup").arg("close").arg(self.name)).status);
    }
}

/// Through FUSE and a loop device: the device is `luksctl`'s own and no mapping of the kernel.
fn open_with_luksctl(rig: &Rig, image: &Path) -> PathBuf {
    succeed(rig.luksctl(&["open", "--backend", "fuse", "--key-file"]).arg(rig.key()).arg(image).arg("volume"));
    let device = fs::canonicalize(rig.run_dir().join("volume").join("device")).unwrap();
    assert!(device.to_str().unwrap().starts_with("/dev/loop"), "{} is no loop device", device.display());
    device
}

/// The real kernel does this volume's crypto, with the cipher and the sectors that were asked for.
fn check_table(mapping: &Mapping, case: &Case) {
    let table = String::from_utf8(succeed(Command::new("dmsetup").args(["table", mapping.name])).stdout).unwrap();
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!((words[2], words[3]), ("crypt", case.cipher), "{table}");
    assert_eq!(words.contains(&"sector_size:4096"), case.sector_size == "4096", "{table}");
}

/// ext4 with a tree of small files and one of 1 MiB.
fn fill(rig: &Rig, device: &Path, mount: &Path) {
    let source = rig.path("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 20);
    let mut noise = vec![0_u8; 1 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    fs::write(source.join("large"), noise).unwrap();
    succeed(Command::new("mkfs.ext4").arg("-q").arg(device));
    succeed(Command::new("mount").arg(device).arg(mount));
    succeed(Command::new("cp").arg("-r").arg(source.join(".")).arg(mount));
    succeed(Command::new("umount").arg(mount));
}

/// The same tree, on a file system that stays clean when it is written to.
fn check(rig: &Rig, device: &Path, mount: &Path) {
    succeed(Command::new("mount").arg(device).arg(mount));
    succeed(Command::new("diff").args(["-r", "--exclude=lost+found"]).arg(rig.path("source")).arg(mount));
    fs::write(mount.join("more"), vec![7_u8; 100_000]).unwrap();
    succeed(Command::new("umount").arg(mount));
    succeed(Command::new("e2fsck").arg("-fn").arg(device));
}

/// The whole device, past the page cache: nobody has it open, so the kernel has dropped that.
fn read_all(device: &Path) -> Vec<u8> {
    let bytes = fs::read(device).unwrap();
    assert!(bytes.len() > 6 << 20, "{} has only {} bytes", device.display(), bytes.len());
    bytes
}
