//! LUKS version 1: one binary header of 592 bytes, eight keyslots with fixed places, no metadata text, no second copy.
//!
//! [`Luks1Header`] is the header, [`Luks1Slot`] one of its keyslots; [`check`](Luks1Header::check) holds it against the rules
//! that `docs/format-notes.md` lists under section 10. Source: the LUKS1 on-disk format specification 1.2.3, luks2-format §10.

mod check;
mod container;
mod edit;
mod finish;
pub mod format;
mod header;
mod load;
pub mod repair;
mod text;
mod view;
mod write;

pub use container::Luks1Container;
pub use header::{DIGEST_BYTES, HEADER_BYTES, KEYSLOTS, Luks1Header, Luks1Slot};
pub use load::{load, load_unlocked};
pub use text::FixedText;

#[cfg(test)]
mod tests;
