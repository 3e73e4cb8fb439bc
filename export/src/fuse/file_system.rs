//! The FUSE requests: which are answered here, which go to the disk, and which of them may wait.
//!
//! Requests that name or describe the file are answered at once. Requests for its bytes go through [`Lanes`]. ENOSYS is
//! answered only where the kernel turns it into a plain "not supported" and stops asking (extended attributes, bmap,
//! copy_file_range, file locks, which it then keeps itself), never where it would turn it into success.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use block::BlockIo;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::disk_file::{DiskFile, MAX_REQUEST_BYTES, told};
use super::flags::{folder_mode, moment, wants_durable};
use super::lanes::Lanes;
use super::{FuseOptions, Lifeline};

const FILE: INodeNo = INodeNo(2);
const GENERATION: Generation = Generation(1);
/// Block size that stat and statfs tell; also the discard granularity of a loop device above.
const BLOCK_BYTES: u32 = 4096;
const SECTOR_BYTES: u64 = 512;
/// The name never changes.
const ENTRY_TTL: Duration = Duration::from_secs(3600);
/// The size may, and the kernel asks for attributes on stat only, not per read or write.
const ATTR_TTL: Duration = Duration::ZERO;
/// Asynchronous requests that the kernel lets wait at once (a loop device sends 128 at most). Below what `Lanes` parks.
const MAX_BACKGROUND: u16 = 128;

/// The requests of one mount.
pub(super) struct DiskFileSystem<B: BlockIo> {
    file: Arc<DiskFile<B>>,
    lanes: Lanes,
    lifeline: Arc<Lifeline>,
    name: OsString,
    read_only: bool,
    uid: u32,
    gid: u32,
    mode: u16,
}

impl<B: BlockIo + 'static> DiskFileSystem<B> {
    pub(super) fn new(
        file: Arc<DiskFile<B>>,
        options: &FuseOptions,
        threads: usize,
        read_only: bool,
        lifeline: Arc<Lifeline>,
    ) -> io::Result<DiskFileSystem<B>> {
        Ok(DiskFileSystem {
            file,
            lanes: Lanes::new(threads)?,
            lifeline,
            name: OsString::from(&options.file_name),
            read_only,
            uid: options.uid,
            gid: options.gid,
            mode: options.mode & 0o7777,
        })
    }

    /// Runs a request for bytes, here or, when all other threads wait in the disk, beside.
    fn in_a_lane(&self, job: impl FnOnce(&DiskFile<B>) + Send + 'static) {
        if let Some(_lane) = self.lanes.enter() {
            return job(&self.file);
        }
        let file = Arc::clone(&self.file);
        self.lanes.park(move || job(&file));
    }

    fn attributes(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let (size, kind, perm, nlink) = match ino {
            INodeNo::ROOT => (0, FileType::Directory, folder_mode(self.mode), 2),
            FILE => (self.file.size_bytes(), FileType::RegularFile, self.mode, 1),
            _ => return Err(Errno::ENOENT),
        };
        Ok(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(SECTOR_BYTES),
            atime: self.file.accessed.get(),
            mtime: self.file.modified.get(),
            ctime: self.file.changed.get(),
            crtime: self.file.changed.get(),
            kind,
            perm,
            nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        })
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        match ino {
            INodeNo::ROOT | FILE => {
                self.in_a_lane(move |file| answer(file.flush().map_err(|error| told(&error)), reply))
            }
            _ => reply.error(Errno::ENOENT),
        }
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl<B: BlockIo + 'static> Filesystem for DiskFileSystem<B> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |what: &str| io::Error::other(format!("the kernel refuses the FUSE setting {what}"));
        config.set_max_write(MAX_REQUEST_BYTES).map_err(|_| refused("max_write"))?;
        config.set_max_background(MAX_BACKGROUND).map_err(|_| refused("max_background"))?;
        // Without it a loop device's requests would come one at a time. Every kernel since 3.10 has it.
        if config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).is_err() {
            log::warn!("this kernel has no asynchronous direct I/O for FUSE: a loop device will be slow");
        }
        Ok(())
    }

    fn destroy(&mut self) {
        // Every descriptor is closed by now and was flushed then; this covers a connection that was aborted.
        self.lifeline.flushed(if self.read_only { Ok(()) } else { self.file.flush() });
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent != INodeNo::ROOT || name != self.name {
            return reply.error(Errno::ENOENT);
        }
        match self.attributes(FILE) {
            Ok(attr) => reply.entry_with_ttls(&ATTR_TTL, &ENTRY_TTL, &attr, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Ok(attr) => reply.attr(&ATTR_TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = match self.attributes(ino) {
            Ok(now) => now,
            Err(errno) => return reply.error(errno),
        };
        let other_size = size.is_some_and(|size| ino != FILE || size != now.size);
        let other_owner = uid.is_some_and(|uid| uid != now.uid) || gid.is_some_and(|gid| gid != now.gid);
        let other_mode = mode.is_some_and(|mode| mode & 0o7777 != u32::from(now.perm));
        if other_size || other_owner || other_mode || flags.is_some() {
            return reply.error(Errno::EPERM);
        }
        if let Some(time) = atime {
            self.file.accessed.set(moment(time));
        }
        if let Some(time) = mtime {
            self.file.modified.set(moment(time));
        }
        self.file.changed.set(ctime.unwrap_or_else(SystemTime::now));
        self.getattr(_req, ino, None, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let for_reading = flags.acc_mode() == OpenAccMode::O_RDONLY;
        if ino != FILE {
            return reply.error(Errno::EISDIR);
        }
        if self.read_only && !for_reading {
            return reply.error(Errno::EROFS);
        }
        let mut open_flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        if for_reading {
            // Closing it owes nothing to the disk, and must not wait for a suspended one.
            open_flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        reply.opened(FileHandle(u64::from(!for_reading)), open_flags);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.in_a_lane(move |file| {
            file.read(offset, size, |result| match result {
                Ok(data) => reply.data(data),
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let fua = wants_durable(flags);
        let finish = move |file: &DiskFile<B>, data: &[u8]| match file.write(offset, data, fua) {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        };
        if let Some(_lane) = self.lanes.enter() {
            return finish(&self.file, data);
        }
        // The buffer is the thread's, and the thread goes back to the door: only here the data is copied.
        let mut copy = Vec::new();
        if copy.try_reserve_exact(data.len()).is_err() {
            return finish(&self.file, data);
        }
        copy.extend_from_slice(data);
        let file = Arc::clone(&self.file);
        self.lanes.park(move || finish(&file, &copy));
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        if fh == FileHandle(0) {
            return reply.ok();
        }
        self.sync(ino, reply);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.in_a_lane(move |file| answer(file.allocate(offset, length, mode), reply));
    }

    fn lseek(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.file.seek(offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries: [(INodeNo, FileType, &OsStr); 3] = [
            (INodeNo::ROOT, FileType::Directory, OsStr::new(".")),
            (INodeNo::ROOT, FileType::Directory, OsStr::new("..")),
            (FILE, FileType::RegularFile, &self.name),
        ];
        for ((ino, kind, name), next) in entries.into_iter().zip(1..) {
            if next > offset && reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = self.file.size_bytes() / u64::from(BLOCK_BYTES);
        reply.statfs(blocks, 0, 0, 1, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EPERM);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        events: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // A file is always ready.
        reply.poll(events);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
