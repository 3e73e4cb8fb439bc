//! Paths in JSON. A path is bytes and need not be UTF-8, JSON is text: a path that is UTF-8 is a string, any other is the
//! array of its bytes. So every file that a person can name can be opened and reported, and comes back unchanged.
//!
//! serde's own form refuses such paths; use `#[serde(with = "path_json")]` for a `PathBuf` and the modules below for an
//! `Option` or a `Vec` of them, and [`PathJson`] for what is only written.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path, for a report in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathJson<'a>(pub &'a Path);

impl Serialize for PathJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_seq(self.0.as_os_str().as_bytes()),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<Form> for PathBuf {
    fn from(form: Form) -> PathBuf {
        match form {
            Form::Text(text) => PathBuf::from(text),
            Form::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        }
    }
}

pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    PathJson(path).serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Form::deserialize(deserializer).map(PathBuf::from)
}

/// A path that may be missing.
pub(crate) mod option {
    use super::{Deserialize, Deserializer, Form, PathBuf, PathJson, Serialize, Serializer};

    // The signature is serde's.
    #[allow(clippy::ref_option)]
    pub(crate) fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(PathJson).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Form>::deserialize(deserializer)?.map(PathBuf::from))
    }
}

/// Several paths.
pub(crate) mod list {
    use super::{Deserialize, Deserializer, Form, PathBuf, PathJson, Serializer};

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| PathJson(path)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Form>::deserialize(deserializer)?.into_iter().map(PathBuf::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Paths {
        #[serde(with = "crate::path_json")]
        one: PathBuf,
        #[serde(with = "crate::path_json::option")]
        maybe: Option<PathBuf>,
        #[serde(with = "crate::path_json::list")]
        several: Vec<PathBuf>,
    }

    #[test]
    fn text_stays_text_and_other_bytes_come_back_unchanged() {
        let odd = PathBuf::from(OsString::from_vec(b"/a\xff\n".to_vec()));
        let paths = Paths { one: odd.clone(), maybe: Some(odd.clone()), several: vec!["/b".into(), odd] };
        let text = serde_json::to_string(&paths).unwrap();
        assert_eq!(text, r#"{"one":[47,97,255,10],"maybe":[47,97,255,10],"several":["/b",[47,97,255,10]]}"#);
        assert_eq!(serde_json::from_str::<Paths>(&text).unwrap(), paths);
        let plain = Paths { one: "/a b\n".into(), maybe: None, several: Vec::new() };
        let text = serde_json::to_string(&plain).unwrap();
        assert_eq!(text, r#"{"one":"/a b\n","maybe":null,"several":[]}"#);
        assert_eq!(serde_json::from_str::<Paths>(&text).unwrap(), plain);
    }
}
