//! The loop driver's ioctls: the only unsafe code of this crate.
//!
//! Each function is one ioctl with the argument type that `include/uapi/linux/loop.h` gives it, so that a caller
//! cannot pair a number with the wrong structure. Nothing is kept: the descriptor and the structures are borrowed for
//! the call. Source: `include/uapi/linux/loop.h`, `drivers/block/loop.c`, loop(4).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const LOOP_CLR_FD: u32 = 0x4C01;
const LOOP_GET_STATUS64: u32 = 0x4C05;
const LOOP_SET_CAPACITY: u32 = 0x4C07;
const LOOP_SET_BLOCK_SIZE: u32 = 0x4C09;
const LOOP_CONFIGURE: u32 = 0x4C0A;
const LOOP_CTL_GET_FREE: u32 = 0x4C82;

/// `LO_FLAGS_READ_ONLY`: writes are refused.
pub(crate) const FLAG_READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`: the device detaches when the last descriptor on it closes.
pub(crate) const FLAG_AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`: the backing file is read and written past the page cache.
pub(crate) const FLAG_DIRECT_IO: u32 = 16;

/// `struct loop_info64`: what a loop device is attached to.
///
/// Bytes: 0 device, 8 inode, 16 rdevice, 24 offset, 32 size limit, 40 number, 44 and 48 old encryption, 52 flags,
/// 56 file name, 120 cipher name, 184 key (always zero here), 216 two unused words; 232 in all.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Info {
    /// `st_dev` of the backing file.
    pub(crate) device: u64,
    /// `st_ino` of the backing file.
    pub(crate) inode: u64,
    /// `st_rdev` of the backing file.
    pub(crate) rdevice: u64,
    /// First byte of the backing file that the device shows.
    pub(crate) offset_bytes: u64,
    /// Bytes shown, 0 for all.
    pub(crate) size_limit_bytes: u64,
    /// N of `/dev/loopN`.
    pub(crate) number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    /// `LO_FLAGS_*`.
    pub(crate) flags: u32,
    /// Path of the backing file as told by who attached it, cut at 63 bytes.
    pub(crate) file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`: the argument of `LOOP_CONFIGURE`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Config {
    fd: u32,
    /// Logical block size of the device, 0 for the driver's choice.
    pub(crate) block_size: u32,
    /// The rest, as in `LOOP_SET_STATUS64`.
    pub(crate) info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232);
const _: () = assert!(size_of::<Config>() == 304);

impl Info {
    /// All zero.
    pub(crate) const fn zeroed() -> Info {
        Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset_bytes: 0,
            size_limit_bytes: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

impl Config {
    /// A configuration that shows the whole file.
    pub(crate) const fn new(block_size: u32, info: Info) -> Config {
        Config { fd: 0, block_size, info, reserved: [0; 8] }
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Number of a loop device that is free now; makes one if all are taken. Another process may take it first.
pub(crate) fn get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open for the whole call.
    let number = checked(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) })?;
    u32::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Attaches `backing` to `device` with all settings at once (Linux 5.8).
pub(crate) fn configure(device: BorrowedFd<'_>, backing: BorrowedFd<'_>, config: &Config) -> io::Result<()> {
    let mut config = *config;
    config.fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, whose layout `Config` has (size asserted above); it lives
    // on this stack frame for the whole call, and both descriptors are open.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) }).map(drop)
}

/// What `device` is attached to; ENXIO if to nothing.
pub(crate) fn get_status(device: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = Info::zeroed();
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, whose layout `Info` has (size asserted above); every
    // bit pattern is a valid `Info`, and it is exclusively borrowed for the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) })?;
    Ok(info)
}

/// Detaches now, or when the last other descriptor closes.
pub(crate) fn clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD ignores its argument; the descriptor is open for the whole call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _, 0) }).map(drop)
}

/// Takes over the backing file's present size.
pub(crate) fn set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: LOOP_SET_CAPACITY ignores its argument; the descriptor is open for the whole call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY as _, 0) }).map(drop)
}

/// Sets the logical block size of an attached device; EAGAIN while its page cache is dirty.
pub(crate) fn set_block_size(device: BorrowedFd<'_>, block_size_bytes: u32) -> io::Result<()> {
    // SAFETY: LOOP_SET_BLOCK_SIZE takes its argument by value as an unsigned long; the descriptor is open.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_BLOCK_SIZE as _, libc::c_ulong::from(block_size_bytes)) })
        .map(drop)
}
