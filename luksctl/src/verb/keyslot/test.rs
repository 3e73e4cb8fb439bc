//! `keyslot test IMAGE`: whether a passphrase unlocks; 0 or 2. Unbound keyslots count too. Nothing is opened or written.

use clap::Args;
use luks::Limits;
use serde_json::json;

use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::args::token::TokenArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::keys::KeySource;
use crate::output;
use crate::unlock::{self, Ask};

/// Arguments of `keyslot test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Try only this keyslot
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Tests a passphrase.
pub(crate) fn run(args: &TestArgs, common: &Common) -> Result<Code, Failure> {
    let mut source = KeySource::unlocking(&args.key, None)?.after_tokens(&args.token, &args.key);
    let limits = image::limits(&args.limits);
    passphrase(&args.target, args.key_slot, luks::Purpose::AnyDigest, &limits, &mut source, args.report, common)
}

/// Tests the passphrase of `source`; shared with `open --test-passphrase`.
pub(crate) fn passphrase(
    target: &TargetArgs,
    keyslot: Option<u32>,
    purpose: luks::Purpose,
    limits: &Limits,
    source: &mut KeySource,
    report: ReportArgs,
    common: &Common,
) -> Result<Code, Failure> {
    let image = Image::open(target, Access::Read)?;
    let container = image.container(limits)?;
    let ask = Ask { keyslot, unlock: purpose, purpose: secret::Purpose::Unlock };
    let (key, _passphrase) = unlock::unlock(&image, &container, &ask, source)?;
    let keyslot = key.keyslot().map(|id| id.0);
    if report.json {
        output::json(&json!({ "image": output::path(image.path()), "unlocks": true, "keyslot": keyslot }))?;
    } else if let Some(id) = keyslot.filter(|_| common.verbose) {
        output::words(&format!("Key slot {id} unlocked."));
    }
    Ok(Code::Success)
}
