//! The one question behind the rest: could this user open a volume here, and through which backend?
//!
//! An NBD socket needs nothing but this process, and makes no disk that this machine could mount.
//!
//! * FUSE: a driver, a node that opens, the right to mount or a `fusermount3` that has it.
//! * dm-crypt: this build, root, a device-mapper that answers or comes at first use, the crypt target, a keyring for the
//!   key, and for image files loop devices.

use super::answers::Node;
use super::machine::{Machine, NodeOf};
use super::modules::Driver;
use super::{Area, Finding, Level, drivers, fuse};

const WHY: &str =
    "without them a volume is no disk of this machine; --backend nbd, copy-in, copy-out and header verbs work always";

pub(super) fn judge(machine: &Machine<'_>) -> Vec<Finding> {
    vec![backends(machine)]
}

fn backends(machine: &Machine<'_>) -> Finding {
    let finding = |level: Level, found: String| Finding::new("open", Area::Backends, level, found, WHY);
    let kernel = kernel_hindrance(machine);
    let fuse = fuse::hindrance(machine);
    let loops = comes(machine, &drivers::loop_node(machine));
    match (&kernel, &fuse) {
        (None, None) => finding(Level::Ok, "through dm-crypt and FUSE".to_owned()),
        (None, Some(_)) if loops => finding(Level::Ok, "through dm-crypt".to_owned()),
        (None, Some(fuse)) => {
            finding(Level::Warning, format!("block devices only: image files need loop devices or FUSE ({fuse})"))
                .mended_by(machine.node_gap(&drivers::loop_node(machine)).and_then(|gap| gap.mend))
        }
        (Some(_), None) => finding(Level::Ok, "through FUSE".to_owned()),
        (Some(kernel), Some(fuse)) => {
            let mend = fuse::judge(machine).into_iter().filter(|finding| finding.level >= Level::Warning);
            let mend = mend.filter_map(|finding| finding.mend).next().or_else(|| kernel_mend(machine));
            finding(
                Level::Problem,
                format!("only as an NBD socket, which nothing can mount: FUSE: {fuse}; dm-crypt: {kernel}"),
            )
            .mended_by(mend)
        }
    }
}

/// Whether a driver answers or comes when its node is first opened.
fn comes(machine: &Machine<'_>, node: &NodeOf<'_>) -> bool {
    match node.state {
        Node::Open => true,
        Node::Driverless => machine.driver(node.module) != Driver::Missing,
        _ => false,
    }
}

/// Why the kernel's dm-crypt cannot be used from here; `None` if it can.
fn kernel_hindrance(machine: &Machine<'_>) -> Option<String> {
    if !machine.answers.kernel_path_built {
        return Some("not in this build".to_owned());
    }
    if !machine.is_root() {
        return Some("only for root".to_owned());
    }
    if let Some(reason) = mapper_hindrance(machine) {
        return Some(reason);
    }
    if drivers::crypt_driver(machine) == Driver::Missing {
        return Some("no crypt target".to_owned());
    }
    machine.answers.keyring.as_ref().err().map(|reason| format!("no kernel keyring ({reason})"))
}

fn mapper_hindrance(machine: &Machine<'_>) -> Option<String> {
    let node = drivers::mapper_node(machine);
    match (&machine.answers.mapper_driver, node.state) {
        (Ok(_), _) => None,
        (Err(reason), Node::Open) => Some(reason.clone()),
        (Err(_), Node::Driverless) if machine.driver(node.module) != Driver::Missing => None,
        (Err(_), _) => machine.node_gap(&node).map(|gap| gap.found),
    }
}

fn kernel_mend(machine: &Machine<'_>) -> Option<String> {
    let usable = machine.answers.kernel_path_built && machine.is_root();
    usable.then(|| machine.node_gap(&drivers::mapper_node(machine)).and_then(|gap| gap.mend)).flatten()
}
