//! `key request|approve|requests`: dual approval of operations on the managed set's keys.

use clap::{Args, ValueEnum};
use volumes::approval::{self, Operation, State};

use super::managed::Managed;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;
use crate::verb::volume::SetArgs;

/// What can be requested, in the words of its verb.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Asked {
    /// A new key for a volume, or for every one
    Rotate,
    /// A new key for backups of data
    RotateBackup,
    /// A new master secret
    RotateMaster,
    /// A backup of all keys now
    ExportSet,
}

impl Asked {
    fn operation(self) -> Operation {
        match self {
            Asked::Rotate => Operation::Rotate,
            Asked::RotateBackup => Operation::RotateBackup,
            Asked::RotateMaster => Operation::RotateMaster,
            Asked::ExportSet => Operation::ExportSet,
        }
    }
}

/// Arguments of `key request`.
#[derive(Debug, Args)]
pub(super) struct RequestArgs {
    /// What is to be done
    #[arg(value_name = "OPERATION")]
    operation: Asked,
    /// The volume, for rotate
    #[arg(value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    set: SetArgs,
}

/// Arguments of `key approve`.
#[derive(Debug, Args)]
pub(super) struct ApproveArgs {
    /// What `key request` printed, or `key requests` lists
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    set: SetArgs,
}

/// Arguments of `key requests`.
#[derive(Debug, Args)]
pub(super) struct RequestsArgs {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Requests an operation and prints the ID.
pub(super) fn run_request(args: &RequestArgs) -> Result<Code, Failure> {
    let managed = Managed::looking(&args.set)?;
    let target = match (args.operation, &args.name) {
        (Asked::Rotate, Some(name)) if managed.set.config().volume(name).is_some() => name.as_str(),
        (Asked::Rotate, name) => {
            let name = name.as_deref().unwrap_or("no volume");
            return Err(Failure::device(format!("{name}: is no volume of this set")).with_hint("luksctl volume list"));
        }
        (_, None) => "",
        (_, Some(name)) => {
            return Err(Failure::wrong(format!("{name}: only rotate is for one volume")).with_hint("leave it out"));
        }
    };
    let id = approval::request(&managed.set, args.operation.operation(), target).map_err(managed.failed())?;
    output::line(&id)?;
    output::words(&format!("Another user approves it within 24 hours: luksctl key approve {id}"));
    Ok(Code::Success)
}

/// Approves what another person requested.
pub(super) fn run_approve(args: &ApproveArgs) -> Result<Code, Failure> {
    let managed = Managed::looking(&args.set)?;
    let done = approval::approve(&managed.set, &args.id).map_err(managed.failed())?;
    let what = format!("{} {}", done.operation.word(), done.target);
    output::words(&format!(
        "Approved: {}, requested by uid {}. It is good for one use.",
        what.trim_end(),
        done.requester
    ));
    Ok(Code::Success)
}

/// Lists requests.
pub(super) fn run_requests(args: &RequestsArgs) -> Result<Code, Failure> {
    let managed = Managed::looking(&args.set)?;
    let found = approval::list(&managed.set).map_err(managed.failed())?;
    if args.report.json {
        output::json(&found)?;
        return Ok(Code::Success);
    }
    for request in &found {
        let state = match (request.state, request.approver) {
            (State::Waits, _) => "waits".to_owned(),
            (State::Approved, Some(uid)) => format!("approved by uid {uid}"),
            (State::Approved, None) => "approved".to_owned(),
            (State::Expired, _) => "expired".to_owned(),
        };
        let what = format!("{} {}", request.operation.word(), request.target);
        output::line(&format!("{}  {}, requested by uid {}: {state}", request.id, what.trim_end(), request.requester))?;
    }
    if found.is_empty() {
        output::words("No request.");
    }
    Ok(Code::Success)
}
