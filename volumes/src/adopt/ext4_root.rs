//! Owner and mode of the root of an ext4 file system, read without mounting it.
//!
//! Source: the kernel's documentation of ext4 (filesystems/ext4: super block, group descriptors, inode table). All numbers
//! are little-endian.
//!
//! | where | bytes | what |
//! |---|---|---|
//! | super block, at 1024 | 0x14, 4 | first data block |
//! | | 0x18, 4 | log2 of the block size, less 10 |
//! | | 0x58, 2 | size of an inode |
//! | first group descriptor, in the block after the super block's | 8, 4 | first block of the inode table |
//! | inode 2, the second of the table | 0, 2 | mode |
//! | | 2, 2 and 0x78, 2 | owner, low and high |
//! | | 0x18, 2 and 0x7a, 2 | group, low and high |

use block::{BlockIo, Bytes};

/// Larger blocks than this there are none.
const LOG_BLOCK_MAX: u32 = 6;
const PAGE: u64 = 4096;

/// Who owns the root, and who may what there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) mode: u32,
}

/// Reads it; `None` where the numbers make no sense.
pub(super) fn root(disk: &dyn BlockIo) -> Option<Root> {
    let super_block = read(disk, 1024, 1024)?;
    let (first, log) = (number(&super_block, 0x14, 4)?, number(&super_block, 0x18, 4)?);
    let inode_size = number(&super_block, 0x58, 2)?;
    if log > LOG_BLOCK_MAX || !(128..=4096).contains(&inode_size) {
        return None;
    }
    let block_size = 1024_u64 << log;
    let descriptor = read(disk, u64::from(first).checked_add(1)?.checked_mul(block_size)?, 32)?;
    let table = u64::from(number(&descriptor, 8, 4)?).checked_mul(block_size)?;
    let inode = read(disk, table.checked_add(inode_size.into())?, 128)?;
    let half = |at| number(&inode, at, 2);
    Some(Root { user: half(0x78)? << 16 | half(2)?, group: half(0x7a)? << 16 | half(0x18)?, mode: half(0)? & 0o7777 })
}

/// Some bytes, through the pages that they lie in.
fn read(disk: &dyn BlockIo, at: u64, len: usize) -> Option<Vec<u8>> {
    let start = at / PAGE * PAGE;
    let skip = usize::try_from(at - start).ok()?;
    let pages = (skip + len).div_ceil(4096);
    let mut bytes = vec![0; pages * 4096];
    disk.read_at(Bytes(start), &mut bytes).ok()?;
    Some(bytes.get(skip..skip + len)?.to_vec())
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + len)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::{Direct, FileDisk, OpenMode};

    #[test]
    fn the_root_of_what_mke2fs_makes_is_read_with_small_and_large_blocks() {
        let folder = tempfile::tempdir().unwrap();
        for (block_size, owner, expected) in [
            ("1024", "70000:80000", Root { user: 70000, group: 80000, mode: 0o755 }),
            ("4096", "1000:33", Root { user: 1000, group: 33, mode: 0o755 }),
        ] {
            let path = folder.path().join(block_size);
            std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
            let arguments = ["-q", "-F", "-b", block_size, "-E", &format!("root_owner={owner}")];
            let arguments: Vec<_> =
                arguments.iter().map(|word| (*word).into()).chain([path.clone().into_os_string()]).collect();
            crate::program::succeed("mkfs.ext4", &arguments).unwrap();
            let mode = OpenMode { read_only: true, direct: Direct::Never, exclusive: false };
            assert_eq!(root(&FileDisk::open(&path, &mode).unwrap()), Some(expected));
        }
    }

    #[test]
    fn noise_has_no_root() {
        let disk = block::MemDisk::from_bytes(&vec![0xff; 1 << 20]);
        assert_eq!(root(&disk), None);
    }
}
