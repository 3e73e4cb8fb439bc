//! Making a FUSE mount: mount(2) where it is allowed, the set-uid program `fusermount3` where not.
//!
//! fuser can mount too, but it unmounts the path once more when its session ends, and so takes away whatever else is or
//! was mounted there (0.18: its test for "still mounted" answers yes after the unmount). Here the mount belongs to
//! nobody but [`super::FuseExport`].
//!
//! Source: fuse(4), `Documentation/filesystems/fuse.rst`, fusermount3(1) and its `_FUSE_COMMFD` protocol: the
//! descriptor comes as SCM_RIGHTS with one byte over the socket whose number is in that variable.

use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

const DEVICE: &str = "/dev/fuse";
/// What fusermount3 reads before it unmounts for a user. A minimal container may lack it.
const MOUNT_TABLE: &str = "/etc/mtab";
/// Longest part of fusermount3's words that goes into an error.
const MAX_WORDS_BYTES: usize = 300;

/// What the mount is to be like. `nosuid`, `nodev`, `noexec`, `noatime` and `default_permissions` always hold.
pub(super) struct MountOptions {
    /// The "device" in the mount table, without commas, backslashes and blanks.
    pub(super) source: String,
    /// No writes.
    pub(super) read_only: bool,
    /// Other users may ask; otherwise the kernel turns them away.
    pub(super) allow_other: bool,
}

/// Mounts on the folder `mount_point` and returns the connection to the kernel.
pub(super) fn mount(mount_point: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    match by_system_call(mount_point, options) {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            check_mount_table(Path::new(MOUNT_TABLE))?;
            by_fusermount(mount_point, options)
        }
        other => other,
    }
}

/// Refuses before the mount what its user could not end: fusermount3 mounts without the table, but does not unmount.
pub(super) fn check_mount_table(table: &Path) -> io::Result<()> {
    if table.exists() {
        return Ok(());
    }
    let table = table.display();
    let how = format!("as root: ln -s /proc/self/mounts {table}");
    Err(io::Error::other(format!("there is no {table}, without which fusermount3 could not unmount it again ({how})")))
}

fn by_system_call(mount_point: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let connection = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions",
        connection.as_raw_fd(),
        std::fs::metadata(mount_point)?.mode(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, options.read_only);
    let source = CString::new(options.source.as_bytes())?;
    let target = CString::new(mount_point.as_os_str().as_bytes())?;
    let data = CString::new(data)?;
    rustix::mount::mount(&source, &target, c"fuse", flags, data.as_c_str())?;
    Ok(connection)
}

/// Mounts with the set-uid program.
pub(super) fn by_fusermount(mount_point: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let access = if options.read_only { "ro" } else { "rw" };
    let mut words = format!("fsname={},{access},nosuid,nodev,noexec,noatime,default_permissions", options.source);
    if options.allow_other {
        words.push_str(",allow_other");
    }
    // As standard input the socket reaches that child and no other, without a descriptor that every exec inherits.
    let child = Command::new("fusermount3")
        .args(["-o", &words, "--"])
        .arg(mount_point)
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output()?;
    match received? {
        Some(connection) => {
            rustix::io::fcntl_setfd(&connection, rustix::io::FdFlags::CLOEXEC)?;
            Ok(connection)
        }
        None => {
            let shown = &output.stderr[..output.stderr.len().min(MAX_WORDS_BYTES)];
            Err(io::Error::other(format!("fusermount3: {}", String::from_utf8_lossy(shown).trim())))
        }
    }
}

/// The descriptor, or `None` when the other side closed without one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    loop {
        let iov = &mut [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => {
                other?;
                break;
            }
        }
    }
    let first = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(first)
}
