//! Keyslot areas: read, judged sector by sector, neighbours with the same damage put together.

use std::collections::HashMap;
use std::fmt;

use block::{BlockIo, ByteView, Bytes, SECTOR_BYTES};

use super::noise::{self, NotNoise, SECTOR_LEN};
use crate::area::material_len;
use crate::limits::{AREA_FINDINGS_MAX, Limits};
use crate::metadata::keyslot::Keyslot;
use crate::metadata::{KeyslotId, Metadata};

/// Length of the pieces that never repeat in ciphertext: one block of any cipher here.
const BLOCK_LEN: usize = 16;

/// What is in the place of key material.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The first sector is zero: the keyslot's removal has begun, see [`crate::check::CheckReport::half_removed`]. Other zeros are
    /// [`Damage::Constant`].
    WipeMark,
    /// One byte throughout.
    Constant(u8),
    /// The remains of something known: a file system, a partition table.
    Remains(&'static str),
    /// Text.
    Text,
    /// Bytes that are not evenly spread.
    Uneven,
    /// Bytes that are spread too evenly: counters, tables.
    TooEven,
    /// The same bytes stand elsewhere: in this area, or in that of another keyslot.
    Repeated {
        /// The keyslot.
        keyslot: KeyslotId,
        /// The place on the device.
        offset: Bytes,
    },
    /// It cannot be read.
    Unreadable(String),
    /// The area is shorter than the 4000 stripes of its key.
    Short,
}

impl Damage {
    /// The kind in kebab case.
    pub fn name(&self) -> &'static str {
        match self {
            Damage::WipeMark => "wipe-mark",
            Damage::Constant(0) => "zeroed",
            Damage::Constant(_) => "constant",
            Damage::Remains(_) => "remains",
            Damage::Text => "text",
            Damage::Uneven => "uneven",
            Damage::TooEven => "too-even",
            Damage::Repeated { .. } => "repeated",
            Damage::Unreadable(_) => "unreadable",
            Damage::Short => "short",
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::WipeMark => f.write_str("zeros at its start: a removal that was cut short"),
            Damage::Constant(0) => f.write_str("zeros"),
            Damage::Constant(byte) => write!(f, "nothing but bytes 0x{byte:02x}"),
            Damage::Remains(what) => write!(f, "the remains of {what}"),
            Damage::Text => f.write_str("text"),
            Damage::Uneven => f.write_str("bytes that are not random"),
            Damage::TooEven => f.write_str("bytes spread too evenly to be random"),
            Damage::Repeated { keyslot, offset } => {
                write!(f, "the same bytes as at {} (keyslot {keyslot})", offset.0)
            }
            Damage::Unreadable(message) => write!(f, "unreadable ({message})"),
            Damage::Short => f.write_str("shorter than the key material that belongs there"),
        }
    }
}

/// Key material that cannot be what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AreaFinding {
    /// The keyslot.
    pub keyslot: KeyslotId,
    /// Where on the header's device, in whole sectors.
    pub offset: Bytes,
    /// How long, in whole sectors.
    pub len: Bytes,
    /// What is there.
    pub damage: Damage,
}

impl fmt::Display for AreaFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AreaFinding { keyslot, offset, len, damage } = self;
        write!(f, "keyslot {keyslot}: {} bytes at {}: {damage}; no passphrase opens it any more", len.0, offset.0)
    }
}

/// The stripes of one keyslot as they stand on disk, and what of them could not be read.
pub(super) struct ReadArea {
    keyslot: KeyslotId,
    offset: Bytes,
    bytes: Vec<u8>,
    /// Starts of the sectors that were judged and are no noise, ascending.
    suspect: Vec<usize>,
    findings: Vec<AreaFinding>,
}

/// Reads the areas of all passphrase slots.
pub(super) fn read_all<S: BlockIo + ?Sized>(store: &S, metadata: &Metadata, limits: &Limits) -> Vec<ReadArea> {
    let keyslots = metadata.keyslots.iter().filter(|(_, keyslot)| keyslot.luks2().is_some());
    keyslots
        .filter_map(|(id, keyslot)| {
            let needed = material_len(keyslot.key_size_bytes)?;
            let (offset, declared) = (keyslot.area.offset, keyslot.area.size);
            let len = Bytes(needed.0.min(declared.0).min(limits.keyslot_area_bytes));
            let (bytes, suspect, findings) = (vec![0; len.to_usize()?], Vec::new(), Vec::new());
            let mut area = ReadArea { keyslot: id, offset, bytes, suspect, findings };
            if declared < needed {
                area.find(0, declared.to_usize()?, Damage::Short);
            }
            area.read(store);
            Some(area)
        })
        .collect()
}

/// The keyslots whose areas begin with the mark of a wipe: what [`Damage::WipeMark`] says, without a look at the rest.
pub(super) fn marked<S: BlockIo + ?Sized>(store: &S, metadata: &Metadata) -> Vec<KeyslotId> {
    let view = ByteView::new(store);
    let is_marked = |keyslot: &Keyslot| {
        let mut sector = [0xff; SECTOR_LEN];
        let whole = material_len(keyslot.key_size_bytes)
            .is_some_and(|needed| needed.0.min(keyslot.area.size.0) >= SECTOR_BYTES);
        whole && view.read(keyslot.area.offset, &mut sector).is_ok() && sector == [0; SECTOR_LEN]
    };
    let keyslots = metadata.keyslots.iter().filter(|(_, keyslot)| keyslot.luks2().is_some());
    keyslots.filter(|(_, keyslot)| is_marked(keyslot)).map(|(id, _)| id).collect()
}

impl ReadArea {
    fn find(&mut self, at: usize, len: usize, damage: Damage) {
        let offset = Bytes(self.offset.0.saturating_add(at as u64));
        self.findings.push(AreaFinding { keyslot: self.keyslot, offset, len: Bytes::from_len(len), damage });
    }

    /// Reads the whole; where that fails, sector by sector, to name the bad ones.
    fn read<S: BlockIo + ?Sized>(&mut self, store: &S) {
        let view = ByteView::new(store);
        if view.read(self.offset, &mut self.bytes).is_ok() {
            return;
        }
        let mut bad = Vec::new();
        for (number, sector) in self.bytes.chunks_mut(SECTOR_LEN).enumerate() {
            let offset = Bytes(self.offset.0.saturating_add(number as u64 * SECTOR_BYTES));
            if let Err(error) = view.read(offset, sector) {
                bad.push((number * SECTOR_LEN, sector.len(), error.to_string()));
            }
        }
        for (at, len, message) in bad {
            self.find(at, len, Damage::Unreadable(message));
        }
    }

    fn is_unreadable(&self, at: usize) -> bool {
        let offset = Bytes(self.offset.0.saturating_add(at as u64));
        self.findings.iter().any(|found| matches!(found.damage, Damage::Unreadable(_)) && found.offset == offset)
    }

    /// Judges every sector on its own, and then the blocks against each other.
    fn judge(&mut self) {
        let mut found = Vec::new();
        for (number, sector) in self.bytes.chunks(SECTOR_LEN).enumerate() {
            let at = number * SECTOR_LEN;
            let Some(verdict) = noise::judge(sector) else { continue };
            self.suspect.push(at);
            if self.is_unreadable(at) {
                continue;
            }
            found.push((
                at,
                match verdict {
                    NotNoise::Constant(0) if at == 0 => Damage::WipeMark,
                    NotNoise::Constant(byte) => Damage::Constant(byte),
                    other => match (remains(sector), other) {
                        (Some(name), _) => Damage::Remains(name),
                        (None, NotNoise::Text) => Damage::Text,
                        (None, NotNoise::TooEven) => Damage::TooEven,
                        (None, _) => Damage::Uneven,
                    },
                },
            ));
        }
        let mut known: Vec<usize> = found.iter().map(|(at, _)| *at).collect();
        known.sort_unstable();
        for (at, earlier) in repeated_blocks(&self.bytes) {
            let sector = at - at % SECTOR_LEN;
            if known.binary_search(&sector).is_err() && !self.is_unreadable(sector) {
                let offset = Bytes(self.offset.0.saturating_add(earlier as u64));
                found.push((sector, Damage::Repeated { keyslot: self.keyslot, offset }));
            }
        }
        found.sort_by_key(|(at, _)| *at);
        found.dedup_by_key(|(at, _)| *at);
        for (at, damage) in found {
            self.find(at, SECTOR_LEN, damage);
        }
    }
}

/// Judges all areas: the keyslots that were looked at, and what was found.
pub(super) fn judge_all(mut areas: Vec<ReadArea>) -> (Vec<KeyslotId>, Vec<AreaFinding>) {
    let mut elsewhere: HashMap<[u8; BLOCK_LEN], (KeyslotId, Bytes)> = HashMap::new();
    for area in &mut areas {
        area.judge();
        area.compare(&mut elsewhere);
    }
    let examined = areas.iter().map(|area| area.keyslot).collect();
    let mut findings = Vec::new();
    for mut area in areas {
        area.findings.sort_by_key(|finding| finding.offset);
        findings.extend(together(area.findings));
    }
    findings.truncate(AREA_FINDINGS_MAX);
    (examined, findings)
}

impl ReadArea {
    /// Sectors that begin like one of another keyslot: noise never does.
    fn compare(&mut self, elsewhere: &mut HashMap<[u8; BLOCK_LEN], (KeyslotId, Bytes)>) {
        let mut found = Vec::new();
        for (number, sector) in self.bytes.chunks_exact(SECTOR_LEN).enumerate() {
            let (at, offset) = (number * SECTOR_LEN, self.offset.0.saturating_add(number as u64 * SECTOR_BYTES));
            let Some(begin) = sector.first_chunk::<BLOCK_LEN>() else { continue };
            if self.suspect.binary_search(&at).is_ok() || self.is_unreadable(at) {
                continue;
            }
            match elsewhere.get(begin) {
                Some((keyslot, other)) if *keyslot != self.keyslot => {
                    found.push((at, Damage::Repeated { keyslot: *keyslot, offset: *other }));
                }
                Some(_) => {}
                None => {
                    elsewhere.insert(*begin, (self.keyslot, Bytes(offset)));
                }
            }
        }
        for (at, damage) in found {
            self.find(at, SECTOR_LEN, damage);
        }
    }
}

/// Places of 16-byte blocks that stand earlier in the same bytes, with the earlier place.
fn repeated_blocks(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut blocks: Vec<(&[u8], usize)> =
        bytes.chunks_exact(BLOCK_LEN).enumerate().map(|(number, block)| (block, number * BLOCK_LEN)).collect();
    blocks.sort_unstable();
    blocks.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| (pair[1].1, pair[0].1)).collect()
}

/// Neighbours with the same damage as one finding. Repeats are neighbours if what they repeat is.
fn together(findings: Vec<AreaFinding>) -> Vec<AreaFinding> {
    let mut merged: Vec<AreaFinding> = Vec::new();
    for finding in findings {
        if let Some(last) = merged.last_mut()
            && Bytes(last.offset.0.saturating_add(last.len.0)) == finding.offset
            && continues(&last.damage, last.len, &finding.damage)
        {
            last.len = Bytes(last.len.0.saturating_add(finding.len.0));
        } else {
            merged.push(finding);
        }
    }
    merged
}

fn continues(damage: &Damage, len: Bytes, next: &Damage) -> bool {
    match (damage, next) {
        (Damage::WipeMark, Damage::Constant(0)) | (Damage::Unreadable(_), Damage::Unreadable(_)) => true,
        (Damage::Repeated { keyslot, offset }, Damage::Repeated { keyslot: next_keyslot, offset: next_offset }) => {
            keyslot == next_keyslot && Bytes(offset.0.saturating_add(len.0)) == *next_offset
        }
        (one, other) => one == other && !matches!(one, Damage::Remains(_)),
    }
}

/// A magic number of a format, and where in a sector it stands.
struct Magic(&'static str, usize, &'static [u8]);

/// Looked for only in sectors that are no noise, so a short one is enough.
const MAGICS: &[Magic] = &[
    Magic("a GUID partition table", 0, b"EFI PART"),
    Magic("a LUKS header", 0, b"LUKS\xba\xbe"),
    Magic("a LUKS2 header", 0, b"SKUL\xba\xbe"),
    Magic("an XFS file system", 0, b"XFSB"),
    Magic("a btrfs file system", 64, b"_BHRfS_M"),
    Magic("an NTFS file system", 3, b"NTFS    "),
    Magic("an exFAT file system", 3, b"EXFAT   "),
    Magic("an LVM physical volume", 0, b"LABELONE"),
    Magic("a RAID superblock", 0, b"\xfc\x4e\x2b\xa9"),
    Magic("swap space", 502, b"SWAPSPACE2"),
    Magic("a squashfs file system", 0, b"hsqs"),
    Magic("an ext2, ext3 or ext4 file system", 56, b"\x53\xef"),
    Magic("a boot sector or partition table", 510, b"\x55\xaa"),
];

/// What a sector that is no noise is left of.
fn remains(sector: &[u8]) -> Option<&'static str> {
    let found = MAGICS.iter().find(|Magic(_, at, magic)| sector.get(*at..at + magic.len()) == Some(*magic));
    found.map(|Magic(name, _, _)| *name)
}
