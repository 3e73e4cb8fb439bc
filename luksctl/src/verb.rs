//! One file per verb: its arguments and what it does. A verb gives an exit code or a failure; it never ends the process.

pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod close;
pub(crate) mod compliance;
pub(crate) mod convert;
pub(crate) mod copy_in;
pub(crate) mod copy_out;
pub(crate) mod doctor;
pub(crate) mod dump;
pub(crate) mod erase;
pub(crate) mod flags;
pub(crate) mod format;
pub(crate) mod generate;
pub(crate) mod header;
pub(crate) mod is_luks;
pub(crate) mod key;
pub(crate) mod keyslot;
pub(crate) mod label;
pub(crate) mod list;
pub(crate) mod mount;
pub(crate) mod open;
pub(crate) mod refresh;
pub(crate) mod repair;
pub(crate) mod resize;
pub(crate) mod resume;
pub(crate) mod secret;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod suspend;
pub(crate) mod token;
pub(crate) mod umount;
pub(crate) mod uuid;
pub(crate) mod volume;

use session::RunDir;

use crate::args::{Cli, Verb};
use crate::exit::Code;
use crate::failure::Failure;

/// Runs the verb that was asked for.
pub(crate) fn run(cli: &Cli) -> Result<Code, Failure> {
    let common = &cli.common;
    match &cli.verb {
        Verb::Format(args) => format::run(args, common),
        Verb::Open(args) => open::run(args, common),
        Verb::Close(args) => close::run(args, common),
        Verb::Suspend(args) => suspend::run(args, common),
        Verb::Resume(args) => resume::run(args, common),
        Verb::Refresh(args) => refresh::run(args, common),
        Verb::Resize(args) => resize::run(args, common),
        Verb::Status(args) => status::run(args, common),
        Verb::List(args) => list::run(args, common),
        Verb::Dump(args) => dump::run(args, common),
        Verb::IsLuks(args) => is_luks::run(args, common),
        Verb::Uuid(args) => uuid::run(args, common),
        Verb::Label(args) => label::run(args, common),
        Verb::Config(args) => label::run_config(args, common),
        Verb::Keyslot(args) => keyslot::run(args, common),
        Verb::Header(args) => header::run(args, common),
        Verb::LuksHeaderBackup(args) => header::backup::run(args, common),
        Verb::LuksHeaderRestore(args) => header::restore::run(args, common),
        Verb::Convert(args) => convert::run(args, common),
        Verb::Erase(args) => erase::run(args, common),
        Verb::Token(args) => token::run(args, common),
        Verb::Key(args) => key::run(args, common),
        Verb::Flags(args) => flags::run(args, common),
        Verb::LuksConvertKey(args) => keyslot::convert::run(args, common),
        Verb::LuksAddKey(args) => keyslot::add::run(args, common),
        Verb::LuksRemoveKey(args) => keyslot::remove::run_as_cryptsetup(args, common),
        Verb::LuksKillSlot(args) => keyslot::kill::run(args, common),
        Verb::LuksChangeKey(args) => keyslot::change::run(args, common),
        Verb::CopyOut(args) => copy_out::run(args, common),
        Verb::CopyIn(args) => copy_in::run(args, common),
        Verb::Mount(args) => mount::run(args, common),
        Verb::Umount(args) => umount::run(args, common),
        Verb::Repair(args) => repair::run(args, common),
        Verb::Check(args) => check::run(args, common),
        Verb::Audit(args) => audit::run(args, common),
        Verb::Compliance(args) => compliance::run(args),
        Verb::Volume(args) => volume::run(args, common),
        Verb::Secret(args) => secret::run(args, common),
        Verb::Doctor(args) => doctor::run(args, common),
        Verb::Generate(args) => generate::run(args, common),
        Verb::Serve(_) => Err(Failure::wrong("a server is started by `luksctl open`")),
    }
}

/// Where this user's open volumes are registered.
pub(crate) fn run_dir() -> Result<RunDir, Failure> {
    RunDir::open().map_err(Failure::of_session)
}
