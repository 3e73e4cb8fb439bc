//! `keyslot name IMAGE N TEXT`: writes down what a keyslot is for, who says so and when; `keyslot list` and `dump` show it.
//! An empty text takes the name away.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use luks::{KeyslotId, SlotName};
use serde_json::{Value, json};

use crate::args::target::{LimitArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};

/// Arguments of `keyslot name`.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the keyslot
    #[arg(value_name = "N")]
    number: u32,
    /// What it is for, at most 100 bytes; '' takes the name away
    #[arg(value_name = "TEXT")]
    text: String,
}

/// Names a keyslot.
pub(crate) fn run(args: &NameArgs) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&LimitArgs::default()), "names of keyslots")?;
    let name = (!args.text.is_empty()).then(|| written_now(&args.text));
    let named = container.set_keyslot_name(KeyslotId(args.number), name.as_ref());
    named.map_err(|error| Failure::of_luks(image.path(), error))?;
    Ok(Code::Success)
}

/// A name with this text, by whoever runs this program, now.
pub(super) fn written_now(text: &str) -> SlotName {
    let made_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map(|age| age.as_secs()).ok();
    SlotName { made_by: maker(), made_unix_s, ..SlotName::new(text) }
}

/// User and machine, as far as they are known; what could not be written is left out.
fn maker() -> Option<String> {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    let user = user.map_or_else(|| format!("uid {uid}"), |user| user.name);
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let maker = if machine.is_empty() { user } else { format!("{user}@{machine}") };
    (maker.len() <= luks::metadata::slot_name::TEXT_BYTES_MAX && !maker.chars().any(char::is_control)).then_some(maker)
}

/// The name for machines.
pub(crate) fn in_json(name: &SlotName) -> Value {
    json!({ "text": name.text, "made_by": name.made_by, "made_unix_s": name.made_unix_s })
}

/// The name for people: `backup (anna@office, 2026-02-02 02:40 UTC)`.
pub(crate) fn in_words(name: &SlotName) -> String {
    let told: Vec<String> = name.made_by.iter().cloned().chain(name.made_unix_s.map(utc)).collect();
    if told.is_empty() { name.text.clone() } else { format!("{} ({})", name.text, told.join(", ")) }
}

/// Seconds since 1970 as a date of the Gregorian calendar and a time of day, UTC.
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Years begin on 1 March here, so that the leap day is the last one; eras are 400 years of 146097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates() {
        for (unix_s, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_770_000_000, "2026-02-02 02:40 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(utc(unix_s), text);
        }
        // A header may say anything.
        assert!(utc(u64::MAX).ends_with("UTC"));
    }

    #[test]
    fn words_tell_what_is_known() {
        let name = SlotName { made_unix_s: Some(0), made_by: Some("a@b".into()), ..SlotName::new("text") };
        assert_eq!(in_words(&name), "text (a@b, 1970-01-01 00:00 UTC)");
        assert_eq!(in_words(&SlotName::new("text")), "text");
        assert!(maker().is_some());
    }
}
