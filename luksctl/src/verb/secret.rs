//! `secret set|list|remove|run`: small secrets for programs, sealed in the managed set's key store.

mod run;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use secret::Purpose;
use serde_json::json;
use volumes::secrets;

use super::key::managed::Managed;
use super::volume::SetArgs;
use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::ReportArgs;
use crate::confirm;
use crate::exit::Code;
use crate::failure::Failure;
use crate::keys::KeySource;
use crate::output;

/// Arguments of `secret`.
#[derive(Debug, Args)]
pub(crate) struct SecretArgs {
    /// What to do with secrets
    #[command(subcommand)]
    verb: SecretVerb,
}

/// What can be done with secrets.
#[derive(Debug, Subcommand)]
enum SecretVerb {
    /// Keep a secret, typed, from standard input's first line, or from a file; one of the same name is replaced
    Set(SetSecretArgs),
    /// List the names of the secrets, never the secrets
    List(ListArgs),
    /// Destroy a secret
    Remove(RemoveArgs),
    /// Run a program that gets secrets by descriptor, in credential files, or in its environment
    Run(run::RunArgs),
}

#[derive(Debug, Args)]
struct SetSecretArgs {
    /// Its name: letters, digits, _ and -
    #[arg(value_name = "NAME")]
    name: String,
    /// All of this file is the secret, its newlines, too; - is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    set: SetArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    set: SetArgs,
}

/// Runs the verb below `secret`.
pub(crate) fn run(args: &SecretArgs, common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        SecretVerb::Set(args) => set(args),
        SecretVerb::List(args) => list(args),
        SecretVerb::Remove(args) => remove(args, common),
        SecretVerb::Run(args) => run::run(args, common),
    }
}

fn set(args: &SetSecretArgs) -> Result<Code, Failure> {
    let managed = Managed::alone(&args.set)?;
    let name = secrets::name(&args.name).map_err(managed.failed())?;
    // The store first: where both are lines of standard input, the master passphrase is the first.
    let mut store = managed.store()?;
    let mut source = match &args.file {
        Some(file) => KeySource::volume_key(file)?,
        None => KeySource::unlocking(&KeyArgs { tries: 1, ..KeyArgs::default() }, None)?,
    };
    let value = source.passphrase(&args.name, Purpose::NewPassphrase, 1)?;
    if value.is_empty() {
        return Err(Failure::wrong(format!("the secret {} would be empty", args.name))
            .with_hint(format!("luksctl secret remove {}", args.name)));
    }
    secrets::set(&managed.set, &mut store, &name, &value).map_err(managed.failed())?;
    output::words(&format!("Secret {name} is sealed: {} bytes.", value.len()));
    Ok(Code::Success)
}

fn list(args: &ListArgs) -> Result<Code, Failure> {
    let managed = Managed::looking(&args.set)?;
    let found = secrets::list(&managed.set).map_err(managed.failed())?;
    if args.report.json {
        let rows: Vec<_> = found.iter().map(|(name, time)| json!({ "name": name, "set": time.to_string() })).collect();
        output::json(&rows)?;
    } else {
        found.iter().try_for_each(|(name, time)| output::line(&format!("{name}  {time}")))?;
        if found.is_empty() {
            output::words("No secret is kept.");
        }
    }
    Ok(Code::Success)
}

fn remove(args: &RemoveArgs, common: &Common) -> Result<Code, Failure> {
    let managed = Managed::alone(&args.set)?;
    let name = secrets::name(&args.name).map_err(managed.failed())?;
    let mut store = managed.store()?;
    confirm::before_loss(common, &format!("the secret {name} is destroyed; backups of keys do not have it."))?;
    secrets::remove(&managed.set, &mut store, &name).map_err(managed.failed())?;
    output::words(&format!("Secret {name} is destroyed."));
    Ok(Code::Success)
}
