//! Sizes as a person types them, in cryptsetup's grammar: a number and an optional suffix. `s` counts 512-byte sectors;
//! `K M G T` and `KiB MiB GiB TiB` are powers of 1024, `KB MB GB TB` powers of 1000, in either case. A bare number is bytes.

use block::Bytes;

/// 512-byte sectors, the unit of `s` and of `--offset`.
const SECTOR_BYTES: u64 = 512;

/// Why a text is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    /// No digits where the number belongs.
    #[error("'{0}' has no number in front; write it as 5G, 512M, 2048s or 1073741824")]
    NoNumber(String),
    /// A suffix that is not in the grammar.
    #[error("unit '{0}' is unknown; use s, K, M, G, T (1024) or KB, MB, GB, TB (1000)")]
    Unit(String),
    /// A number alone, where it could be bytes or sectors.
    #[error(
        "'{0}' has no unit: write {0}s for sectors of 512 bytes, as cryptsetup means it, or --device-size {0} for bytes"
    )]
    NoUnit(String),
    /// More bytes than 64 bits hold.
    #[error("'{0}' is more than 64 bits of bytes")]
    TooLarge(String),
}

/// Parses a size; for clap's `value_parser`.
pub(crate) fn parse(text: &str) -> Result<Bytes, SizeError> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err(SizeError::NoNumber(text.to_owned()));
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge(text.to_owned()))?;
    let factor = factor_of(unit).ok_or_else(|| SizeError::Unit(unit.to_owned()))?;
    number.checked_mul(factor).map(Bytes).ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// Parses a size that must have a unit. A bare number is sectors to cryptsetup's `resize --size` and bytes to everything else;
/// a volume in use is not shrunk by a misunderstanding.
pub(crate) fn parse_with_unit(text: &str) -> Result<Bytes, SizeError> {
    let size = parse(text)?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::NoUnit(text.to_owned()));
    }
    Ok(size)
}

/// Bytes per unit, or nothing for an unknown unit.
fn factor_of(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let exponent = match unit.chars().next() {
        None => return Some(1),
        Some('s') if unit.len() == 1 => return Some(SECTOR_BYTES),
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some(_) => return None,
    };
    match unit.get(1..) {
        Some("" | "ib") => Some(1024_u64.pow(exponent)),
        Some("b") => Some(1000_u64.pow(exponent)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cryptsetup_grammar() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("2048s", 2048 * 512),
            ("16k", 16 << 10),
            ("16KiB", 16 << 10),
            ("16KB", 16_000),
            ("5G", 5 << 30),
            ("5gb", 5_000_000_000),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn a_number_alone_may_mean_two_things() {
        assert_eq!(parse_with_unit("2048s"), Ok(Bytes(2048 * 512)));
        assert_eq!(parse_with_unit("2M"), Ok(Bytes(2 << 20)));
        assert_eq!(parse_with_unit("2048"), Err(SizeError::NoUnit("2048".into())));
        assert_eq!(parse_with_unit("x"), Err(SizeError::NoNumber("x".into())));
    }

    #[test]
    fn refusals_name_the_part() {
        assert_eq!(parse("-5G"), Err(SizeError::NoNumber("-5G".into())));
        assert_eq!(parse(""), Err(SizeError::NoNumber(String::new())));
        assert_eq!(parse("5X"), Err(SizeError::Unit("X".into())));
        assert_eq!(parse("5Gx"), Err(SizeError::Unit("Gx".into())));
        assert_eq!(parse("5ss"), Err(SizeError::Unit("ss".into())));
        assert_eq!(parse("1.5G"), Err(SizeError::Unit(".5G".into())));
        assert_eq!(parse("18446744073709551616"), Err(SizeError::TooLarge("18446744073709551616".into())));
        assert_eq!(parse("18446744073709551615T"), Err(SizeError::TooLarge("18446744073709551615T".into())));
    }
}
