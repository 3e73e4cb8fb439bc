//! The values of the file that are more than a number: sizes, modes, owners, file systems, backends, key derivation, where
//! the master key comes from. Each is read from the text that its `Display` writes.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use block::Bytes;
use serde::{Serialize, Serializer};

/// Suffixes of sizes and their powers of 1024.
const UNITS: [(char, u32); 4] = [('T', 4), ('G', 3), ('M', 2), ('K', 1)];
/// Longest name of a user or group.
const NAME_CHARS_MAX: usize = 32;

/// A size as people write it: `5G`, `512M`; `K M G T` (and `KiB` …) are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub Bytes);

impl Size {
    /// From its text.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Size, String> {
        const FORM: &str = "must be a number and a unit, K, M, G or T (powers of 1024): \"5G\", \"512M\"";
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).ok_or(FORM)?;
        let (digits, unit) = text.split_at(digits_end);
        let number: u64 = digits.parse().map_err(|_| FORM)?;
        let mut letters = unit.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        let power = UNITS.iter().find(|(letter, _)| Some(*letter) == first).ok_or(FORM)?.1;
        if !matches!(letters.as_str(), "" | "iB") {
            return Err(FORM.to_owned());
        }
        let bytes = number.checked_mul(1024_u64.pow(power));
        bytes
            .filter(|bytes| *bytes <= i64::MAX as u64)
            .map(|bytes| Size(Bytes(bytes)))
            .ok_or_else(|| "is more than a file can have".to_owned())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, power)| self.0.0.is_multiple_of(1024_u64.pow(*power)) && self.0.0 != 0);
        match unit {
            Some((letter, power)) => write!(f, "{}{letter}", self.0.0 / 1024_u64.pow(*power)),
            None => write!(f, "{}K", self.0.0 / 1024),
        }
    }
}

/// Permission bits, in octal as `chmod` takes them: `0750`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Mode {
    pub(crate) fn parse(text: &str) -> Result<Mode, String> {
        const FORM: &str = "must be three or four octal digits in quotes: \"0750\"";
        if !matches!(text.len(), 3 | 4) || !text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
            return Err(FORM.to_owned());
        }
        let mode = u32::from_str_radix(text, 8).map_err(|_| FORM)?;
        if mode & 0o002 != 0 {
            return Err("lets everybody write; take the last digit's 2 away".to_owned());
        }
        if mode & 0o700 != 0o700 {
            return Err("keeps its owner out; the first of the last three digits must be 7".to_owned());
        }
        Ok(Mode(mode))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// A user or a group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// Its number.
    Id(u32),
    /// Its name, looked up when it is needed.
    Name(String),
}

impl Account {
    fn parse(text: &str) -> Option<Account> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            // The largest number means "leave it" to chown.
            return text.parse().ok().filter(|id| *id != u32::MAX).map(Account::Id);
        }
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.$".contains(&byte));
        (first && rest && text.len() <= NAME_CHARS_MAX).then(|| Account::Name(text.to_owned()))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Id(id) => write!(f, "{id}"),
            Account::Name(name) => f.write_str(name),
        }
    }
}

/// Who owns the root of a file system: `USER` or `USER:GROUP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: Account,
    /// The group; the user's own where none is named.
    pub group: Option<Account>,
}

impl Owner {
    pub(crate) fn parse(text: &str) -> Result<Owner, String> {
        let form = || "must be USER or USER:GROUP, by name or by number: \"1000:1000\", \"trading\"".to_owned();
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(Account::parse(group).ok_or_else(form)?)),
            None => (text, None),
        };
        if text.is_empty() {
            return Err(form());
        }
        Ok(Owner { user: Account::parse(user).filter(|_| !user.is_empty()).ok_or_else(form)?, group })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "{}:{group}", self.user),
            None => write!(f, "{}", self.user),
        }
    }
}

/// Writes a value as the text that it is read from.
macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
as_text!(Size, Mode, Owner, FileSystem, Backend, Profile);

/// An enumeration whose values are words of the file.
macro_rules! words {
    ($(#[$doc:meta])* $kind:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind { $($(#[$of])* $variant,)* }

        impl $kind {
            /// Every value.
            pub const ALL: &'static [$kind] = &[$($kind::$variant),*];

            /// The word that the file has for it.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $($kind::$variant => $word,)* }
            }

            pub(crate) fn parse(text: &str) -> Result<$kind, String> {
                $kind::ALL.iter().copied().find(|value| value.word() == text).ok_or_else(|| {
                    let words: Vec<&str> = $kind::ALL.iter().map(|value| value.word()).collect();
                    format!("must be one of {}", words.join(", "))
                })
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// What a volume is formatted with.
    FileSystem {
        /// ext4.
        Ext4 = "ext4",
        /// XFS.
        Xfs = "xfs",
        /// Btrfs.
        Btrfs = "btrfs",
        /// None: the volume is a bare disk.
        None = "none",
    }
}

impl FileSystem {
    /// The smallest disk that its mkfs takes: mkfs.xfs from 6.0 and mkfs.btrfs say so, ext4 with a journal fits into 2 MiB.
    #[must_use]
    pub fn least(self) -> Bytes {
        match self {
            FileSystem::Ext4 => Bytes::from_mib(2),
            FileSystem::Xfs => Bytes::from_mib(300),
            FileSystem::Btrfs => Bytes::from_mib(110),
            FileSystem::None => Bytes(4096),
        }
    }
}

words! {
    /// What an open volume is served by; see `luksctl open --backend`.
    Backend {
        /// The first that is possible: dm-crypt, ublk, FUSE, NBD.
        Auto = "auto",
        /// The kernel's dm-crypt.
        Dm = "dm",
        /// A server behind FUSE.
        Fuse = "fuse",
        /// A server behind an NBD socket.
        Nbd = "nbd",
        /// A server behind a block device of ublk.
        Ublk = "ublk",
    }
}

words! {
    /// Demands that the whole set has to meet.
    Profile {
        /// None beyond what is always so.
        None = "none",
        /// Payment cards: keys turn monthly, strong cipher, seven years of audit.
        PciDss = "pci-dss",
        /// Financial reports: two people for key operations, seven years of audit, keys and backups.
        Sox = "sox",
    }
}

/// Key derivation of the keyslots that the set's own keys open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Kdf {
    /// PBKDF2. Enough for the random keys of the key store, and fast.
    Pbkdf2 {
        /// Rounds.
        iterations: u32,
    },
    /// Argon2id.
    Argon2id {
        /// How much memory one derivation takes.
        memory: Size,
        /// Passes over the memory.
        passes: u32,
        /// Lanes, computed side by side.
        lanes: u32,
    },
}

impl Kdf {
    /// The least that LUKS2 takes: keys of the store are random, so work adds nothing to them.
    pub const LEAST: Kdf = Kdf::Pbkdf2 { iterations: luks::kdf::PBKDF2_ITERATIONS_MIN };
}

/// Where the master key comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MasterSource {
    /// A file of mode 0600.
    File(PathBuf),
    /// A person types it.
    Passphrase,
    /// A credential that systemd hands to the service, by name.
    Credential(String),
    /// A key in the kernel's keyring, by description.
    Keyring(String),
    /// What a command prints: program and arguments, no shell.
    Command(Vec<String>),
}

/// A path that is absolute and has no `.`, `..` or double slashes, so that equal paths are equal texts.
pub(crate) fn plain_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err("must be an absolute path, beginning with /".to_owned());
    }
    let plain: PathBuf = path.components().collect();
    if path.components().any(|part| part == Component::ParentDir) || plain.as_os_str() != text {
        return Err("must be a path without `.`, `..`, double slashes or a slash at the end".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("must be a path without control characters".to_owned());
    }
    if text == "/" {
        return Err("is the root of everything; name a folder".to_owned());
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_they_print() {
        for (text, bytes, printed) in [
            ("5G", 5 << 30, "5G"),
            ("512M", 512 << 20, "512M"),
            ("1024M", 1 << 30, "1G"),
            ("3k", 3 << 10, "3K"),
            ("2TiB", 2 << 40, "2T"),
        ] {
            assert_eq!(Size::parse(text), Ok(Size(Bytes(bytes))), "{text}");
            assert_eq!(Size(Bytes(bytes)).to_string(), printed);
        }
        for bad in ["", "5", "G", "5X", "5.5G", "-5G", "5GB", "5 G", "18446744073709551616G", "99999999T"] {
            assert!(Size::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_octal_and_not_open_to_all() {
        assert_eq!(Mode::parse("0750"), Ok(Mode(0o750)));
        assert_eq!(Mode::parse("700").map(|mode| mode.to_string()), Ok("0700".to_owned()));
        for bad in ["0780", "777", "0752", "0050", "7", "00750", "rwx", "0o750"] {
            assert!(Mode::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn owners_are_names_or_numbers() {
        for good in ["root", "1000", "1000:1000", "trading:docker", "_x:0", "a-b.c"] {
            assert_eq!(Owner::parse(good).map(|owner| owner.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", ":", "root:", ":root", "ro ot", "4294967295", "a:b:c", "99999999999", "-x", "a/b"] {
            assert!(Owner::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_plain() {
        assert!(plain_path("/mnt/trading-data").is_ok());
        for bad in ["", "mnt", "/mnt/../etc", "/mnt//a", "/mnt/", "/mnt/./a", "/", "/a\nb"] {
            assert!(plain_path(bad).is_err(), "{bad}");
        }
    }
}
