//! `volume`: the managed set of encrypted volumes that `volumes.toml` describes.

pub(crate) mod config;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use volumes::config::CONFIG_PATH;
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

/// Runs the verb below `volume`.
pub(crate) fn run(args: &VolumeArgs, _common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        VolumeVerb::Config(args) => config::run(args),
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
        _ => Failure::wrong(error.to_string())
            .with_hint(format!("mend the file, then `luksctl volume config check --config {}`", path.display())),
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
