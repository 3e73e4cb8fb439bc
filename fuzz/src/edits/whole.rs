//! The steps that concern the header as a whole: stale handles, erase, backup and restore, damage and repair.

use block::{BlockIo, Bytes};
use luks::repair::{self, ForeignSignature};
use luks::{Backup, CopyState, Error, KeyslotId, Limits, Position, doomed, load_unlocked, restore};

use super::model::Model;
use super::{Pair, STEPS_MAX};

/// A header that was put aside, and what it said.
pub(super) struct Kept {
    bytes: Vec<u8>,
    model: Model,
}

impl Pair<'_> {
    /// Another handle, which does not know of ours, changes the header first.
    pub(super) fn stale(&mut self) {
        let mut other = super::open(self.disk);
        other.set_label(Some("another's")).expect("the other's edit");
        let refused = self.container.set_label(Some("ours")).expect_err("a stale handle was let through");
        assert!(matches!(refused, Error::ConcurrentUpdate { .. }), "{refused}");
        self.container.reload().expect("reload");
        "another's".clone_into(&mut self.model.label);
    }

    pub(super) fn erase(&mut self) {
        let bound: Vec<KeyslotId> = self.model.bound().map(KeyslotId).collect();
        let mut listed = doomed(self.container.header().metadata());
        let mut erased = self.container.erase(&self.surroundings.env()).expect("erase");
        listed.sort_unstable();
        erased.sort_unstable();
        assert_eq!(listed, erased);
        let mut expected = bound;
        expected.sort_unstable();
        assert_eq!(erased, expected);
        for id in expected {
            self.model.take_out(id.0);
        }
    }

    pub(super) fn back_up(&mut self) {
        let backup = Backup::read(self.disk, &Limits::default()).expect("backup");
        self.kept = Some(Kept { bytes: backup.bytes().to_vec(), model: self.model.clone() });
    }

    /// Bit 0: the device changes between the plan and the restore; bit 1: our handle learns of it only by being refused.
    pub(super) fn restore(&mut self, choice: u8) {
        let Some(kept) = &self.kept else { return };
        let limits = Limits::default();
        let backup = Backup::parse(kept.bytes.clone(), &limits).expect("a backup");
        let mut plan = restore::plan(self.disk, &backup, &limits).expect("plan");
        let mut aside = Vec::new();
        let mut keep = |region: &[u8]| {
            aside = region.to_vec();
            Ok(())
        };
        if choice & 1 != 0 {
            let seqid = self.container.header().seqid();
            self.container.set_label(Some("meanwhile")).expect("an edit");
            let refused = restore::restore(self.disk, &backup, &plan, &limits, &mut keep);
            // The plan says of the device whether it is newer, and by how much.
            let seen = self.model.uuid == kept.model.uuid && kept.model.seqid <= seqid;
            match refused {
                Err(Error::PlanChanged) => assert!(seen),
                Err(error) => panic!("{error}"),
                Ok(()) => assert!(!seen, "restored over something else than was planned"),
            }
            "meanwhile".clone_into(&mut self.model.label);
            if !seen {
                return self.restored(choice);
            }
            self.model.seqid = self.container.header().seqid();
            plan = restore::plan(self.disk, &backup, &limits).expect("plan");
        }
        restore::restore(self.disk, &backup, &plan, &limits, &mut keep).expect("restore");
        let aside = Backup::parse(aside, &limits).expect("what was kept aside is a backup");
        assert_eq!(aside.header().uuid(), self.model.uuid);
        self.restored(choice);
    }

    fn restored(&mut self, choice: u8) {
        self.rewritten = true;
        let before = std::mem::replace(&mut self.model, self.kept.as_ref().expect("a backup").model.clone());
        if choice & 2 != 0 {
            // Others work on until the sequence number is again the one that our handle knows.
            let mut other = super::open(self.disk);
            let known = self.container.header().seqid();
            for _ in self.model.seqid..known.min(self.model.seqid + STEPS_MAX as u64) {
                other.set_label(Some("after")).expect("an edit");
                "after".clone_into(&mut self.model.label);
            }
            self.model.seqid = other.header().seqid();
            let said = |model: &Model| Model { seqid: 0, ..model.clone() };
            let refused = self.container.set_subsystem(Some("stale"));
            match refused {
                Err(Error::ConcurrentUpdate { .. }) => {}
                Err(error) => panic!("{error}"),
                Ok(()) => {
                    assert_eq!(said(&self.model), said(&before), "a stale handle was let through");
                    "stale".clone_into(&mut self.model.subsystem);
                }
            }
        }
        self.container.reload().expect("reload");
    }

    /// A byte of one copy goes wrong. The other one is read, and repair writes the first again; or the next edit does.
    pub(super) fn damage(&mut self, place: u8, choice: u8) {
        let (position, start) = match place & 1 {
            0 => (Position::Primary, 0),
            _ => (Position::Secondary, 0x4000),
        };
        self.rewritten = true;
        let offset = start + [0, 7, 20, 120, 200, 450, 4096, 5000][usize::from(place >> 1) % 8];
        let mut block = [0; 512];
        self.disk.read_at(Bytes(offset / 512 * 512), &mut block).expect("read");
        block[usize::try_from(offset % 512).expect("small")] ^= 0x40;
        self.disk.write_at(Bytes(offset / 512 * 512), &block, false).expect("write");
        let header = load_unlocked(self.disk, &Limits::default()).expect("one copy is enough");
        assert!(*header.health().of(position) != CopyState::Ok && header.position() != position);
        if choice & 1 == 0 {
            let env = self.surroundings.env();
            let plan = repair::plan(&header);
            assert_eq!(plan.rewrite.as_ref().map(|(position, _)| *position), Some(position));
            repair::repair(self.disk, env.rng, &Limits::default(), ForeignSignature::Refuse, &plan).expect("repair");
        } else {
            self.container.set_label(Some("mended")).expect("an edit");
            "mended".clone_into(&mut self.model.label);
        }
    }

    /// A removal that was cut short: the mark stands in the area, the header still lists the keyslot.
    pub(super) fn half_remove(&mut self, keyslot: u8) {
        let id = u32::from(keyslot % 8);
        let slot = self.model.slot(id).cloned();
        if let Some(slot) = &slot {
            self.disk.write_at(Bytes(slot.area.0), &[0; 512], false).expect("write");
        }
        let expected: Vec<KeyslotId> = slot.iter().map(|_| KeyslotId(id)).collect();
        assert_eq!(self.container.half_removed().expect("look"), expected);
        assert_eq!(self.container.finish_removals(&self.surroundings.env()).expect("finish"), expected);
        self.model.take_out(id);
    }
}
