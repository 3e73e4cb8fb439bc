//! The typed metadata of a header: what the JSON area says, known members as fields, unknown ones kept in `extra`.
//!
//! Source: LUKS2 specification chapter 4, format notes 2. Invariant: a `Metadata` made by [`Metadata::parse`] keeps every
//! rule of the format; one that was edited is parsed again before it is written. Unknown members survive a rewrite at
//! every level, in their order, after the known ones.

pub mod config;
pub mod digest;
pub mod keyslot;
pub mod segment;
pub mod slot_name;
pub mod token;

use std::collections::BTreeSet;
use std::fmt;

use block::Bytes;
use serde_json::Value;

use crate::json::{self, Fields, JsonMap};
use crate::metadata::config::Config;
use crate::metadata::digest::Digest;
use crate::metadata::keyslot::Keyslot;
use crate::metadata::segment::Segment;
use crate::metadata::token::Token;
use crate::rule::{Rule, Violation};
use crate::validate;

/// The id of an object in the metadata: a small number, a string of digits in the JSON.
pub trait ObjectId: Copy + Ord + fmt::Display {
    /// The id with this number.
    fn from_number(number: u32) -> Self;
    /// The number of this id.
    fn number(self) -> u32;
}

macro_rules! object_ids {
    ($( $(#[$doc:meta])* $name:ident; )*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl ObjectId for $name {
            fn from_number(number: u32) -> $name { $name(number) }
            fn number(self) -> u32 { self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    )* };
}

object_ids! {
    /// The id of a keyslot.
    KeyslotId;
    /// The id of a segment.
    SegmentId;
    /// The id of a digest.
    DigestId;
    /// The id of a token.
    TokenId;
}

/// Objects by id, in the order in which the JSON lists them: keyslots are tried in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ById<I, T> {
    items: Vec<(I, T)>,
}

impl<I: ObjectId, T> ById<I, T> {
    /// No objects.
    pub fn new() -> ById<I, T> {
        ById { items: Vec::new() }
    }

    /// Ids and objects, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (I, &T)> + ExactSizeIterator {
        self.items.iter().map(|(id, item)| (*id, item))
    }

    /// Ids and objects by their numbers, for who shows them; [`iter`](Self::iter) has the order of the header.
    pub fn sorted(&self) -> Vec<(I, &T)> {
        let mut all: Vec<(I, &T)> = self.iter().collect();
        all.sort_by_key(|(id, _)| id.number());
        all
    }

    /// Ids and objects, in order.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (I, &mut T)> + ExactSizeIterator {
        self.items.iter_mut().map(|(id, item)| (*id, item))
    }

    /// Ids, in order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = I> + ExactSizeIterator {
        self.items.iter().map(|(id, _)| *id)
    }

    /// The object with this id.
    pub fn get(&self, id: I) -> Option<&T> {
        self.items.iter().find(|(at, _)| *at == id).map(|(_, item)| item)
    }

    /// The object with this id.
    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        self.items.iter_mut().find(|(at, _)| *at == id).map(|(_, item)| item)
    }

    /// Whether there is an object with this id.
    pub fn contains(&self, id: I) -> bool {
        self.get(id).is_some()
    }

    /// Put an object in: at the place of the one that had this id, which is handed back, or at the end.
    pub fn insert(&mut self, id: I, item: T) -> Option<T> {
        match self.get_mut(id) {
            Some(old) => Some(std::mem::replace(old, item)),
            None => {
                self.items.push((id, item));
                None
            }
        }
    }

    /// Take an object out; the others keep their order.
    pub fn remove(&mut self, id: I) -> Option<T> {
        let at = self.items.iter().position(|(has, _)| *has == id)?;
        Some(self.items.remove(at).1)
    }

    /// Keep only the objects that `keep` accepts.
    pub fn retain(&mut self, mut keep: impl FnMut(I, &T) -> bool) {
        self.items.retain(|(id, item)| keep(*id, item));
    }

    /// The lowest unused id below `max`.
    pub fn first_free(&self, max: u32) -> Option<I> {
        (0..max).map(I::from_number).find(|id| !self.contains(*id))
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl<I: ObjectId, T> Default for ById<I, T> {
    fn default() -> ById<I, T> {
        ById::new()
    }
}

impl<I: ObjectId, T> FromIterator<(I, T)> for ById<I, T> {
    fn from_iter<It: IntoIterator<Item = (I, T)>>(items: It) -> ById<I, T> {
        let mut map = ById::new();
        for (id, item) in items {
            map.insert(id, item);
        }
        map
    }
}

/// The metadata of a LUKS2 container.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    /// Keyslots: each holds the volume key behind one passphrase.
    pub keyslots: ById<KeyslotId, Keyslot>,
    /// Tokens: where a passphrase may be found.
    pub tokens: ById<TokenId, Token>,
    /// Segments: what the data device holds.
    pub segments: ById<SegmentId, Segment>,
    /// Digests: which key fits which segments.
    pub digests: ById<DigestId, Digest>,
    /// Sizes, flags and requirements.
    pub config: Config,
    /// Unknown members.
    pub extra: JsonMap,
}

impl Metadata {
    /// What must be said loudly to whoever uses the data: they are not encrypted at all.
    pub fn caution(&self) -> Option<String> {
        let mut segments = self.segments.iter();
        let unencrypted =
            segments.any(|(_, segment)| segment.crypt.as_ref().is_some_and(|crypt| crypt.is_unencrypted()));
        unencrypted.then(|| "NOTHING ON IT IS ENCRYPTED (cipher_null): whoever has the disk reads it".to_owned())
    }

    /// Read metadata from its JSON text. `metadata_size` is the size of one copy: binary header and JSON area.
    /// The rules are checked in the order of format notes 2.5.
    ///
    /// # Errors
    /// The first rule that is broken, and where.
    pub fn parse(text: &str, metadata_size: Bytes) -> Result<Metadata, Violation> {
        let mut metadata = Metadata::from_map(json::parse_object(text)?, metadata_size)?;
        metadata.keep_spelling(text);
        Ok(metadata)
    }

    /// Has tokens remember how they are written in `text`, from which this metadata was read.
    pub(crate) fn keep_spelling(&mut self, text: &str) {
        let tokens = json::members_of(text).into_iter().flatten().find(|(name, _)| name == "tokens");
        for (id, spelled) in tokens.and_then(|(_, tokens)| json::members_of(tokens)).into_iter().flatten() {
            if let Some(token) = canonical_id(&id).and_then(|id| self.tokens.get_mut(TokenId(id))) {
                token.keep_spelling(spelled);
            }
        }
    }

    /// Read metadata from its JSON object.
    ///
    /// # Errors
    /// As [`Metadata::parse`].
    pub fn from_map(root: JsonMap, metadata_size: Bytes) -> Result<Metadata, Violation> {
        let mut root = Fields::resume(root, "");
        let keyslot_names = Names::of(root.get("keyslots"));
        let segment_names = Names::of(root.get("segments"));

        let requirements = config::Requirements::parse(root.get("config"))?;
        let tokens = objects(root.take("tokens"), "tokens", &token::RULES, |value, path| {
            Token::parse(value, path, &keyslot_names)
        })?;
        let digests = objects(root.take("digests"), "digests", &digest::RULES, |value, path| {
            Digest::parse(value, path, &keyslot_names, &segment_names)
        })?;
        let mut segments = objects(root.take("segments"), "segments", &segment::RULES, Segment::parse)?;
        validate::segments::check_order(&segments)?;
        for (id, segment) in segments.iter_mut() {
            segment.resolve(&format!("segments.{id}"))?;
        }
        validate::segments::check_digests(&segments, &digests)?;
        if requirements.online_reencrypt().is_some() {
            validate::reencrypt::check_segments(&segments)?;
        }
        let mut keyslots = objects(root.take("keyslots"), "keyslots", &keyslot::RULES, Keyslot::parse)?;
        let config = Config::parse(root.take("config"), requirements)?;
        validate::areas::check_config(&config, &segments)?;
        validate::areas::check_areas(&keyslots, &config)?;
        config.check_metadata_size(metadata_size)?;
        for (id, keyslot) in keyslots.iter_mut() {
            keyslot.resolve(&format!("keyslots.{id}"))?;
        }
        validate::keyslots::check_digests(&keyslots, &digests)?;
        validate::reencrypt::check_keyslots(&keyslots, &config)?;
        Ok(Metadata { keyslots, tokens, segments, digests, config, extra: root.rest() })
    }

    /// The JSON object, members in the order in which cryptsetup writes them, then the unknown ones.
    pub fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("keyslots".into(), members(&self.keyslots, Keyslot::to_map));
        map.insert("tokens".into(), members(&self.tokens, Token::to_map));
        map.insert("segments".into(), members(&self.segments, Segment::to_map));
        map.insert("digests".into(), members(&self.digests, Digest::to_map));
        map.insert("config".into(), Value::Object(self.config.to_map()));
        append(&mut map, &self.extra);
        map
    }

    /// The JSON text as it stands on disk: compact, `/` not escaped; tokens as they were written by who made them.
    pub fn to_text(&self) -> String {
        let members = self.to_map().into_iter().map(|(name, value)| {
            let text = match name.as_str() {
                "tokens" => json::object_of(self.tokens.iter().map(|(id, token)| (id.to_string(), token.to_json()))),
                _ => value.to_string(),
            };
            (name, text)
        });
        json::object_of(members)
    }
}

/// The names under which objects can be referred to. A reference is checked before its object is.
pub(crate) struct Names(BTreeSet<String>);

impl Names {
    fn of(value: Option<&Value>) -> Names {
        let map = value.and_then(Value::as_object);
        Names(map.map(|map| map.keys().cloned().collect()).unwrap_or_default())
    }

    /// Read an array of references at `path`.
    pub(crate) fn references<I: ObjectId>(
        &self,
        value: Option<Value>,
        path: String,
        array: Rule,
        exists: Rule,
    ) -> Result<Vec<I>, Violation> {
        let Some(value) = value else { return Err(Violation::missing(array, path)) };
        let Some(names) = json::strings_of(&value) else { return Err(Violation::new(array, path, value)) };
        let mut ids = Vec::with_capacity(names.len());
        for name in names {
            match canonical_id(&name).filter(|_| self.0.contains(&name)) {
                Some(id) => ids.push(I::from_number(id)),
                None => return Err(Violation::new(exists, path, name)),
            }
        }
        Ok(ids)
    }
}

/// The rules that the map of one kind of object keeps.
pub(crate) struct ObjectRules {
    /// The map is an object.
    pub(crate) map: Rule,
    /// Its keys are ids.
    pub(crate) id: Rule,
}

/// Ids are written as canonical decimals: cryptsetup looks objects up by that text.
fn canonical_id(text: &str) -> Option<u32> {
    let id = u32::try_from(json::decimal(text)?).ok()?;
    (id.to_string() == text).then_some(id)
}

fn objects<I: ObjectId, T>(
    value: Option<Value>,
    path: &str,
    rules: &ObjectRules,
    mut parse: impl FnMut(Value, String) -> Result<T, Violation>,
) -> Result<ById<I, T>, Violation> {
    let map = Fields::open(value, path, rules.map)?.rest();
    let mut found = ById::new();
    for (key, value) in map {
        let id = canonical_id(&key).ok_or_else(|| Violation::new(rules.id, path, &key))?;
        let item = parse(value, format!("{path}.{id}"))?;
        // Canonical ids and unique keys: no object is replaced, so a plain push is enough.
        found.items.push((I::from_number(id), item));
    }
    Ok(found)
}

fn members<I: ObjectId, T>(objects: &ById<I, T>, to_map: impl Fn(&T) -> JsonMap) -> Value {
    Value::Object(objects.iter().map(|(id, item)| (id.to_string(), Value::Object(to_map(item)))).collect())
}

/// Ids as the JSON array that lists them.
pub(crate) fn ids_value<I: ObjectId>(ids: &[I]) -> Value {
    ids.iter().map(|id| Value::String(id.to_string())).collect()
}

/// Put unknown members after the known ones.
pub(crate) fn append(map: &mut JsonMap, extra: &JsonMap) {
    for (name, value) in extra {
        map.insert(name.clone(), value.clone());
    }
}
