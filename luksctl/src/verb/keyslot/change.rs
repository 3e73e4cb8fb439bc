//! `keyslot change IMAGE [NEWKEYFILE]`: replaces a passphrase. The new keyslot is written and proven before the old one
//! goes; the number stays. Where there is no room for both this is refused, unless `--in-place` takes the risk.

use std::path::PathBuf;

use clap::Args;
use luks::{Error, KeyslotId, NewKeyslot};
use secret::{Purpose, Secret};
use session::SystemEnv;

use crate::args::Common;
use crate::args::kdf::KdfArgs;
use crate::args::key::{KeyArgs, NewKeyArgs, NewKeyFileArgs};
use crate::args::target::{LimitArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, AnyFileContainer, Image};
use crate::keys::KeySource;
use crate::unlock::{self, Ask};
use crate::{kdf, output};

/// Arguments of `keyslot change`.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Read the new passphrase from this file
    #[arg(value_name = "NEWKEYFILE")]
    new_key_file: Option<PathBuf>,
    /// Change this keyslot, not the one that the passphrase opens first
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    /// Where there is no room for a second keyslot, overwrite the old one: a crash just then loses it
    #[arg(long)]
    in_place: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    new_file: NewKeyFileArgs,
    #[command(flatten)]
    new_key: NewKeyArgs,
    #[command(flatten)]
    kdf: KdfArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Changes a passphrase.
pub(crate) fn run(args: &ChangeArgs, common: &Common) -> Result<Code, Failure> {
    let mut source = KeySource::unlocking(&args.key, None)?;
    let new_source = KeySource::new_beside(&args.new_file, args.new_key_file.as_ref(), args.key.tries)?;
    let mut new_source = new_source.asking_once(common.batch_mode && !args.new_key.verify_passphrase);
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.container(&image::limits(&args.limits))?;
    let ask = Ask { keyslot: args.key_slot, unlock: luks::Purpose::AnyDigest, purpose: Purpose::ExistingPassphrase };
    let (key, old) = unlock::unlock(&image, &container, &ask, &mut source)?;
    let new = new_source.new_passphrase(&image.path().display().to_string(), &args.new_key)?;
    let system = SystemEnv;
    let settings = kdf::new_keyslot_for(&container, &args.kdf, None, &system.env())
        .map_err(|error| Failure::of_luks(image.path(), error))?;
    let id = args.key_slot.map(KeyslotId).or(key.keyslot());
    drop(key);
    let changed = replace(&image, &mut container, (&old, id, &new), &settings, args.in_place)?;
    output::words(&format!("Keyslot {changed} has the new passphrase."));
    Ok(Code::Success)
}

/// Replaces the keyslot that `old` opens by one that `new` opens; where there is no room for both, over it, if that is
/// allowed. Shared with `keyslot convert`.
pub(super) fn replace(
    image: &Image,
    container: &mut AnyFileContainer,
    (old, id, new): (&Secret, Option<KeyslotId>, &Secret),
    settings: &NewKeyslot,
    in_place: bool,
) -> Result<KeyslotId, Failure> {
    let (system, path) = (SystemEnv, image.path());
    let env = system.env();
    let outcome = match container.keyslot_change(&env, old, id, new, settings) {
        Err(error) if has_no_room(&error) && in_place => {
            output::words(
                "luksctl: warning: no room for a second keyslot: the old one is overwritten. A crash or power cut in the \
                 next seconds loses it",
            );
            container.keyslot_change_in_place(&env, old, id, new, settings)
        }
        outcome => outcome,
    };
    outcome.map_err(|error| {
        let no_room = has_no_room(&error);
        let failure = Failure::of_luks(path, error);
        if !no_room {
            return failure;
        }
        failure.with_hint(format!(
            "`luksctl keyslot remove {}` makes room; or --in-place overwrites the old one, which a crash just then loses",
            path.display()
        ))
    })
}

fn has_no_room(error: &Error) -> bool {
    matches!(error, Error::NoFreeArea { .. } | Error::NoFreeKeyslot { .. } | Error::JsonFull { .. })
}
