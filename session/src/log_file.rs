//! The server's log: `RUN/NAME/log`, bounded. When it grows past its limit, the newest half stays.
//!
//! It is also the server's standard error, so that a panic message lands in it; both append.
//! Secrets never get here: nothing that logs ever holds one in a form that can be printed.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};

use crate::SessionError;

/// The log never grows past this for longer than one line.
const LIMIT_BYTES: u64 = 128 << 10;
/// A line is cut at this many bytes.
const LINE_MAX_BYTES: usize = 2 << 10;

/// Sends what this process logs to the file at `path` from now on.
pub(crate) fn install(path: &Path) -> Result<(), SessionError> {
    let file =
        File::options().read(true).append(true).create(true).open(path).map_err(SessionError::io("open", path))?;
    // A second logger in one process is a test's or an embedder's: theirs stays.
    if log::set_boxed_logger(Box::new(LogFile { file: Mutex::new(file), limit_bytes: LIMIT_BYTES })).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    Ok(())
}

/// The last lines of a log, for an error message.
pub(crate) fn tail(path: &Path) -> String {
    const TAIL_BYTES: u64 = 1000;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    text.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ")
}

struct LogFile {
    file: Mutex<File>,
    limit_bytes: u64,
}

impl LogFile {
    fn append(&self, line: &str) -> std::io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let len_bytes = file.metadata()?.len();
        if len_bytes + line.len() as u64 > self.limit_bytes {
            let mut kept = Vec::new();
            file.seek(SeekFrom::Start(len_bytes.saturating_sub(self.limit_bytes / 2)))?;
            (&*file).take(self.limit_bytes / 2).read_to_end(&mut kept)?;
            file.set_len(0)?;
            let whole_lines = kept.iter().position(|byte| *byte == b'\n').map_or(kept.len(), |at| at + 1);
            file.write_all(&kept[whole_lines..])?;
        }
        file.write_all(line.as_bytes())
    }
}

impl Log for LogFile {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut line = format!("{}.{:03} {} {}", now.as_secs(), now.subsec_millis(), record.level(), record.args());
        // Names from a header or of a file: who reads the log does so on a terminal.
        line = line.chars().map(|symbol| if symbol.is_control() { ' ' } else { symbol }).collect();
        if line.len() > LINE_MAX_BYTES {
            let cut = (0..=LINE_MAX_BYTES).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
            line.truncate(cut);
        }
        line.push('\n');
        // There is nowhere to tell that the log cannot be written.
        let _ = self.append(&line);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_keeps_its_newest_lines_and_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let file = File::options().read(true).append(true).create(true).open(&path).unwrap();
        let log = LogFile { file: Mutex::new(file), limit_bytes: 1000 };
        for number in 0..200 {
            log.append(&format!("line {number}\n")).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() <= 1000, "{} bytes", text.len());
        assert!(text.ends_with("line 198\nline 199\n"));
        assert!(text.lines().all(|line| line.starts_with("line ")), "{text}");
        assert_eq!(tail(&path), "line 197; line 198; line 199");
    }
}
