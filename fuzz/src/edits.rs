//! Sequences of edits against a model. Input: triples of bytes, an operation and two choices, at most [`STEPS_MAX`].
//!
//! | operation (modulo 24) | choices |
//! |---|---|
//! | 0, 1 add a keyslot | passphrase; id, cipher, hash, priority |
//! | 2 add an unbound keyslot | passphrase and length of the key; as above |
//! | 3 kill a keyslot | id; whether the last may go |
//! | 4 remove by passphrase | passphrase; whether the last may go |
//! | 5, 6 change a passphrase, or convert the keyslot | the old and the new one; in place or not, in one keyslot or any, cipher … |
//! | 7, 8 label, subsystem, UUID | text; which of them |
//! | 9 open the container anew | – |
//! | 10 another handle edits first | ours is refused, and works when it has read again |
//! | 11, 12 add a token | id; which one, for which keyslots |
//! | 13 replace a token | id; the same |
//! | 14 remove a token | id |
//! | 15 assign, unassign | token; keyslot, which of both |
//! | 16 name a keyslot | keyslot; name |
//! | 17 priority | keyslot; priority |
//! | 18 flags | which |
//! | 19 erase | – |
//! | 20 header backup | – |
//! | 21 restore it | whether the device changes after the plan, and our handle stays as it is |
//! | 22 damage a copy | where; repair, or an edit |
//! | 23 a removal that was cut short, finished | keyslot |
//!
//! After every step the disk loads as a healthy header that says what the [`Model`] says, down to the place of each area; an
//! operation that fails changes no byte. That keyslots open is proven at the end only, for the derivations are nearly all of
//! the time of a run: until then their salts, areas and digests must stay as they were made. At the end a passphrase is also
//! tried without a keyslot's number: what it opens is what the model says.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use block::{BlockIo, Bytes, MemDisk};
use luks::{
    Container, Error, FormatParams, KdfParams, KeyslotId, Limits, NewKdf, Purpose, UnlockRequest, VolumeKey,
    load_unlocked,
};
use secret::Secret;
use serde_json::Value;

mod keyslots;
mod model;
mod tokens;
mod whole;

use self::model::{AREAS, Model, ROOM, Slot};
use super::Rules;
use super::surroundings::Surroundings;

const STEPS_MAX: usize = 16;
const DATA: u64 = AREAS + ROOM;
const DISK: u64 = DATA + 4096;
const KEY_BYTES: usize = 16;
/// None of them is another one with zeros behind it: to PBKDF2 those are the same.
const PASSPHRASES: [&[u8]; 5] = [b"first", b"second", b"", b"first ", b"\xff\n"];
const UUIDS: [&str; 2] = ["01234567-89ab-cdef-0123-456789abcdef", "fedcba98-7654-3210-fedc-ba9876543210"];
/// Where the primary copy has its sequence number.
const SEQID: std::ops::Range<usize> = 16..24;
/// What the first sector of the data holds.
const PLAIN: [u8; 512] = [0x5a; 512];

/// What a keyslot is made of: its description, its area, and the digest that it answers to.
type Made = (String, Vec<u8>, String);

/// Container and model side by side.
struct Pair<'a> {
    disk: &'a MemDisk,
    container: Container<&'a MemDisk, &'a MemDisk>,
    key: VolumeKey,
    model: Model,
    kept: Option<whole::Kept>,
    /// The keyslots as they were made, and with which passphrase.
    made: BTreeMap<u32, (Made, usize)>,
    /// Whether the last step wrote a header that need not have a new sequence number.
    rewritten: bool,
    surroundings: &'a Surroundings,
}

pub(crate) fn run(input: &[u8]) -> Rules {
    let disk = MemDisk::from_bytes(template());
    let surroundings = Surroundings::new(11);
    let container = open(&disk);
    let seqid = container.header().seqid();
    let key = Secret::copy_of(&template_key()).expect("memory");
    let key = container.recognise(Purpose::DefaultSegment, &key).expect("the volume key");
    let first = Slot { passphrase: 0, unbound: None, priority: None, area: (AREAS, model::area_size(KEY_BYTES)) };
    let model = Model {
        slots: vec![(0, first)],
        tokens: Vec::new(),
        flags: Vec::new(),
        label: String::new(),
        subsystem: String::new(),
        uuid: UUIDS[0].to_owned(),
        seqid,
    };
    let (kept, made) = (None, BTreeMap::new());
    let surroundings = &surroundings;
    let mut pair = Pair { disk: &disk, container, key, model, kept, made, rewritten: false, surroundings };
    for step in input.as_chunks::<3>().0.iter().take(STEPS_MAX) {
        let before = content(&disk);
        pair.step(*step);
        pair.check(&before);
    }
    pair.prove();
    let volume = pair.container.volume(&pair.key, true).expect("volume");
    let mut sector = PLAIN.map(|byte| !byte);
    volume.read_at(Bytes(0), &mut sector).expect("read");
    assert_eq!(sector, PLAIN, "the data changed");
    Rules::new()
}

fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let (disk, surroundings) = (MemDisk::new(Bytes(DISK)), Surroundings::new(7));
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
        content(&disk)
    })
}

/// The volume key of the template, which is nobody's secret.
fn template_key() -> [u8; KEY_BYTES] {
    static KEY: OnceLock<[u8; KEY_BYTES]> = OnceLock::new();
    *KEY.get_or_init(|| {
        let (disk, surroundings) = (MemDisk::from_bytes(template()), Surroundings::new(7));
        let key = open(&disk).unlock(&surroundings.env(), &UnlockRequest::default(), &secret(0)).expect("unlock");
        key.expose().try_into().expect("128 bits")
    })
}

fn content(disk: &MemDisk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(DISK).expect("length")];
    disk.read_at(Bytes(0), &mut bytes).expect("read");
    bytes
}

fn open(disk: &MemDisk) -> Container<&MemDisk, &MemDisk> {
    Container::open(disk, disk, Limits::default()).expect("open")
}

fn secret(passphrase: usize) -> Secret {
    Secret::copy_of(PASSPHRASES[passphrase]).expect("memory")
}

impl Pair<'_> {
    fn step(&mut self, [operation, one, other]: [u8; 3]) {
        let passphrase = usize::from(one) % PASSPHRASES.len();
        match operation % 24 {
            0 | 1 => self.add(passphrase, other),
            2 => self.add_unbound(passphrase, one / 5, other),
            3 => self.kill(u32::from(one % 8), keyslots::last(other)),
            4 => self.remove(passphrase, keyslots::last(other)),
            5 | 6 => self.change(one, other),
            7 | 8 => self.text(one, other),
            9 => self.container = open(self.disk),
            10 => self.stale(),
            11 | 12 => self.token_add(one, other),
            13 => self.token_replace(one, other),
            14 => self.token_remove(one),
            15 => self.token_tie(one, other),
            16 => self.slot_name(one, other),
            17 => self.priority(one, other),
            18 => self.flags(one),
            19 => self.erase(),
            20 => self.back_up(),
            21 => self.restore(other),
            22 => self.damage(one, other),
            _ => self.half_remove(one),
        }
    }

    /// The disk is as the model says, and so is the handle.
    fn check(&mut self, before: &[u8]) {
        let header = load_unlocked(self.disk, &Limits::default()).expect("no header any more");
        assert!(header.health().is_healthy(), "{:?}", header.health());
        let now = content(self.disk);
        let rewritten = std::mem::take(&mut self.rewritten);
        assert!(
            rewritten || now[SEQID] != before[SEQID] || now == before,
            "bytes changed, but not the sequence number"
        );
        self.model.seqid = header.seqid();
        for header in [&header, self.container.header()] {
            assert_eq!(header.seqid(), self.model.seqid);
            let names = [header.label(), header.subsystem(), header.uuid()];
            assert_eq!(names, [&self.model.label, &self.model.subsystem, &self.model.uuid].map(String::clone));
            self.check_metadata(header.metadata());
        }
        self.check_material(&header, &now);
    }

    fn check_metadata(&self, metadata: &luks::Metadata) {
        let model = &self.model;
        let ids: Vec<u32> = metadata.keyslots.ids().map(|id| id.0).collect();
        assert!(ids.iter().eq(model.slots.iter().map(|(id, _)| id)), "{ids:?}, not {:?}", model.slots);
        for ((id, slot), (_, expected)) in metadata.keyslots.iter().zip(&model.slots) {
            assert_eq!((slot.area.offset.0, slot.area.size.0), expected.area, "keyslot {id}");
            assert_eq!(slot.priority, expected.priority, "keyslot {id}");
            assert_eq!(slot.key_size_bytes as usize, expected.unbound.unwrap_or(KEY_BYTES), "keyslot {id}");
            let digests: Vec<bool> = metadata
                .digests
                .iter()
                .filter(|(_, digest)| digest.keyslots.contains(&id))
                .map(|(_, digest)| digest.segments.is_empty())
                .collect();
            assert_eq!(digests, [expected.unbound.is_some()], "keyslot {id}");
        }
        let tokens: Vec<u32> = metadata.tokens.ids().map(|id| id.0).collect();
        assert!(tokens.iter().eq(model.tokens.iter().map(|(id, _)| id)), "{tokens:?}, not {:?}", model.tokens);
        for ((id, token), (_, expected)) in metadata.tokens.iter().zip(&model.tokens) {
            let listed: Vec<u32> = token.keyslots.iter().map(|id| id.0).collect();
            assert_eq!((&token.type_name, &listed), (&expected.type_name, &expected.keyslots), "token {id}");
            assert_eq!(Value::Object(token.extra.clone()).to_string(), expected.rest, "token {id}");
            if let Some(spelled) = &expected.spelled {
                assert_eq!(token.to_json(), *spelled, "token {id}");
            }
        }
        assert_eq!(metadata.config.flags, model.flags);
        assert_eq!(metadata.segments.len(), 1);
    }

    /// What keyslots are made of stays as it is, until they are made anew.
    fn check_material(&mut self, header: &luks::Header, disk: &[u8]) {
        let mut made = BTreeMap::new();
        for (id, slot) in header.metadata().keyslots.iter() {
            let Some(Slot { passphrase, area: (offset, size), .. }) = self.model.slot(id.0).cloned() else { continue };
            let area = usize::try_from(offset).expect("small")..usize::try_from(offset + size).expect("small");
            let digest = header.metadata().digests.iter().find(|(_, digest)| digest.keyslots.contains(&id));
            let digest = digest.and_then(|(_, digest)| digest.digest.clone()).expect("a digest");
            let kdf = slot.luks2().map(|slot| format!("{:?} {:?}", slot.kdf, slot.af)).expect("a passphrase slot");
            made.insert(id.0, ((kdf, disk[area].to_vec(), digest), passphrase));
        }
        let kept = std::mem::take(&mut self.made);
        for (id, ((kdf, area, digest), passphrase)) in &kept {
            // The same salt is the same keyslot, whatever it is called now.
            let now = made.values().find(|((now, ..), _)| now == kdf);
            if let Some(((_, now_area, now_digest), now_passphrase)) = now {
                let same = now_area == area && now_digest == digest && now_passphrase == passphrase;
                assert!(same, "the key material of keyslot {id} changed");
            }
        }
        self.made = made;
    }

    /// Every keyslot opens by its number, and every passphrase opens what the model says.
    fn prove(&self) {
        let env = self.surroundings.env();
        for (id, slot) in &self.model.slots {
            let request = UnlockRequest { keyslot: Some(KeyslotId(*id)), purpose: Purpose::AnyDigest };
            let key = self.container.unlock(&env, &request, &secret(slot.passphrase)).expect("a passphrase is lost");
            match slot.unbound {
                None => assert_eq!(key.expose(), self.key.expose()),
                Some(len) => assert!(key.expose().len() == len && key.expose().iter().all(|byte| *byte == 0xa5)),
            }
        }
        let tried = usize::try_from(self.model.seqid).unwrap_or(0) % PASSPHRASES.len();
        match self.container.unlock(&env, &UnlockRequest::default(), &secret(tried)) {
            Ok(key) => assert_eq!(key.keyslot().map(|id| id.0), self.model.opens(tried, false)),
            Err(Error::NoKey { broken, .. }) => {
                assert!(broken.is_empty() && self.model.opens(tried, false).is_none(), "passphrase {tried} is lost");
            }
            Err(Error::NoUsableKeyslot { broken }) => assert!(broken.is_empty() && !self.model.any_tried(false)),
            Err(error) => panic!("{error}"),
        }
    }
}
