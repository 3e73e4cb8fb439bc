//! Lengths and offsets as types: [`Bytes`] and 512-byte [`Sectors`], so that a number never travels without its unit.
//!
//! Invariants: a sector is always 512 bytes, whatever the block size of the device (the unit of the kernel's block layer
//! and of every LUKS2 IV); arithmetic is checked, and an overflow is `None`, never a wrapped number.

use std::fmt;

/// Size of one [`Sectors`] unit in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// A length or an offset in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// A length or an offset in 512-byte sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sectors(pub u64);

impl Bytes {
    /// Nothing.
    pub const ZERO: Bytes = Bytes(0);

    /// `count` KiB, saturating at the largest number.
    pub const fn from_kib(count: u64) -> Bytes {
        Bytes(count.saturating_mul(1 << 10))
    }

    /// `count` MiB, saturating at the largest number.
    pub const fn from_mib(count: u64) -> Bytes {
        Bytes(count.saturating_mul(1 << 20))
    }

    /// The bytes in `sectors`; `None` on overflow.
    pub const fn from_sectors(sectors: Sectors) -> Option<Bytes> {
        match sectors.0.checked_mul(SECTOR_BYTES) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }

    /// The length of a slice or a buffer.
    pub const fn from_len(len_bytes: usize) -> Bytes {
        Bytes(len_bytes as u64)
    }

    /// The bare number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as an index into memory; `None` where it does not fit an address.
    pub fn to_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }

    /// Sum; `None` on overflow.
    pub const fn checked_add(self, other: Bytes) -> Option<Bytes> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Bytes(sum)),
            None => None,
        }
    }

    /// Difference; `None` when `other` is larger.
    pub const fn checked_sub(self, other: Bytes) -> Option<Bytes> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Bytes(difference)),
            None => None,
        }
    }

    /// Product with a plain count; `None` on overflow.
    pub const fn checked_mul(self, count: u64) -> Option<Bytes> {
        match self.0.checked_mul(count) {
            Some(product) => Some(Bytes(product)),
            None => None,
        }
    }

    /// Whether the number is a multiple of `unit`. Everything is a multiple of zero bytes only if it is zero.
    pub const fn is_multiple_of(self, unit: Bytes) -> bool {
        if unit.0 == 0 { self.0 == 0 } else { self.0.is_multiple_of(unit.0) }
    }

    /// The largest multiple of `unit` that is not larger; the number itself when `unit` is zero.
    pub const fn round_down(self, unit: Bytes) -> Bytes {
        if unit.0 == 0 { self } else { Bytes(self.0 - self.0 % unit.0) }
    }

    /// The smallest multiple of `unit` that is not smaller; `None` on overflow.
    pub const fn round_up(self, unit: Bytes) -> Option<Bytes> {
        if unit.0 == 0 || self.0.is_multiple_of(unit.0) {
            return Some(self);
        }
        self.round_down(unit).checked_add(unit)
    }
}

impl Sectors {
    /// Nothing.
    pub const ZERO: Sectors = Sectors(0);

    /// The whole sectors in `bytes`; `None` unless it is a multiple of 512.
    pub const fn from_bytes(bytes: Bytes) -> Option<Sectors> {
        if bytes.0.is_multiple_of(SECTOR_BYTES) { Some(Sectors(bytes.0 / SECTOR_BYTES)) } else { None }
    }

    /// The bytes in these sectors; `None` on overflow.
    pub const fn to_bytes(self) -> Option<Bytes> {
        Bytes::from_sectors(self)
    }

    /// The bare number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Sum; `None` on overflow.
    pub const fn checked_add(self, other: Sectors) -> Option<Sectors> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Sectors(sum)),
            None => None,
        }
    }

    /// Difference; `None` when `other` is larger.
    pub const fn checked_sub(self, other: Sectors) -> Option<Sectors> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Sectors(difference)),
            None => None,
        }
    }

    /// Product with a plain count; `None` on overflow.
    pub const fn checked_mul(self, count: u64) -> Option<Sectors> {
        match self.0.checked_mul(count) {
            Some(product) => Some(Sectors(product)),
            None => None,
        }
    }
}

impl From<u64> for Bytes {
    fn from(bytes: u64) -> Bytes {
        Bytes(bytes)
    }
}

impl From<Bytes> for u64 {
    fn from(bytes: Bytes) -> u64 {
        bytes.0
    }
}

impl From<u64> for Sectors {
    fn from(sectors: u64) -> Sectors {
        Sectors(sectors)
    }
}

impl From<Sectors> for u64 {
    fn from(sectors: Sectors) -> u64 {
        sectors.0
    }
}

/// `16 MiB (16777216 bytes)` for round numbers, `1.5 GiB (1610612736 bytes)` for others, `700 bytes` below 1 KiB.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        let exponent = (63 - self.0.leading_zeros()) / 10;
        let unit = 1_u64 << (10 * exponent);
        let name = UNITS.get(exponent as usize - 1).copied().unwrap_or("EiB");
        let tenths = u128::from(self.0 % unit) * 10 / u128::from(unit);
        match tenths {
            0 => write!(f, "{} {name} ({} bytes)", self.0 / unit, self.0),
            _ => write!(f, "{}.{tenths} {name} ({} bytes)", self.0 / unit, self.0),
        }
    }
}

/// `2048 sectors`.
impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_with_their_unit_and_the_exact_number() {
        assert_eq!(Bytes(700).to_string(), "700 bytes");
        assert_eq!(Bytes(16 << 20).to_string(), "16 MiB (16777216 bytes)");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB (1610612736 bytes)");
        assert_eq!(Bytes(u64::MAX).to_string(), "15.9 EiB (18446744073709551615 bytes)");
        assert_eq!(Sectors(8).to_string(), "8 sectors");
    }

    #[test]
    fn arithmetic_never_wraps() {
        assert_eq!(Bytes(u64::MAX).checked_add(Bytes(1)), None);
        assert_eq!(Bytes(1).checked_sub(Bytes(2)), None);
        assert_eq!(Bytes::from_sectors(Sectors(u64::MAX)), None);
        assert_eq!(Bytes(u64::MAX).round_up(Bytes(4096)), None);
        assert_eq!(Bytes(4097).round_up(Bytes(4096)), Some(Bytes(8192)));
        assert_eq!(Bytes(4097).round_down(Bytes(4096)), Bytes(4096));
        assert_eq!(Sectors::from_bytes(Bytes(513)), None);
        assert_eq!(Sectors::from_bytes(Bytes(1024)), Some(Sectors(2)));
    }
}
