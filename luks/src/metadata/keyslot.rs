//! Keyslots: the volume key, encrypted under a key derived from a passphrase. Format notes 3.

use block::Bytes;
use serde_json::Value;

use crate::json::{Fields, JsonMap, u32_of, u64_value};
use crate::metadata::{ObjectRules, append};
use crate::rule::{Rule, Violation};

pub(crate) const RULES: ObjectRules = ObjectRules { map: Rule::KeyslotsObject, id: Rule::KeyslotId };

/// The stripes of every anti-forensic splitter.
const AF_STRIPES: u32 = 4000;

/// A keyslot.
#[derive(Debug, Clone, PartialEq)]
pub struct Keyslot {
    /// What its type adds.
    pub kind: KeyslotKind,
    /// `luks2`, `reencrypt`, or a type this crate does not know.
    pub type_name: String,
    /// Size of the key it holds; 1 for a `reencrypt` slot.
    pub key_size_bytes: u32,
    /// When it is tried; `None` if the header does not say. An unknown priority is in `extra`, and the slot is ignored,
    /// as cryptsetup does.
    pub priority: Option<Priority>,
    /// Where its binary data stands.
    pub area: Area,
    /// Unknown members, and a priority of unknown meaning.
    pub extra: JsonMap,
}

/// What the type of a keyslot adds.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyslotKind {
    /// A passphrase slot.
    Luks2(Luks2Slot),
    /// Another type; its members are in `extra`.
    Other,
}

/// When a keyslot is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Only when asked for by number.
    Ignore,
    /// After the preferred ones.
    Normal,
    /// First.
    Prefer,
}

/// A passphrase slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Luks2Slot {
    /// Anti-forensic splitter.
    pub af: Af,
    /// Key derivation.
    pub kdf: Kdf,
}

/// The anti-forensic splitter `luks1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Af {
    /// Name of the diffusion hash.
    pub hash: String,
    /// Stripes as the header states them; the number used is always 4000. A number that has no place in 32 bits is in
    /// `extra`, and this is 4000.
    pub stripes: u32,
    /// Unknown members.
    pub extra: JsonMap,
}

/// A key derivation function and its cost. Numbers and salt are as the header has them, not yet judged.
#[derive(Debug, Clone, PartialEq)]
pub enum Kdf {
    /// PBKDF2 with HMAC.
    Pbkdf2 {
        /// Name of the hash.
        hash: String,
        /// Iterations.
        iterations: u32,
        /// Salt in base64.
        salt: String,
    },
    /// Argon2.
    Argon2 {
        /// Which Argon2.
        variant: Argon2Variant,
        /// Passes.
        time: u32,
        /// Memory in KiB.
        memory_kib: u32,
        /// Lanes.
        cpus: u32,
        /// Salt in base64.
        salt: String,
    },
    /// A function this crate does not know, or one with numbers it cannot mean; kept as it is, an error when used.
    Other {
        /// Its name.
        type_name: String,
        /// All its members, `type` among them.
        raw: JsonMap,
    },
}

/// Which Argon2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argon2Variant {
    /// Argon2i.
    I,
    /// Argon2id.
    Id,
}

impl Argon2Variant {
    /// The name in the header.
    pub fn name(self) -> &'static str {
        match self {
            Argon2Variant::I => "argon2i",
            Argon2Variant::Id => "argon2id",
        }
    }
}

/// Where the binary data of a keyslot stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Area {
    /// `raw` for a passphrase slot; the resilience for a `reencrypt` slot.
    pub type_name: String,
    /// Byte offset on the header's device.
    pub offset: Bytes,
    /// Size.
    pub size: Bytes,
    /// Cipher of the area, in a passphrase slot.
    pub encryption: Option<String>,
    /// Size of the area's key, in a passphrase slot.
    pub key_size_bytes: Option<u32>,
    /// Unknown members.
    pub extra: JsonMap,
}

impl Keyslot {
    /// The passphrase slot, if it is one.
    pub fn luks2(&self) -> Option<&Luks2Slot> {
        match &self.kind {
            KeyslotKind::Luks2(slot) => Some(slot),
            KeyslotKind::Other => None,
        }
    }

    /// The members that every keyslot has. The others stay in `extra` until [`Keyslot::resolve`].
    pub(crate) fn parse(value: Value, path: String) -> Result<Keyslot, Violation> {
        let mut fields = Fields::open(Some(value), path, Rule::KeyslotObject)?;
        let type_name = fields.name("type", Rule::KeyslotType)?;
        let key_size_bytes = fields.u32("key_size", Rule::KeyslotKeySize)?;
        let mut area = Fields::open(fields.take("area"), fields.path_of("area"), Rule::KeyslotArea)?;
        let area = Area {
            type_name: area.name("type", Rule::AreaType)?,
            offset: Bytes(area.u64("offset", Rule::AreaOffset)?),
            size: Bytes(area.u64("size", Rule::AreaSize)?),
            encryption: None,
            key_size_bytes: None,
            extra: area.rest(),
        };
        let priority = fields.get("priority").map(|value| match value.as_u64() {
            Some(1) => Priority::Normal,
            Some(2) => Priority::Prefer,
            _ => Priority::Ignore,
        });
        if fields.get("priority").and_then(u32_of).is_some_and(|number| number <= 2) {
            fields.take("priority");
        }
        let extra = fields.rest();
        Ok(Keyslot { kind: KeyslotKind::Other, type_name, key_size_bytes, priority, area, extra })
    }

    /// Take the members of a known type out of `extra`.
    pub(crate) fn resolve(&mut self, path: &str) -> Result<(), Violation> {
        if self.type_name != "luks2" {
            return Ok(());
        }
        let mut fields = Fields::resume(std::mem::take(&mut self.extra), path);
        let kdf = Fields::open(fields.take("kdf"), fields.path_of("kdf"), Rule::KdfObject)?;
        let af = Fields::open(fields.take("af"), fields.path_of("af"), Rule::AfObject)?;
        self.extra = fields.rest();
        let kdf = Kdf::parse(kdf)?;
        let af = Af::parse(af)?;
        self.area.resolve(&format!("{path}.area"))?;
        self.kind = KeyslotKind::Luks2(Luks2Slot { af, kdf });
        Ok(())
    }

    pub(crate) fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("type".into(), self.type_name.clone().into());
        map.insert("key_size".into(), self.key_size_bytes.into());
        if let KeyslotKind::Luks2(slot) = &self.kind {
            map.insert("af".into(), Value::Object(slot.af.to_map()));
        }
        map.insert("area".into(), Value::Object(self.area.to_map()));
        if let KeyslotKind::Luks2(slot) = &self.kind {
            map.insert("kdf".into(), Value::Object(slot.kdf.to_map()));
        }
        if let Some(priority) = self.priority {
            let number = match priority {
                Priority::Ignore => 0,
                Priority::Normal => 1,
                Priority::Prefer => 2,
            };
            map.insert("priority".into(), number.into());
        }
        append(&mut map, &self.extra);
        map
    }
}

impl Area {
    /// The area of a passphrase slot.
    fn resolve(&mut self, path: &str) -> Result<(), Violation> {
        let mut fields = Fields::resume(std::mem::take(&mut self.extra), path);
        if self.type_name != "raw" {
            return Err(Violation::new(Rule::AreaRaw, fields.path_of("type"), &self.type_name));
        }
        self.encryption = Some(fields.name("encryption", Rule::AreaEncryption)?);
        self.key_size_bytes = fields.integer("key_size", Rule::AreaKeySize)?;
        self.extra = fields.rest();
        Ok(())
    }

    fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("type".into(), self.type_name.clone().into());
        map.insert("offset".into(), u64_value(self.offset.0));
        map.insert("size".into(), u64_value(self.size.0));
        if let Some(encryption) = &self.encryption {
            map.insert("encryption".into(), encryption.clone().into());
        }
        if let Some(key_size_bytes) = self.key_size_bytes {
            map.insert("key_size".into(), key_size_bytes.into());
        }
        append(&mut map, &self.extra);
        map
    }
}

impl Af {
    fn parse(mut fields: Fields) -> Result<Af, Violation> {
        let type_name = fields.name("type", Rule::AfType)?;
        if type_name != "luks1" {
            return Err(Violation::new(Rule::AfType, fields.path_of("type"), type_name));
        }
        let stripes = fields.integer("stripes", Rule::AfStripes)?.unwrap_or(AF_STRIPES);
        let hash = fields.name("hash", Rule::AfHash)?;
        Ok(Af { hash, stripes, extra: fields.rest() })
    }

    fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("type".into(), "luks1".into());
        map.insert("stripes".into(), self.stripes.into());
        map.insert("hash".into(), self.hash.clone().into());
        append(&mut map, &self.extra);
        map
    }
}

impl Kdf {
    /// The name in the header.
    pub fn type_name(&self) -> &str {
        match self {
            Kdf::Pbkdf2 { .. } => "pbkdf2",
            Kdf::Argon2 { variant, .. } => variant.name(),
            Kdf::Other { type_name, .. } => type_name,
        }
    }

    fn parse(mut fields: Fields) -> Result<Kdf, Violation> {
        let raw = fields.left().clone();
        let type_name = fields.name("type", Rule::KdfType)?;
        let salt = fields.name("salt", Rule::KdfSalt)?;
        let Some(expected) = kdf_members(&type_name) else { return Ok(Kdf::Other { type_name, raw }) };
        let stray: Vec<&str> = raw.keys().map(String::as_str).filter(|name| !expected.contains(name)).collect();
        if !stray.is_empty() {
            let (path, value) = (fields.path_of(stray[0]), format_args!("also has {}", stray.join(", ")));
            return Err(Violation::new(Rule::KdfMembers, path, value));
        }
        let mut integer = |name| fields.integer(name, Rule::KdfValues);
        let kdf = if type_name == "pbkdf2" {
            let iterations = integer("iterations")?;
            let hash = fields.name("hash", Rule::KdfValues)?;
            iterations.map(|iterations| Kdf::Pbkdf2 { hash, iterations, salt })
        } else {
            let variant = if type_name == "argon2i" { Argon2Variant::I } else { Argon2Variant::Id };
            match (integer("time")?, integer("memory")?, integer("cpus")?) {
                (Some(time), Some(memory_kib), Some(cpus)) => {
                    Some(Kdf::Argon2 { variant, time, memory_kib, cpus, salt })
                }
                _ => None,
            }
        };
        Ok(kdf.unwrap_or(Kdf::Other { type_name, raw }))
    }

    fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("type".into(), self.type_name().into());
        match self {
            Kdf::Pbkdf2 { hash, iterations, salt } => {
                map.insert("hash".into(), hash.clone().into());
                map.insert("iterations".into(), (*iterations).into());
                map.insert("salt".into(), salt.clone().into());
            }
            Kdf::Argon2 { time, memory_kib, cpus, salt, .. } => {
                map.insert("time".into(), (*time).into());
                map.insert("memory".into(), (*memory_kib).into());
                map.insert("cpus".into(), (*cpus).into());
                map.insert("salt".into(), salt.clone().into());
            }
            Kdf::Other { raw, .. } => return raw.clone(),
        }
        map
    }
}

/// The members that the `kdf` of a known type has, no more and no fewer.
fn kdf_members(type_name: &str) -> Option<&'static [&'static str]> {
    match type_name {
        "pbkdf2" => Some(&["type", "hash", "iterations", "salt"]),
        "argon2i" | "argon2id" => Some(&["type", "time", "memory", "cpus", "salt"]),
        _ => None,
    }
}

/// The one repair that a reader makes in memory (format notes 2.7): drop from each `kdf` the members that its
/// function does not have. Says where it dropped what.
pub(crate) fn drop_foreign_kdf_members(root: &mut JsonMap) -> Vec<String> {
    let mut dropped = Vec::new();
    let Some(Value::Object(keyslots)) = root.get_mut("keyslots") else { return dropped };
    for (id, keyslot) in keyslots.iter_mut() {
        if keyslot.get("type").and_then(Value::as_str) != Some("luks2") {
            continue;
        }
        let Some(Value::Object(kdf)) = keyslot.get_mut("kdf") else { continue };
        let Some(expected) = kdf.get("type").and_then(Value::as_str).and_then(kdf_members) else { continue };
        kdf.retain(|name, _| {
            let keep = expected.contains(&name.as_str());
            if !keep {
                dropped.push(format!("keyslots.{id}.kdf.{name}"));
            }
            keep
        });
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u32_bounds() {
        assert_eq!(u32_of(&Value::from(u32::MAX)), Some(u32::MAX));
        assert_eq!(u32_of(&Value::from(u64::from(u32::MAX) + 1)), None);
        assert_eq!(u32_of(&Value::from(-1)), None);
        assert_eq!(u32_of(&Value::from(1.0)), None);
        assert_eq!(u32_of(&Value::from("1")), None);
    }
}
