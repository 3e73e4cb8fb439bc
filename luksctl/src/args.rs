//! The command line: verbs, and the options that several verbs share. Options are named as in cryptsetup where it has
//! them; its verbs work as aliases. Secrets are never arguments.

pub(crate) mod again;
mod cryptsetup;
pub(crate) mod flags;
pub(crate) mod kdf;
pub(crate) mod key;
pub(crate) mod target;
pub(crate) mod token;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::exit::Code;
use crate::verb;

/// LUKS2 volumes: create, unlock, use and edit them, through the kernel's dm-crypt or in user space.
#[derive(Debug, Parser)]
#[command(name = "luksctl", version, max_term_width = 100, arg_required_else_help = true)]
// A screen has no line to spare for the verb `help`: -h and --help say the same.
#[command(disable_help_subcommand = true)]
#[command(
    after_help = "cryptsetup's verbs work, too. --help says where passphrases come from, and the exit codes.",
    after_long_help = "cryptsetup's verbs (luksFormat, luksOpen, luksDump, luksAddKey …) work, too.\nPassphrases come from a prompt, standard input, --key-file or --key-fd; never from the \
                        command line or the environment.\nLUKSCTL_CPU=portable|aesni|vaes256|vaes512 in \
                        the environment chooses the AES code (default: the fastest that runs here).\nExit codes: 0 done, 1 wrong parameters, 2 wrong passphrase, \
                        3 out of memory, 4 no such device,\n5 exists or busy, 10 a report found something."
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
    /// Options that every verb takes.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Options that every verb takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Ask nothing, show no progress
    #[arg(short = 'q', long, global = true, display_order = 900)]
    pub(crate) batch_mode: bool,
    /// Say more: what is found on the way, and the exit code in words
    #[arg(short = 'v', long, global = true, display_order = 901)]
    pub(crate) verbose: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // one value per run of the program
pub(crate) enum Verb {
    /// Make a LUKS container in a file or on a block device
    #[command(alias = "luksFormat")]
    Format(verb::format::FormatArgs),
    /// Unlock a container and make its plaintext a disk
    #[command(alias = "luksOpen")]
    Open(verb::open::OpenArgs),
    /// Flush, detach, wipe the keys
    #[command(alias = "luksClose")]
    Close(verb::close::CloseArgs),
    /// Stop an open volume's I/O and wipe its keys
    #[command(alias = "luksSuspend")]
    Suspend(verb::suspend::SuspendArgs),
    /// Give a suspended volume its keys back
    #[command(alias = "luksResume")]
    Resume(verb::resume::ResumeArgs),
    /// Give an open volume's mapping other flags
    Refresh(verb::refresh::RefreshArgs),
    /// Make an open volume larger or smaller, to a size or to its image's
    Resize(verb::resize::ResizeArgs),
    /// Show one open volume
    Status(verb::status::StatusArgs),
    /// Show every open volume
    #[command(alias = "ls")]
    List(verb::list::ListArgs),
    /// Show what a header says, and its health
    #[command(alias = "luksDump")]
    Dump(verb::dump::DumpArgs),
    /// Answer by exit code whether this is a LUKS container
    #[command(alias = "isLuks")]
    IsLuks(verb::is_luks::IsLuksArgs),
    /// Show or set the UUID
    #[command(alias = "luksUUID")]
    Uuid(verb::uuid::UuidArgs),
    /// Show or set the label and the subsystem
    Label(verb::label::LabelArgs),
    /// Add, remove, kill, change, convert, name, test, list the keyslots
    Keyslot(verb::keyslot::KeyslotArgs),
    /// Copy header and keyslots into a file, or put them back
    Header(verb::header::HeaderArgs),
    /// Turn a LUKS1 header into a LUKS2 one, or back
    Convert(verb::convert::ConvertArgs),
    /// Destroy every keyslot: nobody opens the data again without a header backup
    #[command(alias = "luksErase")]
    Erase(verb::erase::EraseArgs),
    /// Where passphrases may be found: list, add, import, export, remove, assign, unassign
    Token(verb::token::TokenVerbArgs),
    /// Export a volume key; report, verify and rotate the keys of the managed set
    Key(verb::key::KeyVerbArgs),
    /// Show or set the flags that every opening has
    Flags(verb::flags::FlagsArgs),
    /// Stream the plaintext of a container into a file, without a mount
    CopyOut(verb::copy_out::CopyOutArgs),
    /// Stream a file into the plaintext of a container, without a mount
    CopyIn(verb::copy_in::CopyInArgs),
    /// Open a container and mount its file system
    Mount(verb::mount::MountArgs),
    /// Unmount what `mount` mounted and close it
    #[command(alias = "unmount")]
    Umount(verb::umount::UmountArgs),
    /// Find what is wrong with a header: copies, what a policy refuses, overwritten keyslots
    Check(verb::check::CheckArgs),
    /// Mend a header: rewrite a damaged copy from the good one, finish removals
    Repair(verb::repair::RepairArgs),
    /// The managed set of volumes that volumes.toml describes
    Volume(verb::volume::VolumeArgs),
    /// The log of what was done to the managed set: show, verify
    Audit(verb::audit::AuditArgs),
    /// What a profile (PCI DSS, SOX) demands of the managed set, and how it stands
    Compliance(verb::compliance::ComplianceArgs),
    /// Secrets for programs, sealed in the managed set's store: set, list, remove, run
    Secret(verb::secret::SecretArgs),
    /// Look at this machine: what is missing, what could leak, and the command that mends it
    Doctor(verb::doctor::DoctorArgs),
    /// Print manual pages or shell completions
    Generate(verb::generate::GenerateArgs),
    /// cryptsetup's name for `keyslot add`
    #[command(name = "luksAddKey", hide = true)]
    LuksAddKey(verb::keyslot::add::AddArgs),
    /// cryptsetup's name for `keyslot remove`
    #[command(name = "luksRemoveKey", hide = true)]
    LuksRemoveKey(verb::keyslot::remove::RemoveArgs),
    /// cryptsetup's name for `keyslot kill`
    #[command(name = "luksKillSlot", alias = "luksDelKey", hide = true)]
    LuksKillSlot(verb::keyslot::kill::KillArgs),
    /// cryptsetup's name for `keyslot change`
    #[command(name = "luksChangeKey", hide = true)]
    LuksChangeKey(verb::keyslot::change::ChangeArgs),
    /// cryptsetup's name for `header backup`
    #[command(name = "luksHeaderBackup", hide = true)]
    LuksHeaderBackup(verb::header::backup::BackupArgs),
    /// cryptsetup's name for `header restore`
    #[command(name = "luksHeaderRestore", hide = true)]
    LuksHeaderRestore(verb::header::restore::RestoreArgs),
    /// cryptsetup's name for `keyslot convert`
    #[command(name = "luksConvertKey", hide = true)]
    LuksConvertKey(verb::keyslot::convert::ConvertArgs),
    /// cryptsetup's name for setting `label`
    #[command(name = "config", alias = "luksConfig", hide = true)]
    Config(verb::label::ConfigArgs),
    /// The process behind an open volume; `open` starts it
    #[command(name = "__serve", hide = true)]
    Serve(verb::serve::ServeArgs),
}

/// Reads the arguments. Help and version end with 0; a wrong option is said with the next step and ends with 1.
pub(crate) fn parse() -> Result<Cli, Code> {
    Cli::try_parse_from(cryptsetup::with_hash_named(std::env::args_os())).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let printed = error.print();
            drop(printed);
            Code::Success
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let printed = error.print();
            drop(printed);
            Code::Wrong
        }
        _ => {
            let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
            crate::output::words(&usage_error(&error.render().to_string(), &arguments));
            Code::Wrong
        }
    })
}

/// clap's words in the shape of every other error here: what is wrong, then the next command.
fn usage_error(rendered: &str, arguments: &[OsString]) -> String {
    let words = rendered.strip_prefix("error: ").unwrap_or(rendered);
    let body = words.split("\n\nUsage:").next().unwrap_or(words);
    let body = body.split("\n\nFor more information").next().unwrap_or(body).trim_end();
    let usage = words.split("\n\nUsage: ").nth(1).and_then(|usage| usage.lines().next());
    let verb = usage.map(|usage| {
        let words = usage.split(' ').take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
        words.collect::<Vec<_>>().join(" ")
    });
    let verb = verb.filter(|verb| !verb.is_empty()).unwrap_or_else(|| verb_of(arguments));
    match cryptsetup::instead(body) {
        // Without clap's guesses below the first line: this is the one.
        Some(instead) => format!("luksctl: {}\nhint: {instead}", body.lines().next().unwrap_or(body)),
        None => format!("luksctl: {body}\nhint: {verb} --help"),
    }
}

/// "luksctl keyslot add" of what was typed: clap shows no usage where only a value is wrong.
fn verb_of(arguments: &[OsString]) -> String {
    let mut command = command();
    let mut words = vec!["luksctl".to_owned()];
    for argument in arguments.iter().filter(|argument| !argument.as_encoded_bytes().starts_with(b"-")) {
        let Some(below) = command.find_subcommand(argument).cloned() else { break };
        words.push(below.get_name().to_owned());
        command = below;
    }
    words.join(" ")
}

/// The whole command, for manual pages and completions.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn usage_errors_say_the_next_command() {
        let error = Cli::try_parse_from(["luksctl", "format", "--no-such"]).unwrap_err();
        let text = usage_error(&error.render().to_string(), &[]);
        assert!(text.starts_with("luksctl: unexpected argument '--no-such'"), "{text}");
        assert!(text.ends_with("hint: luksctl format --help"), "{text}");
        assert!(!text.contains("Usage"), "{text}");
        let error = Cli::try_parse_from(["luksctl", "keyslot", "kill", "image"]).unwrap_err();
        let text = usage_error(&error.render().to_string(), &[]);
        assert!(text.ends_with("hint: luksctl keyslot kill --help"), "{text}");
        let typed = ["luksctl", "-q", "keyslot", "add", "-T", "0", "image"];
        let error = Cli::try_parse_from(typed).unwrap_err();
        let text = usage_error(&error.render().to_string(), &typed[1..].iter().map(OsString::from).collect::<Vec<_>>());
        assert!(text.ends_with("hint: luksctl keyslot add --help"), "{text}");
        let error = Cli::try_parse_from(["luksctl", "frobnicate"]).unwrap_err();
        assert!(usage_error(&error.render().to_string(), &[]).ends_with("hint: luksctl --help"));
    }

    #[test]
    fn every_option_is_explained() {
        fn check(command: &clap::Command, path: &str) {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {}", argument.get_id());
            }
            assert!(command.get_about().is_some(), "{path}");
            for below in command.get_subcommands() {
                check(below, &format!("{path} {}", below.get_name()));
            }
        }
        check(&command(), "luksctl");
    }
}
