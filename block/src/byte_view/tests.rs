//! [`super::ByteView`] against a plain vector, alone and with threads, on 512- and 4096-byte blocks.

#![allow(clippy::cast_possible_truncation)] // Sizes here are small.

use super::*;
use crate::{Geometry, MemDisk};
use proptest::prelude::*;

const SIZE: usize = 5 * 4096;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize),
    Read(usize, usize),
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    (0..=SIZE).prop_flat_map(|start| (Just(start), 0..=SIZE - start))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (range(), any::<u8>()).prop_map(|((start, len), byte)| Step::Write(start, len, byte)),
        range().prop_map(|(start, len)| Step::Zero(start, len)),
        range().prop_map(|(start, len)| Step::Read(start, len)),
    ]
}

/// A disk without `write_zeroes`, so that the fallback is tried too. Every read gives way to other threads, so that a
/// read-modify-write that is not protected is seen to lose bytes.
struct NoZeroes(MemDisk);

impl BlockIo for NoZeroes {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.0.read_at(offset, buf)?;
        std::thread::yield_now();
        Ok(())
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.0.write_at(offset, buf, fua)
    }
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        Err(BlockError::new(BlockErrorKind::Unsupported, "write zeroes", offset, len.0))
    }
    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.0.discard(offset, len)
    }
    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }
}

fn run<D: BlockIo>(view: &ByteView<D>, steps: &[Step]) {
    let mut model = vec![0_u8; SIZE];
    for step in steps {
        match *step {
            Step::Write(start, len, byte) => {
                let data: Vec<u8> = (0..len).map(|at| byte.wrapping_add(at as u8)).collect();
                view.write(Bytes(start as u64), &data, false).unwrap();
                model[start..start + len].copy_from_slice(&data);
            }
            Step::Zero(start, len) => {
                view.write_zeroes(Bytes(start as u64), Bytes(len as u64)).unwrap();
                model[start..start + len].fill(0);
            }
            Step::Read(start, len) => {
                let mut seen = vec![0xee; len];
                view.read(Bytes(start as u64), &mut seen).unwrap();
                assert_eq!(seen, model[start..start + len]);
            }
        }
    }
    let mut all = vec![0; SIZE];
    view.read(Bytes(0), &mut all).unwrap();
    assert_eq!(all, model);
}

proptest! {
    #[test]
    fn a_view_is_a_vector(steps in prop::collection::vec(step(), 1..40), large in any::<bool>(), zeroes in any::<bool>()) {
        let disk = MemDisk::with_block(Bytes(SIZE as u64), if large { 4096 } else { 512 });
        if zeroes {
            run(&ByteView::new(disk), &steps);
        } else {
            run(&ByteView::new(NoZeroes(disk)), &steps);
        }
    }
}

/// A small generator, so that a failing run can be repeated from the printed seed.
struct Seed(u64);

impl Seed {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Each thread owns every `threads`-th run of `grain` bytes, so that the owners meet in every block and no two write the
/// same byte. Every owner also rewrites a part of what it owns and reads it back at once.
fn no_byte_is_lost(block: u32, grain: u64, seed: u64) {
    const THREADS: u64 = 4;
    let size = 64 << 10_u64;
    let view = ByteView::new(NoZeroes(MemDisk::with_block(Bytes(size), block)));
    std::thread::scope(|scope| {
        for owner in 0..THREADS {
            let view = &view;
            scope.spawn(move || {
                let mut random = Seed(seed + owner);
                for round in 0..3_u8 {
                    for run in (owner..size / grain).step_by(THREADS as usize) {
                        let start = run * grain;
                        let byte = owner as u8 * 64 + round;
                        view.write(Bytes(start), &vec![byte; grain as usize], random.below(2) == 0).unwrap();
                        let len = 1 + random.below(grain);
                        let mut seen = vec![0; len as usize];
                        view.read(Bytes(start), &mut seen).unwrap();
                        assert!(seen.iter().all(|&got| got == byte), "block {block} grain {grain} seed {seed}");
                    }
                }
            });
        }
    });
    let mut all = vec![0; size as usize];
    view.read(Bytes(0), &mut all).unwrap();
    for (at, &byte) in all.iter().enumerate().take((size / grain * grain) as usize) {
        let owner = (at as u64 / grain) % THREADS;
        assert_eq!(byte, owner as u8 * 64 + 2, "byte {at}, block {block} grain {grain} seed {seed}");
    }
}

#[test]
fn threads_that_share_blocks_lose_no_bytes() {
    for block in [512, 4096] {
        for (grain, seed) in [(7, 1), (100, 2), (512, 3), (700, 4), (5000, 5)] {
            no_byte_is_lost(block, grain, seed);
        }
    }
}

/// A disk that a reader can catch in the middle of a write: every write first leaves garbage.
struct Tearing(MemDisk);

impl BlockIo for Tearing {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.0.write_at(offset, &vec![0xff; buf.len()], fua)?;
        std::thread::yield_now();
        self.0.write_at(offset, buf, fua)
    }
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.0.write_zeroes(offset, len)
    }
    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.0.discard(offset, len)
    }
    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }
}

#[test]
fn a_reader_of_other_bytes_of_a_block_never_sees_it_half_written_back() {
    let view = ByteView::new(Tearing(MemDisk::with_block(Bytes(4096), 4096)));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) || reads < 100 {
                let mut seen = [1; 100];
                view.read(Bytes(10), &mut seen).unwrap();
                assert_eq!(seen, [0; 100]);
                reads += 1;
            }
        });
        for round in 0..2000_u64 {
            view.write(Bytes(200 + round % 7), &[round as u8; 50], false).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn behind_the_end_is_refused_and_an_odd_tail_is_not_shown() {
    let view = ByteView::new(MemDisk::new(Bytes(1000)));
    assert_eq!(view.size(), Bytes(512));
    let error = view.read(Bytes(999), &mut [0; 2]).unwrap_err();
    assert_eq!(error.kind, BlockErrorKind::OutOfRange);
    let error = view.write(Bytes(u64::MAX), &[1, 2], false).unwrap_err();
    assert_eq!(error.kind, BlockErrorKind::OutOfRange);
}
