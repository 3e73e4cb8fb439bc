//! `volumes.toml`: the whole managed set as data.
//!
//! Invariants of a [`Config`]: every key of the file was known and every value possible; names are unique and valid, with
//! the prefix too; no image, folder or mount point lies inside a mount point or is another one; each volume's cipher, key,
//! hash and size are what `luks` would format; the profile's demands are met. What the file leaves out stands here with its
//! default. Documented for users in `docs/volumes.md`.

mod cross;
mod fault;
mod form;
mod section;
mod value;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::VolumesError;

pub use fault::Fault;
pub use value::{Account, Backend, FileSystem, Kdf, MasterSource, Mode, Owner, Profile, Size};

/// Where the configuration is unless `--config` says otherwise.
pub const CONFIG_PATH: &str = "/etc/luksctl/volumes.toml";
/// The guide's layout as a configuration, with comments.
pub const EXAMPLE: &str = include_str!("../../docs/examples/volumes.toml");
/// Longest configuration file.
pub const FILE_BYTES_MAX: u64 = 256 << 10;
/// Most volumes of one set.
pub const VOLUMES_MAX: usize = 256;
/// Seven years, as the guide counts them: what PCI DSS and SOX sets keep.
pub const SEVEN_YEARS_DAYS: u32 = 2555;

/// The managed set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// Demands on all that follows.
    pub profile: Profile,
    /// Where the set's files are.
    pub store: Store,
    /// How keys live.
    pub keys: KeyPolicy,
    /// What is written down about every action.
    pub audit: Audit,
    /// The container that uses the volumes.
    pub container: Container,
    /// The volumes, in the order of the file.
    #[serde(serialize_with = "by_name")]
    pub volumes: Vec<VolumeSpec>,
}

/// Where the set's files are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Store {
    /// Folder of the images.
    pub folder: PathBuf,
    /// Folder of the sealed keys.
    pub keys: PathBuf,
    /// Folder of the encrypted backups of keys.
    pub key_backup: PathBuf,
    /// What stands before a volume's name in its mapping's name.
    pub mapping_prefix: String,
    /// Name of the application: what the units' names begin with.
    pub application: String,
}

/// The container that uses the volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Container {
    /// Its name among the services of the compose file.
    pub service: String,
    /// What it is made from; the application's own compose file says it where it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// How keys live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeyPolicy {
    /// A key is due this many days after it was made.
    pub rotation_days: u32,
    /// Encrypted backups of keys are kept this long; the newest always.
    pub backup_retention_days: u32,
    /// Where the master key comes from.
    pub master: MasterSource,
    /// Whether a recovery key opens every volume.
    pub recovery: bool,
    /// Whether a key operation needs a second user's approval.
    pub dual_approval: bool,
    /// Folder of requests and approvals.
    pub approvals: PathBuf,
}

/// What is written down about every action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Audit {
    /// Whether anything is.
    pub enabled: bool,
    /// Folder of the log.
    pub folder: PathBuf,
    /// File with the first key of the chain, which only verifying needs.
    pub seed: PathBuf,
    /// Whole months older than this go.
    pub retention_days: u32,
    /// Whether the files' attributes forbid changes: append-only, and immutable once closed.
    pub immutable: bool,
    /// What records say the environment is.
    pub environment: String,
    /// Program and arguments to run on an alert, without a shell; none if empty.
    pub alert_command: Vec<String>,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeSpec {
    /// Its name; not part of its own table.
    #[serde(skip)]
    pub name: String,
    /// Where the bytes are.
    #[serde(flatten)]
    pub place: Place,
    /// What it is formatted with.
    pub file_system: FileSystem,
    /// Where it is mounted; none for a bare disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// Where the application's container sees it; none for a volume that the container has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<PathBuf>,
    /// Who owns the root of the file system.
    pub owner: Owner,
    /// Permissions of the root of the file system.
    pub mode: Mode,
    /// Cipher in dm-crypt's notation.
    pub cipher: String,
    /// Size of the volume key; an XTS key counts with both halves.
    pub key_bits: u32,
    /// Hash of key derivation and digests.
    pub hash: String,
    /// Bytes that are encrypted together.
    pub sector_size: u32,
    /// What serves it when open.
    pub backend: Backend,
    /// Key derivation of its keyslots.
    pub kdf: Kdf,
}

/// Where a volume's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Place {
    /// In a file that setup makes.
    Image {
        /// The file.
        image: PathBuf,
        /// Its size, header included.
        size: Size,
    },
    /// On a block device, whole.
    Device {
        /// The device.
        device: PathBuf,
    },
}

impl Place {
    /// The file or the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Place::Image { image, .. } => image,
            Place::Device { device } => device,
        }
    }
}

fn by_name<S: serde::Serializer>(volumes: &[VolumeSpec], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(volumes.iter().map(|volume| (&volume.name, volume)))
}

impl Config {
    /// The configuration in the file at `path`.
    ///
    /// # Errors
    /// [`VolumesError::Io`] and [`VolumesError::File`] for a file that cannot be read or trusted, [`VolumesError::Config`]
    /// with every fault of its text.
    pub fn load(path: &Path) -> Result<Config, VolumesError> {
        Config::parse(&read(path)?, path)
    }

    /// The configuration that `text` is; messages call it `path`.
    ///
    /// # Errors
    /// [`VolumesError::Config`] with every fault, in the order of the lines.
    pub fn parse(text: &str, path: &Path) -> Result<Config, VolumesError> {
        form::parse(text).map_err(|faults| VolumesError::Config { path: path.to_owned(), faults })
    }

    /// The whole configuration as a file: every default written out.
    ///
    /// # Errors
    /// [`VolumesError::File`] for a path that is no UTF-8; none that was read from a file is.
    pub fn to_toml(&self) -> Result<String, VolumesError> {
        toml::to_string(self).map_err(|error| VolumesError::File { path: CONFIG_PATH.into(), what: error.to_string() })
    }

    /// The volume of this name.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&VolumeSpec> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// The name of a volume's mapping.
    #[must_use]
    pub fn mapping(&self, volume: &VolumeSpec) -> String {
        format!("{}{}", self.store.mapping_prefix, volume.name)
    }
}

/// The text of a configuration file. It names a command that root runs, so a file that others may write is refused.
///
/// # Errors
/// [`VolumesError::Io`], and [`VolumesError::File`] for one that is too long, no text, or open to others.
pub fn read(path: &Path) -> Result<String, VolumesError> {
    let refused = |what: String| VolumesError::File { path: path.to_owned(), what };
    let file = File::open(path).map_err(VolumesError::io("read", path))?;
    let metadata = file.metadata().map_err(VolumesError::io("read", path))?;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        return Err(refused("is no regular file".to_owned()));
    }
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(refused(format!("others may write to it (mode {mode:04o}); chmod go-w mends it")));
    }
    if metadata.uid() != uid && metadata.uid() != 0 {
        let owner = metadata.uid();
        return Err(refused(format!("it belongs to user {owner}; it must belong to user {uid} or to root")));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(VolumesError::io("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refused(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| refused("it is no UTF-8 text".to_owned()))
}

/// Puts `text` in the place of the file at `path`: whole or not at all, durable, with the old file's owner and permissions.
///
/// # Errors
/// [`VolumesError::Io`]; the old file is as it was.
pub fn replace(path: &Path, text: &str) -> Result<(), VolumesError> {
    let failed = |source| VolumesError::Io { what: "write", path: path.to_owned(), source };
    let path = std::fs::canonicalize(path).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let old = std::fs::metadata(&path).map_err(failed)?;
    let mut part = path.clone().into_os_string();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let written = (|| {
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(text.as_bytes())?;
        std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        file.set_permissions(old.permissions())?;
        file.sync_all()?;
        std::fs::rename(&part, &path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error| {
        if let Err(other) = std::fs::remove_file(&part)
            && other.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("could not remove {}: {other}", part.display());
        }
        failed(error)
    })
}

#[cfg(test)]
mod tests;
