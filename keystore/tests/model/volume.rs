//! A volume with keyslots, as a rotation sees it: each change is durable at once, or was cut off before.

use super::cut::Power;
use super::disk::no_power;
use keystore::{BoxedError, Slots};
use secret::Secret;

pub(crate) struct Volume {
    pub(crate) slots: Vec<Vec<u8>>,
    /// Every key that ever had a slot.
    pub(crate) seen: Vec<Vec<u8>>,
    power: Power,
}

impl Volume {
    pub(crate) fn new(key: &Secret, power: &Power) -> Volume {
        let key = key.expose().to_vec();
        Volume { slots: vec![key.clone()], seen: vec![key], power: power.clone() }
    }

    pub(crate) fn copy(&self, power: &Power) -> Volume {
        Volume { slots: self.slots.clone(), seen: self.seen.clone(), power: power.clone() }
    }

    fn change(&self) -> Result<(), BoxedError> {
        if self.power.change() { Ok(()) } else { Err(no_power().into()) }
    }
}

impl Slots for Volume {
    fn opens(&mut self, key: &Secret) -> Result<bool, BoxedError> {
        if self.power.is_cut() {
            return Err(no_power().into());
        }
        Ok(self.slots.iter().any(|slot| key.ct_eq(slot)))
    }

    fn add(&mut self, existing: &Secret, new: &Secret) -> Result<(), BoxedError> {
        assert!(self.opens(existing)?);
        self.change()?;
        self.slots.push(new.expose().to_vec());
        self.seen.push(new.expose().to_vec());
        Ok(())
    }

    fn remove(&mut self, key: &Secret, remaining: &Secret) -> Result<(), BoxedError> {
        assert!(self.opens(remaining)?, "the last slot would go");
        self.change()?;
        self.slots.retain(|slot| !key.ct_eq(slot));
        Ok(())
    }
}
