//! What device-mapper knows a mapping by: its [`Name`], its [`Uuid`] and its number [`DevNo`].
//!
//! Invariants: a `Name` is a file name of 1 to 127 bytes that libdevmapper and udev write without mangling, so
//! `/dev/mapper/NAME` is the same path for every tool; a `Uuid` has 1 to 128 printable bytes. Both are what the kernel
//! stores, byte for byte. Source: `include/uapi/linux/dm-ioctl.h` (`DM_NAME_LEN`, `DM_UUID_LEN`), dmsetup(8).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::dm_error::DmError;

/// Folder of the nodes named after mappings.
pub(crate) const MAPPER_FOLDER: &str = "/dev/mapper";
/// `DM_NAME_LEN` without its final zero.
const NAME_MAX_BYTES: usize = 127;
/// `DM_UUID_LEN` without its final zero.
const UUID_MAX_BYTES: usize = 128;

/// Name of a mapping: letters, digits and `#+-.:=@_`, as libdevmapper writes them unmangled. The `\xNN` of a mangled
/// name is let through, so that what others made can be addressed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `/dev/mapper/NAME`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("{MAPPER_FOLDER}/{}", self.0))
    }
}

impl FromStr for Name {
    type Err = DmError;

    /// # Errors
    /// [`DmError::BadName`].
    fn from_str(text: &str) -> Result<Name, DmError> {
        let bad = |reason| Err(DmError::BadName { name: text.escape_default().to_string(), reason });
        if text.is_empty() || text.len() > NAME_MAX_BYTES {
            return bad("it must have 1 to 127 bytes");
        }
        if matches!(text, "." | ".." | "control") {
            return bad("it is reserved in /dev/mapper");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"#+-.:=@_\\".contains(&byte)) {
            return bad("only letters, digits and #+-.:=@_ are allowed");
        }
        Ok(Name(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who made a mapping, as its [`Uuid`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Owner {
    /// A LUKS2 volume: `CRYPT-LUKS2-<uuid without dashes>-<name>`.
    Luks2 {
        /// Its UUID without dashes, as in the text.
        uuid: String,
    },
    /// A LUKS1 volume.
    Luks1 {
        /// Its UUID without dashes, as in the text.
        uuid: String,
    },
    /// Another dm-crypt type of cryptsetup (PLAIN, TCRYPT, SUBDEV, TEMP, ...).
    Crypt {
        /// The type's name.
        kind: String,
    },
    /// Not made by cryptsetup or by us.
    Foreign,
}

/// UUID of a mapping: free text that tools use to find their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(String);

impl Uuid {
    /// `CRYPT-LUKS2-<uuid without dashes>-<name>`, as cryptsetup writes it. `uuid` is the header's, with dashes or
    /// without.
    ///
    /// # Errors
    /// [`DmError::BadName`] when the result is too long for the kernel, or the header's is no UUID: libdevmapper does not
    /// even show a mapping whose UUID has other characters than its own.
    pub fn luks2(uuid: &str, name: &Name) -> Result<Uuid, DmError> {
        Uuid::of_volume("LUKS2", uuid, name)
    }

    /// `CRYPT-LUKS1-<uuid without dashes>-<name>`.
    ///
    /// # Errors
    /// As [`Uuid::luks2`].
    pub fn luks1(uuid: &str, name: &Name) -> Result<Uuid, DmError> {
        Uuid::of_volume("LUKS1", uuid, name)
    }

    fn of_volume(kind: &str, uuid: &str, name: &Name) -> Result<Uuid, DmError> {
        let bare = uuid.replace('-', "");
        if !is_bare_uuid(&bare) {
            let reason = "the UUID in the header is none: it must have 32 hexadecimal digits";
            return Err(DmError::BadName { name: uuid.escape_default().to_string(), reason });
        }
        format!("CRYPT-{kind}-{bare}-{name}").parse()
    }

    /// The UUID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Who made the mapping.
    #[must_use]
    pub fn owner(&self) -> Owner {
        let mut parts = self.0.splitn(4, '-');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("CRYPT"), Some("LUKS2"), Some(uuid)) if is_bare_uuid(uuid) => Owner::Luks2 { uuid: uuid.to_owned() },
            (Some("CRYPT"), Some("LUKS1"), Some(uuid)) if is_bare_uuid(uuid) => Owner::Luks1 { uuid: uuid.to_owned() },
            (Some("CRYPT"), Some(kind), Some(_)) => Owner::Crypt { kind: kind.to_owned() },
            _ => Owner::Foreign,
        }
    }

    /// Whether the mapping is of the LUKS2 or LUKS1 volume with this header UUID, with dashes or without.
    #[must_use]
    pub fn is_volume(&self, uuid: &str) -> bool {
        match self.owner() {
            Owner::Luks2 { uuid: own } | Owner::Luks1 { uuid: own } => own.eq_ignore_ascii_case(&uuid.replace('-', "")),
            _ => false,
        }
    }
}

fn is_bare_uuid(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl FromStr for Uuid {
    type Err = DmError;

    /// # Errors
    /// [`DmError::BadName`].
    fn from_str(text: &str) -> Result<Uuid, DmError> {
        let bad = |reason| Err(DmError::BadName { name: text.escape_default().to_string(), reason });
        if text.is_empty() || text.len() > UUID_MAX_BYTES {
            return bad("a device-mapper UUID must have 1 to 128 bytes");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return bad("a device-mapper UUID must be printable ASCII without spaces");
        }
        Ok(Uuid(text.to_owned()))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of a block device. Prints as `MAJOR:MINOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNo {
    /// Number of the driver.
    pub major: u32,
    /// Number within the driver.
    pub minor: u32,
}

impl DevNo {
    /// From `st_rdev` as stat(2) gives it.
    #[must_use]
    pub fn from_rdev(rdev: u64) -> DevNo {
        DevNo { major: rustix::fs::major(rdev), minor: rustix::fs::minor(rdev) }
    }

    /// As `st_rdev` in stat(2).
    #[must_use]
    pub fn rdev(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }

    /// `/sys/dev/block/MAJOR:MINOR`.
    pub(crate) fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/dev/block/{self}"))
    }
}

impl fmt::Display for DevNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "7f0c9a4e-1234-4cde-8899-aabbccddeeff";

    #[test]
    fn a_luks2_uuid_is_written_as_cryptsetup_does() {
        let uuid = Uuid::luks2(HEADER, &"data".parse().unwrap()).unwrap();
        assert_eq!(uuid.as_str(), "CRYPT-LUKS2-7f0c9a4e12344cde8899aabbccddeeff-data");
        assert_eq!(uuid.owner(), Owner::Luks2 { uuid: "7f0c9a4e12344cde8899aabbccddeeff".into() });
        assert!(uuid.is_volume(HEADER) && uuid.is_volume(&HEADER.replace('-', "")));
        assert!(!uuid.is_volume("7f0c9a4e-1234-4cde-8899-aabbccddeefe"));
        assert!(!Uuid::from_str("LVM-x").unwrap().is_volume(HEADER));
        for odd in ["", "a/b", "x 0 7:0 0 0 ", "\u{1b}[2J", &HEADER[1..], &format!("{HEADER}0")] {
            for made in [Uuid::luks2(odd, &"data".parse().unwrap()), Uuid::luks1(odd, &"data".parse().unwrap())] {
                let error = made.unwrap_err();
                assert!(matches!(&error, DmError::BadName { .. }), "{odd:?}");
                assert!(!error.to_string().contains('\u{1b}'), "{error}");
            }
        }
    }

    #[test]
    fn owners_are_told_apart() {
        let owner = |text: &str| Uuid::from_str(text).unwrap().owner();
        assert_eq!(owner("CRYPT-PLAIN-x"), Owner::Crypt { kind: "PLAIN".into() });
        assert_eq!(owner("LVM-abc"), Owner::Foreign);
        assert_eq!(owner("CRYPT-LUKS2-OPAL-x"), Owner::Crypt { kind: "LUKS2".into() });
        let one = format!("CRYPT-LUKS1-{}-a-b", HEADER.replace('-', ""));
        assert!(matches!(owner(&one), Owner::Luks1 { .. }));
    }

    #[test]
    fn names_that_are_no_file_names_or_get_mangled_are_refused() {
        for name in ["", ".", "..", "control", "a/b", "a b", "ä", "a\n", &"x".repeat(128)] {
            assert!(matches!(Name::from_str(name), Err(DmError::BadName { .. })), "{name:?}");
        }
        for name in ["a", "a.b", r"a\x20b", "-", &"x".repeat(127)] {
            assert_eq!(Name::from_str(name).unwrap().as_str(), name);
        }
        let long = Name::from_str(&"x".repeat(127)).unwrap();
        assert!(matches!(Uuid::luks2(HEADER, &long), Err(DmError::BadName { .. })));
    }

    #[test]
    fn device_numbers_survive_both_forms() {
        for (major, minor) in [(7, 0), (253, 12), (259, 0xf_ffff), (4095, 256)] {
            let number = DevNo { major, minor };
            assert_eq!(DevNo::from_rdev(number.rdev()), number);
        }
    }
}
