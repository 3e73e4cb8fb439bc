//! A PostgreSQL server of a test's own, run by an unprivileged user, with its data where the test wants it and its socket and
//! log beside: what the database says of itself is not on the disk that loses its power.
//!
//! Source: the PostgreSQL 15 manual, chapters 18 to 20 and 30.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

pub mod bookkeeping;
pub mod load;
pub mod wire;

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::succeed;
use crate::skip::{find_program, skip};
use wire::{Connection, WireError};

/// The role that `initdb` makes.
pub const ROLE: &str = "postgres";
/// Where Debian keeps the server, a folder per version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// For a recovery on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// SQLSTATE of "not yet".
const STARTING: &str = "57P03";
/// Looks at a server that ends until it is signalled again.
const SIGNAL_AGAIN: u32 = 100;
/// Last lines of the log that a failure shows.
const LOG_LINES: usize = 15;
/// Small and busy: checkpoints, recycled segments and page writes all the time. Durable in every way, which is the default.
const SETTINGS: &str = "\
listen_addresses = ''
unix_socket_permissions = 0777
shared_buffers = 4MB
max_connections = 20
min_wal_size = 2MB
max_wal_size = 4MB
checkpoint_timeout = 30s
autovacuum_naptime = 1s
restart_after_crash = off
fsync = on
full_page_writes = on
synchronous_commit = on
log_line_prefix = '%m '
";

/// The programs of one version of PostgreSQL.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The newest there is; if there is none, the skip is recorded.
    #[must_use]
    pub fn needed(test: &str) -> Option<Programs> {
        let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut versions: Vec<PathBuf> = versions.map(|version| version.join("bin")).filter(|bin| whole(bin)).collect();
        versions.sort();
        let on_path = || find_program("initdb").and_then(|program| Some(program.parent()?.to_path_buf()));
        let found = versions.pop().or_else(|| on_path().filter(|bin| whole(bin)));
        if found.is_none() {
            skip(test, "needs PostgreSQL's server and pgbench (run tests/setup postgres)");
        }
        found.map(|folder| Programs { folder })
    }

    fn command(&self, name: &str, owner: (u32, u32)) -> Command {
        let mut command = Command::new(self.folder.join(name));
        command.uid(owner.0).gid(owner.1).current_dir("/").stdin(Stdio::null()).env("LC_ALL", "C");
        command
    }
}

fn whole(bin: &Path) -> bool {
    ["postgres", "initdb", "pgbench"].iter().all(|name| bin.join(name).is_file())
}

/// User and group that a server may run as: Debian's own, or nobody.
fn owner() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = |wanted: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(wanted))?;
        let mut numbers = line.split(':').skip(2).map_while(|field| field.parse::<u32>().ok());
        Some((numbers.next()?, numbers.next()?))
    };
    user(ROLE).or_else(|| user("nobody")).unwrap_or((65534, 65534))
}

/// One database cluster; its server runs or not.
pub struct Cluster {
    programs: Programs,
    owner: (u32, u32),
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    server: Option<Child>,
}

impl Cluster {
    /// The cluster with its data in `data`, and socket and log in `beside`, which is made.
    ///
    /// # Panics
    /// If `beside` cannot be made.
    #[must_use]
    pub fn new(programs: &Programs, data: &Path, beside: &Path) -> Cluster {
        fs::create_dir_all(beside).unwrap();
        let owner = owner();
        std::os::unix::fs::chown(beside, Some(owner.0), Some(owner.1)).unwrap();
        Cluster {
            programs: programs.clone(),
            owner,
            data: data.to_path_buf(),
            sockets: beside.to_path_buf(),
            log: beside.join("log"),
            server: None,
        }
    }

    /// Makes an empty cluster with checksums on every page. Durable once the file system is unmounted.
    ///
    /// # Panics
    /// If `initdb` fails.
    pub fn make(&self) {
        fs::create_dir(&self.data).unwrap();
        std::os::unix::fs::chown(&self.data, Some(self.owner.0), Some(self.owner.1)).unwrap();
        let mut initdb = self.programs.command("initdb", self.owner);
        initdb.args(["--data-checksums", "--auth=trust", "--no-sync", "--wal-segsize=1", "--no-locale"]);
        succeed(initdb.args(["--encoding=UTF8", "--username", ROLE, "-D"]).arg(&self.data));
        let file = OpenOptions::new().append(true).open(self.data.join("postgresql.conf")).unwrap();
        std::io::Write::write_all(&mut &file, SETTINGS.as_bytes()).unwrap();
    }

    /// Starts the server with further `settings` and does not wait for it.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&mut self, settings: &[&str]) {
        // As after a boot: sockets do not survive one.
        for entry in fs::read_dir(&self.sockets).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with(".s.PGSQL") {
                drop(fs::remove_file(entry.path()));
            }
        }
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.programs.command("postgres", self.owner);
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.sockets);
        for setting in settings {
            command.args(["-c", setting]);
        }
        let server = command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0).spawn().unwrap();
        self.server = Some(server);
    }

    /// Waits until recovery is over and somebody can work.
    ///
    /// # Errors
    /// How the server ended, or what it said for too long, with the end of its log.
    pub fn wait_until_ready(&mut self) -> Result<Connection, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let refusal = match self.connect() {
                Ok(connection) => return Ok(connection),
                // While it starts and recovers it refuses with this; with anything else it will refuse for ever.
                Err(WireError::Refused { code, message }) if code != STARTING => {
                    return Err(format!("PostgreSQL lets nobody in: {code} {message}\n{}", self.end_of_log()));
                }
                Err(error) => error,
            };
            let ended = self.server.as_mut().and_then(|server| server.try_wait().ok().flatten());
            if let Some(status) = ended {
                self.server = None;
                return Err(format!("PostgreSQL does not start: {status}\n{}", self.end_of_log()));
            }
            if Instant::now() >= until {
                return Err(format!("PostgreSQL lets nobody in: {refusal}\n{}", self.end_of_log()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A session.
    ///
    /// # Errors
    /// As the server or the socket says.
    pub fn connect(&self) -> Result<Connection, WireError> {
        Connection::open(&self.sockets.join(".s.PGSQL.5432"), ROLE)
    }

    /// Ends it with everything written and a checkpoint.
    ///
    /// # Panics
    /// If it does not end well.
    pub fn stop(&mut self) {
        let status = self.end(Signal::INT);
        assert!(status.is_none_or(|status| status.success()), "{status:?}\n{}", self.end_of_log());
    }

    /// Ends it without a checkpoint, as it would be after the power was gone.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop_at_once(&mut self) {
        let _ = self.end(Signal::QUIT);
    }

    fn end(&mut self, signal: Signal) -> Option<std::process::ExitStatus> {
        let mut server = self.server.take()?;
        let until = Instant::now() + PATIENCE;
        for turn in 0_u32.. {
            // Again and again: a server that has just begun may be deaf to the first one.
            if turn.is_multiple_of(SIGNAL_AGAIN) {
                // Not waited for yet: the number is still its own.
                let _ = kill_process(Pid::from_child(&server), signal);
            }
            if let Some(status) = server.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() >= until {
                drop(server.kill());
                drop(server.wait());
                assert!(std::thread::panicking(), "PostgreSQL does not end\n{}", self.end_of_log());
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// `pgbench` on this server; it is not waited for.
    #[must_use]
    pub fn pgbench(&self) -> Command {
        let mut command = self.programs.command("pgbench", self.owner);
        command.arg("-h").arg(&self.sockets).args(["-U", ROLE]);
        command
    }

    /// The last lines of the log.
    #[must_use]
    pub fn end_of_log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_at_once();
    }
}
