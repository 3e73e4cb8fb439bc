//! From an error to the next command: what a person should type now. No hint is better than a wrong one.

use std::io;
use std::path::Path;

use block::{BlockError, BlockErrorKind};
use luks::Error;
use luks::backup::BackupFlaw;
use luks::convert::ConvertObstacle;
use luks::restore::RestoreObstacle;
use secret::KeySourceError;
use session::{FailureKind, SessionError};

/// After an error of the format library about `image`.
pub(crate) fn of_luks(path: &Path, error: &Error) -> Option<String> {
    let image = path.display();
    Some(match error {
        Error::NoKey { .. } => format!("try again; `luksctl keyslot list {image}` shows which keyslots there are"),
        Error::NoUsableKeyslot { broken } => {
            let reason = broken.iter().find_map(|slot| of_luks(path, &slot.reason));
            reason.unwrap_or_else(|| format!("luksctl keyslot list {image}"))
        }
        Error::KeyslotMissing { .. } | Error::KeyslotUnbound { .. } => {
            format!("luksctl keyslot list {image}")
        }
        Error::NotLuks => format!("`luksctl format {image}` would make it one, and destroy what it holds"),
        Error::Luks1 => format!("luksctl convert {image} --type luks2"),
        Error::NoValidCopy { .. } => {
            format!("both copies are damaged: luksctl header restore {image} BACKUP")
        }
        Error::Policy { .. } => {
            format!(
                "`luksctl check {image}` says more; if you trust this header, --policy FILE can accept it (docs/policy.md)"
            )
        }
        Error::KdfLimit { value, min, .. } if value < min => format!("it must be at least {min}"),
        Error::KdfLimit { .. } => {
            "if you trust this image, raise --max-kdf-memory, --max-kdf-time or --max-kdf-iterations".to_owned()
        }
        Error::Memory { .. } => "free memory, try another keyslot with -S, or set a lower --pbkdf-memory".to_owned(),
        Error::KdfParameter { .. } => "leave --pbkdf-memory and --pbkdf-parallel out with --pbkdf pbkdf2".to_owned(),
        Error::Calibration { .. } => "give the cost with --pbkdf-force-iterations".to_owned(),
        Error::Locked { .. } => "another program changes this header now; try again in a moment".to_owned(),
        Error::Luks1Has { .. } => format!("luksctl convert {image} --type luks2"),
        Error::Luks2 => "leave --type out, or ask for --type luks2".to_owned(),
        Error::ChangedSinceRead | Error::ConcurrentUpdate { .. } | Error::Poisoned => {
            "run the same command again".to_owned()
        }
        Error::AmbiguousSignature { .. } => format!("if {image} is really LUKS: luksctl repair --force {image}"),
        Error::LastKeyslot { .. } => {
            format!("luksctl keyslot add {image}, or --force if the data may be lost")
        }
        Error::KeyslotInUse { .. } => format!("luksctl keyslot list {image} shows which are free"),
        Error::NoFreeKeyslot { .. } | Error::NoFreeArea { .. } => {
            format!("luksctl keyslot remove {image} frees one")
        }
        Error::UnmetRequirements { .. } | Error::UnsupportedRequirement { .. } => format!("luksctl dump {image}"),
        Error::InReencryption { .. } => format!("cryptsetup repair {image}, then cryptsetup reencrypt {image}"),
        Error::SegmentGeometry { .. } => "the image is truncated, or the wrong data device: check its size".to_owned(),
        Error::Backup(BackupFlaw::Copy { .. }) => {
            format!("work on a copy: cp {image} COPY, chmod u+w COPY, luksctl repair COPY, then restore COPY")
        }
        Error::Backup(_) => "take another backup: this file is cut short, or no header backup".to_owned(),
        Error::Restore(RestoreObstacle::Version { .. }) => format!("luksctl repair {image}, or luksctl dump {image}"),
        Error::Restore(RestoreObstacle::Progress) => format!("go on with it: cryptsetup reencrypt {image}"),
        Error::Restore(_) => format!("compare: luksctl dump {image}, luksctl dump BACKUP"),
        Error::Convert(ConvertObstacle::Tokens { .. }) => format!("luksctl dump {image} lists them"),
        Error::Convert(ConvertObstacle::Keyslot { keyslot, .. }) => {
            format!("luksctl keyslot list {image}; add the passphrase anew with --pbkdf pbkdf2, kill {keyslot}")
        }
        Error::Convert(_) => format!("luksctl dump {image}"),
        Error::PlanChanged => "run the same command again to look at what is there now".to_owned(),
        Error::Recovery { .. } => {
            "name another file with --recovery-file, or give it up with --no-recovery-file".to_owned()
        }
        Error::ReadBack { .. } => "the medium fails: look at `dmesg`".to_owned(),
        Error::DeviceTooSmall { .. } => "make it larger: --size, or another device".to_owned(),
        Error::Block(error) => return of_kind(error.kind),
        _ => return of_metadata(&image.to_string(), error),
    })
}

/// After an error about damaged LUKS1 headers, tokens, room in the metadata, and volume keys in files.
fn of_metadata(image: &str, error: &Error) -> Option<String> {
    Some(match error {
        Error::InvalidLuks1(_) => {
            format!(
                "luksctl repair --dry-run {image} says what can be mended; else luksctl header restore {image} BACKUP"
            )
        }
        Error::TokenMissing { .. }
        | Error::TokenInUse { .. }
        | Error::TokenUnassigned { .. }
        | Error::NoFreeToken { .. } => {
            format!("luksctl token list {image}")
        }
        Error::TokenRange { .. } => "leave the number out: the lowest free one is taken".to_owned(),
        Error::TokenInvalid { .. } => "a token looks like {\"type\":\"name\",\"keyslots\":[\"0\"]}".to_owned(),
        Error::JsonFull { .. } => {
            format!("`luksctl token list {image}` and `luksctl keyslot list {image}` show what could go")
        }
        Error::NoFreeDigest { .. } => format!("luksctl keyslot kill {image} N frees that of an unbound keyslot"),
        Error::KeyUnknown => "is it the key of this volume? `luksctl key export` writes it".to_owned(),
        _ => return None,
    })
}

/// After an error of a disk.
pub(crate) fn of_block(path: &Path, error: &BlockError) -> Option<String> {
    match &error.source {
        Some(source) if error.kind == BlockErrorKind::Io => of_open(path, source),
        _ => of_kind(error.kind),
    }
}

fn of_kind(kind: BlockErrorKind) -> Option<String> {
    Some(match kind {
        BlockErrorKind::NoSpace => {
            "free space on the file system that holds it (`df -h`), then run this again".to_owned()
        }
        BlockErrorKind::Io => "the medium fails: look at `dmesg`, and copy what can be read first".to_owned(),
        BlockErrorKind::Denied => "look at its owner and mode with `ls -l`, or run this as root".to_owned(),
        BlockErrorKind::ReadOnly => "make it writable, or work on a copy".to_owned(),
        BlockErrorKind::Busy => "`luksctl list` and `losetup -a` show what uses it".to_owned(),
        BlockErrorKind::Suspended => "luksctl resume NAME".to_owned(),
        BlockErrorKind::OutOfRange => "the image is shorter than its header says: is it truncated?".to_owned(),
        BlockErrorKind::Unsupported => "name a regular file or a block device".to_owned(),
        _ => return None,
    })
}

/// After an error of the session of open volumes.
pub(crate) fn of_session(error: &SessionError) -> Option<String> {
    Some(match error {
        SessionError::NotOpen { .. } | SessionError::NotMounted { .. } => "luksctl list".to_owned(),
        SessionError::AlreadyOpen { name } => format!("choose another name, or: luksctl close {name}"),
        SessionError::ImageOpen { name, .. } => format!("luksctl status {name}"),
        SessionError::ImageInUse { .. } => "`luksctl list` and `losetup -a` show what uses it".to_owned(),
        SessionError::Leftover { name, .. } => format!("unmount it, then: luksctl close {name}"),
        SessionError::Busy { name, .. } => {
            format!("unmount it (`luksctl status {name}` says where) or end its clients, then close it")
        }
        SessionError::NoKey { .. } => "try again, or look with `luksctl keyslot list IMAGE`".to_owned(),
        SessionError::LostWrites { name, .. } => format!("check the file system after opening {name} again"),
        SessionError::NotSynced { .. } => "check the file system, and that the image has room to grow".to_owned(),
        SessionError::BackendNotPossible { .. } => {
            "`luksctl doctor` says what is missing; --backend auto takes what is possible".to_owned()
        }
        SessionError::NotListening { .. } => {
            "docs/nbd.md says which files there must be and how openssl makes them; `ss -ltn` shows which ports are taken"
                .to_owned()
        }
        SessionError::NotOnBackend { name, .. } => {
            format!("luksctl close {name}, then open it with --backend dm")
        }
        SessionError::ForeignMapping { name, .. } => format!("dmsetup table {name}"),
        SessionError::Name { .. } => "use letters, digits, dot, underscore and dash".to_owned(),
        SessionError::Refused(failure) => return of_failure(failure.kind),
        SessionError::Luks { path, source } => return of_luks(path, source),
        SessionError::Block { path, source } => return of_block(path, source),
        SessionError::PolicyFile { .. } => "docs/policy.md lists the keys and what each may be".to_owned(),
        SessionError::Io { path, source, .. } => return of_open(path, source),
        SessionError::KeySource(error) => return of_key_source(error),
        SessionError::Program { program, reason } if reason.contains("No such file") => {
            format!("install {program}; `luksctl open`, copy-in and copy-out work without it")
        }
        SessionError::Program { .. } => {
            "does the volume hold a file system? `luksctl open IMAGE NAME`, then `blkid` or mkfs on its device"
                .to_owned()
        }
        SessionError::RunDirectory { .. } => "set LUKSCTL_RUN_DIR to a folder of your own with mode 0700".to_owned(),
        SessionError::ServerEnded { .. } | SessionError::Timeout { .. } => "luksctl list".to_owned(),
        _ => return None,
    })
}

fn of_failure(kind: FailureKind) -> Option<String> {
    Some(match kind {
        FailureKind::NoKey => "try again, or look with `luksctl keyslot list IMAGE`".to_owned(),
        FailureKind::Memory => "free memory, or open another keyslot with -S".to_owned(),
        FailureKind::Fuse => {
            "load the module (`modprobe fuse`) and open /dev/fuse to this user; copy-in and copy-out work without it"
                .to_owned()
        }
        FailureKind::Loop => "add --no-loop to use the file below FUSE".to_owned(),
        FailureKind::ImageInUse | FailureKind::Busy => "`luksctl list` and `losetup -a` show what uses it".to_owned(),
        FailureKind::State => "luksctl list".to_owned(),
        FailureKind::Mapping => "`dmesg | tail` says more; `luksctl doctor` says what is missing".to_owned(),
        FailureKind::Permission => "run it as root".to_owned(),
        FailureKind::Image => "`luksctl status NAME` says what is wrong below; compare `ls -l` of the image".to_owned(),
        FailureKind::OtherVolume => "give the header that it was opened with: --header FILE".to_owned(),
        FailureKind::LostWrites => "close it, open it again and check the file system".to_owned(),
        FailureKind::Header => "luksctl dump IMAGE".to_owned(),
        FailureKind::Policy => "`luksctl check IMAGE` says more".to_owned(),
        _ => return None,
    })
}

/// After an error of a key source.
pub(crate) fn of_key_source(error: &KeySourceError) -> Option<String> {
    Some(match error {
        KeySourceError::Nothing | KeySourceError::NoTerminal { .. } => {
            "give the passphrase on standard input, or with --key-file or --key-fd".to_owned()
        }
        KeySourceError::TooLarge { .. } => "choose its part with --keyfile-size and --keyfile-offset".to_owned(),
        KeySourceError::TooLongTyped { .. } => "a longer one goes into a file: --key-file FILE".to_owned(),
        KeySourceError::TooShort { .. } => "give a smaller --keyfile-size".to_owned(),
        KeySourceError::SizeNeeded { .. } => "add --keyfile-size BYTES".to_owned(),
        KeySourceError::Mismatch => "type the same passphrase twice".to_owned(),
        _ => return None,
    })
}

/// After opening `path` failed.
pub(crate) fn of_open(path: &Path, error: &io::Error) -> Option<String> {
    Some(match error.kind() {
        io::ErrorKind::NotFound => format!("check the name: ls -l {}", parent(path)),
        io::ErrorKind::PermissionDenied => {
            format!("look at its owner and mode, or run this as root: ls -l {}", path.display())
        }
        io::ErrorKind::ReadOnlyFilesystem => "use a file system that is not mounted read-only".to_owned(),
        io::ErrorKind::IsADirectory => "name the image file in it, or a block device".to_owned(),
        _ => return None,
    })
}

/// After writing `path` failed.
pub(crate) fn of_write(path: &Path, error: &io::Error) -> Option<String> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            of_kind(BlockErrorKind::NoSpace)
        }
        _ => of_open(path, error),
    }
}

fn parent(path: &Path) -> String {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.display().to_string(),
        _ => ".".to_owned(),
    }
}
