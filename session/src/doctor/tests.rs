//! Made-up machines: each gap alone, what level it has, and the command that mends it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use super::fixture::Fixture;
use super::*;

fn not_ok(report: &Report) -> Vec<(&'static str, Level)> {
    let ill = report.findings.iter().filter(|finding| finding.level >= Level::Warning);
    ill.map(|finding| (finding.id, finding.level)).collect()
}

fn mend(fixture: &Fixture, id: &str) -> String {
    fixture.finding(id).mend.unwrap_or_default()
}

#[test]
fn a_good_machine_has_no_gap_for_root_and_for_users() {
    assert_eq!(not_ok(&Fixture::good().report()), []);
    let user = Fixture::of_a_user().report();
    assert_eq!(not_ok(&user), []);
    assert_eq!(user.finding("open").unwrap().found, "through FUSE");
    assert!(user.finding("loop").unwrap().found.contains("only root"));
}

#[test]
fn every_report_has_the_same_ids_once_and_the_document_lists_them() {
    let machines = [Fixture::good(), Fixture::of_a_user(), Fixture::bare()];
    let ids = |fixture: &Fixture| fixture.report().findings.iter().map(|finding| finding.id).collect::<Vec<_>>();
    let expected = ids(&machines[0]);
    for machine in &machines {
        assert_eq!(ids(machine), expected);
    }
    let unique: BTreeSet<&str> = expected.iter().copied().collect();
    assert_eq!(unique.len(), expected.len());
    let document = include_str!("../../../docs/doctor.md");
    let listed: BTreeSet<&str> =
        document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(listed, unique);
}

#[test]
fn swap_in_clear_is_a_problem_and_other_swap_is_not() {
    let mut machine = Fixture::of_a_user();
    machine.swaps(&["/dev/sda2 partition", "/swap\\040file file"]);
    let report = machine.report();
    assert_eq!(not_ok(&report), [("swap", Level::Problem)]);
    assert!(report.has_problems());
    assert_eq!(mend(&machine, "swap"), "sudo swapoff /dev/sda2 '/swap file'");
    machine.swaps(&["/dev/dm-0 partition", "/dev/zram0 partition"]);
    machine.write("/sys/block/dm-0/dm/uuid", "CRYPT-PLAIN-swap\n");
    machine.write("/sys/module/zswap/parameters/enabled", "Y\n");
    assert_eq!(not_ok(&machine.report()), []);
    assert_eq!(machine.finding("swap").found, "/dev/dm-0 is encrypted, /dev/zram0 is in memory");
    assert_eq!(machine.finding("zswap").found, "on");
}

#[test]
fn memory_that_cannot_be_locked_is_a_problem_once_it_can_be_swapped_out() {
    let mut machine = Fixture::of_a_user();
    assert_eq!(machine.finding("lockable-memory").level, Level::Info);
    machine.answers.memory_locks = false;
    machine.answers.memlock_limit_bytes = Some(0);
    assert_eq!(machine.finding("lockable-memory").level, Level::Warning);
    assert!(mend(&machine, "lockable-memory").contains("limits.d/luksctl.conf"));
    machine.swaps(&["/dev/sda2 partition"]);
    assert_eq!(machine.finding("lockable-memory").level, Level::Problem);
}

#[test]
fn core_dumps_follow_limit_pattern_and_whether_we_are_dumpable() {
    let mut machine = Fixture::good();
    machine.answers.core_limit_bytes = None;
    assert_eq!(machine.finding("core-dumps").level, Level::Warning);
    assert_eq!(mend(&machine, "core-dumps"), "ulimit -c 0");
    machine.answers.dumpable = true;
    assert_eq!(machine.finding("core-dumps").level, Level::Problem);
    machine.answers.core_limit_bytes = Some(0);
    assert_eq!(machine.finding("core-dumps").level, Level::Ok);
    machine.write("/proc/sys/kernel/core_pattern", "|/lib/systemd/systemd-coredump %P\n");
    let piped = machine.finding("core-dumps");
    assert_eq!(piped.level, Level::Problem);
    assert!(piped.found.starts_with("piped to /lib/systemd/systemd-coredump, whatever the limit"), "{}", piped.found);
    assert!(piped.mend.unwrap().starts_with("sysctl kernel.core_pattern=core"));
    machine.answers.core_limit_bytes = Some(1);
    assert_eq!(machine.finding("core-dumps").level, Level::Ok);
    machine.write("/proc/sys/fs/suid_dumpable", "1\n");
    assert_eq!(machine.finding("suid-dumpable").level, Level::Warning);
}

#[test]
fn ublk_needs_its_driver_its_node_io_uring_and_root() {
    let mut machine = Fixture::good();
    machine.write("/proc/misc", "122 ublk-control\n");
    assert!(machine.finding("ublk").found.ends_with("but there is no /dev/ublk-control"));
    machine.write("/dev/ublk-control", "");
    assert_eq!(machine.finding("ublk").level, Level::Ok);
    machine.answers.io_uring = Err("not here".to_owned());
    assert!(machine.finding("ublk").found.ends_with("that is denied: not here"));
    machine.answers.io_uring = Ok(());
    machine.answers.effective_uid = 1000;
    assert!(machine.finding("ublk").found.ends_with("only root can use it"));
    machine.write("/proc/misc", "");
    assert_eq!(machine.finding("ublk").found, "the kernel lacks ublk_drv");
}

#[test]
fn io_uring_and_the_keyring_may_be_forbidden() {
    let mut machine = Fixture::of_a_user();
    machine.answers.io_uring = Err("Operation not permitted (os error 1)".to_owned());
    assert!(machine.finding("io-uring").found.contains("system call filter"));
    assert_eq!(machine.finding("io-uring").mend, None);
    machine.write("/proc/sys/kernel/io_uring_disabled", "2\n");
    assert!(machine.finding("io-uring").found.contains("io_uring_disabled is 2"));
    assert_eq!(mend(&machine, "io-uring"), "sudo sysctl kernel.io_uring_disabled=0");
    machine.write("/proc/key-users", "1000:   199 199/199 199/200 9000/20000\n");
    assert_eq!(machine.finding("keyring-quota").level, Level::Warning);
    assert_eq!(mend(&machine, "keyring-quota"), "sudo sysctl kernel.keys.maxkeys=400 kernel.keys.maxbytes=40000");
    let mut root = Fixture::good();
    root.answers.keyring = Err("Function not implemented".to_owned());
    assert_eq!(not_ok(&root.report()), [("keyring", Level::Warning)]);
    assert_eq!(root.finding("open").found, "through FUSE", "dm-crypt has no way to its key");
}

#[test]
fn without_fuse_only_the_kernel_path_is_left_and_users_have_none() {
    for (state, driver) in
        [(Node::Missing, true), (Node::Foreign, true), (Node::Missing, false), (Node::Driverless, false)]
    {
        for (mut machine, level) in [(Fixture::good(), Level::Ok), (Fixture::of_a_user(), Level::Problem)] {
            machine.answers.fuse = state.clone();
            if !driver {
                machine.write("/proc/misc", "236 device-mapper\n237 loop-control\n");
                machine.write("/proc/filesystems", "nodev\tproc\n");
            }
            assert_eq!(machine.finding("fuse").level, Level::Warning, "{state:?}");
            assert_eq!(machine.finding("open").level, level, "{state:?}: {}", machine.finding("open").found);
        }
    }
    let mut machine = Fixture::of_a_user();
    machine.answers.fuse = Node::Missing;
    assert_eq!(mend(&machine, "fuse"), "sudo mknod -m 666 /dev/fuse c 10 229");
    assert_eq!(mend(&machine, "open"), mend(&machine, "fuse"));
    machine.answers.fuse = Node::Closed("Permission denied (os error 13)".to_owned());
    assert_eq!(mend(&machine, "open"), "sudo chmod 666 /dev/fuse");
}

#[test]
fn a_module_that_the_first_use_loads_is_no_gap() {
    let mut machine = Fixture::of_a_user();
    machine.answers.fuse = Node::Driverless;
    machine.write("/proc/misc", "");
    machine.write("/proc/filesystems", "");
    machine.write("/lib/modules/6.1/modules.dep", "kernel/fs/fuse/fuse.ko:\nkernel/drivers/md/dm-crypt.ko: x\n");
    assert_eq!(machine.finding("fuse").level, Level::Info);
    assert_eq!(mend(&machine, "fuse"), "sudo modprobe fuse");
    assert_eq!(machine.finding("open").found, "through FUSE");
    machine.answers.fuse = Node::Missing;
    assert_eq!(machine.finding("open").level, Level::Problem);
    assert_eq!(mend(&machine, "open"), "sudo modprobe fuse");
}

#[test]
fn the_kernel_path_needs_each_of_its_parts() {
    let without_fuse = || {
        let mut machine = Fixture::good();
        machine.answers.fuse = Node::Missing;
        machine
    };
    assert_eq!(without_fuse().finding("open").found, "through dm-crypt");
    let mut machine = without_fuse();
    machine.answers.kernel_path_built = false;
    assert_eq!(machine.finding("open").level, Level::Problem);
    let mut machine = without_fuse();
    machine.answers.mapper_driver = Ok(MapperDriver { version: "4.48.0".to_owned(), targets: Vec::new() });
    assert_eq!(machine.finding("open").level, Level::Problem, "no crypt target");
    assert_eq!(machine.finding("dm-crypt").level, Level::Warning);
    machine.write("/lib/modules/6.1/modules.dep", "kernel/drivers/md/dm-crypt.ko: x\n");
    assert_eq!(machine.finding("open").level, Level::Ok);
    assert_eq!(mend(&machine, "dm-crypt"), "modprobe dm_crypt");
    let mut machine = without_fuse();
    machine.answers.loop_control = Node::Missing;
    assert_eq!(machine.finding("open").level, Level::Warning, "block devices only");
    let mut machine = without_fuse();
    machine.answers.mapper_control = Node::Missing;
    machine.answers.mapper_driver = Err("not opened".to_owned());
    machine.answers.fuse = Node::Closed("Operation not permitted".to_owned());
    assert_eq!(mend(&machine, "open"), "mkdir /dev/mapper && mknod -m 600 /dev/mapper/control c 10 236");
}

#[test]
fn users_need_a_fusermount3_that_may_mount() {
    let mut machine = Fixture::of_a_user();
    machine.remove("/etc/mtab");
    assert_eq!(mend(&machine, "open"), "sudo ln -s /proc/self/mounts /etc/mtab");
    machine.program("fusermount3", 0o755);
    assert_eq!(mend(&machine, "fusermount3"), "sudo chmod u+s /usr/bin/fusermount3");
    machine.remove("/usr/bin/fusermount3");
    assert_eq!(mend(&machine, "fusermount3"), "sudo apt install fuse3");
    assert_eq!(machine.finding("open").level, Level::Problem);
    let mut machine = Fixture::of_a_user();
    machine.write("/proc/self/status", "CapEff:\t0\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t1\n");
    assert!(machine.finding("fusermount3").found.contains("no_new_privs"));
    machine.write("/proc/self/status", "CapEff:\t0\nCapBnd:\t00000000a80425fb\n");
    assert!(machine.finding("open").found.contains("CAP_SYS_ADMIN"), "{}", machine.finding("open").found);
    // Root of a container without CAP_SYS_ADMIN is no better off.
    machine.answers.effective_uid = 0;
    assert_eq!(machine.finding("fusermount3").level, Level::Warning);
}

#[test]
fn the_clock_may_be_of_another_century() {
    let mut machine = Fixture::of_a_user();
    machine.answers.clock_synchronised = Some(false);
    assert_eq!(not_ok(&machine.report()), [("clock-synchronised", Level::Warning)]);
    machine.write("/run/systemd/system/x", "");
    assert_eq!(mend(&machine, "clock-synchronised"), "sudo timedatectl set-ntp true");
    machine.answers.clock_synchronised = None;
    machine.answers.now_s = 0;
    assert_eq!(not_ok(&machine.report()), [("clock-date", Level::Warning)]);
    assert!(machine.finding("clock-date").found.starts_with("1970-01-01: before this program was written"));
    machine.answers.now_s = machine.answers.built_s - 200_000;
    assert!(machine.finding("clock-date").found.contains("file was made"));
    machine.answers.now_s = i64::MAX / 2;
    machine.answers.built_s = i64::MAX;
    assert!(machine.finding("clock-date").found.contains("far in the future"));
}

#[test]
fn randomness_memory_and_udev() {
    let mut machine = Fixture::good();
    machine.answers.randomness_ready = false;
    assert_eq!(not_ok(&machine.report()), [("randomness", Level::Problem)]);
    machine.answers.randomness_ready = true;
    machine.answers.memory_available_bytes = (1 << 30) - 1;
    assert_eq!(not_ok(&machine.report()), [("memory", Level::Warning)]);
    machine.answers.memory_total_bytes = 1 << 30;
    assert_eq!(not_ok(&machine.report()), [], "a small machine's keyslots want less");
    machine.remove("/proc/77/comm");
    assert_eq!(machine.finding("udev").level, Level::Info);
    machine.write("/run/udev/control", "");
    assert_eq!(machine.finding("udev").level, Level::Warning);
    assert_eq!(mend(&machine, "udev"), "rm /run/udev/control");
}

#[test]
fn the_run_directory_must_be_ours_alone() {
    let mut machine = Fixture::good();
    machine.answers.effective_uid = machine.owner();
    assert!(machine.finding("run-directory").found.ends_with("made at first use"));
    machine.write("/run/luksctl/.lock", "");
    let folder = machine.root().path("/run/luksctl");
    let chmod = |mode: u32| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o700);
    assert_eq!(machine.finding("run-directory").found, "/run/luksctl, mode 700");
    chmod(0o777);
    assert_eq!(machine.finding("run-directory").level, Level::Problem);
    assert_eq!(mend(&machine, "run-directory"), "chmod 700 /run/luksctl");
    chmod(0o700);
    machine.answers.effective_uid += 1;
    assert!(machine.finding("run-directory").found.contains("it belongs to user"));
    machine.answers.run_directory = "/nowhere/luksctl".into();
    assert_eq!(machine.finding("run-directory").level, Level::Problem);
}

#[test]
fn a_bare_tree_is_judged_without_a_panic_and_programs_are_named() {
    let mut machine = Fixture::bare();
    assert_eq!(machine.finding("program-mkfs.ext4").mend, None, "an unknown distribution");
    for (line, expected) in [
        ("ID=ubuntu\nID_LIKE=debian", "apt install e2fsprogs"),
        ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"", "dnf install e2fsprogs"),
        ("ID=arch", "pacman -S e2fsprogs"),
        ("ID=alpine", "apk add e2fsprogs"),
        ("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"", "zypper install e2fsprogs"),
    ] {
        machine.write("/etc/os-release", line);
        assert_eq!(mend(&machine, "program-mkfs.ext4"), expected);
    }
}

#[test]
fn containers_virtual_machines_and_hibernation_are_told() {
    let mut machine = Fixture::good();
    assert_eq!(machine.finding("machine").found, "no sign of a virtual machine, no container");
    machine.write("/proc/cpuinfo", "processor : 0\nflags\t\t: fpu aes hypervisor\n");
    machine.write("/.dockerenv", "");
    assert_eq!(machine.finding("machine").found, "a virtual machine, a container (docker)");
    machine.write("/run/systemd/container", "systemd-nspawn\n");
    machine.write("/sys/class/dmi/id/sys_vendor", "QEMU\n");
    assert_eq!(machine.finding("machine").found, "a virtual machine (QEMU), a container (systemd-nspawn)");
    machine.write("/sys/power/state", "freeze mem disk\n");
    machine.write("/proc/cmdline", "quiet resume=/dev/sda3\n");
    let hibernation = machine.finding("hibernation");
    assert_eq!((hibernation.level, hibernation.found.contains("into /dev/sda3")), (Level::Info, true));
}
