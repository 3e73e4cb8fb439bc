//! The steps that change nothing but the metadata: tokens, names of keyslots, priorities, flags, texts.

use luks::{ActivationFlag, Error, KeyslotId, Priority, SlotName, Token, TokenId};
use serde_json::Value;

use super::model::{IDS, Note, first_free, get, put};
use super::{Pair, UUIDS};

const NAMES: [Option<&str>; 4] =
    [None, Some("a"), Some("of forty-seven bytes, which is all that it takes!"), Some("ü")];
const SLOT_NAMES: [&str; 4] = ["safe", "ü\u{1F511}", "", "a\u{1b}[2J"];
/// Tokens as their makers spell them; `@` becomes the list of keyslots.
const TOKENS: [&str; 8] = [
    r#"{"type":"x","keyslots":@}"#,
    r#"{ "keyslots" : @ , "n":1e2,"type":"systemd-tpm2","s":"é\/"}"#,
    r#"{"type":"luks2-keyring","keyslots":@,"key_description":"k"}"#,
    r#"{"type":"luksctl-slot","keyslots":@,"name":"shared"}"#,
    r#"{"type":"clevis","keyslots":@,"jwe":{"a":[{"deep":[1,2,3]}],"b":null,"c":-0.5}}"#,
    r#"{"type":"luks2-nonesuch","keyslots":@}"#,
    r#"{"type":"long","keyslots":@,"text":"LONG"}"#,
    r#"["type","keyslots",@]"#,
];
/// Instead of `LONG`: four of them fill the metadata.
const LONG: usize = 3000;

/// A token's text, and the note that the model takes of it.
fn token(choice: u8, listed: u8) -> (String, Option<Note>) {
    let keyslots: Vec<u32> = (0..4).filter(|bit| listed >> bit & 1 != 0).map(|bit| [0, 1, 2, 5][bit]).collect();
    let names: Vec<String> = keyslots.iter().map(|id| format!("{:?}", id.to_string())).collect();
    let text = TOKENS[usize::from(choice) % TOKENS.len()].replace('@', &format!("[{}]", names.join(",")));
    let text = text.replace("LONG", &"l".repeat(LONG));
    let Ok(Value::Object(mut members)) = serde_json::from_str(&text) else { return (text, None) };
    let type_name = members["type"].as_str().expect("a type").to_owned();
    if type_name == "luks2-nonesuch" {
        return (text, None);
    }
    members.shift_remove("type");
    members.shift_remove("keyslots");
    let note = Note { type_name, keyslots, rest: Value::Object(members).to_string(), spelled: Some(text.clone()) };
    (text, Some(note))
}

impl Pair<'_> {
    /// `place`: bit 7 whether there is a wish for an id, which the low bits are.
    pub(super) fn token_add(&mut self, place: u8, choice: u8) {
        let (text, note) = token(choice >> 4, choice);
        let wish = (place & 0x80 != 0).then(|| u32::from(place & 0x7f) % 34);
        let done = Token::from_json(&text).and_then(|token| self.container.token_add(wish.map(TokenId), token));
        let Some(note) = note else {
            return assert!(matches!(done, Err(Error::TokenInvalid { .. })), "{done:?}");
        };
        let missing = note.keyslots.iter().any(|id| self.model.slot(*id).is_none());
        match done {
            Ok(TokenId(id)) => {
                assert_eq!(Some(id), wish.or(first_free(&self.model.tokens)));
                assert!(get(&self.model.tokens, id).is_none() && !missing);
                put(&mut self.model.tokens, id, note);
            }
            Err(Error::TokenRange { .. }) => assert!(wish.is_some_and(|id| id >= IDS)),
            Err(Error::TokenInUse { .. }) => assert!(get(&self.model.tokens, wish.expect("a wish")).is_some()),
            Err(Error::NoFreeToken { .. }) => assert_eq!(first_free(&self.model.tokens), None),
            Err(Error::KeyslotMissing { .. }) => assert!(missing),
            Err(error) => self.expect_full(&error),
        }
    }

    pub(super) fn token_replace(&mut self, place: u8, choice: u8) {
        let (text, note) = token(choice >> 4, choice);
        let id = u32::from(place % 8);
        let done = Token::from_json(&text).and_then(|token| self.container.token_replace(TokenId(id), token));
        let Some(note) = note else {
            return assert!(matches!(done, Err(Error::TokenInvalid { .. })), "{done:?}");
        };
        let missing = note.keyslots.iter().any(|id| self.model.slot(*id).is_none());
        let there = get(&self.model.tokens, id).is_some();
        match done {
            Ok(()) => {
                assert!(there && !missing);
                put(&mut self.model.tokens, id, note);
            }
            Err(Error::TokenMissing { .. }) => assert!(!there),
            Err(Error::KeyslotMissing { .. }) => assert!(missing),
            Err(error) => self.expect_full(&error),
        }
    }

    pub(super) fn token_remove(&mut self, place: u8) {
        let id = u32::from(place % 8);
        match self.container.token_remove(TokenId(id)) {
            Ok(()) => {
                assert!(get(&self.model.tokens, id).is_some());
                self.model.tokens.retain(|(has, _)| *has != id);
            }
            Err(Error::TokenMissing { .. }) => assert!(get(&self.model.tokens, id).is_none()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn token_tie(&mut self, place: u8, keyslot: u8) {
        let (id, slot, assign) = (u32::from(place % 8), u32::from(keyslot % 8), keyslot & 0x80 == 0);
        let done = if assign {
            self.container.token_assign(TokenId(id), KeyslotId(slot))
        } else {
            self.container.token_unassign(TokenId(id), KeyslotId(slot))
        };
        let exists = self.model.slot(slot).is_some();
        let note = self.model.tokens.iter_mut().find(|(has, _)| *has == id).map(|(_, note)| note);
        match (done, note) {
            (Ok(()), Some(note)) if assign => {
                assert!(exists);
                note.list(slot);
            }
            (Ok(()), Some(note)) => {
                assert!(note.keyslots.contains(&slot));
                note.unlist(slot);
            }
            (Err(Error::TokenMissing { .. }), None) => {}
            (Err(Error::KeyslotMissing { .. }), _) => assert!(assign && !exists),
            (Err(Error::TokenUnassigned { .. }), Some(note)) => assert!(!assign && !note.keyslots.contains(&slot)),
            (Err(error), _) => self.expect_full(&error),
            (Ok(()), None) => panic!("there was no token {id}"),
        }
    }

    pub(super) fn slot_name(&mut self, keyslot: u8, choice: u8) {
        let slot = u32::from(keyslot % 8);
        let text = (choice % 5).checked_sub(1).map(|at| SLOT_NAMES[usize::from(at)]);
        let name = text.map(|text| SlotName {
            made_by: (choice & 0x80 != 0).then(|| "anna@office".to_owned()),
            made_unix_s: (choice & 0x40 != 0).then_some(1 << 40),
            ..SlotName::new(text)
        });
        let note = name.as_ref().map(|name| {
            let mut rest = serde_json::Map::new();
            rest.insert("name".into(), name.text.clone().into());
            rest.extend(name.made_by.clone().map(|by| ("made_by".to_owned(), by.into())));
            rest.extend(name.made_unix_s.map(|at| ("made_unix_s".to_owned(), at.into())));
            let rest = Value::Object(rest).to_string();
            Note { type_name: super::model::NAME_TYPE.to_owned(), keyslots: vec![slot], rest, spelled: None }
        });
        let allowed = text.is_none_or(|text| !text.is_empty() && !text.contains('\u{1b}'));
        match self.container.set_keyslot_name(KeyslotId(slot), name.as_ref()) {
            Ok(()) => {
                assert!(allowed && self.model.slot(slot).is_some());
                self.model.name(slot, note).expect("a free token");
            }
            Err(Error::Parameter { .. }) => assert!(!allowed),
            Err(Error::KeyslotMissing { .. }) => assert!(self.model.slot(slot).is_none()),
            Err(Error::NoFreeToken { .. }) => assert!(self.model.clone().name(slot, note).is_err()),
            Err(error) => self.expect_full(&error),
        }
    }

    pub(super) fn priority(&mut self, keyslot: u8, choice: u8) {
        let slot = u32::from(keyslot % 8);
        let (priority, kept) = match choice % 3 {
            0 => (Priority::Normal, None),
            1 => (Priority::Prefer, Some(Priority::Prefer)),
            _ => (Priority::Ignore, Some(Priority::Ignore)),
        };
        let known = self.model.slots.iter_mut().find(|(id, _)| *id == slot);
        match (self.container.set_keyslot_priority(KeyslotId(slot), priority), known) {
            (Ok(()), Some((_, known))) => known.priority = kept,
            (Err(Error::KeyslotMissing { .. }), None) => {}
            (Err(error), Some(_)) => self.expect_full(&error),
            (done, None) => panic!("{done:?}"),
        }
    }

    pub(super) fn flags(&mut self, choice: u8) {
        let chosen: Vec<ActivationFlag> = (0..7).filter(|bit| choice >> bit & 1 != 0).map(flag).collect();
        match self.container.set_flags(&chosen) {
            Ok(()) => self.model.flags = chosen.iter().map(|flag| flag.word()).collect(),
            Err(error) => self.expect_full(&error),
        }
    }

    pub(super) fn text(&mut self, choice: u8, which: u8) {
        let name = NAMES[usize::from(choice) % NAMES.len()];
        let done = match which % 3 {
            0 => self.container.set_label(name),
            1 => self.container.set_subsystem(name),
            _ => {
                let uuid = UUIDS[usize::from(choice) % UUIDS.len()];
                self.container.set_uuid(uuid).expect("set the UUID");
                return uuid.clone_into(&mut self.model.uuid);
            }
        };
        let name = name.unwrap_or_default();
        match done {
            Ok(()) => {
                assert!(name.len() < 48, "{name:?} was taken");
                let field = if which.is_multiple_of(3) { &mut self.model.label } else { &mut self.model.subsystem };
                name.clone_into(field);
            }
            Err(error) => assert!(name.len() >= 48, "{error}"),
        }
    }

    /// There was really little room left in the metadata.
    pub(super) fn expect_full(&self, error: &Error) {
        let text = self.container.header().metadata().to_text();
        let full = matches!(error, Error::JsonFull { .. }) && text.len() > (12 << 10) - LONG - 1500;
        assert!(full, "{error}, with {} bytes of metadata", text.len());
    }
}

fn flag(bit: usize) -> ActivationFlag {
    ActivationFlag::ALL[bit]
}
