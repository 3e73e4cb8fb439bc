//! Serves any [`block::BlockIo`] to other programs. Knows nothing of LUKS, keys or ciphers: what it is given is the
//! plaintext disk, and what it answers is what that disk said.
//!
//! * [`fuse`]: one folder with one file whose bytes are the disk.
//! * [`nbd`]: a Unix socket that speaks NBD.
//! * [`ublk`]: a block device of the kernel.
//!
//! Invariants that hold for every export: a request is answered with success only after the disk said so; a range that
//! was told to be zero reads as zero, because zeros were written through the disk and nothing was punched out below
//! it; a flush answered with success covers every write answered before it.
#![deny(unsafe_code)]

pub mod fuse;
pub mod nbd;
pub mod ublk;
