//! `mount IMAGE DIR`: opens a container and mounts its file system: for root with a block device and mount(8), `nosuid,nodev`;
//! for others with fuse2fs, whose limits are said. A failed mount closes the volume again.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use session::{MountOptions, ServerCommand};

use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::args::token::TokenArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::keys::KeySource;
use crate::output;
use crate::verb::open::{self, HowArgs};

/// What mounts for ordinary users.
const FUSE2FS: &str = "fuse2fs";

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Folder to mount on
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Name of the open volume [default: the image's name without its extension]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// More options for mount(8) or fuse2fs, separated by commas
    #[arg(short = 'o', long, value_name = "LIST")]
    options: Option<String>,
    /// Try only this keyslot
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
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

/// Opens and mounts.
pub(crate) fn run(args: &MountArgs, common: &Common) -> Result<Code, Failure> {
    let mut source = KeySource::unlocking(&args.key, None)?.after_tokens(&args.token, &args.key);
    crate::harden::keep_in_memory();
    let name = args.name.clone().unwrap_or_else(|| session::name_for_image(&args.target.image));
    open::look_for_tokens(&args.target, args.key_slot, &args.limits, &mut source)?;
    let request = open::request(&args.target, &name, args.key_slot, &args.how, &args.limits, &source)?;
    let options = MountOptions { read_only: args.how.readonly, options: args.options.clone(), close_on_umount: true };
    let server = ServerCommand::this_program();
    let mounted = session::mount_image(&super::run_dir()?, &request, &args.folder, &options, &mut source, &server)
        .map_err(|error| Failure::of_session(error).about(&args.target.image))?;
    if let Some(opened) = &mounted.opened {
        open::say_backend(opened, common);
    }
    if args.report.json {
        output::json(&json!({ "image": output::path(&args.target.image), "mounted": mounted }))?;
    } else {
        output::line(&mounted.directory.display().to_string())?;
    }
    if mounted.program == FUSE2FS && !common.batch_mode {
        output::words(
            "luksctl: warning: mounted with fuse2fs: ext file systems only, and no journal is written, so unmount before \
             the machine stops",
        );
    }
    Ok(Code::Success)
}
