//! The ways to make a disk of one image, driven alike: through the kernel's dm-crypt, through our own server (FUSE below a
//! loop device, or ublk), and by cryptsetup. Each device is checked to be what was asked for.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Rig;
use crate::rig::{run, succeed};

/// A header of 1 MiB and keys that cost next to nothing to unlock, spelt as luksctl and cryptsetup both know them.
pub const SMALL_HEADER: [&str; 4] = ["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "992k"];
/// Bytes before the data of a volume with a [`SMALL_HEADER`].
pub const SMALL_HEADER_BYTES: u64 = 1 << 20;

/// Who makes the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `luksctl open --backend dm`.
    Dm,
    /// `luksctl open --backend fuse`.
    Fuse,
    /// `luksctl open --backend ublk`.
    Ublk,
    /// `luksctl open --backend nbd --attach`.
    NbdDevice,
    /// `cryptsetup open`.
    Cryptsetup,
}

impl Backend {
    /// `luksctl`'s own that every test of both runs on; ublk's are in `vm_ublk.rs`.
    pub const OURS: [Backend; 2] = [Backend::Dm, Backend::Fuse];
    /// And ublk.
    pub const OURS_AND_UBLK: [Backend; 3] = [Backend::Dm, Backend::Fuse, Backend::Ublk];

    /// Opens `image` as `name` with the rig's key and returns the device, resolved.
    ///
    /// # Panics
    /// If it does not open, or the device is none of this backend.
    #[must_use]
    pub fn open(self, rig: &Rig, image: &Path, name: &str) -> PathBuf {
        succeed(&mut self.open_command(rig, image, name, &[]));
        self.device(rig, name)
    }

    /// The command behind [`Backend::open`], with further `options`.
    #[must_use]
    pub fn open_command(self, rig: &Rig, image: &Path, name: &str, options: &[&str]) -> Command {
        let mut command = match self {
            Backend::Dm => rig.luksctl(&["open", "--backend", "dm"]),
            Backend::Fuse => rig.luksctl(&["open", "--backend", "fuse"]),
            Backend::Ublk => rig.luksctl(&["open", "--backend", "ublk"]),
            Backend::NbdDevice => rig.luksctl(&["open", "-q", "--backend", "nbd", "--attach"]),
            Backend::Cryptsetup => {
                let mut command = Command::new("cryptsetup");
                command.arg("open");
                command
            }
        };
        command.args(options).arg("--key-file").arg(rig.key()).arg(image).arg(name);
        command
    }

    /// The device of an open volume.
    ///
    /// # Panics
    /// If there is none, or it is none of this backend.
    #[must_use]
    pub fn device(self, rig: &Rig, name: &str) -> PathBuf {
        let mapped = Path::new("/dev/mapper").join(name);
        let (link, prefix) = match self {
            Backend::Dm => (rig.run_dir().join(name).join("device"), "/dev/"),
            Backend::Fuse => (rig.run_dir().join(name).join("device"), "/dev/loop"),
            Backend::Ublk => (rig.run_dir().join(name).join("device"), "/dev/ublkb"),
            Backend::NbdDevice => (rig.run_dir().join(name).join("device"), "/dev/nbd"),
            Backend::Cryptsetup => (mapped.clone(), "/dev/"),
        };
        let device = fs::canonicalize(&link).unwrap_or_else(|error| panic!("{}: {error}", link.display()));
        assert!(device.starts_with("/dev") && device.to_str().unwrap().starts_with(prefix), "{self:?}: {device:?}");
        if matches!(self, Backend::Fuse | Backend::Ublk | Backend::NbdDevice) {
            assert!(!mapped.exists(), "{} beside a served device", mapped.display());
        } else {
            // Without udevd the node stands in /dev/mapper, else in /dev.
            assert_eq!(device, fs::canonicalize(&mapped).unwrap(), "{self:?}: one device under both paths");
        }
        device
    }

    /// Closes `name`.
    ///
    /// # Panics
    /// If it does not close.
    pub fn close(self, rig: &Rig, name: &str) {
        succeed(&mut self.close_command(rig, name));
    }

    /// The command behind [`Backend::close`].
    #[must_use]
    pub fn close_command(self, rig: &Rig, name: &str) -> Command {
        if self == Backend::Cryptsetup {
            let mut command = Command::new("cryptsetup");
            command.args(["close", name]);
            command
        } else {
            rig.luksctl(&["close", name])
        }
    }
}

/// Formats `image` with a [`SMALL_HEADER`] and a cheap keyslot for the rig's key; cryptsetup does it if `theirs`.
///
/// # Panics
/// If it cannot be formatted.
pub fn format_small(rig: &Rig, image: &Path, size_bytes: u64, theirs: bool, options: &[&str]) {
    if theirs {
        if !image.exists() {
            fs::File::create_new(image).unwrap().set_len(size_bytes).unwrap();
        }
        let mut format = Command::new("cryptsetup");
        format.args(["luksFormat", "--type", "luks2", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
        format.args(SMALL_HEADER).args(options);
        succeed(format.arg("--key-file").arg(rig.key()).arg(image));
    } else {
        rig.format_cheap(image, &size_bytes.to_string(), &[&SMALL_HEADER, options].concat());
    }
}

/// Mounts `device` on `folder`, which is made if it is not there.
///
/// # Panics
/// If it does not mount.
pub fn mount(device: &Path, folder: &Path, options: &str) {
    fs::create_dir_all(folder).unwrap();
    succeed(Command::new("mount").args(["-o", options]).arg(device).arg(folder));
}

/// Unmounts `folder`.
///
/// # Panics
/// If it is not mounted, or busy.
pub fn unmount(folder: &Path) {
    succeed(Command::new("umount").arg(folder));
}

/// What `status --json` of luksctl says.
///
/// # Panics
/// If there is no such volume.
#[must_use]
pub fn status(rig: &Rig, name: &str) -> serde_json::Value {
    let output = run(&mut rig.luksctl(&["status", "--json", name]));
    // 10: it has something to report, such as a suspended volume.
    assert!(matches!(output.status.code(), Some(0 | 10)), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}
