//! Dual approval: an operation on keys that one person requests and another one approves within a day.
//!
//! ```text
//! APPROVALS/ID.request    the operation, its target, when, and by whom; made by who requests
//! APPROVALS/ID.approval   the SHA-256 of the request, when, and by whom; made by who approves
//! ```
//!
//! Who made a file is its owner, as the kernel says; of files of root, which several persons can be by `sudo`, the login uid
//! in it (which `sudo` does not change). The folder is sticky and open to all, so a second person needs no other right.
//!
//! Invariants: an approval is for one request, word by word, and for one use: it is taken away, durably, before the operation
//! begins; requester and approver are two persons. What root can do besides is in `docs/volumes.md`.

use std::fs::{DirBuilder, File, Metadata};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::VolumesError;
use crate::audit::{Actor, Category, Event, hex};
use crate::error::Trouble;
use crate::set::Set;

/// An approval has to come within so many seconds.
pub const APPROVED_WITHIN_S: u64 = 86_400;
/// And is of use for so many, which is longer than the pause between two runs of a weekly timer.
pub const USED_WITHIN_S: u64 = 8 * 86_400;
/// Longest file.
const FILE_BYTES_MAX: u64 = 4096;
/// Most files that are looked at.
const FILES_MAX: usize = 4096;
/// Digits of an ID.
const ID_DIGITS: usize = 12;

/// What can be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// A new key for a volume.
    Rotate,
    /// A new key for backups.
    RotateBackup,
    /// A new master secret.
    RotateMaster,
    /// A backup of all keys.
    ExportSet,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 4] =
        [Operation::Rotate, Operation::RotateBackup, Operation::RotateMaster, Operation::ExportSet];

    /// The word of the command.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Operation::Rotate => "rotate",
            Operation::RotateBackup => "rotate-backup",
            Operation::RotateMaster => "rotate-master",
            Operation::ExportSet => "export-set",
        }
    }
}

/// Who made a file, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct By {
    time_s: u64,
    uid: u32,
    login_uid: Option<u32>,
}

impl By {
    fn now() -> By {
        let actor = Actor::this_process();
        // The owner of what this process makes.
        let uid = rustix::process::geteuid().as_raw();
        By { time_s: Set::now().seconds(), uid, login_uid: actor.login_uid }
    }

    /// The person behind it: who logged in where root is several, otherwise the user.
    fn person(&self) -> u32 {
        self.login_uid.filter(|_| self.uid == 0).unwrap_or(self.uid)
    }
}

#[derive(Serialize, Deserialize)]
struct RequestFile {
    operation: Operation,
    target: String,
    /// The key store of the set.
    store: PathBuf,
    by: By,
}

#[derive(Serialize, Deserialize)]
struct ApprovalFile {
    request_sha256: String,
    by: By,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nobody approved it yet.
    Waits,
    /// It can be used.
    Approved,
    /// Its time is over.
    Expired,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request {
    /// What it is called.
    pub id: String,
    /// What is requested.
    pub operation: Operation,
    /// For which key; empty where there is only one.
    pub target: String,
    /// When, in seconds since 1970.
    pub requested_unix_s: u64,
    /// By whom.
    pub requester: u32,
    /// Who approved it.
    pub approver: Option<u32>,
    /// How far it is.
    pub state: State,
}

fn refused(target: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> VolumesError {
    VolumesError::refused(Trouble::Wrong, target, what, mend)
}

fn path(set: &Set, id: &str, kind: &str) -> PathBuf {
    set.config().keys.approvals.join(format!("{id}.{kind}"))
}

/// Makes the folder: anybody may add a file, and nobody take another's away.
fn make_folder(folder: &Path) -> Result<(), VolumesError> {
    let failed = |source| VolumesError::Io { what: "make", path: folder.to_owned(), source };
    if let Some(parent) = folder.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => check_folder(folder),
        made => {
            made.map_err(failed)?;
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o1777)).map_err(failed)
        }
    }
}

/// Refuses a folder in which others could replace files.
fn check_folder(folder: &Path) -> Result<(), VolumesError> {
    let found = folder.symlink_metadata().map_err(VolumesError::io("read", folder))?;
    let is_ours = [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
    if found.is_dir() && is_ours && (found.mode() & 0o022 == 0 || found.mode() & 0o1000 != 0) {
        return Ok(());
    }
    let what = "others could replace approvals in this folder";
    Err(refused(folder.display().to_string(), what, format!("chmod 1777 {0}; chown root {0}", folder.display())))
}

/// A new file, readable for all, durable.
fn write(path: &Path, content: &impl Serialize) -> Result<(), VolumesError> {
    let failed = |source| VolumesError::Io { what: "write", path: path.to_owned(), source };
    let text = serde_json::to_vec(content).map_err(|error| failed(error.into()))?;
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(path).map_err(failed)?;
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    // A umask must not hide it from the other person.
    written.and_then(|()| file.set_permissions(std::fs::Permissions::from_mode(0o644))).map_err(failed)?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<(), VolumesError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(VolumesError::io("sync", folder))
}

/// The bytes of a file that only its owner can have made; none if it is not there or not such a file.
fn read(path: &Path) -> Result<Option<(Vec<u8>, Metadata)>, VolumesError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // A link or a socket: everybody may put into this folder what they like, and that keeps nobody from his work.
        Err(error) if [Errno::ELOOP, Errno::ENXIO].contains(&Errno::from_raw(error.raw_os_error().unwrap_or(0))) => {
            return Ok(None);
        }
        opened => opened.map_err(VolumesError::io("read", path))?,
    };
    let found = file.metadata().map_err(VolumesError::io("read", path))?;
    if !found.is_file() || found.nlink() != 1 || found.mode() & 0o022 != 0 || found.len() > FILE_BYTES_MAX {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(VolumesError::io("read", path))?;
    Ok(Some((bytes, found)))
}

fn parsed<'a, T: Deserialize<'a>>(bytes: &'a [u8], by: impl Fn(&T) -> &By, found: &Metadata) -> Option<T> {
    let file: T = serde_json::from_slice(bytes).ok()?;
    (by(&file).uid == found.uid()).then_some(file)
}

/// Requests an operation; the ID for who approves it.
///
/// # Errors
/// [`VolumesError::Io`]; [`VolumesError::Refused`] where this set needs no approval.
pub fn request(set: &Set, operation: Operation, target: &str) -> Result<String, VolumesError> {
    if !set.config().keys.dual_approval {
        let what = "this set needs no approval (keys.dual-approval)";
        return Err(refused(set.path().display().to_string(), what, "run the command itself"));
    }
    let folder = &set.config().keys.approvals;
    make_folder(folder)?;
    for old in list(set)?.into_iter().filter(|old| old.state == State::Expired) {
        take_away(set, &old.id)?;
    }
    let mut random = [0; ID_DIGITS / 2];
    getrandom::fill(&mut random).map_err(|error| VolumesError::Io {
        what: "draw an ID for",
        path: folder.clone(),
        source: std::io::Error::other(error.to_string()),
    })?;
    let id = hex(&random);
    let file =
        RequestFile { operation, target: target.to_owned(), store: set.config().store.keys.clone(), by: By::now() };
    write(&path(set, &id, "request"), &file)?;
    Ok(id)
}

fn take_away(set: &Set, id: &str) -> Result<(), VolumesError> {
    for kind in ["request", "approval"] {
        let path = path(set, id, kind);
        match std::fs::remove_file(&path) {
            // Another's, which a sticky folder keeps: it is expired all the same.
            // Or a folder, which is nobody's approval.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound
                        | std::io::ErrorKind::PermissionDenied
                        | std::io::ErrorKind::IsADirectory
                ) => {}
            removed => removed.map_err(VolumesError::io("remove", path))?,
        }
    }
    Ok(())
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Approves a request as another person than who made it.
///
/// # Errors
/// [`VolumesError::Refused`] for an ID that is not there, too old, approved already, or one's own request.
pub fn approve(set: &Set, id: &str) -> Result<Request, VolumesError> {
    let list_them = "luksctl key requests";
    let found = if is_id(id) { read(&path(set, id, "request"))? } else { None };
    let request = found.and_then(|(bytes, found)| {
        let file = parsed(&bytes, |file: &RequestFile| &file.by, &found)?;
        (file.store == set.config().store.keys).then_some(())?;
        Some((hex(&Sha256::digest(&bytes)), file))
    });
    let Some((request_sha256, file)) = request else { return Err(refused(id, "is no request", list_them)) };
    let by = By::now();
    let own = [Some(file.by.person()), Some(file.by.uid).filter(|uid| *uid != 0), file.by.login_uid];
    let is_own = |uid: u32| own.contains(&Some(uid));
    if is_own(by.person()) || by.login_uid.is_some_and(is_own) {
        return Err(refused(id, "is a request of your own: another person has to approve it", list_them));
    }
    if by.time_s > file.by.time_s.saturating_add(APPROVED_WITHIN_S) {
        let again = format!("luksctl key request {} {}", file.operation.word(), file.target);
        return Err(refused(id, "is older than 24 hours", again.trim_end()));
    }
    let approval = path(set, id, "approval");
    if approval.symlink_metadata().is_ok() {
        return Err(refused(id, "is approved already", list_them));
    }
    write(&approval, &ApprovalFile { request_sha256, by })?;
    look(set, id, Set::now().seconds())?.ok_or_else(|| refused(id, "was taken away meanwhile", list_them))
}

/// One request as it stands at `now_s`.
fn look(set: &Set, id: &str, now_s: u64) -> Result<Option<Request>, VolumesError> {
    let Some((bytes, found)) = read(&path(set, id, "request"))? else { return Ok(None) };
    let file = parsed(&bytes, |file: &RequestFile| &file.by, &found);
    let Some(file) = file.filter(|file| file.store == set.config().store.keys) else { return Ok(None) };
    let limit_s = file.by.time_s.saturating_add(APPROVED_WITHIN_S);
    let approval = read(&path(set, id, "approval"))?;
    let approval = approval.and_then(|(bytes, found)| {
        let file = parsed(&bytes, |file: &ApprovalFile| &file.by, &found)?;
        // The time in the file is what its writer says; the file itself cannot have been touched last before it was made.
        let touched_s = u64::try_from(found.ctime()).ok()?;
        Some(file).filter(|_| touched_s <= limit_s)
    });
    let digest = hex(&Sha256::digest(&bytes));
    let good = approval.filter(|approval| {
        let (asked, given) = (&file.by, &approval.by);
        let in_time = asked.time_s <= given.time_s && given.time_s <= limit_s;
        approval.request_sha256 == digest && in_time && given.person() != asked.person() && given.time_s <= now_s
    });
    let until = good.as_ref().map_or(limit_s, |given| given.by.time_s.saturating_add(USED_WITHIN_S));
    let state = match &good {
        _ if now_s > until || file.by.time_s > now_s => State::Expired,
        Some(_) => State::Approved,
        None => State::Waits,
    };
    Ok(Some(Request {
        id: id.to_owned(),
        operation: file.operation,
        target: file.target,
        requested_unix_s: file.by.time_s,
        requester: file.by.person(),
        approver: good.map(|given| given.by.person()),
        state,
    }))
}

/// Every request, the oldest first.
///
/// # Errors
/// [`VolumesError::Io`]; a folder that is not there has none.
pub fn list(set: &Set) -> Result<Vec<Request>, VolumesError> {
    let folder = &set.config().keys.approvals;
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(VolumesError::io("read", folder))?,
    };
    let now_s = Set::now().seconds();
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let ids = names.filter_map(|name| name.strip_suffix(".request").filter(|id| is_id(id)).map(str::to_owned));
    let mut found = Vec::new();
    for id in ids.take(FILES_MAX) {
        found.extend(look(set, &id, now_s)?);
    }
    found.sort_by(|a, b| (a.requested_unix_s, &a.id).cmp(&(b.requested_unix_s, &b.id)));
    Ok(found)
}

/// Uses up an approval of this operation, if the set needs one, and records who requested and who approved it.
///
/// # Errors
/// [`VolumesError::Unapproved`] without one, naming the request that waits; what the folder says.
pub fn demand(set: &Set, operation: Operation, target: &str) -> Result<(), VolumesError> {
    if !set.config().keys.dual_approval {
        return Ok(());
    }
    let folder = &set.config().keys.approvals;
    let requests = if folder.symlink_metadata().is_ok() {
        check_folder(folder)?;
        list(set)?
    } else {
        Vec::new()
    };
    let about_it = |request: &&Request| request.operation == operation && request.target == target;
    let approved = requests.iter().filter(about_it).find(|request| request.state == State::Approved);
    let Some(approved) = approved else {
        let waits = requests.iter().filter(about_it).find(|request| request.state == State::Waits);
        let pending = waits.map(|request| request.id.clone());
        return Err(VolumesError::Unapproved { operation: operation.word(), target: target.to_owned(), pending });
    };
    set.record(
        &Event::new(Category::Security, "approval-use", target)
            .detail("operation", operation.word())
            .detail("id", &approved.id)
            .detail("requester", approved.requester)
            .detail("approver", approved.approver.unwrap_or_default()),
    )?;
    let file = path(set, &approved.id, "approval");
    std::fs::remove_file(&file).map_err(VolumesError::io("remove", &file))?;
    take_away(set, &approved.id)?;
    sync_folder(&file)
}
