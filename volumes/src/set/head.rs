//! What the audit log remembers of the key store: its head, recorded after every change, so that a store that was put back
//! to an older state is found although it is whole and authentic.
//!
//! A record of action `store-head` about the folder of the store: its UUID, its epoch and the two halves of its code, as no
//! detail has more than 50 characters.

use keystore::Head;

use super::{Set, SetStore};
use crate::VolumesError;
use crate::audit::{Category, Event};

const ACTION: &str = "store-head";
/// Digits of one half of the code.
const HALF: usize = 32;

impl Set {
    /// Has the audit log remember the state of the store; to be called after every change of it.
    ///
    /// # Errors
    /// As [`Set::record`].
    pub fn remember(&self, store: &SetStore) -> Result<(), VolumesError> {
        let head = store.head();
        if self.remembered()? == Some(head) {
            return Ok(());
        }
        let text = head.to_string();
        let code = text.rsplit(':').next().unwrap_or_default();
        let (first, second) = code.split_at(HALF.min(code.len()));
        self.record(
            &Event::new(Category::Key, ACTION, self.config.store.keys.display())
                .detail("store", head.store)
                .detail("epoch", head.epoch)
                .detail("code_1", first)
                .detail("code_2", second),
        )
    }

    /// The head that the log remembers; none where there is no log, or no record of it.
    fn remembered(&self) -> Result<Option<Head>, VolumesError> {
        let Some(log) = self.audit() else { return Ok(None) };
        let target = self.config.store.keys.display().to_string();
        let record = log.last_of(ACTION, &target)?;
        Ok(record.and_then(|record| {
            let detail = |name: &str| Some(record.get("details")?.get(name)?.as_str()?.to_owned());
            let text = format!("{}:{}:{}{}", detail("store")?, detail("epoch")?, detail("code_1")?, detail("code_2")?);
            text.parse().ok()
        }))
    }

    /// Holds the store against what the log remembers.
    pub(super) fn hold_against_head(&self, store: &SetStore) -> Result<(), VolumesError> {
        self.remembered()?.map_or(Ok(()), |head| Ok(store.check_against(&head)?))
    }
}
