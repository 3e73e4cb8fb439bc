//! Tokens: hints where the passphrase of a keyslot may be found. Format notes 6.

use serde_json::Value;

use crate::json::{Fields, JsonMap};
use crate::metadata::{KeyslotId, Names, ObjectRules, append, ids_value};
use crate::rule::{Rule, Violation};

pub(crate) const RULES: ObjectRules = ObjectRules { map: Rule::TokensObject, id: Rule::TokenId };

/// A token. What it says beyond type and keyslots belongs to its handler and is kept as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The handler: `luks2-keyring`, `systemd-tpm2`, `clevis`, …
    pub type_name: String,
    /// Keyslots whose passphrase the token leads to; may be empty.
    pub keyslots: Vec<KeyslotId>,
    /// The handler's members.
    pub extra: JsonMap,
}

impl Token {
    pub(crate) fn parse(value: Value, path: String, keyslots: &Names) -> Result<Token, Violation> {
        let mut fields = Fields::open(Some(value), path, Rule::TokenObject)?;
        let type_name = fields.name("type", Rule::TokenType)?;
        let listed = fields.take("keyslots");
        let path = fields.path_of("keyslots");
        let keyslots = keyslots.references(listed, path, Rule::TokenKeyslots, Rule::TokenKeyslotExists)?;
        Ok(Token { type_name, keyslots, extra: fields.rest() })
    }

    pub(crate) fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("type".into(), self.type_name.clone().into());
        map.insert("keyslots".into(), ids_value(&self.keyslots));
        append(&mut map, &self.extra);
        map
    }
}
