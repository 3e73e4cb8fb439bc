//! AES-256-XTS implementations, all keyed alike and called alike: in place, any number of sectors, IVs counting
//! 512-byte units (`plain64`).

use aes::Aes256;
use aes::cipher::KeyInit;
use anyhow::{Result, bail};
use dmcrypt::{CipherSpec, Kernel, SectorCipher, SectorSize};
use xts_mode::{Xts128, get_tweak_default};

use crate::limit::{Limit, Width};

/// A key with no meaning: no speed depends on it. Its halves differ, as some implementations insist.
pub const KEY: [u8; 64] = {
    let mut key = [0; 64];
    let mut at = 0;
    while at < key.len() {
        key[at] = 0x42 ^ (at * 29).to_le_bytes()[0];
        at += 1;
    }
    key
};

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Plaintext to ciphertext.
    Encrypt,
    /// Ciphertext to plaintext.
    Decrypt,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Encrypt, Direction::Decrypt];

    /// `encrypt` or `decrypt`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Encrypt => "encrypt",
            Direction::Decrypt => "decrypt",
        }
    }
}

/// An implementation with its key, for one sector size.
pub trait Contender: Send {
    /// Encrypts or decrypts whole sectors in place; the first has the IV `iv_sector`.
    ///
    /// # Errors
    /// What the implementation reports.
    fn crypt(&mut self, direction: Direction, iv_sector: u64, sectors: &mut [u8]) -> Result<()>;

    /// `calls` calls over `call_bytes` each, with changing IVs, going round in `area`. The loop is here so that the
    /// indirect call is outside of it.
    ///
    /// # Errors
    /// The first that [`Contender::crypt`] gave.
    fn repeat(&mut self, direction: Direction, area: &mut [u8], call_bytes: usize, calls: u64) -> Result<()> {
        let mut at = 0;
        for call in 0..calls {
            self.crypt(direction, call * 8, &mut area[at..at + call_bytes])?;
            at += call_bytes;
            if at + call_bytes > area.len() {
                at = 0;
            }
        }
        Ok(())
    }
}

type Build = Box<dyn Fn(SectorSize) -> Result<Box<dyn Contender>> + Send + Sync>;

/// An implementation by name, not yet keyed.
pub struct Entry {
    /// Name in tables.
    pub name: String,
    /// What it is measured by: the limit of its own vector width, or of the machine's widest if it chooses itself.
    pub limit: Option<Limit>,
    build: Build,
}

impl Entry {
    /// An implementation that `build` keys with [`KEY`].
    pub fn new(
        name: impl Into<String>,
        limit: Option<Limit>,
        build: impl Fn(SectorSize) -> Result<Box<dyn Contender>> + Send + Sync + 'static,
    ) -> Entry {
        Entry { name: name.into(), limit, build: Box::new(build) }
    }

    /// Keys it.
    ///
    /// # Errors
    /// What the implementation reports.
    pub fn build(&self, sector_size: SectorSize) -> Result<Box<dyn Contender>> {
        (self.build)(sector_size)
    }
}

/// One of dmcrypt's kernels.
#[must_use]
pub fn kernel(kernel: Kernel) -> Entry {
    let limit = match kernel {
        Kernel::AesNi => Limit::detect(Width::Xmm),
        Kernel::Vaes256 => Limit::detect(Width::Ymm),
        Kernel::Vaes512 => Limit::detect(Width::Zmm),
        _ => Limit::widest(),
    };
    Entry::new(kernel.name(), limit, move |sector_size| {
        let spec = CipherSpec::parse("aes-xts-plain64")?;
        Ok(Box::new(Dmcrypt(dmcrypt::build_with(kernel, &spec, &KEY, sector_size)?)))
    })
}

struct Dmcrypt(Box<dyn SectorCipher>);

impl Contender for Dmcrypt {
    #[inline]
    fn crypt(&mut self, direction: Direction, iv_sector: u64, sectors: &mut [u8]) -> Result<()> {
        match direction {
            Direction::Encrypt => self.0.encrypt_in_place(iv_sector, sectors),
            Direction::Decrypt => self.0.decrypt_in_place(iv_sector, sectors),
        }
        Ok(())
    }
}

/// The name of [`xts_mode`] in tables.
pub const XTS_MODE: &str = "aes + xts-mode";

/// The crates `aes` and `xts-mode`, as people join them.
#[must_use]
pub fn xts_mode() -> Entry {
    Entry::new(XTS_MODE, Limit::widest(), |sector_size| {
        let (data_key, tweak_key) = KEY.split_at(32);
        let xts = Xts128::new(Aes256::new_from_slice(data_key)?, Aes256::new_from_slice(tweak_key)?);
        Ok(Box::new(XtsMode { xts, sector_bytes: sector_size.bytes() as usize }))
    })
}

struct XtsMode {
    xts: Xts128<Aes256>,
    sector_bytes: usize,
}

impl Contender for XtsMode {
    #[inline]
    fn crypt(&mut self, direction: Direction, iv_sector: u64, sectors: &mut [u8]) -> Result<()> {
        let iv_step = self.sector_bytes as u128 / 512;
        let tweak = |index: u128| get_tweak_default(u128::from(iv_sector) + index * iv_step);
        match direction {
            Direction::Encrypt => self.xts.encrypt_area(sectors, self.sector_bytes, 0, tweak),
            Direction::Decrypt => self.xts.decrypt_area(sectors, self.sector_bytes, 0, tweak),
        }
        Ok(())
    }
}

/// Sees to it that all give the same bytes, `call_bytes` at a time, and get the plaintext back.
///
/// # Errors
/// Names the implementation that differs, and where.
pub fn check(entries: &[Entry], sector_size: SectorSize, call_bytes: usize) -> Result<()> {
    const IV_SECTOR: u64 = 0x1_2345_6789;
    let plain: Vec<u8> =
        (0..call_bytes).map(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1]).collect();
    let mut expected = plain.clone();
    xts_mode().build(sector_size)?.crypt(Direction::Encrypt, IV_SECTOR, &mut expected)?;
    let mut bytes = plain.clone();
    for entry in entries {
        let mut contender = entry.build(sector_size)?;
        for (direction, expected) in [(Direction::Encrypt, &expected), (Direction::Decrypt, &plain)] {
            contender.crypt(direction, IV_SECTOR, &mut bytes)?;
            if let Some(at) = bytes.iter().zip(expected).position(|(is, should)| is != should) {
                bail!(
                    "{}: {} of {call_bytes} bytes in {}-byte sectors differs from {XTS_MODE} at byte {at}",
                    entry.name,
                    direction.name(),
                    sector_size.bytes()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(Box<dyn Contender>);

    impl Contender for Broken {
        fn crypt(&mut self, direction: Direction, iv_sector: u64, sectors: &mut [u8]) -> Result<()> {
            self.0.crypt(direction, iv_sector, sectors)?;
            if direction == Direction::Decrypt {
                sectors[700] ^= 1;
            }
            Ok(())
        }
    }

    #[test]
    fn what_differs_is_named() {
        let mut entries = vec![xts_mode()];
        entries.extend(Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).map(kernel));
        check(&entries, SectorSize::S512, 8192).unwrap();
        check(&entries, SectorSize::S4096, 8192).unwrap();
        entries.push(Entry::new("broken", None, |size| Ok(Box::new(Broken(xts_mode().build(size)?)))));
        let error = check(&entries, SectorSize::S512, 8192).unwrap_err().to_string();
        assert_eq!(error, "broken: decrypt of 8192 bytes in 512-byte sectors differs from aes + xts-mode at byte 700");
    }

    #[test]
    fn repeated_calls_go_round_in_the_area() {
        let mut contender = xts_mode().build(SectorSize::S512).unwrap();
        let (mut area, mut one_by_one) = (vec![7; 1536], vec![7; 1536]);
        contender.repeat(Direction::Encrypt, &mut area, 512, 4).unwrap();
        for (call, at) in [0, 512, 1024, 0].into_iter().enumerate() {
            contender.crypt(Direction::Encrypt, call as u64 * 8, &mut one_by_one[at..at + 512]).unwrap();
        }
        assert_eq!(area, one_by_one);
    }
}
