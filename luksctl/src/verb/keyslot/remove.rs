//! `keyslot remove IMAGE [KEYFILE]`: destroys the keyslot that a passphrase opens. The last one only with `--force` or a
//! typed YES: without it the data is lost for good.

use std::path::PathBuf;

use clap::Args;

use secret::Purpose;

use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::keys::KeySource;
use crate::output;
use crate::unlock::{self, Ask};

/// Arguments of `keyslot remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Read the passphrase to remove from this file
    #[arg(value_name = "KEYFILE")]
    positional_key_file: Option<PathBuf>,
    /// Remove even the last keyslot that opens the volume: its data is lost
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Removes the keyslot that the passphrase opens.
pub(crate) fn run(args: &RemoveArgs, common: &Common) -> Result<Code, Failure> {
    let mut source = KeySource::unlocking(&args.key, args.positional_key_file.as_deref())?;
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.container(&image::limits(&args.limits))?;
    let ask = Ask { keyslot: None, unlock: luks::Purpose::AnyDigest, purpose: Purpose::PassphraseToRemove };
    let (key, _passphrase) = unlock::unlock(&image, &container, &ask, &mut source)?;
    let id = key.keyslot().ok_or_else(|| Failure::wrong("no keyslot was opened by this passphrase"))?;
    drop(key);
    super::kill::destroy(&image, &mut container, id, args.force, common)?;
    output::words(&format!("Keyslot {id} removed."));
    Ok(Code::Success)
}
