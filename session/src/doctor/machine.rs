//! [`Machine`]: what every judge needs at hand: the files, the answers, the rights of this process, and how this system
//! spells "as root" and "install".
//!
//! Source: `/proc/self/status` (proc(5)), capabilities(7), os-release(5).

use std::path::PathBuf;

use super::answers::{Answers, Node};
use super::modules::{self, Driver};
use super::{Area, Finding, Level, Root};

/// Bit of CAP_SYS_ADMIN, which mounts and the device-mapper ask for.
const CAP_SYS_ADMIN: u32 = 21;
/// Bit of CAP_IPC_LOCK, which lifts the limit on locked memory.
const CAP_IPC_LOCK: u32 = 14;
/// Set-user-ID.
const MODE_SETUID: u32 = 0o4000;

/// What the judges look at.
pub(super) struct Machine<'a> {
    pub(super) root: &'a Root,
    pub(super) answers: &'a Answers,
    /// Effective capabilities.
    effective: u64,
    /// The capabilities that a program started from here can get at most.
    bounding: u64,
    no_new_privileges: bool,
}

impl<'a> Machine<'a> {
    pub(super) fn new(root: &'a Root, answers: &'a Answers) -> Machine<'a> {
        let status = root.text("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim)
        };
        let mask = |name: &str| field(name).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let all_for_root = if answers.effective_uid == 0 { u64::MAX } else { 0 };
        Machine {
            root,
            answers,
            effective: mask("CapEff").unwrap_or(all_for_root),
            bounding: mask("CapBnd").unwrap_or(u64::MAX),
            no_new_privileges: field("NoNewPrivs") == Some("1"),
        }
    }

    pub(super) fn is_root(&self) -> bool {
        self.answers.effective_uid == 0
    }

    pub(super) fn may_administer(&self) -> bool {
        self.effective >> CAP_SYS_ADMIN & 1 == 1
    }

    pub(super) fn may_lock_without_limit(&self) -> bool {
        self.effective >> CAP_IPC_LOCK & 1 == 1 || self.answers.memlock_limit_bytes.is_none()
    }

    /// Why a set-user-ID program gets no rights from here; `None` if it gets them.
    pub(super) fn setuid_hindrance(&self) -> Option<&'static str> {
        if self.no_new_privileges {
            Some("this process may not gain rights (no_new_privs)")
        } else if self.bounding >> CAP_SYS_ADMIN & 1 == 0 {
            Some("CAP_SYS_ADMIN is out of reach here (a container?)")
        } else {
            None
        }
    }

    pub(super) fn driver(&self, name: &str) -> Driver {
        modules::driver(self.root, &self.answers.kernel_release, name)
    }

    /// `command` as this user would type it.
    pub(super) fn as_root(&self, command: &str) -> String {
        if self.is_root() { command.to_owned() } else { format!("sudo {command}") }
    }

    /// The command that loads a module, if it is one that could be loaded.
    pub(super) fn load(&self, module: &str, driver: Driver) -> Option<String> {
        (driver == Driver::Loadable).then(|| self.as_root(&format!("modprobe {module}")))
    }

    /// Where a program is.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        let mut found = self.answers.search_path.iter().map(|folder| folder.join(name));
        found.find(|path| {
            self.root.metadata(path).is_some_and(|metadata| metadata.is_file() && mode(&metadata) & 0o111 != 0)
        })
    }

    /// Whether a program runs with its owner's rights.
    pub(super) fn is_setuid(&self, program: &PathBuf) -> bool {
        self.root.metadata(program).is_some_and(|metadata| mode(&metadata) & MODE_SETUID != 0)
    }

    /// The command that installs a package under the name that this distribution gives it.
    pub(super) fn install(&self, debian: &str, others: &str) -> Option<String> {
        let release = self.root.text("/etc/os-release").unwrap_or_default();
        let value = |key: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        let kin = format!("{} {}", value("ID="), value("ID_LIKE="));
        let is = |name: &str| kin.split_whitespace().any(|word| word == name);
        let command = if is("debian") || is("ubuntu") {
            format!("apt install {debian}")
        } else if is("fedora") || is("rhel") || is("centos") {
            format!("dnf install {others}")
        } else if is("arch") {
            format!("pacman -S {others}")
        } else if is("suse") || is("opensuse") {
            format!("zypper install {others}")
        } else if is("alpine") {
            format!("apk add {others}")
        } else {
            return None;
        };
        Some(self.as_root(&command))
    }

    pub(super) fn has_systemd(&self) -> bool {
        self.root.exists("/run/systemd/system")
    }

    /// A finding about a control node that this process should be able to open; `None` if it can.
    pub(super) fn node_gap(&self, node: &NodeOf<'_>) -> Option<Finding> {
        let gap = |level: Level, found: String, mend: Option<String>| {
            Some(Finding::new(node.id, Area::Backends, level, found, node.why).mended_by(mend))
        };
        let path = node.path;
        let driver = if node.registered { Driver::Present } else { self.driver(node.module) };
        let load = self.load(node.module, driver);
        match node.state {
            Node::Open => None,
            Node::Driverless if driver == Driver::Loadable => {
                gap(Level::Info, format!("module {} is not loaded yet; the first use loads it", node.module), load)
            }
            Node::Missing if driver == Driver::Loadable => {
                gap(Level::Warning, format!("module {} is not loaded and there is no {path}", node.module), load)
            }
            Node::Missing if driver == Driver::Present => {
                let folder = path.rsplit_once('/').map_or("/dev", |(folder, _)| folder);
                let make = format!("mknod -m {:o} {path} c 10 {}", node.mode, node.minor);
                let make = if folder == "/dev" || self.root.exists(folder) {
                    self.as_root(&make)
                } else {
                    format!("{} && {}", self.as_root(&format!("mkdir {folder}")), self.as_root(&make))
                };
                gap(Level::Warning, format!("the driver is there, {path} is not"), Some(make))
            }
            Node::Missing | Node::Driverless => gap(
                Level::Warning,
                format!("kernel {} has no driver {} and no module for it", self.answers.kernel_release, node.module),
                None,
            ),
            Node::Foreign => {
                gap(Level::Warning, format!("{path} is not the driver's device"), Some(format!("ls -l {path}")))
            }
            Node::Closed(reason) => {
                let open = self.as_root(&format!("chmod {:o} {path}", node.mode));
                gap(Level::Warning, format!("{path} cannot be opened: {reason}"), (!self.is_root()).then_some(open))
            }
        }
    }
}

/// A control node, for [`Machine::node_gap`].
pub(super) struct NodeOf<'a> {
    pub(super) id: &'static str,
    pub(super) why: &'static str,
    pub(super) path: &'static str,
    pub(super) state: &'a Node,
    pub(super) registered: bool,
    pub(super) module: &'static str,
    pub(super) minor: u32,
    pub(super) mode: u32,
}

fn mode(metadata: &std::fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(metadata)
}
