//! An open volume that is unlocked again: where its header lies, which keyslot, and the bounds.

use std::path::PathBuf;

use clap::Args;
use session::UnlockAgain;

use super::key::KeyArgs;
use super::target::LimitArgs;
use crate::failure::Failure;
use crate::image;
use crate::keys::KeySource;

/// How an open volume is unlocked again.
#[derive(Debug, Clone, Args)]
pub(crate) struct AgainArgs {
    /// The LUKS header lies in this file or device [default: where it was when the volume was opened]
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,
    /// Try only this keyslot
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// Refuse a header that this policy does not accept: default, strict, or a TOML file [default: the one of `open`, where a
    /// server remembers it]
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Bounds")]
    policy: Option<PathBuf>,
}

impl AgainArgs {
    /// The source of the passphrase, and what the session is told.
    pub(crate) fn source(&self) -> Result<(KeySource, UnlockAgain), Failure> {
        let source = KeySource::unlocking(&self.key, None)?;
        let again = UnlockAgain {
            header: self.header.as_deref().map(image::resolve).transpose()?,
            keyslot: self.key_slot,
            limits: image::limits(&self.limits),
            policy: self.policy.as_deref().map(session::policy::load).transpose().map_err(Failure::of_session)?,
            tries: source.tries(),
        };
        Ok((source, again))
    }
}
