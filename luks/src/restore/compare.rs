//! A backup's header held against the device's: what forbids a restore, and what should be known before it.

use crate::any::AnyHeader;
use crate::error::Error;
use crate::header::Header;
use crate::luks1::Luks1Header;
use crate::metadata::digest::Digest;
use crate::metadata::segment::Segment;
use crate::metadata::{Metadata, SegmentId};
use crate::requirements::{Kind, kind_of};
use crate::restore::{Concern, Found, RestoreObstacle};

/// What a restore of `backup` over `present` should be known of.
///
/// # Errors
/// [`Error::Restore`].
pub(super) fn concerns(present: Result<&AnyHeader, &Found>, backup: &AnyHeader) -> Result<Vec<Concern>, Error> {
    check_requirements(backup)?;
    let mut concerns = Vec::new();
    match present {
        Err(found) => {
            match found {
                Found::Nothing { foreign } => {
                    concerns.push(Concern::NoHeader);
                    concerns.extend(foreign.map(|(name, offset)| Concern::Foreign { name, offset }));
                }
                Found::Broken | Found::Header { .. } => concerns.push(Concern::BrokenHeader),
            }
            if in_reencryption(backup) {
                concerns.push(Concern::UnknownProgress);
            }
        }
        Ok(present) => {
            check_layout(present, backup)?;
            if present.uuid() != backup.uuid() {
                concerns.push(Concern::OtherUuid { device: present.uuid(), backup: backup.uuid() });
            }
            match (present, backup) {
                (AnyHeader::Luks2(device), AnyHeader::Luks2(backup)) => luks2(device, backup, &mut concerns)?,
                (AnyHeader::Luks1(device), AnyHeader::Luks1(backup)) => luks1(device, backup, &mut concerns),
                // Refused with the versions.
                _ => {}
            }
        }
    }
    Ok(concerns)
}

/// Only requirements that say how far a re-encryption is, and tags that the drive keeps, may be restored.
fn check_requirements(backup: &AnyHeader) -> Result<(), RestoreObstacle> {
    let AnyHeader::Luks2(header) = backup else { return Ok(()) };
    let config = &header.metadata().config;
    let online = config.online_reencrypt();
    let allowed =
        |name: &str| name == "inline-hw-tags" || (Some(name) == online && kind_of(name) == Kind::Reencryption);
    let unmet: Vec<&str> = config.mandatory.iter().map(String::as_str).filter(|name| !allowed(name)).collect();
    if unmet.is_empty() { Ok(()) } else { Err(RestoreObstacle::Requirements { names: unmet.join(", ") }) }
}

fn check_layout(present: &AnyHeader, backup: &AnyHeader) -> Result<(), RestoreObstacle> {
    let (device, backup_version) = (present.version().number(), backup.version().number());
    if device != backup_version {
        return Err(RestoreObstacle::Version { device, backup: backup_version });
    }
    let (device, copy) = (present.data_offset(), backup.data_offset());
    if device != copy {
        return Err(RestoreObstacle::DataOffset { device, backup: copy });
    }
    let (device, copy) = (present.region(), backup.region());
    if device != copy {
        return Err(RestoreObstacle::Region { device, backup: copy });
    }
    Ok(())
}

fn in_reencryption(header: &AnyHeader) -> bool {
    match header {
        AnyHeader::Luks1(_) => false,
        AnyHeader::Luks2(header) => header.metadata().config.online_reencrypt().is_some(),
    }
}

fn luks1(device: &Luks1Header, backup: &Luks1Header, concerns: &mut Vec<Concern>) {
    let key = |header: &Luks1Header| (header.digest, header.digest_salt, header.digest_iterations, header.key_bytes);
    if key(device) != key(backup) {
        concerns.push(Concern::OtherKey);
    }
    if device.cipher() != backup.cipher() {
        concerns.push(Concern::OtherSegments);
    }
}

fn luks2(device: &Header, backup: &Header, concerns: &mut Vec<Concern>) -> Result<(), RestoreObstacle> {
    let (old, new) = (device.metadata(), backup.metadata());
    let same_segments = segments(old) == segments(new);
    let same_keys = keys(old) == keys(new);
    let same_container = device.binary().uuid == backup.binary().uuid;
    if old.config.online_reencrypt().is_some() || new.config.online_reencrypt().is_some() {
        let same_requirement = old.config.online_reencrypt() == new.config.online_reencrypt();
        if !(same_container && same_segments && same_keys && same_requirement) {
            return Err(RestoreObstacle::Progress);
        }
        concerns.push(Concern::InReencryption);
    }
    if !same_keys {
        concerns.push(Concern::OtherKey);
    }
    if !same_segments {
        concerns.push(Concern::OtherSegments);
    }
    let (device, backup) = (device.seqid(), backup.seqid());
    if same_container && backup < device {
        concerns.push(Concern::OlderSeqid { device, backup });
    }
    Ok(())
}

fn segments(metadata: &Metadata) -> Vec<(SegmentId, &Segment)> {
    let mut segments: Vec<_> = metadata.segments.iter().collect();
    segments.sort_by_key(|(id, _)| *id);
    segments
}

/// What accepts the volume key of each segment. Digests keep salt and value as long as their key lives.
fn keys(metadata: &Metadata) -> Vec<(Vec<SegmentId>, Option<&String>, Option<&String>)> {
    let key = |digest: &'_ Digest| {
        let mut segments = digest.segments.clone();
        segments.sort_unstable();
        segments
    };
    let bound = metadata.digests.iter().filter(|(_, digest)| !digest.segments.is_empty());
    let mut keys: Vec<_> =
        bound.map(|(_, digest)| (key(digest), digest.salt.as_ref(), digest.digest.as_ref())).collect();
    keys.sort();
    keys
}
