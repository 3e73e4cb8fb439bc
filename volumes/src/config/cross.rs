//! What has to hold between values: names, places that lie in each other, what the ciphers take, the profile's demands.

use std::ops::Range;
use std::path::Path;

use block::{Bytes, Geometry};
use keystore::KeyName;
use luks::format::{FormatParams, HEADER_SIZE_DEFAULT, NewKdf, plan};
use luks::{HashAlg, KdfParams};
use session::VolumeName;
use toml_edit::Table;

use super::fault::Faults;
use super::{Backend, Config, FileSystem, Place, Profile, SEVEN_YEARS_DAYS, Size, VolumeSpec};

/// Folders that are no mount points of ours: what is below is gone while something is mounted on them.
const SYSTEM_FOLDERS: [&str; 14] = [
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp", "/usr",
    "/var",
];
/// Rotation that PCI DSS sets keep.
const PCI_DSS_ROTATION_DAYS: u32 = 30;
/// A disk of which only the size matters.
const BLOCK_BYTES: u32 = 4096;

/// A configuration and the text's tables, to say where something stands.
pub(crate) struct Marked<'d> {
    pub(crate) config: Config,
    pub(crate) root: &'d Table,
}

impl Marked<'_> {
    /// Where the value at this path stands; the nearest table that is there otherwise, and whether it is the value itself.
    fn span(&self, path: &[&str]) -> (Option<Range<usize>>, bool) {
        let mut span = None;
        let Some((first, rest)) = path.split_first() else { return (None, false) };
        let Some(mut item) = self.root.get(first) else { return (None, false) };
        span = item.span().or(span);
        for key in rest {
            let Some(next) = item.as_table_like().and_then(|table| table.get(key)) else { return (span, false) };
            item = next;
            span = item.span().or(span);
        }
        (span, true)
    }

    fn refuse(&self, faults: &Faults<'_>, path: &[&str], what: impl Into<String>) {
        let (span, is_there) = self.span(path);
        faults.add(&path.join("."), span, is_there && path.len() > 1 && path != ["volumes"], what);
    }

    /// The path of a volume's key: its own, or that of the defaults where it has none.
    fn of_volume<'p>(&self, volume: &'p VolumeSpec, key: &'p str) -> Vec<&'p str> {
        let own = vec!["volumes", volume.name.as_str(), key];
        let default = vec!["defaults", key];
        if !self.span(&own).1 && self.span(&default).1 { default } else { own }
    }
}

/// Under which name the store keeps the recovery key.
const RECOVERY_KEY: &str = "recovery";

/// Notes everything that does not fit together.
pub(crate) fn check(marked: &Marked<'_>, faults: &Faults<'_>) {
    for volume in &marked.config.volumes {
        names(marked, volume, faults);
        encryption(marked, volume, faults);
        mounting(marked, volume, faults);
    }
    places(marked, faults);
    profile(marked, faults);
}

fn names(marked: &Marked<'_>, volume: &VolumeSpec, faults: &Faults<'_>) {
    let mapping = marked.config.mapping(volume);
    if let Some(what) = unfit_for_a_key(&volume.name) {
        let span = marked.root.get("volumes").and_then(|item| item.as_table_like());
        let span = span.and_then(|table| table.get_key_value(&volume.name)).and_then(|(key, _)| key.span());
        return faults.add(&format!("volumes.{}", volume.name), span, false, what);
    }
    for name in [&volume.name, &mapping] {
        if let Err(error) = name.parse::<VolumeName>() {
            let span = marked.root.get("volumes").and_then(|item| item.as_table_like());
            let span = span.and_then(|table| table.get_key_value(&volume.name)).and_then(|(key, _)| key.span());
            faults.add(&format!("volumes.{}", volume.name), span, false, error.to_string());
            return;
        }
    }
}

/// Why the key of a volume cannot be called like it.
fn unfit_for_a_key(name: &str) -> Option<String> {
    if [crate::keys::BACKUP_KEY, RECOVERY_KEY].contains(&name) {
        return Some("is the name of a key that opens no volume; take another".to_owned());
    }
    KeyName::new(name).err().map(|error| error.to_string())
}

/// Cipher, key, hash, sector and size are what `luks` would format.
fn encryption(marked: &Marked<'_>, volume: &VolumeSpec, faults: &Faults<'_>) {
    let path = |key| marked.of_volume(volume, key);
    if HashAlg::parse(&volume.hash).is_err() {
        let what = "is no hash that is known here; sha512, sha384 and sha256 are usual";
        return marked.refuse(faults, &path("hash"), what);
    }
    if !volume.sector_size.is_power_of_two() {
        return marked.refuse(faults, &path("sector-size"), "must be 512, 1024, 2048 or 4096");
    }
    let size = match volume.place {
        Place::Image { size, .. } => size,
        // A device is measured when it is there.
        Place::Device { .. } => Size(Bytes(HEADER_SIZE_DEFAULT.0 + volume.file_system.least().0)),
    };
    if !size.0.is_multiple_of(Bytes(u64::from(BLOCK_BYTES))) {
        return marked.refuse(faults, &path("size"), "must be a multiple of 4K");
    }
    let least = Bytes(HEADER_SIZE_DEFAULT.0 + volume.file_system.least().0);
    if size.0 < least {
        let with = if volume.file_system == FileSystem::None { "one sector" } else { volume.file_system.word() };
        let what =
            format!("is too small: the header takes {}M, with {with} it needs {least}", HEADER_SIZE_DEFAULT.0 >> 20);
        return marked.refuse(faults, &path("size"), what);
    }
    let params = FormatParams {
        cipher: volume.cipher.clone(),
        key_size_bits: Some(volume.key_bits),
        sector_size: Some(volume.sector_size),
        kdf: NewKdf::Given(KdfParams::minimal_for_random_key()),
        hash: volume.hash.clone(),
        ..FormatParams::default()
    };
    let disk = Geometry {
        size: size.0,
        logical_block: 512,
        physical_block: BLOCK_BYTES,
        memory_alignment: 1,
        read_only: false,
    };
    let Err(error) = plan(&params, &disk, &disk) else { return };
    // The cipher alone, with a key it takes, says whose fault it is.
    let alone = FormatParams { key_size_bits: None, ..params };
    let key = if plan(&alone, &disk, &disk).is_ok() { "key-bits" } else { "cipher" };
    marked.refuse(faults, &path(key), error.to_string());
}

fn mounting(marked: &Marked<'_>, volume: &VolumeSpec, faults: &Faults<'_>) {
    let path = |key| marked.of_volume(volume, key);
    in_container(marked, volume, faults);
    let Some(mount) = &volume.mount else {
        if volume.file_system != FileSystem::None && !marked.span(&path("mount")).1 {
            let what = "is missing: where the file system is mounted, or file-system = \"none\"";
            marked.refuse(faults, &path("mount"), what);
        }
        return;
    };
    if volume.file_system == FileSystem::None {
        marked.refuse(faults, &path("mount"), "a volume without a file system is not mounted; leave one of them out");
    }
    if volume.backend == Backend::Nbd {
        let what = "makes a socket, which cannot be mounted; take auto, dm, fuse or ublk, or file-system = \"none\"";
        marked.refuse(faults, &path("backend"), what);
    }
    if SYSTEM_FOLDERS.iter().any(|folder| mount == Path::new(folder))
        || mount.starts_with("/proc")
        || mount.starts_with("/sys")
    {
        marked.refuse(faults, &path("mount"), "belongs to the system; take a folder of its own, as /mnt/NAME");
    }
}

/// What a container sees is a mounted file system, at a place of its own.
fn in_container(marked: &Marked<'_>, volume: &VolumeSpec, faults: &Faults<'_>) {
    let Some(inside) = &volume.container else { return };
    let path = ["volumes", &volume.name, "container"];
    if volume.mount.is_none() {
        return marked.refuse(faults, &path, "is for a volume with a mount point");
    }
    if SYSTEM_FOLDERS.iter().any(|folder| inside == Path::new(folder)) {
        return marked.refuse(faults, &path, "would hide the container's own system; take a folder as /app/NAME");
    }
    let earlier = marked.config.volumes.iter().take_while(|other| other.name != volume.name);
    for other in earlier {
        if other.container.as_ref().is_some_and(|other| overlap(inside, other)) {
            return marked.refuse(faults, &path, format!("overlaps with that of volume {}", other.name));
        }
        if other.container.is_some() && other.owner != volume.owner {
            let what = format!("needs one owner for all volumes of the container: {} has {}", other.name, other.owner);
            return marked.refuse(faults, &path, what);
        }
    }
}

/// Whether one is the other or lies in it.
fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// No two images are one, no two mount points lie in each other, and nothing of the set lies below a mount point.
fn places(marked: &Marked<'_>, faults: &Faults<'_>) {
    let config = &marked.config;
    for (at, volume) in config.volumes.iter().enumerate() {
        let place = if matches!(volume.place, Place::Image { .. }) { "image" } else { "device" };
        for earlier in &config.volumes[..at] {
            if overlap(volume.place.path(), earlier.place.path()) {
                let what = format!("is the place of volume {}, too ({})", earlier.name, earlier.place.path().display());
                marked.refuse(faults, &["volumes", &volume.name, place], what);
            }
            if let (Some(mount), Some(other)) = (&volume.mount, &earlier.mount)
                && overlap(mount, other)
            {
                let what = format!("overlaps with the mount point of volume {}, {}", earlier.name, other.display());
                marked.refuse(faults, &["volumes", &volume.name, "mount"], what);
            }
        }
        let Some(mount) = &volume.mount else { continue };
        let store = &config.store;
        let own = [
            ("store.folder", store.folder.as_path()),
            ("store.keys", &store.keys),
            ("store.key-backup", &store.key_backup),
            ("keys.approvals", &config.keys.approvals),
            ("audit.folder", &config.audit.folder),
            ("audit.seed", &config.audit.seed),
        ];
        let images = config.volumes.iter().map(|other| ("an image", other.place.path()));
        for (name, path) in own.into_iter().chain(images).filter(|(_, path)| !path.as_os_str().is_empty()) {
            // A folder of the store inside of a mount would be gone when it is needed; a mount inside of one mixes both.
            if overlap(path, mount) {
                let what = format!("overlaps with {name}, {}", path.display());
                marked.refuse(faults, &["volumes", &volume.name, "mount"], what);
                break;
            }
        }
    }
}

/// What PCI DSS and SOX sets have to be, as the guide lists it.
fn profile(marked: &Marked<'_>, faults: &Faults<'_>) {
    let config = &marked.config;
    let name = config.profile.word();
    let refuse = |path: &[&str], what: String| marked.refuse(faults, path, format!("profile {name} demands {what}"));
    if config.profile == Profile::None {
        return;
    }
    if !config.audit.enabled {
        refuse(&["audit", "enabled"], "an audit log".to_owned());
    }
    if config.audit.retention_days < SEVEN_YEARS_DAYS {
        refuse(&["audit", "retention-days"], format!("{SEVEN_YEARS_DAYS} days or more"));
    }
    if config.profile == Profile::Sox {
        if !config.audit.immutable {
            refuse(&["audit", "immutable"], "an immutable audit log".to_owned());
        }
        if !config.keys.dual_approval {
            refuse(&["keys", "dual-approval"], "a second user's approval of key operations".to_owned());
        }
        if config.keys.backup_retention_days < SEVEN_YEARS_DAYS {
            refuse(&["keys", "backup-retention-days"], format!("{SEVEN_YEARS_DAYS} days or more"));
        }
        return;
    }
    if config.keys.rotation_days > PCI_DSS_ROTATION_DAYS {
        refuse(&["keys", "rotation-days"], format!("{PCI_DSS_ROTATION_DAYS} days or less"));
    }
    for volume in &config.volumes {
        for (key, is_met, demand) in [
            ("cipher", volume.cipher == "aes-xts-plain64", "aes-xts-plain64"),
            ("key-bits", volume.key_bits == 512, "512 bits"),
            ("hash", volume.hash.eq_ignore_ascii_case("sha512"), "sha512"),
        ] {
            if !is_met {
                refuse(&marked.of_volume(volume, key), format!("{demand} of volume {}", volume.name));
            }
        }
    }
}
