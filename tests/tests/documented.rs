//! Every public function of the libraries that can fail says in an `# Errors` section when it does.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

const LIBRARIES: [&str; 9] =
    ["secret", "block", "dmcrypt", "luks", "dmsetup", "export", "session", "keystore", "volumes"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What stands from `fn` to the body or the semicolon.
fn signature(lines: &[&str]) -> String {
    let mut signature = String::new();
    for line in lines {
        signature.push_str(line.trim());
        signature.push(' ');
        if line.trim_end().ends_with(['{', ';']) || line.contains("{ ") {
            break;
        }
    }
    signature
}

/// Whether the function may return an error.
fn can_fail(signature: &str) -> bool {
    signature.split_once("-> ").is_some_and(|(_, answer)| answer.contains("Result<"))
}

/// The documentation above line `at`.
fn documentation(lines: &[&str], at: usize) -> String {
    let above = lines[..at].iter().rev().map(|line| line.trim());
    above.take_while(|line| line.starts_with("///") || line.starts_with("#[")).collect::<Vec<_>>().join("\n")
}

/// Functions that can fail and do not say when, as "path:line: what", and how many can fail at all.
fn silent(path: &str, source: &str) -> (Vec<String>, usize) {
    let own = source.find("#[cfg(test)]\nmod ").unwrap_or(source.len());
    let lines: Vec<&str> = source[..own].lines().collect();
    let (mut found, mut count, mut in_trait) = (Vec::new(), 0, false);
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("pub trait ") {
            in_trait = true;
        } else if *line == "}" {
            in_trait = false;
        }
        let line = line.trim_start();
        let public =
            line.starts_with("pub fn ") || line.starts_with("pub const fn ") || line.starts_with("pub unsafe fn ");
        if !(public || in_trait && line.starts_with("fn ")) || !can_fail(&signature(&lines[at..])) {
            continue;
        }
        count += 1;
        if !documentation(&lines, at).contains("/// # Errors") {
            found.push(format!("{path}:{}: {line}", at + 1));
        }
    }
    (found, count)
}

#[test]
fn every_function_that_can_fail_says_when() {
    let (mut found, mut count) = (Vec::new(), 0);
    for library in LIBRARIES {
        let mut files = Vec::new();
        sources(&root().join(library).join("src"), &mut files);
        files.sort();
        for file in files {
            let path = file.strip_prefix(root()).unwrap().display().to_string();
            let (silent, of_file) = silent(&path, &fs::read_to_string(&file).unwrap());
            found.extend(silent);
            count += of_file;
        }
    }
    assert!(count > 100, "only {count} functions were seen");
    assert!(found.is_empty(), "no # Errors section:\n{}", found.join("\n"));
}

#[test]
fn silence_is_noticed() {
    let of = |source: &str| silent("a.rs", source).0.len();
    assert_eq!(of("/// Does it.\npub fn a() -> Result<(), Error> {\n}\n"), 1);
    assert_eq!(of("/// Does it.\npub fn a(\n    b: u8,\n) -> Result<(), Error> {\n}\n"), 1);
    assert_eq!(
        of("/// Does it.\n///\n/// # Errors\n/// Never.\n#[must_use]\npub fn a() -> Result<(), Error> {\n}\n"),
        0
    );
    assert_eq!(of("pub trait A {\n    /// Does it.\n    fn a(&self) -> Result<(), Error>;\n}\n"), 1);
    assert_eq!(
        of(
            "impl A {\n    fn a(&self) -> Result<(), Error> {\n    }\n    pub(crate) fn b() -> Result<u8, u8> {\n    }\n}\n"
        ),
        0
    );
    assert_eq!(of("/// Whether.\npub fn a(b: Result<u8, u8>) -> bool {\n}\n"), 0);
}
