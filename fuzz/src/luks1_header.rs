//! LUKS1 headers. Input: length of the device in sectors (u32, big-endian), up to 592 bytes that are padded with zeros.

use block::Bytes;
use luks::Luks1Header;
use luks::luks1::{HEADER_BYTES, KEYSLOTS};

use super::Rules;

pub(crate) fn run(input: &[u8]) -> Rules {
    let Some((sectors, rest)) = input.split_first_chunk::<4>() else { return Rules::new() };
    let device = Bytes(u64::from(u32::from_be_bytes(*sectors)) * 512);
    let mut bytes = [0; HEADER_BYTES];
    let len = rest.len().min(HEADER_BYTES);
    bytes[..len].copy_from_slice(&rest[..len]);
    let parsed = Luks1Header::parse(&bytes).and_then(|header| header.check_device(device).map(|()| header));
    match parsed {
        Ok(header) => {
            check(&header, device);
            assert_eq!(header.to_bytes(), bytes, "written as it was read");
            Rules::new()
        }
        Err(violation) => {
            assert!(violation.to_string().len() < 1000, "a short message");
            Rules::from([violation.rule])
        }
    }
}

/// What later code relies on.
fn check(header: &Luks1Header, device: Bytes) {
    assert!((1..=512).contains(&header.key_bytes));
    let len = header.material_size().0;
    assert!(len >= u64::from(header.key_bytes) * 4000 && len.is_multiple_of(512), "material of {len} bytes");
    let mut places: Vec<u64> = header.slots.iter().map(|slot| header.material_offset(slot).0).collect();
    places.sort_unstable();
    assert!(places[0] >= HEADER_BYTES as u64, "behind the header");
    assert!(places.windows(2).all(|pair| pair[0] + len <= pair[1]), "apart: {places:?}");
    assert_eq!(header.keyslots_end().0, places[7] + len);
    assert!(header.keyslots_end() <= device, "on the device");
    assert!(header.payload_offset() == Bytes::ZERO || header.keyslots_end() <= header.payload_offset());
    assert!(header.enabled().all(|(id, slot)| id < KEYSLOTS && slot.enabled && slot.stripes == 4000));
    let texts = [header.cipher(), header.hash_spec.to_string(), header.uuid.to_string()];
    assert!(texts.iter().all(|text| text.len() <= 3 * 64 && !text.contains('\0')), "{texts:?}");
    assert!(format!("{header:?}").len() < 20_000);
}
