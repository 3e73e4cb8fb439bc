//! A rig: one test's folder, its own run directory, and the real `luksctl` working in them. Dropping the rig closes what
//! the test left open, so that a failed test leaves no mount, no loop device and no server behind.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// One test's folder with a run directory of its own.
pub struct Rig {
    folder: tempfile::TempDir,
}

impl Rig {
    /// A rig in the system's temporary folder.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn new(name: &str) -> Rig {
        let folder = tempfile::Builder::new().prefix(&format!("luks-{name}-")).tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("run")).expect("a run folder");
        std::fs::write(folder.path().join("key"), b"the key of this rig: 0123456789 abcdef").expect("a key file");
        Rig { folder }
    }

    /// Leaves the folder where it is, for whoever looks into a failure, and says where that is.
    #[must_use]
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_path_buf()
    }

    /// A path in the rig's folder.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    /// The key file that every rig has.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.path("key")
    }

    /// The run directory that this rig's `luksctl` uses.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// `luksctl` with `arguments`, its run directory in the rig, no terminal, nothing on standard input.
    pub fn luksctl<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(crate::bins::luksctl());
        command.args(arguments).env("LUKSCTL_RUN_DIR", self.run_dir()).stdin(Stdio::null());
        command
    }

    /// Formats `image` with a keyslot that costs next to nothing to unlock, plus `options`.
    ///
    /// # Panics
    /// If formatting fails.
    pub fn format_cheap(&self, image: &Path, size: &str, options: &[&str]) {
        let key = self.key();
        let mut command =
            self.luksctl(&["format", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--size", size]);
        command.args(options).arg("--key-file").arg(key).arg(image);
        succeed(&mut command);
    }

    /// Opens `image` as `name` with the rig's key through a server of ours and returns the device.
    ///
    /// # Panics
    /// If opening fails.
    #[must_use]
    pub fn open(&self, image: &Path, name: &str) -> PathBuf {
        succeed(self.luksctl(&["open", "--backend", "fuse", "--key-file"]).arg(self.key()).arg(image).arg(name));
        self.run_dir().join(name).join("device")
    }

    /// Closes `name`.
    ///
    /// # Panics
    /// If closing fails.
    pub fn close(&self, name: &str) {
        succeed(&mut self.luksctl(&["close", name]));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        unmount_below(self.folder.path());
        for entry in std::fs::read_dir(self.run_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if entry.path().is_dir() {
                let closed = self.luksctl(&[OsStr::new("close"), &name]).output();
                if !matches!(&closed, Ok(output) if output.status.success()) {
                    eprintln!("could not close {}: {closed:?}", name.display());
                }
            }
        }
        unmount_below(self.folder.path());
    }
}

/// Unmounts everything mounted below `folder` that is not one of luksctl's own FUSE mounts, innermost first.
fn unmount_below(folder: &Path) {
    let run = folder.join("run");
    let mut points: Vec<PathBuf> =
        mount_points().into_iter().filter(|point| point.starts_with(folder) && !point.starts_with(&run)).collect();
    points.sort();
    for point in points.iter().rev() {
        let unmounted = Command::new("umount").arg("-l").arg(point).output();
        eprintln!("the rig unmounted {}: {:?}", point.display(), unmounted.map(|output| output.status));
    }
}

/// Unmounts whatever is mounted from `device`.
pub fn unmount_device(device: &Path) {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in table.lines() {
        let mut fields = line.split(' ');
        if fields.next().map(Path::new) == Some(device)
            && let Some(point) = fields.next()
        {
            let unmounted = Command::new("umount").arg("-l").arg(point).output();
            eprintln!("the rig unmounted {point}: {:?}", unmounted.map(|output| output.status));
        }
    }
}

/// Every mount point of this process's mount table.
#[must_use]
pub fn mount_points() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// Runs `command`, demands exit code 0, returns its output.
///
/// # Panics
/// With the whole output, if the command fails or cannot be started.
#[allow(clippy::panic)]
pub fn succeed(command: &mut Command) -> Output {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs `command` whatever its exit code, returns its output.
///
/// # Panics
/// If the command cannot be started.
#[allow(clippy::panic)]
pub fn run(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?} could not be started: {error}"),
    }
}

/// What a command said on standard error.
pub fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that a command ended with `code` and said each of `says` on standard error.
///
/// # Panics
/// If it did not.
#[track_caller]
pub fn refused(output: &Output, code: i32, says: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    for text in says {
        assert!(words(output).contains(text), "{text:?} is not in {}", words(output));
    }
}

/// Runs `command` with `input` on its standard input, whatever its exit code.
///
/// # Panics
/// If the command cannot be started.
#[allow(clippy::panic)]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => panic!("{command:?} could not be started: {error}"),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A command may refuse before it reads: a broken pipe is its answer, not our failure.
        let written = stdin.write_all(input);
        drop(written);
    }
    match child.wait_with_output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?} could not be waited for: {error}"),
    }
}
