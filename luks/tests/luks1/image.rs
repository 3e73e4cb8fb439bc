//! A LUKS1 header made by hand, byte by byte, and what breaks each of its rules.
#![allow(dead_code, reason = "each test program uses its part")]

/// Bytes of a header.
pub(crate) const HEADER: usize = 592;
/// Sectors that the key material of a 64-byte key takes.
pub(crate) const MATERIAL_SECTORS: u32 = 500;
/// Length of the device that a valid header needs, in sectors.
pub(crate) const DEVICE_SECTORS: u32 = 8 + 7 * 504 + MATERIAL_SECTORS;

/// Where a field of keyslot `id` stands.
pub(crate) const fn slot(id: usize, field: usize) -> usize {
    208 + id * 48 + field
}

/// Field of a keyslot: its state.
pub(crate) const STATE: usize = 0;
/// Field of a keyslot: PBKDF2 iterations.
pub(crate) const ITERATIONS: usize = 4;
/// Field of a keyslot: where its material starts.
pub(crate) const OFFSET: usize = 40;
/// Field of a keyslot: stripes.
pub(crate) const STRIPES: usize = 44;

/// A valid header: aes-xts-plain64, 64-byte key, sha256, keyslots as cryptsetup places them, keyslot 1 enabled.
pub(crate) fn good() -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"LUKS\xba\xbe\x00\x01");
    put(8, b"aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &4096u32.to_be_bytes());
    put(108, &64u32.to_be_bytes());
    put(112, &[0x11; 20]);
    put(132, &[0x22; 32]);
    put(164, &1000u32.to_be_bytes());
    put(168, b"0cdf2c46-9b94-4dd9-b1d0-17f4cdbf4a36");
    for id in 0..8 {
        let state: u32 = if id == 1 { 0x00ac_71f3 } else { 0x0000_dead };
        put(slot(id, STATE), &state.to_be_bytes());
        put(slot(id, OFFSET), &(8 + 504 * u32::try_from(id).expect("id")).to_be_bytes());
        put(slot(id, STRIPES), &4000u32.to_be_bytes());
    }
    put(slot(1, ITERATIONS), &1000u32.to_be_bytes());
    put(slot(1, 8), &[0x33; 32]);
    bytes
}

/// One change of a good header.
pub(crate) struct Vector {
    /// The rule that it breaks; `valid` for none.
    pub(crate) rule: &'static str,
    /// What is changed.
    pub(crate) what: &'static str,
    /// Where.
    pub(crate) at: usize,
    /// To which bytes.
    pub(crate) to: Vec<u8>,
    /// Length of the device in sectors.
    pub(crate) device_sectors: u32,
    /// Refused here, taken by cryptsetup.
    pub(crate) stricter: bool,
}

impl Vector {
    /// The header with the change.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut bytes = good();
        bytes[self.at..self.at + self.to.len()].copy_from_slice(&self.to);
        bytes
    }
}

/// At least one vector per rule, and changes that a header survives.
pub(crate) fn vectors() -> Vec<Vector> {
    let vector =
        |rule, what, at, to: &[u8]| Vector { rule, what, at, to: to.to_vec(), device_sectors: 8192, stricter: false };
    let number = |rule, what, at, to: u32| vector(rule, what, at, &to.to_be_bytes());
    let short = |rule, what, device_sectors| Vector { device_sectors, ..vector(rule, what, 0, b"L") };
    let before = "luks1-slot-before-payload";
    let overlap = "luks1-slot-overlap";
    vec![
        vector("luks1-magic", "one letter", 3, b"T"),
        vector("luks1-magic", "of a secondary copy", 0, b"SKUL"),
        vector("luks1-version", "0", 7, &[0]),
        vector("luks1-version", "3", 7, &[3]),
        vector("luks1-version", "257", 6, &[1]),
        Vector { stricter: true, ..number("luks1-slot-state", "of a disabled keyslot", slot(5, STATE), 1) },
        Vector { stricter: true, ..number("luks1-slot-state", "of the enabled keyslot", slot(1, STATE), 0x00ac_71f2) },
        number("luks1-key-bytes", "0", 108, 0),
        number("luks1-key-bytes", "513", 108, 513),
        number("luks1-key-bytes", "as many as the field holds", 108, u32::MAX),
        number("luks1-slot-stripes", "3999", slot(1, STRIPES), 3999),
        number("luks1-slot-stripes", "0 in a disabled keyslot", slot(5, STRIPES), 0),
        number("luks1-slot-offset", "0", slot(0, OFFSET), 0),
        number("luks1-slot-offset", "in the second sector", slot(0, OFFSET), 1),
        number("luks1-slot-offset", "of a disabled keyslot", slot(5, OFFSET), 1),
        number(overlap, "one sector", slot(1, OFFSET), 8 + MATERIAL_SECTORS - 1),
        number(overlap, "the same place", slot(5, OFFSET), 0x200),
        number(overlap, "with a longer key", 108, 512),
        number(before, "one sector behind", slot(7, OFFSET), 4096 - MATERIAL_SECTORS + 1),
        number(before, "at the end of what can be named", slot(7, OFFSET), u32::MAX),
        number(before, "data right behind the header", 104, 8),
        short("luks1-device-size", "one sector too short", DEVICE_SECTORS - 1),
        short("valid", "device ends with the last keyslot", DEVICE_SECTORS),
        number("valid", "detached header", 104, 0),
        number("valid", "data right behind the keyslots", 104, DEVICE_SECTORS),
        number("valid", "data behind the end of the device", 104, u32::MAX),
        number("valid", "material right behind the header", slot(0, OFFSET), 2),
        number("valid", "no gap between keyslots", slot(1, OFFSET), 8 + MATERIAL_SECTORS),
        number("valid", "material up to the data", slot(7, OFFSET), 4096 - MATERIAL_SECTORS),
        number("valid", "key of one byte", 108, 1),
        number("valid", "no iterations", slot(1, ITERATIONS), 0),
        number("valid", "no iterations of the digest", 164, 0),
        vector("valid", "cipher without an end", 8, &[b'a'; 32]),
        vector("valid", "no cipher", 8, &[0; 3]),
        vector("valid", "bytes behind the hash", 80, b"xyz"),
        vector("valid", "no UUID", 168, &[0; 36]),
        vector("valid", "UUID of 40 letters", 168, &[b'u'; 40]),
        vector("valid", "UUID that is no text", 168, &[0xff; 40]),
    ]
}
