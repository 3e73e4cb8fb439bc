//! `keyslot add IMAGE [NEWKEYFILE]`: one more passphrase. The existing one comes first, then the new one.

use std::path::PathBuf;

use clap::Args;

use secret::Purpose;
use serde_json::json;
use session::SystemEnv;

use crate::args::Common;
use crate::args::kdf::KdfArgs;
use crate::args::key::{KeyArgs, NewKeyArgs, NewKeyFileArgs};
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::keys::KeySource;
use crate::unlock::{self, Ask};
use crate::{kdf, output};

/// Arguments of `keyslot add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Read the new passphrase from this file
    #[arg(value_name = "NEWKEYFILE")]
    new_key_file: Option<PathBuf>,
    /// Number of the new keyslot; with --new-key-slot, of the one that unlocks
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    /// Number of the new keyslot
    #[arg(long, value_name = "N")]
    new_key_slot: Option<u32>,
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
    #[command(flatten)]
    report: ReportArgs,
}

/// Adds a keyslot.
pub(crate) fn run(args: &AddArgs, common: &Common) -> Result<Code, Failure> {
    let (existing, wanted) = match args.new_key_slot {
        Some(new) => (args.key_slot, Some(new)),
        None => (None, args.key_slot),
    };
    let mut source = KeySource::unlocking(&args.key, None)?;
    let new_source = KeySource::new_beside(&args.new_file, args.new_key_file.as_ref(), args.key.tries)?;
    let mut new_source = new_source.asking_once(common.batch_mode && !args.new_key.verify_passphrase);
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.container(&image::limits(&args.limits))?;
    let ask = Ask { keyslot: existing, unlock: luks::Purpose::DefaultSegment, purpose: Purpose::ExistingPassphrase };
    let (key, _passphrase) = unlock::unlock(&image, &container, &ask, &mut source)?;
    let passphrase = new_source.new_passphrase(&image.path().display().to_string(), &args.new_key)?;
    let system = SystemEnv;
    let new = kdf::new_keyslot_for(&container, &args.kdf, wanted, &system.env())
        .map_err(|error| Failure::of_luks(image.path(), error))?;
    let id = container
        .keyslot_add(&system.env(), &key, &passphrase, &new)
        .map_err(|error| Failure::of_luks(image.path(), error))?;
    if args.report.json {
        output::json(&json!({ "image": output::path(image.path()), "keyslot": id.0 }))?;
    } else {
        output::words(&format!("Keyslot {id} added and proven."));
    }
    Ok(Code::Success)
}
