//! Verifying the keys of a set: every sealed file, every volume, the newest backup of keys.

use keystore::{Folder, KeyKind, KeyName, Slots as _, key_backup};
use serde::Serialize;

use super::{PATIENCE, VolumeSlots};
use crate::VolumesError;
use crate::audit::{Category, Event, Level, Outcome};
use crate::set::{Set, SetStore};

/// What one look gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// What was looked at.
    pub what: String,
    /// What is wrong with it; none if it is good.
    pub problem: Option<String>,
}

impl Verified {
    fn new(what: String, result: Result<(), impl ToString>) -> Verified {
        Verified { what, problem: result.err().map(|error| error.to_string()) }
    }
}

/// Looks at everything, and records how it ended.
///
/// # Errors
/// As [`Set::record`]; what is wrong with a key is no error here.
pub fn verify(set: &Set, store: &SetStore) -> Result<Vec<Verified>, VolumesError> {
    let mut checked = Vec::new();
    for one in store.verify() {
        let kind = if one.is_value { "secret" } else { "key" };
        checked.push(Verified::new(format!("{kind} {}, generation {}", one.name, one.generation), one.result));
    }
    for stray in store.strays()? {
        let problem = "is sealed, but the store does not know it: was an older copy put back?";
        checked.push(Verified::new(format!("file {stray}"), Err(problem)));
    }
    for volume in &set.config().volumes {
        checked.push(Verified::new(format!("volume {}", volume.name), opens(store, volume)));
    }
    if store.recovery_key()?.is_some() {
        checked.push(Verified::new("newest backup of keys".to_owned(), backup(set, store)));
    }
    let bad = checked.iter().filter(|one| one.problem.is_some()).count();
    let event = Event::new(Category::Key, "verify", "key-store").detail("looked_at", checked.len()).detail("bad", bad);
    let event = if bad == 0 { event } else { event.level(Level::High).ended(Outcome::Failed) };
    set.record(&event)?;
    Ok(checked)
}

/// Whether the key in use opens the volume.
fn opens(store: &SetStore, volume: &crate::config::VolumeSpec) -> Result<(), String> {
    let name = KeyName::new(&volume.name).map_err(|error| error.to_string())?;
    let Some(record) = store.metadata().keys.get(&name) else { return Err("has no key in the store".to_owned()) };
    let key = store.key(&name).map_err(|error| error.to_string())?;
    match VolumeSlots::new(volume, record.volume).opens(&key) {
        Ok(true) => Ok(()),
        Ok(false) => Err("the key in use does not open it".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the newest backup opens and has every key in use.
fn backup(set: &Set, store: &SetStore) -> Result<(), String> {
    let text = |error: keystore::Error| error.to_string();
    let folder = Folder::open(&set.config().store.key_backup, PATIENCE).map_err(text)?;
    let Some((_, newest)) = key_backup::list(&folder).map_err(text)?.pop() else {
        return Err("there is none".to_owned());
    };
    let message = key_backup::read(&folder, &newest).map_err(text)?;
    let recovery = store.recovery_key().map_err(text)?.ok_or("there is no recovery key")?;
    let files = key_backup::open(&recovery, &newest, &message).map_err(text)?;
    for (name, record) in &store.metadata().keys {
        if record.kind == KeyKind::Recovery || record.active().is_none() {
            continue;
        }
        let file = format!("{name}.key");
        let key = store.key(name).map_err(text)?;
        if !files.iter().any(|(found, content)| *found == file && content.ct_eq(key.expose())) {
            return Err(format!("{newest} does not have the key of {name} that is in use; `luksctl key export-set`"));
        }
    }
    Ok(())
}
