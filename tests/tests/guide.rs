//! `docs/guide.md` is the volume encryption guide again: every `bash` block of it is run, in order, and every line of the
//! guide's Quick Start, Installation, Management, Volume Expansion and Troubleshooting has its command in it.
//!
//! The paths of the document are folders of the rig, the sizes are small. What belongs to the machine and not to luksctl is a
//! stand-in that only notes what it was asked: apt, docker-compose, iostat; systemctl does what the unit does. gpg is given the
//! recovery key that `setup` showed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::path::Path;
use std::process::Command;

use promises::rig::run;
use promises::skip::{needs_fuse, needs_programs, needs_root};
use promises::{Rig, bins};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

const DOCUMENT: &str = include_str!("../../docs/guide.md");

/// Paths of the document, and their folders in the rig.
const PATHS: [(&str, &str); 6] = [
    ("/etc/luksctl", "etc"),
    ("/opt/trading-bot", "opt"),
    ("/mnt/trading-", "mnt/trading-"),
    ("/var/log/luksctl", "log"),
    ("/etc/systemd/system", "units"),
    ("/dev/shm/keys", "shm"),
];
/// Sizes of the document, and what they are here.
const SIZES: [(&str, &str); 4] = [("512M", "24M"), ("10G", "40M"), ("5G", "32M"), ("2G", "24M")];

/// The commands of the guide's five sections, without sudo.
const GUIDE: &[&str] = &[
    "./scripts/setup-encrypted-volumes.sh",
    "systemctl start trading-bot-volumes",
    "df -h | grep trading",
    "docker-compose -f docker-compose.encrypted.yml up -d",
    "ls -la /opt/trading-bot/keys/",
    "cryptsetup status trading-data",
    "cryptsetup status trading-logs",
    "./scripts/backup-encrypted.sh",
    "apt update && sudo apt upgrade -y",
    "apt install -y cryptsetup lvm2 parted e2fsprogs jq curl",
    "chmod +x scripts/setup-encrypted-volumes.sh",
    "systemctl status trading-bot-volumes",
    "mountpoint /mnt/trading-data",
    "mountpoint /mnt/trading-logs",
    "mountpoint /mnt/trading-config",
    "mountpoint /mnt/trading-backup",
    "./scripts/optimize-encrypted-performance.sh",
    "./scripts/benchmark-crypto.sh",
    "./scripts/manage-encryption-keys.sh check-age",
    "./scripts/manage-encryption-keys.sh report",
    "./scripts/manage-encryption-keys.sh verify",
    "./scripts/manage-encryption-keys.sh rotate-all",
    "./scripts/manage-encryption-keys.sh rotate data",
    "./scripts/manage-encryption-keys.sh rotate-backup",
    "./scripts/manage-encryption-keys.sh setup-timer",
    "systemctl status trading-bot-key-rotation.timer",
    "/opt/trading-bot/scripts/mount-encrypted-volumes.sh",
    "/opt/trading-bot/scripts/umount-encrypted-volumes.sh",
    "docker-compose -f docker-compose.encrypted.yml down",
    "dd if=/dev/zero bs=1G count=5 >> /opt/trading-bot/encrypted/data.img",
    "cryptsetup resize trading-data",
    "resize2fs /dev/mapper/trading-data",
    "losetup -l | grep trading",
    "ls -la /opt/trading-bot/keys/data.key",
    "iostat -x 1 5",
    "./scripts/monitor-crypto-performance.sh 60",
    "top -p $(pgrep -d, crypto)",
    "free -h",
    "cryptsetup luksOpen --test-passphrase /dev/loop0 --key-file /opt/trading-bot/keys/data.key",
    "./scripts/backup-encrypted.sh verify <backup_file>",
    "df -h /mnt/trading-backup",
    "fsck.ext4 /dev/mapper/trading-data",
    "./scripts/disaster-recovery.sh partial-recovery data",
    "./scripts/disaster-recovery.sh full-recovery",
    "gpg --decrypt /opt/trading-bot/encrypted/key-backup/keys_*.tar.gz.gpg | sudo tar -xzf - -C /opt/trading-bot/keys/",
    "./scripts/disaster-recovery.sh emergency-stop",
];

/// What the shell has before each block: the programs that stand for others, and luksctl with the rig's file.
const PREAMBLE: &str = r#"
luksctl() {
    case "$1 ${2-} ${3-}" in
        "volume config example") command luksctl "$@" | sed -e "$SED"; return ;;
    esac
    case "$1" in
        volume | key | audit | compliance) set -- "$@" --config "$CONFIG" ;;
    esac
    case "$1 ${2-}" in
        "volume units") set -- "$@" --dir "$UNITS" ;;
        "volume setup") command luksctl "$@" --units-dir "$UNITS" | tee -a "$SHOWN"; return ;;
    esac
    command luksctl "$@"
}
gpg() { command gpg --batch --quiet --pinentry-mode loopback --passphrase-file "$RECOVERY" "$@"; }
apt() { echo "apt $*" >> "$ASKED"; }
iostat() { echo "iostat $*" >> "$ASKED"; }
docker-compose() { test -f "$2" && echo "docker-compose $*" >> "$ASKED"; }
systemctl() {
    echo "systemctl $*" >> "$ASKED"
    for unit in "$@"; do :; done
    case "$unit" in *.timer) ;; *) unit=$unit.service ;; esac
    test -f "$UNITS/$unit"
    case "$1" in
        start) luksctl volume up ;;
        stop) luksctl volume down ;;
    esac
}
set -euo pipefail
"#;

/// The commands of each `bash` block.
fn blocks(document: &str) -> Vec<String> {
    let parts = document.split("```bash\n").skip(1);
    parts.map(|part| part.split("```").next().unwrap().to_owned()).collect()
}

/// The rows of the table at the end: the guide's line and ours.
fn rows(document: &str) -> Vec<(String, String)> {
    let cell = |text: &str| {
        let text = text.split('`').nth(1).unwrap_or_default();
        text.replace('\u{0}', "|")
    };
    let table = document.split("## Where the scripts went").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let line = line.replace("\\|", "\u{0}");
        let mut cells = line.split('|').skip(1);
        (cell(cells.next().unwrap()), cell(cells.next().unwrap()))
    })
    .collect()
}

#[test]
fn every_line_of_the_guide_has_a_command_that_is_run() {
    let rows = rows(DOCUMENT);
    let missing: Vec<&&str> = GUIDE.iter().filter(|line| !rows.iter().any(|(theirs, _)| theirs == **line)).collect();
    assert!(missing.is_empty(), "no row for {missing:#?}");
    assert_eq!(rows.len(), GUIDE.len(), "a row of the table is no line of the guide");
    let commands = blocks(DOCUMENT).concat();
    for (theirs, ours) in &rows {
        let is_run = commands.lines().any(|line| line == ours || line.strip_suffix(" || true") == Some(ours));
        assert!(is_run, "{theirs} became {ours}, which no block runs");
    }
}

/// The recovery key in what `setup` printed.
fn recovery_key(shown: &str) -> String {
    let is_key = |word: &str| {
        let groups: Vec<&str> = word.split('-').collect();
        groups.len() == 9
            && groups.iter().all(|group| group.len() == 4 && group.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    let found = shown.split(|c: char| c.is_whitespace() || c == '"').find(|word| is_key(word));
    found.unwrap_or_else(|| panic!("no recovery key in {shown}")).to_owned()
}

/// Puts the rig's places and sizes where the document's are.
fn moved(text: &str, rig: &Rig) -> String {
    let text = PATHS
        .iter()
        .fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, rig.path(ours).to_str().unwrap()));
    SIZES.iter().fold(text, |text, (theirs, ours)| text.replace(theirs, ours))
}

fn sed(rig: &Rig) -> String {
    let paths = PATHS.map(|(theirs, ours)| format!("s|{theirs}|{}|g;", rig.path(ours).display()));
    paths.concat() + &SIZES.map(|(theirs, ours)| format!("s|\"{theirs}\"|\"{ours}\"|;")).concat()
}

#[test]
fn every_command_of_the_guide_works() {
    let name = "every_command_of_the_guide_works";
    let programs = ["bash", "mkfs.ext4", "gpg", "tar", "cryptsetup", "losetup", "top", "free", "df", "mountpoint"];
    if !needs_root(name) || !needs_fuse(name) || !needs_programs(name, &programs) {
        return;
    }
    let rig = Rig::new("guide");
    for folder in ["etc", "opt", "mnt", "log", "work", "gnupg"] {
        fs::create_dir(rig.path(folder)).unwrap();
    }
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(rig.path("gnupg"), owner_only).unwrap();
    let path =
        format!("{}:{}:/usr/sbin:/sbin", bins::luksctl().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut down = Down(&rig);
    for block in blocks(DOCUMENT) {
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!("{PREAMBLE}\n{}", moved(&block, &rig)));
        command.env("PATH", &path).env("SED", sed(&rig)).env("LUKSCTL_RUN_DIR", rig.run_dir());
        for (variable, place) in [
            ("CONFIG", "etc/volumes.toml"),
            ("UNITS", "units"),
            ("SHOWN", "shown"),
            ("RECOVERY", "recovery"),
            ("ASKED", "asked"),
            ("GNUPGHOME", "gnupg"),
        ] {
            command.env(variable, rig.path(place));
        }
        let output = run(command.current_dir(rig.path("work")).stdin(std::process::Stdio::null()));
        assert!(output.status.success(), "{block}\n{output:#?}");
        if block.contains("volume setup --yes") {
            let shown = fs::read_to_string(rig.path("shown")).unwrap();
            fs::write(rig.path("recovery"), recovery_key(&shown)).unwrap();
        }
    }
    let asked = fs::read_to_string(rig.path("asked")).unwrap();
    assert!(asked.contains("systemctl start trading-bot-volumes\n"), "{asked}");
    assert!(asked.contains("docker-compose -f docker-compose.encrypted.yml up -d\n"), "{asked}");
    let size = fs::metadata(rig.path("opt/encrypted/data.img")).unwrap().len();
    assert_eq!(size, 40 << 20, "the volume grew");
    // What was set up and rotated has the cipher and the hashes that PCI DSS sets need, also in its keyslots.
    let mut report = rig.luksctl(&["compliance", "report", "--profile", "pci-dss", "--json", "--config"]);
    let report = run(report.arg(rig.path("etc/volumes.toml")));
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let cipher = report["demands"].as_array().unwrap().iter().find(|demand| demand["name"] == "cipher").unwrap();
    assert_eq!(cipher["verdict"], "met", "{report:#}");
    down.now();
}

/// Takes the set down, also after a failure.
struct Down<'a>(&'a Rig);

impl Down<'_> {
    fn now(&mut self) {
        let config = self.0.path("etc/volumes.toml");
        let output = run(self.0.luksctl(&["volume", "down", "--config"]).arg(&config));
        assert!(output.status.success(), "{output:?}");
        assert!(!promises::rig::mount_points().iter().any(|point| point.starts_with(self.0.path("mnt"))));
    }
}

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let config: &Path = &self.0.path("etc/volumes.toml");
        if config.exists() {
            let output = run(self.0.luksctl(&["volume", "down", "--config"]).arg(config));
            eprintln!("volume down: {}", output.status);
        }
        // Unused mount points are immutable.
        for entry in fs::read_dir(self.0.path("mnt")).into_iter().flatten().flatten() {
            let folder = fs::File::open(entry.path());
            let changed = folder.and_then(|folder| {
                let flags = ioctl_getflags(&folder)?;
                Ok(ioctl_setflags(&folder, flags - IFlags::IMMUTABLE)?)
            });
            eprintln!("{}: {changed:?}", entry.path().display());
        }
    }
}
