//! `keyslot remove IMAGE [KEYFILE]`: destroys the keyslot that a passphrase opens, after the passphrase of one that stays.
//! The last one only with `--force` or a typed YES: without it the data is lost for good.

use std::path::PathBuf;

use clap::Args;

use secret::Purpose;

use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, AnyFileContainer, Image};
use crate::keys::KeySource;
use crate::output;
use crate::unlock::{self, Ask};
use crate::verb::keyslot::list;

/// Arguments of `keyslot remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Read the passphrase to remove from this file
    #[arg(value_name = "KEYFILE")]
    positional_key_file: Option<PathBuf>,
    /// Read the passphrase of a keyslot that stays from this file [default: it is asked for, but not with -q]
    #[arg(long, value_name = "FILE")]
    remaining_key_file: Option<PathBuf>,
    /// Remove even the last keyslot that opens the volume: its data is lost
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Removes the keyslot that the passphrase opens, after one that stays was seen to open.
pub(crate) fn run(args: &RemoveArgs, common: &Common) -> Result<Code, Failure> {
    let asks = !common.batch_mode && !args.force;
    remove(args, asks || args.remaining_key_file.is_some(), common)
}

/// The same under cryptsetup's name: scripts give it one passphrase, so a second one is asked for only where it is named.
pub(crate) fn run_as_cryptsetup(args: &RemoveArgs, common: &Common) -> Result<Code, Failure> {
    remove(args, args.remaining_key_file.is_some(), common)
}

fn remove(args: &RemoveArgs, proof: bool, common: &Common) -> Result<Code, Failure> {
    let mut source = KeySource::unlocking(&args.key, args.positional_key_file.as_deref())?;
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.container(&image::limits(&args.limits))?;
    let ask = Ask { keyslot: None, unlock: luks::Purpose::AnyDigest, purpose: Purpose::PassphraseToRemove };
    let (key, _passphrase) = unlock::unlock(&image, &container, &ask, &mut source)?;
    let id = key.keyslot().ok_or_else(|| Failure::wrong("no keyslot was opened by this passphrase"))?;
    drop(key);
    // Of the last one nobody can prove another; `destroy` asks about that.
    if proof && another_opens(&container, id) {
        let remaining = KeyArgs {
            key_file: args.remaining_key_file.clone(),
            key_fd: None,
            keyfile_size: None,
            keyfile_offset: None,
            tries: args.key.tries,
        };
        let mut remaining = KeySource::unlocking(&remaining, None)?;
        super::kill::prove_another(&image, &container, id, &mut remaining)?;
    }
    super::kill::destroy(&image, &mut container, id, args.force, common)?;
    output::words(&format!("Keyslot {id} removed."));
    Ok(Code::Success)
}

/// Whether a keyslot other than `id` opens the volume.
fn another_opens(container: &AnyFileContainer, id: luks::KeyslotId) -> bool {
    let metadata = container.metadata();
    metadata.keyslots.ids().any(|other| other != id && list::is_bound(&metadata, other))
}
