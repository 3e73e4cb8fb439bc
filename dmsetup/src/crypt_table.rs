//! A dm-crypt table as text and as a type: `START LENGTH crypt CIPHER KEY IV_OFFSET DEVICE OFFSET [COUNT OPTION...]`.
//!
//! Invariant: whatever is accepted prints the same bytes again, but for the hex digits of a key, which print as zeros.
//! Words are separated by one space. All numbers are 512-byte sectors, whatever the encryption unit.
//! Source: Documentation/admin-guide/device-mapper/dm-crypt.rst; the order of options is that of `crypt_status`.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::str::FromStr;

use block::Sectors;

use crate::crypt_option::{CryptOption, canonical};
use crate::dm_error::DmError;
use crate::key_reference::KeyReference;
use crate::name::DevNo;

/// More options than any kernel knows.
const MAX_OPTIONS: usize = 64;

/// The device under a mapping as the table names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// `MAJOR:MINOR`, which is what the kernel always prints.
    Number(DevNo),
    /// A path, which the kernel accepts.
    Path(String),
}

impl Backing {
    /// Its number; `None` for a path that leads to no block device.
    pub(crate) fn number(&self) -> Option<DevNo> {
        match self {
            Backing::Number(number) => Some(*number),
            Backing::Path(path) => {
                let meta = fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device())?;
                Some(DevNo::from_rdev(meta.rdev()))
            }
        }
    }

    /// Whether the kernel says that it refuses writes.
    pub(crate) fn is_read_only(&self) -> bool {
        let flag = self.number().and_then(|number| fs::read_to_string(number.sysfs().join("ro")).ok());
        flag.is_some_and(|flag| flag.trim() == "1")
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backing::Number(number) => number.fmt(f),
            Backing::Path(path) => f.write_str(path),
        }
    }
}

impl From<DevNo> for Backing {
    fn from(number: DevNo) -> Backing {
        Backing::Number(number)
    }
}

/// The parameters of one `crypt` target: everything of the table line after the word `crypt`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CryptTarget {
    /// Cipher as the LUKS segment names it (`aes-xts-plain64`), or a `capi:` string.
    pub cipher: String,
    /// Where the kernel finds the key.
    pub key: KeyReference,
    /// Added to the sector number before the IV is made; 0 for an ordinary LUKS2 volume.
    pub iv_offset: Sectors,
    /// The device with the ciphertext.
    pub device: Backing,
    /// First sector of ciphertext on it.
    pub offset: Sectors,
    /// Optional arguments in the order of the text.
    pub options: Vec<CryptOption>,
}

impl CryptTarget {
    /// A target without options (LUKS1, or LUKS2 with 512-byte sectors).
    #[must_use]
    pub fn new(cipher: &str, key: KeyReference, device: impl Into<Backing>, offset: Sectors) -> CryptTarget {
        CryptTarget {
            cipher: cipher.to_owned(),
            key,
            iv_offset: Sectors(0),
            device: device.into(),
            offset,
            options: Vec::new(),
        }
    }

    /// The same with an encryption unit of `bytes`; 512 leaves the option away, as the kernel does.
    #[must_use]
    pub fn with_sector_size(mut self, bytes: u32) -> CryptTarget {
        self.options.retain(|option| !matches!(option, CryptOption::SectorSize { .. }));
        if bytes == 512 { self } else { self.with_option(CryptOption::SectorSize { bytes }) }
    }

    /// The same with `option`, in its place in the kernel's order; once however often it is added.
    #[must_use]
    pub fn with_option(mut self, option: CryptOption) -> CryptTarget {
        if !self.options.contains(&option) {
            self.options.push(option);
            self.options.sort_by_key(CryptOption::kernel_place);
        }
        self
    }

    /// The encryption unit in bytes.
    #[must_use]
    pub fn sector_size_bytes(&self) -> u32 {
        let size = self.options.iter().find_map(|option| match option {
            CryptOption::SectorSize { bytes } => Some(*bytes),
            _ => None,
        });
        size.unwrap_or(512)
    }

    /// Refuses a target whose text the kernel would read as another one: a cipher out of somebody's header may hold spaces,
    /// and behind them another key and another device.
    pub(crate) fn check(&self) -> Result<(), DmError> {
        let text = self.to_string();
        match text.parse::<CryptTarget>() {
            // To the kernel a backslash means that the next space ends no word.
            Ok(read) if read == *self && !text.contains('\\') => Ok(()),
            _ => bad("cipher, key, device and options must be one word each, of printable ASCII", &self.cipher),
        }
    }

    /// Whether `option` is set.
    #[must_use]
    pub fn has(&self, option: &CryptOption) -> bool {
        self.options.contains(option)
    }
}

impl fmt::Display for CryptTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CryptTarget { cipher, key, iv_offset, device, offset, options } = self;
        write!(f, "{cipher} {key} {} {device} {}", iv_offset.0, offset.0)?;
        if !options.is_empty() {
            write!(f, " {}", options.len())?;
        }
        options.iter().try_for_each(|option| write!(f, " {option}"))
    }
}

fn bad<T>(what: &'static str, token: &str) -> Result<T, DmError> {
    Err(DmError::BadTable { what, token: token.escape_default().to_string() })
}

fn sectors(word: Option<&str>, what: &'static str) -> Result<Sectors, DmError> {
    let word = word.unwrap_or_default();
    canonical(word).map_or_else(|| bad(what, word), |count| Ok(Sectors(count)))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl FromStr for Backing {
    type Err = DmError;

    /// # Errors
    /// [`DmError::BadTable`].
    fn from_str(word: &str) -> Result<Backing, DmError> {
        if !is_word(word) {
            return bad("a device is MAJOR:MINOR or a path", word);
        }
        let number = word
            .split_once(':')
            .and_then(|(major, minor)| Some(DevNo { major: canonical(major)?, minor: canonical(minor)? }));
        Ok(number.map_or_else(|| Backing::Path(word.to_owned()), Backing::Number))
    }
}

impl FromStr for CryptTarget {
    type Err = DmError;

    /// # Errors
    /// [`DmError::BadTable`]; the key word is never repeated in it.
    fn from_str(text: &str) -> Result<CryptTarget, DmError> {
        let mut words = text.split(' ');
        let cipher = match words.next() {
            Some(word) if is_word(word) => word.to_owned(),
            _ => return bad("a table begins with its cipher", ""),
        };
        let key = words.next().unwrap_or_default().parse()?;
        let iv_offset = sectors(words.next(), "the IV offset is a number of sectors")?;
        let device = words.next().unwrap_or_default().parse()?;
        let offset = sectors(words.next(), "the offset is a number of sectors")?;
        let options = match words.next() {
            None => Vec::new(),
            Some(count) => {
                let expected: usize = match canonical(count) {
                    Some(count) if (1..=MAX_OPTIONS).contains(&count) => count,
                    _ => return bad("the options begin with their number", count),
                };
                let options = words.by_ref().take(expected).map(str::parse).collect::<Result<Vec<_>, _>>()?;
                if options.len() != expected || words.next().is_some() {
                    return bad("the number of options is not the one given", count);
                }
                options
            }
        };
        Ok(CryptTarget { cipher, key, iv_offset, device, offset, options })
    }
}

/// The whole table of a mapping: one `crypt` target over a range that begins at `start`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CryptTable {
    /// First sector of the mapping; 0 for all that cryptsetup and we make.
    pub start: Sectors,
    /// Length of the mapping.
    pub len: Sectors,
    /// How it is encrypted.
    pub target: CryptTarget,
}

impl fmt::Display for CryptTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} crypt {}", self.start.0, self.len.0, self.target)
    }
}

impl FromStr for CryptTable {
    type Err = DmError;

    /// # Errors
    /// [`DmError::BadTable`].
    fn from_str(text: &str) -> Result<CryptTable, DmError> {
        let mut words = text.splitn(4, ' ');
        let start = sectors(words.next(), "a table begins with its first sector")?;
        let len = sectors(words.next(), "the second word of a table is its length in sectors")?;
        match (words.next(), words.next()) {
            (Some("crypt"), Some(target)) => Ok(CryptTable { start, len, target: target.parse()? }),
            (kind, _) => bad("the third word of the table must be `crypt`", kind.unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VECTORS: &[&str] = &[
        "0 32768 crypt aes-xts-plain64 :64:logon:cryptsetup:7f0c9a4e-1234-4cde-8899-aabbccddeeff-d0 0 7:0 32768",
        "0 32768 crypt aes-xts-plain64 :64:logon:cryptsetup:7f0c9a4e-1234-4cde-8899-aabbccddeeff-d0 0 7:0 32768 1 sector_size:4096",
        "0 61440 crypt aes-cbc-essiv:sha256 :32:logon:cryptsetup:7f0c9a4e-1234-4cde-8899-aabbccddeeff-d0 0 7:1 4096 2 allow_discards no_read_workqueue",
        "0 8 crypt aes-xts-plain64 0000000000000000000000000000000000000000000000000000000000000000 0 259:7 4040",
        "0 8 crypt cipher_null-ecb - 0 7:1 32768",
        "0 16 crypt capi:authenc(hmac(sha256),xts(aes))-random :96:logon:x:y 0 252:0 0 2 integrity:48:aead sector_size:4096",
        "8 16 crypt aes-cbc-plain :16:user:x 24 /dev/loop0 0 3 allow_discards flag_of_tomorrow iv_large_sectors",
        "0 1 crypt aes-xts-plain64 :64:logon:a:b 0 7:0 0 8 allow_discards same_cpu_crypt high_priority submit_from_crypt_cpus no_read_workqueue no_write_workqueue sector_size:4096 iv_large_sectors",
    ];

    #[test]
    fn tables_print_as_they_were_read() {
        for vector in VECTORS {
            assert_eq!(vector.parse::<CryptTable>().unwrap().to_string(), *vector);
        }
    }

    #[test]
    fn a_key_of_another_tool_prints_as_zeros() {
        let table: CryptTable = "0 8 crypt aes-xts-plain64 00112233deadbeef 0 7:0 0".parse().unwrap();
        assert_eq!(table.to_string(), "0 8 crypt aes-xts-plain64 0000000000000000 0 7:0 0");
        assert!(!format!("{table:?}").contains("dead"));
    }

    #[test]
    fn broken_tables_are_refused_without_repeating_a_key() {
        let good = "0 8 crypt aes-xts-plain64 00112233deadbeef 0 7:0 0";
        let broken = [
            "",
            "0",
            "0 8",
            "0 8 crypt",
            "0 8 linear 7:0 0",
            "00 8 crypt aes - 0 7:0 0",
            "0 -8 crypt aes - 0 7:0 0",
            "0  8 crypt aes - 0 7:0 0",
            "0 8 crypt aes - 0 7:0",
            "0 8 crypt aes - 0 7:0 0 ",
            "0 8 crypt aes - 0 7:0 0 0",
            "0 8 crypt aes - 0 7:0 0 2 allow_discards",
            "0 8 crypt aes - 0 7:0 0 1 a b",
            "0 8 crypt aes deadbeefx 0 7:0 0",
            "0 8 crypt aes - 0 7:0 0 99999999999999999999 a",
            "0 8 crypt aes - 18446744073709551616 7:0 0",
        ];
        for text in broken.into_iter().map(str::to_owned).chain([format!("{good}\n"), format!(" {good}")]) {
            let error = text.parse::<CryptTable>().unwrap_err();
            assert!(matches!(error, DmError::BadTable { .. }), "{text:?}");
            assert!(!error.to_string().contains("deadbeef"), "{error}");
        }
    }

    #[test]
    fn options_take_the_kernels_order_whatever_order_they_are_added_in() {
        let target = CryptTarget::new("aes-xts-plain64", KeyReference::Empty, DevNo { major: 7, minor: 0 }, Sectors(0))
            .with_sector_size(4096)
            .with_option(CryptOption::NoWriteWorkqueue)
            .with_option(CryptOption::AllowDiscards)
            .with_option(CryptOption::SubmitFromCryptCpus)
            .with_option(CryptOption::AllowDiscards);
        assert_eq!(
            target.to_string(),
            "aes-xts-plain64 - 0 7:0 0 4 allow_discards submit_from_crypt_cpus no_write_workqueue sector_size:4096"
        );
        assert_eq!(target.sector_size_bytes(), 4096);
        assert_eq!(target.with_sector_size(512).sector_size_bytes(), 512);
    }

    #[test]
    fn a_target_that_reads_as_another_one_is_refused() {
        let key = KeyReference::luks2(64, "7f0c9a4e-1234-4cde-8899-aabbccddeeff", 0);
        let target = |cipher: &str| CryptTarget::new(cipher, key.clone(), DevNo { major: 7, minor: 0 }, Sectors(32768));
        for good in ["aes-xts-plain64", "capi:authenc(hmac(sha256),xts(aes))-random", "xchacha20,aes-adiantum-plain64"]
        {
            target(good).check().unwrap();
        }
        let other_device = format!("aes-xts-plain64 {} 0 8:0 0 0", "00".repeat(64));
        for hostile in [
            &*other_device,
            "aes-xts-plain64 - 0 8:0 0 1",
            "",
            " ",
            "aes-xts-plain64\\",
            "aes-xts-plain64\n",
            "aes\u{a0}",
            "aes\0",
        ] {
            let error = target(hostile).check().unwrap_err();
            assert!(matches!(error, DmError::BadTable { .. }), "{hostile:?}: {error}");
        }
        let mut twisted = target("aes-xts-plain64");
        twisted.key = KeyReference::luks2(64, "x 0 8:0 0 0 ", 0);
        assert!(twisted.check().is_err());
        twisted = target("aes-xts-plain64");
        twisted.options = vec![CryptOption::Other("allow_discards sector_size:4096".to_owned())];
        assert!(twisted.check().is_err());
    }

    fn key() -> impl Strategy<Value = KeyReference> {
        prop_oneof![
            ("[!-~]{1,60}", 0..4096_u32, "logon|user|encrypted|trusted").prop_map(|(description, len, kind)| {
                format!(":{len}:{kind}:{description}").parse::<KeyReference>().unwrap()
            }),
            Just(KeyReference::Empty),
            (1..80_u32).prop_map(|len_bytes| KeyReference::Inline { len_bytes, zeros: true }),
        ]
    }

    proptest! {
        #[test]
        fn every_table_survives_print_and_parse(
            start in any::<u64>(), len in any::<u64>(), cipher in "[!-~]{1,40}", key in key(), iv in any::<u64>(),
            device in "([0-9]{1,4}:[0-9]{1,7}|/dev/[!-~]{1,20})", offset in any::<u64>(),
            options in proptest::collection::vec("(allow_discards|sector_size:[0-9]{1,5}|integrity:[0-9]{1,3}:[!-~]{0,9}|[!-~]{1,20})", 0..9),
        ) {
            let options: Vec<CryptOption> = options.iter().map(|word| word.parse().unwrap()).collect();
            let target = CryptTarget { cipher, key, iv_offset: Sectors(iv), device: device.parse().unwrap(), offset: Sectors(offset), options };
            let table = CryptTable { start: Sectors(start), len: Sectors(len), target };
            prop_assert_eq!(&table.to_string().parse::<CryptTable>().unwrap(), &table);
        }

        #[test]
        fn what_is_accepted_prints_the_same(text in "[0-9]{1,3} [0-9]{1,3} crypt [!-~]{1,9} (-|:[0-9]{1,3}:(logon|user):[!-~]{1,9}|(00){1,4}) [0-9]{1,3} [0-9a-f:/]{1,9} [0-9]{1,3}( [0-3]( [!-~]{1,9}){0,3})?") {
            if let Ok(table) = text.parse::<CryptTable>() {
                prop_assert_eq!(table.to_string(), text);
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,200}") {
            let _ = text.parse::<CryptTable>();
        }
    }
}
