//! [`AuditLog`]: the log of a set, to write to.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use secret::{KeyFile, Secret};
use serde_json::Value;

use super::alert;
use super::chain::{ChainKey, KEY_BYTES};
use super::folder::{Folder, names};
use super::medium::Medium;
use super::retention;
use super::state::State;
use super::writer::{self, Stamp};
use super::{Actor, Announcement, Category, Event, Journal, Level, Moment, Outcome, hex};
use crate::VolumesError;
use crate::config::Audit;

/// How much of the end of each file is searched for a record.
const SEARCHED_BYTES: u64 = 64 << 20;

/// The log of a set. Every call takes the log's lock, so several processes may write.
pub struct AuditLog {
    settings: Audit,
    journal: Box<dyn Journal>,
    actor: Actor,
}

/// A record that is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// How many records there are now.
    pub count: u64,
    /// MAC of the last one.
    pub head: [u8; 32],
}

impl AuditLog {
    /// The log that these settings describe; its heads go to `journal`. Nothing is written yet.
    #[must_use]
    pub fn new(settings: &Audit, journal: Box<dyn Journal>) -> AuditLog {
        AuditLog { settings: settings.clone(), journal, actor: Actor::this_process() }
    }

    /// The same for another actor than this process: a server records what its client did.
    #[must_use]
    pub fn acting(self, actor: Actor) -> AuditLog {
        AuditLog { actor, ..self }
    }

    /// Writes a record; it is durable afterwards. The time is the caller's.
    ///
    /// # Errors
    /// [`VolumesError`]: the log is held by another process, its folder or state cannot be written or trusted. Then what was to be
    /// recorded must not count as done. The log itself stays good: part of a line is taken back or named by the next record.
    pub fn record(&self, event: &Event, now: Moment) -> Result<Recorded, VolumesError> {
        let mut folder = Folder::lock(&self.settings.folder, self.settings.immutable)?;
        let mut state = self.state(&mut folder)?;
        self.append(&mut folder, &mut state, event, now)
    }

    /// Records that a volume could not be unlocked. More than five such records within five minutes for one volume and one
    /// user raise an alarm, once in five minutes: a record of level HIGH, the journal, and the command of the settings.
    ///
    /// # Errors
    /// As [`AuditLog::record`]. A command that fails is no error; it is logged.
    pub fn unlock_failed(&self, volume: &str, why: &str, now: Moment) -> Result<Recorded, VolumesError> {
        let event = Event::new(Category::Access, alert::UNLOCK, volume).ended(Outcome::Failed).detail("reason", why);
        let (recorded, alarm) = {
            let mut folder = Folder::lock(&self.settings.folder, self.settings.immutable)?;
            let mut state = self.state(&mut folder)?;
            let recorded = self.append(&mut folder, &mut state, &event, now)?;
            match alert::due(&mut folder, &state.file, volume, self.actor.uid, now)? {
                Some(alarm) => (self.append(&mut folder, &mut state, &alarm.event(), now)?, Some(alarm)),
                None => (recorded, None),
            }
        };
        if let Some(alarm) = alarm {
            alert::run(&self.settings.alert_command, &alarm);
        }
        Ok(recorded)
    }

    /// Whether there is a chain already, so that records need no seed.
    ///
    /// # Errors
    /// [`VolumesError`] for a folder that cannot be locked or read.
    pub fn has_begun(&self) -> Result<bool, VolumesError> {
        let mut folder = Folder::lock(&self.settings.folder, self.settings.immutable)?;
        let has_state = State::read(&mut folder)?.is_some();
        let mut has_records = || folder.names().map_err(VolumesError::io("list", &self.settings.folder));
        Ok(has_state || !has_records()?.is_empty())
    }

    /// Begins the chain with `seed`, which the caller keeps; a chain that has begun goes on as it is.
    ///
    /// # Errors
    /// As [`AuditLog::record`].
    pub fn begin(&self, seed: &Secret) -> Result<(), VolumesError> {
        let mut folder = Folder::lock(&self.settings.folder, self.settings.immutable)?;
        if State::read(&mut folder)?.is_some() {
            return Ok(());
        }
        State::first(seed)?.write(&mut folder)
    }

    /// The last record of an action about a target, as the log says it: whether the log is true is for
    /// [`super::verify()`]. `None` if there is none, or no log.
    ///
    /// # Errors
    /// [`VolumesError::Io`].
    pub fn last_of(&self, action: &str, target: &str) -> Result<Option<Value>, VolumesError> {
        let path = &self.settings.folder;
        let names = match names(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            names => names.map_err(VolumesError::io("read", path))?,
        };
        let (action, target) = (Value::from(action), Value::from(target));
        for name in names.iter().rev() {
            let file = path.join(name);
            let failed = |source| VolumesError::Io { what: "read", path: file.clone(), source };
            let mut reader = File::open(&file).map_err(failed)?;
            let len = reader.metadata().map_err(failed)?.len();
            reader.seek(SeekFrom::Start(len.saturating_sub(SEARCHED_BYTES))).map_err(failed)?;
            let mut tail = Vec::new();
            reader.take(SEARCHED_BYTES).read_to_end(&mut tail).map_err(failed)?;
            let lines = tail.rsplit(|byte| *byte == b'\n');
            let mut records = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
            let is_it = |record: &Value| record.get("action") == Some(&action) && record.get("target") == Some(&target);
            if let Some(record) = records.find(is_it) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    fn append(
        &self,
        folder: &mut Folder,
        state: &mut State,
        event: &Event,
        now: Moment,
    ) -> Result<Recorded, VolumesError> {
        let stamp = Stamp { actor: &self.actor, environment: &self.settings.environment, now };
        let begins_month = writer::append(folder, state, event, &stamp)?;
        if begins_month {
            // The record stands; an old file that cannot go yet goes another time.
            if let Err(error) = retention::remove_old(folder, state, &stamp, self.settings.retention_days) {
                log::warn!("old audit records stay: {error}");
            }
        }
        let head = hex(&state.head);
        self.journal.announce(&Announcement {
            folder: &self.settings.folder,
            chain: &state.chain,
            count: state.count,
            head: &head,
            is_high: event.level == Level::High,
            message: format!(
                "{} {} {} {}",
                event.category.word(),
                event.action,
                event.target.escape_debug(),
                event.outcome.word()
            ),
        });
        Ok(Recorded { count: state.count, head: state.head })
    }

    /// The state, or that of a new chain in a folder without records.
    fn state<M: Medium>(&self, medium: &mut M) -> Result<State, VolumesError> {
        if let Some(state) = State::read(medium)? {
            return Ok(state);
        }
        let path = &self.settings.folder;
        let names = medium.names().map_err(VolumesError::io("list", path))?;
        if !names.is_empty() {
            let what = "the state of the audit log is gone or damaged, so no record can follow those that are there; \
                        move the folder away and keep it, a new log begins with the next record";
            return Err(VolumesError::AuditState { path: path.clone(), what: what.to_owned() });
        }
        let state = State::first(&seed(&self.settings.seed)?)?;
        state.write(medium)?;
        Ok(state)
    }
}

/// The first key of a chain: the file's, or a new one that is in the file before it is used.
fn seed(path: &Path) -> Result<Secret, VolumesError> {
    if path.symlink_metadata().is_ok() {
        return read_seed(path);
    }
    let seed = new_seed(path)?;
    let failed = |source| VolumesError::Io { what: "write", path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = (|| {
        if part.symlink_metadata().is_ok_and(|found| found.is_file()) {
            std::fs::remove_file(&part)?;
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(seed.expose())?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(failed)?;
    Ok(seed)
}

/// A new seed, for `path`, of which errors speak; nothing is written.
pub(crate) fn new_seed(path: &Path) -> Result<Secret, VolumesError> {
    Secret::fill_with(KEY_BYTES, |bytes| {
        getrandom::fill(bytes).map_err(|error| VolumesError::Io {
            what: "draw random bytes for",
            path: path.to_owned(),
            source: std::io::Error::other(error.to_string()),
        })
    })
}

/// The name of the chain that begins with `seed`.
///
/// # Errors
/// [`VolumesError::AuditSeed`].
pub fn chain_of(seed: &Secret) -> Result<String, VolumesError> {
    Ok(ChainKey::of(seed.expose())?.chain())
}

/// The seed in a file, which nobody else may read.
///
/// # Errors
/// [`VolumesError::File`] with the `chmod` that mends it, [`VolumesError::KeySource`], [`VolumesError::AuditSeed`].
pub fn read_seed(path: &Path) -> Result<Secret, VolumesError> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).map_err(VolumesError::io("read", path))?;
    if metadata.mode() & 0o077 != 0 {
        let what = format!("others may read the seed (mode {:04o}); chmod 600 mends it", metadata.mode() & 0o7777);
        return Err(VolumesError::File { path: path.to_owned(), what });
    }
    let seed = KeyFile::whole(path).read()?;
    if seed.len() != KEY_BYTES {
        return Err(VolumesError::AuditSeed { len_bytes: seed.len() });
    }
    Ok(seed)
}
