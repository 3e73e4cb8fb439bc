//! `compliance report`: what the profile demands, how it stands, and the evidence.

use clap::{Args, Subcommand};
use volumes::compliance::{Demand, Report, Verdict, report};
use volumes::config::Profile;
use volumes::set::Set;

use super::volume::SetArgs;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `compliance`.
#[derive(Debug, Args)]
pub(crate) struct ComplianceArgs {
    /// What to do
    #[command(subcommand)]
    verb: ComplianceVerb,
}

/// What can be done.
#[derive(Debug, Subcommand)]
enum ComplianceVerb {
    /// Hold the headers, the keys, the audit log and the configuration against a profile's demands; 10 if one is not met
    Report(ReportVerbArgs),
}

#[derive(Debug, Args)]
struct ReportVerbArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Whose demands, instead of those of the set's own profile
    #[arg(long, value_name = "PROFILE", value_parser = profile)]
    profile: Option<Profile>,
    #[command(flatten)]
    report: ReportArgs,
}

fn profile(text: &str) -> Result<Profile, String> {
    let found = Profile::ALL.iter().copied().find(|profile| profile.word() == text);
    found.ok_or_else(|| "must be none, pci-dss or sox".to_owned())
}

/// Runs the verb below `compliance`.
pub(crate) fn run(args: &ComplianceArgs) -> Result<Code, Failure> {
    let ComplianceVerb::Report(args) = &args.verb;
    let set = Set::new(args.set.load()?, &args.set.config);
    let keys = set.metadata().map_err(|error| error.to_string());
    let profile = args.profile.unwrap_or(set.config().profile);
    let report = report(set.config(), profile, keys.as_ref().map_err(String::as_str), Set::now());
    if args.report.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if report.count(Verdict::NotMet) == 0 { Code::Success } else { Code::Found })
}

fn print(report: &Report) -> Result<(), Failure> {
    output::line(&format!("Demands of profile {}, {}", report.profile, report.time))?;
    report.demands.iter().try_for_each(print_demand)?;
    output::line("")?;
    output::line("Security checklist")?;
    report.checklist.iter().try_for_each(print_demand)?;
    let [not_met, unknown] = [Verdict::NotMet, Verdict::Unknown].map(|verdict| report.count(verdict));
    output::words(&format!(
        "{} demands: {} met, {not_met} not met, {unknown} cannot be told.",
        report.demands.len(),
        report.count(Verdict::Met)
    ));
    Ok(())
}

fn print_demand(demand: &Demand) -> Result<(), Failure> {
    output::line(&format!("- {}: {}: {}", demand.name, demand.demand, demand.verdict.words()))?;
    demand.evidence.iter().try_for_each(|evidence| output::line(&format!("    {evidence}")))
}
