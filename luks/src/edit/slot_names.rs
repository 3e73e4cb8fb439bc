//! The name of a keyslot, given and taken away. What it is: [`SlotName`].

use block::BlockIo;

use crate::container::Container;
use crate::error::Error;
use crate::metadata::KeyslotId;
use crate::metadata::slot_name::SlotName;
use crate::requirements::Action;
use crate::store::HeaderStore;

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Gives the keyslot `id` a name in place of the one that it has, or takes that away. Names of keyslots that are gone go
    /// too.
    ///
    /// # Errors
    /// [`Error::KeyslotMissing`], [`Error::Parameter`] for a text that cannot be one, [`Error::NoFreeToken`],
    /// [`Error::JsonFull`]; those of every change.
    pub fn set_keyslot_name(&mut self, id: KeyslotId, name: Option<&SlotName>) -> Result<(), Error> {
        name.map_or(Ok(()), SlotName::check)?;
        self.edit(Action::Change, |edit| {
            let mut metadata = edit.header.metadata().clone();
            if !metadata.keyslots.contains(id) {
                return Err(Error::KeyslotMissing { keyslot: id });
            }
            SlotName::put(&mut metadata, id, name)?;
            edit.commit(metadata)
        })
    }
}
