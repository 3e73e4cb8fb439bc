//! `LUKSCTL_CPU`: the AES kernel that a user asks for, obeyed by the command and by the servers that it starts.

use std::ffi::OsString;

use dmcrypt::{CipherError, Kernel};

/// Name of the variable; its value is a kernel's name ([`Kernel::name`]).
pub const CPU_VARIABLE: &str = "LUKSCTL_CPU";

/// Makes every cipher of this process take the kernel that the environment names; without the variable nothing changes.
/// The servers that this process starts get the same one.
///
/// # Errors
/// [`CipherError::UnknownKernel`] and [`CipherError::KernelUnavailable`]; nothing has changed then.
pub fn obey_cpu_variable() -> Result<(), CipherError> {
    match std::env::var_os(CPU_VARIABLE) {
        Some(name) => obey(&name.to_string_lossy()),
        None => Ok(()),
    }
}

fn obey(name: &str) -> Result<(), CipherError> {
    dmcrypt::use_kernel(name.parse::<Kernel>()?)
}

/// Name and value for the environment of a server, if a kernel was chosen.
pub(crate) fn for_server() -> Option<(&'static str, OsString)> {
    dmcrypt::chosen_kernel().map(|kernel| (CPU_VARIABLE, kernel.name().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_or_cannot_run_changes_nothing() {
        for name in ["", "fastest", "AESNI", "vaes512\n"] {
            assert!(matches!(obey(name), Err(CipherError::UnknownKernel { .. })), "{name:?}");
        }
        for kernel in Kernel::ALL.into_iter().filter(|kernel| !kernel.is_available()) {
            assert!(matches!(obey(kernel.name()), Err(CipherError::KernelUnavailable { .. })), "{kernel}");
        }
        assert_eq!(dmcrypt::chosen_kernel(), None);
        assert_eq!(for_server(), None);
    }
}
