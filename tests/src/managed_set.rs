//! A managed set in a rig: its file, its store with a recovery key, and volumes that cryptsetup made with keys of the store.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use keystore::{Folder, KeyKind, KeyName, RecoveryKey, key_backup};
use secret::Secret;
use uuid::Uuid;
use volumes::header_backup;
use volumes::set::Set;

use crate::Rig;
use crate::rig::{run, run_with_input, succeed, words};

/// Size of the images: the smallest header with room for a few keyslots, and a little data.
const IMAGE_BYTES: u64 = 3 << 20;

/// A set whose volumes are never mounted.
pub struct ManagedSet {
    rig: Rig,
    recovery: RecoveryKey,
}

impl ManagedSet {
    /// A set with these volumes, its store and its backups, with more lines for its file, where `FOLDER` is the set's.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    #[allow(clippy::unwrap_used)]
    pub fn new(name: &str, volumes: &[&str], more: &str) -> ManagedSet {
        let rig = Rig::new(name);
        let recovery = RecoveryKey::random().unwrap();
        let managed = ManagedSet { rig, recovery };
        let folder = managed.rig.path("set");
        fs::create_dir_all(folder.join("images")).unwrap();
        let more = more.replace("FOLDER", &folder.display().to_string());
        let mut text = format!(
            "{more}\n[store]\nfolder = \"{0}/images\"\nkeys = \"{0}/keys\"\n[audit]\nfolder = \"{0}/audit\"\nseed = \
             \"{0}/audit.seed\"\n",
            folder.display()
        );
        for volume in volumes {
            text.push_str(&format!("[volumes.{volume}]\nsize = \"20M\"\nmount = \"{}/{volume}\"\n", folder.display()));
        }
        fs::write(managed.config(), text).unwrap();
        let set = managed.set();
        let mut store = set.create_store().unwrap();
        for volume in volumes {
            let (key, id) = (KeyName::new(volume).unwrap(), Uuid::from_bytes([volume.as_bytes()[0]; 16]));
            store.add_key(&key, KeyKind::Volume, id, Set::now()).unwrap();
            managed.format(volume, id, &store.key_of(&key, 1).unwrap());
            store.activate(&key, Set::now()).unwrap();
        }
        store.set_recovery_key(&managed.recovery, Set::now()).unwrap();
        set.remember(&store).unwrap();
        set.back_up_keys(&store).unwrap();
        for volume in volumes {
            header_backup::write(set.config(), volume, 1, &managed.image(volume)).unwrap();
        }
        drop(store);
        managed
    }

    /// The rig.
    #[must_use]
    pub fn rig(&self) -> &Rig {
        &self.rig
    }

    /// The recovery key as it is printed.
    #[must_use]
    pub fn recovery(&self) -> &[u8] {
        self.recovery.text().expose()
    }

    /// A path in the folder that holds everything of the set.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.rig.path("set").join(relative)
    }

    /// The file that describes it.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path("volumes.toml")
    }

    /// The image of a volume.
    #[must_use]
    pub fn image(&self, volume: &str) -> PathBuf {
        self.path("images").join(format!("{volume}.img"))
    }

    /// The set, read anew.
    ///
    /// # Panics
    /// If its file is wrong.
    #[must_use]
    #[allow(clippy::unwrap_used)]
    pub fn set(&self) -> Set {
        Set::load(&self.config()).unwrap()
    }

    /// `luksctl` with these words and the set's file.
    #[must_use]
    pub fn luksctl(&self, arguments: &[&str]) -> Command {
        let mut command = self.rig.luksctl(arguments);
        command.arg("--config").arg(self.config());
        command
    }

    #[allow(clippy::unwrap_used)]
    fn format(&self, volume: &str, id: Uuid, key: &Secret) {
        let image = self.image(volume);
        fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        let mut command = Command::new("cryptsetup");
        command.args(["luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2"]);
        command.args(["--pbkdf-force-iterations", "1000", "--luks2-metadata-size", "16k"]);
        command.args(["--luks2-keyslots-size", "1m", "--uuid", &id.to_string()]);
        succeed(command.arg("--key-file").arg(self.key_file("formatting", key)).arg(image));
    }

    /// A key as a file for cryptsetup, outside of the set's folder.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    #[allow(clippy::unwrap_used)]
    pub fn key_file(&self, name: &str, key: &Secret) -> PathBuf {
        let path = self.rig.path(name);
        let _ = fs::remove_file(&path);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, key.expose()).unwrap();
        path
    }

    /// The key of a volume that is in use.
    ///
    /// # Panics
    /// If the store does not open.
    #[must_use]
    #[allow(clippy::unwrap_used)]
    pub fn key(&self, volume: &str) -> Secret {
        self.set().store().unwrap().key(&KeyName::new(volume).unwrap()).unwrap()
    }

    /// Whether cryptsetup opens a volume with this key.
    #[must_use]
    pub fn opens(&self, volume: &str, key: &Secret) -> bool {
        cryptsetup_opens(&self.image(volume), &self.key_file("tested", key))
    }

    /// How many keyslots a volume has, as cryptsetup says.
    ///
    /// # Panics
    /// If cryptsetup fails.
    #[must_use]
    #[allow(clippy::unwrap_used)]
    pub fn slots(&self, volume: &str) -> usize {
        let mut command = Command::new("cryptsetup");
        let dump = succeed(command.args(["luksDump", "--dump-json-metadata"]).arg(self.image(volume)));
        let metadata: serde_json::Value = serde_json::from_slice(&dump.stdout).unwrap();
        metadata["keyslots"].as_object().unwrap().len()
    }

    /// The keys in the newest backup of keys, by file name.
    ///
    /// # Panics
    /// If there is none that opens.
    #[must_use]
    #[allow(clippy::unwrap_used)]
    pub fn backed_up(&self) -> Vec<(String, Secret)> {
        let folder = Folder::open(&self.path("images/key-backup"), std::time::Duration::ZERO).unwrap();
        let (_, newest) = key_backup::list(&folder).unwrap().pop().unwrap();
        key_backup::open(&self.recovery, &newest, &key_backup::read(&folder, &newest).unwrap()).unwrap()
    }

    /// Unpacks the newest backup of keys with gpg and tar alone; the folder with the key files.
    ///
    /// # Panics
    /// If they cannot.
    #[must_use]
    #[allow(clippy::unwrap_used)]
    pub fn unpacked_without_us(&self) -> PathBuf {
        let mut backups: Vec<PathBuf> =
            fs::read_dir(self.path("images/key-backup")).unwrap().map(|entry| entry.unwrap().path()).collect();
        backups.retain(|path| path.to_string_lossy().ends_with(".tar.gz.gpg"));
        backups.sort();
        let (home, out) = (self.rig.path("gnupg"), self.rig.path("unpacked"));
        for folder in [&home, &out] {
            let _ = fs::remove_dir_all(folder);
            std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(folder).unwrap();
        }
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--decrypt"]);
        let newest = backups.last().unwrap();
        let opened = run_with_input(gpg.arg(newest).env("GNUPGHOME", &home), self.recovery.text().expose());
        // The agent that gpg started for this home.
        run(Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", &home));
        assert!(opened.status.success(), "{}", words(&opened));
        let unpacked: Output = run_with_input(Command::new("tar").args(["-xzf", "-", "-C"]).arg(&out), &opened.stdout);
        assert!(unpacked.status.success(), "{}", words(&unpacked));
        out
    }
}

/// Whether cryptsetup opens an image with a key file.
#[must_use]
pub fn cryptsetup_opens(image: &Path, key_file: &Path) -> bool {
    let mut command = Command::new("cryptsetup");
    run(command.args(["open", "--test-passphrase", "--key-file"]).arg(key_file).arg(image)).status.success()
}
