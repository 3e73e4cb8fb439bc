//! Tokens added, replaced, removed, and tied to keyslots. Nothing but the header is written.

use block::BlockIo;

use crate::container::Container;
use crate::error::Error;
use crate::limits::TOKENS;
use crate::metadata::token::Token;
use crate::metadata::{KeyslotId, Metadata, TokenId};
use crate::requirements::Action;
use crate::store::HeaderStore;

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Adds a token at `id`, or at the lowest free id.
    ///
    /// # Errors
    /// [`Error::TokenInvalid`] for a token of a reserved type that breaks its rules, [`Error::KeyslotMissing`] for a keyslot
    /// that it lists and the container has not, [`Error::TokenRange`], [`Error::TokenInUse`], [`Error::NoFreeToken`],
    /// [`Error::JsonFull`]; those of every change.
    pub fn token_add(&mut self, id: Option<TokenId>, token: Token) -> Result<TokenId, Error> {
        token.check_reserved()?;
        self.change_tokens(|metadata| {
            let id = match id {
                Some(id) if id.0 >= TOKENS => return Err(Error::TokenRange { token: id }),
                Some(id) if metadata.tokens.contains(id) => return Err(Error::TokenInUse { token: id }),
                Some(id) => id,
                None => metadata.tokens.first_free(TOKENS).ok_or(Error::NoFreeToken { max: TOKENS })?,
            };
            check_keyslots(metadata, &token)?;
            metadata.tokens.insert(id, token);
            Ok(id)
        })
    }

    /// Puts a token at the place of the one that has `id`.
    ///
    /// # Errors
    /// [`Error::TokenMissing`], and as [`Container::token_add`].
    pub fn token_replace(&mut self, id: TokenId, token: Token) -> Result<(), Error> {
        token.check_reserved()?;
        self.change_tokens(|metadata| {
            if !metadata.tokens.contains(id) {
                return Err(Error::TokenMissing { token: id });
            }
            check_keyslots(metadata, &token)?;
            metadata.tokens.insert(id, token);
            Ok(())
        })
    }

    /// Removes a token. Its keyslots stay.
    ///
    /// # Errors
    /// [`Error::TokenMissing`]; those of every change.
    pub fn token_remove(&mut self, id: TokenId) -> Result<(), Error> {
        self.change_tokens(|metadata| match metadata.tokens.remove(id) {
            Some(_) => Ok(()),
            None => Err(Error::TokenMissing { token: id }),
        })
    }

    /// Has a token lead to one more keyslot. One that it leads to already changes nothing.
    ///
    /// # Errors
    /// [`Error::TokenMissing`], [`Error::KeyslotMissing`]; those of every change.
    pub fn token_assign(&mut self, id: TokenId, keyslot: KeyslotId) -> Result<(), Error> {
        self.change_tokens(|metadata| {
            if !metadata.keyslots.contains(keyslot) {
                return Err(Error::KeyslotMissing { keyslot });
            }
            let token = metadata.tokens.get_mut(id).ok_or(Error::TokenMissing { token: id })?;
            if !token.keyslots.contains(&keyslot) {
                token.keyslots.push(keyslot);
            }
            Ok(())
        })
    }

    /// Has a token no longer lead to a keyslot.
    ///
    /// # Errors
    /// [`Error::TokenMissing`], [`Error::TokenUnassigned`] if it did not; those of every change.
    pub fn token_unassign(&mut self, id: TokenId, keyslot: KeyslotId) -> Result<(), Error> {
        self.change_tokens(|metadata| {
            let token = metadata.tokens.get_mut(id).ok_or(Error::TokenMissing { token: id })?;
            if !token.keyslots.contains(&keyslot) {
                return Err(Error::TokenUnassigned { token: id, keyslot });
            }
            token.keyslots.retain(|listed| *listed != keyslot);
            Ok(())
        })
    }

    /// Writes the header with what `change` made of its metadata, unless that is what stands there.
    fn change_tokens<R>(&mut self, change: impl FnOnce(&mut Metadata) -> Result<R, Error>) -> Result<R, Error> {
        self.edit(Action::Change, |edit| {
            let mut metadata = edit.header.metadata().clone();
            let result = change(&mut metadata)?;
            if metadata != *edit.header.metadata() {
                edit.commit(metadata)?;
            }
            Ok(result)
        })
    }
}

fn check_keyslots(metadata: &Metadata, token: &Token) -> Result<(), Error> {
    match token.keyslots.iter().find(|listed| !metadata.keyslots.contains(**listed)) {
        Some(missing) => Err(Error::KeyslotMissing { keyslot: *missing }),
        None => Ok(()),
    }
}
