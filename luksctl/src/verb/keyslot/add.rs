//! `keyslot add IMAGE [NEWKEYFILE]`: one more passphrase. The existing one comes first, then the new one; the volume key in
//! a file may take the place of the existing one. `--unbound` keeps a key that opens no volume.

use std::path::PathBuf;

use clap::Args;

use luks::{KeyslotId, NewKeyslot, Version};
use secret::{Purpose, Secret};
use serde_json::json;
use session::SystemEnv;

use crate::args::Common;
use crate::args::kdf::{KdfArgs, key_bits};
use crate::args::key::{KeyArgs, NewKeyArgs, NewKeyFileArgs};
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::args::token::TokenArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::keys::KeySource;
use crate::unlock::{self, Ask};
use crate::verb::keyslot::name::written_now;
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
    /// What it is for, at most 100 bytes: shown by `keyslot list`
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Prove the right to add by the volume key in this file, not by a passphrase; with --unbound, the key to keep
    #[arg(long, value_name = "FILE", alias = "master-key-file", conflicts_with_all = ["key_file", "key_fd"])]
    volume_key_file: Option<PathBuf>,
    /// Keep a key of its own that opens no volume: a random one of --key-size, or that of --volume-key-file
    #[arg(long, conflicts_with = "new_key_slot")]
    unbound: bool,
    /// With --unbound: size of the random key in bits
    #[arg(short = 's', long, value_name = "BITS", value_parser = key_bits, requires = "unbound")]
    key_size: Option<u32>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    token: TokenArgs,
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
    if let Some(text) = &args.name {
        // Before anybody types a passphrase.
        luks::SlotName::new(text.as_str()).check().map_err(|error| Failure::of_luks(&args.target.image, error))?;
    }
    if args.unbound {
        return run_unbound(args, common);
    }
    let (existing, wanted) = match args.new_key_slot {
        Some(new) => (args.key_slot, Some(new)),
        None => (None, args.key_slot),
    };
    let mut source = match &args.volume_key_file {
        Some(file) => KeySource::volume_key(file)?,
        None => KeySource::unlocking(&args.key, None)?.after_tokens(&args.token, &args.key),
    };
    let mut new_source = new_source(args, args.new_key_file.as_ref(), common)?;
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.container(&image::limits(&args.limits))?;
    if args.name.is_some() && container.version() == Version::Luks1 {
        return Err(Failure::of_luks(image.path(), luks::Error::Luks1Has { no: "names of keyslots" }));
    }
    let key = if args.volume_key_file.is_some() {
        unlock::recognise(&image, &container, luks::Purpose::DefaultSegment, &mut source)?
    } else {
        let (purpose, unlock) = (Purpose::ExistingPassphrase, luks::Purpose::DefaultSegment);
        unlock::unlock(&image, &container, &Ask { keyslot: existing, unlock, purpose }, &mut source)?.0
    };
    let passphrase = new_source.new_passphrase(&image.path().display().to_string(), &args.new_key)?;
    let refused = |error| Failure::of_luks(image.path(), error);
    let system = SystemEnv;
    let new = kdf::new_keyslot_for(&container, &args.kdf, wanted, &system.env()).map_err(refused)?;
    let new = NewKeyslot { name: args.name.as_deref().map(written_now), ..new };
    let id = container.keyslot_add(&system.env(), &key, &passphrase, &new).map_err(refused)?;
    said(args, &image, id)
}

/// Adds a keyslot with a key of its own. As in cryptsetup nobody has to know a passphrase for that, and the key file that
/// is given is the new one.
fn run_unbound(args: &AddArgs, common: &Common) -> Result<Code, Failure> {
    let size_bytes = args.key_size.map(|bits| bits as usize / 8);
    if size_bytes.is_none() && args.volume_key_file.is_none() {
        return Err(Failure::wrong("--unbound needs a key: how long, or which one")
            .with_hint("add --key-size BITS or --volume-key-file FILE"));
    }
    let named = args.new_key_file.is_some() || args.new_file.new_keyfile.is_some();
    let mut source = if named {
        new_source(args, args.new_key_file.as_ref(), common)?
    } else {
        KeySource::unlocking(&args.key, None)?.asking_once(common.batch_mode && !args.new_key.verify_passphrase)
    };
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&args.limits), "unbound keyslots")?;
    let volume = image.path().display().to_string();
    let system = SystemEnv;
    let key = match &args.volume_key_file {
        Some(file) => KeySource::volume_key(file)?.passphrase(&volume, Purpose::Unlock, 1)?,
        None => random_key(size_bytes.unwrap_or(0)).map_err(|error| Failure::of_luks(image.path(), error))?,
    };
    if let Some(expected) = size_bytes.filter(|expected| *expected != key.len()) {
        let (got, wanted) = (key.len() * 8, expected * 8);
        return Err(Failure::wrong(format!("the key in the file has {got} bits, --key-size says {wanted}"))
            .with_hint("leave --key-size out: the file says it"));
    }
    let passphrase = source.new_passphrase(&volume, &args.new_key)?;
    let refused = |error| Failure::of_luks(image.path(), error);
    let new = kdf::new_keyslot(&args.kdf, args.key_slot, &system.env()).map_err(refused)?;
    let new = NewKeyslot { name: args.name.as_deref().map(written_now), ..new };
    let cost = kdf::digest_cost(&args.kdf);
    let id = container.keyslot_add_unbound(&system.env(), &key, &passphrase, &new, cost).map_err(refused)?;
    said(args, &image, id)
}

fn random_key(len_bytes: usize) -> Result<Secret, luks::Error> {
    Secret::fill_with(len_bytes, |bytes| SystemEnv.env().rng.fill(bytes).map_err(luks::Error::from))
}

fn new_source(args: &AddArgs, file: Option<&PathBuf>, common: &Common) -> Result<KeySource, Failure> {
    let source = KeySource::new_beside(&args.new_file, file, args.key.tries)?;
    Ok(source.asking_once(common.batch_mode && !args.new_key.verify_passphrase))
}

/// Reports the new keyslot.
fn said(args: &AddArgs, image: &Image, id: KeyslotId) -> Result<Code, Failure> {
    if args.report.json {
        output::json(&json!({ "image": output::path(image.path()), "keyslot": id.0 }))?;
    } else {
        output::words(&format!("Keyslot {id} added and proven."));
    }
    Ok(Code::Success)
}
