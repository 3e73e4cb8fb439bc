//! Digests: a digest accepts a volume key and ties keyslots to segments. Format notes 4.

use serde_json::Value;

use crate::json::{Fields, JsonMap, u32_of};
use crate::metadata::{KeyslotId, Names, ObjectRules, SegmentId, append, ids_value};
use crate::rule::{Rule, Violation};

pub(crate) const RULES: ObjectRules = ObjectRules { map: Rule::DigestsObject, id: Rule::DigestId };

/// A digest. The members of a `pbkdf2` digest are checked when a key is held against it, not when the header is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Digest {
    /// `pbkdf2`, or a type this crate does not know.
    pub type_name: String,
    /// Keyslots whose key this digest accepts.
    pub keyslots: Vec<KeyslotId>,
    /// Segments that this key opens; none for an unbound key.
    pub segments: Vec<SegmentId>,
    /// Name of the hash.
    pub hash: Option<String>,
    /// PBKDF2 iterations.
    pub iterations: Option<u32>,
    /// Salt in base64.
    pub salt: Option<String>,
    /// The digest in base64.
    pub digest: Option<String>,
    /// Unknown members, and known ones of the wrong kind.
    pub extra: JsonMap,
}

impl Digest {
    pub(crate) fn parse(value: Value, path: String, keyslots: &Names, segments: &Names) -> Result<Digest, Violation> {
        let mut fields = Fields::open(Some(value), path, Rule::DigestObject)?;
        let type_name = fields.name("type", Rule::DigestType)?;
        let (listed, path) = (fields.take("keyslots"), fields.path_of("keyslots"));
        let keyslots = keyslots.references(listed, path, Rule::DigestKeyslots, Rule::DigestKeyslotExists)?;
        let (listed, path) = (fields.take("segments"), fields.path_of("segments"));
        let segments = segments.references(listed, path, Rule::DigestSegments, Rule::DigestSegmentExists)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(Digest {
            type_name,
            keyslots,
            segments,
            hash: fields.take_if("hash", text),
            iterations: fields.take_if("iterations", u32_of),
            salt: fields.take_if("salt", text),
            digest: fields.take_if("digest", text),
            extra: fields.rest(),
        })
    }

    pub(crate) fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("type".into(), self.type_name.clone().into());
        map.insert("keyslots".into(), ids_value(&self.keyslots));
        map.insert("segments".into(), ids_value(&self.segments));
        let text = |value: &Option<String>| value.clone().map(Value::String);
        let known = [
            ("hash", text(&self.hash)),
            ("iterations", self.iterations.map(Value::from)),
            ("salt", text(&self.salt)),
            ("digest", text(&self.digest)),
        ];
        for (name, value) in known {
            if let Some(value) = value {
                map.insert(name.into(), value);
            }
        }
        append(&mut map, &self.extra);
        map
    }
}
