//! JSON as LUKS2 uses it: text rules of the JSON area, number encodings, and a reader that takes known members out
//! of an object and leaves the unknown ones.
//!
//! Source: format notes 2.1 and 2.2. Stricter than cryptsetup's json-c in three ways that no writer needs: text must be
//! UTF-8, single quotes and comments are refused, and ids are canonical decimals. Duplicate keys: the last one wins.

use std::collections::HashMap;
use std::fmt;

use base64ct::{Base64, Encoding};
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::limits::JSON_DEPTH;
use crate::rule::{Rule, Violation};

/// A JSON object; members keep their order.
pub type JsonMap = serde_json::Map<String, Value>;

/// The JSON text inside a JSON area: all bytes before the first NUL, after which only NUL may come.
pub(crate) fn text_of_area(area: &[u8]) -> Result<&str, Violation> {
    match area.first() {
        Some(b'{') => {}
        Some(byte) => return Err(Violation::new(Rule::JsonStart, "", format_args!("first byte 0x{byte:02x}"))),
        None => return Err(Violation::missing(Rule::JsonStart, "")),
    }
    let Some(end) = area.iter().position(|&byte| byte == 0) else {
        return Err(Violation::new(Rule::JsonEnd, "", format_args!("no NUL in {} bytes", area.len())));
    };
    if let Some(stray) = area[end..].iter().position(|&byte| byte != 0) {
        let at = end + stray;
        return Err(Violation::new(Rule::JsonTail, "", format_args!("byte 0x{:02x} at {at}", area[at])));
    }
    std::str::from_utf8(&area[..end]).map_err(|error| Violation::new(Rule::JsonSyntax, "", error))
}

/// Parse the text of a JSON area. The depth is checked before the parser runs.
pub(crate) fn parse_object(text: &str) -> Result<JsonMap, Violation> {
    check_depth(text)?;
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Violation::new(Rule::JsonSyntax, "", other)),
        Err(error) => Err(Violation::new(Rule::JsonSyntax, "", error)),
    }
}

/// The members of the JSON object `text` with the text of each value, in order; of a name that comes twice the last value
/// counts. `None` if it is no object.
pub(crate) fn members_of(text: &str) -> Option<Vec<(String, &str)>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, &'de str)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members: Vec<(String, &str)> = Vec::new();
            let mut places = HashMap::new();
            while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                match places.get(&name) {
                    Some(&at) => members[at] = (name, value.get()),
                    None => {
                        places.insert(name.clone(), members.len());
                        members.push((name, value.get()));
                    }
                }
            }
            Ok(members)
        }
    }
    serde_json::Deserializer::from_str(text).deserialize_map(Members).ok()
}

/// An object of members whose values are JSON text already.
pub(crate) fn object_of(members: impl IntoIterator<Item = (String, String)>) -> String {
    let members = members.into_iter().map(|(name, value)| format!("{}:{value}", Value::String(name)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// No value stands deeper than [`JSON_DEPTH`], the outermost object being at level 1; so a container at that level is
/// empty. Counts brackets outside strings, so it needs no parser.
fn check_depth(text: &str) -> Result<(), Violation> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        if depth == JSON_DEPTH && !matches!(byte, b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r') {
            return Err(Violation::new(Rule::JsonDepth, "", format_args!("below level {depth} at byte {at}")));
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// A 64-bit number as LUKS2 writes it: a string of decimal digits.
pub(crate) fn u64_of(value: &Value) -> Option<u64> {
    decimal(value.as_str()?)
}

/// A 32-bit number: a JSON integer.
pub(crate) fn u32_of(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// Any JSON integer, of whatever size.
pub(crate) fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64()
}

/// Digits and nothing else (`str::parse` alone would accept a plus sign).
pub(crate) fn decimal(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// An array of strings.
pub(crate) fn strings_of(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// Decode base64 of the standard alphabet with padding; white space inside is ignored. `None` if it is no base64.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    Base64::decode_vec(&compact).ok()
}

/// Encode as base64 of the standard alphabet with padding.
pub fn encode_base64(bytes: &[u8]) -> String {
    Base64::encode_string(bytes)
}

/// An object whose members are taken out one by one. What is left are the members this crate does not know.
pub(crate) struct Fields {
    path: String,
    map: JsonMap,
}

impl Fields {
    /// Read `value` as the object at `path`, or break `rule`.
    pub(crate) fn open(value: Option<Value>, path: impl Into<String>, rule: Rule) -> Result<Fields, Violation> {
        let path = path.into();
        match value {
            Some(Value::Object(map)) => Ok(Fields { path, map }),
            Some(other) => Err(Violation::new(rule, path, other)),
            None => Err(Violation::missing(rule, path)),
        }
    }

    /// Go on with the members that an earlier pass left.
    pub(crate) fn resume(map: JsonMap, path: impl Into<String>) -> Fields {
        Fields { path: path.into(), map }
    }

    /// The path of a member.
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Look at a member and leave it.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// All members that are left.
    pub(crate) fn left(&self) -> &JsonMap {
        &self.map
    }

    /// Take a member out. Keeps the order of the others.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name)
    }

    /// Take a member through `read`, which says `None` for a value of the wrong kind.
    pub(crate) fn read<T>(
        &mut self,
        name: &str,
        rule: Rule,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, Violation> {
        match self.take(name) {
            Some(value) => read(&value).ok_or_else(|| Violation::new(rule, self.path_of(name), value)),
            None => Err(Violation::missing(rule, self.path_of(name))),
        }
    }

    /// Take an optional member; `None` when it is absent.
    pub(crate) fn read_if_present<T>(
        &mut self,
        name: &str,
        rule: Rule,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Violation> {
        if self.map.contains_key(name) { self.read(name, rule, read).map(Some) } else { Ok(None) }
    }

    /// Take a member that the format does not check: a value of the wrong kind stays among the unknown members.
    pub(crate) fn take_if<T>(&mut self, name: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let found = read(self.map.get(name)?)?;
        self.map.shift_remove(name);
        Some(found)
    }

    /// An integer that the format does not bound. One that has no place in 32 bits stays among the unknown members and
    /// is `None`: the object is then of no use, but the header is.
    pub(crate) fn integer(&mut self, name: &str, rule: Rule) -> Result<Option<u32>, Violation> {
        match self.map.get(name) {
            Some(value) if is_integer(value) => Ok(self.take_if(name, u32_of)),
            Some(value) => Err(Violation::new(rule, self.path_of(name), value)),
            None => Err(Violation::missing(rule, self.path_of(name))),
        }
    }

    /// A string of at least one byte: cryptsetup takes an empty one for a missing one, everywhere.
    pub(crate) fn name(&mut self, name: &str, rule: Rule) -> Result<String, Violation> {
        self.read(name, rule, |value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned))
    }

    /// A 64-bit number in a string.
    pub(crate) fn u64(&mut self, name: &str, rule: Rule) -> Result<u64, Violation> {
        self.read(name, rule, u64_of)
    }

    /// A 32-bit number.
    pub(crate) fn u32(&mut self, name: &str, rule: Rule) -> Result<u32, Violation> {
        self.read(name, rule, u32_of)
    }

    /// The members that were not taken.
    pub(crate) fn rest(self) -> JsonMap {
        self.map
    }
}

/// A JSON number in a string, the LUKS2 form of 64-bit values.
pub(crate) fn u64_value(number: u64) -> Value {
    Value::String(number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule_of(area: &[u8]) -> Rule {
        match text_of_area(area).and_then(parse_object) {
            Ok(map) => panic!("accepted {map:?}"),
            Err(violation) => violation.rule,
        }
    }

    #[test]
    fn text_rules() {
        assert!(text_of_area(b"{}\0").and_then(parse_object).is_ok());
        assert_eq!(rule_of(b""), Rule::JsonStart);
        assert_eq!(rule_of(b" {}\0"), Rule::JsonStart);
        assert_eq!(rule_of(b"{}"), Rule::JsonEnd);
        assert_eq!(rule_of(b"{}\0x"), Rule::JsonTail);
        assert_eq!(rule_of(b"{\xff}\0"), Rule::JsonSyntax);
        assert_eq!(rule_of(b"{}{}\0"), Rule::JsonSyntax);
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let nested =
            |levels: usize, inner: &str| format!("{}{inner}{}", "{\"a\":[".repeat(levels / 2), "]}".repeat(levels / 2));
        assert!(parse_object(&nested(JSON_DEPTH, "")).is_ok());
        assert!(parse_object(&nested(JSON_DEPTH - 2, "1")).is_ok());
        assert!(parse_object(&nested(JSON_DEPTH - 2, "{}")).is_ok());
        assert_eq!(parse_object(&nested(JSON_DEPTH, "1")).unwrap_err().rule, Rule::JsonDepth);
        assert_eq!(parse_object(&nested(JSON_DEPTH, "{}")).unwrap_err().rule, Rule::JsonDepth);
        let quoted = format!("{{\"a\":\"{}\\\"[\"}}", "[".repeat(100));
        assert!(parse_object(&quoted).is_ok());
    }

    #[test]
    fn last_duplicate_wins() {
        assert_eq!(parse_object("{\"a\":1,\"b\":2,\"a\":3}").unwrap()["a"], 3);
    }

    #[test]
    fn decimals() {
        assert_eq!(decimal("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "+1", "-1", "0x10", " 1", "1 ", "18446744073709551616", "١"] {
            assert_eq!(decimal(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn base64_ignores_white_space() {
        assert_eq!(decode_base64("AA\nEC\tAw==").as_deref(), Some(&[0, 1, 2, 3][..]));
        assert_eq!(decode_base64("AAECAw"), None);
        assert_eq!(decode_base64("-_8="), None);
        assert_eq!(encode_base64(&[0, 1, 2, 3]), "AAECAw==");
    }
}
