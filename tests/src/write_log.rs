//! dm-log-writes: a device that writes down what reached it, and the disks that a power cut at any point would have left.
//!
//! The target logs a write once it is durable: when a flush that came after its completion has completed, or at its own
//! completion with FUA. So the log up to a flush is the least that a disk with a volatile cache keeps; nothing that was
//! not flushed is in it. Marks are put between them with a message.
//!
//! ```text
//! block 0      magic u64, version u64, entries u64, bytes per block u32                     (little endian)
//! each entry   one block: sector u64, sectors u64, flags u64, length of a mark's text u64, that text; then the data
//! ```
//!
//! Source: Documentation/admin-guide/device-mapper/log-writes.rst, linux/drivers/md/dm-log-writes.c (the layout).
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{run, succeed};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// An entry of more is a log that was misread.
const ENTRY_MAX_BYTES: u64 = 64 << 20;

/// One line of the log.
#[derive(Debug, Clone)]
pub struct Entry {
    offset_bytes: u64,
    len_bytes: u64,
    flags: u64,
    data_at: u64,
    /// Text of a mark.
    pub mark: Option<String>,
}

impl Entry {
    /// Whether what is in the log up to here was made durable at this very point.
    #[must_use]
    pub fn is_flush_point(&self) -> bool {
        self.flags & (FLUSH | FUA) != 0
    }
}

/// A whole log.
pub struct WriteLog {
    file: File,
    /// In the order in which they became durable.
    pub entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads the log in `path`; its target must be gone.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn read(path: &Path) -> WriteLog {
        let file = File::open(path).unwrap();
        let mut head = [0; 28];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(word(&head, 0), MAGIC, "no log of dm-log-writes");
        let (count, block) = (word(&head, 2), u64::from(u32::from_le_bytes(head[24..28].try_into().unwrap())));
        assert!(matches!(block, 512 | 4096), "blocks of {block} bytes");
        let mut entries = Vec::new();
        let mut at = block;
        let mut buffer = vec![0; usize::try_from(block).unwrap()];
        for _ in 0..count {
            file.read_exact_at(&mut buffer, at).unwrap();
            let (flags, text_len) = (word(&buffer, 2), usize::try_from(word(&buffer, 3)).unwrap());
            let len_bytes = word(&buffer, 1) * block;
            at += block;
            let mark = (flags & MARK != 0).then(|| String::from_utf8(buffer[32..32 + text_len].to_vec()).unwrap());
            entries.push(Entry { offset_bytes: word(&buffer, 0) * block, len_bytes, flags, data_at: at, mark });
            if flags & DISCARD == 0 {
                assert!(len_bytes <= ENTRY_MAX_BYTES, "an entry of {len_bytes} bytes");
                at += len_bytes;
            }
        }
        WriteLog { file, entries }
    }

    /// Does to `disk` what `entry` says.
    ///
    /// # Panics
    /// If the log or the disk ends early.
    pub fn apply(&self, entry: &Entry, disk: &File) {
        if entry.mark.is_some() || entry.len_bytes == 0 {
            return;
        }
        let mut data = vec![0; usize::try_from(entry.len_bytes).unwrap()];
        if entry.flags & DISCARD == 0 {
            self.file.read_exact_at(&mut data, entry.data_at).unwrap();
        }
        disk.write_all_at(&data, entry.offset_bytes).unwrap();
    }
}

fn word(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().unwrap())
}

/// A disk that logs what is written to it: a mapping over two files.
pub struct LoggedDisk {
    name: &'static str,
    device: PathBuf,
    loops: [String; 2],
    log: PathBuf,
}

impl LoggedDisk {
    /// Over the file `disk`, with the log in `log`, which is made with room for `log_bytes`.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn new(name: &'static str, disk: &Path, log: &Path, log_bytes: u64) -> LoggedDisk {
        drop(std::fs::remove_file(log));
        File::create_new(log).unwrap().set_len(log_bytes).unwrap();
        let attach = |file: &Path| {
            let output = succeed(Command::new("losetup").args(["--find", "--show"]).arg(file));
            String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
        };
        let loops = [attach(disk), attach(log)];
        let sectors = disk.metadata().unwrap().len() / 512;
        let table = format!("0 {sectors} log-writes {} {}", loops[0], loops[1]);
        succeed(Command::new("dmsetup").args(["create", name, "--table", &table]));
        // dmsetup leaves /dev/mapper to udev, also where no udevd runs; this node is the kernel's own.
        let named = succeed(Command::new("dmsetup").args(["info", "-c", "--noheadings", "-o", "blkdevname", name]));
        let device = Path::new("/dev").join(String::from_utf8(named.stdout).unwrap().trim());
        LoggedDisk { name, device, loops, log: log.to_path_buf() }
    }

    /// The block device.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Puts `text`, one word, into the log: all that is durable by now stands before it.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn mark(&self, text: &str) {
        succeed(Command::new("dmsetup").args(["message", self.name, "0", "mark", text]));
    }

    /// Ends the logging and reads the log.
    ///
    /// # Panics
    /// If the device is in use.
    #[must_use]
    pub fn end(self) -> WriteLog {
        self.take_down(true);
        let log = WriteLog::read(&self.log);
        std::mem::forget(self);
        log
    }

    fn take_down(&self, must: bool) {
        let removed = run(Command::new("dmsetup").args(["remove", "--retry", self.name]));
        let detached = run(Command::new("losetup").arg("--detach").args(&self.loops));
        assert!(!must || (removed.status.success() && detached.status.success()), "{removed:?} {detached:?}");
    }
}

impl Drop for LoggedDisk {
    /// After a failed test.
    fn drop(&mut self) {
        self.take_down(false);
    }
}
