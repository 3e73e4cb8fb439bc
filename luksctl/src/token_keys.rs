//! Passphrases that tokens lead to: the keys of `luks2-keyring` tokens, read from the kernel's keyring before anybody is
//! asked, each for the keyslots of its token.
//!
//! Order as in cryptsetup: tokens by id; of their keyslots the preferred ones first, ignored ones only where the token or
//! the keyslot was asked for by number.

use std::collections::VecDeque;

use luks::{KeyslotId, Metadata, Priority, Purpose, Token, TokenId};
use secret::{KeyringKey, Secret};

use crate::args::token::TokenArgs;
use crate::output;

/// The passphrases of a container's tokens, one after the other.
pub(crate) struct TokenKeys {
    choice: TokenArgs,
    found: VecDeque<(KeyslotId, Secret)>,
    answered: u32,
    /// There was a token that leads to a passphrase of some keyslot.
    promising: bool,
    keyslot: Option<u32>,
}

impl TokenKeys {
    /// None yet: they come from the header.
    pub(crate) fn new(choice: &TokenArgs) -> TokenKeys {
        TokenKeys { choice: choice.clone(), found: VecDeque::new(), answered: 0, promising: false, keyslot: None }
    }

    /// Reads the keys of the tokens in `metadata` that may unlock what is asked for.
    pub(crate) fn look(&mut self, metadata: &Metadata, keyslot: Option<u32>, purpose: Purpose) {
        let mut tokens: Vec<(TokenId, &Token)> =
            metadata.tokens.iter().filter(|token| self.is_chosen(*token)).collect();
        tokens.sort_by_key(|(id, _)| *id);
        self.found.clear();
        for (id, token) in tokens {
            let Some(description) = token.key_description() else { continue };
            self.promising |= !token.keyslots.is_empty();
            let slots = self.slots_of(metadata, token, keyslot, purpose);
            if slots.is_empty() {
                continue;
            }
            match KeyringKey::new(description).read() {
                Ok(Some(passphrase)) => self.take(&slots, passphrase),
                Ok(None) => log::info!("token {id}: its key is not in the keyring"),
                Err(error) => output::words(&format!("luksctl: warning: token {id}: {error}")),
            }
        }
    }

    /// Whether nothing but a token may unlock.
    pub(crate) fn only(&self) -> bool {
        self.choice.token_only
    }

    /// Whether there was a token that could have unlocked, had its key been in the keyring.
    pub(crate) fn were_promising(&self) -> bool {
        self.promising
    }

    /// Passphrases that are left.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.found.len()).unwrap_or(u32::MAX)
    }

    /// Passphrases that were given out.
    pub(crate) fn answered(&self) -> u32 {
        self.answered
    }

    /// The keyslot of the last one that was given out, until there is none left.
    pub(crate) fn keyslot(&self) -> Option<u32> {
        self.keyslot
    }

    /// The next passphrase.
    pub(crate) fn next(&mut self) -> Option<Secret> {
        let next = self.found.pop_front();
        self.keyslot = next.as_ref().map(|(keyslot, _)| keyslot.0);
        self.answered += u32::from(next.is_some());
        next.map(|(_, passphrase)| passphrase)
    }

    fn is_chosen(&self, (id, token): (TokenId, &Token)) -> bool {
        self.choice.token_id.is_none_or(|wanted| wanted == id.0)
            && self.choice.token_type.as_ref().is_none_or(|wanted| *wanted == token.type_name)
    }

    fn slots_of(&self, metadata: &Metadata, token: &Token, wanted: Option<u32>, purpose: Purpose) -> Vec<KeyslotId> {
        let segment = match purpose {
            Purpose::AnyDigest => None,
            Purpose::Segment(segment) => Some(segment),
            _ => Some(luks::unlock::default_segment(metadata)),
        };
        let opens = |id: KeyslotId| {
            metadata.digests.iter().any(|(_, digest)| {
                digest.keyslots.contains(&id) && segment.is_none_or(|segment| digest.segments.contains(&segment))
            })
        };
        let by_number = self.choice.token_id.is_some() || wanted.is_some();
        let mut slots: Vec<(bool, KeyslotId)> = Vec::new();
        for id in token.keyslots.iter().copied().filter(|id| wanted.is_none_or(|wanted| wanted == id.0) && opens(*id)) {
            match metadata.keyslots.get(id).filter(|slot| slot.luks2().is_some()).map(|slot| slot.priority) {
                Some(Some(Priority::Prefer)) => slots.push((false, id)),
                Some(Some(Priority::Ignore)) if !by_number => {}
                Some(_) => slots.push((true, id)),
                None => {}
            }
        }
        slots.sort_by_key(|(later, _)| *later);
        slots.into_iter().map(|(_, id)| id).collect()
    }

    fn take(&mut self, slots: &[KeyslotId], passphrase: Secret) {
        for id in &slots[1..] {
            match Secret::copy_of(passphrase.expose()) {
                Ok(copy) => self.found.push_back((*id, copy)),
                Err(error) => output::words(&format!("luksctl: warning: {error}")),
            }
        }
        let rest = slots.len() - 1;
        self.found.insert(self.found.len().saturating_sub(rest), (slots[0], passphrase));
    }
}
