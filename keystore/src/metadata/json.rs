//! `key_metadata.json`: [`Metadata`] as JSON and back.
//!
//! Reading names the member that makes no sense, keeps members that it does not know, and is bounded by
//! [`crate::limits::METADATA_BYTES_MAX`]. The authentication code covers the members in the order of the file as compact
//! JSON without `mac`: white space is no change.

use super::{
    Generation, KeyKind, KeyRecord, KeyState, Metadata, OldKey, Rotation, Step, ValueRecord, from_hex, to_hex,
};
use crate::{Error, KeyName, Policy, Timestamp};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The file, as the guide calls it.
pub const METADATA_FILE: &str = "key_metadata.json";
const VERSION: u64 = 1;
const MAC: &str = "mac";
const KNOWN: [&str; 9] = ["version", "store", "epoch", "updated", "master", "policy", "keys", "values", MAC];
const KNOWN_OF_KEY: [&str; 5] = ["kind", "volume_uuid", "generations", "rotation", "bytes_written"];

/// An error about one member.
pub(crate) fn field_error(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Field { file: METADATA_FILE, field: field.into(), problem: problem.into() }
}

/// A member and its path, for errors.
struct Member<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Member<'a> {
    fn wrong(&self, problem: impl Into<String>) -> Error {
        field_error(self.path.as_str(), problem)
    }

    fn object(&self) -> Result<&'a Map<String, Value>, Error> {
        self.value.as_object().ok_or_else(|| self.wrong("must be an object"))
    }

    fn optional(&self, name: &str) -> Result<Option<Member<'a>>, Error> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Ok(self.object()?.get(name).filter(|value| !value.is_null()).map(|value| Member { value, path }))
    }

    fn member(&self, name: &str) -> Result<Member<'a>, Error> {
        self.optional(name)?.ok_or_else(|| {
            let dot = if self.path.is_empty() { "" } else { "." };
            field_error(format!("{}{dot}{name}", self.path), "is missing")
        })
    }

    fn text(&self) -> Result<&'a str, Error> {
        self.value.as_str().ok_or_else(|| self.wrong("must be text"))
    }

    fn number(&self) -> Result<u64, Error> {
        self.value.as_u64().ok_or_else(|| self.wrong("must be a whole number, not negative"))
    }

    fn days(&self) -> Result<u32, Error> {
        u32::try_from(self.number()?).map_err(|_| self.wrong("is too large"))
    }

    fn time(&self) -> Result<Timestamp, Error> {
        Timestamp::from_text(self.text()?).ok_or_else(|| self.wrong("must be a time such as 2024-12-01T12:00:00Z"))
    }

    fn uuid(&self) -> Result<Uuid, Error> {
        Uuid::parse_str(self.text()?).map_err(|_| self.wrong("must be a UUID"))
    }

    fn bytes<const N: usize>(&self) -> Result<[u8; N], Error> {
        from_hex(self.text()?).ok_or_else(|| self.wrong(format!("must be {} hexadecimal digits", 2 * N)))
    }

    fn word<T: Copy>(&self, words: &[(&'static str, T)]) -> Result<T, Error> {
        let text = self.text()?;
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(format!("must be one of {}", all.join(", ")))
        })
    }

    fn unknown(&self, known: &[&str]) -> Result<Map<String, Value>, Error> {
        let others = self.object()?.iter().filter(|(name, _)| !known.contains(&name.as_str()));
        Ok(others.map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

/// The metadata in `text`, the bytes that its authentication code covers, and the code. Nothing is authenticated here.
///
/// # Errors
/// [`Error::Field`] names the member that makes no sense.
pub fn from_json(text: &[u8]) -> Result<(Metadata, Vec<u8>, [u8; 32]), Error> {
    let mut value: Value = serde_json::from_slice(text)
        .map_err(|error| field_error(format!("line {}", error.line()), format!("is no JSON: {error}")))?;
    let root = Member { value: &value, path: String::new() };
    if !value.is_object() {
        return Err(field_error("the file", "must be a JSON object"));
    }
    let version = root.member("version")?;
    if version.number()? != VERSION {
        return Err(version.wrong(format!("is not {VERSION}, the only one known here")));
    }
    let master = root.member("master")?;
    let policy = root.member("policy")?;
    let metadata = Metadata {
        store: root.member("store")?.uuid()?,
        epoch: root.member("epoch")?.number()?,
        updated: root.member("updated")?.time()?,
        master_id: master.member("id")?.bytes()?,
        master_since: master.member("since")?.time()?,
        policy: Policy {
            key_rotation_days: policy.member("key_rotation_days")?.days()?,
            key_backup_retention_days: policy.member("key_backup_retention_days")?.days()?,
        },
        keys: named(&root.member("keys")?, key)?,
        values: named(&root.member("values")?, |member| {
            Ok(ValueRecord {
                generation: member.member("generation")?.number()?,
                updated: member.member("updated")?.time()?,
            })
        })?,
        unknown: root.unknown(&KNOWN)?,
    };
    let mac = root.member(MAC)?.bytes()?;
    metadata.check()?;
    if let Some(object) = value.as_object_mut() {
        object.shift_remove(MAC);
    }
    Ok((metadata, value.to_string().into_bytes(), mac))
}

fn named<T>(
    parent: &Member<'_>,
    read: impl Fn(&Member<'_>) -> Result<T, Error>,
) -> Result<BTreeMap<KeyName, T>, Error> {
    let mut found = BTreeMap::new();
    for (name, value) in parent.object()? {
        let checked = KeyName::new(name).map_err(|error| parent.wrong(format!("has a bad name: {error}")))?;
        found.insert(checked, read(&Member { value, path: format!("{}.{name}", parent.path) })?);
    }
    Ok(found)
}

fn key(member: &Member<'_>) -> Result<KeyRecord, Error> {
    let list = member.member("generations")?;
    let values = list.value.as_array().ok_or_else(|| list.wrong("must be an array"))?;
    let mut generations = Vec::new();
    for (index, value) in values.iter().enumerate().take(crate::limits::GENERATIONS_MAX + 1) {
        generations.push(generation(&Member { value, path: format!("{}[{index}]", list.path) })?);
    }
    let written = member.member("bytes_written")?;
    Ok(KeyRecord {
        kind: member.member("kind")?.word(&KeyKind::ALL)?,
        volume: member.member("volume_uuid")?.uuid()?,
        generations,
        rotation: member.optional("rotation")?.map(|member| rotation(&member)).transpose()?,
        written_bytes: written.text()?.parse().map_err(|_| written.wrong("must be a whole number, as text"))?,
        unknown: member.unknown(&KNOWN_OF_KEY)?,
    })
}

fn generation(member: &Member<'_>) -> Result<Generation, Error> {
    let time = |name| member.optional(name)?.map(|member| member.time()).transpose();
    Ok(Generation {
        number: member.member("generation")?.number()?,
        state: member.member("state")?.word(&KeyState::ALL)?,
        created: member.member("created")?.time()?,
        activated: time("activated")?,
        retired: time("retired")?,
        wiped: time("wiped")?,
    })
}

fn rotation(member: &Member<'_>) -> Result<Rotation, Error> {
    Ok(Rotation {
        from: member.member("from")?.number()?,
        to: member.member("to")?.number()?,
        step: member.member("step")?.word(&Step::ALL)?,
        old_key: member.member("old_key")?.word(&OldKey::ALL)?,
    })
}

fn word_of<T: PartialEq + Copy>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| word)
}

/// The file's text, and its authentication code, which `authenticate` makes.
pub(crate) fn to_json(
    metadata: &Metadata,
    authenticate: impl FnOnce(&[u8]) -> Result<[u8; 32], Error>,
) -> Result<(String, [u8; 32]), Error> {
    metadata.check()?;
    let mut root = Map::new();
    let mut put = |name: &str, value| root.insert(name.to_owned(), value);
    put("version", json!(VERSION));
    put("store", json!(metadata.store.to_string()));
    put("epoch", json!(metadata.epoch));
    put("updated", json!(metadata.updated.to_string()));
    put("master", json!({ "id": to_hex(&metadata.master_id), "since": metadata.master_since.to_string() }));
    put(
        "policy",
        json!({
            "key_rotation_days": metadata.policy.key_rotation_days,
            "key_backup_retention_days": metadata.policy.key_backup_retention_days,
        }),
    );
    put("keys", metadata.keys.iter().map(|(name, record)| (name.to_string(), key_value(record))).collect());
    let value =
        |record: &ValueRecord| json!({ "generation": record.generation, "updated": record.updated.to_string() });
    put("values", metadata.values.iter().map(|(name, record)| (name.to_string(), value(record))).collect());
    root.extend(metadata.unknown.clone());
    let mut root = Value::Object(root);
    let mac = authenticate(root.to_string().as_bytes())?;
    if let Some(object) = root.as_object_mut() {
        object.insert(MAC.to_owned(), json!(to_hex(&mac)));
    }
    Ok((format!("{root:#}\n"), mac))
}

fn key_value(record: &KeyRecord) -> Value {
    let mut object = Map::new();
    object.insert("kind".into(), json!(word_of(&KeyKind::ALL, record.kind)));
    object.insert("volume_uuid".into(), json!(record.volume.to_string()));
    object.insert("generations".into(), record.generations.iter().map(generation_value).collect());
    if let Some(Rotation { from, to, step, old_key }) = record.rotation {
        let (step, old_key) = (word_of(&Step::ALL, step), word_of(&OldKey::ALL, old_key));
        object.insert("rotation".into(), json!({ "from": from, "to": to, "step": step, "old_key": old_key }));
    }
    object.insert("bytes_written".into(), json!(record.written_bytes.to_string()));
    object.extend(record.unknown.clone());
    Value::Object(object)
}

fn generation_value(generation: &Generation) -> Value {
    let mut object = Map::new();
    object.insert("generation".into(), json!(generation.number));
    object.insert("state".into(), json!(word_of(&KeyState::ALL, generation.state)));
    object.insert("created".into(), json!(generation.created.to_string()));
    for (name, time) in
        [("activated", generation.activated), ("retired", generation.retired), ("wiped", generation.wiped)]
    {
        if let Some(time) = time {
            object.insert(name.into(), json!(time.to_string()));
        }
    }
    Value::Object(object)
}
