//! [`Metadata`]: what `key_metadata.json` says about every key: generations, states, rotation journal, policy, counters.
//!
//! Invariants, held on reading and before each writing ([`Metadata::check`]): generations ascend from 1; at most one is
//! active and at most one staged; a journal names two generations in the states that its step demands. The file can be
//! read without the master secret, but is believed only after its authentication code was held (`Store::open`).

mod json;

pub use json::{METADATA_FILE, from_json};
pub(crate) use json::{field_error, to_json};

use crate::limits::{GENERATIONS_MAX, KEYS_MAX, VALUES_MAX, WIPED_KEPT};
use crate::sealed::Purpose;
use crate::{Error, KeyName, Policy, Timestamp};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Opens a volume.
    Volume,
    /// Encrypts backups.
    Backup,
    /// The recovery key, which backups of keys are encrypted for.
    Recovery,
}

impl KeyKind {
    pub(crate) const ALL: [(&'static str, KeyKind); 3] =
        [("volume", KeyKind::Volume), ("backup", KeyKind::Backup), ("recovery", KeyKind::Recovery)];

    pub(crate) fn purpose(self) -> Purpose {
        match self {
            KeyKind::Volume => Purpose::VolumeKey,
            KeyKind::Backup => Purpose::BackupKey,
            KeyKind::Recovery => Purpose::RecoveryKey,
        }
    }
}

/// Where a generation of a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyState {
    /// Made, or about to be made; nothing needs it yet.
    Staged,
    /// In use.
    Active,
    /// No longer in use, still sealed in the store.
    Retired,
    /// Destroyed.
    Wiped,
}

impl KeyState {
    pub(crate) const ALL: [(&'static str, KeyState); 4] = [
        ("staged", KeyState::Staged),
        ("active", KeyState::Active),
        ("retired", KeyState::Retired),
        ("wiped", KeyState::Wiped),
    ];
}

/// The last durable step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The journal stands; the new key may be made and its slot may be written.
    Staged,
    /// The new slot was written.
    SlotWritten,
    /// The new key opened the volume.
    Proven,
    /// The new key is the active one.
    Committed,
    /// The old key opens the volume no more.
    OldSlotWiped,
}

impl Step {
    pub(crate) const ALL: [(&'static str, Step); 5] = [
        ("staged", Step::Staged),
        ("slot-written", Step::SlotWritten),
        ("proven", Step::Proven),
        ("committed", Step::Committed),
        ("old-slot-wiped", Step::OldSlotWiped),
    ];
}

/// What becomes of the old key at the end of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldKey {
    /// It is destroyed.
    Wipe,
    /// It stays sealed until [`crate::Store::prune`], as older backups need it.
    Keep,
}

impl OldKey {
    pub(crate) const ALL: [(&'static str, OldKey); 2] = [("wipe", OldKey::Wipe), ("keep", OldKey::Keep)];
}

/// The journal of one rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The generation that goes.
    pub from: u64,
    /// The generation that comes.
    pub to: u64,
    /// How far it is.
    pub step: Step,
    /// What becomes of the old key.
    pub old_key: OldKey,
}

/// One generation of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number, from 1.
    pub number: u64,
    /// Where it is in its life.
    pub state: KeyState,
    /// When it was made.
    pub created: Timestamp,
    /// When it came into use.
    pub activated: Option<Timestamp>,
    /// When it went out of use.
    pub retired: Option<Timestamp>,
    /// When it was destroyed.
    pub wiped: Option<Timestamp>,
}

/// One key with its generations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// What it is for.
    pub kind: KeyKind,
    /// The UUID of the volume; nil for a key without one.
    pub volume: Uuid,
    /// Its generations, ascending.
    pub generations: Vec<Generation>,
    /// The rotation that has not ended.
    pub rotation: Option<Rotation>,
    /// Bytes written under the volume key of this volume, where they were served by us.
    pub written_bytes: u128,
    /// Members that this version does not know, kept as they are.
    pub(crate) unknown: Map<String, Value>,
}

impl KeyRecord {
    pub(crate) fn new(kind: KeyKind, volume: Uuid) -> KeyRecord {
        let unknown = Map::new();
        KeyRecord { kind, volume, generations: Vec::new(), rotation: None, written_bytes: 0, unknown }
    }

    /// The generation in this state; of several the newest.
    pub fn in_state(&self, state: KeyState) -> Option<&Generation> {
        self.generations.iter().rev().find(|generation| generation.state == state)
    }

    /// The generation in use.
    pub fn active(&self) -> Option<&Generation> {
        self.in_state(KeyState::Active)
    }

    /// The generation of this number.
    pub fn generation(&self, number: u64) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.number == number)
    }

    /// The generations whose secret is in the store.
    pub fn live(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter().filter(|generation| generation.state != KeyState::Wiped)
    }

    /// Adds a staged generation; its number.
    pub(crate) fn stage(&mut self, now: Timestamp) -> u64 {
        let number = self.generations.last().map_or(0, |last| last.number) + 1;
        let (activated, retired, wiped) = (None, None, None);
        let state = KeyState::Staged;
        self.generations.push(Generation { number, state, created: now, activated, retired, wiped });
        number
    }

    /// Moves generation `number` to `state`; the time is noted once.
    pub(crate) fn set_state(&mut self, number: u64, state: KeyState, now: Timestamp) {
        let Some(generation) = self.generations.iter_mut().find(|generation| generation.number == number) else {
            return;
        };
        generation.state = state;
        match state {
            KeyState::Staged => {}
            KeyState::Active => {
                generation.activated.get_or_insert(now);
                generation.retired = None;
            }
            KeyState::Retired => generation.retired = Some(now),
            KeyState::Wiped => generation.wiped = Some(now),
        }
        let wiped = self.generations.iter().filter(|generation| generation.state == KeyState::Wiped).count();
        let mut surplus = wiped.saturating_sub(WIPED_KEPT);
        let last = self.generations.last().map_or(0, |last| last.number);
        // The last one stays in any case, so that its number is not given again.
        self.generations.retain(|generation| {
            let goes = surplus > 0 && generation.state == KeyState::Wiped && generation.number != last;
            surplus -= usize::from(goes);
            !goes
        });
    }
}

/// A small value, whose secret is in `secrets/NAME.sealed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueRecord {
    /// How often it was set.
    pub generation: u64,
    /// When it was set last.
    pub updated: Timestamp,
}

/// All that the store says in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The UUID of the store.
    pub store: Uuid,
    /// How often the metadata was written.
    pub epoch: u64,
    /// When it was written last; never goes back.
    pub updated: Timestamp,
    /// Which master secret it hangs on.
    pub master_id: [u8; 16],
    /// When this master secret came into use.
    pub master_since: Timestamp,
    /// How often keys are rotated and how long their backups are kept.
    pub policy: Policy,
    /// The keys.
    pub keys: BTreeMap<KeyName, KeyRecord>,
    /// The small values.
    pub values: BTreeMap<KeyName, ValueRecord>,
    /// Members that this version does not know, kept as they are.
    pub(crate) unknown: Map<String, Value>,
}

impl Metadata {
    /// Holds the rules that go across members.
    ///
    /// # Errors
    /// [`Error::Field`] names the first member that breaks one, [`Error::Full`].
    pub fn check(&self) -> Result<(), Error> {
        for (what, count, limit) in
            [("keys", self.keys.len(), KEYS_MAX), ("small values", self.values.len(), VALUES_MAX)]
        {
            if count > limit {
                return Err(Error::Full { what, limit });
            }
        }
        self.policy.check()?;
        self.keys.iter().try_for_each(|(name, record)| check_record(name, record))
    }
}

fn check_record(name: &KeyName, record: &KeyRecord) -> Result<(), Error> {
    let wrong = |member: String, problem: &str| field_error(format!("keys.{name}.{member}"), problem);
    if record.generations.len() > GENERATIONS_MAX {
        return Err(Error::Full { what: "generations of a key", limit: GENERATIONS_MAX });
    }
    let mut before = 0;
    for (index, generation) in record.generations.iter().enumerate() {
        let wrong = |member: &str, problem| wrong(format!("generations[{index}].{member}"), problem);
        if generation.number <= before {
            return Err(wrong("generation", "is not above the one before"));
        }
        before = generation.number;
        let (activated, retired) = (generation.activated.is_some(), generation.retired.is_some());
        let fits = match generation.state {
            KeyState::Staged => !activated && !retired && generation.wiped.is_none(),
            KeyState::Active => activated && !retired && generation.wiped.is_none(),
            KeyState::Retired => activated && retired && generation.wiped.is_none(),
            KeyState::Wiped => generation.wiped.is_some(),
        };
        if !fits {
            return Err(wrong("state", "does not fit the times of the generation"));
        }
    }
    for (text, state) in [("staged", KeyState::Staged), ("active", KeyState::Active)] {
        if record.generations.iter().filter(|generation| generation.state == state).count() > 1 {
            return Err(wrong("generations".into(), &format!("has more than one that is {text}")));
        }
    }
    let Some(rotation) = &record.rotation else { return Ok(()) };
    let state = |number| record.generation(number).map(|generation| generation.state);
    let wanted = if rotation.step < Step::Committed {
        (KeyState::Active, KeyState::Staged)
    } else {
        (KeyState::Retired, KeyState::Active)
    };
    if state(rotation.from) != Some(wanted.0) {
        return Err(wrong("rotation.from".into(), "names no generation in the state that the step demands"));
    }
    if state(rotation.to) != Some(wanted.1) {
        return Err(wrong("rotation.to".into(), "names no generation in the state that the step demands"));
    }
    Ok(())
}

/// Lower-case hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Exactly `N` bytes from hexadecimal digits.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(0)? << 4 | digit(1)?;
    }
    Some(bytes)
}
