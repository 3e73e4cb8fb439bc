//! [`State`]: how far the chain is, and the key of its next record, in two slots that are written in turn.
//!
//! ```text
//! slot i at byte 512 × i, i = count mod 2, zeros behind the newline:
//! "luksctl-audit 1 " count " " file " " length " " head " " chain " " key " " sha256 of all before, with its space "\n"
//! ```
//!
//! The slot with the larger count among those whose checksum holds is the state. Invariant: the slot of the older key is
//! overwritten with zeros once the newer one is durable, so the key of a written record is nowhere.

use secret::Secret;
use sha2::{Digest as _, Sha256};

use super::chain::{ChainKey, KEY_BYTES};
use super::medium::Medium;
use super::{from_hex, hex, month_of};
use crate::VolumesError;

/// Length of one slot.
pub(crate) const SLOT_BYTES: usize = 512;
/// Length of the state.
pub(crate) const STATE_BYTES: usize = 2 * SLOT_BYTES;
const MAGIC: &str = "luksctl-audit 1 ";
/// What stands for the file before the first record.
const NO_FILE: &str = "-";

/// How far the chain is.
pub(crate) struct State {
    /// How many records there are, which is the number of the next.
    pub(crate) count: u64,
    /// The file of the last record; empty before the first.
    pub(crate) file: String,
    /// How long that file is.
    pub(crate) len: u64,
    /// MAC of the last record; zeros before the first.
    pub(crate) head: [u8; 32],
    /// The chain's name, 16 hexadecimal digits.
    pub(crate) chain: String,
    /// Key of the next record.
    pub(crate) key: ChainKey,
}

impl State {
    /// The state of a chain that begins with `seed`.
    pub(crate) fn first(seed: &Secret) -> Result<State, VolumesError> {
        let key = ChainKey::of(seed.expose())?;
        let chain = key.chain();
        Ok(State { count: 0, file: String::new(), len: 0, head: [0; KEY_BYTES], chain, key })
    }

    /// The state in these bytes; `None` if neither slot holds one.
    pub(crate) fn of(bytes: &[u8]) -> Result<Option<State>, VolumesError> {
        let mut best: Option<State> = None;
        for slot in bytes.chunks_exact(SLOT_BYTES) {
            if let Some(state) = State::of_slot(slot)?
                && best.as_ref().is_none_or(|best| state.count > best.count)
            {
                best = Some(state);
            }
        }
        Ok(best)
    }

    fn of_slot(slot: &[u8]) -> Result<Option<State>, VolumesError> {
        let end = slot.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let Ok(text) = std::str::from_utf8(&slot[..end]) else { return Ok(None) };
        let Some(space) = text.rfind(' ') else { return Ok(None) };
        let (body, sum) = text.split_at(space + 1);
        if hex(&Sha256::digest(body.as_bytes())) != sum {
            return Ok(None);
        }
        let fields: Vec<&str> = body.strip_prefix(MAGIC).unwrap_or_default().trim_end().split(' ').collect();
        let [count, file, len, head, chain, key] = fields.as_slice() else { return Ok(None) };
        let (Ok(count), Ok(len), Some(head)) = (count.parse(), len.parse(), from_hex(head)) else { return Ok(None) };
        if *file != NO_FILE && month_of(file).is_none() {
            return Ok(None);
        }
        let chain = (*chain).to_owned();
        let file = if *file == NO_FILE { String::new() } else { (*file).to_owned() };
        let mut secret = Secret::zeroed(KEY_BYTES)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        for (byte, pair) in secret.expose_mut().iter_mut().zip(key.as_bytes().chunks(2)) {
            let [Some(high), Some(low)] = [pair.first(), pair.get(1)].map(|byte| byte.copied().and_then(digit)) else {
                return Ok(None);
            };
            *byte = high << 4 | low;
        }
        Ok(Some(State { count, file, len, head, chain, key: ChainKey::of(secret.expose())? }))
    }

    /// The state on the medium.
    pub(crate) fn read<M: Medium>(medium: &mut M) -> Result<Option<State>, VolumesError> {
        let mut bytes = Secret::zeroed(STATE_BYTES)?;
        medium.read_state(bytes.expose_mut()).map_err(VolumesError::io("read", super::STATE_NAME))?;
        State::of(bytes.expose())
    }

    /// The slot of this state, in locked memory.
    fn slot(&self) -> Result<Secret, VolumesError> {
        let mut slot = Secret::zeroed(SLOT_BYTES)?;
        let file = if self.file.is_empty() { NO_FILE } else { &self.file };
        let open = format!("{MAGIC}{} {file} {} {} {} ", self.count, self.len, hex(&self.head), self.chain);
        let bytes = slot.expose_mut();
        let mut at = 0;
        let mut put = |piece: &[u8]| {
            if let Some(room) = bytes.get_mut(at..at + piece.len()) {
                room.copy_from_slice(piece);
            }
            at += piece.len();
        };
        put(open.as_bytes());
        for byte in self.key.bytes() {
            put(&[b"0123456789abcdef"[usize::from(byte >> 4)], b"0123456789abcdef"[usize::from(byte & 15)]]);
        }
        put(b" ");
        let end = at;
        let sum = hex(&Sha256::digest(slot.expose().get(..end).unwrap_or_default()));
        let tail = format!("{sum}\n");
        if let Some(room) = slot.expose_mut().get_mut(end..end + tail.len()) {
            room.copy_from_slice(tail.as_bytes());
        }
        Ok(slot)
    }

    /// Makes this the state: durable before the slot of the one before, and with it the old key, is overwritten.
    pub(crate) fn write<M: Medium>(&self, medium: &mut M) -> Result<(), VolumesError> {
        let slot = self.slot()?;
        let (own, other) = if self.count.is_multiple_of(2) { (0, SLOT_BYTES) } else { (SLOT_BYTES, 0) };
        let written = medium.write_state(own as u64, slot.expose()).and_then(|()| medium.sync_state());
        written.map_err(VolumesError::io("write", super::STATE_NAME))?;
        medium.write_state(other as u64, &[0; SLOT_BYTES]).map_err(VolumesError::io("write", super::STATE_NAME))
    }
}
