//! Exit codes: cryptsetup's 0 to 5 (its manual page, "RETURN CODES"), 10 for "a report found something". This file is the
//! only place that maps errors to codes.

use std::io;
use std::process::ExitCode;

use block::{BlockError, BlockErrorKind};
use luks::Error;
use nix::sys::signal::Signal;
use secret::{KeySourceError, SecretError};
use session::{FailureKind, SessionError};

use crate::args::Common;
use crate::failure::Failure;
use crate::terminal;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Done; also `--help` and `--version`.
    Success = 0,
    /// Wrong parameters, and whatever has no code of its own.
    Wrong = 1,
    /// No key available with this passphrase, or no permission.
    Permission = 2,
    /// Out of memory.
    Memory = 3,
    /// No such device, file or open volume.
    Device = 4,
    /// Already exists, or in use.
    Busy = 5,
    /// The verb worked, and what it looked at needs attention.
    Found = 10,
    /// Stopped by SIGHUP, as the shell counts it.
    HungUp = 129,
    /// Stopped by SIGINT: Ctrl-C.
    Interrupted = 130,
    /// Stopped by SIGTERM.
    Terminated = 143,
}

impl Code {
    /// The code of a program that a signal stopped.
    pub(crate) fn of_signal(signal: Signal) -> Code {
        match signal {
            Signal::SIGHUP => Code::HungUp,
            Signal::SIGTERM => Code::Terminated,
            _ => Code::Interrupted,
        }
    }

    /// The words that cryptsetup's `-v` adds to a code.
    fn meaning(self) -> &'static str {
        match self {
            Code::Success => "success",
            Code::Wrong => "wrong or missing parameters",
            Code::Permission => "no permission or bad passphrase",
            Code::Memory => "out of memory",
            Code::Device => "wrong device or file specified",
            Code::Busy => "device already exists or device is busy",
            Code::Found => "something needs attention",
            Code::HungUp | Code::Interrupted | Code::Terminated => "stopped by a signal",
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> ExitCode {
        ExitCode::from(code as u8)
    }
}

/// Says on stderr how the verb ended, and gives the exit code.
pub(crate) fn report(common: &Common, result: Result<Code, Failure>) -> Code {
    let code = match result {
        Ok(code) => code,
        Err(failure) => {
            crate::output::words(&format!("luksctl: {}", terminal::plain(failure.message())));
            if let Some(hint) = failure.hint() {
                crate::output::words(&format!("hint: {}", terminal::plain(hint)));
            }
            failure.code()
        }
    };
    if common.verbose {
        crate::output::words(&match code {
            Code::Success => "Command successful.".to_owned(),
            code => format!("Command failed with code -{} ({}).", code as u8, code.meaning()),
        });
    }
    code
}

/// What the format library says.
pub(crate) fn of_luks(error: &Error) -> Code {
    match error {
        Error::NoKey { .. } | Error::KeyRefused { .. } | Error::KeyUnknown => Code::Permission,
        Error::Memory { .. } | Error::Threads { .. } => Code::Memory,
        Error::Secret(error) => of_secret(error),
        Error::Block(error) => of_block(error),
        Error::Locked { .. } | Error::InReencryption { .. } => Code::Busy,
        Error::NoUsableKeyslot { broken } if broken.iter().any(|slot| of_luks(&slot.reason) == Code::Memory) => {
            Code::Memory
        }
        _ => Code::Wrong,
    }
}

/// What reading or writing a disk says.
pub(crate) fn of_block(error: &BlockError) -> Code {
    match error.kind {
        BlockErrorKind::Gone => Code::Device,
        BlockErrorKind::Busy | BlockErrorKind::Suspended => Code::Busy,
        _ => Code::Wrong,
    }
}

/// What opening a disk says: what is missing or closed to us is the wrong device.
pub(crate) fn of_block_open(error: &BlockError) -> Code {
    match (&error.source, of_block(error)) {
        (Some(source), Code::Wrong) => of_open(source),
        (None, Code::Wrong) if error.kind == BlockErrorKind::Unsupported => Code::Device,
        (_, code) => code,
    }
}

/// What the session of open volumes says.
pub(crate) fn of_session(error: &SessionError) -> Code {
    match error {
        SessionError::NoKey { .. } => Code::Permission,
        SessionError::NotOpen { .. } | SessionError::NotMounted { .. } | SessionError::Image { .. } => Code::Device,
        SessionError::AlreadyOpen { .. }
        | SessionError::ImageOpen { .. }
        | SessionError::ImageInUse { .. }
        | SessionError::Leftover { .. }
        | SessionError::Busy { .. } => Code::Busy,
        SessionError::Refused(failure) => of_failure(failure.kind),
        SessionError::Io { source, .. } => of_open(source),
        SessionError::Block { source, .. } => of_block_open(source),
        SessionError::Luks { source, .. } => of_luks(source),
        SessionError::KeySource(error) => of_key_source(error),
        SessionError::Secret(error) => of_secret(error),
        _ => Code::Wrong,
    }
}

/// What a server says.
fn of_failure(kind: FailureKind) -> Code {
    match kind {
        FailureKind::NoKey | FailureKind::Permission => Code::Permission,
        FailureKind::Memory => Code::Memory,
        FailureKind::Image => Code::Device,
        FailureKind::ImageInUse | FailureKind::Busy => Code::Busy,
        _ => Code::Wrong,
    }
}

/// What a key source says.
pub(crate) fn of_key_source(error: &KeySourceError) -> Code {
    match error {
        KeySourceError::Secret(error) => of_secret(error),
        KeySourceError::Mismatch => Code::Permission,
        _ => Code::Wrong,
    }
}

/// What locked memory says.
pub(crate) fn of_secret(error: &SecretError) -> Code {
    match error {
        SecretError::Allocation { .. } => Code::Memory,
        _ => Code::Wrong,
    }
}

/// Opening a file: missing or closed to us is the wrong device, as in cryptsetup.
pub(crate) fn of_open(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => Code::Device,
        io::ErrorKind::NotADirectory | io::ErrorKind::ReadOnlyFilesystem => Code::Device,
        io::ErrorKind::AlreadyExists | io::ErrorKind::ResourceBusy => Code::Busy,
        io::ErrorKind::OutOfMemory => Code::Memory,
        _ => Code::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use block::Bytes;

    use super::*;

    fn block(kind: BlockErrorKind) -> BlockError {
        BlockError::new(kind, "read", Bytes(0), 512)
    }

    #[test]
    fn the_table() {
        let no_key = || Error::NoKey { tried: Vec::new(), broken: Vec::new() };
        let memory = || Error::Memory { needed: Bytes(2), available: Bytes(1) };
        for (error, code) in [
            (no_key(), 2),
            (memory(), 3),
            (Error::NotLuks, 1),
            (Error::Luks1, 1),
            (Error::Poisoned, 1),
            (Error::LastKeyslot { keyslot: luks::KeyslotId(0) }, 1),
            (Error::KeyslotMissing { keyslot: luks::KeyslotId(7) }, 1),
            (Error::KdfLimit { parameter: "memory", value: 9, min: 1, max: 2 }, 1),
            (Error::Block(block(BlockErrorKind::NoSpace)), 1),
            (Error::Block(block(BlockErrorKind::Gone)), 4),
            (Error::Block(block(BlockErrorKind::Busy)), 5),
        ] {
            assert_eq!(of_luks(&error) as u8, code, "{error}");
        }
        let name = || "name".to_owned();
        for (error, code) in [
            (SessionError::NoKey { tries: 3 }, 2),
            (SessionError::NotOpen { name: name() }, 4),
            (SessionError::AlreadyOpen { name: name() }, 5),
            (SessionError::Busy { name: name(), how: String::new() }, 5),
            (SessionError::ImageOpen { image: "image".into(), name: name() }, 5),
            (SessionError::Luks { path: "image".into(), source: no_key() }, 2),
            (SessionError::Luks { path: "image".into(), source: memory() }, 3),
            (SessionError::KeySource(KeySourceError::Nothing), 1),
            (SessionError::Name { name: name(), reason: "it is bad" }, 1),
        ] {
            assert_eq!(of_session(&error) as u8, code, "{error}");
        }
        for (kind, code) in [
            (io::ErrorKind::NotFound, 4),
            (io::ErrorKind::PermissionDenied, 4),
            (io::ErrorKind::AlreadyExists, 5),
            (io::ErrorKind::StorageFull, 1),
        ] {
            assert_eq!(of_open(&io::Error::from(kind)) as u8, code, "{kind:?}");
        }
    }

    #[test]
    fn the_numbers_are_cryptsetups() {
        let codes = [Code::Success, Code::Wrong, Code::Permission, Code::Memory, Code::Device, Code::Busy, Code::Found];
        assert_eq!(codes.map(|code| code as u8), [0, 1, 2, 3, 4, 5, 10]);
    }
}
