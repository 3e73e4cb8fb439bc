//! What is read is written back as it was. Input: JSON text of a LUKS2 header. (LUKS1: [`super::luks1_header()`].)
//!
//! Metadata that parse are written, parsed and written again: the same metadata, the same text. Against the text that
//! came in nothing is lost, added or changed, but for what the format lets a writer say otherwise: a decimal string without
//! its leading zeros; members of `kdf` that its function does not have, which are dropped; and an empty list, which means
//! the same as none.

use block::Bytes;
use luks::Metadata;
use serde_json::Value;

use super::Rules;

const METADATA_SIZE: Bytes = Bytes(0x4000);

pub(crate) fn run(input: &[u8]) -> Rules {
    std::str::from_utf8(input).map(luks2).unwrap_or_default()
}

fn luks2(text: &str) -> Rules {
    let metadata = match Metadata::parse(text, METADATA_SIZE) {
        Err(violation) => return Rules::from([violation.rule]),
        Ok(metadata) => metadata,
    };
    let written = metadata.to_text();
    let again = Metadata::parse(&written, METADATA_SIZE).expect("what was written is not read");
    assert_eq!(again, metadata);
    assert!(again.to_text() == written, "written twice, and differently");
    let [before, after] = [text, &written].map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
    compare(&before, &after, &mut Vec::new());
    Rules::new()
}

fn compare<'a>(before: &'a Value, after: &'a Value, path: &mut Vec<&'a str>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, old) in old {
                path.push(name);
                match new.get(name) {
                    Some(new) => compare(old, new, path),
                    None => assert!(may_go(path, old), "{path:?} was lost"),
                }
                path.pop();
            }
            for (name, value) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
                assert!(may_come(path, name) && is_empty(value), "{name} was added to {path:?}");
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            assert_eq!(old.len(), new.len(), "{path:?}");
            old.iter().zip(new).for_each(|(old, new)| compare(old, new, path));
        }
        (Value::String(old), Value::String(new)) => {
            let same = old == new || !new.is_empty() && decimal(old).is_some() && decimal(old) == decimal(new);
            assert!(same, "{path:?}: {old:?} became {new:?}");
        }
        _ => assert_eq!(before, after, "{path:?}"),
    }
}

/// A decimal without its leading zeros.
fn decimal(text: &str) -> Option<&str> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.trim_start_matches('0'))
}

/// A member of a keyslot's `kdf`, which its function does not have; a list of nothing.
fn may_go(path: &[&str], value: &Value) -> bool {
    match path {
        ["keyslots", _, "kdf", _] => true,
        ["segments", _, "flags"] | ["config", "flags" | "requirements"] => is_empty(value),
        _ => false,
    }
}

/// A list that is written whether there is something in it or not.
fn may_come(path: &[&str], name: &str) -> bool {
    matches!(
        (path, name),
        (["tokens" | "digests", _], "keyslots" | "segments") | (["config", "requirements"], "mandatory")
    )
}

/// An empty list, or an object of such.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
        _ => false,
    }
}
