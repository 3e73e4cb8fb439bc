//! Header copies made of parts, and the repair of their checksums: what lies behind a checksum is out of a fuzzer's reach.

use block::Bytes;
use luks::binary::{Position, SALT_LEN};
use luks::hash::HashAlg;
use luks::{BinaryHeader, Rule};

/// Length of a binary header.
pub(crate) const BINARY_HEADER: usize = 4096;
/// Where its checksum stands.
const CSUM_AT: usize = 448;
const CSUM_LEN: usize = 64;

/// The binary header of a copy of `size` bytes.
pub(crate) fn binary(position: Position, size: u64, seqid: u64) -> BinaryHeader {
    let (offset, salt) = match position {
        Position::Primary => (0, 1),
        Position::Secondary => (size, 2),
    };
    BinaryHeader {
        position,
        hdr_size: Bytes(size),
        seqid,
        label: b"fuzz".to_vec(),
        csum_alg: b"sha256".to_vec(),
        salt: [salt; SALT_LEN],
        uuid: b"01234567-89ab-cdef-0123-456789abcdef".to_vec(),
        subsystem: Vec::new(),
        hdr_offset: Bytes(offset),
        csum: [0; CSUM_LEN],
    }
}

/// A copy: the binary header with a right checksum, and the JSON area.
pub(crate) fn copy(header: &BinaryHeader, json: &[u8]) -> Vec<u8> {
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(json);
    bytes.resize(usize::try_from(header.hdr_size.0).expect("size"), 0);
    repair_checksum(&mut bytes, header);
    bytes
}

/// Gives every copy in `image` whose binary header makes sense the checksum that its bytes ask for.
pub(crate) fn repair_checksums(image: &mut [u8]) {
    let primary = header_at(image, Position::Primary, 0);
    let named = primary.as_ref().ok().map_or(0x4000, |header| header.hdr_size.0);
    for (position, offset) in [(Position::Primary, 0), (Position::Secondary, 0x4000), (Position::Secondary, named)] {
        let Ok(header) = header_at(image, position, offset) else { continue };
        let (start, end) = (offset, offset + header.hdr_size.0);
        if let (Ok(start), Ok(end)) = (usize::try_from(start), usize::try_from(end))
            && let Some(copy) = image.get_mut(start..end)
        {
            repair_checksum(copy, &header);
        }
    }
}

fn header_at(image: &[u8], position: Position, offset: u64) -> Result<BinaryHeader, Rule> {
    let start = usize::try_from(offset).map_err(|_| Rule::CopySize)?;
    let bytes = image.get(start..).and_then(|rest| rest.first_chunk()).ok_or(Rule::CopySize)?;
    BinaryHeader::parse(bytes, position, Bytes(offset)).map_err(|violation| violation.rule)
}

/// An unknown checksum hash leaves the copy as it is.
fn repair_checksum(copy: &mut [u8], header: &BinaryHeader) {
    let Ok(alg) = HashAlg::parse(&String::from_utf8_lossy(&header.csum_alg)) else { return };
    let mut csum = [0; CSUM_LEN];
    copy[CSUM_AT..CSUM_AT + CSUM_LEN].fill(0);
    alg.digest(&[copy], &mut csum[..alg.digest_len_bytes()]);
    copy[CSUM_AT..CSUM_AT + CSUM_LEN].copy_from_slice(&csum);
}
