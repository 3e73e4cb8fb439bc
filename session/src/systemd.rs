//! A server as a transient systemd unit.
//!
//! * No default dependencies: shutdown then stops the unit neither with the other services nor at `shutdown.target`. It
//!   lives until the file systems above it are unmounted, and ends in the last round of SIGTERM, when nothing is mounted.
//! * Not in the caller's session: logout does not reach it.
//! * `KillMode=mixed`, no SIGHUP and no SIGKILL: a `systemctl stop` asks the server alone, which refuses while it is mounted,
//!   and the manager does not kill it when it then takes too long. `systemctl isolate` does not ask at all.
//! * It may do what a server does and nothing else ([`CONFINEMENT`]); a network only if it listens on one or hands its socket to
//!   the kernel's NBD client. It has no mount namespace: what it mounts, PID 1 and everybody else have to see.
//!
//! Source: systemd-run(1), systemd.kill(5), systemd.unit(5), systemd.exec(5), bootup(7).

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::SessionError;
use crate::protocol::UnlockOrder;
use crate::run_dir::Entry;
use crate::spawn::search_path;
use crate::{cpu, opener};

const PROGRAM: &str = "systemd-run";

const PROPERTIES: [&str; 12] = [
    "DefaultDependencies=no",
    "KillMode=mixed",
    "SendSIGHUP=no",
    "SendSIGKILL=no",
    "IgnoreOnIsolate=yes",
    "OOMScoreAdjust=-1000",
    "OOMPolicy=continue",
    "LimitCORE=0",
    "LimitMEMLOCK=infinity",
    "UMask=0077",
    "StandardInput=null",
    "StandardOutput=null",
];

/// What the server may do: mount, claim loop and ublk devices, lock memory, open images of any owner.
const CONFINEMENT: [&str; 22] = [
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_IPC_LOCK CAP_SYS_RESOURCE CAP_DAC_OVERRIDE",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service @mount",
    "SystemCallErrorNumber=EPERM",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "PrivateMounts=no",
    "KeyringMode=private",
    "DevicePolicy=closed",
    "DeviceAllow=/dev/fuse rw",
    "DeviceAllow=/dev/loop-control rw",
    "DeviceAllow=block-loop rw",
    "DeviceAllow=/dev/ublk-control rw",
    "DeviceAllow=char-ublk-char rw",
    "DeviceAllow=block-ublkb rw",
    "DeviceAllow=block-nbd rw",
];

/// Where nobody on a network is served.
const ALONE: [&str; 3] = ["PrivateNetwork=yes", "IPAddressDeny=any", "RestrictAddressFamilies=AF_UNIX"];

/// The properties that depend on what the server is to do.
pub(crate) fn confinement(order: &UnlockOrder) -> Vec<OsString> {
    use std::os::unix::fs::FileTypeExt as _;
    let mut all: Vec<OsString> = CONFINEMENT.map(OsString::from).into();
    if order.listen.is_none() && !order.attach {
        all.extend(ALONE.map(OsString::from));
    }
    for path in std::iter::once(&order.image).chain(&order.header) {
        if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) {
            let mut property = OsString::from("DeviceAllow=");
            property.push(path);
            property.push(" rw");
            all.push(property);
        }
    }
    all
}

/// Whether the system's manager is systemd and this process may ask it.
pub(crate) fn manages_this_process() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/run/systemd/system").is_dir()
}

/// Starts `program arguments` as the unit `luksctl-NAME.service`.
pub(crate) fn start_unit(
    entry: &Entry,
    confinement: &[OsString],
    program: &Path,
    arguments: &[OsString],
) -> Result<(), SessionError> {
    let failed = |reason: String| SessionError::Program { program: PROGRAM, reason };
    let output = Command::new(PROGRAM)
        .args(unit_arguments(entry.name.as_str(), confinement, program, arguments))
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{}: {}", output.status, words.trim())))
}

fn unit_arguments(name: &str, confinement: &[OsString], program: &Path, arguments: &[OsString]) -> Vec<OsString> {
    let mut all: Vec<OsString> = ["--quiet", "--collect", "--service-type=exec"].map(OsString::from).into();
    all.push(format!("--unit=luksctl-{name}.service").into());
    all.push(format!("--description=LUKS volume {name}").into());
    all.extend(PROPERTIES.map(|property| OsString::from(format!("--property={property}"))));
    all.extend(confinement.iter().map(|property| {
        let mut argument = OsString::from("--property=");
        argument.push(property);
        argument
    }));
    let mut path = OsString::from("--setenv=PATH=");
    path.push(search_path());
    all.push(path);
    all.push(format!("--setenv={}={}", opener::VARIABLE, opener::own_id()).into());
    if let Some((name, value)) = cpu::for_server() {
        all.push(format!("--setenv={name}={}", value.to_string_lossy()).into());
    }
    all.push("--".into());
    all.push(program.into());
    // The manager expands $NAME when it starts the unit; two dollars stand for one.
    all.extend(arguments.iter().map(|argument| double_dollars(argument)));
    all
}

fn double_dollars(argument: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let doubled = argument.as_bytes().iter().flat_map(|&byte| if byte == b'$' { vec![byte; 2] } else { vec![byte] });
    OsString::from_vec(doubled.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing listens.
    fn confined() -> Vec<OsString> {
        CONFINEMENT.into_iter().chain(ALONE).map(OsString::from).collect()
    }

    #[test]
    fn systemd_finds_the_server_hardened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("luksctl-home.service");
        let confined: Vec<String> = confined().into_iter().map(|property| property.into_string().unwrap()).collect();
        let all: Vec<&str> = PROPERTIES.into_iter().chain(confined.iter().map(String::as_str)).collect();
        let (unit, service): (Vec<&str>, Vec<&str>) =
            all.into_iter().partition(|line| line.starts_with("DefaultDep") || line.starts_with("IgnoreOn"));
        let text = format!("[Unit]\n{}\n[Service]\nExecStart=/bin/true\n{}\n", unit.join("\n"), service.join("\n"));
        std::fs::write(&path, text).unwrap();
        let analyze = |words: &[&str]| Command::new("systemd-analyze").args(words).arg(&path).output();
        let Ok(verified) = analyze(&["verify", "--man=no", "--recursive-errors=no"]) else {
            eprintln!("SKIPPED: no systemd-analyze (run tests/setup)");
            return;
        };
        assert!(!String::from_utf8_lossy(&verified.stderr).contains("luksctl-home"), "{verified:?}");
        let judged = analyze(&["security", "--offline=true", "--threshold=30", "--no-pager"]).unwrap();
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
    }

    #[test]
    fn the_unit_outlives_logout_and_the_stop_of_other_services() {
        let arguments = ["__serve".into(), "/run/luks$ctl".into(), "home".into()];
        let all = unit_arguments("home", &confined(), Path::new("/usr/bin/luksctl"), &arguments);
        let has = |wanted: &str| all.iter().any(|argument| argument == wanted);
        assert!(has("--property=DefaultDependencies=no") && has("--property=SendSIGHUP=no"));
        assert!(has("--property=SendSIGKILL=no"), "a server under a mounted file system is never killed");
        assert!(has("--unit=luksctl-home.service"));
        let end: Vec<_> = all.iter().rev().take(5).rev().collect();
        assert_eq!(end, ["--", "/usr/bin/luksctl", "__serve", "/run/luks$$ctl", "home"]);
    }
}
