//! Tokens: hints where the passphrase of a keyslot may be found. Format notes 6.
//!
//! A token belongs to its handler. Whoever made it finds it again as it was: a token that was read keeps the order of its
//! members and the spelling of their values, and only the members that were changed here are written anew. The types
//! that begin with `luks2-` are the format's own; `luks2-keyring` is the only one there is, and has exactly three members.

use std::collections::HashSet;

use serde_json::Value;

use crate::error::Error;
use crate::json::{self, Fields, JsonMap};
use crate::metadata::{KeyslotId, Names, ObjectRules, append, ids_value};
use crate::rule::{Rule, Violation};

pub(crate) const RULES: ObjectRules = ObjectRules { map: Rule::TokensObject, id: Rule::TokenId };

/// Types that begin so are the format's own.
const RESERVED: &str = "luks2-";
/// The token whose passphrase is a key of the kernel's keyring.
pub const KEYRING_TYPE: &str = "luks2-keyring";
/// The member that names that key.
const KEY_DESCRIPTION: &str = "key_description";
/// The kernel takes descriptions of less than a page.
const KEY_DESCRIPTION_BYTES_MAX: usize = 4095;

/// A token. What it says beyond type and keyslots belongs to its handler and is kept as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The handler: `luks2-keyring`, `systemd-tpm2`, `clevis`, …
    pub type_name: String,
    /// Keyslots whose passphrase the token leads to; may be empty.
    pub keyslots: Vec<KeyslotId>,
    /// The handler's members.
    pub extra: JsonMap,
    /// The text that it was read from, where that is not how it would be written.
    spelled: Option<Box<str>>,
}

impl Token {
    /// A token of this type for these keyslots, with these members besides.
    pub fn new(type_name: impl Into<String>, keyslots: Vec<KeyslotId>, extra: JsonMap) -> Token {
        Token { type_name: type_name.into(), keyslots, extra, spelled: None }
    }

    /// A token that leads to the `user` key `description` of the kernel's keyring.
    ///
    /// # Errors
    /// [`Error::TokenInvalid`] for a description that the kernel could not have.
    pub fn keyring(description: &str, keyslots: Vec<KeyslotId>) -> Result<Token, Error> {
        let extra = JsonMap::from_iter([(KEY_DESCRIPTION.to_owned(), description.into())]);
        let token = Token::new(KEYRING_TYPE, keyslots, extra);
        token.check_reserved()?;
        Ok(token)
    }

    /// Reads a token from its JSON text, to be added to a container. Which keyslots there are is not known here.
    ///
    /// # Errors
    /// [`Error::TokenInvalid`] if it is no object, lacks `type` or `keyslots`, or breaks the rules of a reserved type.
    pub fn from_json(text: &str) -> Result<Token, Error> {
        let invalid = |violation: Violation| Error::TokenInvalid { problem: violation.to_string() };
        if !text.trim_start().starts_with('{') {
            return Err(Error::TokenInvalid { problem: "it must be a JSON object".to_owned() });
        }
        let root = json::parse_object(text).map_err(invalid)?;
        let mut fields = Fields::open(Some(Value::Object(root)), "token", Rule::TokenObject).map_err(invalid)?;
        let type_name = fields.name("type", Rule::TokenType).map_err(invalid)?;
        let listed = fields.read("keyslots", Rule::TokenKeyslots, json::strings_of).map_err(invalid)?;
        let mut keyslots = Vec::with_capacity(listed.len());
        for name in listed {
            let id = super::canonical_id(&name)
                .ok_or_else(|| invalid(Violation::new(Rule::TokenKeyslotExists, "token.keyslots", &name)))?;
            keyslots.push(KeyslotId(id));
        }
        let mut token = Token::new(type_name, keyslots, fields.rest());
        token.check_reserved()?;
        token.keep_spelling(text.trim());
        Ok(token)
    }

    /// The token as JSON text, as it stands in the header.
    pub fn to_json(&self) -> String {
        match self.spelled.as_deref().and_then(|text| self.respelled(text)) {
            Some(text) => text,
            None => Value::Object(self.to_map()).to_string(),
        }
    }

    /// The description of the key in the kernel's keyring, if this is a well-formed token for one.
    pub fn key_description(&self) -> Option<&str> {
        let is_keyring = self.type_name == KEYRING_TYPE && self.check_reserved().is_ok();
        is_keyring.then(|| self.extra.get(KEY_DESCRIPTION)?.as_str()).flatten()
    }

    /// The rules of the format's own types; the loader does not look at them.
    pub(crate) fn check_reserved(&self) -> Result<(), Error> {
        let invalid = |problem: String| Err(Error::TokenInvalid { problem });
        if !self.type_name.starts_with(RESERVED) {
            return Ok(());
        }
        if self.type_name != KEYRING_TYPE {
            return invalid(format!("types that begin with {RESERVED} are reserved, and {} is none", self.type_name));
        }
        let description = self.extra.get(KEY_DESCRIPTION).and_then(Value::as_str);
        match description {
            Some(text) if self.extra.len() == 1 => {
                if text.is_empty() || text.len() > KEY_DESCRIPTION_BYTES_MAX || text.contains('\0') {
                    let allowed = format!("1 to {KEY_DESCRIPTION_BYTES_MAX} bytes without NUL");
                    return invalid(format!("{KEY_DESCRIPTION} has {} bytes: it must be {allowed}", text.len()));
                }
                Ok(())
            }
            _ => invalid(format!("{KEYRING_TYPE} has exactly type, keyslots and {KEY_DESCRIPTION} (a string)")),
        }
    }

    pub(crate) fn parse(value: Value, path: String, keyslots: &Names) -> Result<Token, Violation> {
        let mut fields = Fields::open(Some(value), path, Rule::TokenObject)?;
        let type_name = fields.name("type", Rule::TokenType)?;
        let listed = fields.take("keyslots");
        let path = fields.path_of("keyslots");
        let keyslots = keyslots.references(listed, path, Rule::TokenKeyslots, Rule::TokenKeyslotExists)?;
        Ok(Token::new(type_name, keyslots, fields.rest()))
    }

    /// Remembers the text that the token was read from, if it would be written otherwise.
    pub(crate) fn keep_spelling(&mut self, text: &str) {
        let written = Value::Object(self.to_map()).to_string();
        self.spelled = (written != text).then(|| text.into());
    }

    /// The text that it was read from with what changed since; `None` if that text is none of this token.
    fn respelled(&self, text: &str) -> Option<String> {
        let current = self.to_map();
        let spelled = json::members_of(text)?;
        let mut same = spelled.len() == current.len();
        let mut members = Vec::with_capacity(current.len());
        let mut placed = HashSet::new();
        for (name, text) in spelled {
            let Some(value) = current.get(&name) else {
                same = false;
                continue;
            };
            let kept = serde_json::from_str::<Value>(text).is_ok_and(|was| was == *value);
            same &= kept;
            placed.insert(name.clone());
            members.push((name, if kept { text.to_owned() } else { value.to_string() }));
        }
        let added = current.into_iter().filter(|(name, _)| !placed.contains(name));
        members.extend(added.map(|(name, value)| (name, value.to_string())));
        Some(if same { text.to_owned() } else { json::object_of(members) })
    }

    pub(crate) fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("type".into(), self.type_name.clone().into());
        map.insert("keyslots".into(), ids_value(&self.keyslots));
        append(&mut map, &self.extra);
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str =
        r#"{"b":1.50,"keyslots":["1"],"a":{"z":1e3,"y":-0,"n":184467440737095516160},"type":"x","s":"\u00e9\/"}"#;

    #[test]
    fn a_foreign_token_is_spelled_as_it_was_but_for_what_changed() {
        let mut token = Token::from_json(FOREIGN).unwrap();
        assert_eq!((token.type_name.as_str(), token.keyslots.as_slice()), ("x", &[KeyslotId(1)][..]));
        assert_eq!(token.to_json(), FOREIGN);
        token.keyslots.push(KeyslotId(2));
        assert_eq!(token.to_json(), FOREIGN.replace(r#"["1"]"#, r#"["1","2"]"#));
        token.keyslots.clear();
        assert_eq!(token.to_json(), FOREIGN.replace(r#"["1"]"#, "[]"));
        token.extra.shift_remove("b");
        token.extra.insert("new".into(), 1.into());
        let text = token.to_json();
        assert!(text.starts_with(r#"{"keyslots":[],"a":{"z":1e3,"#) && text.ends_with(r#","new":1}"#), "{text}");
        let spaced = "{ \"type\" : \"x\", \"keyslots\" : [ ] }";
        assert_eq!(Token::from_json(&format!(" {spaced}\n")).unwrap().to_json(), spaced);
        let twice = Token::from_json(r#"{"type":"a","keyslots":[],"type":"b"}"#).unwrap();
        assert_eq!(twice.type_name, "b");
        assert_eq!(Token::from_json(&twice.to_json()).unwrap().type_name, "b");
    }

    #[test]
    fn what_is_no_token_is_refused_by_name() {
        for (text, said) in [
            ("", "object"),
            ("[]", "object"),
            ("{", "json-syntax"),
            ("{}", "type"),
            (r#"{"type":"","keyslots":[]}"#, "type"),
            (r#"{"type":1,"keyslots":[]}"#, "type"),
            (r#"{"type":"x"}"#, "keyslots"),
            (r#"{"type":"x","keyslots":{}}"#, "keyslots"),
            (r#"{"type":"x","keyslots":[1]}"#, "keyslots"),
            (r#"{"type":"x","keyslots":["01"]}"#, "01"),
            (r#"{"type":"luks2-new","keyslots":[]}"#, "reserved"),
            (r#"{"type":"luks2-keyring","keyslots":[]}"#, "exactly"),
            (r#"{"type":"luks2-keyring","keyslots":[],"key_description":1}"#, "exactly"),
            (r#"{"type":"luks2-keyring","keyslots":[],"key_description":"a","b":1}"#, "exactly"),
            (r#"{"type":"luks2-keyring","keyslots":[],"key_description":""}"#, "0 bytes"),
        ] {
            let error = Token::from_json(text).unwrap_err();
            assert!(matches!(&error, Error::TokenInvalid { problem } if problem.contains(said)), "{text}: {error}");
        }
        let deep = format!(r#"{{"type":"x","keyslots":[],"a":{}1{}}}"#, "[".repeat(64), "]".repeat(64));
        assert!(Token::from_json(&deep).is_err());
        assert!(Token::keyring(&"x".repeat(4096), Vec::new()).is_err());
        let token = Token::keyring("my key", vec![KeyslotId(3)]).unwrap();
        assert_eq!(token.key_description(), Some("my key"));
        assert_eq!(token.to_json(), r#"{"type":"luks2-keyring","keyslots":["3"],"key_description":"my key"}"#);
        assert_eq!(Token::new("x", Vec::new(), token.extra).key_description(), None);
    }
}
