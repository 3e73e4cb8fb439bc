//! What the header says of use: the flags that every opening has, and the priority of a keyslot.
//!
//! Flags (luks2-format §2.8) are kept as words; those that are not known here stay when the known ones are set.

use block::BlockIo;

use crate::container::Container;
use crate::error::Error;
use crate::metadata::keyslot::Priority;
use crate::metadata::{KeyslotId, Metadata};
use crate::requirements::Action;
use crate::store::HeaderStore;

/// A flag of activation that a header can keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationFlag {
    /// Discards are passed down.
    AllowDiscards,
    /// Encryption on the CPU that the request came from.
    SameCpuCrypt,
    /// Writes are submitted by the encrypting thread.
    SubmitFromCryptCpus,
    /// No journal of dm-integrity.
    NoJournal,
    /// Decryption without a work queue.
    NoReadWorkqueue,
    /// Encryption without a work queue.
    NoWriteWorkqueue,
    /// Queues of high priority.
    HighPriority,
}

impl ActivationFlag {
    /// All of them.
    pub const ALL: [ActivationFlag; 7] = [
        ActivationFlag::AllowDiscards,
        ActivationFlag::SameCpuCrypt,
        ActivationFlag::SubmitFromCryptCpus,
        ActivationFlag::NoJournal,
        ActivationFlag::NoReadWorkqueue,
        ActivationFlag::NoWriteWorkqueue,
        ActivationFlag::HighPriority,
    ];

    /// The word in the header; one of them has an underscore.
    pub fn word(self) -> &'static str {
        match self {
            ActivationFlag::AllowDiscards => "allow-discards",
            ActivationFlag::SameCpuCrypt => "same-cpu-crypt",
            ActivationFlag::SubmitFromCryptCpus => "submit-from-crypt-cpus",
            ActivationFlag::NoJournal => "no-journal",
            ActivationFlag::NoReadWorkqueue => "no-read-workqueue",
            ActivationFlag::NoWriteWorkqueue => "no-write-workqueue",
            ActivationFlag::HighPriority => "high_priority",
        }
    }
}

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Has the header keep exactly these flags. Words in it that are no [`ActivationFlag`] stay.
    ///
    /// # Errors
    /// Those of every change.
    pub fn set_flags(&mut self, flags: &[ActivationFlag]) -> Result<(), Error> {
        self.edit(Action::Change, |edit| {
            let mut metadata = edit.header.metadata().clone();
            let stored = &mut metadata.config.flags;
            stored.retain(|word| ActivationFlag::ALL.iter().all(|known| known.word() != word));
            let wanted = ActivationFlag::ALL.into_iter().filter(|known| flags.contains(known));
            stored.splice(0..0, wanted.map(|flag| flag.word().to_owned()));
            edit.commit(metadata)
        })
    }

    /// Sets when the keyslot `id` is tried.
    ///
    /// # Errors
    /// [`Error::KeyslotMissing`], [`Error::KeyslotType`] for one that no passphrase opens; those of every change.
    pub fn set_keyslot_priority(&mut self, id: KeyslotId, priority: Priority) -> Result<(), Error> {
        self.edit(Action::Change, |edit| {
            let mut metadata = edit.header.metadata().clone();
            put_priority(&mut metadata, id, priority)?;
            edit.commit(metadata)
        })
    }
}

/// Sets the priority of the keyslot `id`.
pub(super) fn put_priority(metadata: &mut Metadata, id: KeyslotId, priority: Priority) -> Result<(), Error> {
    let slot = metadata.keyslots.get_mut(id).ok_or(Error::KeyslotMissing { keyslot: id })?;
    if slot.luks2().is_none() {
        return Err(Error::KeyslotType { type_name: slot.type_name.clone() });
    }
    // Normal is what is meant where the header says nothing, as cryptsetup leaves it (luks2-format §3.7).
    slot.priority = Some(priority).filter(|priority| *priority != Priority::Normal);
    slot.extra.shift_remove("priority");
    Ok(())
}
