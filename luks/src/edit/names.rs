//! Label, subsystem and UUID: the three texts of the binary header, each changed alone.
//!
//! Label and subsystem hold at most 47 bytes and no NUL; an empty one is none. A UUID is 36 characters, written in lower case.

use block::BlockIo;
use uuid::Uuid;

use crate::binary::LABEL_LEN;
use crate::container::Container;
use crate::edit::flags::put_priority;
use crate::edit::keyslot;
use crate::error::Error;
use crate::metadata::KeyslotId;
use crate::metadata::keyslot::Priority;
use crate::requirements::Action;
use crate::store::HeaderStore;

/// Longest label or subsystem, in bytes.
pub(crate) const LABEL_BYTES_MAX: usize = LABEL_LEN - 1;

/// The text, if it can be a label or a subsystem.
pub(crate) fn checked(field: &'static str, text: &str) -> Result<String, Error> {
    if text.len() > LABEL_BYTES_MAX || text.contains('\0') {
        let allowed = format!("at most {LABEL_BYTES_MAX} bytes without NUL, not {}", text.len());
        return Err(Error::Parameter { parameter: field, value: shown(text), allowed });
    }
    Ok(text.to_owned())
}

/// The UUID in the form in which the header holds it.
pub(crate) fn checked_uuid(text: &str) -> Result<String, Error> {
    match Uuid::try_parse(text) {
        Ok(uuid) if text.len() == 36 => Ok(uuid.hyphenated().to_string()),
        _ => {
            let allowed = "8-4-4-4-12 hexadecimal digits".to_owned();
            Err(Error::Parameter { parameter: "UUID", value: shown(text), allowed })
        }
    }
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

/// What [`Container::configure`] sets, all of it or nothing. What is `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct HeaderSettings {
    /// The label; an empty one is none.
    pub label: Option<String>,
    /// The subsystem; an empty one is none.
    pub subsystem: Option<String>,
    /// When a keyslot is tried.
    pub priority: Option<(KeyslotId, Priority)>,
}

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Sets several things in one write of the header, all of them or, if one cannot be, none.
    ///
    /// # Errors
    /// As [`Container::set_label`] and [`Container::set_keyslot_priority`].
    pub fn configure(&mut self, settings: &HeaderSettings) -> Result<(), Error> {
        let label = settings.label.as_deref().map(|text| checked("label", text)).transpose()?;
        let subsystem = settings.subsystem.as_deref().map(|text| checked("subsystem", text)).transpose()?;
        self.edit(Action::Change, |edit| {
            let mut metadata = edit.header.metadata().clone();
            if let Some((id, priority)) = settings.priority {
                put_priority(&mut metadata, id, priority)?;
            }
            keyslot::check_text(&metadata)?;
            edit.commit_header(|header| {
                *header.metadata_mut() = metadata;
                if let Some(label) = label {
                    header.binary.label = label.into_bytes();
                }
                if let Some(subsystem) = subsystem {
                    header.binary.subsystem = subsystem.into_bytes();
                }
            })
        })
    }

    /// Sets the label, or takes it away; the subsystem stays as it is.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a text that cannot be one; those of every change.
    pub fn set_label(&mut self, label: Option<&str>) -> Result<(), Error> {
        let label = checked("label", label.unwrap_or_default())?;
        self.edit(Action::Change, |edit| edit.commit_header(|header| header.binary.label = label.into_bytes()))
    }

    /// Sets the subsystem, or takes it away; the label stays as it is.
    ///
    /// # Errors
    /// As [`Container::set_label`].
    pub fn set_subsystem(&mut self, subsystem: Option<&str>) -> Result<(), Error> {
        let subsystem = checked("subsystem", subsystem.unwrap_or_default())?;
        self.edit(Action::Change, |edit| edit.commit_header(|header| header.binary.subsystem = subsystem.into_bytes()))
    }

    /// Sets the UUID.
    ///
    /// # Errors
    /// As [`Container::set_label`].
    pub fn set_uuid(&mut self, uuid: &str) -> Result<(), Error> {
        let uuid = checked_uuid(uuid)?;
        self.edit(Action::Change, |edit| edit.commit_header(|header| header.binary.uuid = uuid.into_bytes()))
    }
}
