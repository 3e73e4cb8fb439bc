//! Another table under a mapping in use: other flags (`refresh`), another length (`resize`). I/O waits meanwhile.

use block::{Bytes, Sectors};
use dmsetup::{CryptTarget, DevNo};
use luks::SegmentSize;
use secret::KeyProvider;

use super::errors::session_error;
use super::unlock::Mapped;
use super::{Subject, below, target};
use crate::container::UnlockedKey;
use crate::{Failure, FailureKind, MappingFlags, ResizeReport, SessionError, UnlockAgain};

/// Reloads the table with these flags and those of the header; others are gone afterwards.
pub(crate) fn refresh(
    subject: &Subject,
    flags: &MappingFlags,
    again: &UnlockAgain,
    keys: &mut dyn KeyProvider,
) -> Result<(), SessionError> {
    refuse_suspended(subject)?;
    let mapped = Mapped::read(subject, again)?;
    let (unlocked, mut fresh) = mapped.unlock_asking(keys)?;
    fresh.options =
        target::target(&unlocked, device(subject, &mapped)?, target::options(&unlocked.flags, flags)).options;
    reload(subject, mapped.live.len, &fresh, &unlocked)
}

/// Makes the mapping `size` long, or as long as what lies below it.
pub(crate) fn resize(
    subject: &Subject,
    size: Option<Bytes>,
    again: &UnlockAgain,
    keys: &mut dyn KeyProvider,
) -> Result<ResizeReport, SessionError> {
    refuse_suspended(subject)?;
    let mapped = Mapped::read(subject, again)?;
    let name = subject.name().to_owned();
    let refused = |what: String| SessionError::Refused(Failure::new(FailureKind::Image, format!("{name}: {what}")));
    let number = device(subject, &mapped)?;
    let sector_bytes = u64::from(mapped.live.target.sector_size_bytes());
    if let Some(size) = size.filter(|size| size.0 == 0 || !size.0.is_multiple_of(sector_bytes)) {
        let what = format!("{size} is no size for a volume with sectors of {sector_bytes} bytes");
        return Err(SessionError::Refused(Failure::new(FailureKind::Size, format!("{name}: {what}"))));
    }
    let room = room_sectors(subject, number)?.saturating_sub(mapped.live.target.offset.0);
    let unit = sector_bytes / 512;
    let sectors = size.map_or(room / unit * unit, |size| size.0 / 512);
    if sectors > room || sectors == 0 {
        return Err(refused(format!("there is room for {} below it", Bytes(room * 512))));
    }
    if size.is_none() && sectors < mapped.live.len.0 {
        let (now, there) = (Bytes(mapped.live.len.0 * 512), Bytes(sectors * 512));
        return Err(refused(format!("the image shrank under it: mapped are {now}, there are {there}")));
    }
    let report = |was: Sectors| ResizeReport { name: name.clone(), size_bytes: sectors * 512, was_bytes: was.0 * 512 };
    let (unlocked, fresh) = mapped.unlock_asking(keys)?;
    if let SegmentSize::Fixed(fixed) = unlocked.segment.size {
        return Err(refused(format!("its header gives it a fixed size of {fixed}")));
    }
    if sectors != mapped.live.len.0 {
        if let Some((info, _)) = below::loop_of(number) {
            dmsetup::set_capacity(&info.path).map_err(|error| session_error(&name, error.into()))?;
        }
        reload(subject, Sectors(sectors), &fresh, &unlocked)?;
    }
    Ok(report(mapped.live.len))
}

/// Sectors of the device below the mapping; of its image if it is a loop device, which is told of the image's size only
/// when the new table is loaded.
fn room_sectors(subject: &Subject, number: DevNo) -> Result<u64, SessionError> {
    let gone = |what: &str| {
        let message = format!("{}: the device {number} below it {what}", subject.name());
        SessionError::Refused(Failure::new(FailureKind::Image, message))
    };
    let Some((info, image)) = below::loop_of(number) else {
        return below::size_sectors(number).ok_or_else(|| gone("is gone"));
    };
    let room = below::image_sectors(&info, &image)
        .ok_or_else(|| gone(&format!("is a loop device whose image was deleted or renamed ({})", image.display())))?;
    Ok(info.size_limit.map_or(room, |limit| room.min(limit.0 / 512)))
}

fn refuse_suspended(subject: &Subject) -> Result<(), SessionError> {
    if subject.found.info.suspended {
        let what = format!("{} is suspended: resume it first", subject.name());
        return Err(SessionError::Refused(Failure::new(FailureKind::State, what)));
    }
    Ok(())
}

fn device(subject: &Subject, mapped: &Mapped<'_>) -> Result<DevNo, SessionError> {
    target::device(&mapped.live).ok_or_else(|| SessionError::ForeignMapping {
        name: subject.name().to_owned(),
        what: "the device below it is not known".to_owned(),
    })
}

fn reload(
    subject: &Subject,
    sectors: Sectors,
    fresh: &CryptTarget,
    unlocked: &UnlockedKey,
) -> Result<(), SessionError> {
    let key = (fresh.key.len_bytes() > 0).then(|| unlocked.key.secret());
    subject.found.mapping.reload(sectors, fresh, key).map_err(|error| session_error(subject.name(), error))
}
