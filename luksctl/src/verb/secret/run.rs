//! `secret run -- COMMAND`: a program with secrets, handed over by descriptor, as credential files, or, weakest, in its
//! environment. This process becomes the program.
//!
//! A descriptor is a sealed memory file (memfd_create(2)) that only the program has; the variable names its path. Credential
//! files lie on a tmpfs in a mount namespace of the program's own (mount_namespaces(7)): nobody outside sees them, and they
//! end with its last process. Nothing is ever written to a disk; without encrypted swap the kernel may still swap pages of
//! either out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use nix::sched::CloneFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::FdFlags;
use rustix::mount::{MountFlags, MountPropagationFlags};
use secret::Secret;
use volumes::secrets::{self, Handover};
use volumes::set::SetStore;

use crate::args::Common;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;
use crate::verb;
use crate::verb::key::managed::Managed;
use crate::verb::volume::SetArgs;

/// The variable by which a program finds its credential files, as under systemd.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The folder of the run directory that the tmpfs is mounted on; empty for everybody else.
const MOUNT_POINT: &str = ".credentials";

/// Arguments of `secret run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Hand NAME over by descriptor: VARIABLE has the path that it is read from; more than once
    #[arg(long, value_name = "VARIABLE=NAME", value_parser = pair)]
    descriptor: Vec<(String, String)>,
    /// Hand NAME over as the file $CREDENTIALS_DIRECTORY/NAME on a tmpfs that only the program sees (root); more than once
    #[arg(long, value_name = "NAME")]
    credential: Vec<String>,
    /// Hand NAME over in the environment. The weakest way: children, core dumps and /proc have it; more than once
    #[arg(long, value_name = "VARIABLE=NAME", value_parser = pair)]
    environment: Vec<(String, String)>,
    #[command(flatten)]
    set: SetArgs,
    /// The program and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let is_variable = |word: &str| {
        let first = word.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        first && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match text.split_once('=') {
        Some((variable, name)) if is_variable(variable) && !name.is_empty() => {
            Ok((variable.to_owned(), name.to_owned()))
        }
        _ => Err("must be VARIABLE=NAME, the name of an environment variable and that of a secret".to_owned()),
    }
}

/// Everything that the program gets.
struct Given {
    descriptors: Vec<(String, Secret)>,
    credentials: Vec<(String, Secret)>,
    environment: Vec<(String, Secret)>,
}

/// Becomes the program.
pub(super) fn run(args: &RunArgs, common: &Common) -> Result<Code, Failure> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::wrong("no program is named").with_hint("luksctl secret run … -- COMMAND"));
    };
    if args.descriptor.is_empty() && args.credential.is_empty() && args.environment.is_empty() {
        return Err(Failure::wrong("no secret is named").with_hint("add --descriptor VARIABLE=NAME"));
    }
    if !args.environment.is_empty() && !common.batch_mode {
        output::words(
            "luksctl: warning: the environment is the weakest way to hand a secret over: children, core dumps and /proc have \
             it; --descriptor and --credential keep it to the program",
        );
    }
    let managed = Managed::looking(&args.set)?;
    let given = given(args, &managed, &managed.store()?, &program.to_string_lossy())?;
    let mut command = Command::new(program);
    command.args(arguments);
    let descriptors = given.descriptors.iter().map(|(variable, secret)| Ok((variable.clone(), memory_file(secret)?)));
    let descriptors = descriptors.collect::<std::io::Result<Vec<(String, OwnedFd)>>>();
    let descriptors = descriptors.map_err(|error| Failure::wrong(format!("making a memory file: {error}")))?;
    for (variable, descriptor) in &descriptors {
        command.env(variable, format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    }
    if !given.credentials.is_empty() {
        command.env(CREDENTIALS, credentials(&given.credentials)?);
    }
    for (variable, secret) in &given.environment {
        if secret.expose().contains(&0) {
            return Err(Failure::wrong(format!(
                "the secret for {variable} has a zero byte, which no variable can have"
            ))
            .with_hint("hand it over by --descriptor"));
        }
        command.env(variable, OsStr::from_bytes(secret.expose()));
    }
    drop(given);
    for (_, descriptor) in &descriptors {
        let kept = rustix::io::fcntl_setfd(descriptor, FdFlags::empty());
        kept.map_err(|error| Failure::wrong(format!("keeping a descriptor open: {error}")))?;
    }
    let error = command.exec();
    Err(Failure::from_open(Path::new(program), &error).or_hint(format!("ls -l {}", Path::new(program).display())))
}

/// Takes the secrets out of the store; each use is recorded. The store is closed before the program runs.
fn given(args: &RunArgs, managed: &Managed, store: &SetStore, program: &str) -> Result<Given, Failure> {
    let taken = |name: &str, how| {
        let name = secrets::name(name).map_err(managed.failed())?;
        secrets::hand_over(&managed.set, store, &name, how, program).map_err(managed.failed())
    };
    let pairs = |pairs: &[(String, String)], how| {
        let taken = pairs.iter().map(|(variable, name)| Ok((variable.clone(), taken(name, how)?)));
        taken.collect::<Result<Vec<_>, Failure>>()
    };
    let credentials = args.credential.iter().map(|name| Ok((name.clone(), taken(name, Handover::Credential)?)));
    Ok(Given {
        descriptors: pairs(&args.descriptor, Handover::Descriptor)?,
        credentials: credentials.collect::<Result<Vec<_>, Failure>>()?,
        environment: pairs(&args.environment, Handover::Environment)?,
    })
}

/// A file in memory that nobody can change, at its beginning. It is closed at exec until that is taken back.
fn memory_file(secret: &Secret) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("luksctl-secret", flags)?);
    file.write_all(secret.expose())?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Makes a mount namespace and in it a tmpfs with the secrets; where it is.
fn credentials(secrets: &[(String, Secret)]) -> Result<PathBuf, Failure> {
    let run = verb::run_dir()?;
    let folder = run.path().join(MOUNT_POINT);
    let made = std::fs::DirBuilder::new().recursive(true).create(&folder);
    made.map_err(|error| Failure::from_write("make", &folder, &error))?;
    let mounted = (|| {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        // Mounts made outside still come in, none of these goes out.
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = c"mode=0700,size=32m";
        // Without swap where the kernel (6.4) can.
        let plain = |_| rustix::mount::mount("luksctl", &folder, "tmpfs", flags, options);
        rustix::mount::mount("luksctl", &folder, "tmpfs", flags, c"mode=0700,size=32m,noswap").or_else(plain)?;
        for (name, secret) in secrets {
            let mut options = File::options();
            options.write(true).create_new(true).mode(0o400).open(folder.join(name))?.write_all(secret.expose())?;
        }
        rustix::mount::mount_remount(&folder, flags | MountFlags::RDONLY, options)?;
        Ok(())
    })();
    mounted.map_err(|error: std::io::Error| {
        Failure::wrong(format!("a tmpfs of the program's own cannot be made: {error}"))
            .with_hint("it needs root (CAP_SYS_ADMIN); --descriptor VARIABLE=NAME needs nothing")
    })?;
    Ok(folder)
}
