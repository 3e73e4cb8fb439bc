//! Unbound keyslots: a key of its own behind a passphrase, with a digest that no segment belongs to.
//!
//! Such a key opens nothing in this container; it is kept here for somebody else. Source: luks2-format §3.7, §4.

use block::BlockIo;
use secret::Secret;

use crate::container::Container;
use crate::digest_check::{DigestCost, make_digest};
use crate::edit::{NewKeyslot, Staged};
use crate::env::Env;
use crate::error::Error;
use crate::limits::DIGESTS;
use crate::metadata::{DigestId, KeyslotId};
use crate::requirements::{self, Action};
use crate::store::HeaderStore;
use crate::volume_key;

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Adds a keyslot in which `passphrase` opens `key`, which is no key of this container. `cost` is that of its digest,
    /// whose hash is `parameters.hash`.
    ///
    /// # Errors
    /// As [`Container::keyslot_add`]; [`Error::NoFreeDigest`], [`Error::Parameter`] for a key that is empty or over the limit.
    pub fn keyslot_add_unbound(
        &mut self,
        env: &Env<'_>,
        key: &Secret,
        passphrase: &Secret,
        parameters: &NewKeyslot,
        cost: DigestCost,
    ) -> Result<KeyslotId, Error> {
        requirements::check(&self.header.metadata().config, Action::Change)?;
        let most_bytes = self.limits.key_bytes as usize;
        if key.is_empty() || key.len() > most_bytes {
            let (value, allowed) = (format!("{} bytes", key.len()), format!("1 to {most_bytes} bytes"));
            return Err(Error::Parameter { parameter: "key size", value, allowed });
        }
        let mut metadata = self.header.metadata().clone();
        let free = metadata.digests.first_free(DIGESTS);
        let digest: DigestId = free.ok_or(Error::NoFreeDigest { max: DIGESTS })?;
        metadata.digests.insert(digest, make_digest(env, cost, parameters.hash, key)?);
        let key = volume_key::verify(&metadata, &self.limits, digest, Secret::copy_of(key.expose())?)?;
        let staged = Staged::new(&metadata, env, &self.limits, &key, passphrase, parameters)?;
        let id = staged.id;
        self.write_staged(staged)?;
        self.prove(env, &key, id, passphrase)?;
        Ok(id)
    }
}
