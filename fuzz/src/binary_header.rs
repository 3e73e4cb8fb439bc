//! Binary headers. Input: `flags`, offset (u64, big-endian), up to 4096 bytes that are padded with zeros.
//!
//! Flags: bit 0 the secondary copy instead of the primary; bit 1 the offset is the one that the header itself names.

use block::Bytes;
use luks::BinaryHeader;
use luks::binary::Position;

use super::Rules;
use super::image::BINARY_HEADER;

/// Where the header itself names its offset.
const HDR_OFFSET_AT: usize = 256;
const TEXT_MAX: usize = 47;

pub(crate) fn run(input: &[u8]) -> Rules {
    let Some((&[flags, ref offset @ ..], rest)) = input.split_first_chunk::<9>() else { return Rules::new() };
    let mut bytes = [0; BINARY_HEADER];
    let len = rest.len().min(BINARY_HEADER);
    bytes[..len].copy_from_slice(&rest[..len]);
    let position = if flags & 1 == 0 { Position::Primary } else { Position::Secondary };
    let mut at = [0; 8];
    at.copy_from_slice(if flags & 2 == 0 { offset } else { &bytes[HDR_OFFSET_AT..HDR_OFFSET_AT + 8] });
    let offset = Bytes(u64::from_be_bytes(at));

    match BinaryHeader::parse(&bytes, position, offset) {
        Ok(header) => {
            check(&header, position, offset);
            Rules::new()
        }
        Err(violation) => {
            assert!(violation.to_string().len() < 1000, "a short message");
            Rules::from([violation.rule])
        }
    }
}

fn check(header: &BinaryHeader, position: Position, offset: Bytes) {
    let size = header.hdr_size.0;
    assert!((0x4000..=0x40_0000).contains(&size) && size.is_multiple_of(512), "size {size}");
    assert_eq!(header.json_size().0, size - BINARY_HEADER as u64);
    assert_eq!((header.position, header.hdr_offset), (position, offset));
    assert!(position == Position::Primary || header.hdr_offset.0 == size, "the secondary stands behind the primary");
    for text in [&header.label, &header.subsystem, &header.uuid, &header.csum_alg] {
        assert!(text.len() <= TEXT_MAX && !text.contains(&0), "{text:?}");
    }
    let written = header.to_bytes();
    let again = BinaryHeader::parse(&written, position, offset).expect("own bytes");
    assert_eq!(&again, header);
    assert_eq!(again.to_bytes(), written);
    assert!(format!("{header:?}").len() < 4000);
}
