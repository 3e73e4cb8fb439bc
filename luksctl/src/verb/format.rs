//! `format IMAGE [KEYFILE]`: a new container in a file or on a block device. Everything that can be refused is refused
//! before a byte changes; a file that this run made goes again when formatting fails or is broken off.

mod layout;
mod target;

use std::path::{Path, PathBuf};

use block::Bytes;
use clap::Args;
use luks::Version;
use secret::{Purpose, Secret};
use session::SystemEnv;

use crate::args::Common;
use crate::args::kdf::{KdfArgs, key_bits};
use crate::args::key::{KeyArgs, NewKeyArgs};
use crate::args::target::{ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::keys::KeySource;
use crate::output;

use layout::{Params, Plan};
use target::{Targets, Wanted};

/// Arguments of `format`.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Read the passphrase from this file
    #[arg(value_name = "KEYFILE")]
    positional_key_file: Option<PathBuf>,
    /// Make IMAGE a file of this size, with all its space reserved
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    size: Option<Bytes>,
    /// With --size: reserve no space, let the file grow as it is written
    #[arg(long, requires = "size")]
    sparse: bool,
    /// Overwrite a known file system, partition table, LUKS header …
    #[arg(long)]
    force: bool,
    /// Show what would be written, write nothing
    #[arg(long, conflicts_with = "policy")]
    dry_run: bool,
    /// Cipher of the data
    #[arg(short = 'c', long, value_name = "SPEC", default_value = "aes-xts-plain64", help_heading = "Container")]
    cipher: String,
    /// Size of the volume key in bits [default: 512 for XTS, else 256]
    #[arg(short = 's', long, value_name = "BITS", value_parser = key_bits, help_heading = "Container")]
    key_size: Option<u32>,
    /// Take the volume key from this file instead of a random one
    #[arg(hide_short_help = true, long, value_name = "FILE", alias = "master-key-file", help_heading = "Container")]
    volume_key_file: Option<PathBuf>,
    /// Encryption sector: 512, 1024, 2048 or 4096 bytes [default: by the device]
    #[arg(long, value_name = "BYTES", value_parser = sector_size, help_heading = "Container")]
    sector_size: Option<u32>,
    /// Label, at most 47 bytes
    #[arg(long, value_name = "TEXT", help_heading = "Container")]
    label: Option<String>,
    /// Subsystem, at most 47 bytes
    #[arg(long, value_name = "TEXT", help_heading = "Container")]
    subsystem: Option<String>,
    /// UUID [default: a random one]
    #[arg(long, value_name = "UUID", help_heading = "Container")]
    uuid: Option<String>,
    /// Size of one metadata copy: 16K to 4M, a power of two
    #[arg(hide_short_help = true, long, value_name = "SIZE", value_parser = crate::size::parse, help_heading = "Container")]
    luks2_metadata_size: Option<Bytes>,
    /// Size of the keyslots area
    #[arg(hide_short_help = true, long, value_name = "SIZE", value_parser = crate::size::parse, help_heading = "Container")]
    luks2_keyslots_size: Option<Bytes>,
    /// Where data starts, in 512-byte sectors
    #[arg(hide_short_help = true, short = 'o', long, value_name = "SECTORS", help_heading = "Container")]
    offset: Option<u64>,
    /// Number of the first keyslot
    #[arg(
        hide_short_help = true,
        short = 'S',
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "New keyslot"
    )]
    key_slot: u32,
    #[command(flatten)]
    kdf: KdfArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    new_key: NewKeyArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// The sizes of an encryption sector.
fn sector_size(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(size @ (512 | 1024 | 2048 | 4096)) => Ok(size),
        _ => Err("must be 512, 1024, 2048 or 4096".to_owned()),
    }
}

/// Formats, or shows what that would write.
pub(crate) fn run(args: &FormatArgs, common: &Common) -> Result<Code, Failure> {
    let source = KeySource::unlocking(&args.key, args.positional_key_file.as_deref())?;
    let mut source = source.asking_once(common.batch_mode && !args.new_key.verify_passphrase);
    let mut params = Params::of(args)?;
    let wanted = Wanted { size: args.size, sparse: args.sparse, force: args.force };
    let targets = Targets::look(&args.target, wanted)?;
    let planned = targets.plan(|header, data| params.plan(header, data))?;
    planned.warnings().iter().for_each(|warning| output::words(&format!("luksctl: warning: {warning}")));
    let key = args.volume_key_file.as_deref().map(|file| own_key(file, args, &planned)).transpose()?;
    if args.dry_run {
        targets.refuse_or_confirm(common, false)?;
        return show(args, &planned, None);
    }
    targets.refuse_or_confirm(common, true)?;
    let passphrase = source.new_passphrase(&args.target.image.display().to_string(), &args.new_key)?;
    let interrupt = Interrupt::watch()?;
    let system = SystemEnv;
    let image = &args.target.image;
    let failed = |error| Failure::of_luks(image, error);
    params.measure(args, &planned, &system.env()).map_err(failed)?;
    let made = targets.make(&planned, &interrupt)?;
    let uuid = params.format(made.header(), made.data(), &system.env(), &passphrase, key).map_err(failed)?;
    made.keep()?;
    show(args, &planned, Some(uuid))
}

/// The volume key in `file`, which must be as long as the plan says.
fn own_key(file: &Path, args: &FormatArgs, plan: &Plan) -> Result<Secret, Failure> {
    if plan.version() == Version::Luks1 {
        return Err(Failure::wrong("--volume-key-file makes LUKS2 containers only").with_hint("leave --type luks1 out"));
    }
    let volume = args.target.image.display().to_string();
    let key = KeySource::volume_key(file)?.passphrase(&volume, Purpose::Unlock, 1)?;
    if key.len() != plan.key_size_bytes() {
        let (got, wanted) = (key.len() * 8, plan.key_size_bytes() * 8);
        return Err(Failure::wrong(format!("{}: the key has {got} bits, {wanted} are needed", file.display()))
            .with_hint(format!("give another file, or --key-size {got} if the cipher takes it")));
    }
    Ok(key)
}

/// The plan, or what was made.
fn show(args: &FormatArgs, plan: &Plan, uuid: Option<String>) -> Result<Code, Failure> {
    if args.report.json {
        output::json(&plan.in_json(args, uuid))?;
    } else if let Some(uuid) = uuid {
        output::words(&format!(
            "{}: {} container {uuid}, volume of {}.",
            args.target.image.display(),
            plan.version(),
            plan.data_size()
        ));
    } else {
        output::data(plan.to_string().as_bytes())?;
    }
    Ok(Code::Success)
}
