//! What can go wrong before a sector cipher exists; once built it cannot fail. No message holds key bytes.

use thiserror::Error;

/// Why a cipher could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CipherError {
    /// The string is not of the form `cipher-mode-iv[:option]`.
    #[error("cipher string {spec:?} is not of the form cipher-mode-iv")]
    Unknown {
        /// The string as given, cut to 80 characters.
        spec: String,
    },
    /// The string is well formed but names something this crate does not have.
    #[error("cipher string {spec:?}: {part:?} is not supported{}", known_as(*what))]
    Unsupported {
        /// The string as given, cut to 80 characters.
        spec: String,
        /// The cipher, mode, IV generator or hash that is missing here, cut to 80 characters.
        part: String,
        /// What the missing part is, if it is known.
        what: Option<&'static str>,
    },
    /// The key's length does not fit the cipher string.
    #[error("{spec} takes a key of {} bytes, not {got_bytes}", list(allowed))]
    KeySize {
        /// The cipher string.
        spec: String,
        /// Length of the key that was offered.
        got_bytes: usize,
        /// The lengths that fit, in bytes.
        allowed: &'static [usize],
    },
    /// A sector size that dm-crypt does not have.
    #[error("sector size {value} is not 512, 1024, 2048 or 4096 bytes")]
    SectorSize {
        /// The size asked for, in bytes.
        value: u32,
    },
    /// No kernel has that name.
    #[error("AES kernel {name:?} does not exist; there are portable, aesni, vaes256 or vaes512")]
    UnknownKernel {
        /// The name as given, cut to 80 characters.
        name: String,
    },
    /// The machine cannot run that kernel.
    #[error("AES kernel {name} cannot run here: this machine lacks {}", lacking.join(", "))]
    KernelUnavailable {
        /// The kernel's name.
        name: &'static str,
        /// The processor features that are missing.
        lacking: Vec<&'static str>,
    },
    /// No protected memory for the round keys.
    #[error("no memory for the round keys: {0}")]
    Secret(#[from] secret::SecretError),
}

/// What a part is, behind its name.
fn known_as(what: Option<&str>) -> String {
    what.map(|what| format!(": {what}")).unwrap_or_default()
}

/// "16, 24 or 32".
fn list(sizes: &[usize]) -> String {
    let words: Vec<String> = sizes.iter().map(usize::to_string).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_size_message_names_string_length_and_choices() {
        let error = CipherError::KeySize { spec: "aes-cbc-plain64".into(), got_bytes: 17, allowed: &[16, 24, 32] };
        assert_eq!(error.to_string(), "aes-cbc-plain64 takes a key of 16, 24 or 32 bytes, not 17");
    }
}
