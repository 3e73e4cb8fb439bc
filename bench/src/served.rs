//! Processes that serve an export for a measurement, and loop devices: what both `exports` and `io` start and take away again.
//!
//! A server of ours ends when its standard input does, so it outlives its client by no more than the unmount, however that ends.
//! A loop device goes with its last user. Neither hears the Ctrl-C of a terminal.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Of what a server complains of, at most.
const MOST_WORDS_BYTES: u64 = 4096;

/// What a server shall do.
pub(crate) struct Order<'a> {
    /// `fuse`, `nbd`, `ublk` or `dm-crypt`.
    pub(crate) kind: &'a str,
    pub(crate) image: &'a Path,
    /// A header of ours for an image that is another's, and only read.
    pub(crate) header: Option<&'a Path>,
    /// The folder to mount on, or the socket to make.
    pub(crate) place: &'a Path,
    /// The data segment as it is.
    pub(crate) plain: bool,
    /// 0 for the default.
    pub(crate) threads: usize,
}

/// A process that serves. Ours ends with its standard input, others are killed.
pub(crate) struct Server {
    child: Child,
    is_ours: bool,
    /// The block device that it made.
    device: Option<PathBuf>,
}

impl Server {
    pub(crate) fn start(order: &Order<'_>) -> Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve-export").arg(order.kind).arg(order.image).arg(order.place);
        command.args(["--threads", &order.threads.to_string()]);
        if order.plain {
            command.arg("--plain");
        }
        if let Some(header) = order.header {
            command.arg("--header").arg(header);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let output = child.stdout.take().context("a server without output")?;
        let mut server = Server { child, is_ours: true, device: None };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let Some(answer) = line.trim_end().strip_prefix("ready") else {
            bail!("the server did not start{}", server.last_words());
        };
        server.device = Some(answer.trim_start()).filter(|device| !device.is_empty()).map(PathBuf::from);
        Ok(server)
    }

    /// A process of somebody else's program.
    pub(crate) fn foreign(child: Child) -> Server {
        Server { child, is_ours: false, device: None }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The block device that it made, if its kind makes one.
    pub(crate) fn device(&self) -> Option<&Path> {
        self.device.as_deref()
    }

    /// Waits for its end and returns what it complained of, with a colon before it.
    fn last_words(&mut self) -> String {
        drop(self.child.stdin.take());
        let mut words = String::new();
        if let Some(errors) = self.child.stderr.take() {
            let _ = errors.take(MOST_WORDS_BYTES).read_to_string(&mut words);
        }
        let words = words.trim().trim_start_matches("luksbench: ").to_owned();
        if words.is_empty() { words } else { format!(": {words}") }
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        if !self.is_ours {
            return Ok(());
        }
        let words = self.last_words();
        let ended = self.child.wait()?;
        ensure!(ended.success(), "a server ended with {ended}{words}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if !self.is_ours {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A loop device that goes when nobody has it open any more, this process first of all.
pub(crate) struct LoopDevice {
    path: PathBuf,
    _user: File,
}

impl LoopDevice {
    pub(crate) fn attach(file: &Path, read_only: bool) -> Result<LoopDevice> {
        let done = Command::new("losetup")
            .args(["--direct-io=on", "--sector-size", "4096", "--find", "--show"])
            .args(read_only.then_some("--read-only"))
            .arg(file)
            .stdin(Stdio::null())
            .output()
            .context("losetup")?;
        ensure!(done.status.success(), "losetup: {}", String::from_utf8_lossy(&done.stderr).trim());
        let path = PathBuf::from(String::from_utf8(done.stdout)?.trim());
        let user = File::open(&path).with_context(|| path.display().to_string());
        // With a user it is only marked: it goes with the last one. Without, now.
        let _ = Command::new("losetup").arg("--detach").arg(&path).stdin(Stdio::null()).status();
        Ok(LoopDevice { path, _user: user? })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
