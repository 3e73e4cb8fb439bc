//! `keyslot priority IMAGE N prefer|normal|ignore`: when a keyslot is tried. cryptsetup's name: `config --priority -S N`.

use clap::{Args, ValueEnum};
use luks::KeyslotId;

use crate::args::target::{LimitArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};

/// What LUKS1 lacks.
pub(crate) const NO_PRIORITIES: &str = "priorities of keyslots";

/// When a keyslot is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Priority {
    /// First.
    Prefer,
    /// After the preferred ones.
    Normal,
    /// Only when asked for by its number.
    Ignore,
}

impl From<Priority> for luks::Priority {
    fn from(priority: Priority) -> luks::Priority {
        match priority {
            Priority::Prefer => luks::Priority::Prefer,
            Priority::Normal => luks::Priority::Normal,
            Priority::Ignore => luks::Priority::Ignore,
        }
    }
}

/// Arguments of `keyslot priority`.
#[derive(Debug, Args)]
pub(crate) struct PriorityArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the keyslot
    #[arg(value_name = "N")]
    number: u32,
    /// First, after those, or only by its number
    #[arg(value_name = "PRIORITY", value_enum)]
    priority: Priority,
}

/// Sets the priority.
pub(crate) fn run(args: &PriorityArgs) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&LimitArgs::default()), NO_PRIORITIES)?;
    let changed = container.set_keyslot_priority(KeyslotId(args.number), args.priority.into());
    changed.map_err(|error| Failure::of_luks(image.path(), error))?;
    Ok(Code::Success)
}
