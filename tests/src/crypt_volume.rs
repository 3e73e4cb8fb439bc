//! A LUKS volume on a loop device, made by cryptsetup with a volume key that the test knows; and what the other tools
//! (cryptsetup, dmsetup) say about mappings of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use block::Sectors;
use dmsetup::{CryptTarget, DevNo, KeyReference, LoopDevice, LoopOptions, Name, Uuid};
use secret::Secret;

/// Where the data begins, in 512-byte sectors.
pub const DATA_OFFSET: Sectors = Sectors(32768);
/// Length of the data in 512-byte sectors.
pub const DATA_LEN: Sectors = Sectors(32768);

/// A formatted volume on an attached loop device. Dropping it detaches and deletes.
pub struct CryptVolume {
    folder: tempfile::TempDir,
    device: Option<LoopDevice>,
    /// Its cipher.
    pub cipher: String,
    /// Its encryption unit.
    pub sector_bytes: u32,
    /// The header's UUID, with dashes.
    pub uuid: String,
    key_bytes: u32,
}

/// Runs a program and returns what it printed.
///
/// # Panics
/// If it fails.
#[must_use]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = attempt(program, arguments);
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {} {said} {errors}", output.status);
    said.trim_end().to_owned()
}

/// Runs a program that may fail.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn attempt(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

impl CryptVolume {
    /// Formats a LUKS2 volume with a key of `key_bytes`.
    ///
    /// # Panics
    /// If cryptsetup or the loop driver refuses.
    #[must_use]
    pub fn luks2(cipher: &str, key_bytes: u32, sector_bytes: u32) -> CryptVolume {
        let sector = format!("--sector-size={sector_bytes}");
        CryptVolume::format(cipher, key_bytes, sector_bytes, &["--type=luks2", &sector, "--offset=32768"])
    }

    /// Formats a LUKS1 volume.
    ///
    /// # Panics
    /// As [`CryptVolume::luks2`].
    #[must_use]
    pub fn luks1(cipher: &str, key_bytes: u32) -> CryptVolume {
        CryptVolume::format(cipher, key_bytes, 512, &["--type=luks1", "--align-payload=32768"])
    }

    fn format(cipher: &str, key_bytes: u32, sector_bytes: u32, options: &[&str]) -> CryptVolume {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len((DATA_OFFSET.0 + DATA_LEN.0) * 512).unwrap();
        let mut key = vec![0; usize::try_from(key_bytes).unwrap()];
        getrandom::fill(&mut key).unwrap();
        fs::write(folder.path().join("key"), key).unwrap();
        fs::write(folder.path().join("passphrase"), "correct horse").unwrap();
        // 512, so that LUKS2 volumes of both sector sizes lie on the same kind of device.
        let loop_options = LoopOptions { read_only: false, direct_io: false, block_size: 512, autoclear: false };
        let device = dmsetup::attach(&image, &loop_options).unwrap();
        let mut volume = CryptVolume {
            folder,
            device: Some(device),
            cipher: cipher.to_owned(),
            sector_bytes,
            uuid: String::new(),
            key_bytes,
        };
        let (passphrase, key_file) = (format!("--key-file={}", volume.passphrase()), volume.key_option());
        let (cipher, bits) = (format!("--cipher={cipher}"), format!("--key-size={}", key_bytes * 8));
        let mut arguments = vec!["luksFormat", "-q", "--pbkdf-force-iterations=1000", &cipher, &bits];
        if options.contains(&"--type=luks2") {
            arguments.push("--pbkdf=pbkdf2");
        }
        arguments.extend([passphrase.as_str(), key_file.as_str()]);
        arguments.extend(options);
        let node = volume.loop_path();
        arguments.push(&node);
        let _ = run("cryptsetup", &arguments);
        volume.uuid = run("cryptsetup", &["luksUUID", &node]);
        volume
    }

    /// The file with the passphrase.
    #[must_use]
    pub fn passphrase(&self) -> String {
        self.path("passphrase")
    }

    /// The file with the volume key.
    #[must_use]
    pub fn key_path(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// `--volume-key-file=...`.
    #[must_use]
    pub fn key_option(&self) -> String {
        format!("--volume-key-file={}", self.path("key"))
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// `/dev/loopN`.
    ///
    /// # Panics
    /// If it was taken.
    #[must_use]
    pub fn loop_path(&self) -> String {
        self.device.as_ref().unwrap().path().display().to_string()
    }

    /// Its loop device, which the caller now looks after.
    ///
    /// # Panics
    /// If it was taken.
    #[must_use]
    pub fn take_loop(&mut self) -> LoopDevice {
        self.device.take().unwrap()
    }

    /// Number of the loop device.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn devno(&self) -> DevNo {
        self.device.as_ref().unwrap().devno().unwrap()
    }

    /// The volume key.
    ///
    /// # Panics
    /// If there is no memory for it.
    #[must_use]
    pub fn key(&self) -> Secret {
        Secret::copy_of(&fs::read(self.key_path()).unwrap()).unwrap()
    }

    /// The key as a table of dm-crypt would show it.
    ///
    /// # Panics
    /// If the key cannot be read.
    #[must_use]
    pub fn key_hex(&self) -> String {
        fs::read(self.key_path()).unwrap().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Where the kernel finds the key.
    #[must_use]
    pub fn reference(&self) -> KeyReference {
        KeyReference::luks2(self.key_bytes, &self.uuid, 0)
    }

    /// The target that opens the volume, without flags.
    #[must_use]
    pub fn target(&self) -> CryptTarget {
        CryptTarget::new(&self.cipher, self.reference(), self.devno(), DATA_OFFSET).with_sector_size(self.sector_bytes)
    }

    /// The UUID of a mapping of it.
    ///
    /// # Panics
    /// If the name is too long.
    #[must_use]
    pub fn mapping_uuid(&self, name: &Name) -> Uuid {
        Uuid::luks2(&self.uuid, name).unwrap()
    }

    /// Opens it with cryptsetup and the volume key.
    ///
    /// # Panics
    /// If cryptsetup refuses.
    pub fn cryptsetup_open(&self, name: &str, options: &[&str]) {
        let (key, node) = (self.key_option(), self.loop_path());
        let mut arguments = vec!["open", "-q", key.as_str()];
        arguments.extend(options);
        arguments.extend([node.as_str(), name]);
        let _ = run("cryptsetup", &arguments);
    }

    fn path(&self, file: &str) -> String {
        self.folder.path().join(file).display().to_string()
    }
}

impl Drop for CryptVolume {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            // A test that failed may have left the mapping; the first failure is the one to tell.
            let _ = device.detach();
        }
    }
}

/// Whether this test runs inside the guest, which then has no mapping and no cookie of udev: what a failed test left is
/// removed.
///
/// # Panics
/// If dmsetup cannot be started.
#[must_use]
pub fn starts_clean(test: &str) -> bool {
    if !crate::vm::needs_vm(test) {
        return false;
    }
    let _ = attempt("dmsetup", &["remove_all", "--force"]);
    let _ = attempt("dmsetup", &["udevcomplete_all", "--yes"]);
    for node in mapper_nodes() {
        // Without udevd nobody else does.
        let _ = fs::remove_file(Path::new("/dev/mapper").join(node));
    }
    true
}

/// The table as `dmsetup table --showkeys` prints it.
#[must_use]
pub fn dmsetup_table(name: &str) -> String {
    run("dmsetup", &["table", "--showkeys", name])
}

/// Closes a mapping with cryptsetup.
pub fn cryptsetup_close(name: &str) {
    let _ = run("cryptsetup", &["close", name]);
}

/// Keys of volumes in the kernel keyring that still work after ten seconds at most: those of a process that ended wait
/// for the kernel to collect them.
///
/// # Panics
/// If /proc/keys cannot be read.
#[must_use]
pub fn volume_keys() -> Vec<String> {
    let live =
        |line: &&str| line.contains("cryptsetup:") && !line.split_whitespace().nth(1).unwrap().contains(['R', 'D']);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let keys = fs::read_to_string("/proc/keys").unwrap();
        let found: Vec<String> = keys.lines().filter(live).map(str::to_owned).collect();
        if found.is_empty() || Instant::now() >= until {
            return found;
        }
        sleep(Duration::from_millis(20));
    }
}

/// System V semaphores, which udev's cookies are.
///
/// # Panics
/// If the kernel does not list them.
#[must_use]
pub fn semaphores() -> usize {
    fs::read_to_string("/proc/sysvipc/sem").unwrap().lines().count() - 1
}

/// Names in `/dev/mapper`, without the control node.
///
/// # Panics
/// If the folder cannot be read.
#[must_use]
pub fn mapper_nodes() -> Vec<String> {
    let entries = fs::read_dir(Path::new("/dev/mapper")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "control");
    names.sort();
    names
}
