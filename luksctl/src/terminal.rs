//! What a terminal may be sent. Labels, types and ciphers of a header, and names of files, are written by strangers; a
//! terminal obeys control characters in them, a line feed forges a line of ours, and marks of writing direction show one
//! text as another. All of these are escaped as Rust would (`\u{1b}`, `\n`), and in JSON as JSON does.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal would obey it instead of showing it: C0, DEL, C1, separators of lines, marks of direction.
fn commands(symbol: char) -> bool {
    symbol.is_control()
        || matches!(symbol, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` for one line.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// `text` of several lines and tabs.
pub(crate) fn plain_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |symbol| matches!(symbol, '\n' | '\t'))
}

fn escaped(text: &str, passes: impl Fn(char) -> bool) -> Cow<'_, str> {
    let bad = |symbol: char| commands(symbol) && !passes(symbol);
    if !text.chars().any(bad) {
        return Cow::Borrowed(text);
    }
    let each = |symbol: char| match symbol {
        '\n' | '\t' | '\r' if bad(symbol) => symbol.escape_default().to_string(),
        _ if bad(symbol) => symbol.escape_unicode().to_string(),
        _ => symbol.to_string(),
    };
    Cow::Owned(text.chars().map(each).collect())
}

/// JSON text that means the same. What stands outside its strings is ASCII and layout, so every hit is inside one.
pub(crate) fn plain_json(json: &str) -> Cow<'_, str> {
    let bad = |symbol: char| commands(symbol) && symbol != '\n';
    if !json.chars().any(bad) {
        return Cow::Borrowed(json);
    }
    let mut plain = String::with_capacity(json.len());
    for symbol in json.chars() {
        if bad(symbol) {
            // All of them have four hexadecimal digits; writing to a String does not fail.
            let _ = write!(plain, "\\u{:04x}", u32::from(symbol));
        } else {
            plain.push(symbol);
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}]0;x\u{7}\u{9b}1m\u{202e}b\nhint: c\t\u{7f}";

    #[test]
    fn nothing_that_commands_a_terminal_is_left() {
        assert_eq!(plain(HOSTILE), r"a\u{1b}]0;x\u{7}\u{9b}1m\u{202e}b\nhint: c\t\u{7f}");
        assert_eq!(plain_lines(HOSTILE), "a\\u{1b}]0;x\\u{7}\\u{9b}1m\\u{202e}b\nhint: c\t\\u{7f}");
        assert!(matches!(plain("größe \"x\" \\ 日本"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE], "größe": 1 });
        let json = serde_json::to_string_pretty(&value).unwrap();
        let plain = plain_json(&json);
        assert!(!plain.chars().any(|symbol| commands(symbol) && symbol != '\n'), "{plain}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).unwrap(), value);
    }
}
