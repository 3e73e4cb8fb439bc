//! Sequences of edits against a model. Input: triples of bytes, an operation and two choices, at most [`STEPS_MAX`].
//!
//! | operation (modulo 10) | choices |
//! |---|---|
//! | 0, 1 add a keyslot | passphrase; id, or any |
//! | 2 kill a keyslot | id; whether the last may go |
//! | 3 remove by passphrase | passphrase; whether the last may go |
//! | 4, 5 change a passphrase | the old and the new one; only in one keyslot, or in whichever |
//! | 6 label | one of four |
//! | 7 subsystem, or UUID | one of four |
//! | 8 open the container anew | – |
//! | 9 another handle edits first | ours is refused, and works when it has read again |
//!
//! The model knows which passphrase is in which keyslot. After every step the disk loads as a healthy header that says what
//! the model says, and of all passphrases exactly the model's open it; an operation that fails changes nothing.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use block::{BlockIo, Bytes, MemDisk};
use luks::{
    Container, Error, FormatParams, KdfParams, KeyslotId, LastSlot, Limits, NewKdf, NewKeyslot, UnlockRequest,
    VolumeKey, load_unlocked,
};
use secret::Secret;

use super::Rules;
use super::surroundings::Surroundings;

const STEPS_MAX: usize = 12;
/// Areas that fit the keyslots area: a key of 128 bits takes 64 KiB.
const ROOM: usize = 4;
const DATA: u64 = (32 << 10) + ROOM as u64 * (64 << 10);
/// None of them is another one with zeros behind it: to PBKDF2 those are the same.
const PASSPHRASES: [&[u8]; 5] = [b"first", b"second", b"", b"first ", b"\xff\n"];
const NAMES: [Option<&str>; 4] =
    [None, Some("a"), Some("of forty-seven bytes, which is all that it takes!"), Some("ü")];
const UUIDS: [&str; 2] = ["01234567-89ab-cdef-0123-456789abcdef", "fedcba98-7654-3210-fedc-ba9876543210"];
/// What the first sector of the data holds.
const PLAIN: [u8; 512] = [0x5a; 512];

/// What the container must be like.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    /// The passphrase in each keyslot, by its number in [`PASSPHRASES`].
    keyslots: BTreeMap<u32, usize>,
    label: String,
    subsystem: String,
    uuid: String,
    seqid: u64,
}

/// Container and model side by side.
struct Pair<'a> {
    disk: &'a MemDisk,
    container: Container<&'a MemDisk, &'a MemDisk>,
    key: VolumeKey,
    model: Model,
    surroundings: &'a Surroundings,
}

pub(crate) fn run(input: &[u8]) -> Rules {
    let disk = MemDisk::from_bytes(template());
    let surroundings = Surroundings::new(11);
    let container = open(&disk);
    let key = container.unlock(&surroundings.env(), &UnlockRequest::default(), &secret(0)).expect("unlock");
    let model = Model {
        keyslots: BTreeMap::from([(0, 0)]),
        label: String::new(),
        subsystem: String::new(),
        uuid: UUIDS[0].to_owned(),
        seqid: container.header().seqid(),
    };
    let mut pair = Pair { disk: &disk, container, key, model, surroundings: &surroundings };
    for step in input.as_chunks::<3>().0.iter().take(STEPS_MAX) {
        pair.step(*step);
        pair.check();
    }
    let volume = pair.container.volume(&pair.key, true).expect("volume");
    let mut sector = PLAIN.map(|byte| !byte);
    volume.read_at(Bytes(0), &mut sector).expect("read");
    assert_eq!(sector, PLAIN, "the data changed");
    Rules::new()
}

fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let (disk, surroundings) = (MemDisk::new(Bytes(DATA + 4096)), Surroundings::new(7));
        let params = FormatParams {
            cipher: "aes-cbc-plain64".to_owned(),
            key_size_bits: Some(128),
            sector_size: Some(512),
            kdf: NewKdf::Given(KdfParams::minimal_for_random_key()),
            uuid: Some(UUIDS[0].to_owned()),
            data_offset: Some(Bytes(DATA)),
            ..FormatParams::default()
        };
        luks::format::format(&disk, &disk, &surroundings.env(), &params, &secret(0)).expect("format");
        let container = open(&disk);
        let key = container.unlock(&surroundings.env(), &UnlockRequest::default(), &secret(0)).expect("unlock");
        let volume = container.volume(&key, false).expect("volume");
        volume.write_at(Bytes(0), &PLAIN, true).expect("write");
        let mut bytes = vec![0; usize::try_from(DATA + 4096).expect("length")];
        disk.read_at(Bytes(0), &mut bytes).expect("read");
        bytes
    })
}

fn open(disk: &MemDisk) -> Container<&MemDisk, &MemDisk> {
    Container::open(disk, disk, Limits::default()).expect("open")
}

fn secret(passphrase: usize) -> Secret {
    Secret::copy_of(PASSPHRASES[passphrase]).expect("memory")
}

fn last(choice: u8) -> LastSlot {
    if choice & 1 == 0 { LastSlot::Refuse } else { LastSlot::Allow }
}

impl Pair<'_> {
    fn step(&mut self, [operation, one, other]: [u8; 3]) {
        match operation % 10 {
            0 | 1 => self.add(usize::from(one) % PASSPHRASES.len(), other),
            2 => self.kill(u32::from(one % 6), last(other)),
            3 => self.remove(usize::from(one) % PASSPHRASES.len(), last(other)),
            4 | 5 => self.change(usize::from(one) % PASSPHRASES.len(), usize::from(one / 5) % PASSPHRASES.len(), other),
            6 => {
                let label = NAMES[usize::from(one) % NAMES.len()];
                let done = self.container.set_label(label);
                self.named(done, label, |model| &mut model.label);
            }
            7 if other & 1 == 0 => {
                let subsystem = NAMES[usize::from(one) % NAMES.len()];
                let done = self.container.set_subsystem(subsystem);
                self.named(done, subsystem, |model| &mut model.subsystem);
            }
            7 => {
                let uuid = UUIDS[usize::from(one) % UUIDS.len()];
                self.container.set_uuid(uuid).expect("set the UUID");
                uuid.clone_into(&mut self.model.uuid);
            }
            8 => self.container = open(self.disk),
            _ => self.stale(),
        }
    }

    /// A name of 48 bytes or more is refused, every other one taken.
    fn named(&mut self, done: Result<(), Error>, name: Option<&str>, field: impl FnOnce(&mut Model) -> &mut String) {
        let name = name.unwrap_or_default();
        match done {
            Ok(()) => {
                assert!(name.len() < 48, "{name:?} was taken");
                name.clone_into(field(&mut self.model));
            }
            Err(error) => assert!(name.len() >= 48, "{error}"),
        }
    }

    /// The lowest free keyslot, or the one that was asked for.
    fn new_keyslot(choice: u8) -> NewKeyslot {
        let id = (choice & 0x80 != 0).then(|| KeyslotId(u32::from(choice % 34)));
        NewKeyslot { id, ..NewKeyslot::new(KdfParams::minimal_for_random_key()) }
    }

    /// Whether a new keyslot of this id is possible, as `error` says.
    fn expect_refusal(&self, wanted: Option<KeyslotId>, error: &Error) {
        match error {
            Error::KeyslotInUse { .. } => assert!(wanted.is_some_and(|id| self.model.keyslots.contains_key(&id.0))),
            Error::KeyslotRange { .. } => assert!(wanted.is_some_and(|id| id.0 >= 32)),
            Error::NoFreeArea { .. } => assert_eq!(self.model.keyslots.len(), ROOM),
            other => panic!("{other}"),
        }
    }

    fn add(&mut self, passphrase: usize, choice: u8) {
        let new = Self::new_keyslot(choice);
        match self.container.keyslot_add(&self.surroundings.env(), &self.key, &secret(passphrase), &new) {
            Ok(id) => {
                let free = (0..32).find(|id| !self.model.keyslots.contains_key(id)).expect("a free id");
                assert_eq!(id, new.id.unwrap_or(KeyslotId(free)));
                assert_eq!(self.model.keyslots.insert(id.0, passphrase), None, "keyslot {id} was taken");
                assert!(self.model.keyslots.len() <= ROOM);
            }
            Err(error) => self.expect_refusal(new.id, &error),
        }
    }

    fn kill(&mut self, id: u32, last: LastSlot) {
        match self.container.keyslot_kill(&self.surroundings.env(), KeyslotId(id), last) {
            Ok(()) => self.gone(id, last),
            Err(Error::KeyslotMissing { .. }) => assert!(!self.model.keyslots.contains_key(&id)),
            Err(Error::LastKeyslot { .. }) => {
                assert!(
                    last == LastSlot::Refuse && self.model.keyslots.len() == 1 && self.model.keyslots.contains_key(&id)
                );
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn remove(&mut self, passphrase: usize, last: LastSlot) {
        match self.container.keyslot_remove(&self.surroundings.env(), &secret(passphrase), last) {
            Ok(id) => {
                assert_eq!(self.model.keyslots.get(&id.0), Some(&passphrase));
                self.gone(id.0, last);
            }
            Err(Error::NoKey { .. }) => assert!(!self.holds(passphrase)),
            Err(Error::NoUsableKeyslot { broken }) => assert!(broken.is_empty() && self.model.keyslots.is_empty()),
            Err(Error::LastKeyslot { .. }) => {
                assert!(last == LastSlot::Refuse && self.model.keyslots.len() == 1 && self.holds(passphrase));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn gone(&mut self, id: u32, last: LastSlot) {
        assert!(self.model.keyslots.remove(&id).is_some(), "keyslot {id} was not there");
        assert!(!self.model.keyslots.is_empty() || last == LastSlot::Allow, "the last keyslot went unasked");
    }

    fn change(&mut self, old: usize, new: usize, choice: u8) {
        let only = (choice & 0x40 != 0).then(|| KeyslotId(u32::from(choice % 5)));
        let parameters = NewKeyslot { id: None, ..Self::new_keyslot(choice) };
        let env = self.surroundings.env();
        match self.container.keyslot_change(&env, &secret(old), only, &secret(new), &parameters) {
            Ok(id) => {
                assert!(only.is_none_or(|only| only == id));
                assert_eq!(self.model.keyslots.insert(id.0, new), Some(old), "keyslot {id} held something else");
                assert!(self.model.keyslots.len() < ROOM, "there was no room to change anything");
            }
            Err(Error::KeyslotMissing { .. }) => {
                assert!(only.is_some_and(|id| !self.model.keyslots.contains_key(&id.0)))
            }
            Err(Error::NoKey { .. }) => match only {
                Some(only) => assert_ne!(self.model.keyslots.get(&only.0), Some(&old)),
                None => assert!(!self.holds(old)),
            },
            Err(Error::NoUsableKeyslot { broken }) => assert!(broken.is_empty() && self.model.keyslots.is_empty()),
            Err(error) => self.expect_refusal(None, &error),
        }
    }

    /// Another handle, which does not know of ours, changes the header first.
    fn stale(&mut self) {
        let mut other = open(self.disk);
        other.set_label(Some("another's")).expect("the other's edit");
        let refused = self.container.set_label(Some("ours")).expect_err("a stale handle was let through");
        assert!(matches!(refused, Error::ConcurrentUpdate { .. }), "{refused}");
        self.container.reload().expect("reload");
        "another's".clone_into(&mut self.model.label);
    }

    fn holds(&self, passphrase: usize) -> bool {
        self.model.keyslots.values().any(|held| *held == passphrase)
    }

    /// The disk is as the model says, and so is the handle.
    fn check(&mut self) {
        let header = load_unlocked(self.disk, &Limits::default()).expect("no header any more");
        assert!(header.health().is_healthy(), "{:?}", header.health());
        assert!(header.seqid() >= self.model.seqid, "the sequence number went back");
        self.model.seqid = header.seqid();
        for header in [&header, self.container.header()] {
            assert_eq!(header.seqid(), self.model.seqid);
            let names = [header.label(), header.subsystem(), header.uuid()];
            assert_eq!(names, [&self.model.label, &self.model.subsystem, &self.model.uuid].map(String::clone));
            let mut ids: Vec<u32> = header.metadata().keyslots.ids().map(|id| id.0).collect();
            ids.sort_unstable();
            assert!(ids.iter().eq(self.model.keyslots.keys()), "{ids:?}, not {:?}", self.model.keyslots);
        }
        for passphrase in 0..PASSPHRASES.len() {
            let unlocked =
                self.container.unlock(&self.surroundings.env(), &UnlockRequest::default(), &secret(passphrase));
            match unlocked {
                Ok(key) => {
                    let id = key.keyslot().expect("a keyslot").0;
                    assert_eq!(self.model.keyslots.get(&id), Some(&passphrase), "keyslot {id} opened");
                    assert_eq!(key.expose(), self.key.expose());
                }
                Err(Error::NoKey { .. }) => assert!(!self.holds(passphrase), "passphrase {passphrase} is lost"),
                Err(Error::NoUsableKeyslot { broken }) => {
                    assert!(broken.is_empty() && self.model.keyslots.is_empty(), "{broken:?}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
