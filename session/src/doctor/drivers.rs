//! The kernel's drivers: device-mapper and its crypt target, loop devices, and whether ublk and NBD are there.
//!
//! Sources: `Documentation/admin-guide/device-mapper/dm-crypt.rst`, `Documentation/block/ublk.rst`,
//! `Documentation/admin-guide/blockdev/nbd.rst`, loop(4).

use super::answers::Node;
use super::machine::{Machine, NodeOf};
use super::modules::{self, Driver};
use super::{Area, Finding, Level};

const WHY_MAPPER: &str = "the kernel's own dm-crypt is reached through it, by root";
const WHY_CRYPT: &str = "the kernel encrypts with it; without it luksctl's own code does";
const WHY_LOOP: &str = "an image file becomes a block device through it, for root";
const WHY_UBLK: &str = "a volume becomes a block device through it where dm-crypt is not possible, for root";
const WHY_NBD: &str = "the kernel's client for network block devices; for information";

pub(super) fn judge(machine: &Machine<'_>) -> Vec<Finding> {
    vec![mapper(machine), crypt(machine), loops(machine), ublk(machine), nbd(machine)]
}

pub(super) fn mapper_node<'a>(machine: &'a Machine<'_>) -> NodeOf<'a> {
    NodeOf {
        id: "device-mapper",
        why: WHY_MAPPER,
        path: "/dev/mapper/control",
        state: &machine.answers.mapper_control,
        registered: modules::is_misc_device(machine.root, "device-mapper"),
        module: "dm_mod",
        minor: 236,
        mode: 0o600,
    }
}

pub(super) fn loop_node<'a>(machine: &'a Machine<'_>) -> NodeOf<'a> {
    NodeOf {
        id: "loop",
        why: WHY_LOOP,
        path: "/dev/loop-control",
        state: &machine.answers.loop_control,
        registered: modules::is_misc_device(machine.root, "loop-control"),
        module: "loop",
        minor: 237,
        mode: 0o660,
    }
}

/// The crypt target: there, loadable, or missing.
pub(super) fn crypt_driver(machine: &Machine<'_>) -> Driver {
    if crypt_version(machine).is_some() { Driver::Present } else { machine.driver("dm_crypt") }
}

fn crypt_version<'a>(machine: &'a Machine<'_>) -> Option<&'a str> {
    let targets = &machine.answers.mapper_driver.as_ref().ok()?.targets;
    targets.iter().find(|(name, _)| name == "crypt").map(|(_, version)| version.as_str())
}

fn mapper(machine: &Machine<'_>) -> Finding {
    let finding = |level: Level, found: String| Finding::new("device-mapper", Area::Backends, level, found, WHY_MAPPER);
    if let Ok(driver) = &machine.answers.mapper_driver {
        return finding(Level::Ok, format!("version {}", driver.version));
    }
    let node = mapper_node(machine);
    if !machine.is_root() && node.registered {
        return finding(Level::Info, "the driver is there; only root can use it".to_owned());
    }
    let reason = machine.answers.mapper_driver.as_ref().err().map_or("", String::as_str);
    let silent = || finding(Level::Warning, format!("/dev/mapper/control opens, but does not answer: {reason}"));
    below_for_users(machine, machine.node_gap(&node).unwrap_or_else(silent))
}

/// What only root could use is no gap for others.
fn below_for_users(machine: &Machine<'_>, finding: Finding) -> Finding {
    if machine.is_root() { finding } else { Finding { level: finding.level.min(Level::Info), ..finding } }
}

fn crypt(machine: &Machine<'_>) -> Finding {
    let finding = |level: Level, found: String| Finding::new("dm-crypt", Area::Backends, level, found, WHY_CRYPT);
    let driver = crypt_driver(machine);
    let found = match (crypt_version(machine), driver) {
        (Some(version), _) => return finding(Level::Ok, format!("target crypt, version {version}")),
        (None, Driver::Present) => return finding(Level::Ok, "in the running kernel".to_owned()),
        (None, Driver::Loadable) => {
            let found = "module dm_crypt is not loaded yet; the first use loads it";
            return finding(Level::Info, found.to_owned()).mended_by(machine.load("dm_crypt", driver));
        }
        (None, Driver::Missing) => {
            format!("kernel {} has neither the target nor a module for it", machine.answers.kernel_release)
        }
    };
    below_for_users(machine, finding(Level::Warning, found))
}

fn loops(machine: &Machine<'_>) -> Finding {
    let finding = |level: Level, found: &str| Finding::new("loop", Area::Backends, level, found, WHY_LOOP);
    let node = loop_node(machine);
    match machine.node_gap(&node) {
        None => finding(Level::Ok, "/dev/loop-control opens"),
        Some(_) if !machine.is_root() && node.registered && *node.state != Node::Foreign => {
            finding(Level::Info, "the driver is there; only root can use it")
        }
        Some(gap) => below_for_users(machine, gap),
    }
}

fn ublk(machine: &Machine<'_>) -> Finding {
    const MODULE: &str = "ublk_drv";
    const NODE: &str = "/dev/ublk-control";
    let finding = |level: Level, found: String| Finding::new("ublk", Area::Backends, level, found, WHY_UBLK);
    let present = modules::is_misc_device(machine.root, "ublk-control");
    let driver = if present { Driver::Present } else { machine.driver(MODULE) };
    match (driver, &machine.answers.io_uring) {
        (Driver::Missing, _) => finding(Level::Info, format!("the kernel lacks {MODULE}")),
        (Driver::Loadable, _) => finding(Level::Info, format!("module {MODULE} could be loaded"))
            .mended_by(machine.load(MODULE, driver).filter(|_| machine.is_root())),
        (Driver::Present, _) if !machine.root.exists(NODE) => {
            finding(Level::Info, format!("the kernel has {MODULE}, but there is no {NODE}"))
        }
        (Driver::Present, Err(reason)) => finding(
            Level::Info,
            format!("the kernel has {MODULE}, which is spoken to through io_uring, and that is denied: {reason}"),
        ),
        (Driver::Present, Ok(())) if !machine.is_root() => {
            finding(Level::Info, format!("the kernel has {MODULE}; only root can use it"))
        }
        (Driver::Present, Ok(())) => finding(Level::Ok, format!("the kernel has {MODULE}, and {NODE} is there")),
    }
}

fn nbd(machine: &Machine<'_>) -> Finding {
    let devices = machine.root.text("/proc/devices").unwrap_or_default();
    let present = devices.lines().any(|line| line.split_whitespace().nth(1) == Some("nbd"));
    bystander(machine, "nbd", "nbd", present, WHY_NBD)
}

/// A driver that nothing here needs.
fn bystander(
    machine: &Machine<'_>,
    id: &'static str,
    module: &'static str,
    present: bool,
    why: &'static str,
) -> Finding {
    let driver = if present { Driver::Present } else { machine.driver(module) };
    let found = match driver {
        Driver::Present => format!("the kernel has {module}"),
        Driver::Loadable => format!("module {module} could be loaded"),
        Driver::Missing => format!("the kernel lacks {module}"),
    };
    Finding::new(id, Area::Backends, Level::Info, found, why)
}
