//! `keyslot convert IMAGE`: the same passphrase behind another key derivation or another keyslot cipher. The new keyslot is
//! written and proven before the old one goes; number, tokens, priority and name stay. Without room `--in-place` as in `change`.

use clap::Args;
use luks::{AnyContainer, KeyslotId};
use secret::Purpose;
use session::SystemEnv;

use crate::args::Common;
use crate::args::kdf::KdfArgs;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::keys::KeySource;
use crate::unlock::{self, Ask};
use crate::verb::keyslot::change::replace;
use crate::{kdf, output};

/// Arguments of `keyslot convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Convert this keyslot, not the one that the passphrase opens first
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    /// Where there is no room for a second keyslot, overwrite the old one: a crash just then loses it
    #[arg(long)]
    in_place: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    kdf: KdfArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Converts a keyslot.
pub(crate) fn run(args: &ConvertArgs, _common: &Common) -> Result<Code, Failure> {
    let mut source = KeySource::unlocking(&args.key, None)?;
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let container = image.luks2(&image::limits(&args.limits), "key derivation but PBKDF2")?;
    let ask = Ask { keyslot: args.key_slot, unlock: luks::Purpose::AnyDigest, purpose: Purpose::ExistingPassphrase };
    let (key, passphrase) = unlock::unlock(&image, &container, &ask, &mut source)?;
    let id = args.key_slot.map(KeyslotId).or(key.keyslot());
    drop(key);
    let system = SystemEnv;
    let settings = kdf::new_keyslot(&args.kdf, None, &system.env());
    let settings = settings.map_err(|error| Failure::of_luks(image.path(), error))?;
    let mut container = AnyContainer::Luks2(Box::new(container));
    let converted = replace(&image, &mut container, (&passphrase, id, &passphrase), &settings, args.in_place)?;
    output::words(&format!("Keyslot {converted} is converted and proven."));
    Ok(Code::Success)
}
