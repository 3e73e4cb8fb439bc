//! What a new keyslot costs to unlock, and how it is encrypted: cryptsetup's options and its rules across them.

use clap::{Args, ValueEnum};

/// Key derivation functions for new keyslots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pbkdf {
    /// PBKDF2-HMAC: for random keys made by a machine, or where memory is short.
    Pbkdf2,
    /// Argon2i.
    Argon2i,
    /// Argon2id.
    Argon2id,
}

/// The cost of a new keyslot.
#[derive(Debug, Clone, Args)]
pub(crate) struct KdfArgs {
    /// Key derivation function [default: argon2id; LUKS1 has only pbkdf2]
    #[arg(long, value_name = "NAME", value_enum, help_heading = "New keyslot")]
    pub(crate) pbkdf: Option<Pbkdf>,
    /// Unlocking shall take this many milliseconds on this machine [default: 2000]
    #[arg(short = 'i', long, value_name = "MS", conflicts_with = "pbkdf_force_iterations",
          value_parser = clap::value_parser!(u32).range(1..), help_heading = "New keyslot")]
    pub(crate) iter_time: Option<u32>,
    /// Most memory for Argon2, in KiB [default: 1048576]
    #[arg(hide_short_help = true, long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(32..=4_194_304),
          help_heading = "New keyslot")]
    pub(crate) pbkdf_memory: Option<u32>,
    /// Most threads for Argon2, 1 to 4 [default: 4]
    #[arg(hide_short_help = true, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4), help_heading = "New keyslot")]
    pub(crate) pbkdf_parallel: Option<u32>,
    /// Measure nothing, take this cost (PBKDF2 iterations, Argon2 passes)
    #[arg(hide_short_help = true, long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..), help_heading = "New keyslot")]
    pub(crate) pbkdf_force_iterations: Option<u32>,
    /// Hash of PBKDF2, of the AF splitter and of the key digest [default: sha256; LUKS1 has one for all keyslots]
    #[arg(hide_short_help = true, long, value_name = "NAME", help_heading = "New keyslot")]
    pub(crate) hash: Option<String>,
    /// Cipher of the keyslot area, with --keyslot-key-size [default: the volume's]
    #[arg(
        hide_short_help = true,
        long,
        value_name = "SPEC",
        requires = "keyslot_key_size",
        help_heading = "New keyslot"
    )]
    pub(crate) keyslot_cipher: Option<String>,
    /// Key size of the keyslot area in bits, with --keyslot-cipher
    #[arg(hide_short_help = true, long, value_name = "BITS", requires = "keyslot_cipher", value_parser = key_bits, help_heading = "New keyslot")]
    pub(crate) keyslot_key_size: Option<u32>,
}

impl KdfArgs {
    /// The hash that was asked for, or the default.
    pub(crate) fn hash(&self) -> &str {
        self.hash.as_deref().unwrap_or("sha256")
    }
}

/// Key sizes are given in bits and are whole bytes.
pub(crate) fn key_bits(text: &str) -> Result<u32, String> {
    let bits: u32 = text.parse().map_err(|_| format!("'{text}' is no number of bits"))?;
    if bits == 0 || !bits.is_multiple_of(8) {
        return Err(format!("{bits} bits are no multiple of 8"));
    }
    Ok(bits)
}
