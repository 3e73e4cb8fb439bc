//! [`Recording`]: the changes and flushes of one operation, and every platter that a power cut between them can leave.
//!
//! The fault model is that of [`super::PowerCutDisk`]: at a cut, each 512-byte sector that a cached write touched shows what
//! was durable before or any of the versions written to it since, each sector on its own. So the platters of one cut are
//! the product of the sectors' versions; [`Cut::count`] says how many there are, [`Cut::nth`] gives each of them, and where
//! they are too many [`Cut::sampled`] draws some, with whole writes kept and lost more often than chance would.
//!
//! A flush can be taken out of a recording ([`Recording::cut`]): then what it was to make durable stays in the cache until
//! the next one. A crash test must be seen to fail on that. Meant for operations that write a few MiB.

use super::cached::{ATOM_BYTES, Cached, Content, index, land_sampled};
use crate::chunks::Chunks;
use crate::{Geometry, MemDisk};

/// One sector.
type Atom = [u8; 512];
const _: () = assert!(size_of::<Atom>() as u64 == ATOM_BYTES);

/// One thing that arrived at a disk.
#[derive(Clone)]
pub(super) enum Event {
    /// A write, zeroing or discard, by this name.
    Change(&'static str, Cached),
    Flush,
}

/// What arrived at a disk, in order, and what the disk held before.
#[derive(Clone)]
pub struct Recording {
    start: Chunks,
    geometry: Geometry,
    events: Vec<Event>,
}

impl Recording {
    pub(super) fn new(start: Chunks, geometry: Geometry) -> Recording {
        Recording { start, geometry, events: Vec::new() }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// How many changes and flushes there are; power can be cut after each and before the first.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// How many of them are flushes.
    #[must_use]
    pub fn flushes(&self) -> usize {
        self.flushes_before(self.events.len())
    }

    /// How many flushes there are among the first `after` events.
    #[must_use]
    pub fn flushes_before(&self, after: usize) -> usize {
        self.events.iter().take(after).filter(|event| matches!(event, Event::Flush)).count()
    }

    /// What the last event before a cut was.
    #[must_use]
    pub fn describe(&self, after: usize) -> String {
        match after.checked_sub(1).and_then(|last| self.events.get(last)) {
            None => "before the first write".to_owned(),
            Some(Event::Flush) => format!("after event {after} of {}, a flush", self.events.len()),
            Some(Event::Change(op, cached)) => format!(
                "after event {after} of {}, {op} of {} bytes at {}",
                self.events.len(),
                cached.content.len_bytes(),
                cached.offset_bytes
            ),
        }
    }

    /// What a read saw after the first `after` events.
    #[must_use]
    pub fn live(&self, after: usize) -> MemDisk {
        let mut live = self.start.clone();
        for event in self.events.iter().take(after) {
            if let Event::Change(_, cached) = event {
                cached.land(&mut live);
            }
        }
        MemDisk::from_parts(live, self.geometry)
    }

    /// The power fails after the first `after` events. The flush number `swallowed` (from 0), if any, made nothing durable.
    #[must_use]
    pub fn cut(&self, after: usize, swallowed: Option<usize>) -> Cut {
        let mut durable = self.start.clone();
        let mut cached: Vec<Cached> = Vec::new();
        let mut flushes = 0;
        for event in self.events.iter().take(after) {
            match event {
                Event::Change(_, change) => cached.push(change.clone()),
                Event::Flush => {
                    if swallowed != Some(flushes) {
                        cached.drain(..).for_each(|change| change.land(&mut durable));
                    }
                    flushes += 1;
                }
            }
        }
        let sectors = undecided(&durable, &cached);
        Cut { durable, cached, sectors, geometry: self.geometry }
    }
}

/// A sector that may show more than one thing.
struct Undecided {
    number: u64,
    /// Different from one another; the first is what is there if as much as possible was lost.
    versions: Vec<Atom>,
}

/// Every platter that one power cut can leave.
pub struct Cut {
    durable: Chunks,
    cached: Vec<Cached>,
    sectors: Vec<Undecided>,
    geometry: Geometry,
}

impl Cut {
    /// How many platters there are; `u64::MAX` also stands for more.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.sectors.iter().fold(1, |count: u64, sector| count.saturating_mul(sector.versions.len() as u64))
    }

    /// Platter `number` of [`Cut::count`]. Number 0 has lost as much as possible.
    #[must_use]
    pub fn nth(&self, number: u64) -> MemDisk {
        let mut platter = self.durable.clone();
        let mut rest = number;
        for sector in &self.sectors {
            let versions = sector.versions.len() as u64;
            if let Some(version) = sector.versions.get(index(rest % versions)) {
                platter.write(sector.number * ATOM_BYTES, version);
            }
            rest /= versions;
        }
        MemDisk::from_parts(platter, self.geometry)
    }

    /// One of the platters, by `seed`.
    #[must_use]
    pub fn sampled(&self, seed: u64) -> MemDisk {
        let mut platter = self.durable.clone();
        land_sampled(&mut platter, &self.cached, seed);
        MemDisk::from_parts(platter, self.geometry)
    }
}

/// The sectors that `cached` leaves in doubt, ascending, each with its versions.
fn undecided(durable: &Chunks, cached: &[Cached]) -> Vec<Undecided> {
    let mut found = std::collections::BTreeMap::new();
    for change in cached {
        let first = change.offset_bytes / ATOM_BYTES;
        let sectors = change.content.len_bytes().div_ceil(ATOM_BYTES);
        for number in first..first + sectors {
            let versions: &mut Vec<Atom> = found.entry(number).or_insert_with(|| {
                let mut before: Atom = [0; 512];
                durable.read(number * ATOM_BYTES, &mut before);
                vec![before]
            });
            let mut version: Atom = [0; 512];
            if let Content::Data(data) = &change.content {
                let start = index((number - first) * ATOM_BYTES);
                let part = &data[start..(start + version.len()).min(data.len())];
                version[..part.len()].copy_from_slice(part);
            }
            if change.forced {
                versions.clear();
            }
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
    }
    // One version is a choice too where it is a forced one, which `durable` does not have.
    found.into_iter().map(|(number, versions)| Undecided { number, versions }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::PowerCutDisk;
    use crate::{BlockIo, Bytes};
    use std::collections::BTreeSet;

    fn firsts(disk: &MemDisk) -> [u8; 4] {
        [0, 1, 2, 3].map(|sector| {
            let mut bytes = [0; 512];
            disk.read_at(Bytes(sector * 512), &mut bytes).unwrap();
            bytes[0]
        })
    }

    /// Sectors 0 and 1 written, flushed; then 0 and 2, 0 again, and 3 by force.
    fn recording() -> Recording {
        let disk = PowerCutDisk::new(Bytes(4096));
        disk.write_at(Bytes(0), &[9; 2048], false).unwrap();
        disk.record();
        disk.write_at(Bytes(0), &[1; 1024], false).unwrap();
        disk.flush().unwrap();
        disk.write_at(Bytes(0), &[2; 512], false).unwrap();
        disk.write_zeroes(Bytes(1024), Bytes(512)).unwrap();
        disk.write_at(Bytes(0), &[3; 512], false).unwrap();
        disk.write_at(Bytes(1536), &[4; 512], true).unwrap();
        disk.recorded().unwrap()
    }

    #[test]
    fn the_platters_of_a_cut_are_all_that_the_model_allows() {
        let recording = recording();
        assert_eq!((recording.events(), recording.flushes()), (6, 1));
        assert_eq!((recording.flushes_before(1), recording.flushes_before(2)), (0, 1));
        let cut = recording.cut(6, None);
        assert_eq!(cut.count(), 6);
        let all: BTreeSet<[u8; 4]> = (0..6).map(|number| firsts(&cut.nth(number))).collect();
        let expected = [[1, 1, 0, 4], [1, 1, 9, 4], [2, 1, 0, 4], [2, 1, 9, 4], [3, 1, 0, 4], [3, 1, 9, 4]];
        assert_eq!(all.into_iter().collect::<Vec<_>>(), expected);
        let sampled: BTreeSet<[u8; 4]> = (0..300).map(|seed| firsts(&cut.sampled(seed))).collect();
        assert_eq!(sampled.into_iter().collect::<Vec<_>>(), expected);
        assert_eq!(firsts(&recording.live(6)), [3, 1, 0, 4]);
    }

    #[test]
    fn before_and_after_a_flush_there_is_one_platter() {
        let recording = recording();
        for (after, expected) in [(0, [9; 4]), (2, [1, 1, 9, 9])] {
            let cut = recording.cut(after, None);
            assert_eq!((cut.count(), firsts(&cut.nth(0))), (1, expected), "{}", recording.describe(after));
        }
        assert_eq!(recording.cut(1, None).count(), 4);
    }

    #[test]
    fn a_flush_that_was_taken_out_keeps_nothing() {
        let cut = recording().cut(6, Some(0));
        assert_eq!(cut.count(), 4 * 2 * 2);
        assert_eq!(firsts(&cut.nth(0)), [9, 9, 9, 4]);
    }

    #[test]
    fn a_write_of_what_is_there_already_leaves_no_doubt() {
        let disk = PowerCutDisk::new(Bytes(4096));
        disk.record();
        disk.write_at(Bytes(0), &[0; 4096], false).unwrap();
        assert_eq!(disk.recorded().unwrap().cut(1, None).count(), 1);
        assert!(disk.recorded().is_none());
    }
}
