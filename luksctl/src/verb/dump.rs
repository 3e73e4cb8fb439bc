//! `dump IMAGE`: what the header says. As text with cryptsetup's labels (scripts grep them), as our JSON, or as the
//! header's own JSON. Only header bytes are read; nothing is written. 10 if a copy of the header is damaged.

mod json;
mod luks1;
mod text;

use std::path::PathBuf;

use clap::Args;
use luks::AnyHeader;

use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::args::token::TokenArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::keys::KeySource;
use crate::output;
use crate::verb::key::{self, Export};

/// Arguments of `dump`.
#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    report: ReportArgs,
    /// Print the header's own JSON, indented
    #[arg(long, conflicts_with = "json")]
    dump_json_metadata: bool,
    #[command(flatten)]
    volume_key: VolumeKeyArgs,
}

/// cryptsetup's way to `key export`.
#[derive(Debug, Args)]
struct VolumeKeyArgs {
    /// Write the volume key to the file of --volume-key-file, as `key export` does
    #[arg(hide_short_help = true, long, alias = "dump-master-key", help_heading = "Volume key")]
    dump_volume_key: bool,
    /// Write the key of the unbound keyslot -S to the file of --volume-key-file
    #[arg(hide_short_help = true, long, requires = "key_slot", help_heading = "Volume key")]
    unbound: bool,
    /// The new file
    #[arg(hide_short_help = true, long, value_name = "FILE", alias = "master-key-file", help_heading = "Volume key")]
    volume_key_file: Option<PathBuf>,
    /// The keyslot of --unbound; with --dump-volume-key, the one that unlocks
    #[arg(hide_short_help = true, short = 'S', long, value_name = "N", help_heading = "Volume key")]
    key_slot: Option<u32>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Prints the header.
pub(crate) fn run(args: &DumpArgs, common: &Common) -> Result<Code, Failure> {
    let wanted = &args.volume_key;
    if wanted.dump_volume_key || wanted.unbound {
        if wanted.volume_key_file.is_none() {
            let image = args.target.image.display();
            return Err(Failure::wrong("--dump-volume-key needs a file: --volume-key-file FILE").with_hint(format!(
                "luksctl key export {image} FILE; `luksctl key export {image} - --show` prints it"
            )));
        }
        let source = KeySource::unlocking(&wanted.key, None)?.after_tokens(&wanted.token, &wanted.key);
        let (target, keyslot, limits) = (&args.target, wanted.key_slot, &wanted.limits);
        let what = Export { target, keyslot, unbound: wanted.unbound, limits };
        return key::export(&what, source, wanted.volume_key_file.as_deref(), false, common);
    }
    if wanted.volume_key_file.is_some() || wanted.key_slot.is_some() {
        return Err(Failure::wrong("--volume-key-file and -S belong to --dump-volume-key or --unbound")
            .with_hint("luksctl key export IMAGE FILE"));
    }
    let image = Image::open(&args.target, Access::Read)?;
    let header = image.load(&image::limits(&LimitArgs::default()))?;
    image::advise(image.header().path(), header.advice());
    image::advise(image.header().path(), header.metadata().caution());
    match (&header, args.dump_json_metadata, args.report.json) {
        (AnyHeader::Luks1(_), true, _) => {
            let error = luks::Error::Luks1Has { no: "JSON of its own: --json prints ours" };
            return Err(Failure::of_luks(image.path(), error));
        }
        (AnyHeader::Luks1(header), false, true) => output::json(&luks1::json(image.path(), header))?,
        (AnyHeader::Luks1(header), false, false) => output::data(luks1::text(image.path(), header).as_bytes())?,
        (AnyHeader::Luks2(header), true, _) => output::json(&header.metadata().to_map())?,
        (AnyHeader::Luks2(header), false, true) => output::json(&json::of(image.path(), header))?,
        (AnyHeader::Luks2(header), false, false) => output::data(text::of(header).as_bytes())?,
    }
    Ok(if header.is_healthy() { Code::Success } else { Code::Found })
}
