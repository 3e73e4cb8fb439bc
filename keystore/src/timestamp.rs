//! [`Timestamp`]: whole seconds of UTC since 1970, as text in the form of RFC 3339 and as the stamp in file names.
//!
//! Invariant: years 1970 to 9999. The calendar is the proleptic Gregorian one; days are counted from 1 March, so that the
//! leap day is the last of its year. Source: RFC 3339, section 5.6 and appendix C.

use std::fmt;

/// The last second of the year 9999.
const LAST_S: u64 = 253_402_300_799;
const DAY_S: u64 = 86_400;
/// Days from 1 March of the year 0 to 1 January 1970.
const EPOCH_DAYS: u64 = 719_468;

/// A point in time, in seconds; where it comes from is the caller's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// `seconds` since 1970; beyond the year 9999 its last second.
    pub fn from_seconds(seconds: u64) -> Timestamp {
        Timestamp(seconds.min(LAST_S))
    }

    /// Seconds since 1970.
    pub fn seconds(self) -> u64 {
        self.0
    }

    /// So many days later.
    #[must_use]
    pub fn plus_days(self, days: u32) -> Timestamp {
        Timestamp::from_seconds(self.0.saturating_add(u64::from(days) * DAY_S))
    }

    /// Year, month, day, hour, minute, second.
    fn civil(self) -> [u64; 6] {
        let days = self.0 / DAY_S + EPOCH_DAYS;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let second = self.0 % DAY_S;
        [year, month, day, second / 3600, second / 60 % 60, second % 60]
    }

    fn from_civil([year, month, day, hour, minute, second]: [u64; 6]) -> Option<Timestamp> {
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let march_year = year - u64::from(month <= 2);
        let (era, year_of_era) = (march_year / 400, march_year % 400);
        let month_from_march = (month + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - EPOCH_DAYS;
        let made = Timestamp(days * DAY_S + hour * 3600 + minute * 60 + second);
        // 31 April would be 1 May.
        (made.civil() == [year, month, day, hour, minute, second]).then_some(made)
    }

    /// Takes the digits at the `9`s of `form` and demands its other characters; six numbers, each closed by a non-digit.
    fn parse(text: &str, form: &str, widths: [usize; 6]) -> Option<Timestamp> {
        let fits = |(seen, wanted): (u8, u8)| if wanted == b'9' { seen.is_ascii_digit() } else { seen == wanted };
        if text.len() != form.len() || !text.bytes().zip(form.bytes()).all(fits) {
            return None;
        }
        let mut digits = text.bytes().filter(u8::is_ascii_digit).map(|digit| u64::from(digit - b'0'));
        let civil = widths.map(|width| digits.by_ref().take(width).fold(0, |sum, digit| sum * 10 + digit));
        Timestamp::from_civil(civil)
    }

    /// From `2024-12-01T12:00:00Z`.
    pub fn from_text(text: &str) -> Option<Timestamp> {
        Timestamp::parse(text, "9999-99-99T99:99:99Z", [4, 2, 2, 2, 2, 2])
    }

    /// From `20241201_120000`, as it stands in the names of backups.
    pub fn from_stamp(text: &str) -> Option<Timestamp> {
        Timestamp::parse(text, "99999999_999999", [4, 2, 2, 2, 2, 2])
    }

    /// `20241201_120000`.
    pub fn stamp(self) -> String {
        let [year, month, day, hour, minute, second] = self.civil();
        format!("{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}")
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [year, month, day, hour, minute, second] = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates_are_what_date_prints() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_733_054_400, "2024-12-01T12:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (LAST_S, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp::from_seconds(seconds).to_string(), text);
        }
        assert_eq!(Timestamp::from_seconds(1_733_054_400).stamp(), "20241201_120000");
        assert_eq!(Timestamp::from_seconds(0).plus_days(90).to_string(), "1970-04-01T00:00:00Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "2024-02-30T00:00:00Z", "2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z", "2024-01-01T24:00:00Z"]
        {
            assert_eq!(Timestamp::from_text(text), None, "{text}");
        }
        for text in ["2024-01-01 00:00:00Z", "2024-01-01T00:00:00+", "1969-12-31T23:59:59Z", "2024-01-01T00:00:6äZ"] {
            assert_eq!(Timestamp::from_text(text), None, "{text}");
        }
        assert_eq!(Timestamp::from_stamp("20240101-000000"), None);
    }

    proptest! {
        #[test]
        fn text_and_stamp_lead_back(seconds in 0..=LAST_S) {
            let time = Timestamp::from_seconds(seconds);
            prop_assert_eq!(Timestamp::from_text(&time.to_string()), Some(time));
            prop_assert_eq!(Timestamp::from_stamp(&time.stamp()), Some(time));
        }
    }
}
