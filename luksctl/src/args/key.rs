//! Where passphrases come from: the options of cryptsetup, for the passphrase that unlocks and for a new one.

use std::os::fd::RawFd;
use std::path::PathBuf;

use block::Bytes;
use clap::Args;

/// The passphrase that unlocks.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct KeyArgs {
    /// Read the passphrase from FILE, as it is; `-` is standard input to its end
    #[arg(short = 'd', long, value_name = "FILE", conflicts_with = "key_fd")]
    pub(crate) key_file: Option<PathBuf>,
    /// Use exactly this many bytes of the key file
    #[arg(hide_short_help = true, short = 'l', long, value_name = "BYTES", value_parser = crate::size::parse)]
    pub(crate) keyfile_size: Option<Bytes>,
    /// Skip this many bytes of the key file
    #[arg(hide_short_help = true, long, value_name = "BYTES", value_parser = crate::size::parse)]
    pub(crate) keyfile_offset: Option<Bytes>,
    /// Read the passphrase from this open descriptor, to its end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) key_fd: Option<RawFd>,
    /// How often a prompt asks, after a wrong passphrase or a new one that was not typed the same twice
    #[arg(hide_short_help = true, short = 'T', long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) tries: u32,
}

/// How a new passphrase is taken.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NewKeyArgs {
    /// Ask for the new passphrase twice even with -q
    #[arg(hide_short_help = true, short = 'y', long)]
    pub(crate) verify_passphrase: bool,
    /// Take an empty or short new passphrase
    #[arg(hide_short_help = true, long)]
    pub(crate) force_password: bool,
}

/// A new key file that is an option of its own (the positional of `keyslot add` and `change` is the same thing).
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NewKeyFileArgs {
    /// Read the new passphrase from FILE, as it is
    #[arg(long, value_name = "FILE")]
    pub(crate) new_keyfile: Option<PathBuf>,
    /// Use exactly this many bytes of the new key file
    #[arg(hide_short_help = true, long, value_name = "BYTES", value_parser = crate::size::parse)]
    pub(crate) new_keyfile_size: Option<Bytes>,
    /// Skip this many bytes of the new key file
    #[arg(hide_short_help = true, long, value_name = "BYTES", value_parser = crate::size::parse)]
    pub(crate) new_keyfile_offset: Option<Bytes>,
}
