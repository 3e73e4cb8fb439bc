//! Whether the running kernel has a driver: there now, as a module that could be loaded, or not at all.
//!
//! Source: kmod's files `modules.builtin` and `modules.dep` (modules.dep(5)), `/proc/misc`, sysctl `kernel.modules_disabled`.

use super::Root;

/// How the kernel has a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    /// It is there.
    Present,
    /// It is a module, and modules may be loaded.
    Loadable,
    /// Neither.
    Missing,
}

/// Looks for the module `name`.
pub(super) fn driver(root: &Root, kernel_release: &str, name: &str) -> Driver {
    let folder = format!("/lib/modules/{kernel_release}");
    let listed = |file: &str| {
        let text = root.text(format!("{folder}/{file}")).unwrap_or_default();
        text.lines().any(|line| is_module(line, name))
    };
    if root.exists(format!("/sys/module/{name}")) || listed("modules.builtin") {
        Driver::Present
    } else if listed("modules.dep") && root.text("/proc/sys/kernel/modules_disabled").as_deref() != Some("1") {
        Driver::Loadable
    } else {
        Driver::Missing
    }
}

/// Whether a line such as `kernel/drivers/md/dm-crypt.ko.xz: …` is about the module `name`.
fn is_module(line: &str, name: &str) -> bool {
    let path = line.split(':').next().unwrap_or(line);
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_") == name
}

/// Whether a "misc" device of this name is registered: only then may its node be opened without loading a module.
pub(super) fn is_misc_device(root: &Root, name: &str) -> bool {
    let text = root.text("/proc/misc").unwrap_or_default();
    text.lines().any(|line| line.split_whitespace().nth(1) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::fixture::Fixture;

    #[test]
    fn a_driver_is_found_wherever_kmod_lists_it() {
        let mut fixture = Fixture::bare();
        let state = |fixture: &Fixture| driver(fixture.root(), "6.1", "dm_crypt");
        assert_eq!(state(&fixture), Driver::Missing);
        fixture.write(
            "/lib/modules/6.1/modules.dep",
            "kernel/a/not-dm-crypt.ko:\nkernel/md/dm-crypt.ko.xz: kernel/x.ko\n",
        );
        assert_eq!(state(&fixture), Driver::Loadable);
        fixture.write("/proc/sys/kernel/modules_disabled", "1\n");
        assert_eq!(state(&fixture), Driver::Missing);
        fixture.write("/lib/modules/6.1/modules.builtin", "kernel/drivers/md/dm-crypt.ko\n");
        assert_eq!(state(&fixture), Driver::Present);
        fixture.write("/lib/modules/6.1/modules.builtin", "kernel/drivers/md/dm-mod.ko\n");
        fixture.write("/sys/module/dm_crypt/initstate", "live\n");
        assert_eq!(state(&fixture), Driver::Present);
    }
}
