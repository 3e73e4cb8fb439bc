//! A managed set in a rig: `volumes.toml` with the guide's layout and small images, all of it below the rig's folder. Dropping it
//! takes the volumes down and lets its mount points, which are immutable, be removed.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use keystore::{RecoveryKey, key_backup};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use secret::Secret;

use crate::Rig;
use crate::rig::{run, succeed, unmount_device};

/// Who owns the roots of the guide's file systems.
pub const OWNER: &str = "1234:5678";

/// A set in a rig.
pub struct Managed {
    /// Where it is.
    pub rig: Rig,
    names: Vec<String>,
}

impl Managed {
    /// A description of volumes with these names and sizes; nothing is made.
    #[must_use]
    pub fn new(name: &str, volumes: &[(&str, &str)]) -> Managed {
        let rig = Rig::new(name);
        let root = fs::canonicalize(rig.path(".")).unwrap();
        let root = root.display();
        let mut text = format!(
            "[store]\nfolder = \"{root}/encrypted\"\nkeys = \"{root}/keys\"\nmapping-prefix = \"trading-\"\n\n\
             [audit]\nfolder = \"{root}/audit\"\nseed = \"{root}/audit.seed\"\n\n\
             [defaults]\nbackend = \"fuse\"\n"
        );
        for (name, size) in volumes {
            writeln!(text, "\n[volumes.{name}]\nsize = \"{size}\"\nmount = \"{root}/mnt/trading-{name}\"").unwrap();
        }
        fs::write(rig.path("volumes.toml"), text).unwrap();
        fs::set_permissions(rig.path("volumes.toml"), fs::Permissions::from_mode(0o600)).unwrap();
        Managed { rig, names: volumes.iter().map(|(name, _)| (*name).to_owned()).collect() }
    }

    /// `luksctl volume WORDS --config` of this set.
    #[must_use]
    pub fn volume(&self, words: &[&str]) -> Command {
        let mut command = self.rig.luksctl(&[&["volume"], words].concat());
        command.arg("--config").arg(self.rig.path("volumes.toml"));
        if words.first() == Some(&"setup") {
            // Not those of the machine that the tests run on.
            command.arg("--units-dir").arg(self.rig.path("units"));
        }
        command
    }

    /// What the verb prints with `--json`.
    #[must_use]
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let output = run(&mut self.volume(&[words, &["--json"]].concat()));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// The image of a volume.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        self.rig.path(&format!("encrypted/{name}.img"))
    }

    /// The mount point of a volume.
    #[must_use]
    pub fn mount(&self, name: &str) -> PathBuf {
        self.rig.path(&format!("mnt/trading-{name}"))
    }

    /// Every file below the folders of the set, with its content.
    #[must_use]
    pub fn content(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![self.rig.path("encrypted"), self.rig.path("keys")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    found.push((entry.path(), fs::read(entry.path()).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    /// Lets an unused mount point be changed.
    pub fn unprotect(&self, name: &str) {
        if let Ok(folder) = fs::File::open(self.mount(name))
            && let Ok(flags) = ioctl_getflags(&folder)
        {
            let _ = ioctl_setflags(&folder, flags - IFlags::IMMUTABLE);
        }
    }

    /// Takes everything down and away but the description.
    pub fn clear(&self) {
        succeed(&mut self.volume(&["down"]));
        self.close_all();
        for name in &self.names {
            self.unprotect(name);
        }
        for folder in ["encrypted", "keys", "mnt", "audit"] {
            let _ = fs::remove_dir_all(self.rig.path(folder));
        }
        let _ = fs::remove_file(self.rig.path("audit.seed"));
    }

    /// Closes what is open below the rig's run directory.
    pub fn close_all(&self) {
        for entry in fs::read_dir(self.rig.run_dir()).into_iter().flatten().flatten() {
            if !entry.path().is_dir() {
                continue;
            }
            if let Ok(device) = fs::read_link(entry.path().join("device")) {
                unmount_device(&device);
            }
            run(self.rig.luksctl(&["close"]).arg(entry.file_name()));
        }
    }

    /// The files in the newest backup of keys, opened with a recovery key as it was shown.
    #[must_use]
    pub fn backed_up_keys(&self, recovery: &str) -> Vec<(String, Secret)> {
        let key = RecoveryKey::parse(&Secret::copy_of(recovery.as_bytes()).unwrap()).unwrap();
        let folder = self.rig.path("encrypted/key-backup");
        let names = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let newest = names.filter(|name| name.ends_with(".tar.gz.gpg")).max().unwrap();
        let message = fs::read(folder.join(&newest)).unwrap();
        key_backup::open(&key, &newest, &message).unwrap()
    }

    /// Whether cryptsetup opens the image of a volume with this key.
    #[must_use]
    pub fn cryptsetup_opens(&self, name: &str, key: &[u8]) -> bool {
        let file = self.rig.path("tried.key");
        fs::write(&file, key).unwrap();
        let opened = run(Command::new("cryptsetup")
            .args(["open", "--test-passphrase", "--key-file"])
            .arg(&file)
            .arg(self.image(name)));
        fs::remove_file(file).unwrap();
        opened.status.success()
    }
}

/// The recovery key in what a command printed.
#[must_use]
pub fn recovery_key(stdout: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stdout);
    text.lines().find_map(|line| line.strip_prefix("recovery key: ")).map(str::to_owned)
}

/// What the guide's scripts leave: raw keys of 64 random bytes and images that cryptsetup formatted, with ext4 and a file in it.
///
/// # Panics
/// If cryptsetup or mke2fs fails.
#[must_use]
pub fn guides_set(name: &str) -> Managed {
    let set = Managed::new(name, &[("data", "20M"), ("logs", "20M")]);
    for folder in ["encrypted", "keys", "guide"] {
        fs::create_dir(set.rig.path(folder)).unwrap();
        fs::set_permissions(set.rig.path(folder), fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::write(set.rig.path("keys/key_metadata.json"), r#"{"keys": {"data": {"created": "2024-12-01T12:00:00Z"}}}"#)
        .unwrap();
    for file in ["master", "data", "logs"] {
        let mut key = [0; 64];
        getrandom::fill(&mut key).unwrap();
        fs::write(set.rig.path(&format!("keys/{file}.key")), key).unwrap();
        fs::set_permissions(set.rig.path(&format!("keys/{file}.key")), fs::Permissions::from_mode(0o600)).unwrap();
    }
    for volume in ["data", "logs"] {
        let image = set.image(volume);
        fs::File::create(&image).unwrap().set_len(20 << 20).unwrap();
        let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "4096"];
        let key = set.rig.path(&format!("keys/{volume}.key"));
        succeed(
            Command::new("cryptsetup").args(["-q", "luksFormat", "--type", "luks2"]).args(cheap).arg(&image).arg(&key),
        );
        let plain = set.rig.path("plain");
        fs::File::create(&plain).unwrap().set_len(4 << 20).unwrap();
        let options = format!("root_owner={OWNER}");
        succeed(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-b", "4096", "-E", &options, "-d"])
                .arg(content(&set, volume))
                .arg(&plain),
        );
        succeed(set.rig.luksctl(&["copy-in", "-q", "--key-file"]).arg(&key).arg(&image).arg(&plain));
        fs::remove_file(plain).unwrap();
    }
    set
}

/// A folder with what the volume will hold.
fn content(set: &Managed, volume: &str) -> PathBuf {
    let folder = set.rig.path("guide").join(volume);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("trades.csv"), format!("{volume}: bought, sold")).unwrap();
    folder
}

/// The raw key of a volume, as it lies there now.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn raw_key(set: &Managed, volume: &str) -> Vec<u8> {
    fs::read(set.rig.path(&format!("keys/{volume}.key"))).unwrap()
}

/// Sets the rest up, and demands the data that the guide's set had.
///
/// # Panics
/// If it is not there.
pub fn demand_data(set: &Managed) {
    succeed(&mut set.volume(&["setup", "--yes"]));
    for volume in ["data", "logs"] {
        let text = fs::read_to_string(set.mount(volume).join("trades.csv")).unwrap();
        assert_eq!(text, format!("{volume}: bought, sold"));
    }
    assert!(set.json(&["status"]).as_array().unwrap().iter().all(|status| status["health"] == "green"));
    succeed(&mut set.volume(&["down"]));
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = self.volume(&["down"]).output();
        self.close_all();
        for name in &self.names {
            self.unprotect(name);
        }
    }
}

/// Whether this process may grow a mounted file system: ext4 asks for CAP_SYS_RESOURCE.
#[must_use]
pub fn may_grow_mounted() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .is_some_and(|bits| bits >> CAP_SYS_RESOURCE & 1 == 1)
}
