//! A made-up machine for the tests: a folder that stands for `/`, and what its system calls would have answered.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::{Answers, Finding, MapperDriver, Node, Report, Root, judge};

/// 2027-01-15, in seconds since 1970.
const NOW_S: i64 = 1_800_000_000;

pub(super) struct Fixture {
    _folder: tempfile::TempDir,
    root: Root,
    pub(super) answers: Answers,
}

impl Fixture {
    /// An empty tree.
    pub(super) fn bare() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        Fixture { root, _folder: folder, answers: good_answers() }
    }

    /// A machine of root's on which all is well.
    pub(super) fn good() -> Fixture {
        let mut fixture = Fixture::bare();
        fixture.write("/proc/misc", "236 device-mapper\n237 loop-control\n229 fuse\n");
        fixture.write("/proc/filesystems", "nodev\tproc\nnodev\tfuse\n");
        fixture.write("/proc/sys/kernel/core_pattern", "core\n");
        fixture.write("/proc/sys/kernel/yama/ptrace_scope", "1\n");
        fixture.write("/proc/sys/fs/suid_dumpable", "2\n");
        fixture.write("/proc/sys/kernel/io_uring_disabled", "0\n");
        fixture.write("/proc/key-users", "    0:     9 8/8 3/1000000 40/25000000\n 1000:  1 1/1 1/200 9/20000\n");
        fixture.write("/proc/77/comm", "systemd-udevd\n");
        fixture.swaps(&[]);
        fixture.write("/etc/os-release", "NAME=Debian\nID=debian\n");
        fixture.write("/etc/mtab", "");
        for name in ["mount", "umount", "fuse2fs", "e2fsck", "fsck", "mkfs.ext4", "mkfs.xfs", "cryptsetup"] {
            fixture.program(name, 0o755);
        }
        fixture.program("fusermount3", 0o4755);
        fixture.write("/run/a-service", "");
        fixture
    }

    /// The same machine for an ordinary user, who has other nodes closed.
    pub(super) fn of_a_user() -> Fixture {
        let mut fixture = Fixture::good();
        fixture.answers.effective_uid = 1000;
        fixture.answers.mapper_control = Node::Closed("Permission denied".to_owned());
        fixture.answers.loop_control = Node::Closed("Permission denied".to_owned());
        fixture.answers.mapper_driver = Err("its control node was not opened".to_owned());
        fixture.answers.memlock_limit_bytes = Some(8 << 20);
        fixture.answers.run_directory = "/run/user/1000/luksctl".into();
        fixture.write("/run/user/1000/bus", "");
        fixture.write("/proc/self/status", "Uid:\t1000\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n");
        fixture
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    pub(super) fn write(&mut self, path: &str, text: &str) {
        let path = self.root.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn remove(&mut self, path: &str) {
        std::fs::remove_file(self.root.path(path)).unwrap();
    }

    pub(super) fn program(&mut self, name: &str, mode: u32) {
        let path = format!("/usr/bin/{name}");
        self.write(&path, "");
        std::fs::set_permissions(self.root.path(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Makes `/proc/swaps` of lines such as `/dev/sda2 partition`.
    pub(super) fn swaps(&mut self, areas: &[&str]) {
        let lines: String = areas.iter().map(|area| format!("{area}\t8388604\t0\t-2\n")).collect();
        self.write("/proc/swaps", &format!("Filename\tType\tSize\tUsed\tPriority\n{lines}"));
    }

    pub(super) fn report(&self) -> Report {
        judge(&self.root, &self.answers)
    }

    pub(super) fn finding(&self, id: &str) -> Finding {
        self.report().finding(id).unwrap_or_else(|| panic!("{id} is not in the report")).clone()
    }

    /// The user to whom files made by this test belong.
    pub(super) fn owner(&self) -> u32 {
        std::fs::metadata(self.root.path(Path::new("/"))).unwrap().uid()
    }
}

fn good_answers() -> Answers {
    Answers {
        effective_uid: 0,
        kernel_release: "6.1".to_owned(),
        mapper_control: Node::Open,
        mapper_driver: Ok(MapperDriver {
            version: "4.48.0".to_owned(),
            targets: vec![("crypt".to_owned(), "1.28.0".to_owned())],
        }),
        loop_control: Node::Open,
        fuse: Node::Open,
        io_uring: Ok(()),
        keyring: Ok(()),
        aes_engine: "AES".to_owned(),
        memlock_limit_bytes: None,
        memory_locks: true,
        core_limit_bytes: Some(0),
        dumpable: false,
        clock_synchronised: Some(true),
        now_s: NOW_S,
        built_s: NOW_S - 1_000_000,
        randomness_ready: true,
        memory_total_bytes: 8 << 30,
        memory_available_bytes: 6 << 30,
        search_path: vec!["/usr/sbin".into(), "/usr/bin".into()],
        run_directory: "/run/luksctl".into(),
        kernel_path_built: true,
    }
}
