//! [`Moment`]: a time of the caller's clock in UTC, as RFC 3339 writes it, to the microsecond.
//!
//! All have the same length, so that texts sort as times do. Days from and to the civil calendar after Howard Hinnant's
//! `days_from_civil`.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const DAY_S: i64 = 86_400;
/// 9999-12-31T23:59:59: later ones would need another length.
const LAST_S: i64 = 253_402_300_799;

/// A time in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    seconds: i64,
    micros: u32,
}

impl Moment {
    /// The system's clock now.
    #[must_use]
    pub fn now() -> Moment {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(LAST_S);
        Moment { seconds, micros: since.subsec_micros() }.clamped()
    }

    /// So many seconds after 1970 began.
    #[must_use]
    pub fn from_unix(seconds: i64) -> Moment {
        Moment { seconds, micros: 0 }.clamped()
    }

    fn clamped(self) -> Moment {
        Moment { seconds: self.seconds.clamp(0, LAST_S), ..self }
    }

    /// So many seconds earlier.
    #[must_use]
    pub fn minus_seconds(self, seconds: u32) -> Moment {
        Moment { seconds: self.seconds - i64::from(seconds), ..self }.clamped()
    }

    /// Its month, `2026-11`.
    #[must_use]
    pub fn month(self) -> String {
        self.to_string().chars().take(7).collect()
    }

    /// What a person types: `2026-11-23`, `2026-11-23T08:00:00Z`, `now`, or `90m`, `24h`, `7d` for so long ago.
    ///
    /// # Errors
    /// What it may be.
    pub fn parse(text: &str, now: Moment) -> Result<Moment, String> {
        let form = || "must be 2026-11-23, 2026-11-23T08:00:00Z (UTC), now, or 90m, 24h, 7d for so long ago".to_owned();
        let unit = text.chars().last().and_then(|unit| match unit {
            'm' => Some(60),
            'h' => Some(3600),
            'd' => Some(DAY_S),
            _ => None,
        });
        if text == "now" {
            return Ok(now);
        }
        if let Some(unit) = unit {
            let count: i64 = text[..text.len() - 1].parse::<u32>().map_err(|_| form())?.into();
            return Ok(Moment { seconds: now.seconds - count * unit, ..now }.clamped());
        }
        let number =
            |at: std::ops::Range<usize>| text.get(at).and_then(|part| part.parse::<u32>().ok()).ok_or_else(form);
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let seconds = match text.len() {
            10 => 0,
            20 => i64::from(number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?),
            _ => return Err(form()),
        };
        let days = days_from_civil(i64::from(year), i64::from(month), i64::from(day));
        let moment = Moment { seconds: days * DAY_S + seconds, micros: 0 };
        // What does not print as it was typed is no date: 2026-02-30, 25:00:00, other separators.
        let printed = moment.clamped().to_string();
        let same = match text.len() {
            10 => printed.get(..10) == Some(text),
            _ => printed.get(..19) == text.get(..19) && text.ends_with('Z'),
        };
        if same { Ok(moment) } else { Err(form()) }
    }

    /// When the month `2026-11` is over.
    pub(crate) fn end_of_month(month: &str) -> Option<Moment> {
        let year: i64 = month.get(..4)?.parse().ok()?;
        let month: i64 = month.get(5..7)?.parse().ok()?;
        let (year, month) = if month >= 12 { (year + 1, 1) } else { (year, month + 1) };
        Some(Moment::from_unix(days_from_civil(year, month, 1) * DAY_S))
    }

    /// Whole days from `earlier` to this.
    pub(crate) fn days_since(self, earlier: Moment) -> i64 {
        (self.seconds - earlier.seconds) / DAY_S
    }
}

/// Days from 1970-01-01.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// `2026-11-23T08:27:43.123456Z`.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.seconds.div_euclid(DAY_S));
        let of_day = self.seconds.rem_euclid(DAY_S);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", self.micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_795_422_463, "2026-11-23T08:27:43.000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
            (i64::MAX, "9999-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(Moment::from_unix(seconds).to_string(), text);
        }
    }

    #[test]
    fn what_people_type() {
        let now = Moment::from_unix(1_795_422_463);
        for (text, seconds) in [
            ("now", 1_795_422_463),
            ("7d", 1_795_422_463 - 7 * 86_400),
            ("90m", 1_795_422_463 - 5400),
            ("2026-11-23", 1_795_392_000),
            ("2026-11-23T08:27:43Z", 1_795_422_463),
        ] {
            assert_eq!(Moment::parse(text, now), Ok(Moment::from_unix(seconds)), "{text}");
        }
        for bad in
            ["", "x", "2026-02-30", "2026-11-23T25:00:00Z", "2026-11-23 08:27:43Z", "2026/11/23", "-1d", "d", "ü"]
        {
            assert!(Moment::parse(bad, now).is_err(), "{bad}");
        }
        assert_eq!(Moment::end_of_month("2026-12"), Moment::parse("2027-01-01", now).ok());
    }
}
