//! Variables into the text of a configuration: comments and order stay, one key changes per variable, and the result is
//! read back before anybody sees it.

use std::fmt;
use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, Value, value};

use super::{Assignment, Direction, Effect, Kind, Stricter, VARIABLES, present, variable};
use crate::VolumesError;
use crate::config::Config;

/// A key that a variable changes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// The variable.
    pub variable: &'static str,
    /// The key, with its table.
    pub key: String,
    /// What held before.
    pub old: String,
    /// What holds now.
    pub new: String,
    /// Whether the set is less strict afterwards.
    pub loosens: bool,
}

/// A variable that is not written, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// The variable.
    pub variable: &'static str,
    /// Why.
    pub why: String,
}

/// What an import gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The new text of the file.
    pub text: String,
    /// What it says.
    pub config: Config,
    /// Keys that differ from before.
    pub changes: Vec<Change>,
    /// Variables that were not written.
    pub left_out: Vec<LeftOut>,
}

/// Why a variable cannot be imported; nothing is.
#[derive(Debug)]
pub enum Refusal {
    /// A value is none that the variable can have, or something that the set cannot do.
    Value {
        /// The line of the `.env` file.
        line: usize,
        /// The variable and its value.
        variable: String,
        /// What is wrong.
        what: String,
    },
    /// The set would be less strict.
    Loosens(Vec<Change>),
    /// The file is none before, or would be none afterwards.
    Config(VolumesError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Value { line, variable, what } => write!(f, "{line}: {variable}: {what}"),
            Refusal::Loosens(changes) => {
                let each = changes.iter().map(|change| {
                    format!("{} would turn {} from {} to {}", change.variable, change.key, change.old, change.new)
                });
                write!(f, "{}: that makes the set less strict", each.collect::<Vec<_>>().join("; "))
            }
            Refusal::Config(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// The configuration `text` with these variables written into it. Messages call the file `path`.
///
/// # Errors
/// [`Refusal`]: a value that cannot be, or one that loosens the set and is not allowed to.
pub fn import(text: &str, path: &Path, assigned: &[Assignment], may_loosen: bool) -> Result<Import, Refusal> {
    let before = Config::parse(text, path).map_err(Refusal::Config)?;
    let mut document = editable(text, path)?;
    let (mut changes, mut left_out) = (Vec::new(), Vec::new());
    for assignment in assigned {
        let Some(variable) = variable(assignment.name) else { continue };
        let refused = |what: String| Refusal::Value {
            line: assignment.line,
            variable: format!("{}={}", assignment.name, assignment.value),
            what,
        };
        match variable.effect {
            Effect::NotYet(what) => {
                left_out.push(LeftOut { variable: variable.name, why: format!("nothing acts on it yet ({what})") });
            }
            Effect::AlwaysTrue if flag(&assignment.value) == Some(true) => {
                left_out.push(LeftOut { variable: variable.name, why: "it is always so".to_owned() });
            }
            Effect::AlwaysTrue => return Err(refused("cannot be: every volume here is encrypted".to_owned())),
            Effect::Volume(name) => match (flag(&assignment.value), before.volume(name)) {
                (Some(true), Some(_)) => {
                    left_out.push(LeftOut { variable: variable.name, why: format!("[volumes.{name}] is there") });
                }
                (Some(true), None) => {
                    return Err(refused(format!("there is no [volumes.{name}]; write it into {}", path.display())));
                }
                _ => return Err(refused("cannot be: every volume here is encrypted".to_owned())),
            },
            Effect::Key { path: key, kind, stricter } => {
                let new = canonical(kind, &assignment.value).map_err(refused)?;
                let old = present(&before, key, |name| default_in(&document, name));
                let direction = stricter.compare(&old, &new);
                if direction != Direction::Same {
                    set(&mut document, key, kind, &new);
                    let loosens = direction == Direction::Loosens;
                    changes.push(Change { variable: variable.name, key: dotted(key), old, new, loosens });
                    left_out.extend(overridden(&document, key, variable.name));
                }
            }
        }
    }
    let loosening: Vec<Change> = changes.iter().filter(|change| change.loosens).cloned().collect();
    if !may_loosen && !loosening.is_empty() {
        return Err(Refusal::Loosens(loosening));
    }
    // Untouched to the byte where nothing changes.
    let text = if changes.is_empty() { text.to_owned() } else { document.to_string() };
    let config = Config::parse(&text, path).map_err(Refusal::Config)?;
    Ok(Import { text, config, changes, left_out })
}

/// The configuration `text` under the variables of this process: what makes it stricter counts, the rest is named.
///
/// # Errors
/// [`Refusal::Config`] for a text that is no configuration, or that a stricter variable would make one that cannot be.
pub fn tightened(
    text: &str,
    path: &Path,
    of_environment: impl Fn(&str) -> Option<String>,
) -> Result<(Config, Vec<Change>, Vec<LeftOut>), Refusal> {
    let before = Config::parse(text, path).map_err(Refusal::Config)?;
    let document = editable(text, path)?;
    let (mut taken, mut ignored) = (Vec::new(), Vec::new());
    for variable in &VARIABLES {
        let Effect::Key { path: key, kind, stricter } = variable.effect else { continue };
        let Some(given) = of_environment(variable.name).filter(|_| stricter != Stricter::Neither) else { continue };
        let old = present(&before, key, |name| default_in(&document, name));
        let why = match canonical(kind, &given).map(|new| stricter.compare(&old, &new)) {
            Ok(Direction::Same | Direction::Neither) => continue,
            Ok(Direction::Tightens) => {
                taken.push(Assignment { name: variable.name, value: given, line: 0 });
                continue;
            }
            Ok(Direction::Loosens) => format!("{} is {old}, and the environment loosens nothing", dotted(key)),
            Err(what) => what,
        };
        ignored.push(LeftOut { variable: variable.name, why });
    }
    let import = import(text, path, &taken, false)?;
    Ok((import.config, import.changes, ignored))
}

fn editable(text: &str, path: &Path) -> Result<DocumentMut, Refusal> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        Refusal::Config(VolumesError::File { path: path.to_owned(), what: error.message().to_owned() })
    })
}

fn dotted((table, key): (&str, &str)) -> String {
    format!("{table}.{key}")
}

/// `true` or `false` as people write them.
fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// The value as the file would have it.
fn canonical(kind: Kind, text: &str) -> Result<String, String> {
    match kind {
        Kind::Number => {
            text.parse::<u32>().map(|number| number.to_string()).map_err(|_| "must be a whole number".to_owned())
        }
        Kind::Flag => flag(text).map(|flag| flag.to_string()).ok_or_else(|| "must be true or false".to_owned()),
        Kind::Word => Ok(text.to_owned()),
    }
}

/// What `[defaults]` says of a key.
fn default_in(document: &DocumentMut, key: &str) -> Option<String> {
    let item = document.get("defaults")?.as_table_like()?.get(key)?;
    item.as_str().map(str::to_owned).or_else(|| item.as_integer().map(|number| number.to_string()))
}

/// Volumes that have the key themselves, so that a default does not reach them.
fn overridden(document: &DocumentMut, (table, key): (&str, &str), name: &'static str) -> Option<LeftOut> {
    let volumes = document.get("volumes").filter(|_| table == "defaults")?.as_table_like()?;
    let own: Vec<&str> = volumes
        .iter()
        .filter(|(_, volume)| volume.as_table_like().is_some_and(|volume| volume.contains_key(key)))
        .map(|(name, _)| name)
        .collect();
    let why = format!("written as a default; it does not reach {}, which have their own {key}", own.join(", "));
    (!own.is_empty()).then_some(LeftOut { variable: name, why })
}

/// Writes one value; comments beside it stay.
fn set(document: &mut DocumentMut, (table, key): (&str, &str), kind: Kind, text: &str) {
    let new: Value = match kind {
        Kind::Number => text.parse::<i64>().unwrap_or_default().into(),
        Kind::Flag => (text == "true").into(),
        Kind::Word => text.into(),
    };
    let item = document.entry(table).or_insert_with(|| Item::Table(Table::new()));
    let Some(section) = item.as_table_like_mut() else { return };
    match section.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = new;
            *old.decor_mut() = decor;
        }
        None => {
            section.insert(key, value(new));
        }
    }
}
