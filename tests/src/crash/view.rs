//! What a platter holds: its header, its keyslots, and which passphrases open them to which key.
//!
//! Opening a keyslot costs milliseconds and depends on the header's text, the area's bytes and the passphrase alone; so the
//! answer is kept under the hash of these three, and the many platters that differ elsewhere share it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use block::{BlockIo, Bytes, MemDisk};
use luks::luks1::{self, Luks1Container, Luks1Header};
use luks::{Container, CopyState, Error, Header, KeyslotId, Limits, Position, Purpose, UnlockRequest};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

use super::sample::secret;
use super::surroundings::Surroundings;

/// SHA-256.
pub type Hash = [u8; 32];

/// One keyslot as the header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its id.
    pub id: u32,
    /// Where its area starts.
    pub offset: Bytes,
    /// How long it is.
    pub size: Bytes,
}

/// What the header of a platter says, of either version.
#[derive(Debug, Clone)]
pub struct View {
    /// Hash of all that the header says.
    pub identity: Hash,
    /// What the header says apart from its keyslots: label, UUID, tokens, segments and so on.
    pub rest: String,
    /// Number of this state.
    pub seqid: u64,
    /// Whether both copies are whole and the same.
    pub healthy: bool,
    /// Whether both copies are valid, one of them older.
    pub stale: Option<Position>,
    /// Its keyslots.
    pub slots: Vec<Slot>,
}

impl View {
    /// Reads the header of `disk`.
    ///
    /// # Errors
    /// Those of the load.
    pub fn of(disk: &MemDisk) -> Result<View, Error> {
        match luks::load_unlocked(disk, &Limits::default()) {
            Ok(header) => Ok(View::of_luks2(&header)),
            Err(Error::Luks1) => Ok(View::of_luks1(&luks1::load_unlocked(disk)?)),
            Err(error) => Err(error),
        }
    }

    fn of_luks2(header: &Header) -> View {
        let health = header.health();
        let stale = [Position::Primary, Position::Secondary]
            .into_iter()
            .find(|position| matches!(health.of(*position), CopyState::Obsolete { .. }));
        let slots = header.metadata().keyslots.iter();
        let slots = slots.map(|(id, slot)| Slot { id: id.0, offset: slot.area.offset, size: slot.area.size });
        let rest = rest(header);
        let mut identity = Sha256::new();
        identity.update(header.seqid().to_be_bytes());
        identity.update(&rest);
        identity.update(header.json_area());
        View {
            identity: identity.finalize().into(),
            rest,
            seqid: header.seqid(),
            healthy: health.is_healthy(),
            stale,
            slots: slots.collect(),
        }
    }

    /// One copy without number or checksum. What stands in a disabled keyslot is nothing.
    fn of_luks1(header: &Luks1Header) -> View {
        let mut said = header.clone();
        for slot in said.slots.iter_mut().filter(|slot| !slot.enabled) {
            (slot.iterations, slot.salt) = (0, [0; 32]);
        }
        let slots = header.enabled().map(|(id, slot)| Slot {
            id,
            offset: header.material_offset(slot),
            size: header.material_size(),
        });
        let slots = slots.collect();
        let identity = Sha256::digest(said.to_bytes()).into();
        for slot in &mut said.slots {
            (slot.enabled, slot.iterations, slot.salt) = (false, 0, [0; 32]);
        }
        let rest = format!("LUKS1 {:?}", said.to_bytes());
        View { identity, rest, seqid: 0, healthy: true, stale: None, slots }
    }

    /// Whether the header names this keyslot.
    #[must_use]
    pub fn names(&self, id: u32) -> bool {
        self.slots.iter().any(|slot| slot.id == id)
    }
}

/// All that is not about keyslots. What a token says of keyslots is about them.
fn rest(header: &Header) -> String {
    let mut map = header.metadata().to_map();
    map.remove("keyslots");
    map.remove("digests");
    for (_, token) in map.get_mut("tokens").and_then(|tokens| tokens.as_object_mut()).into_iter().flatten() {
        token.as_object_mut().unwrap().remove("keyslots");
    }
    let json = serde_json::to_string(&map).unwrap();
    format!("label {:?} subsystem {:?} uuid {:?} {json}", header.label(), header.subsystem(), header.uuid())
}

/// The older of two valid copies, alone on its disk: the newer one is made unrecognisable.
#[must_use]
pub fn stale_copy_alone(disk: &MemDisk, stale: Position, copy_size: Bytes) -> MemDisk {
    let alone = disk.snapshot();
    let other = if stale == Position::Primary { copy_size } else { Bytes(0) };
    alone.write_at(other, &[0; 512], false).unwrap();
    alone
}

/// Opens keyslots, each different one once.
#[derive(Default)]
pub struct Opener {
    known: HashMap<Hash, Option<Hash>>,
}

impl Opener {
    /// The hash of the key that `passphrase` opens in the keyslot `slot` of `disk`; `None` if it opens nothing.
    pub fn open(&mut self, disk: &MemDisk, view: &View, slot: &Slot, passphrase: &str) -> Option<Hash> {
        let mut area = vec![0; slot.size.0 as usize];
        disk.read_at(slot.offset, &mut area).unwrap();
        let mut question = Sha256::new();
        for part in [&view.identity[..], &slot.id.to_be_bytes(), passphrase.as_bytes(), &area] {
            question.update(part);
        }
        let question: Hash = question.finalize().into();
        if let Some(answer) = self.known.get(&question) {
            return *answer;
        }
        let answer = open_slot(&Arc::new(disk.snapshot()), slot.id, passphrase);
        self.known.insert(question, answer);
        answer
    }
}

fn open_slot(disk: &Arc<MemDisk>, id: u32, passphrase: &str) -> Option<Hash> {
    let (surroundings, id) = (Surroundings::new(0), KeyslotId(id));
    let key = match Container::open(Arc::clone(disk), Arc::clone(disk), Limits::default()) {
        Ok(container) => {
            let request = UnlockRequest { keyslot: Some(id), purpose: Purpose::AnyDigest };
            container.unlock(&surroundings.env(), &request, &secret(passphrase)).ok()?
        }
        Err(_) => {
            let container = Luks1Container::open(Arc::clone(disk), Arc::clone(disk), Limits::default()).ok()?;
            container.unlock(&surroundings.env(), Some(id), &secret(passphrase)).ok()?
        }
    };
    Some(Sha256::digest(key.expose()).into())
}
