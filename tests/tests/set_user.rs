//! The managed set without root: set up, mounted by fuse2fs, taken down, grown, mounted again, with the data there.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use promises::managed::Managed;
use promises::rig::succeed;
use promises::skip::{needs_fuse, needs_programs, needs_root, skip};

/// `nobody` and `nogroup` on Debian.
const USER: u32 = 65534;

const SCRIPT: &str = r#"
set -eu
cd "$FOLDER"
export HOME="$FOLDER" XDG_RUNTIME_DIR="$FOLDER"
[ "$(id -u)" != 0 ]
set_() { verb=$1; shift; "$LUKSCTL" volume "$verb" --config "$FOLDER/volumes.toml" "$@"; }
set_ setup --yes > first
grep -q '^recovery key: ' first
echo kept > mnt/trading-data/file
set_ setup --yes > again
if grep -q '^missing' again; then cat again; exit 1; fi
set_ down
[ -z "$(ls -A mnt/trading-data)" ]
set_ grow data 28M
set_ check
set_ up
[ "$(cat mnt/trading-data/file)" = kept ]
set_ status
set_ down
echo everything the same
"#;

#[test]
fn a_set_without_root() {
    let test = "set_user: a_set_without_root";
    let programs = ["setpriv", "fuse2fs", "fusermount3", "mkfs.ext4", "e2fsck", "resize2fs"];
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &programs)) {
        return;
    }
    let mode = std::fs::metadata("/dev/fuse").unwrap().permissions().mode();
    if mode & 0o006 != 0o006 {
        return skip(test, "needs /dev/fuse open to users");
    }
    let set = Managed::new("set-user", &[("data", "24M")]);
    let text = std::fs::read_to_string(set.rig.path("volumes.toml")).unwrap();
    let own = format!("[defaults]\nowner = \"{USER}:{USER}\"\n");
    std::fs::write(set.rig.path("volumes.toml"), text.replace("[defaults]\n", &own)).unwrap();
    let binary = set.rig.path("luksctl");
    std::fs::copy(promises::bins::luksctl(), &binary).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    for path in ["", "run", "key", "volumes.toml"] {
        chown(set.rig.path(path), Some(USER), Some(USER)).unwrap();
    }
    std::fs::set_permissions(set.rig.run_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let output = succeed(
        Command::new("setpriv")
            .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "sh", "-c", SCRIPT])
            .env("FOLDER", set.rig.path(""))
            .env("LUKSCTL", &binary)
            .env("LUKSCTL_RUN_DIR", set.rig.run_dir())
            .current_dir(Path::new("/")),
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with("everything the same\n"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
