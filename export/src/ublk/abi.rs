//! The driver's words in bytes: commands, the description of a device, its parameters, one request.
//!
//! Byte maps as of Linux 6.12; everything here is in the machine's byte order. Fields that later kernels append are left out:
//! the driver takes shorter structures. Source: `include/uapi/linux/ublk_cmd.h`, `Documentation/block/ublk.rst`.

use block::Geometry;

/// `_IOC_READ`, `_IOC_WRITE` in place.
const READ: u32 = 2 << 30;
const WRITE: u32 = 1 << 30;
/// `struct ublksrv_ctrl_cmd`: device u32, queue u16, length u16, address u64, data u64, path length u16, padding.
const CONTROL_BYTES: u32 = 32;
/// `struct ublksrv_io_cmd`: queue u16, tag u16, result i32, address u64.
const IO_BYTES: u32 = 16;

const fn command(direction: u32, bytes: u32, number: u32) -> u32 {
    direction | bytes << 16 | (b'u' as u32) << 8 | number
}

pub(super) const GET_DEV_INFO: u32 = command(READ, CONTROL_BYTES, 0x02);
pub(super) const ADD_DEV: u32 = command(READ | WRITE, CONTROL_BYTES, 0x04);
pub(super) const DEL_DEV: u32 = command(READ | WRITE, CONTROL_BYTES, 0x05);
pub(super) const START_DEV: u32 = command(READ | WRITE, CONTROL_BYTES, 0x06);
pub(super) const STOP_DEV: u32 = command(READ | WRITE, CONTROL_BYTES, 0x07);
pub(super) const SET_PARAMS: u32 = command(READ | WRITE, CONTROL_BYTES, 0x08);
pub(super) const START_USER_RECOVERY: u32 = command(READ | WRITE, CONTROL_BYTES, 0x10);
pub(super) const END_USER_RECOVERY: u32 = command(READ | WRITE, CONTROL_BYTES, 0x11);
/// Does not wait until nobody has the device open (Linux 6.9).
pub(super) const DEL_DEV_ASYNC: u32 = command(READ, CONTROL_BYTES, 0x14);

pub(super) const FETCH: u32 = command(READ | WRITE, IO_BYTES, 0x20);
pub(super) const COMMIT_AND_FETCH: u32 = command(READ | WRITE, IO_BYTES, 0x21);

/// Any free number.
pub(super) const ANY_DEVICE: u32 = u32::MAX;
const NO_QUEUE: u16 = u16::MAX;

/// Requests wait when the server dies (`UBLK_F_USER_RECOVERY`), and what it had in hand is asked of the next one (`…_REISSUE`).
pub(super) const RECOVERY_FLAGS: u64 = 1 << 3 | 1 << 4;

const LOGICAL_SHIFTS: (u32, u32) = (9, 12);
const ATTR_READ_ONLY: u32 = 1;
const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
const ATTR_FUA: u32 = 1 << 3;
const PARAM_BASIC: u32 = 1;
const PARAM_DISCARD: u32 = 1 << 1;

/// Largest request that moves data.
pub(super) const REQUEST_MAX_BYTES: u32 = 256 << 10;
/// Most that is zeroed or given up by one request, so that others get their turn between.
const ZEROES_MAX_BYTES: u32 = 4 << 20;
/// Bytes of `struct ublksrv_io_desc`: operation and flags u32, sectors u32, first sector u64, address u64.
pub(super) const DESCRIPTOR_BYTES: usize = 24;
/// Most requests of a queue, by which the descriptors of all queues are spaced.
const TAGS_MAX: usize = 4096;
const PAGE_BYTES: usize = 4096;

/// Bytes of one queue's descriptors as they are mapped.
pub(super) fn descriptors_bytes(depth: u16) -> usize {
    (usize::from(depth) * DESCRIPTOR_BYTES).next_multiple_of(PAGE_BYTES)
}

/// Where in the device's file the descriptors of a queue are.
pub(super) fn descriptors_offset(queue: u16) -> u64 {
    (usize::from(queue) * (TAGS_MAX * DESCRIPTOR_BYTES).next_multiple_of(PAGE_BYTES)) as u64
}

/// Something with a fixed place for each field.
struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Bytes<N> {
    fn put(mut self, at: usize, value: &[u8]) -> Bytes<N> {
        if let Some(field) = self.0.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
        self
    }
}

/// The part of a control command that is sent along: `struct ublksrv_ctrl_cmd` in the 80 bytes of a long submission.
pub(super) fn control(device: u32, address: u64, len_bytes: usize, data: u64) -> [u8; 80] {
    Bytes([0; 80])
        .put(0, &device.to_ne_bytes())
        .put(4, &NO_QUEUE.to_ne_bytes())
        .put(6, &u16::try_from(len_bytes).unwrap_or(0).to_ne_bytes())
        .put(8, &address.to_ne_bytes())
        .put(16, &data.to_ne_bytes())
        .0
}

/// `struct ublksrv_io_cmd`.
pub(super) fn io_command(queue: u16, tag: u16, result: i32, address: u64) -> [u8; 16] {
    Bytes([0; 16])
        .put(0, &queue.to_ne_bytes())
        .put(2, &tag.to_ne_bytes())
        .put(4, &result.to_ne_bytes())
        .put(8, &address.to_ne_bytes())
        .0
}

/// What the driver is doing with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceState {
    /// Not started yet, or its server is gone: there is no block device.
    Dead,
    Live,
    /// Its server is gone, and requests wait for another.
    Quiesced,
}

/// `struct ublksrv_ctrl_dev_info`: queues u16, depth u16, state u16, 2 bytes, request size u32, number u32, process i32, 4 bytes,
/// flags u64, mark u64, owner 2 × u32, 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceInfo {
    pub(super) queues: u16,
    pub(super) depth: u16,
    pub(super) state: DeviceState,
    pub(super) request_max_bytes: u32,
    pub(super) number: u32,
    pub(super) flags: u64,
    /// The server's own word, which the driver keeps (`ublksrv_flags`).
    pub(super) mark: u64,
}

impl DeviceInfo {
    pub(super) const BYTES: usize = 64;

    pub(super) fn to_bytes(self) -> [u8; DeviceInfo::BYTES] {
        Bytes([0; DeviceInfo::BYTES])
            .put(0, &self.queues.to_ne_bytes())
            .put(2, &self.depth.to_ne_bytes())
            .put(8, &self.request_max_bytes.to_ne_bytes())
            .put(12, &self.number.to_ne_bytes())
            .put(24, &self.flags.to_ne_bytes())
            .put(32, &self.mark.to_ne_bytes())
            .0
    }

    pub(super) fn from_bytes(bytes: &[u8; DeviceInfo::BYTES]) -> DeviceInfo {
        let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let wide = |at: usize| (0..8).fold([0; 8], |word: [u8; 8], n| Bytes(word).put(n, &[bytes[at + n]]).0);
        DeviceInfo {
            queues: short(0),
            depth: short(2),
            state: match short(4) {
                0 => DeviceState::Dead,
                1 => DeviceState::Live,
                // Quiesced, or one that later kernels know: its server is gone there, too.
                _ => DeviceState::Quiesced,
            },
            request_max_bytes: long(8),
            number: long(12),
            flags: u64::from_ne_bytes(wide(24)),
            mark: u64::from_ne_bytes(wide(32)),
        }
    }
}

/// Bytes of `struct ublk_params` up to the parameters of zoned devices.
pub(super) const PARAMS_BYTES: usize = 64;

/// `struct ublk_params`: length u32, kinds u32; attributes u32, shifts of logical, physical, optimal and least block 4 × u8, sectors per
/// request u32, chunk u32, sectors u64, boundary u64; discard: alignment, granularity, most sectors, most zeroed sectors 4 × u32, segments u16.
pub(super) fn params(disk: &Geometry, read_only: bool) -> [u8; PARAMS_BYTES] {
    let logical_shift = disk.logical_block.max(1).ilog2().clamp(LOGICAL_SHIFTS.0, LOGICAL_SHIFTS.1);
    let physical_shift = disk.physical_block.max(1).ilog2().max(logical_shift);
    let shift = |value: u32| [u8::try_from(value).unwrap_or(u8::MAX)];
    let sectors = disk.size.0 >> logical_shift << (logical_shift - 9);
    let attributes = ATTR_VOLATILE_CACHE | ATTR_FUA | if read_only { ATTR_READ_ONLY } else { 0 };
    let zeroes = ZEROES_MAX_BYTES >> 9;
    Bytes([0; PARAMS_BYTES])
        .put(0, &60_u32.to_ne_bytes())
        .put(4, &(PARAM_BASIC | PARAM_DISCARD).to_ne_bytes())
        .put(8, &attributes.to_ne_bytes())
        .put(12, &shift(logical_shift))
        .put(13, &shift(physical_shift))
        .put(14, &shift(physical_shift))
        .put(15, &shift(physical_shift))
        .put(16, &(REQUEST_MAX_BYTES >> 9).to_ne_bytes())
        .put(24, &sectors.to_ne_bytes())
        .put(44, &(1_u32 << physical_shift).to_ne_bytes())
        .put(48, &zeroes.to_ne_bytes())
        .put(52, &zeroes.to_ne_bytes())
        .put(56, &1_u16.to_ne_bytes())
        .0
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    /// Nothing that was offered.
    Other(u8),
}

/// One request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) operation: Operation,
    pub(super) fua: bool,
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: u64,
}

impl Descriptor {
    /// From the first 16 of its bytes.
    pub(super) fn new(op_flags: u32, sectors: u32, first_sector: u64) -> Descriptor {
        let [operation, ..] = op_flags.to_le_bytes();
        Descriptor {
            operation: match operation {
                0 => Operation::Read,
                1 => Operation::Write,
                2 => Operation::Flush,
                3 => Operation::Discard,
                5 => Operation::WriteZeroes,
                other => Operation::Other(other),
            },
            fua: op_flags & 1 << 13 != 0,
            // A sector number that does not fit is behind every disk.
            offset_bytes: first_sector.saturating_mul(512),
            len_bytes: u64::from(sectors) * 512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_commands_are_those_of_the_header() {
        assert_eq!((GET_DEV_INFO, ADD_DEV), (0x8020_7502, 0xc020_7504));
        assert_eq!((DEL_DEV_ASYNC, FETCH, COMMIT_AND_FETCH), (0x8020_7514, 0xc010_7520, 0xc010_7521));
        assert_eq!((descriptors_bytes(1), descriptors_bytes(171), descriptors_offset(2)), (4096, 8192, 196_608));
    }

    #[test]
    fn a_description_of_a_device_is_read_as_it_was_written() {
        let info = DeviceInfo {
            queues: 3,
            depth: 32,
            state: DeviceState::Dead,
            request_max_bytes: REQUEST_MAX_BYTES,
            number: 7,
            flags: 1 << 40 | 5,
            mark: 0x1122_3344_5566_7788,
        };
        let mut bytes = info.to_bytes();
        assert_eq!(DeviceInfo::from_bytes(&bytes), info);
        bytes[4] = 1;
        assert_eq!(DeviceInfo::from_bytes(&bytes).state, DeviceState::Live);
        bytes[4] = 2;
        assert_eq!(DeviceInfo::from_bytes(&bytes).state, DeviceState::Quiesced);
    }

    #[test]
    fn parameters_tell_size_blocks_and_what_is_offered() {
        let disk = Geometry {
            size: block::Bytes((1 << 20) + 512),
            logical_block: 4096,
            physical_block: 4096,
            memory_alignment: 512,
            read_only: false,
        };
        let bytes = params(&disk, true);
        let long = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((long(0), long(4), long(8), &bytes[12..16]), (60, 3, 1 | 4 | 8, &[12; 4][..]));
        assert_eq!((long(16), u64::from_ne_bytes(bytes[24..32].try_into().unwrap())), (512, 2048));
        assert_eq!((long(44), long(48), long(52), bytes[56]), (4096, 8192, 8192, 1));
        let small = params(&Geometry { logical_block: 512, physical_block: 512, ..disk }, false);
        assert_eq!((small[8], small[12], small[13]), (12, 9, 9));
    }

    #[test]
    fn a_request_is_read_with_its_flags() {
        let zeroes = Descriptor::new(5 | 1 << 13 | 1 << 15, 8, 16);
        assert_eq!(
            zeroes,
            Descriptor { operation: Operation::WriteZeroes, fua: true, offset_bytes: 8192, len_bytes: 4096 }
        );
        assert_eq!(Descriptor::new(0x0104, 1, u64::MAX).operation, Operation::Other(4));
    }
}
