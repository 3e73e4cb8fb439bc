//! An ordinary user without sudo: format, copy in, open, mount with fuse2fs, close, copy out, the same bytes.
//!
//! `/dev/fuse` is closed to users on some machines; then the test opens it for its own time, in a mount namespace of its
//! own that nobody else sees, and says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use promises::Rig;
use promises::rig::succeed;
use promises::skip::{needs_fuse, needs_programs, needs_root};

/// `nobody` and `nogroup` on Debian.
const USER: u32 = 65534;

/// What the user does. The folder, the binary and the run directory come in through the environment.
const SCRIPT: &str = r#"
set -eu
cd "$FOLDER"
export HOME="$FOLDER" XDG_RUNTIME_DIR="$FOLDER"
[ "$(id -u)" != 0 ]
cheap="--pbkdf pbkdf2 --pbkdf-force-iterations 1000"
"$LUKSCTL" format -q --size 64M $cheap --key-file key image
head -c 48000000 /dev/urandom > plain
"$LUKSCTL" copy-in -q --key-file key image plain
"$LUKSCTL" copy-out --key-file key image copied
cmp -n 48000000 plain copied

"$LUKSCTL" open --key-file key image disk
device=$(readlink -f "$LUKSCTL_RUN_DIR/disk/device")
cmp -n 48000000 plain "$device"
mkfs.ext4 -q -F "$device"
"$LUKSCTL" close disk

mkdir mnt
"$LUKSCTL" mount --key-file key image mnt
mkdir mnt/tree
for number in 1 2 3 4 5 6 7 8; do head -c 3000000 /dev/urandom > "mnt/tree/file $number"; done
cp -r mnt/tree tree
"$LUKSCTL" umount mnt
[ -z "$(ls -A mnt)" ]

"$LUKSCTL" mount --key-file key image mnt
diff -r tree mnt/tree
"$LUKSCTL" umount mnt
"$LUKSCTL" copy-out --key-file key image ext4.img
e2fsck -fn ext4.img
[ "$("$LUKSCTL" list --json | tr -d ' \n')" = '[]' ]
echo everything the same
"#;

#[test]
fn everything_works_without_root() {
    let test = "user: everything_works_without_root";
    let programs = ["setpriv", "unshare", "fuse2fs", "fusermount3", "mkfs.ext4", "e2fsck"];
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &programs)) {
        return;
    }
    let rig = Rig::new("user");
    std::fs::set_permissions(rig.path(""), std::fs::Permissions::from_mode(0o700)).unwrap();
    for path in ["", "run", "key"] {
        chown(rig.path(path), Some(USER), Some(USER)).unwrap();
    }
    std::fs::set_permissions(rig.run_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
    // The build folder may be closed to users: they get a copy.
    let binary = rig.path("luksctl");
    std::fs::copy(promises::bins::luksctl(), &binary).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();

    let mode = std::fs::metadata("/dev/fuse").unwrap().permissions().mode();
    let prepare = if mode & 0o006 == 0o006 {
        "true"
    } else {
        eprintln!("/dev/fuse has mode {:o}: opened for this test, in a mount namespace of its own", mode & 0o777);
        "mknod \"$FOLDER/fuse-node\" c 10 229 && chmod 666 \"$FOLDER/fuse-node\" && mount --bind \"$FOLDER/fuse-node\" /dev/fuse"
    };
    let run =
        format!("set -eu; {prepare}; exec setpriv --reuid {USER} --regid {USER} --clear-groups sh -c \"$SCRIPT\"");
    let output = succeed(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &run])
            .env("SCRIPT", SCRIPT)
            .env("FOLDER", rig.path(""))
            .env("LUKSCTL", &binary)
            .env("LUKSCTL_RUN_DIR", rig.run_dir()),
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with("everything the same\n"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
