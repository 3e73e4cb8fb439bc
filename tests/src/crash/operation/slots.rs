//! Tokens, flags, priority, names, unbound keyslots, conversion of a keyslot, and the change in place.

use luks::digest_check::DigestCost;
use luks::edit::ActivationFlag;
use luks::{Error, JsonMap, KeyslotId, Priority, SlotName, Token, TokenId};
use secret::Secret;

use super::{Operation, edit};
use crate::crash::sample::{self, cheap, secret};

/// A token that the edits below add.
fn token() -> Token {
    Token::new("mine", vec![KeyslotId(0)], JsonMap::new())
}

pub(super) fn operations() -> Vec<Operation> {
    let with_token = |operation| Operation { start: sample::with_second_token, ..operation };
    vec![
        edit("token add", |container, _| container.token_add(None, token()).map(drop)),
        with_token(edit("token replace", |container, _| container.token_replace(TokenId(5), token()))),
        with_token(edit("token remove", |container, _| container.token_remove(TokenId(5)))),
        edit("token assign", |container, _| container.token_assign(TokenId(3), KeyslotId(1))),
        edit("token unassign", |container, _| container.token_unassign(TokenId(3), KeyslotId(0))),
        edit("flags", |container, _| container.set_flags(&[ActivationFlag::AllowDiscards])),
        edit("keyslot priority", |container, _| container.set_keyslot_priority(KeyslotId(1), Priority::Prefer)),
        edit("keyslot name", |container, _| container.set_keyslot_name(KeyslotId(1), Some(&SlotName::new("backup")))),
        Operation {
            after: &[(0, "first"), (1, "other"), (2, "second")],
            ..edit("unbound keyslot add", |container, surroundings| {
                let env = surroundings.env();
                let key = Secret::fill_with(32, |bytes| env.rng.fill(bytes).map_err(Error::from))?;
                let (passphrase, cost) = (secret("second"), DigestCost::Minimal);
                container.keyslot_add_unbound(&env, &key, &passphrase, &cheap(), cost).map(drop)
            })
        },
        edit("keyslot convert", |container, surroundings| {
            container.keyslot_convert(&surroundings.env(), &secret("first"), None, &cheap()).map(drop)
        }),
        Operation {
            after: &[(0, "second"), (1, "other")],
            at_risk: &["first", "second"],
            ..edit("keyslot change in place", |container, surroundings| {
                let (old, new) = (secret("first"), secret("second"));
                container.keyslot_change_in_place(&surroundings.env(), &old, None, &new, &cheap()).map(drop)
            })
        },
    ]
}
