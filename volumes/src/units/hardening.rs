//! What the services of the set may not do.
//!
//! Both work in a mount namespace of their own, so what they mount nobody else sees: mounting is PID 1's, and a server of a
//! volume is a unit of its own (see `session`). `systemd-analyze security` gives each 3.0 at the most, which a test holds.
//!
//! * Kernel tunables stay writable for the service that opens: it ends the connection of a FUSE server that died, in
//!   `/sys/fs/fuse`.
//! * A master key that a command prints, and a command for alerts, may need the network and a compiler of its own; both
//!   loosen what they have to, and the units then say so.

use std::path::{Path, PathBuf};

use super::word;
use crate::config::{Config, MasterSource, Place};

/// What both services have.
const COMMON: &str = "\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
PrivateMounts=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
DevicePolicy=closed
UMask=0077
LimitCORE=0
LimitMEMLOCK=infinity
RuntimeDirectory=luksctl
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
";

/// Where no network is needed.
const ALONE: &str = "\
MemoryDenyWriteExecute=yes
PrivateNetwork=yes
IPAddressDeny=any
RestrictAddressFamilies=AF_UNIX
";

/// Where a command of the configuration may ask another machine.
const WITH_NETWORK: &str = "\
# A command of volumes.toml (keys.master, audit.alert-command) may ask another machine.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
";

/// What opening needs: mappings, loop devices, the devices of servers; locked memory; attributes of mount points.
const OPENING: &str = "\
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_RESOURCE CAP_IPC_LOCK CAP_DAC_OVERRIDE CAP_FOWNER CAP_LINUX_IMMUTABLE
DeviceAllow=/dev/mapper/control rw
DeviceAllow=block-device-mapper rw
DeviceAllow=/dev/loop-control rw
DeviceAllow=block-loop rw
DeviceAllow=/dev/fuse rw
DeviceAllow=/dev/ublk-control rw
DeviceAllow=block-ublkb rw
";

/// What turning keys needs: the images' headers, and to see whether a loop device is on one.
const TURNING: &str = "\
CapabilityBoundingSet=CAP_SYS_RESOURCE CAP_IPC_LOCK CAP_DAC_OVERRIDE CAP_FOWNER CAP_LINUX_IMMUTABLE
ProtectKernelTunables=yes
DeviceAllow=/dev/loop-control rw
DeviceAllow=block-loop r
";

/// Which service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Opens and closes volumes.
    Opening,
    /// Turns keys.
    Turning,
}

/// The settings for `work`, as lines.
pub(crate) fn settings(config: &Config, file: &Path, work: Work) -> String {
    let mut text = COMMON.to_owned();
    let is_alone = config.audit.alert_command.is_empty() && !matches!(config.keys.master, MasterSource::Command(_));
    text.push_str(if is_alone { ALONE } else { WITH_NETWORK });
    text.push_str(if work == Work::Opening { OPENING } else { TURNING });
    for volume in &config.volumes {
        if let Place::Device { device } = &volume.place {
            text.push_str(&format!("DeviceAllow={} rw\n", word::quoted(device)));
        }
    }
    // A user's key of the keyring is found through the session's link to the user's.
    let keyring = if matches!(config.keys.master, MasterSource::Keyring(_)) { "shared" } else { "private" };
    text.push_str(&format!("KeyringMode={keyring}\n"));
    let writable = writable(config, work);
    let within = |folders: &[&str]| {
        let all = writable.iter().map(PathBuf::as_path).chain([file]);
        all.into_iter().any(|path| folders.iter().any(|folder| path.starts_with(folder)))
    };
    text.push_str(if within(&["/home", "/root", "/run/user"]) {
        "ProtectHome=read-only\n"
    } else {
        "ProtectHome=yes\n"
    });
    if !within(&["/tmp", "/var/tmp"]) {
        text.push_str("PrivateTmp=yes\n");
    }
    // What is not there, or not yet, is no reason not to start.
    let words: Vec<String> = writable.iter().map(|path| word::quoted_with("-", path)).collect();
    text.push_str(&format!("ReadWritePaths={} -/run/cryptsetup\n", words.join(" ")));
    text
}

/// The folders that the work changes, each once.
fn writable(config: &Config, work: Work) -> Vec<PathBuf> {
    let store = &config.store;
    let mut folders = vec![store.folder.clone(), store.keys.clone(), store.key_backup.clone()];
    if config.audit.enabled {
        folders.push(config.audit.folder.clone());
    }
    if work == Work::Turning && config.keys.dual_approval {
        // Made by the first request.
        folders.extend(config.keys.approvals.parent().map(Path::to_path_buf));
    }
    for volume in &config.volumes {
        if let Place::Image { image, .. } = &volume.place {
            folders.extend(image.parent().map(Path::to_path_buf));
        }
        if work == Work::Opening {
            folders.extend(volume.mount.clone());
        }
    }
    folders.sort();
    folders.dedup();
    folders
}
