//! Rules that hold between objects: the order of segments, areas that must not touch, who belongs to which digest.
//! Rules about one object stand with its type in [`crate::metadata`].
//!
//! Source: format notes 2.5, in whose order [`crate::Metadata::from_map`] calls these.

pub(crate) mod areas;
pub(crate) mod keyslots;
pub(crate) mod reencrypt;
pub(crate) mod segments;
