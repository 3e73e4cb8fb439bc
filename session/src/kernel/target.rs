//! The table of a volume: made of its header, as cryptsetup makes it, and held against a live one.
//!
//! Source: luks2-format §7.1, §7.2, §2.8 (flags).

use block::Sectors;
use dmsetup::{Backing, CryptOption, CryptTable, CryptTarget, DevNo, KeyReference};
use luks::SegmentSize;

use super::Found;
use crate::container::UnlockedKey;
use crate::registry::{Info, MappingRecord};
use crate::{Failure, FailureKind, MappingFlags, SessionError};

/// Flags that the header keeps and those asked for; these alone if they are to replace them.
pub(super) fn options(stored: &[String], asked: &MappingFlags) -> Vec<CryptOption> {
    let known = [
        ("allow-discards", asked.allow_discards, CryptOption::AllowDiscards),
        ("same-cpu-crypt", asked.same_cpu_crypt, CryptOption::SameCpuCrypt),
        ("submit-from-crypt-cpus", asked.submit_from_crypt_cpus, CryptOption::SubmitFromCryptCpus),
        ("no-read-workqueue", asked.no_read_workqueue, CryptOption::NoReadWorkqueue),
        ("no-write-workqueue", asked.no_write_workqueue, CryptOption::NoWriteWorkqueue),
        ("high_priority", asked.high_priority, CryptOption::HighPriority),
    ];
    for flag in stored.iter().filter(|flag| known.iter().all(|(name, ..)| name != flag)) {
        log::debug!("the header's flag {flag} says nothing to dm-crypt");
    }
    let kept = if asked.instead_of_kept { &[] } else { stored };
    let is_set = |name: &str, asked: bool| asked || kept.iter().any(|flag| flag == name);
    known.into_iter().filter(|(name, asked, _)| is_set(name, *asked)).map(|(.., option)| option).collect()
}

/// The table of the volume on `device`.
pub(super) fn target(unlocked: &UnlockedKey, device: DevNo, options: Vec<CryptOption>) -> CryptTarget {
    let key = if unlocked.crypt.is_unencrypted() {
        KeyReference::Empty
    } else {
        let len_bytes = u32::try_from(unlocked.key.len_bytes()).unwrap_or(u32::MAX);
        KeyReference::luks2(len_bytes, &unlocked.facts.uuid, unlocked.digest.id)
    };
    let offset = Sectors(unlocked.segment.offset.0 / 512);
    // The shorthand of LUKS headers; dm-crypt itself knows no cipher of that name.
    let cipher = if unlocked.crypt.encryption == "null" { "cipher_null-ecb" } else { &unlocked.crypt.encryption };
    let bare = CryptTarget::new(cipher, key, device, offset);
    options.into_iter().fold(bare.with_sector_size(unlocked.crypt.sector_size), CryptTarget::with_option)
}

/// The device below a live table, which the kernel always gives by its number.
pub(super) fn device(table: &CryptTable) -> Option<DevNo> {
    match table.target.device {
        Backing::Number(number) => Some(number),
        Backing::Path(_) => None,
    }
}

/// Length of the volume on a device of `device_sectors`, in 512-byte sectors. 0 if not even one encryption sector fits.
pub(super) fn len(unlocked: &UnlockedKey, device_sectors: u64) -> Sectors {
    match unlocked.segment.size {
        SegmentSize::Fixed(size) => Sectors(size.0 / 512),
        SegmentSize::Dynamic => {
            let unit = u64::from(unlocked.crypt.sector_size / 512).max(1);
            let room = device_sectors.saturating_sub(unlocked.segment.offset.0 / 512);
            Sectors(room / unit * unit)
        }
    }
}

/// The table of the live mapping with its key reference anew, if it is the one that this header describes: the right
/// passphrase of a header that was changed meanwhile must not put other keys under a file system in use.
pub(super) fn recognised(
    found: &Found,
    live: &CryptTable,
    info: Option<&Info>,
    unlocked: &UnlockedKey,
) -> Result<CryptTarget, SessionError> {
    let name = found.info.name.as_str();
    let other = |what: String| {
        let message = format!("the header is not that of the mapping {name}: {what}");
        SessionError::Refused(Failure::new(FailureKind::OtherVolume, message))
    };
    let uuid = &unlocked.facts.uuid;
    if !found.info.uuid.as_ref().is_some_and(|own| own.is_volume(uuid)) {
        return Err(other(format!("its UUID is {uuid}")));
    }
    let Some(device) = device(live) else {
        return Err(other("the kernel does not say which device is below".to_owned()));
    };
    let expected = target(unlocked, device, live.target.options.clone());
    let (live, sector) = (&live.target, CryptTarget::sector_size_bytes);
    if live.cipher != expected.cipher {
        return Err(other(format!("its cipher is {}, the mapping's {}", expected.cipher, live.cipher)));
    }
    if live.key.len_bytes() != expected.key.len_bytes() {
        let (header, mapping) = (expected.key.len_bytes(), live.key.len_bytes());
        return Err(other(format!("its key has {header} bytes, the mapping's {mapping}")));
    }
    if (live.offset, live.iv_offset) != (expected.offset, expected.iv_offset) {
        return Err(other(format!(
            "its data begin at sector {}, the mapping's at {}",
            expected.offset.0, live.offset.0
        )));
    }
    if sector(live) != unlocked.crypt.sector_size {
        return Err(other(format!("its sectors have {} bytes, the mapping's {}", sector(&expected), sector(live))));
    }
    if matches!(&live.key, KeyReference::Keyring { .. }) && live.key != expected.key {
        return Err(other(format!("its key is {}, the mapping's {}", expected.key, live.key)));
    }
    if !info.and_then(|info| info.mapping.as_ref()).is_none_or(|record| has_digest(record, unlocked)) {
        return Err(other(format!("its digest {} was made for another key", unlocked.digest.id)));
    }
    Ok(expected)
}

fn has_digest(record: &MappingRecord, unlocked: &UnlockedKey) -> bool {
    record.digest == unlocked.digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_header_and_of_the_command_come_together_and_unknown_ones_say_nothing() {
        let stored: Vec<String> =
            ["allow-discards", "high_priority", "no-journal", "of-the-future"].map(str::to_owned).into();
        let asked = MappingFlags { no_read_workqueue: true, allow_discards: true, ..MappingFlags::default() };
        let options = options(&stored, &asked);
        let words: Vec<String> = options.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["allow_discards", "no_read_workqueue", "high_priority"]);
        assert!(super::options(&[], &MappingFlags::default()).is_empty());
        let instead = super::options(&stored, &MappingFlags { instead_of_kept: true, ..asked });
        let words: Vec<String> = instead.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["allow_discards", "no_read_workqueue"]);
    }
}
