//! `label IMAGE [LABEL]`: shows or sets label and subsystem, each alone; the other one stays. cryptsetup's `config` sets
//! them through the same code. An empty text takes the label away.

use clap::Args;
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
        set(&args.target, label, args.subsystem.as_ref())?
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
    if let Some((priority, number)) = args.priority.zip(args.key_slot) {
        priority::set(&args.target, number, priority)?;
    }
    if args.label.is_some() || args.subsystem.is_some() {
        set(&args.target, args.label.as_ref(), args.subsystem.as_ref())?;
    }
    Ok(Code::Success)
}

/// Sets what is given; gives the image and both texts as they are now.
fn set(
    target: &TargetArgs,
    label: Option<&String>,
    subsystem: Option<&String>,
) -> Result<(std::path::PathBuf, String, String), Failure> {
    let image = Image::open(target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&LimitArgs::default()), NO_LABELS)?;
    let refused = |error| Failure::of_luks(image.path(), error);
    let wanted = |text: &'_ String| Some(text.clone()).filter(|text| !text.is_empty());
    if let Some(label) = label {
        container.set_label(wanted(label).as_deref()).map_err(refused)?;
    }
    if let Some(subsystem) = subsystem {
        container.set_subsystem(wanted(subsystem).as_deref()).map_err(refused)?;
    }
    let header = container.header();
    Ok((image.path().to_owned(), header.label(), header.subsystem()))
}

fn shown(text: &str, none: &str) -> String {
    if text.is_empty() { none.to_owned() } else { text.escape_debug().to_string() }
}
