//! `volume`: the managed set of encrypted volumes that `volumes.toml` describes.

mod adopt;
mod check;
mod compose;
pub(crate) mod config;
mod down;
mod grow;
mod list;
mod remove;
mod setup;
mod status;
mod units;
mod up;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use keystore::Metadata;
use session::ServerCommand;
use volumes::config::CONFIG_PATH;
use volumes::set::{Set, SetLock};
use volumes::setup::Machine;
use volumes::variables::tightened;

use crate::args::Common;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume`.
#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    /// What to do with the set
    #[command(subcommand)]
    verb: VolumeVerb,
}

/// What can be done with the set.
#[derive(Debug, Subcommand)]
enum VolumeVerb {
    /// The file that describes the set: show, check, import, example
    Config(config::ConfigArgs),
    /// Make what the file describes: folders, keys, images, file systems, backups, mounts; again, only what is missing
    Setup(setup::SetupArgs),
    /// Take over a set with raw key files, as the volume encryption guide's scripts make it
    Adopt(adopt::AdoptArgs),
    /// Open and mount volumes with the keys of the store
    Up(up::UpArgs),
    /// Unmount and close volumes
    Down(down::DownArgs),
    /// Show whether volumes are mounted, how full they are, how old their keys and backups are, and what is wrong
    Status(status::StatusArgs),
    /// Show the volumes of the set in a line each
    List(list::ListArgs),
    /// Check the file systems of volumes that are down
    Check(check::CheckArgs),
    /// Make a volume larger: image, mapping and file system
    Grow(grow::GrowArgs),
    /// Destroy a volume with its keys and header backups
    Remove(remove::RemoveArgs),
    /// The set as systemd units: at boot open and mounted, at shutdown closed, keys rotated weekly
    Units(units::UnitsArgs),
    /// The compose file of the container that uses the volumes
    Compose(compose::ComposeArgs),
}

/// Which file describes the set.
#[derive(Debug, Clone, Args)]
pub(crate) struct SetArgs {
    /// The file that describes the set
    #[arg(long, value_name = "FILE", default_value = CONFIG_PATH)]
    pub(crate) config: PathBuf,
}

impl SetArgs {
    /// The set as the file says it, and as the environment makes it stricter. What the environment may not do is said.
    pub(crate) fn load(&self) -> Result<volumes::config::Config, Failure> {
        let text = volumes::config::read(&self.config).map_err(|error| of_volumes(&self.config, &error))?;
        let (config, taken, ignored) = tightened(&text, &self.config, |name| std::env::var(name).ok())
            .map_err(|error| of_refusal(&self.config, &error))?;
        for change in taken {
            let words = format!("{} of the environment makes {} {}", change.variable, change.key, change.new);
            output::words(&format!("luksctl: {words} (the file has {})", change.old));
        }
        for left_out in ignored {
            output::words(&format!(
                "luksctl: warning: {} of the environment is ignored: {}",
                left_out.variable, left_out.why
            ));
        }
        Ok(config)
    }
}

impl SetArgs {
    /// The set, to be worked with; a master passphrase is asked for on the terminal.
    pub(crate) fn set(&self) -> Result<Set, Failure> {
        Ok(Set::new(self.load()?, &self.config).asking(Box::new(secret::Prompt::new())))
    }
}

/// Runs the verb below `volume`.
pub(crate) fn run(args: &VolumeArgs, common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        VolumeVerb::Config(args) => config::run(args),
        VolumeVerb::Setup(args) => setup::run(args, common),
        VolumeVerb::Adopt(args) => adopt::run(args, common),
        VolumeVerb::Up(args) => up::run(args),
        VolumeVerb::Down(args) => down::run(args),
        VolumeVerb::Status(args) => status::run(args),
        VolumeVerb::List(args) => list::run(args),
        VolumeVerb::Check(args) => check::run(args),
        VolumeVerb::Grow(args) => grow::run(args),
        VolumeVerb::Remove(args) => remove::run(args, common),
        VolumeVerb::Units(args) => units::run(args),
        VolumeVerb::Compose(args) => compose::run(args),
    }
}

/// What a verb of volumes works with: the set under its lock, and where volumes are opened.
struct Work {
    set: Set,
    run: session::RunDir,
    server: ServerCommand,
    _lock: Option<SetLock>,
}

impl Work {
    /// For a verb that changes something: other commands wait meanwhile.
    fn alone(args: &SetArgs) -> Result<Work, Failure> {
        let mut work = Work::looking(args)?;
        work._lock = Some(work.set.lock().map_err(|error| of_volumes(&args.config, &error))?);
        crate::harden::keep_in_memory();
        Ok(work)
    }

    /// For a verb that only looks.
    fn looking(args: &SetArgs) -> Result<Work, Failure> {
        let set = args.set()?;
        Ok(Work { set, run: super::run_dir()?, server: ServerCommand::this_program(), _lock: None })
    }

    fn machine(&self) -> Machine<'_> {
        Machine { run: &self.run, server: &self.server }
    }

    fn failed(&self) -> impl Fn(volumes::VolumesError) -> Failure {
        |error| of_volumes(self.set.path(), &error)
    }

    /// What the key store says, unproven; none if there is no store.
    fn metadata(&self) -> Result<Option<Metadata>, Failure> {
        if !self.set.has_store() {
            return Ok(None);
        }
        self.set.metadata().map(Some).map_err(self.failed())
    }
}

/// What the crate of the set says about the file at `path`.
pub(crate) fn of_volumes(path: &Path, error: &volumes::VolumesError) -> Failure {
    match error {
        volumes::VolumesError::Io { what: "read", path, source } => {
            let failure = Failure::from_open(path, source);
            match source.kind() {
                std::io::ErrorKind::NotFound => {
                    failure.with_hint(format!("luksctl volume config example > {}", path.display()))
                }
                _ => failure,
            }
        }
        volumes::VolumesError::Io { what, path, source } => Failure::from_write(what, path, source),
        volumes::VolumesError::File { .. } => {
            Failure::wrong(error.to_string()).with_hint(format!("ls -l {}", path.display()))
        }
        volumes::VolumesError::Config { .. } => Failure::wrong(error.to_string())
            .with_hint(format!("mend the file, then `luksctl volume config check --config {}`", path.display())),
        volumes::VolumesError::SetBusy { .. } => {
            Failure::busy(error.to_string()).with_hint("try again when the other command is done")
        }
        other => of_work(other),
    }
}

/// What went wrong with a volume or a key, rather than with the file.
fn of_work(error: &volumes::VolumesError) -> Failure {
    use volumes::{Trouble, VolumesError};
    match error {
        VolumesError::Refused { trouble, mend, .. } => {
            let code = match trouble {
                Trouble::Wrong => Code::Wrong,
                Trouble::Missing => Code::Device,
                Trouble::Busy => Code::Busy,
            };
            Failure::new(code, error.to_string()).with_hint(mend.clone())
        }
        VolumesError::Session(error) => Failure::of_session_ref(error),
        VolumesError::Luks { path, source } => Failure::of_luks_ref(path, source),
        VolumesError::Block { path, source } => Failure::of_block(path, source),
        VolumesError::KeyStore(error) => super::key::trouble::of_key_store(error),
        VolumesError::Unapproved { operation, target, pending } => Failure::wrong(error.to_string().replace(" :", ":"))
            .with_hint(match pending {
                Some(id) => format!("as another user, within 24 hours: luksctl key approve {id}"),
                None => format!("luksctl key request {operation} {target}").trim_end().to_owned(),
            }),
        VolumesError::AuditBusy { .. } => {
            Failure::busy(error.to_string()).with_hint("try again when the other command is done")
        }
        VolumesError::AuditState { .. } => Failure::wrong(error.to_string()).with_hint("luksctl audit verify"),
        VolumesError::Secret(error) => Failure::new(crate::exit::of_secret(error), error.to_string()),
        VolumesError::KeySource(error) => Failure::of_key_source(error),
        VolumesError::Program { reason, .. } if reason.contains("cannot be started") => {
            Failure::wrong(error.to_string())
                .with_hint("install the programs of the file system: e2fsprogs, xfsprogs …")
        }
        _ => Failure::wrong(error.to_string()),
    }
}

/// Why variables were not taken.
pub(crate) fn of_refusal(path: &Path, refusal: &volumes::variables::Refusal) -> Failure {
    match refusal {
        volumes::variables::Refusal::Config(error) => of_volumes(path, error),
        volumes::variables::Refusal::Loosens(_) => Failure::wrong(refusal.to_string())
            .with_hint("leave these variables out, or add --allow-loosening if it is meant"),
        _ => Failure::wrong(refusal.to_string()).with_hint("mend that line; nothing was written"),
    }
}
