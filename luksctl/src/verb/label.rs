//! `label IMAGE [LABEL]`: shows or sets label and subsystem, each alone; the other one stays. cryptsetup's `config` sets
//! them through the same code. An empty text takes the label away.

use clap::Args;
use luks::{HeaderSettings, KeyslotId};
use serde_json::json;

use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;
use crate::verb::keyslot::priority::{self, Priority};

/// What LUKS1 lacks for this verb.
const NO_LABELS: &str = "labels";

/// Arguments of `label`.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The new label, at most 47 bytes; '' takes it away
    #[arg(value_name = "LABEL")]
    label: Option<String>,
    /// The new label, as an option
    #[arg(long = "label", value_name = "LABEL", conflicts_with = "label", id = "label-option")]
    label_option: Option<String>,
    /// The new subsystem, at most 47 bytes; '' takes it away
    #[arg(long, value_name = "TEXT")]
    subsystem: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Arguments of `config`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("setting").required(true).multiple(true).args(["label", "subsystem", "priority"]))]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The new label; '' takes it away
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// The new subsystem; '' takes it away
    #[arg(long, value_name = "TEXT")]
    subsystem: Option<String>,
    /// When the keyslot of -S is tried
    #[arg(long, value_name = "PRIORITY", value_enum, requires = "key_slot")]
    priority: Option<Priority>,
    /// The keyslot of --priority
    #[arg(short = 'S', long, value_name = "N", requires = "priority")]
    key_slot: Option<u32>,
}

/// Shows or sets label and subsystem.
pub(crate) fn run(args: &LabelArgs, _common: &Common) -> Result<Code, Failure> {
    let label = args.label.as_ref().or(args.label_option.as_ref());
    let (path, label_now, subsystem_now) = if label.is_none() && args.subsystem.is_none() {
        let image = Image::open(&args.target, Access::Read)?;
        let header = image.load_luks2(&image::limits(&LimitArgs::default()), NO_LABELS)?;
        (image.path().to_owned(), header.label(), header.subsystem())
    } else {
        let settings =
            HeaderSettings { label: label.cloned(), subsystem: args.subsystem.clone(), ..HeaderSettings::default() };
        set(&args.target, &settings, NO_LABELS)?
    };
    if args.report.json {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        output::json(
            &json!({ "image": output::path(&path), "label": given(&label_now), "subsystem": given(&subsystem_now) }),
        )?;
    } else if label.is_none() && args.subsystem.is_none() {
        output::line(&format!("Label:     {}", shown(&label_now, "(no label)")))?;
        output::line(&format!("Subsystem: {}", shown(&subsystem_now, "(no subsystem)")))?;
    }
    Ok(Code::Success)
}

/// Sets what is given of label, subsystem and a keyslot's priority.
pub(crate) fn run_config(args: &ConfigArgs, _common: &Common) -> Result<Code, Failure> {
    let priority = args.priority.zip(args.key_slot).map(|(priority, number)| (KeyslotId(number), priority.into()));
    let no = if priority.is_some() { priority::NO_PRIORITIES } else { NO_LABELS };
    let settings = HeaderSettings { label: args.label.clone(), subsystem: args.subsystem.clone(), priority };
    set(&args.target, &settings, no).map(|_| Code::Success)
}

/// Sets what is given; gives the image and both texts as they are now.
fn set(
    target: &TargetArgs,
    settings: &HeaderSettings,
    no: &'static str,
) -> Result<(std::path::PathBuf, String, String), Failure> {
    let image = Image::open(target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&LimitArgs::default()), no)?;
    container.configure(settings).map_err(|error| Failure::of_luks(image.path(), error))?;
    let header = container.header();
    Ok((image.path().to_owned(), header.label(), header.subsystem()))
}

fn shown(text: &str, none: &str) -> String {
    if text.is_empty() { none.to_owned() } else { text.escape_debug().to_string() }
}
