//! Mounting the file system on an open volume, and unmounting it again.
//!
//! * Root: mount(8) on the device, `nosuid,nodev`, so that an image cannot bring set-uid programs or device nodes along.
//! * Others: fuse2fs on the file below FUSE, after `e2fsck -p`. fuse2fs writes no journal: after a power cut the file system
//!   needs a check, and the last seconds may be lost.
//! * Unmounting returns before fuse2fs has written everything. Only when it has ended is the device synced.
//!
//! `RUN/NAME/mount.json` remembers the directory, so that `umount DIR` finds the volume.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use secret::KeyProvider;
use serde::{Deserialize, Serialize};

use crate::choice::NBD;
use crate::close::{CloseOptions, close};
use crate::lookup::served_by;
use crate::open::{OpenReport, OpenRequest, open};
use crate::registry::{Behind, behind};
use crate::run_dir::{Entry, NAME_MAX_BYTES, RunDir, replace_file};
use crate::spawn::{ServerCommand, search_path};
use crate::suspend::{sync_device, sync_file_system};
use crate::{BackendChoice, SessionError, mount_table, processes};

/// How long fuse2fs may write after its unmount.
const FLUSH_WAIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
/// Processes that are named.
const NAMED_MAX: usize = 4;
/// Words of a failed program that go into an error.
const WORDS_MAX_CHARS: usize = 600;

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Mount read-only.
    pub read_only: bool,
    /// More options for mount(8) or fuse2fs, as after `-o`.
    pub options: Option<String>,
    /// [`umount`] closes the volume, too.
    pub close_on_umount: bool,
}

/// A mounted volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MountReport {
    /// Its name.
    pub name: String,
    /// What is mounted.
    #[serde(with = "crate::path_json")]
    pub device: PathBuf,
    /// Where.
    #[serde(with = "crate::path_json")]
    pub directory: PathBuf,
    /// `mount` or `fuse2fs`; the second writes no journal.
    pub program: &'static str,
    /// How it was opened, if mounting opened it.
    pub opened: Option<OpenReport>,
}

/// What [`umount`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UmountReport {
    /// The volume that was mounted there.
    pub name: String,
    /// Whether it is closed now.
    pub closed: bool,
}

#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(with = "crate::path_json")]
    directory: PathBuf,
    close_on_umount: bool,
}

impl Record {
    fn read(entry: &Entry) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(entry.mount_record()).ok()?).ok()
    }

    fn write(&self, entry: &Entry) -> Result<(), SessionError> {
        let text = serde_json::to_vec(self).map_err(|error| SessionError::Protocol {
            name: entry.name.to_string(),
            what: format!("mount.json cannot be written: {error}"),
        })?;
        replace_file(&entry.folder, "mount.json", &text)
    }
}

/// Where the volume is mounted according to its record, if it still is.
pub(crate) fn recorded_point(entry: &Entry) -> Option<PathBuf> {
    let directory = Record::read(entry)?.directory;
    mount_table::mounted_on(&directory).ok()??;
    Some(directory)
}

/// A name for a volume that nobody named: the image's, with what a name may not hold replaced.
#[must_use]
pub fn name_for_image(image: &Path) -> String {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let name: String = stem.chars().map(|letter| if allowed(letter) { letter } else { '_' }).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "volume".to_owned() } else { name.chars().take(NAME_MAX_BYTES).collect() }
}

/// Opens the image of `request` and mounts it on `directory`; closes it again if the mount fails. [`umount`] closes it too.
///
/// # Errors
/// As [`open`] and [`mount`].
pub fn mount_image(
    run: &RunDir,
    request: &OpenRequest,
    directory: &Path,
    options: &MountOptions,
    keys: &mut dyn KeyProvider,
    server: &ServerCommand,
) -> Result<MountReport, SessionError> {
    mount_directory(directory)?;
    if (request.backend == BackendChoice::Nbd || request.listen.is_some()) && !request.attach {
        let reason = "it makes a socket, which cannot be mounted; dm-crypt, fuse and nbd with --attach can".to_owned();
        return Err(SessionError::BackendNotPossible { backend: NBD, reason });
    }
    let opened = open(run, request, keys, server)?;
    let options = MountOptions {
        read_only: options.read_only || request.read_only,
        options: options.options.clone(),
        close_on_umount: true,
    };
    let mounted = mount(run, &request.name, directory, &options).inspect_err(|_| {
        if let Err(error) = close(run, &request.name, &CloseOptions::default()) {
            log::warn!("{} stays open: {error}", request.name);
        }
    })?;
    Ok(MountReport { opened: Some(opened), ..mounted })
}

/// Mounts the file system on the open volume `name` on `directory`.
///
/// # Errors
/// [`SessionError::NotOpen`], [`SessionError::MountPoint`], and [`SessionError::Program`] with what mount(8), e2fsck or
/// fuse2fs had to say.
pub fn mount(run: &RunDir, name: &str, directory: &Path, options: &MountOptions) -> Result<MountReport, SessionError> {
    let entry = run.entry(&name.parse()?);
    if !matches!(behind(&entry)?, Behind::Server | Behind::Mapping(_)) {
        return Err(SessionError::NotOpen { name: entry.name.to_string() });
    }
    if served_by(&entry) == NBD {
        // It is a socket; what makes it a disk (nbdfuse, nbd-client, a virtual machine) mounts it, too.
        return Err(SessionError::NotOnBackend {
            name: entry.name.to_string(),
            backend: NBD.to_owned(),
            what: "mount",
        });
    }
    let directory = mount_directory(directory)?;
    let link = entry.device();
    let device = std::fs::read_link(&link).map_err(SessionError::io("follow", &link))?;
    let program = if rustix::process::geteuid().is_root() {
        by_mount(&device, &directory, options)?
    } else {
        by_fuse2fs(&device, &directory, options)?
    };
    let record = Record { directory: directory.clone(), close_on_umount: options.close_on_umount };
    record.write(&entry)?;
    Ok(MountReport { name: entry.name.to_string(), device, directory, program, opened: None })
}

/// Unmounts `directory`, waits until everything is written, and closes the volume if [`mount_image`] had opened it.
///
/// # Errors
/// [`SessionError::NotMounted`]; [`SessionError::Busy`] while something uses it; what [`close`] says.
pub fn umount(run: &RunDir, directory: &Path) -> Result<UmountReport, SessionError> {
    // A mount whose server is dead cannot be looked at, but its name still stands in the table.
    let directory = std::fs::canonicalize(directory)
        .or_else(|_| std::path::absolute(directory))
        .map_err(SessionError::io("find", directory))?;
    let entry = mounted_volume(run, &directory)?;
    let closes = Record::read(&entry).is_some_and(|record| record.close_on_umount);
    // unmount(2) tells nobody of a page that could not be written.
    let is_open = crate::status::status(run, entry.name.as_str())?.state == crate::State::Open;
    let synced = if is_open { sync_file_system(&directory) } else { Ok(()) };
    if let Err(reason) = &synced {
        log::warn!("{reason}");
    }
    match unmount(&directory, UnmountFlags::NOFOLLOW) {
        Ok(()) => {}
        Err(Errno::BUSY) => return Err(in_use(&entry, &directory)),
        Err(Errno::PERM) => by_fusermount(&entry, &directory)?,
        Err(errno) => return Err(SessionError::errno("unmount", &directory)(errno)),
    }
    let record = entry.mount_record();
    match std::fs::remove_file(&record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(SessionError::io("remove", &record)(error));
        }
        _ => {}
    }
    let name = entry.name.to_string();
    if !matches!(behind(&entry)?, Behind::Server | Behind::Mapping(_)) {
        return Ok(UmountReport { name, closed: false });
    }
    wait_for_last_writes(&entry)?;
    let synced = synced.and(sync_device(&entry.device()));
    if closes {
        close(run, &name, &CloseOptions::default())?;
    }
    if let Err(reason) = synced {
        return Err(if closes {
            SessionError::LostWrites { name, reason }
        } else {
            SessionError::NotSynced { name, reason }
        });
    }
    Ok(UmountReport { name, closed: closes })
}

fn mounted_volume(run: &RunDir, directory: &Path) -> Result<Entry, SessionError> {
    for entry in run.entries()? {
        if recorded_point(&entry).is_some_and(|point| point == directory) {
            return Ok(entry);
        }
    }
    let mounted =
        crate::status::registered(run)?.into_iter().find(|status| status.mount_points.iter().any(|p| p == directory));
    match mounted {
        Some(status) => Ok(run.entry(&status.name.parse()?)),
        None => Err(SessionError::NotMounted { path: directory.to_path_buf() }),
    }
}

fn mount_directory(directory: &Path) -> Result<PathBuf, SessionError> {
    let refused = |reason: String| SessionError::MountPoint { path: directory.to_path_buf(), reason };
    let real = std::fs::canonicalize(directory).map_err(|error| refused(error.to_string()))?;
    if !real.is_dir() {
        return Err(refused("it is no directory".to_owned()));
    }
    if mount_table::mounted_on(&real)?.is_some() {
        return Err(refused("something is mounted there already".to_owned()));
    }
    Ok(real)
}

fn by_mount(device: &Path, directory: &Path, options: &MountOptions) -> Result<&'static str, SessionError> {
    const PROGRAM: &str = "mount";
    let output = run_program(
        PROGRAM,
        Command::new(PROGRAM).arg("-o").arg(option_list("nosuid,nodev", options)).arg("--").arg(device).arg(directory),
    )?;
    if output.status.success() { Ok(PROGRAM) } else { Err(failed(PROGRAM, &output)) }
}

fn by_fuse2fs(device: &Path, directory: &Path, options: &MountOptions) -> Result<&'static str, SessionError> {
    const CHECK: &str = "e2fsck";
    const PROGRAM: &str = "fuse2fs";
    if !options.read_only {
        let output = run_program(CHECK, Command::new(CHECK).arg("-p").arg(device))?;
        // 1: errors were corrected.
        if !matches!(output.status.code(), Some(0 | 1)) {
            return Err(failed(CHECK, &output));
        }
    }
    let base = if options.read_only { "fakeroot" } else { "rw,fakeroot" };
    let output = run_program(
        PROGRAM,
        Command::new(PROGRAM).arg(device).arg(directory).arg("-o").arg(option_list(base, options)),
    )?;
    if !output.status.success() {
        return Err(failed(PROGRAM, &output));
    }
    if mount_table::mounted_on(directory)?.is_none() {
        return Err(failed(PROGRAM, &output));
    }
    Ok(PROGRAM)
}

fn option_list(base: &str, options: &MountOptions) -> String {
    let read_only = if options.read_only { Some("ro") } else { None };
    [Some(base), read_only, options.options.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(",")
}

fn run_program(program: &'static str, command: &mut Command) -> Result<Output, SessionError> {
    command
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| SessionError::Program { program, reason: format!("it cannot be started: {error}") })
}

fn failed(program: &'static str, output: &Output) -> SessionError {
    let words = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().replace('\n', "; "));
    let words: String = words.join(" ").chars().take(WORDS_MAX_CHARS).collect();
    SessionError::Program { program, reason: format!("{}: {}", output.status, words.trim()) }
}

fn by_fusermount(entry: &Entry, directory: &Path) -> Result<(), SessionError> {
    const PROGRAM: &str = "fusermount3";
    let output = run_program(PROGRAM, Command::new(PROGRAM).arg("-u").arg("--").arg(directory))?;
    if output.status.success() {
        return Ok(());
    }
    if String::from_utf8_lossy(&output.stderr).contains("busy") {
        return Err(in_use(entry, directory));
    }
    Err(failed(PROGRAM, &output))
}

fn in_use(entry: &Entry, directory: &Path) -> SessionError {
    let users = processes::working_below(directory, NAMED_MAX);
    let how = if users.is_empty() {
        format!("a process works in {} or has a file open there", directory.display())
    } else {
        format!("{} works in {} or has a file open there", users.join(", "), directory.display())
    };
    SessionError::Busy { name: entry.name.to_string(), how }
}

/// fuse2fs writes its caches after the unmount and then lets go of the disk.
fn wait_for_last_writes(entry: &Entry) -> Result<(), SessionError> {
    let device = std::fs::canonicalize(entry.device()).map_err(SessionError::io("follow", &entry.device()))?;
    let until = Instant::now() + FLUSH_WAIT;
    let server = crate::registry::Info::read(entry).and_then(|info| info.pid);
    // Only fuse2fs is waited for: another process that has the disk open may stay as long as it likes.
    let is_fuse2fs =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "fuse2fs");
    while processes::with_file_open(&device).iter().any(|pid| Some(*pid) != server && is_fuse2fs(pid)) {
        if Instant::now() >= until {
            let what = format!("the last write of fuse2fs to {}", entry.name);
            return Err(SessionError::Timeout { what, seconds: FLUSH_WAIT.as_secs() });
        }
        sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_any_image_path() {
        for (image, name) in [
            ("/a/home.img", "home"),
            ("my disk (1).luks", "my_disk__1_"),
            ("/.hidden", "hidden"),
            ("/dev/disk/by-id/ata-X", "ata-X"),
            ("--", "volume"),
            ("ä.img", "_"),
        ] {
            assert_eq!(name_for_image(Path::new(image)), name);
            assert!(name.parse::<crate::VolumeName>().is_ok());
        }
    }

    #[test]
    fn options_are_joined_with_the_safe_ones_first() {
        let options = MountOptions { read_only: true, options: Some("noatime".into()), close_on_umount: false };
        assert_eq!(option_list("nosuid,nodev", &options), "nosuid,nodev,ro,noatime");
    }

    #[test]
    fn only_an_unused_directory_can_be_mounted_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(matches!(mount_directory(&file), Err(SessionError::MountPoint { .. })));
        assert!(matches!(mount_directory(Path::new("/proc")), Err(SessionError::MountPoint { .. })));
        assert!(mount_directory(folder.path()).is_ok());
        let run = RunDir::at(&folder.path().join("run")).unwrap();
        assert!(matches!(umount(&run, folder.path()), Err(SessionError::NotMounted { .. })));
    }
}
