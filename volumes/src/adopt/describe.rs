//! The description of a set that nobody has described yet: from its images, their headers, and the roots of their file systems.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use block::BlockIo as _;
use luks::UnlockRequest;
use secret::Secret;
use session::SystemEnv;

use super::ext4_root::{Root, root};
use super::{proven, raw_key};
use crate::config::{FileSystem, Size};
use crate::error::Trouble;
use crate::{VolumesError, image};

/// Most images that are looked at.
const IMAGES_MAX: usize = 256;

/// Where the guide's scripts put things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The folder of the images.
    pub folder: PathBuf,
    /// The folder of the keys.
    pub keys: PathBuf,
    /// What stands before a volume's name in its mapping's name and in its mount point's.
    pub prefix: String,
    /// The folder of the mount points.
    pub mounts: PathBuf,
    /// Another folder for the audit log than the usual one, with its seed in it.
    pub audit: Option<PathBuf>,
}

/// A text for TOML, in quotes.
fn quoted(text: impl ToString) -> String {
    toml_edit::Value::from(text.to_string()).to_string()
}

/// `volumes.toml` for the images in the folder that have a raw key, each proven.
///
/// # Errors
/// [`VolumesError::Refused`] if there is none, or a key does not open its image; what keeps it from looking.
pub fn describe(layout: &Layout) -> Result<String, VolumesError> {
    let mut text =
        String::from("# What `luksctl volume adopt` found. docs/volumes.md explains every key.\n\n[store]\n");
    let paths = [("folder", &layout.folder), ("keys", &layout.keys)];
    for (key, path) in paths {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key} = {}", quoted(path.display()));
    }
    let _ = writeln!(text, "mapping-prefix = {}", quoted(&layout.prefix));
    if let Some(audit) = &layout.audit {
        let (folder, seed) = (quoted(audit.display()), quoted(audit.with_extension("seed").display()));
        let _ = writeln!(text, "\n[audit]\nfolder = {folder}\nseed = {seed}");
    }
    let mut count = 0;
    for (name, path) in images(&layout.folder)? {
        let key_file = layout.keys.join(format!("{name}.key"));
        let Some(key) = raw_key(&key_file)? else {
            log::warn!("{}: there is no {}; it is left out", path.display(), key_file.display());
            continue;
        };
        text.push_str(&volume(layout, &name, &path, &key, &key_file)?);
        count += 1;
    }
    if count == 0 {
        let what = "has no image NAME.img with a key file NAME.key";
        let mend = "say where they are: --images FOLDER --keys FOLDER";
        return Err(VolumesError::refused(Trouble::Missing, layout.folder.display().to_string(), what, mend));
    }
    Ok(text)
}

/// Names and paths of `NAME.img`, sorted.
fn images(folder: &Path) -> Result<Vec<(String, PathBuf)>, VolumesError> {
    let entries = std::fs::read_dir(folder).map_err(VolumesError::io("list", folder))?;
    let name = |path: &Path| path.file_name()?.to_str()?.strip_suffix(".img").map(str::to_owned);
    let paths = entries.flatten().take(IMAGES_MAX).map(|entry| entry.path());
    let mut found: Vec<(String, PathBuf)> = paths.filter_map(|path| Some((name(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

/// The table of one volume: what its header says, and who owns its root now, so that nothing changes at the first `up`.
fn volume(layout: &Layout, name: &str, path: &Path, key: &Secret, key_file: &Path) -> Result<String, VolumesError> {
    proven(name, path, key, key_file)?;
    let failed = image::of_luks(path);
    let container = image::container(path, true)?;
    let size = container.data().geometry().size;
    let key = container.unlock(&SystemEnv.env(), &UnlockRequest::default(), key).map_err(&failed)?;
    let (_, crypt) = container.opened_segment(&key).map_err(&failed)?;
    let (cipher, sector_size) = (crypt.encryption, crypt.sector_size);
    let plaintext = container.volume(&key, true).map_err(&failed)?;
    let signatures = block::signature::probe(&plaintext);
    let signatures = signatures.map_err(|source| VolumesError::Block { path: path.to_owned(), source })?;
    let kind = FileSystem::ALL.iter().find(|kind| signatures.iter().any(|found| found.name == kind.word()));
    let kind = kind.copied().unwrap_or(FileSystem::None);
    let mut text = String::new();
    let _ = writeln!(text, "\n[volumes.{name}]\nsize = {}\nimage = {}", quoted(Size(size)), quoted(path.display()));
    let _ = writeln!(text, "cipher = {}\nkey-bits = {}", quoted(cipher), key.len_bytes() * 8);
    let _ = writeln!(text, "sector-size = {sector_size}\nfile-system = {}", quoted(kind.word()));
    if kind != FileSystem::None {
        let mount = layout.mounts.join(format!("{}{name}", layout.prefix));
        let _ = writeln!(text, "mount = {}", quoted(mount.display()));
    }
    if kind == FileSystem::Ext4
        && let Some(Root { user, group, mode }) = root(&plaintext)
    {
        let _ = writeln!(text, "owner = \"{user}:{group}\"\nmode = \"{mode:04o}\"");
    }
    Ok(text)
}
