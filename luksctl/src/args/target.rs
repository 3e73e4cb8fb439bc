//! Which container: the image and where its header lies, and the bounds on what a header may cost.

use std::path::PathBuf;

use block::Bytes;
use clap::Args;
use luks::{Policy, Version};

use crate::failure::Failure;

/// The container that a verb works on.
#[derive(Debug, Clone, Args)]
pub(crate) struct TargetArgs {
    /// File or block device; also UUID=…, LABEL=… or a name below /dev/disk
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,
    /// The LUKS header lies in this file or device instead
    #[arg(long, value_name = "FILE")]
    pub(crate) header: Option<PathBuf>,
    /// Refuse a header that this policy does not accept: default, strict, or a TOML file
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Bounds")]
    pub(crate) policy: Option<PathBuf>,
    /// Take it only if it is this: luks1, luks2, or luks for either [for a new one: luks2]
    #[arg(short = 'M', long = "type", value_name = "TYPE", value_parser = ["luks", "luks1", "luks2"], hide_short_help = true)]
    pub(crate) kind: Option<String>,
}

impl TargetArgs {
    /// The version that `--type` demands.
    pub(crate) fn version(&self) -> Option<Version> {
        match self.kind.as_deref() {
            Some("luks1") => Some(Version::Luks1),
            Some("luks2") => Some(Version::Luks2),
            _ => None,
        }
    }

    /// The policy that was named, if one was.
    pub(crate) fn policy(&self) -> Result<Option<Policy>, Failure> {
        self.policy.as_deref().map(session::policy::load).transpose().map_err(Failure::of_session)
    }
}

/// Bounds on what unlocking may cost, checked before any work: a header can ask for more than a machine has.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LimitArgs {
    /// Refuse keyslots whose KDF wants more memory than this [default: 4G]
    #[arg(hide_short_help = true, long, value_name = "SIZE", value_parser = crate::size::parse, help_heading = "Bounds")]
    pub(crate) max_kdf_memory: Option<Bytes>,
    /// Refuse Argon2 keyslots with more passes than this
    #[arg(hide_short_help = true, long, value_name = "N", help_heading = "Bounds")]
    pub(crate) max_kdf_time: Option<u32>,
    /// Refuse PBKDF2 keyslots with more iterations than this
    #[arg(hide_short_help = true, long, value_name = "N", help_heading = "Bounds")]
    pub(crate) max_kdf_iterations: Option<u32>,
}

/// Machine-readable output.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ReportArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
