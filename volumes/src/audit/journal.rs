//! [`Journal`]: where count and head of the chain go besides, so that a log and its state that were both put back are found.
//!
//! [`SystemJournal`] sends one datagram in systemd's native protocol (systemd.journal-fields(7)) to its socket, or one line to
//! syslog where there is none. It is best effort and never waits: the record is on the disk already.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// What is announced after a record.
#[derive(Debug)]
pub struct Announcement<'a> {
    /// The log.
    pub folder: &'a Path,
    /// The chain's name.
    pub chain: &'a str,
    /// How many records it has.
    pub count: u64,
    /// MAC of the last one, in hexadecimal.
    pub head: &'a str,
    /// Whether somebody has to look.
    pub is_high: bool,
    /// What happened, in one line.
    pub message: String,
}

/// Takes announcements.
pub trait Journal: Send + Sync {
    /// Notes one. It cannot fail: nobody could do anything about it.
    fn announce(&self, announcement: &Announcement<'_>);
}

/// Notes nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn announce(&self, _announcement: &Announcement<'_>) {}
}

/// The system's journal, or syslog.
#[derive(Debug, Clone)]
pub struct SystemJournal {
    journal: PathBuf,
    syslog: PathBuf,
}

impl Default for SystemJournal {
    fn default() -> SystemJournal {
        SystemJournal::at("/run/systemd/journal/socket", "/dev/log")
    }
}

impl SystemJournal {
    /// With these sockets.
    pub fn at(journal: impl Into<PathBuf>, syslog: impl Into<PathBuf>) -> SystemJournal {
        SystemJournal { journal: journal.into(), syslog: syslog.into() }
    }

    fn send(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to(bytes, path).map(drop)
    }
}

impl Journal for SystemJournal {
    fn announce(&self, announcement: &Announcement<'_>) {
        let Announcement { folder, chain, count, head, is_high, message } = announcement;
        let folder = folder.display().to_string().escape_debug().to_string();
        let priority = if *is_high { 2 } else { 6 };
        let text = format!("audit: {message}; chain {chain}, {count} records, head {head}");
        let fields = format!(
            "MESSAGE={text}\nPRIORITY={priority}\nSYSLOG_IDENTIFIER=luksctl\nLUKSCTL_AUDIT_FOLDER={folder}\n\
             LUKSCTL_AUDIT_CHAIN={chain}\nLUKSCTL_AUDIT_COUNT={count}\nLUKSCTL_AUDIT_HEAD={head}\n"
        );
        if SystemJournal::send(&self.journal, fields.as_bytes()).is_err() {
            // Facility authpriv, 10.
            let line = format!("<{}>luksctl[{}]: {text} of {folder}", 80 + priority, std::process::id());
            if let Err(error) = SystemJournal::send(&self.syslog, line.as_bytes()) {
                log::debug!("neither journal nor syslog took the head of the audit log: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_gets_fields_and_syslog_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let [journal, syslog] = ["journal", "syslog"].map(|name| folder.path().join(name));
        let sender = SystemJournal::at(&journal, &syslog);
        let announcement = Announcement {
            folder: Path::new("/var/log/a\nb"),
            chain: "0123",
            count: 7,
            head: "abcd",
            is_high: true,
            message: "KEY rotate data done".to_owned(),
        };
        sender.announce(&announcement);
        let mut buffer = [0; 1024];
        let mut got = |socket: &UnixDatagram| {
            let count = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        };
        let line = UnixDatagram::bind(&syslog).unwrap();
        sender.announce(&announcement);
        let text = got(&line);
        assert!(text.starts_with("<82>luksctl[") && text.contains("7 records, head abcd"), "{text}");
        let fields = UnixDatagram::bind(&journal).unwrap();
        sender.announce(&announcement);
        let text = got(&fields);
        assert!(text.lines().any(|line| line == "LUKSCTL_AUDIT_COUNT=7"), "{text}");
        assert!(text.lines().any(|line| line == "LUKSCTL_AUDIT_FOLDER=/var/log/a\\nb"), "{text}");
        assert!(text.lines().all(|line| line.contains('=')) && text.contains("PRIORITY=2\n"), "{text}");
    }
}
