//! A tree of files as people have them, and its picture: every path with its kind, mode, owner, links, length and the
//! SHA-256 of what is in it. Two trees with the same picture hold the same.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::disk_model::{make_tree, xorshift};

/// Fills `root` with `files` small files and one of each kind that copies get wrong: empty, large, with a hole, with odd
/// names, modes, links of both kinds, deep folders.
///
/// # Panics
/// If one cannot be made.
pub fn make(root: &Path, files: u64, large_bytes: usize) {
    fs::create_dir_all(root).unwrap();
    make_tree(root, files);
    let odd = root.join("odd names");
    fs::create_dir(&odd).unwrap();
    for name in ["with space", "with\nline feed", "ümläut ☃", "-dash", "..dots", &"n".repeat(255)] {
        fs::write(odd.join(name), name).unwrap();
    }
    fs::write(root.join("empty"), "").unwrap();
    let mut state = 0x1234_5678_9abc_def1;
    let large: Vec<u8> = (0..large_bytes / 8 + 1).flat_map(|_| xorshift(&mut state).to_le_bytes()).collect();
    fs::write(root.join("large"), &large[..large_bytes]).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"after a hole", 700_000).unwrap();
    symlink("odd names/with space", root.join("link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::hard_link(root.join("large"), root.join("same as large")).unwrap();
    let deep = (0..20).fold(root.to_path_buf(), |folder, level| folder.join(format!("level {level}")));
    fs::create_dir_all(&deep).unwrap();
    for mode in [0o000, 0o400, 0o755, 0o1777, 0o4711] {
        let file = deep.join(format!("mode {mode:o}"));
        fs::write(&file, vec![1; 5000]).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// One line per path below `root`, sorted; ext4's `lost+found` is left out.
///
/// # Panics
/// If something cannot be read.
#[must_use]
pub fn picture(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    add(root, Path::new(""), &mut lines);
    lines.sort();
    assert!(lines.len() > 1, "{} is empty", root.display());
    lines
}

/// The line of one file below `root`.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn picture_of_one(root: &Path, name: &str) -> Option<String> {
    let mut lines = Vec::new();
    add(root, Path::new(""), &mut lines);
    lines.into_iter().find(|line| line.starts_with(&format!("{name:?} ")))
}

fn add(root: &Path, relative: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(relative)).unwrap_or_else(|error| panic!("{}: {error}", root.display())) {
        let entry = entry.unwrap();
        let below = relative.join(entry.file_name());
        if below == Path::new("lost+found") {
            continue;
        }
        let metadata = entry.metadata().unwrap();
        let mut line = format!("{:?} {:o} {}:{}", below, metadata.mode(), metadata.uid(), metadata.gid());
        if metadata.is_dir() {
            add(root, &below, lines);
        } else if metadata.is_symlink() {
            write!(line, " -> {:?}", fs::read_link(entry.path()).unwrap()).unwrap();
        } else {
            let content = fs::read(entry.path()).unwrap();
            write!(line, " {} links, {} bytes, ", metadata.nlink(), content.len()).unwrap();
            for byte in Sha256::digest(&content) {
                write!(line, "{byte:02x}").unwrap();
            }
        }
        lines.push(line);
    }
}

/// Demands that both pictures are the same.
///
/// # Panics
/// With the first lines that are not.
pub fn assert_same(before: &[String], after: &[String], what: &str) {
    let lost: Vec<&String> = before.iter().filter(|line| after.binary_search(line).is_err()).take(5).collect();
    let new: Vec<&String> = after.iter().filter(|line| before.binary_search(line).is_err()).take(5).collect();
    assert!(lost.is_empty() && new.is_empty(), "{what}: expected {lost:#?}, found {new:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_picture_until_something_changes() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(first.path(), 10, 10_000);
        make(second.path(), 10, 10_000);
        let before = picture(first.path());
        assert_same(&before, &picture(second.path()), "two of the same");
        let changes: [&dyn Fn(&Path); 4] = [
            &|root| fs::write(root.join("empty"), "x").unwrap(),
            &|root| fs::set_permissions(root.join("large"), fs::Permissions::from_mode(0o600)).unwrap(),
            &|root| fs::rename(root.join("sparse"), root.join("sparsest")).unwrap(),
            &|root| {
                std::os::unix::fs::FileExt::write_at(
                    &fs::OpenOptions::new().write(true).open(root.join("large")).unwrap(),
                    b"!",
                    9_999,
                )
                .map(drop)
                .unwrap()
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            let changed = tempfile::tempdir().unwrap();
            make(changed.path(), 10, 10_000);
            change(changed.path());
            assert!(before != picture(changed.path()), "change {number} does not show");
        }
    }
}
