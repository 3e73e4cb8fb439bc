//! One test's folder, with its own run directory and key files, and what came of a command.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Options of a keyslot that costs next to nothing.
pub(crate) const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// Says that a test did not run here, and why; the test runner sums these up.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED luksctl: {test}: {reason}");
    if let Some(path) = std::env::var_os("LUKS_TEST_SKIPS") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "luksctl: {test}: {reason}").unwrap();
    }
}

/// A folder to work in.
pub(crate) struct Desk {
    folder: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// Demands this exit code, and of a failure that it is said in our form with a hint.
    pub(crate) fn ends(self, code: i32) -> Done {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    /// Demands this exit code, `luksctl: ` with `words` in it, and a hint.
    pub(crate) fn fails(self, code: i32, words: &str) -> Done {
        let done = self.ends(code);
        assert!(done.stderr.starts_with("luksctl: "), "{done:?}");
        assert!(done.stderr.contains(words), "{words:?} is missing in {done:?}");
        assert!(done.stderr.contains("\nhint: "), "no hint: {done:?}");
        assert!(done.stdout.is_empty(), "data of a failed verb: {done:?}");
        done
    }

    /// The JSON on standard output.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Desk {
    pub(crate) fn new() -> Desk {
        let folder = tempfile::Builder::new().prefix("luksctl-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        let desk = Desk { folder };
        for (name, key) in [("key", "the first key file"), ("key2", "the second key file"), ("wrong", "a wrong one")] {
            std::fs::write(desk.path(name), key).unwrap();
        }
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let listed = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// `luksctl` in the folder, without a terminal, with nothing on standard input.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_luksctl"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("LUKSCTL_RUN_DIR", self.path("run"));
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Done {
        let output = self.command(arguments).output().unwrap();
        Done {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn run_with_input<S: AsRef<OsStr>>(&self, arguments: &[S], input: &[u8]) -> Done {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command may refuse before it reads.
        drop(child.stdin.take().unwrap().write_all(input));
        let output = child.wait_with_output().unwrap();
        Done {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `format -q` with cheap keyslots and the first key file.
    pub(crate) fn format(&self, image: &str, more: &[&str]) -> Done {
        let mut arguments = vec!["format", "-q", "--key-file", "key", image];
        arguments.extend(CHEAP);
        arguments.extend(more);
        self.run(&arguments)
    }

    /// A container of 20 MiB named `image`.
    pub(crate) fn with_image() -> Desk {
        let desk = Desk::new();
        desk.format("image", &["--size", "20M"]).ends(0);
        desk
    }
}
