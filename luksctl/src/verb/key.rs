//! `key export IMAGE FILE`: the volume key itself, as a file. Who has it opens the volume whatever happens to passphrases
//! and keyslots, for ever: it is for escrow, and for the day on which the header is lost. The other verbs are about the keys
//! of the managed set, which open keyslots.

mod approval;
pub(crate) mod managed;
mod report;
mod rotate;
pub(crate) mod trouble;
mod verify;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use secret::Secret;

use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, TargetArgs};
use crate::args::token::TokenArgs;
use crate::confirm;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::keys::KeySource;
use crate::new_file::NewFile;
use crate::output;
use crate::unlock::{self, Ask};

/// Arguments of `key`.
#[derive(Debug, Args)]
pub(crate) struct KeyVerbArgs {
    /// What to do with the keys.
    #[command(subcommand)]
    verb: KeyVerb,
}

/// What can be done with keys.
#[derive(Debug, Subcommand)]
enum KeyVerb {
    /// Write the volume key to a new file
    Export(Box<ExportArgs>),
    /// Managed set: show the keys, their ages, backups, what is due, what was written under each volume key
    Report(report::ShowArgs),
    /// Managed set: end with 10 if a key is due
    CheckAge(report::CheckAgeArgs),
    /// Managed set: open every sealed file and every volume, and the newest backup of keys
    Verify(verify::VerifyArgs),
    /// Managed set: give one volume a new key; finishes a rotation that was cut off
    Rotate(rotate::RotateArgs),
    /// Managed set: give every volume, and the backups, a new key
    RotateAll(rotate::RotateAllArgs),
    /// Managed set: give backups of data a new key; the old one stays sealed for older backups
    RotateBackup(rotate::RotateBackupArgs),
    /// Managed set: seal every key under a new master secret
    RotateMaster(rotate::RotateMasterArgs),
    /// Managed set: write a backup of all keys for the recovery key now
    ExportSet(rotate::ExportSetArgs),
    /// Managed set with dual approval: ask a second person to approve an operation on keys
    Request(approval::RequestArgs),
    /// Managed set with dual approval: approve what another person requested
    Approve(approval::ApproveArgs),
    /// Managed set with dual approval: list requests
    Requests(approval::RequestsArgs),
}

/// Arguments of `key export`.
#[derive(Debug, Args)]
struct ExportArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The new file, mode 0600; - is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Export the key of this keyslot, of an unbound one, too [default: the volume's]
    #[arg(short = 'S', long, alias = "key-slot", value_name = "N")]
    keyslot: Option<u32>,
    /// With -: let a terminal have it, in hexadecimal
    #[arg(long)]
    show: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Runs the verb below `key`.
pub(crate) fn run(args: &KeyVerbArgs, common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        KeyVerb::Export(args) => run_export(args, common),
        KeyVerb::Report(args) => report::run(args),
        KeyVerb::CheckAge(args) => report::run_check_age(args),
        KeyVerb::Verify(args) => verify::run(args),
        KeyVerb::Rotate(args) => rotate::run(args),
        KeyVerb::RotateAll(args) => rotate::run_all(args),
        KeyVerb::RotateBackup(args) => rotate::run_backup(args),
        KeyVerb::RotateMaster(args) => rotate::run_master(args),
        KeyVerb::ExportSet(args) => rotate::run_export_set(args),
        KeyVerb::Request(args) => approval::run_request(args),
        KeyVerb::Approve(args) => approval::run_approve(args),
        KeyVerb::Requests(args) => approval::run_requests(args),
    }
}

fn run_export(args: &ExportArgs, common: &Common) -> Result<Code, Failure> {
    let what = Export { target: &args.target, keyslot: args.keyslot, unbound: false, limits: &args.limits };
    let source = KeySource::unlocking(&args.key, None)?.after_tokens(&args.token, &args.key);
    let to_stdout = args.file == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() && !args.show {
        return Err(Failure::wrong("the volume key would go to the terminal, and stay in its scrollback")
            .with_hint("name a file, send it on (`… - | program`), or add --show"));
    }
    if args.show && !to_stdout {
        return Err(Failure::wrong("--show is for standard output").with_hint("name - instead of a file"));
    }
    export(&what, source, (!to_stdout).then_some(args.file.as_path()), args.show, common)
}

/// Which key; shared with cryptsetup's `luksDump --dump-volume-key`.
pub(crate) struct Export<'a> {
    /// The container.
    pub(crate) target: &'a TargetArgs,
    /// Only this keyslot's.
    pub(crate) keyslot: Option<u32>,
    /// A keyslot that opens the volume is refused.
    pub(crate) unbound: bool,
    /// Bounds on what unlocking may cost.
    pub(crate) limits: &'a LimitArgs,
}

/// Unlocks and writes the key to `file`, or to standard output.
pub(crate) fn export(
    what: &Export<'_>,
    mut source: KeySource,
    file: Option<&Path>,
    hex: bool,
    common: &Common,
) -> Result<Code, Failure> {
    if let Some(file) = file.filter(|file| file.symlink_metadata().is_ok()) {
        return Err(Failure::busy(format!("{}: exists already", file.display()))
            .with_hint("choose another name; nothing is overwritten"));
    }
    crate::harden::keep_in_memory();
    let image = Image::open(what.target, Access::Read)?;
    let container = image.container(&image::limits(what.limits))?;
    if let Some(id) = what.keyslot.filter(|_| what.unbound) {
        let metadata = container.metadata();
        if super::keyslot::list::is_bound(&metadata, luks::KeyslotId(id)) {
            return Err(Failure::wrong(format!("Keyslot {id} does not contain unbound key."))
                .with_hint(format!("luksctl key export {} FILE", image.path().display())));
        }
    }
    if !common.batch_mode && confirm::can_ask() {
        confirm::typed_yes(&format!(
            "whoever has the volume key reads {} without a passphrase. Keep it where nobody else gets it.",
            image.path().display()
        ))?;
    }
    let purpose = if what.keyslot.is_some() { luks::Purpose::AnyDigest } else { luks::Purpose::DefaultSegment };
    let ask = Ask { keyslot: what.keyslot, unlock: purpose, purpose: secret::Purpose::ExistingPassphrase };
    let (key, _passphrase) = unlock::unlock(&image, &container, &ask, &mut source)?;
    match file {
        Some(file) => {
            NewFile::write(file, key.expose())?;
            let words = format!("Key of {} bits stored to file {}.", key.len_bytes() * 8, file.display());
            output::words(&words);
        }
        None if hex => print(hexadecimal(key.expose())?.expose())?,
        None => print(key.expose())?,
    }
    Ok(Code::Success)
}

/// Straight to the descriptor: the buffer of `stdout` is not locked and is never wiped.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    use std::os::fd::AsFd as _;
    let stdout = std::io::stdout().lock();
    let duplicate = stdout.as_fd().try_clone_to_owned();
    let written = duplicate.and_then(|descriptor| std::fs::File::from(descriptor).write_all(bytes));
    written.map_err(|error| Failure::wrong(format!("writing to standard output: {error}")))
}

fn hexadecimal(bytes: &[u8]) -> Result<Secret, Failure> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    Secret::fill_with(bytes.len() * 2 + 1, |text: &mut [u8]| -> Result<(), secret::SecretError> {
        for (pair, byte) in text.chunks_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text[bytes.len() * 2] = b'\n';
        Ok(())
    })
    .map_err(|error| Failure::wrong(error.to_string()))
}
