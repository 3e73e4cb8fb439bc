//! One copy of the header, as far as it can be judged alone: its checksum holds.
//!
//! Source: format notes 1.3 and 1.4. Invariant: a [`HeaderCopy`] exists only if its magic, sizes and checksum are right;
//! what its JSON says is judged by [`crate::Metadata`].

use block::{BlockError, BlockIo, Bytes};

use crate::binary::{self, BinaryHeader};
use crate::json;
use crate::limits::{BINARY_HEADER, BINARY_HEADER_USED, Limits};
use crate::rule::{Rule, Violation};

pub use crate::binary::Position;

/// A copy whose checksum holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderCopy {
    binary: BinaryHeader,
    json_area: Vec<u8>,
}

/// Why there is no valid copy at some place.
#[derive(Debug)]
pub(crate) enum Flaw {
    /// It breaks a rule.
    Broken(Violation),
    /// It cannot be read.
    Unreadable(BlockError),
}

impl From<Violation> for Flaw {
    fn from(violation: Violation) -> Flaw {
        Flaw::Broken(violation)
    }
}

impl From<BlockError> for Flaw {
    fn from(error: BlockError) -> Flaw {
        Flaw::Unreadable(error)
    }
}

/// The first look at a copy: its binary header, not yet held against its checksum.
pub(crate) struct FirstLook {
    raw: [u8; BINARY_HEADER],
    position: Position,
    offset: Bytes,
}

impl FirstLook {
    /// Read the 4096 bytes of a binary header at `offset`.
    pub(crate) fn read<D: BlockIo + ?Sized>(disk: &D, position: Position, offset: Bytes) -> Result<FirstLook, Flaw> {
        let mut raw = [0; BINARY_HEADER];
        fits(disk, position, offset, Bytes(BINARY_HEADER as u64))?;
        disk.read_at(offset, &mut raw)?;
        Ok(FirstLook { raw, position, offset })
    }

    /// The part of the header that carries data.
    pub(crate) fn used(&self) -> [u8; BINARY_HEADER_USED] {
        let mut used = [0; BINARY_HEADER_USED];
        used.copy_from_slice(&self.raw[..BINARY_HEADER_USED]);
        used
    }

    /// The fields, if they make sense.
    pub(crate) fn fields(&self) -> Result<BinaryHeader, Violation> {
        BinaryHeader::parse(&self.raw, self.position, self.offset)
    }

    /// Read the rest of the copy and hold it against its checksum.
    pub(crate) fn complete<D: BlockIo + ?Sized>(&self, disk: &D, limits: &Limits) -> Result<HeaderCopy, Flaw> {
        let binary = self.fields()?;
        fits(disk, self.position, self.offset, binary.hdr_size)?;
        let json_size = binary.json_size();
        if json_size.0 > limits.json_bytes {
            return Err(Violation::new(Rule::HdrSize, self.position.to_string(), binary.hdr_size.0).into());
        }
        // At most 4 MiB: the size was checked with the fields.
        let Some(len_bytes) = json_size.to_usize() else {
            return Err(Violation::new(Rule::HdrSize, self.position.to_string(), binary.hdr_size.0).into());
        };
        let mut json_area = vec![0; len_bytes];
        let Some(json_offset) = self.offset.checked_add(Bytes(BINARY_HEADER as u64)) else {
            return Err(Violation::new(Rule::HdrOffset, self.position.to_string(), self.offset.0).into());
        };
        disk.read_at(json_offset, &mut json_area)?;
        binary::check_checksum(&binary, &self.raw, &json_area)?;
        Ok(HeaderCopy { binary, json_area })
    }
}

/// A copy that ends behind the device cannot be read, but it is the copy that is wrong, not the device.
fn fits<D: BlockIo + ?Sized>(disk: &D, position: Position, offset: Bytes, len: Bytes) -> Result<(), Violation> {
    let size = disk.geometry().size;
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => {
            let value = format_args!("{} bytes at {} of a device of {} bytes", len.0, offset.0, size.0);
            Err(Violation::new(Rule::CopySize, position.to_string(), value))
        }
    }
}

impl HeaderCopy {
    /// The binary header.
    pub fn binary(&self) -> &BinaryHeader {
        &self.binary
    }

    /// Which copy it is.
    pub fn position(&self) -> Position {
        self.binary.position
    }

    /// The whole JSON area, zeros at its end included.
    pub fn json_area(&self) -> &[u8] {
        &self.json_area
    }

    /// The JSON text.
    ///
    /// # Errors
    /// The rule of the JSON area that is broken: no NUL behind the text, bytes behind the NUL, no UTF-8.
    pub fn json_text(&self) -> Result<&str, Violation> {
        json::text_of_area(&self.json_area)
    }

    /// Binary header and JSON area.
    pub(crate) fn into_parts(self) -> (BinaryHeader, Vec<u8>) {
        (self.binary, self.json_area)
    }

    /// Whether the other copy says the same: everything but position, salt and checksum.
    pub(crate) fn says_the_same(&self, other: &HeaderCopy) -> bool {
        let (one, two) = (&self.binary, &other.binary);
        self.json_area == other.json_area
            && one.hdr_size == two.hdr_size
            && one.seqid == two.seqid
            && one.label == two.label
            && one.uuid == two.uuid
            && one.subsystem == two.subsystem
    }
}
