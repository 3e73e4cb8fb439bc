//! `open IMAGE NAME`: unlocks a container and makes its plaintext a disk, through dm-crypt, ublk, FUSE or NBD; prints the
//! device. `--test-passphrase` opens nothing and answers by exit code.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use luks::Purpose;
use serde_json::json;
use session::{BackendChoice, OpenReport, OpenRequest, ServerCommand};

use crate::args::Common;
use crate::args::flags::FlagArgs;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::args::token::TokenArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image;
use crate::keys::KeySource;
use crate::output;
use crate::unlock;
use crate::verb::keyslot::test;

/// Arguments of `open`.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Name of the open volume: letters, digits, dot, underscore, dash
    #[arg(value_name = "NAME", required_unless_present = "test_passphrase", conflicts_with = "test_passphrase")]
    name: Option<String>,
    /// Open nothing, answer by exit code whether the passphrase fits
    #[arg(long)]
    test_passphrase: bool,
    /// With --test-passphrase: accept keyslots that open no volume, as with -S
    #[arg(long, requires = "test_passphrase")]
    unbound: bool,
    /// Try only this keyslot
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    /// Unlock with the volume key in this file instead of a passphrase
    #[arg(long, value_name = "FILE", alias = "master-key-file", conflicts_with_all = ["key_file", "key_fd", "key_slot", "unbound"])]
    volume_key_file: Option<PathBuf>,
    /// Have the header keep the flags given here for every opening, and no others
    #[arg(long, conflicts_with = "test_passphrase")]
    persistent: bool,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// How the volume becomes a disk; shared with `mount`.
#[derive(Debug, Clone, Args)]
pub(crate) struct HowArgs {
    /// Refuse writes
    #[arg(short = 'r', long, alias = "read-only")]
    pub(crate) readonly: bool,
    /// What makes it a disk: the kernel's dm-crypt, a ublk device, a file below FUSE, an NBD socket, or the first that is possible
    #[arg(long, value_name = "NAME", value_enum, default_value = "auto")]
    pub(crate) backend: Backend,
    #[command(flatten)]
    pub(crate) flags: FlagArgs,
    /// Leave the disk a file, attach no loop device to it (fuse)
    #[arg(long)]
    pub(crate) no_loop: bool,
    /// Attach a free /dev/nbdN of the kernel to it (nbd, root)
    #[arg(long)]
    pub(crate) attach: bool,
    /// Keep readers waiting for half a minute when the server dies, and go on with a device that waits (ublk)
    #[arg(long)]
    pub(crate) recover: bool,
    /// Listen there for NBD clients, too, who come with TLS and a certificate or not at all; port 0 is a free one (nbd)
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "HOST:PORT", requires = "tls_certificates")]
    pub(crate) listen: Option<String>,
    /// With --listen: the folder of ca-cert.pem, server-cert.pem, server-key.pem and, if there is one, ca-crl.pem
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "DIR", requires = "listen")]
    pub(crate) tls_certificates: Option<PathBuf>,
    /// Threads that serve the disk (fuse, ublk), or each connection to it (nbd)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) threads: Option<u32>,
}

/// The backends by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// dm-crypt where it is possible, else ublk, else FUSE, else NBD.
    Auto,
    /// The kernel's dm-crypt.
    Dm,
    /// A file below FUSE; for root with a loop device on it.
    Fuse,
    /// A Unix socket that speaks NBD, for qemu, nbdcopy, nbdfuse, nbd-client.
    Nbd,
    /// A block device of the driver ublk_drv, served by luksctl; for root.
    Ublk,
}

/// Opens a volume.
pub(crate) fn run(args: &OpenArgs, common: &Common) -> Result<Code, Failure> {
    let mut source = match &args.volume_key_file {
        Some(file) => KeySource::volume_key(file)?,
        None => KeySource::unlocking(&args.key, None)?.after_tokens(&args.token, &args.key),
    };
    crate::harden::keep_in_memory();
    let Some(name) = &args.name else {
        return test(args, &mut source, common);
    };
    if args.persistent {
        let image = image::Image::open(&args.target, image::Access::Read)?;
        image.load_luks2(&image::limits(&args.limits), super::flags::NO_FLAGS)?;
    }
    look_for_tokens(&args.target, args.key_slot, &args.limits, &mut source)?;
    let mut request = request(&args.target, name, args.key_slot, &args.how, &args.limits, &source)?;
    request.volume_key = args.volume_key_file.is_some();
    request.flags.instead_of_kept = args.persistent;
    let opened = session::open(&super::run_dir()?, &request, &mut source, &ServerCommand::this_program())
        .map_err(|error| Failure::of_session(error).about(&args.target.image))?;
    if args.persistent {
        super::flags::keep(&args.target, args.how.flags)?;
    }
    say_backend(&opened, common);
    if args.report.json {
        output::json(&json!({ "image": output::path(&args.target.image), "opened": opened }))?;
    } else {
        // Who wanted a device is told that one, not how to call the socket beside it.
        let uri = opened.uri.clone().filter(|_| !args.how.attach);
        output::line(&uri.unwrap_or_else(|| opened.device.display().to_string()))?;
        opened.tls_uri.as_deref().map_or(Ok(()), output::line)?;
    }
    if let Some(slot) = opened.keyslot.filter(|_| common.verbose) {
        output::words(&format!("Key slot {slot} unlocked; {} ({}).", opened.link.display(), opened.backend));
    }
    Ok(Code::Success)
}

/// Tests a passphrase or a volume key, opens nothing.
fn test(args: &OpenArgs, source: &mut KeySource, common: &Common) -> Result<Code, Failure> {
    let limits = image::limits(&args.limits);
    // Who names a keyslot means that one, whatever it opens; so does cryptsetup.
    let any = args.unbound || args.key_slot.is_some();
    let purpose = if any { Purpose::AnyDigest } else { Purpose::DefaultSegment };
    if args.volume_key_file.is_none() {
        return test::passphrase(&args.target, args.key_slot, purpose, &limits, source, args.report, common);
    }
    let image = image::Image::open(&args.target, image::Access::Read)?;
    let container = image.container(&limits)?;
    unlock::recognise(&image, &container, purpose, source)?;
    if args.report.json {
        output::json(&json!({ "image": output::path(image.path()), "unlocks": true, "keyslot": null }))?;
    }
    Ok(Code::Success)
}

/// Reads the keys of the container's tokens, where they are to be tried; shared with `mount`.
pub(crate) fn look_for_tokens(
    target: &TargetArgs,
    keyslot: Option<u32>,
    limits: &LimitArgs,
    source: &mut KeySource,
) -> Result<(), Failure> {
    let image = image::Image::open(target, image::Access::Read)?;
    let header = image.load(&image::limits(limits))?;
    source.look_for_tokens(image.path(), &header.metadata(), keyslot, Purpose::DefaultSegment)
}

/// Says which backend it became and why not one that comes first.
pub(crate) fn say_backend(opened: &OpenReport, common: &Common) {
    if common.batch_mode {
        return;
    }
    for other in &opened.not_possible {
        output::words(&format!("{} not possible: {}", other.backend, other.reason));
    }
    output::words(&format!("backend: {}", opened.backend));
}

/// What the session is asked to open.
pub(crate) fn request(
    target: &TargetArgs,
    name: &str,
    keyslot: Option<u32>,
    how: &HowArgs,
    limits: &LimitArgs,
    source: &KeySource,
) -> Result<OpenRequest, Failure> {
    if target.kind.is_some() {
        image::Image::open(target, image::Access::Read)?.load(&image::limits(limits))?;
    }
    let mut request = OpenRequest::new(image::resolve(&target.image)?, name);
    request.header = target.header.as_deref().map(image::resolve).transpose()?;
    request.read_only = how.readonly;
    request.keyslot = keyslot;
    request.threads = how.threads.unwrap_or(0) as usize;
    request.no_loop = how.no_loop;
    request.recover = how.recover;
    request.attach = how.attach;
    #[cfg(feature = "tls")]
    if let (Some(address), Some(certificates)) = (&how.listen, &how.tls_certificates) {
        request.listen = Some(session::Listen { address: address.clone(), certificates: certificates.clone() });
    }
    request.backend = match how.backend {
        Backend::Auto => BackendChoice::Auto,
        Backend::Dm => BackendChoice::Dm,
        Backend::Fuse => BackendChoice::Fuse,
        Backend::Nbd => BackendChoice::Nbd,
        Backend::Ublk => BackendChoice::Ublk,
    };
    request.flags = how.flags.flags();
    request.limits = image::limits(limits);
    request.policy = target.policy()?.unwrap_or_default();
    request.tries = source.tries();
    Ok(request)
}
