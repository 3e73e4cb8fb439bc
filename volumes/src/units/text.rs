//! The text of each unit, without its first line.
//!
//! The order at start is `open` → mounts → `volumes` → docker, and the reverse at the end, as systemd stops units in the
//! reverse order. The mounts have none of the default dependencies of mount units: those would pull them before
//! `local-fs.target`, which `open` comes after.

use std::path::Path;

use super::hardening::{Work, settings};
use super::{Around, Names, mount_unit, word};
use crate::config::{Config, VolumeSpec};

/// Where the program of util-linux is that says whether something is mounted.
const MOUNTPOINT: &str = "/usr/bin/mountpoint";
/// A program that does nothing, for a set of bare disks.
const NOTHING: &str = "/bin/true";

/// The unit that people start, stop and ask: all volumes are open, and mounted where they are to be.
pub(crate) fn volumes(config: &Config, names: &Names<'_>, mounted: &[(&VolumeSpec, &Path)]) -> String {
    let needed: Vec<String> =
        std::iter::once(names.open()).chain(mounted.iter().map(|(_, mount)| mount_unit(mount))).collect();
    let needed = needed.join(" ");
    let looks: String =
        mounted.iter().map(|(_, mount)| format!("ExecStart={MOUNTPOINT} -q {}\n", word::argument(mount))).collect();
    let looks = if looks.is_empty() { format!("ExecStart={NOTHING}\n") } else { looks };
    format!(
        "[Unit]
Description=Encrypted volumes of {application}
Documentation=man:luksctl(1)
Requires={needed}
After={needed}

[Service]
Type=oneshot
RemainAfterExit=yes
{looks}CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
PrivateNetwork=yes
IPAddressDeny=any
RestrictAddressFamilies=none
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
DevicePolicy=closed

[Install]
WantedBy=multi-user.target
",
        application = config.store.application,
    )
}

/// The service that opens the volumes and, at the end, closes them. PID 1 mounts them in between.
pub(crate) fn open(config: &Config, names: &Names<'_>, around: &Around<'_>, credential: Option<&str>) -> String {
    let (program, file) = (word::argument(around.program), word::argument(around.config));
    format!(
        "[Unit]
Description=Opening of the encrypted volumes of {application}
Documentation=man:luksctl(1)
RequiresMountsFor={places}
After=systemd-udevd.service systemd-journald.socket
PartOf={volumes}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={program} volume up --no-mount --config {file}
ExecStop={program} volume down --config {file}
TimeoutSec=5min
{credential}{settings}",
        application = config.store.application,
        places = places(config, around),
        volumes = names.volumes(),
        credential = line(credential),
        settings = settings(config, around.config, Work::Opening),
    )
}

/// The mount of one volume.
pub(crate) fn mount(config: &Config, names: &Names<'_>, volume: &VolumeSpec, mount: &Path) -> String {
    format!(
        "[Unit]
Description=Encrypted volume {name} of {application}
Documentation=man:luksctl(1)
DefaultDependencies=no
Requires={open}
After={open}
PartOf={volumes}
Conflicts=umount.target
Before=umount.target

[Mount]
What=/run/luksctl/{mapping}/device
Where={place}
Type={kind}
Options=nosuid,nodev
TimeoutSec=5min
",
        name = volume.name,
        application = config.store.application,
        open = names.open(),
        volumes = names.volumes(),
        mapping = config.mapping(volume),
        place = word::whole(mount),
        kind = volume.file_system.word(),
    )
}

/// What turns the keys that fall due.
pub(crate) fn rotation(config: &Config, around: &Around<'_>, credential: Option<&str>) -> String {
    let (program, file) = (word::argument(around.program), word::argument(around.config));
    format!(
        "[Unit]
Description=Rotation of the keys of {application} that fall due
Documentation=man:luksctl(1)
RequiresMountsFor={places}

[Service]
Type=oneshot
ExecStart={program} --batch-mode key rotate-all --due --config {file}
TimeoutStartSec=1h
{credential}{settings}",
        application = config.store.application,
        places = places(config, around),
        credential = line(credential),
        settings = settings(config, around.config, Work::Turning),
    )
}

/// When that is: weekly, and after the start of a machine that was off then.
pub(crate) fn timer(config: &Config) -> String {
    format!(
        "[Unit]
Description=Weekly rotation of the keys of {application} that fall due
Documentation=man:luksctl(1)

[Timer]
OnCalendar=weekly
RandomizedDelaySec=1h
Persistent=yes

[Install]
WantedBy=timers.target
",
        application = config.store.application,
    )
}

/// What docker.service gets: no container starts on a bare mount point, and all end before the volumes do.
pub(crate) fn docker(mounted: &[(&VolumeSpec, &Path)]) -> String {
    let mounts: Vec<String> = mounted.iter().map(|(_, mount)| mount_unit(mount)).collect();
    let mounts = mounts.join(" ");
    format!("[Unit]\nRequires={mounts}\nAfter={mounts}\n")
}

fn line(setting: Option<&str>) -> String {
    setting.map(|setting| format!("{setting}\n")).unwrap_or_default()
}

/// The folders that have to be there first.
fn places(config: &Config, around: &Around<'_>) -> String {
    let store = &config.store;
    let places = [store.folder.as_path(), &store.keys, &store.key_backup, &config.audit.folder, around.config];
    places.map(word::quoted).join(" ")
}
