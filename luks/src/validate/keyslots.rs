//! Keyslots and digests. Format notes 2.6.

use std::collections::{BTreeMap, BTreeSet};

use crate::metadata::digest::Digest;
use crate::metadata::keyslot::Keyslot;
use crate::metadata::{ById, DigestId, KeyslotId};
use crate::rule::{Rule, Violation};

/// A passphrase slot is a member of exactly one digest: that digest says whether its key is the right one.
pub(crate) fn check_digests(
    keyslots: &ById<KeyslotId, Keyslot>,
    digests: &ById<DigestId, Digest>,
) -> Result<(), Violation> {
    // Counted once for all: a hostile header may hold thousands of both.
    let mut counts: BTreeMap<KeyslotId, usize> = BTreeMap::new();
    for (_, digest) in digests.iter() {
        let members: BTreeSet<KeyslotId> = digest.keyslots.iter().copied().collect();
        for id in members {
            *counts.entry(id).or_default() += 1;
        }
    }
    for (id, _) in keyslots.iter().filter(|(_, keyslot)| keyslot.luks2().is_some()) {
        let count = counts.get(&id).copied().unwrap_or(0);
        if count != 1 {
            let value = format_args!("in {count} digests");
            return Err(Violation::new(Rule::KeyslotOneDigest, format!("keyslots.{id}"), value));
        }
    }
    Ok(())
}
