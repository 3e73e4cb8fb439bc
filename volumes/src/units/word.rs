//! Paths and words as units write them: nothing that is inside one can end it, name a specifier or a variable.
//!
//! Source: systemd.syntax(7), systemd.unit(5) ("string escaping for inclusion in unit names", "specifiers"),
//! systemd.service(5) ("command lines").

use std::path::Path;

/// Longest credential name taken here; also a file name.
const CREDENTIAL_CHARS_MAX: usize = 64;

/// A path as part of a unit's name, as `systemd-escape --path` writes it.
pub(crate) fn escaped_path(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let inner = bytes.strip_prefix(b"/").unwrap_or(bytes);
    let mut name = String::new();
    for (at, &byte) in inner.iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            _ if byte.is_ascii_alphanumeric() || b":_.".contains(&byte) => name.push(char::from(byte)),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name
}

/// Whether a unit can hold this path: absolute text, no control characters, and an end that is no continuation or white
/// space, which the parser takes away.
pub(crate) fn fits(path: &Path) -> bool {
    let Some(text) = path.to_str() else { return false };
    path.is_absolute()
        && !text.chars().any(char::is_control)
        && !text.ends_with(|c: char| c == '\\' || c.is_whitespace())
}

/// Whether this names a credential, and is not split or expanded in a unit.
pub(crate) fn is_credential(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    plain && !name.is_empty() && !name.starts_with('.') && name.len() <= CREDENTIAL_CHARS_MAX
}

/// The whole value of a setting that takes one path: only specifiers are read in it.
pub(crate) fn whole(path: &Path) -> String {
    path.display().to_string().replace('%', "%%")
}

/// One word of a setting that takes several.
pub(crate) fn quoted(path: &Path) -> String {
    quoted_with("", path)
}

/// The same with a prefix that means something to the setting.
pub(crate) fn quoted_with(prefix: &str, path: &Path) -> String {
    let text = whole(path).replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{prefix}{text}\"")
}

/// One word of a command line.
pub(crate) fn argument(path: &Path) -> String {
    quoted(path).replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_systemd_escape() {
        // `systemd-escape --path` of Debian's systemd 252 printed these.
        for (path, name) in [
            ("/mnt/trading-data", "mnt-trading\\x2ddata"),
            ("/a b", "a\\x20b"),
            ("/.hidden/.x", "\\x2ehidden-.x"),
            ("/x:y_z.1", "x:y_z.1"),
            ("/é\\\"$%", "\\xc3\\xa9\\x5c\\x22\\x24\\x25"),
        ] {
            assert_eq!(escaped_path(Path::new(path)), name);
        }
    }

    #[test]
    fn words_hold_what_they_hold() {
        let nasty = Path::new("/a \"b\" %h $HOME\\c");
        assert_eq!(whole(nasty), "/a \"b\" %%h $HOME\\c");
        assert_eq!(quoted(nasty), "\"/a \\\"b\\\" %%h $HOME\\\\c\"");
        assert_eq!(argument(nasty), "\"/a \\\"b\\\" %%h $$HOME\\\\c\"");
        assert!(fits(nasty));
        for bad in ["/a\n[Service]\nExecStart=/bin/sh", "/a\\", "/a ", "a", "/a\u{85}b"] {
            assert!(!fits(Path::new(bad)), "{bad:?}");
        }
        assert!(is_credential("trading-bot.master") && !is_credential("a:b") && !is_credential("%h"));
        assert!(!is_credential("") && !is_credential(".x") && !is_credential("a b"));
    }
}
