//! Keyslots and digests. Format notes 2.6.

use crate::metadata::digest::Digest;
use crate::metadata::keyslot::Keyslot;
use crate::metadata::{ById, DigestId, KeyslotId};
use crate::rule::{Rule, Violation};

/// A passphrase slot is a member of exactly one digest: that digest says whether its key is the right one.
pub(crate) fn check_digests(
    keyslots: &ById<KeyslotId, Keyslot>,
    digests: &ById<DigestId, Digest>,
) -> Result<(), Violation> {
    for (id, _) in keyslots.iter().filter(|(_, keyslot)| keyslot.luks2().is_some()) {
        let count = digests.iter().filter(|(_, digest)| digest.keyslots.contains(&id)).count();
        if count != 1 {
            let value = format_args!("in {count} digests");
            return Err(Violation::new(Rule::KeyslotOneDigest, format!("keyslots.{id}"), value));
        }
    }
    Ok(())
}
