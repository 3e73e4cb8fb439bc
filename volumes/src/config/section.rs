//! [`Section`]: one table of the file while it is read. Every key is asked for by name; what nobody asked for is unknown and
//! a fault. Values that cannot be are faults too, and reading goes on, so that one look finds them all.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};

use toml_edit::{Item, TableLike};

use super::fault::Faults;

/// A table that is being read.
pub(crate) struct Section<'d, 'f> {
    path: String,
    table: Option<&'d dyn TableLike>,
    span: Option<Range<usize>>,
    known: RefCell<Vec<&'static str>>,
    faults: &'f Faults<'f>,
}

/// A value that stands in the file.
#[derive(Clone)]
pub(crate) struct Found<'d> {
    /// The key with its tables.
    pub(crate) path: String,
    item: &'d Item,
}

impl<'d> Found<'d> {
    /// Where the value stands.
    pub(crate) fn span(&self) -> Option<Range<usize>> {
        self.item.span()
    }

    /// The table, if it is one.
    pub(crate) fn table(&self) -> Option<&'d dyn TableLike> {
        self.item.as_table_like()
    }

    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&'d str> {
        self.item.as_str()
    }

    /// The number, if it is one.
    pub(crate) fn number(&self) -> Option<i64> {
        self.item.as_integer()
    }

    /// The texts of an array of texts.
    pub(crate) fn texts(&self) -> Option<Vec<String>> {
        let array = self.item.as_array()?;
        array.iter().map(|value| value.as_str().map(str::to_owned)).collect()
    }
}

impl<'d, 'f> Section<'d, 'f> {
    /// The whole file.
    pub(crate) fn root(table: &'d dyn TableLike, faults: &'f Faults<'f>) -> Section<'d, 'f> {
        Section { path: String::new(), table: Some(table), span: None, known: RefCell::default(), faults }
    }

    /// What `found` holds, which must be a table.
    pub(crate) fn of(found: Option<&Found<'d>>, path: &str, faults: &'f Faults<'f>) -> Section<'d, 'f> {
        let table = found.and_then(Found::table);
        if let Some(found) = found.filter(|_| table.is_none()) {
            faults.add(path, found.span(), true, "must be a table");
        }
        let span = found.and_then(Found::span);
        Section { path: path.to_owned(), table, span, known: RefCell::default(), faults }
    }

    /// The table `key` in this one; an empty one if it is not there.
    pub(crate) fn below(&self, key: &'static str) -> Section<'d, 'f> {
        let found = self.take(key);
        Section::of(found.as_ref(), &self.path_of(key), self.faults)
    }

    /// Every entry, for tables whose keys are names. All of them count as known.
    pub(crate) fn entries(&self) -> Vec<(String, Option<Range<usize>>, Found<'d>)> {
        let Some(table) = self.table else { return Vec::new() };
        let entries = table.iter().map(|(key, item)| {
            let span = table.get_key_value(key).and_then(|(key, _)| key.span());
            (key.to_owned(), span, Found { path: self.path_of(key), item })
        });
        entries.collect()
    }

    /// The key with the tables it stands in.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of `key`, which from now on is known.
    pub(crate) fn take(&self, key: &'static str) -> Option<Found<'d>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        let item = self.table?.get(key).filter(|item| !item.is_none())?;
        Some(Found { path: self.path_of(key), item })
    }

    /// Where this table stands.
    pub(crate) fn span(&self) -> Option<Range<usize>> {
        self.span.clone()
    }

    /// Notes that `key` has to be there and is not.
    pub(crate) fn missing(&self, key: &str, what: &str) {
        self.faults.add(&self.path_of(key), self.span(), false, format!("is missing: {what}"));
    }

    /// Notes what is wrong with a value.
    pub(crate) fn refuse(&self, found: &Found<'_>, what: impl Into<String>) {
        self.faults.add(&found.path, found.span(), true, what);
    }

    /// A text that `parse` understands.
    pub(crate) fn parsed<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let found = self.take(key)?;
        let Some(text) = found.text() else {
            self.refuse(&found, "must be a text in quotes");
            return None;
        };
        parse(text).map_err(|what| self.refuse(&found, what)).ok()
    }

    /// A whole number within bounds, `unit` says of what.
    pub(crate) fn number(&self, key: &'static str, bounds: RangeInclusive<u32>, unit: &str) -> Option<u32> {
        let found = self.take(key)?;
        let number = found.number().and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| bounds.contains(number));
        if number.is_none() {
            let what = format!("must be a whole number of {unit} from {} to {}", bounds.start(), bounds.end());
            self.refuse(&found, what);
        }
        number
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, key: &'static str) -> Option<bool> {
        let found = self.take(key)?;
        let flag = found.item.as_bool();
        if flag.is_none() {
            self.refuse(&found, "must be true or false, without quotes");
        }
        flag
    }

    /// Says which keys nobody asked for.
    pub(crate) fn finish(self) {
        let Some(table) = self.table else { return };
        let known = self.known.borrow();
        for (key, _) in table.iter().filter(|(key, _)| !known.contains(key)) {
            let span = table.get_key_value(key).and_then(|(key, item)| key.span().or_else(|| item.span()));
            let what = format!("is no key that is known here; known are {}", known.join(", "));
            self.faults.add(&self.path_of(key), span, false, what);
        }
    }
}
