//! An open volume that is unlocked again: where its header lies, which keyslot, which tokens, and the bounds.

use std::path::{Path, PathBuf};

use clap::Args;
use luks::Metadata;
use session::{RunDir, Status, UnlockAgain};

use super::key::KeyArgs;
use super::target::LimitArgs;
use super::token::TokenArgs;
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
    token: TokenArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// Refuse a header that this policy does not accept, either: default, strict, or a TOML file. The one of `open` goes on holding
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Bounds")]
    pub(crate) policy: Option<PathBuf>,
}

impl AgainArgs {
    /// The source of the passphrase of the open volume `name`, and what the session is told. An unknown name is said here,
    /// before anybody types a passphrase.
    pub(crate) fn source(&self, runs: &RunDir, name: &str) -> Result<(KeySource, UnlockAgain), Failure> {
        let policy = self.policy.as_deref().map(session::policy::load).transpose().map_err(Failure::of_session)?;
        let mut source = KeySource::unlocking(&self.key, None)?.after_tokens(&self.token, &self.key);
        let status = session::status(runs, name).map_err(Failure::of_session)?;
        self.look_for_tokens(&status, &mut source)?;
        let again = UnlockAgain {
            header: self.header.as_deref().map(image::resolve).transpose()?,
            keyslot: self.key_slot,
            limits: image::limits(&self.limits),
            policy,
            tries: source.tries(),
        };
        Ok((source, again))
    }

    /// Reads the keys of the tokens in the volume's header. One that cannot be read is no matter where tokens were not asked
    /// for: whoever unlocks says it.
    fn look_for_tokens(&self, status: &Status, source: &mut KeySource) -> Result<(), Failure> {
        if !source.tries_tokens() {
            return Ok(());
        }
        let path = self.header.as_ref().or(status.header.as_ref()).or(status.image.as_ref());
        let found = match path {
            Some(path) => self.metadata(path).map(|metadata| (path, metadata)),
            None => Err(Failure::wrong(format!("{}: where its header lies is not known", status.name))
                .with_hint("name it with --header FILE")),
        };
        match found {
            Ok((path, metadata)) => {
                source.look_for_tokens(path, &metadata, self.key_slot, luks::Purpose::DefaultSegment)
            }
            Err(failure) if self.token.is_given() => Err(failure),
            Err(failure) => {
                log::info!("no tokens: {}", failure.message());
                Ok(())
            }
        }
    }

    fn metadata(&self, path: &Path) -> Result<Metadata, Failure> {
        let disk = image::open_disk(&image::resolve(path)?, true)?;
        let header = luks::load_any(&disk, &image::limits(&self.limits));
        Ok(header.map_err(|error| Failure::of_luks(path, error))?.metadata().into_owned())
    }
}
