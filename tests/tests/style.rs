//! The measured limits of this project's style: where a file or function grows past a screen, `unsafe` leaves its
//! wrappers, or a placeholder stays behind, this fails and names the line.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;

/// The only files with `unsafe` in them; `dmcrypt/src/arch/` is for hand-written kernels.
const UNSAFE_FILES: &[&str] = &[
    "bench/rivals/src/evp.rs",
    "bench/src/lane/ring.rs",
    "bench/src/limit.rs",
    "block/src/queue/ring.rs",
    "dmcrypt/tests/memory/region.rs",
    "dmcrypt/tests/memory/state.rs",
    "dmsetup/src/dm_ioctl.rs",
    "dmsetup/src/ioctl.rs",
    "dmsetup/src/keyctl.rs",
    "dmsetup/src/semaphore.rs",
    "export/src/ublk/rings.rs",
    "luks/tests/hot_path/counting.rs",
    "secret/src/keyring.rs",
    "secret/src/pages.rs",
    "session/src/doctor/kernel_calls.rs",
    "session/src/inherited.rs",
    "session/src/nbd_device.rs",
    "tests/src/bin/denied.rs",
    "tests/src/keyring.rs",
];
const UNSAFE_FOLDER: &str = "dmcrypt/src/arch/";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every Rust file of the checkout that people write.
fn sources() -> Vec<PathBuf> {
    let mut folders = vec![root().to_path_buf()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The source with comments, strings and character literals blanked out, line by line as before.
fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + literal_len(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(code).unwrap()
}

/// Length of the comment or literal that starts here; 0 if none does.
fn literal_len(rest: &[u8], before: Option<u8>) -> usize {
    let until = |from: usize, end: &[u8]| {
        let tail = &rest[from.min(rest.len())..];
        let found = tail.windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |position| from + position + end.len())
    };
    let after_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match rest {
        [b'/', b'/', ..] => until(2, b"\n") - usize::from(until(2, b"\n") < rest.len()),
        [b'/', b'*', ..] => until(2, b"*/"),
        [b'r', b'"' | b'#', ..] if !after_word || before == Some(b'b') => {
            let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return 0; // r#identifier
            }
            until(2 + hashes, format!("\"{}", "#".repeat(hashes)).as_bytes())
        }
        [b'"', ..] => quoted_len(rest, b'"'),
        [b'\'', b'\\', ..] => quoted_len(rest, b'\''),
        [b'\'', ..] => {
            let width = std::str::from_utf8(&rest[1..rest.len().min(5)])
                .map_or_else(|error| error.valid_up_to().max(1), |text| text.chars().next().map_or(1, char::len_utf8));
            let width = if rest.get(1).is_some_and(u8::is_ascii) { 1 } else { width.clamp(2, 4) };
            let width = (1..=width).rev().find(|width| rest.get(1 + width) == Some(&b'\''));
            width.map_or(0, |width| width + 2)
        }
        _ => 0,
    }
}

/// Length of a literal in `quote`s with backslash escapes.
fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Byte offsets of a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let inside = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let bytes = code.as_bytes();
        !inside(at.checked_sub(1).and_then(|before| bytes.get(before))) && !inside(bytes.get(at + word.len()))
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// First line and length in lines of every function with a body.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for start in words(code, "fn") {
        let mut depth = 0_usize;
        let mut body = false;
        for (at, byte) in code.bytes().enumerate().skip(start) {
            match byte {
                b'{' | b'(' | b'[' => {
                    body |= byte == b'{' && depth == 0;
                    depth += 1;
                }
                b'}' | b')' | b']' if depth == 0 => break, // a function pointer type inside something
                b'}' | b')' | b']' => {
                    depth -= 1;
                    if body && depth == 0 {
                        let first = line_of(code, start);
                        found.push((first, line_of(code, at) - first + 1));
                        break;
                    }
                }
                b';' | b',' | b'=' if depth == 0 && !body => break,
                _ => {}
            }
        }
    }
    found
}

/// What is wrong with one file, as "path:line: what".
fn complaints(path: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let mut found = Vec::new();
    let mut complain = |line: usize, what: String| found.push(format!("{path}:{line}: {what}"));
    if !source.starts_with("//!") {
        complain(1, "does not open with //!".into());
    }
    if path.ends_with("/mod.rs") {
        complain(1, "mod.rs instead of x.rs + x/".into());
    }
    let own = source.find("#[cfg(test)]\nmod ").unwrap_or(source.len());
    let lines = source[..own].lines().count();
    if lines > MAX_FILE_LINES {
        complain(1, format!("{lines} lines, more than {MAX_FILE_LINES}"));
    }
    for (line, length) in functions(&code) {
        if length > MAX_FUNCTION_LINES {
            complain(line, format!("function of {length} lines, more than {MAX_FUNCTION_LINES}"));
        }
    }
    if !UNSAFE_FILES.contains(&path) && !path.starts_with(UNSAFE_FOLDER) {
        for at in words(&code, "unsafe") {
            complain(line_of(&code, at), "unsafe outside of the wrapper files".into());
        }
    }
    for placeholder in ["todo!", "unimplemented!"] {
        for (at, _) in code.match_indices(placeholder) {
            complain(line_of(&code, at), format!("{placeholder} left behind"));
        }
    }
    found
}

#[test]
fn every_source_file_keeps_the_limits() {
    let sources = sources();
    assert!(sources.len() > 50, "found only {} files below {}", sources.len(), root().display());
    let mut found = Vec::new();
    for path in sources {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        found.extend(complaints(&name, &fs::read_to_string(&path).unwrap()));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_with_unsafe_exist() {
    for path in UNSAFE_FILES {
        assert!(root().join(path).is_file(), "{path} is listed but gone");
    }
}

#[test]
fn each_breach_is_seen() {
    let body = "    let a = 1;\n";
    let of = |path: &str, source: &str| complaints(path, source).join("\n");
    assert_eq!(of("a/src/x.rs", "//! Fine.\nfn a() {\n    let a = \"{ unsafe todo!() \";\n}\n"), "");
    assert_eq!(of("a/src/x.rs", "fn a() {}\n"), "a/src/x.rs:1: does not open with //!");
    assert!(of("a/src/x/mod.rs", "//! X\n").contains("mod.rs instead"));
    assert!(of("a.rs", &format!("//! X\n{}", "\n".repeat(600))).contains("601 lines"));
    assert_eq!(of("a.rs", &format!("//! X\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(600))), "");
    assert_eq!(of("a.rs", &format!("//! X\nfn a() {{\n{}}}\n", body.repeat(68))), "");
    assert_eq!(
        of("a.rs", &format!("//! X\n\nfn a(f: fn(u8) -> [u8; 2]) {{\n{}}}\n", body.repeat(69))),
        "a.rs:3: function of 71 lines, more than 70"
    );
    assert_eq!(of("a.rs", "//! X\nfn a() { unsafe { b() } }\n"), "a.rs:2: unsafe outside of the wrapper files");
    assert_eq!(of("dmcrypt/src/arch/x.rs", "//! X\nfn a() { unsafe { b() } }\n"), "");
    assert_eq!(of("a.rs", "//! X\nfn a() {\n    todo!()\n}\n"), "a.rs:3: todo! left behind");
}

#[test]
fn literals_are_no_code() {
    for literal in [
        r#""unsafe \" unsafe""#,
        "r#\"unsafe \" unsafe\"#",
        "br\"unsafe\"",
        "// unsafe\n",
        "/* unsafe\n */",
        r"'\''; // unsafe",
        "'\"'; // unsafe \"",
        "'é'; // unsafe",
    ] {
        assert_eq!(words(&code_only(literal), "unsafe").count(), 0, "{literal}");
    }
    for code in ["fn f<'a>(a: &'a str) { unsafe {} }", "r#unsafe + 'x'; unsafe", "b'\"'; unsafe", "'\\\\'; unsafe"] {
        assert!(words(&code_only(code), "unsafe").count() >= 1, "{code}");
    }
}
