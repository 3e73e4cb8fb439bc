//! What a keyslot is for, who made it and when: a token of our own, which cryptsetup keeps and shows like any other.
//!
//! ```json
//! {"type":"luksctl-slot","keyslots":["1"],"name":"backup key in the safe","made_by":"anna@office","made_unix_s":1770000000}
//! ```
//!
//! `keyslots` lists the one keyslot that it speaks of: whoever kills that keyslot takes its id out, and a name without a
//! keyslot names nothing. `made_by` and `made_unix_s` may be missing. All of it is a remark that nothing protects: whoever
//! can write the header can write here what he likes, so nothing is decided by it, and who shows it escapes it.

use serde_json::Value;

use crate::error::Error;
use crate::json::JsonMap;
use crate::metadata::token::Token;
use crate::metadata::{KeyslotId, Metadata, TokenId};

/// The type of these tokens.
pub const TYPE: &str = "luksctl-slot";
/// Longest text, in bytes: 32 of them fit the smallest JSON area beside everything else.
pub const TEXT_BYTES_MAX: usize = 100;

/// The name of a keyslot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotName {
    /// What the keyslot is for.
    pub text: String,
    /// Who made it.
    pub made_by: Option<String>,
    /// When, in seconds since 1970-01-01 UTC.
    pub made_unix_s: Option<u64>,
}

impl SlotName {
    /// A name with nothing but its text.
    pub fn new(text: impl Into<String>) -> SlotName {
        SlotName { text: text.into(), made_by: None, made_unix_s: None }
    }

    /// The name of a keyslot, if it has one; of several tokens the first.
    pub fn of(metadata: &Metadata, keyslot: KeyslotId) -> Option<SlotName> {
        metadata.tokens.iter().find(|(_, token)| names(token, keyslot)).and_then(|(_, token)| SlotName::read(token))
    }

    /// What a token of this type says.
    pub fn read(token: &Token) -> Option<SlotName> {
        if token.type_name != TYPE {
            return None;
        }
        let text = |member: &str| token.extra.get(member).and_then(Value::as_str).map(str::to_owned);
        Some(SlotName {
            text: text("name")?,
            made_by: text("made_by"),
            made_unix_s: token.extra.get("made_unix_s").and_then(Value::as_u64),
        })
    }

    /// Whether the texts can be written.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a text that is empty, too long, or would command a terminal.
    pub fn check(&self) -> Result<(), Error> {
        let texts = [("name of a keyslot", Some(&self.text)), ("maker of a keyslot", self.made_by.as_ref())];
        for (parameter, text) in texts.into_iter().filter_map(|(parameter, text)| Some((parameter, text?))) {
            if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
                let value = format!("{:?}", text.chars().take(80).collect::<String>());
                let allowed = format!("1 to {TEXT_BYTES_MAX} bytes without control characters");
                return Err(Error::Parameter { parameter, value, allowed });
            }
        }
        Ok(())
    }

    /// The token that says this of `keyslot`.
    pub(crate) fn token(&self, keyslot: KeyslotId) -> Token {
        let mut extra = JsonMap::new();
        extra.insert("name".into(), self.text.clone().into());
        if let Some(made_by) = &self.made_by {
            extra.insert("made_by".into(), made_by.clone().into());
        }
        if let Some(made_unix_s) = self.made_unix_s {
            extra.insert("made_unix_s".into(), made_unix_s.into());
        }
        Token::new(TYPE, vec![keyslot], extra)
    }

    /// Gives `keyslot` this name, or none, in place of the one that it has.
    ///
    /// # Errors
    /// [`Error::NoFreeToken`]
    pub(crate) fn put(metadata: &mut Metadata, keyslot: KeyslotId, name: Option<&SlotName>) -> Result<(), Error> {
        let known: Option<TokenId> = metadata.tokens.iter().find(|(_, token)| names(token, keyslot)).map(|(id, _)| id);
        // One of several keyslots of such a token, as another tool may have left it: the others keep it.
        for (_, token) in metadata.tokens.iter_mut().filter(|(_, token)| names(token, keyslot)) {
            token.keyslots.retain(|listed| *listed != keyslot);
        }
        metadata.tokens.retain(|_, token| token.type_name != TYPE || !token.keyslots.is_empty());
        let Some(name) = name else { return Ok(()) };
        let max = crate::limits::TOKENS;
        let free = known.filter(|id| id.0 < max && !metadata.tokens.contains(*id));
        let id = free.or_else(|| metadata.tokens.first_free(max)).ok_or(Error::NoFreeToken { max })?;
        metadata.tokens.insert(id, name.token(keyslot));
        Ok(())
    }
}

fn names(token: &Token, keyslot: KeyslotId) -> bool {
    token.type_name == TYPE && token.keyslots.contains(&keyslot)
}
