//! The binary header: the first 4096 bytes of each metadata copy.
//!
//! Source: LUKS2 specification section 3.1, format notes 1.1. Integers are big-endian. Only the first 512 bytes carry
//! data, so the checksum, written last, lands in one sector.
//!
//! ```text
//!   0  magic       6   "LUKS\xba\xbe" primary, "SKUL\xba\xbe" secondary
//!   6  version     2   2
//!   8  hdr_size    8   bytes of this copy: 4096 + JSON area
//!  16  seqid       8   +1 with each update of the metadata
//!  24  label      48   NUL-terminated
//!  72  csum_alg   32   NUL-terminated, "sha256"
//! 104  salt       64   random, differs between the copies, no cryptographic use
//! 168  uuid       40   36 characters and NUL
//! 208  subsystem  48   NUL-terminated
//! 256  hdr_offset  8   where this copy stands
//! 264  padding   184   zero
//! 448  csum       64   digest, left-aligned, the rest zero
//! 512  padding  3584   zero
//! ```

use std::fmt;

use block::Bytes;

use crate::hash::{HashAlg, MAX_DIGEST_BYTES};
use crate::hex::hex;
use crate::limits::{BINARY_HEADER, BINARY_HEADER_USED, METADATA_SIZE_MAX, METADATA_SIZE_MIN};
use crate::rule::{Rule, Violation};

/// Length of the salt field.
pub const SALT_LEN: usize = 64;
/// Length of the label field; a label is one byte shorter.
pub const LABEL_LEN: usize = 48;
/// Length of the UUID field.
pub const UUID_LEN: usize = 40;
const MAGIC_LEN: usize = 6;
const CSUM_ALG_LEN: usize = 32;
pub(crate) const CSUM_LEN: usize = 64;
const PADDING_LEN: usize = 184;
const VERSION: u16 = 2;

const VERSION_AT: usize = MAGIC_LEN;
const HDR_SIZE_AT: usize = VERSION_AT + 2;
const SEQID_AT: usize = HDR_SIZE_AT + 8;
const LABEL_AT: usize = SEQID_AT + 8;
const CSUM_ALG_AT: usize = LABEL_AT + LABEL_LEN;
const SALT_AT: usize = CSUM_ALG_AT + CSUM_ALG_LEN;
const UUID_AT: usize = SALT_AT + SALT_LEN;
const SUBSYSTEM_AT: usize = UUID_AT + UUID_LEN;
const HDR_OFFSET_AT: usize = SUBSYSTEM_AT + LABEL_LEN;
const PADDING_AT: usize = HDR_OFFSET_AT + 8;
const CSUM_AT: usize = PADDING_AT + PADDING_LEN;
const _: () = assert!(CSUM_AT + CSUM_LEN == BINARY_HEADER_USED && CSUM_LEN == MAX_DIGEST_BYTES);

/// Which of the two copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// At offset 0.
    Primary,
    /// Right after the primary.
    Secondary,
}

impl Position {
    /// The first bytes of the copy.
    pub fn magic(self) -> [u8; MAGIC_LEN] {
        match self {
            Position::Primary => *b"LUKS\xba\xbe",
            Position::Secondary => *b"SKUL\xba\xbe",
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Position::Primary => "primary",
            Position::Secondary => "secondary",
        })
    }
}

/// The fields of a binary header. Text ends before its first NUL.
#[derive(Clone, PartialEq, Eq)]
pub struct BinaryHeader {
    /// Which copy it heads.
    pub position: Position,
    /// Size of the copy: this header and the JSON area.
    pub hdr_size: Bytes,
    /// Number of this state of the metadata.
    pub seqid: u64,
    /// Label, as bytes: nothing says that it is UTF-8.
    pub label: Vec<u8>,
    /// Name of the checksum's hash.
    pub csum_alg: Vec<u8>,
    /// Random bytes that make the two copies differ.
    pub salt: [u8; SALT_LEN],
    /// UUID.
    pub uuid: Vec<u8>,
    /// Subsystem label.
    pub subsystem: Vec<u8>,
    /// Where the copy stands.
    pub hdr_offset: Bytes,
    /// The checksum as stored.
    pub csum: [u8; CSUM_LEN],
}

impl fmt::Debug for BinaryHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BinaryHeader")
            .field("position", &self.position)
            .field("hdr_size", &self.hdr_size)
            .field("seqid", &self.seqid)
            .field("label", &String::from_utf8_lossy(&self.label))
            .field("csum_alg", &String::from_utf8_lossy(&self.csum_alg))
            .field("uuid", &String::from_utf8_lossy(&self.uuid))
            .field("subsystem", &String::from_utf8_lossy(&self.subsystem))
            .field("hdr_offset", &self.hdr_offset)
            .finish_non_exhaustive()
    }
}

impl BinaryHeader {
    /// Read the binary header of the copy `position` that stands at `offset`. The checksum is not looked at.
    ///
    /// # Errors
    /// The first rule of the binary header that is broken: magic, version, sizes, offset.
    pub fn parse(bytes: &[u8; BINARY_HEADER], position: Position, offset: Bytes) -> Result<BinaryHeader, Violation> {
        let magic: [u8; MAGIC_LEN] = field(bytes, 0);
        if magic != position.magic() {
            return Err(Violation::new(Rule::Magic, position.to_string(), magic.escape_ascii()));
        }
        let version = u16::from_be_bytes(field(bytes, VERSION_AT));
        if version != VERSION {
            return Err(Violation::new(Rule::Version, position.to_string(), version));
        }
        let hdr_offset = Bytes(u64::from_be_bytes(field(bytes, HDR_OFFSET_AT)));
        if hdr_offset != offset {
            let value = format_args!("{} in a copy at {}", hdr_offset.0, offset.0);
            return Err(Violation::new(Rule::HdrOffset, position.to_string(), value));
        }
        let hdr_size = Bytes(u64::from_be_bytes(field(bytes, HDR_SIZE_AT)));
        if hdr_size < METADATA_SIZE_MIN || hdr_size > METADATA_SIZE_MAX || !hdr_size.0.is_multiple_of(512) {
            return Err(Violation::new(Rule::HdrSize, position.to_string(), hdr_size.0));
        }
        if position == Position::Secondary && hdr_size != offset {
            let value = format_args!("size {} in a copy at {}", hdr_size.0, offset.0);
            return Err(Violation::new(Rule::SecondaryOffset, position.to_string(), value));
        }
        Ok(BinaryHeader {
            position,
            hdr_size,
            seqid: u64::from_be_bytes(field(bytes, SEQID_AT)),
            label: text::<LABEL_LEN>(bytes, LABEL_AT),
            csum_alg: text::<CSUM_ALG_LEN>(bytes, CSUM_ALG_AT),
            salt: field(bytes, SALT_AT),
            uuid: text::<UUID_LEN>(bytes, UUID_AT),
            subsystem: text::<LABEL_LEN>(bytes, SUBSYSTEM_AT),
            hdr_offset,
            csum: field(bytes, CSUM_AT),
        })
    }

    /// The header as it stands on disk. Text that is too long for its field is cut so that a NUL remains.
    pub fn to_bytes(&self) -> [u8; BINARY_HEADER] {
        let mut bytes = [0; BINARY_HEADER];
        put(&mut bytes, 0, &self.position.magic());
        put(&mut bytes, VERSION_AT, &VERSION.to_be_bytes());
        put(&mut bytes, HDR_SIZE_AT, &self.hdr_size.0.to_be_bytes());
        put(&mut bytes, SEQID_AT, &self.seqid.to_be_bytes());
        put_text::<LABEL_LEN>(&mut bytes, LABEL_AT, &self.label);
        put_text::<CSUM_ALG_LEN>(&mut bytes, CSUM_ALG_AT, &self.csum_alg);
        put(&mut bytes, SALT_AT, &self.salt);
        put_text::<UUID_LEN>(&mut bytes, UUID_AT, &self.uuid);
        put_text::<LABEL_LEN>(&mut bytes, SUBSYSTEM_AT, &self.subsystem);
        put(&mut bytes, HDR_OFFSET_AT, &self.hdr_offset.0.to_be_bytes());
        put(&mut bytes, CSUM_AT, &self.csum);
        bytes
    }

    /// The hash that `csum_alg` names.
    pub(crate) fn hash(&self) -> Result<HashAlg, Violation> {
        let name = String::from_utf8_lossy(&self.csum_alg);
        HashAlg::parse(&name).map_err(|_| Violation::new(Rule::CsumAlg, self.position.to_string(), &name))
    }

    /// Size of the JSON area behind this header.
    pub fn json_size(&self) -> Bytes {
        Bytes(self.hdr_size.0.saturating_sub(BINARY_HEADER as u64))
    }
}

/// Checksum of a copy: H(binary header with a zero checksum ‖ whole JSON area), left-aligned in its field.
pub(crate) fn checksum(alg: HashAlg, binary: &[u8; BINARY_HEADER], json_area: &[u8]) -> [u8; CSUM_LEN] {
    let mut digest = [0; CSUM_LEN];
    let len = alg.digest_len_bytes();
    let parts = [&binary[..CSUM_AT], &[0; CSUM_LEN], &binary[CSUM_AT + CSUM_LEN..], json_area];
    alg.digest(&parts, &mut digest[..len]);
    digest
}

/// Hold the stored checksum of a copy against the right one; only as many bytes as the hash has.
pub(crate) fn check_checksum(
    header: &BinaryHeader,
    binary: &[u8; BINARY_HEADER],
    json_area: &[u8],
) -> Result<(), Violation> {
    let alg = header.hash()?;
    let len = alg.digest_len_bytes();
    let right = checksum(alg, binary, json_area);
    if header.csum[..len] == right[..len] {
        return Ok(());
    }
    Err(Violation::new(Rule::Csum, header.position.to_string(), hex(&header.csum[..len])))
}

fn field<const LEN: usize>(bytes: &[u8; BINARY_HEADER], at: usize) -> [u8; LEN] {
    let mut field = [0; LEN];
    field.copy_from_slice(&bytes[at..at + LEN]);
    field
}

/// Text up to the first NUL; the last byte of the field is taken as NUL whatever it is.
fn text<const LEN: usize>(bytes: &[u8; BINARY_HEADER], at: usize) -> Vec<u8> {
    let field = &bytes[at..at + LEN - 1];
    field.iter().copied().take_while(|&byte| byte != 0).collect()
}

fn put(bytes: &mut [u8; BINARY_HEADER], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn put_text<const LEN: usize>(bytes: &mut [u8; BINARY_HEADER], at: usize, text: &[u8]) {
    put(bytes, at, &text[..text.len().min(LEN - 1)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> BinaryHeader {
        BinaryHeader {
            position: Position::Secondary,
            hdr_size: Bytes(0x4000),
            seqid: 0x0102_0304_0506_0708,
            label: b"label".to_vec(),
            csum_alg: b"sha256".to_vec(),
            salt: [7; SALT_LEN],
            uuid: b"01234567-89ab-cdef-0123-456789abcdef".to_vec(),
            subsystem: b"sub".to_vec(),
            hdr_offset: Bytes(0x4000),
            csum: [9; CSUM_LEN],
        }
    }

    #[test]
    fn bytes_and_back() {
        let header = sample();
        assert_eq!(BinaryHeader::parse(&header.to_bytes(), Position::Secondary, Bytes(0x4000)).unwrap(), header);
    }

    #[test]
    fn fields_stand_where_the_byte_map_says() {
        let bytes = sample().to_bytes();
        assert_eq!(&bytes[..8], b"SKUL\xba\xbe\x00\x02");
        assert_eq!(bytes[16..24], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(&bytes[24..30], b"label\0");
        assert_eq!(&bytes[72..79], b"sha256\0");
        assert_eq!(bytes[104..168], [7; 64]);
        assert_eq!(&bytes[168..172], b"0123");
        assert_eq!(&bytes[208..212], b"sub\0");
        assert_eq!(bytes[256..264], 0x4000u64.to_be_bytes());
        assert_eq!(bytes[448..512], [9; 64]);
        assert!(bytes[512..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn text_always_ends() {
        let mut header = sample();
        header.label = vec![b'x'; 60];
        let bytes = header.to_bytes();
        assert_eq!(bytes[LABEL_AT + LABEL_LEN - 1], 0);
        let mut unterminated = bytes;
        unterminated[LABEL_AT + LABEL_LEN - 1] = b'x';
        let read = BinaryHeader::parse(&unterminated, Position::Secondary, Bytes(0x4000)).unwrap();
        assert_eq!(read.label, vec![b'x'; 47]);
    }
}
