//! What a setup writes outside of the set's own folders: systemd's units and the compose file.

use std::path::{Path, PathBuf};

use super::{Action, Plan, Standpoint, Step};
use crate::VolumesError;
use crate::compose::{self, compose};
use crate::config::Config;
use crate::units::{Around, UnitFile, install, installed, units};

/// Where units and compose file go; nothing where they are not wanted.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Folder of the units.
    pub units: Option<PathBuf>,
    /// The compose file.
    pub compose: Option<PathBuf>,
}

fn blocked(action: Action, target: String, error: &VolumesError, without: &str) -> Step {
    let mend = match error {
        VolumesError::Refused { mend, .. } => format!("{mend}; or {without}"),
        _ => without.to_owned(),
    };
    Step::blocked(action, target, error.to_string(), mend)
}

impl Outside {
    /// Adds the steps to the plan.
    pub fn add_to(&self, plan: &mut Plan, config: &Config, around: &Around<'_>) {
        if let Some(folder) = &self.units {
            let target = folder.display().to_string();
            let planned = units(config, around).and_then(|files| installed(&files, folder));
            plan.steps.push(match planned {
                Err(error) => blocked(Action::Units, target, &error, "--no-units"),
                Ok(done) if done.written.is_empty() && done.removed.is_empty() => {
                    Step::new(Action::Units, target, Standpoint::There, "")
                }
                Ok(done) => {
                    let (written, removed) = (done.written.len(), done.removed.len());
                    Step::missing(Action::Units, target, format!("{written} to write, {removed} to remove"))
                }
            });
        }
        let is_bound = config.volumes.iter().any(|volume| volume.container.is_some() && volume.mount.is_some());
        if let Some(path) = self.compose.as_ref().filter(|_| is_bound) {
            let target = path.display().to_string();
            plan.steps.push(match compose(config, None) {
                Err(error) => blocked(Action::Compose, target, &error, "--no-compose"),
                Ok(text) if std::fs::read_to_string(path).is_ok_and(|there| there == text) => {
                    Step::new(Action::Compose, target, Standpoint::There, "")
                }
                Ok(_) => Step::missing(Action::Compose, target, "the container that uses the volumes"),
            });
        }
    }

    /// Performs a step of [`Outside::add_to`]; whether it was one.
    ///
    /// # Errors
    /// [`VolumesError::Refused`] for a file that is not ours, [`VolumesError::Io`].
    pub fn perform(&self, step: &Step, config: &Config, around: &Around<'_>) -> Result<bool, VolumesError> {
        match (step.action, &self.units, &self.compose) {
            (Action::Units, Some(folder), _) => {
                let files: Vec<UnitFile> = units(config, around)?;
                install(&files, folder).map(|_| true)
            }
            (Action::Compose, _, Some(path)) => {
                compose::write(config, &compose(config, None)?, Path::new(path)).map(|_| true)
            }
            _ => Ok(false),
        }
    }
}
