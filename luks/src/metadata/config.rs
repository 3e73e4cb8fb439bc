//! The `config` object: sizes, activation flags and requirements. Format notes 2.8.

use block::Bytes;
use serde_json::Value;

use crate::json::{Fields, JsonMap, strings_of, u64_value};
use crate::limits::{BINARY_HEADER, KEYSLOTS_SIZE_MAX, KEYSLOTS_SIZE_UNIT, METADATA_SIZES};
use crate::metadata::append;
use crate::rule::{Rule, Violation};

/// Sizes, flags and requirements.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Size of the JSON area.
    pub json_size: Bytes,
    /// Size of the keyslots area.
    pub keyslots_size: Bytes,
    /// Activation flags that stay with the container: `allow-discards`, …
    pub flags: Vec<String>,
    /// Features a reader must know before it uses or changes the container.
    pub mandatory: Vec<String>,
    /// Unknown members of `requirements`.
    pub requirements_extra: JsonMap,
    /// Unknown members.
    pub extra: JsonMap,
}

/// `config.requirements`, which is checked before everything else.
pub(crate) struct Requirements {
    mandatory: Vec<String>,
    extra: JsonMap,
}

impl Requirements {
    pub(crate) fn parse(config: Option<&Value>) -> Result<Requirements, Violation> {
        let config = match config {
            Some(Value::Object(map)) => map,
            Some(other) => return Err(Violation::new(Rule::ConfigObject, "config", other)),
            None => return Err(Violation::missing(Rule::ConfigObject, "config")),
        };
        let Some(requirements) = config.get("requirements") else {
            return Ok(Requirements { mandatory: Vec::new(), extra: JsonMap::new() });
        };
        let path = "config.requirements";
        let mut fields = Fields::open(Some(requirements.clone()), path, Rule::RequirementsObject)?;
        let listed = fields.read_if_present("mandatory", Rule::RequirementsMandatory, strings_of)?;
        let mandatory = listed.unwrap_or_default();
        if mandatory.iter().filter(|name| is_online_reencrypt(name)).count() > 1 {
            let value = mandatory.join(", ");
            return Err(Violation::new(Rule::RequirementsOneReencrypt, "config.requirements.mandatory", value));
        }
        Ok(Requirements { mandatory, extra: fields.rest() })
    }

    pub(crate) fn online_reencrypt(&self) -> Option<&str> {
        online_reencrypt(&self.mandatory)
    }
}

/// `online-reencrypt` or `online-reencrypt-v` and digits.
fn is_online_reencrypt(name: &str) -> bool {
    match name.strip_prefix("online-reencrypt") {
        Some("") => true,
        Some(rest) => rest
            .strip_prefix("-v")
            .is_some_and(|version| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit())),
        None => false,
    }
}

fn online_reencrypt(mandatory: &[String]) -> Option<&str> {
    mandatory.iter().map(String::as_str).find(|name| is_online_reencrypt(name))
}

impl Config {
    /// A config without flags and requirements.
    pub fn new(metadata_size: Bytes, keyslots_size: Bytes) -> Config {
        Config {
            json_size: Bytes(metadata_size.0.saturating_sub(BINARY_HEADER as u64)),
            keyslots_size,
            flags: Vec::new(),
            mandatory: Vec::new(),
            requirements_extra: JsonMap::new(),
            extra: JsonMap::new(),
        }
    }

    /// Size of one metadata copy: binary header and JSON area.
    pub fn metadata_size(&self) -> Bytes {
        Bytes(self.json_size.0.saturating_add(BINARY_HEADER as u64))
    }

    /// Where the keyslots area starts: after both copies.
    pub fn keyslots_offset(&self) -> Bytes {
        Bytes(self.metadata_size().0.saturating_mul(2))
    }

    /// Where the keyslots area ends.
    pub fn keyslots_end(&self) -> Bytes {
        Bytes(self.keyslots_offset().0.saturating_add(self.keyslots_size.0))
    }

    /// The requirement that says that a re-encryption is under way.
    pub fn online_reencrypt(&self) -> Option<&str> {
        online_reencrypt(&self.mandatory)
    }

    pub(crate) fn parse(value: Option<Value>, requirements: Requirements) -> Result<Config, Violation> {
        let mut fields = Fields::open(value, "config", Rule::ConfigObject)?;
        fields.take("requirements");
        let json_size = Bytes(fields.u64("json_size", Rule::ConfigJsonSize)?);
        if !METADATA_SIZES.iter().any(|size| size.0 - BINARY_HEADER as u64 == json_size.0) {
            return Err(Violation::new(Rule::ConfigJsonSize, "config.json_size", json_size.0));
        }
        let keyslots_size = Bytes(fields.u64("keyslots_size", Rule::ConfigKeyslotsSize)?);
        if !keyslots_size.is_multiple_of(KEYSLOTS_SIZE_UNIT) {
            return Err(Violation::new(Rule::ConfigKeyslotsUnit, "config.keyslots_size", keyslots_size.0));
        }
        if keyslots_size > KEYSLOTS_SIZE_MAX {
            return Err(Violation::new(Rule::ConfigKeyslotsMax, "config.keyslots_size", keyslots_size.0));
        }
        let flags = fields.read_if_present("flags", Rule::ConfigFlags, strings_of)?.unwrap_or_default();
        let Requirements { mandatory, extra: requirements_extra } = requirements;
        Ok(Config { json_size, keyslots_size, flags, mandatory, requirements_extra, extra: fields.rest() })
    }

    /// `json_size` and the size that the binary header names agree.
    pub(crate) fn check_metadata_size(&self, metadata_size: Bytes) -> Result<(), Violation> {
        if self.metadata_size() == metadata_size {
            return Ok(());
        }
        let value = format_args!("{} with a copy of {} bytes", self.json_size.0, metadata_size.0);
        Err(Violation::new(Rule::JsonSizeMatches, "config.json_size", value))
    }

    pub(crate) fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("json_size".into(), u64_value(self.json_size.0));
        map.insert("keyslots_size".into(), u64_value(self.keyslots_size.0));
        if !self.flags.is_empty() {
            map.insert("flags".into(), self.flags.clone().into());
        }
        if !self.mandatory.is_empty() || !self.requirements_extra.is_empty() {
            let mut requirements = JsonMap::new();
            requirements.insert("mandatory".into(), self.mandatory.clone().into());
            append(&mut requirements, &self.requirements_extra);
            map.insert("requirements".into(), Value::Object(requirements));
        }
        append(&mut map, &self.extra);
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn online_reencrypt_names() {
        for good in ["online-reencrypt", "online-reencrypt-v2", "online-reencrypt-v30"] {
            assert!(is_online_reencrypt(good), "{good}");
        }
        for bad in ["online-reencrypt-v", "online-reencrypt-v3X", "online-reencrypt2", "offline-reencrypt", ""] {
            assert!(!is_online_reencrypt(bad), "{bad}");
        }
    }
}
