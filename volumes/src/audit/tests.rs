//! The log over a medium that is cut off at every call and loses what was not flushed, over mutations of ten thousand records, and
//! over real folders with several processes.

mod campaign;
mod cuts;
mod folders;

use std::collections::BTreeMap;
use std::io;

use super::chain::{ChainKey, KEY_BYTES};
use super::medium::Medium;
use super::state::{STATE_BYTES, State};
use super::verify::Snapshot;
use super::writer::{Stamp, append};
use super::*;
use secret::Secret;

/// A small generator, so that a seed reproduces a run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % below
    }
}

/// A disk: what was flushed, and what is only in the cache.
#[derive(Clone, Default)]
struct Disk {
    durable: BTreeMap<String, Vec<u8>>,
    cached: BTreeMap<String, Vec<u8>>,
    durable_state: Vec<u8>,
    cached_state: Vec<u8>,
    /// Calls that still work; the next one does part of its work, and then nothing works.
    calls_left: Option<u64>,
    /// How many bytes an append writes before it is cut.
    part: usize,
    /// Appends beyond so many bytes find a full disk.
    room: Option<usize>,
    append_only: bool,
}

impl Disk {
    /// Whether the call is to be cut in its middle; an error behind that.
    fn call(&mut self) -> io::Result<bool> {
        match &mut self.calls_left {
            None => Ok(false),
            Some(0) => Err(io::Error::other("cut")),
            Some(left) => {
                *left -= 1;
                Ok(*left == 0)
            }
        }
    }

    /// What a power cut leaves: of each file's unflushed end a part, of each slot of the state either version.
    fn after_power_cut(&self, dice: &mut Dice) -> Disk {
        let mut disk = Disk { durable: self.durable.clone(), ..Disk::default() };
        for (name, cached) in &self.cached {
            let flushed = self.durable.get(name).map_or(0, Vec::len);
            let kept = flushed + usize::try_from(dice.roll((cached.len() - flushed) as u64 + 1)).unwrap();
            let mut bytes = cached[..kept].to_vec();
            // The length reached the disk, some bytes did not.
            if kept > flushed && dice.roll(3) == 0 {
                let zeros = usize::try_from(dice.roll((kept - flushed) as u64 + 1)).unwrap();
                bytes[kept - zeros..].fill(0);
            }
            if kept > 0 || dice.roll(2) == 0 {
                disk.durable.insert(name.clone(), bytes);
            }
        }
        disk.durable_state = self.durable_state.clone();
        for slot in 0..2 {
            let range = slot * 512..(slot + 1) * 512;
            if self.cached_state.len() == STATE_BYTES && dice.roll(2) == 0 {
                disk.durable_state.resize(STATE_BYTES, 0);
                disk.durable_state[range.clone()].copy_from_slice(&self.cached_state[range]);
            }
        }
        disk.cached = disk.durable.clone();
        disk.cached_state = disk.durable_state.clone();
        disk
    }

    /// What a killed process leaves: all that it wrote.
    fn after_kill(&self) -> Disk {
        Disk { calls_left: None, room: None, ..self.clone() }
    }

    fn snapshot(&self) -> Snapshot {
        let state = verify_state(&self.cached_state);
        Snapshot { files: self.cached.clone().into_iter().collect(), state }
    }
}

fn verify_state(bytes: &[u8]) -> Option<super::verify::StateSays> {
    super::verify::StateSays::of(bytes).unwrap()
}

impl Medium for Disk {
    fn names(&mut self) -> io::Result<Vec<String>> {
        self.call()?;
        Ok(self.cached.keys().cloned().collect())
    }

    fn len(&mut self, name: &str) -> io::Result<u64> {
        self.call()?;
        Ok(self.cached.get(name).map_or(0, |bytes| bytes.len() as u64))
    }

    fn read(&mut self, name: &str, from: u64, most: usize) -> io::Result<Vec<u8>> {
        self.call()?;
        let from = usize::try_from(from).unwrap();
        let bytes = self.cached.get(name).and_then(|bytes| bytes.get(from..)).unwrap_or_default();
        Ok(bytes[..bytes.len().min(most)].to_vec())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let is_cut = self.call()?;
        let mut count = if is_cut { self.part.min(bytes.len()) } else { bytes.len() };
        let used: usize = self.cached.values().map(Vec::len).sum();
        if let Some(room) = self.room {
            count = count.min(room.saturating_sub(used));
        }
        self.cached.entry(name.to_owned()).or_default().extend_from_slice(&bytes[..count]);
        match count == bytes.len() && !is_cut {
            true => Ok(()),
            false if is_cut => Err(io::Error::other("cut")),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn truncate(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.call()?;
        if self.append_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if let Some(bytes) = self.cached.get_mut(name) {
            bytes.truncate(usize::try_from(len).unwrap());
        }
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        if self.call()? {
            return Err(io::Error::other("cut"));
        }
        let bytes = self.cached.get(name).cloned().unwrap_or_default();
        self.durable.insert(name.to_owned(), bytes);
        Ok(())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.call()?;
        Ok(())
    }

    fn close(&mut self, _name: &str) -> io::Result<()> {
        self.call()?;
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        if self.call()? {
            return Err(io::Error::other("cut"));
        }
        self.cached.remove(name);
        self.durable.remove(name);
        Ok(())
    }

    fn read_state(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.call()?;
        let count = self.cached_state.len();
        into[..count].copy_from_slice(&self.cached_state);
        Ok(())
    }

    fn write_state(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let is_cut = self.call()?;
        self.cached_state.resize(STATE_BYTES, 0);
        let at = usize::try_from(at).unwrap();
        // A sector is written whole or not at all; a cut process wrote it or did not.
        if !is_cut || self.part.is_multiple_of(2) {
            self.cached_state[at..at + bytes.len()].copy_from_slice(bytes);
        }
        if is_cut { Err(io::Error::other("cut")) } else { Ok(()) }
    }

    fn sync_state(&mut self) -> io::Result<()> {
        if self.call()? {
            return Err(io::Error::other("cut"));
        }
        self.durable_state = self.cached_state.clone();
        Ok(())
    }
}

fn seed() -> Secret {
    Secret::copy_of(&[7; KEY_BYTES]).unwrap()
}

fn actor() -> Actor {
    Actor { uid: 0, login_uid: Some(1000), process: "luksctl".to_owned(), pid: 4711 }
}

/// A disk with the state of a new chain.
fn new_chain() -> Disk {
    let mut disk = Disk::default();
    let key = ChainKey::of(seed().expose()).unwrap();
    let chain = key.chain();
    State { count: 0, file: String::new(), len: 0, head: [0; KEY_BYTES], chain, key }.write(&mut disk).unwrap();
    disk.sync_state().unwrap();
    disk
}

/// Writes one record, as [`AuditLog::record`] does.
fn write(disk: &mut Disk, event: &Event, now: Moment) -> Result<u64, VolumesError> {
    let actor = actor();
    let stamp = Stamp { actor: &actor, environment: "production", now };
    let mut state = State::read(disk)?.expect("a state");
    append(disk, &mut state, event, &stamp)?;
    Ok(state.count)
}

fn event(n: u64) -> Event {
    Event::new(Category::ALL[usize::try_from(n % 6).unwrap()], "test", format!("volume-{}", n % 4)).detail("n", n)
}

fn report(disk: &Disk, heads: &[Head]) -> Report {
    super::verify::verify(&disk.snapshot(), &seed(), heads).unwrap()
}

use crate::VolumesError;
