//! The optional arguments of a dm-crypt table, each as the word that stands in the table.
//!
//! Invariant: every option prints the word it was parsed from; a number that would print otherwise (leading zero, sign)
//! makes the word an [`CryptOption::Other`]. Source: Documentation/admin-guide/device-mapper/dm-crypt.rst.

use std::fmt;
use std::str::FromStr;

use crate::dm_error::DmError;

/// One optional argument.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CryptOption {
    /// Discards pass down: whoever sees the image learns which blocks are unused.
    AllowDiscards,
    /// Encrypt on the CPU that the request came from.
    SameCpuCrypt,
    /// Run the queues at high priority (Linux 6.10).
    HighPriority,
    /// Submit writes from the encrypting thread instead of one sorting thread.
    SubmitFromCryptCpus,
    /// Decrypt without a work queue.
    NoReadWorkqueue,
    /// Encrypt without a work queue.
    NoWriteWorkqueue,
    /// Authenticated encryption over dm-integrity: bytes of tag per sector, and the kind (`aead`, `none`, ...).
    Integrity {
        /// Bytes of tag per sector.
        tag_bytes: u32,
        /// The kind.
        mode: String,
    },
    /// Encryption unit; absent from a table when 512.
    SectorSize {
        /// A power of two from 512 to 4096.
        bytes: u32,
    },
    /// Count IVs in encryption units instead of 512 bytes; never in LUKS2.
    IvLargeSectors,
    /// Bytes of the key that authenticate (Linux 6.12).
    IntegrityKeySize {
        /// The bytes.
        bytes: u32,
    },
    /// A word that this library does not know; kept as it is.
    Other(String),
}

impl CryptOption {
    /// Whether it only changes speed, never a byte on disk: a kernel that does not know it may go without.
    #[must_use]
    pub fn is_performance(&self) -> bool {
        matches!(
            self,
            CryptOption::SameCpuCrypt
                | CryptOption::HighPriority
                | CryptOption::SubmitFromCryptCpus
                | CryptOption::NoReadWorkqueue
                | CryptOption::NoWriteWorkqueue
        )
    }

    /// Place in the kernel's own output (`crypt_status` of Linux 6.12).
    pub(crate) fn kernel_place(&self) -> u8 {
        match self {
            CryptOption::AllowDiscards => 0,
            CryptOption::SameCpuCrypt => 1,
            CryptOption::HighPriority => 2,
            CryptOption::SubmitFromCryptCpus => 3,
            CryptOption::NoReadWorkqueue => 4,
            CryptOption::NoWriteWorkqueue => 5,
            CryptOption::Integrity { .. } => 6,
            CryptOption::SectorSize { .. } => 7,
            CryptOption::IvLargeSectors => 8,
            CryptOption::IntegrityKeySize { .. } => 9,
            CryptOption::Other(_) => 10,
        }
    }

    /// The options in one line, `none` without any.
    pub(crate) fn join(options: &[CryptOption]) -> String {
        if options.is_empty() {
            return "none".to_owned();
        }
        options.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for CryptOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CryptOption::AllowDiscards => f.write_str("allow_discards"),
            CryptOption::SameCpuCrypt => f.write_str("same_cpu_crypt"),
            CryptOption::HighPriority => f.write_str("high_priority"),
            CryptOption::SubmitFromCryptCpus => f.write_str("submit_from_crypt_cpus"),
            CryptOption::NoReadWorkqueue => f.write_str("no_read_workqueue"),
            CryptOption::NoWriteWorkqueue => f.write_str("no_write_workqueue"),
            CryptOption::Integrity { tag_bytes, mode } => write!(f, "integrity:{tag_bytes}:{mode}"),
            CryptOption::SectorSize { bytes } => write!(f, "sector_size:{bytes}"),
            CryptOption::IvLargeSectors => f.write_str("iv_large_sectors"),
            CryptOption::IntegrityKeySize { bytes } => write!(f, "integrity_key_size:{bytes}"),
            CryptOption::Other(word) => f.write_str(word),
        }
    }
}

/// A number as the kernel prints it: no sign, no leading zero.
pub(crate) fn canonical<T: FromStr + ToString>(text: &str) -> Option<T> {
    text.parse::<T>().ok().filter(|number| number.to_string() == text)
}

impl FromStr for CryptOption {
    type Err = DmError;

    /// # Errors
    /// [`DmError::BadTable`] for an empty word or one with white space.
    fn from_str(word: &str) -> Result<CryptOption, DmError> {
        if word.is_empty() || word.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
            return Err(DmError::BadTable {
                what: "an option must be one word",
                token: word.escape_default().to_string(),
            });
        }
        let other = || CryptOption::Other(word.to_owned());
        Ok(match word {
            "allow_discards" => CryptOption::AllowDiscards,
            "same_cpu_crypt" => CryptOption::SameCpuCrypt,
            "high_priority" => CryptOption::HighPriority,
            "submit_from_crypt_cpus" => CryptOption::SubmitFromCryptCpus,
            "no_read_workqueue" => CryptOption::NoReadWorkqueue,
            "no_write_workqueue" => CryptOption::NoWriteWorkqueue,
            "iv_large_sectors" => CryptOption::IvLargeSectors,
            _ => match word.split_once(':') {
                Some(("sector_size", bytes)) => {
                    canonical(bytes).map_or_else(other, |bytes| CryptOption::SectorSize { bytes })
                }
                Some(("integrity_key_size", bytes)) => {
                    canonical(bytes).map_or_else(other, |bytes| CryptOption::IntegrityKeySize { bytes })
                }
                Some(("integrity", rest)) => match rest.split_once(':').map(|(tag, mode)| (canonical(tag), mode)) {
                    Some((Some(tag_bytes), mode)) if !mode.is_empty() => {
                        CryptOption::Integrity { tag_bytes, mode: mode.to_owned() }
                    }
                    _ => other(),
                },
                _ => other(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_options_and_print_the_same() {
        for word in [
            "allow_discards",
            "same_cpu_crypt",
            "high_priority",
            "submit_from_crypt_cpus",
            "no_read_workqueue",
            "no_write_workqueue",
            "integrity:28:aead",
            "sector_size:4096",
            "iv_large_sectors",
            "integrity_key_size:32",
        ] {
            let option: CryptOption = word.parse().unwrap();
            assert!(!matches!(option, CryptOption::Other(_)), "{word}");
            assert_eq!(option.to_string(), word);
        }
        for word in
            ["new_flag", "sector_size:0512", "sector_size:+1", "integrity:28", "integrity:x:y", "a:b:c", "integrity:1:"]
        {
            let option: CryptOption = word.parse().unwrap();
            assert_eq!(option, CryptOption::Other(word.into()));
            assert_eq!(option.to_string(), word);
        }
        for word in ["", "a b", "a\n", "\0"] {
            assert!(matches!(word.parse::<CryptOption>(), Err(DmError::BadTable { .. })), "{word:?}");
        }
    }
}
