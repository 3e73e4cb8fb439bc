//! What the kernel says of a mapping now: its table, its state, and whether what lies below is still whole.

use dmsetup::{CryptTable, KeyReference, Mapper, Uuid};

use super::errors::session_error;
use super::{Found, Subject, below, find_recorded, target};
use crate::choice::DM_CRYPT;
use crate::registry::Info;
use crate::run_dir::Entry;
use crate::{SessionError, State, Status, mount_table};

/// The mapping of an entry of ours; `None` if it is gone meanwhile.
pub(crate) fn status(entry: &Entry, info: &Info) -> Result<Option<Status>, SessionError> {
    let Some(record) = &info.mapping else {
        return Ok(None);
    };
    let Some(found) = find_recorded(entry, record)? else {
        return Ok(None);
    };
    let mut status = of_found(&found)?;
    status.image = Some(info.image.clone());
    status.header.clone_from(&info.header);
    status.keyslot = record.keyslot;
    status.opened_unix_s = Some(info.opened_unix_s);
    Ok(Some(status))
}

impl Subject {
    /// What `status` shows of a mapping without an entry of ours.
    pub(crate) fn status(&self) -> Result<Status, SessionError> {
        of_found(&self.found)
    }
}

/// Names of the mappings of LUKS volumes, whoever made them.
pub(crate) fn foreign_mappings() -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let all = Mapper::open().and_then(|mapper| mapper.list()).unwrap_or_else(|error| {
        log::debug!("{error}");
        Vec::new()
    });
    let is_luks = |uuid: &Uuid| matches!(uuid.owner(), dmsetup::Owner::Luks2 { .. } | dmsetup::Owner::Luks1 { .. });
    all.into_iter().filter(|info| info.uuid.as_ref().is_some_and(is_luks)).map(|info| info.name.to_string()).collect()
}

/// Whether only the zeros of a wiped key are left.
pub(super) fn key_is_wiped(table: &CryptTable) -> bool {
    matches!(table.target.key, KeyReference::Inline { zeros: true, .. })
}

fn of_found(found: &Found) -> Result<Status, SessionError> {
    let (info, name) = (&found.info, found.info.name.as_str());
    let table = found.mapping.table().map_err(|error| session_error(name, error))?;
    let state = match (info.deferred_remove, info.suspended) {
        (true, _) => State::Closing,
        (false, true) => State::Suspended,
        (false, false) => State::Open,
    };
    let mut status = Status::bare(name, state);
    status.uuid = info.uuid.as_ref().and_then(header_uuid);
    status.luks_version = info.uuid.as_ref().and_then(luks_version);
    status.device = Some(found.mapping.device_path());
    status.backend = Some(DM_CRYPT.to_owned());
    status.engine = Some("kernel".to_owned());
    status.cipher = Some(table.target.cipher.clone());
    status.key_size_bits = Some(table.target.key.len_bytes().saturating_mul(8));
    status.key_location = Some(key_location(&table.target.key).to_owned());
    status.sector_size_bytes = Some(table.target.sector_size_bytes());
    status.size_bytes = Some(table.len.0.saturating_mul(512));
    status.read_only = info.read_only;
    status.flags = flags(&table);
    status.mount_points = mount_table::points_of_device(&found.mapping.device_path()).unwrap_or_default();
    status.problem = problem(found, &table);
    if let Some(number) = target::device(&table) {
        match below::loop_of(number) {
            Some((device, image)) => {
                status.loop_device = Some(device.path);
                status.image = Some(image);
            }
            None => status.image = below::node(number),
        }
    }
    if status.problem.is_some() {
        status.state = State::Failed;
    }
    Ok(status)
}

/// 1 or 2, as the mapping's own UUID says.
fn luks_version(uuid: &Uuid) -> Option<u16> {
    match uuid.owner() {
        dmsetup::Owner::Luks1 { .. } => Some(1),
        dmsetup::Owner::Luks2 { .. } => Some(2),
        _ => None,
    }
}

fn header_uuid(uuid: &Uuid) -> Option<String> {
    use dmsetup::Owner::{Luks1, Luks2};
    match uuid.owner() {
        Luks2 { uuid } | Luks1 { uuid } => uuid::Uuid::try_parse(&uuid).ok().map(|uuid| uuid.hyphenated().to_string()),
        _ => None,
    }
}

fn key_location(key: &KeyReference) -> &'static str {
    match key {
        KeyReference::Keyring { .. } => "keyring",
        KeyReference::Empty => "none",
        KeyReference::Inline { zeros: true, .. } => "wiped",
        _ => "table",
    }
}

/// The table's options but for the sector size, as the kernel names them.
fn flags(table: &CryptTable) -> Vec<String> {
    let options = table.target.options.iter();
    options.map(ToString::to_string).filter(|option| !option.starts_with("sector_size:")).collect()
}

/// What is wrong below the mapping. A loop device notices nothing of a change of its image, so the image is looked at.
fn problem(found: &Found, table: &CryptTable) -> Option<String> {
    if let Err(error) = found.mapping.check_backing() {
        return Some(error.to_string());
    }
    let (info, image) = below::loop_of(target::device(table)?)?;
    let needed = table.target.offset.0.saturating_add(table.len.0);
    match below::image_sectors(&info, &image) {
        Some(there) if there < needed => {
            let (there, needed) = (block::Bytes(there * 512), block::Bytes(needed * 512));
            Some(format!("{} shrank to {there}, the mapping needs {needed}: make it whole again", image.display()))
        }
        _ => None,
    }
}
