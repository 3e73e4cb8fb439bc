//! What the mode bits, open flags and times of a FUSE request mean for one file on a disk. Source: fuse(4), open(2).

use std::time::SystemTime;

use fuser::{OpenFlags, TimeOrNow};
use rustix::fs::OFlags;

/// Whoever may read the file may search the folder.
pub(super) fn folder_mode(file_mode: u16) -> u16 {
    let readers = file_mode & 0o444;
    0o500 | readers | (readers >> 2)
}

pub(super) fn moment(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

pub(super) fn wants_durable(flags: OpenFlags) -> bool {
    let durable = OFlags::SYNC.union(OFlags::DSYNC).bits();
    flags.0.cast_unsigned() & durable != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_searchable_for_readers_only() {
        assert_eq!(folder_mode(0o600), 0o500);
        assert_eq!(folder_mode(0o640), 0o550);
        assert_eq!(folder_mode(0o644), 0o555);
        assert_eq!(folder_mode(0o200), 0o500);
    }

    #[test]
    fn durable_writes_are_told_by_their_flags() {
        let flags = |flags: OFlags| OpenFlags(flags.bits().cast_signed());
        assert!(wants_durable(flags(OFlags::RDWR | OFlags::SYNC)));
        assert!(wants_durable(flags(OFlags::WRONLY | OFlags::DSYNC)));
        assert!(!wants_durable(flags(OFlags::RDWR | OFlags::APPEND)));
    }
}
