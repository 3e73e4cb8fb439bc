//! Reading the log for people: records in the order of the files, chosen by time, category and target. It believes what the
//! lines say; whether that is so is for [`super::verify()`].

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde_json::Value;

use super::{Category, Moment, folder};
use crate::VolumesError;

/// Longest line that is taken for a record.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// None before this.
    pub since: Option<Moment>,
    /// None at or after this.
    pub until: Option<Moment>,
    /// Only these; all if empty.
    pub categories: Vec<Category>,
    /// Only of this target.
    pub target: Option<String>,
}

impl Filter {
    fn accepts(&self, record: &Value) -> bool {
        let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default();
        let time = text("time");
        self.since.is_none_or(|since| time >= since.to_string().as_str())
            && self.until.is_none_or(|until| time < until.to_string().as_str())
            && (self.categories.is_empty()
                || self.categories.iter().any(|category| category.word() == text("category")))
            && self.target.as_ref().is_none_or(|target| target == text("target"))
    }
}

/// What a look at the log gave.
#[derive(Debug, Default, PartialEq)]
pub struct Shown {
    /// How many records were chosen.
    pub chosen: u64,
    /// How many lines are no records.
    pub broken: u64,
}

/// Gives each chosen record to `take`, oldest file first.
///
/// # Errors
/// [`VolumesError::Io`] for a folder or file that cannot be read, and what `take` says.
pub fn shown<E: From<VolumesError>>(
    path: &Path,
    filter: &Filter,
    mut take: impl FnMut(&Value) -> Result<(), E>,
) -> Result<Shown, E> {
    let mut shown = Shown::default();
    for name in folder::names(path).map_err(VolumesError::io("read", path))? {
        let file = path.join(&name);
        let opened = File::open(&file).map_err(VolumesError::io("read", &file))?;
        let mut reader = BufReader::new(opened);
        loop {
            let mut line = Vec::new();
            let limited = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if limited.map_err(VolumesError::io("read", &file))? == 0 {
                break;
            }
            match serde_json::from_slice::<Value>(&line) {
                Ok(record) if record.is_object() && line.ends_with(b"\n") => {
                    if filter.accepts(&record) {
                        shown.chosen += 1;
                        take(&record)?;
                    }
                }
                _ => shown.broken += 1,
            }
        }
    }
    Ok(shown)
}
