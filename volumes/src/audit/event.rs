//! [`Event`]: what a record says. Details take only what can be displayed, which a [`secret::Secret`] cannot:
//!
//! ```compile_fail,E0277
//! let key = secret::Secret::zeroed(32).unwrap();
//! volumes::audit::Event::new(volumes::audit::Category::Key, "rotate", "data").detail("key", &key);
//! ```
//!
//! Invariant: values are cut at 50 characters, details at 16, so a record has a bounded length.

use std::fmt::{Display, Write as _};

use super::{Actor, Moment};

/// Longest value of a detail, in characters.
const VALUE_CHARS_MAX: usize = 50;
/// Longest target, action and environment, in characters.
const TEXT_CHARS_MAX: usize = 200;
/// Most details of a record.
const DETAILS_MAX: usize = 16;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// A volume or a secret was used, or that failed.
    Access,
    /// A key was made, turned, proven, wiped.
    Key,
    /// A setting changed; details have the old and the new value.
    Config,
    /// A backup was made, checked, removed.
    Backup,
    /// Something was brought back from a backup or a recovery key.
    Recovery,
    /// What a person should look at, and the log's own housekeeping.
    Security,
}

impl Category {
    /// All of them.
    pub const ALL: [Category; 6] =
        [Category::Access, Category::Key, Category::Config, Category::Backup, Category::Recovery, Category::Security];

    /// The word of the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Category::Access => "ACCESS",
            Category::Key => "KEY",
            Category::Config => "CONFIG",
            Category::Backup => "BACKUP",
            Category::Recovery => "RECOVERY",
            Category::Security => "SECURITY",
        }
    }
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Info,
    /// Worth a look.
    Warning,
    /// Somebody has to look now.
    High,
}

impl Level {
    /// The word of the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Level::Info => "INFO",
            Level::Warning => "WARNING",
            Level::High => "HIGH",
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It did not work.
    Failed,
    /// It was not allowed.
    Denied,
}

impl Outcome {
    /// The word of the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Denied => "denied",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub(crate) level: Level,
    pub(crate) category: Category,
    pub(crate) action: &'static str,
    pub(crate) target: String,
    pub(crate) outcome: Outcome,
    pub(crate) details: Vec<(&'static str, String)>,
}

impl Event {
    /// `action` was done to `target`.
    #[must_use]
    pub fn new(category: Category, action: &'static str, target: impl Display) -> Event {
        let target = cut(&target.to_string(), TEXT_CHARS_MAX);
        Event { level: Level::Info, category, action, target, outcome: Outcome::Done, details: Vec::new() }
    }

    /// A setting of the file `target` changed.
    #[must_use]
    pub fn config(target: impl Display, setting: impl Display, old: impl Display, new: impl Display) -> Event {
        let event = Event::new(Category::Config, "set", target);
        event.detail("setting", setting).detail("old_value", old).detail("new_value", new)
    }

    /// The same with this end.
    #[must_use]
    pub fn ended(self, outcome: Outcome) -> Event {
        Event { outcome, ..self }
    }

    /// The same with this weight.
    #[must_use]
    pub fn level(self, level: Level) -> Event {
        Event { level, ..self }
    }

    /// The same with one more detail, cut at 50 characters. More than 16 are left out.
    #[must_use]
    pub fn detail(mut self, name: &'static str, value: impl Display) -> Event {
        if self.details.len() < DETAILS_MAX {
            self.details.push((name, cut(&value.to_string(), VALUE_CHARS_MAX)));
        }
        self
    }

    /// The record's text up to its MAC.
    pub(crate) fn body(&self, place: &Place<'_>) -> String {
        let mut body = format!("{}\"time\":\"{}\"", beginning(place.n, place.prev), place.time);
        for (name, value) in [("level", self.level.word()), ("category", self.category.word()), ("action", self.action)]
        {
            member(&mut body, name, value);
        }
        let Actor { uid, login_uid, process, pid } = place.actor;
        let login = login_uid.map_or_else(|| "null".to_owned(), |uid| uid.to_string());
        body.push_str(&format!(",\"actor\":{{\"uid\":{uid},\"login_uid\":{login}"));
        member(&mut body, "process", &cut(process, VALUE_CHARS_MAX));
        body.push_str(&format!(",\"pid\":{pid}}}"));
        member(&mut body, "target", &self.target);
        member(&mut body, "outcome", self.outcome.word());
        member(&mut body, "environment", &cut(place.environment, VALUE_CHARS_MAX));
        body.push_str(",\"details\":{");
        let mut details = String::new();
        for (name, value) in &self.details {
            member(&mut details, name, value);
        }
        body.push_str(details.strip_prefix(',').unwrap_or_default());
        body.push('}');
        body
    }
}

/// Where in the chain a record stands, and what it has from outside.
pub(crate) struct Place<'a> {
    pub(crate) n: u64,
    pub(crate) prev: &'a [u8; 32],
    pub(crate) time: Moment,
    pub(crate) actor: &'a Actor,
    pub(crate) environment: &'a str,
}

/// How the line of record n after `prev` begins, whatever it says.
pub(crate) fn beginning(n: u64, prev: &[u8; 32]) -> String {
    format!("{{\"n\":{n},\"prev\":\"{}\",", super::hex(prev))
}

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// `,"name":"value"` in ASCII: what is not, and every control character, is `\uXXXX`.
fn member(json: &mut String, name: &str, value: &str) {
    for (text, before, after) in [(name, ",\"", "\":"), (value, "\"", "\"")] {
        json.push_str(before);
        for symbol in text.chars() {
            match symbol {
                '"' | '\\' => json.extend(['\\', symbol]),
                ' '..='~' => json.push(symbol),
                _ => {
                    for unit in symbol.encode_utf16(&mut [0; 2]) {
                        // Writing to a String does not fail.
                        let _ = write!(json, "\\u{unit:04x}");
                    }
                }
            }
        }
        json.push_str(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_of_json_and_bounded() {
        let hostile = "\u{1b}]0;x\u{7}\n\"\\ü\u{202e}日\u{1f600}";
        let event = Event::config(hostile.repeat(100), "k", "o".repeat(51), hostile).detail("other", 3);
        let actor = Actor { uid: 0, login_uid: None, process: hostile.to_owned(), pid: 7 };
        let place =
            Place { n: 12, prev: &[171; 32], time: Moment::from_unix(0), actor: &actor, environment: "production" };
        let body = event.body(&place);
        assert!(body.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{body}");
        let value: serde_json::Value = serde_json::from_str(&format!("{body}}}")).unwrap();
        assert_eq!(value["details"]["new_value"], hostile);
        assert_eq!(value["details"]["old_value"].as_str().unwrap().len(), 50);
        assert_eq!(value["actor"]["process"], hostile);
        assert_eq!((value["category"].as_str(), value["outcome"].as_str()), (Some("CONFIG"), Some("done")));
        let many =
            (0..100).fold(Event::new(Category::Key, "a", "b"), |event, n| event.detail("d", "\u{1f600}".repeat(n)));
        assert!(many.body(&place).len() < 16 << 10);
    }
}
