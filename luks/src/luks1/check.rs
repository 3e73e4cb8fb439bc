//! The rules that a LUKS1 header must keep. Source: luks2-format §10; what cryptsetup 2.6.1 accepts and refuses, by
//! experiment (`tests/tests/luks1_rules.rs`).

use block::{Bytes, SECTOR_BYTES};

use crate::af::STRIPES;
use crate::limits::LUKS1_KEY_BYTES_MAX;
use crate::luks1::header::{HEADER_BYTES, Luks1Header};
use crate::rule::{Rule, Violation};

/// Sectors that the header takes.
const HEADER_SECTORS: u32 = 2;
const _: () = assert!((HEADER_BYTES as u64).div_ceil(SECTOR_BYTES) == HEADER_SECTORS as u64);

impl Luks1Header {
    /// Holds the header against every rule that needs no device. Rules for keyslots hold for disabled ones too.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Violation> {
        if self.key_bytes == 0 || self.key_bytes > LUKS1_KEY_BYTES_MAX {
            return Err(Violation::new(Rule::Luks1KeyBytes, "", self.key_bytes));
        }
        for (id, slot) in self.slots.iter().enumerate() {
            let broken = |rule, value| Err(Violation::new(rule, format!("keyslots.{id}"), value));
            if slot.stripes as usize != STRIPES {
                return broken(Rule::Luks1SlotStripes, slot.stripes);
            }
            if slot.key_material_offset_sectors < HEADER_SECTORS {
                return broken(Rule::Luks1SlotOffset, slot.key_material_offset_sectors);
            }
        }
        self.check_overlap()?;
        self.check_payload()
    }

    /// Neighbours in the order of their places do not touch each other's key material.
    fn check_overlap(&self) -> Result<(), Violation> {
        let mut places: Vec<(Bytes, usize)> =
            self.slots.iter().enumerate().map(|(id, slot)| (self.material_offset(slot), id)).collect();
        places.sort_unstable();
        let len = self.material_size();
        for pair in places.windows(2) {
            let [(before, first), (start, second)] = pair else { continue };
            if before.checked_add(len).is_none_or(|end| end > *start) {
                let value = format_args!("{} lies inside keyslot {first}: {len} at {}", start.0, before.0);
                return Err(Violation::new(Rule::Luks1SlotOverlap, format!("keyslots.{second}"), value));
            }
        }
        Ok(())
    }

    fn check_payload(&self) -> Result<(), Violation> {
        let (payload, end) = (self.payload_offset(), self.keyslots_end());
        if payload == Bytes::ZERO || end <= payload {
            return Ok(());
        }
        let value = format_args!("keyslots end at {}, data starts at {}", end.0, payload.0);
        Err(Violation::new(Rule::Luks1SlotBeforePayload, "", value))
    }

    /// A device of `size` that holds the header holds the keyslots too.
    ///
    /// # Errors
    /// [`Rule::Luks1DeviceSize`].
    pub fn check_device(&self, size: Bytes) -> Result<(), Violation> {
        let needed = self.keyslots_end();
        if size >= needed {
            return Ok(());
        }
        let value = format_args!("{} bytes, header and keyslots need {}", size.0, needed.0);
        Err(Violation::new(Rule::Luks1DeviceSize, "", value))
    }
}
