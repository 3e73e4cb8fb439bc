//! Whether the time of a call depends on data, key or sector number: dudect for every kernel.
//!
//! Two classes of calls, one with a fixed value and one with random values of what is examined, mixed at random; Welch's
//! t-test asks whether their times have different means. No time is asserted, only that no dependence is to be seen:
//! |t| < 10 in at least one of three campaigns. Chance reaches 10 once in 10^15 campaigns, a true leak grows with the
//! number of batches and shows in all three. A call that spends some tens of nanoseconds more on one bit must be found.
//!
//! `DMCRYPT_TIMING_BATCHES` sets the length of a campaign; `make timing` runs long ones.
//!
//! Source: Reparaz, Balasch, Verbauwhede, "Dude, is my code constant time?" (2017).
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

mod statistics;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use dmcrypt::{CipherSpec, Kernel, SectorCipher, SectorSize};
use statistics::Comparison;

/// |t| from which on a campaign says that there is a dependence.
const THRESHOLD: f64 = 10.0;
const CAMPAIGNS: usize = 3;
const SHORT_BATCHES: usize = 100;
/// Inputs of one batch, and how often each is timed.
const INPUTS: usize = 32;
const REPEATS: usize = 16;

/// One measurement at a time: the tests share the machine's cores.
static ALONE: Mutex<()> = Mutex::new(());

/// Batches of a campaign, if the environment asks for long ones.
fn long_batches() -> Option<usize> {
    std::env::var("DMCRYPT_TIMING_BATCHES").ok().map(|batches| batches.parse().unwrap())
}

/// xorshift64*, seeded anew on each run.
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(RandomState::new().build_hasher().finish() | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len_bytes: usize) -> Vec<u8> {
        (0..len_bytes.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len_bytes).collect()
    }

    /// Fisher and Yates.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.next() % (last as u64 + 1)).unwrap();
            items.swap(last, other);
        }
    }
}

/// What is fixed in one class and random in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Examined {
    Data,
    Key,
    Sector,
}

/// One kind of call.
#[derive(Debug, Clone, Copy)]
struct Shape {
    key_bytes: usize,
    sector_size: SectorSize,
    sectors: usize,
    encrypts: bool,
}

/// A value of everything that goes into a call.
#[derive(Clone)]
struct Input {
    random: bool,
    key: Vec<u8>,
    sector: u64,
    data: Vec<u8>,
}

impl Input {
    fn new(shape: &Shape, random: &mut Random) -> Input {
        Input {
            random: false,
            key: random.bytes(shape.key_bytes),
            sector: random.next(),
            data: random.bytes(shape.sectors * shape.sector_size.bytes() as usize),
        }
    }

    /// The fixed input, or with equal chances one that differs in what is examined.
    fn of_either_class(fixed: &Input, examined: Examined, shape: &Shape, random: &mut Random) -> Input {
        let mut input = fixed.clone();
        let other = Input::new(shape, random);
        input.random = random.next() >> 63 == 1;
        if input.random {
            match examined {
                // Copied, not moved: memory of its own in one class would show as a dependence (4 KiB aliasing).
                Examined::Data => input.data.copy_from_slice(&other.data),
                Examined::Key => input.key.copy_from_slice(&other.key),
                Examined::Sector => input.sector = other.sector,
            }
        }
        input
    }
}

/// Makes a cipher from a key.
type Build<'a> = &'a dyn Fn(&[u8], SectorSize) -> Box<dyn SectorCipher>;

/// Times one batch. Every input has a cipher of its own if keys differ, so that both classes touch as much memory.
fn batch(build: Build<'_>, fixed: &Input, examined: Examined, shape: &Shape, random: &mut Random) -> Vec<(bool, u64)> {
    let inputs: Vec<Input> = (0..INPUTS).map(|_| Input::of_either_class(fixed, examined, shape, random)).collect();
    let count = if examined == Examined::Key { INPUTS } else { 1 };
    let ciphers: Vec<_> = inputs[..count].iter().map(|input| build(&input.key, shape.sector_size)).collect();
    let mut source = fixed.data.clone();
    let mut target = fixed.data.clone();
    let mut order: Vec<usize> = (0..INPUTS).flat_map(|input| [input; REPEATS]).collect();
    random.shuffle(&mut order);
    let times = order.into_iter().map(|at| {
        let input = &inputs[at];
        let cipher = ciphers[at % count].as_ref();
        source.copy_from_slice(&input.data);
        let start = Instant::now();
        if shape.encrypts {
            cipher.encrypt(black_box(input.sector), &source, &mut target);
        } else {
            cipher.decrypt(black_box(input.sector), &source, &mut target);
        }
        let time = start.elapsed();
        black_box(&target);
        (input.random, u64::try_from(time.as_nanos()).unwrap())
    });
    times.collect()
}

/// The largest |t| of one campaign with a fixed value of its own.
fn campaign(build: Build<'_>, examined: Examined, shape: &Shape, batches: usize) -> f64 {
    let mut random = Random::new();
    let fixed = Input::new(shape, &mut random);
    let mut comparison = Comparison::default();
    for _ in 0..batches {
        comparison.push_batch(&mut batch(build, &fixed, examined, shape, &mut random));
    }
    comparison.largest_t()
}

/// |t| of each campaign until one stays below the threshold.
fn verdict(build: Build<'_>, examined: Examined, shape: &Shape, batches: usize) -> Result<f64, Vec<f64>> {
    let mut seen = Vec::new();
    for _ in 0..CAMPAIGNS {
        let t = campaign(build, examined, shape, batches);
        if t < THRESHOLD {
            return Ok(t);
        }
        seen.push(t);
    }
    Err(seen)
}

/// All of them in long campaigns; in short ones each code path once.
fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for key_bytes in [32, 64] {
        for (sector_size, sectors) in [(SectorSize::S512, 1), (SectorSize::S512, 9), (SectorSize::S4096, 1)] {
            for encrypts in [true, false] {
                if long_batches().is_some() || (key_bytes == 32) == (sectors == 9) {
                    shapes.push(Shape { key_bytes, sector_size, sectors, encrypts });
                }
            }
        }
    }
    shapes
}

#[test]
fn no_kernel_depends_on_data_key_or_sector_number() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
    let batches = long_batches().unwrap_or(SHORT_BATCHES);
    let mut leaks = Vec::new();
    for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
        let build = |key: &[u8], sector_size| dmcrypt::build_with(kernel, &spec, key, sector_size).unwrap();
        let mut largest: f64 = 0.0;
        for shape in shapes() {
            for examined in [Examined::Data, Examined::Key, Examined::Sector] {
                match verdict(&build, examined, &shape, batches) {
                    Ok(t) => largest = largest.max(t),
                    Err(t) => leaks.push(format!("{kernel}, {examined:?}, {shape:?}: |t| = {t:.1?}")),
                }
            }
        }
        println!("{kernel}: largest |t| {largest:.1} after {batches} batches of {} calls", INPUTS * REPEATS);
    }
    assert!(leaks.is_empty(), "the time depends on what must stay secret:\n{}", leaks.join("\n"));
}

/// A cipher that takes some tens of nanoseconds longer if one bit of data, key and sector number together is set.
struct Leaky {
    inner: Box<dyn SectorCipher>,
    key_byte: u8,
}

impl Leaky {
    fn dawdle(&self, iv_sector: u64, src: &[u8]) {
        if (src[0] ^ self.key_byte ^ iv_sector.to_le_bytes()[0]) & 1 == 1 {
            let mut product = iv_sector | 1;
            for _ in 0..40 {
                product = black_box(product.wrapping_mul(product));
            }
        }
    }
}

impl SectorCipher for Leaky {
    fn sector_size(&self) -> SectorSize {
        self.inner.sector_size()
    }

    fn encrypt(&self, iv_sector: u64, src: &[u8], dst: &mut [u8]) {
        self.dawdle(iv_sector, src);
        self.inner.encrypt(iv_sector, src, dst);
    }

    fn decrypt(&self, iv_sector: u64, src: &[u8], dst: &mut [u8]) {
        self.dawdle(iv_sector, src);
        self.inner.decrypt(iv_sector, src, dst);
    }

    fn encrypt_in_place(&self, iv_sector: u64, buf: &mut [u8]) {
        self.dawdle(iv_sector, buf);
        self.inner.encrypt_in_place(iv_sector, buf);
    }

    fn decrypt_in_place(&self, iv_sector: u64, buf: &mut [u8]) {
        self.dawdle(iv_sector, buf);
        self.inner.decrypt_in_place(iv_sector, buf);
    }
}

#[test]
fn a_dependence_on_one_bit_is_found() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
    let build = |key: &[u8], sector_size| -> Box<dyn SectorCipher> {
        Box::new(Leaky { inner: dmcrypt::build(&spec, key, sector_size).unwrap(), key_byte: key[0] })
    };
    let shape = Shape { key_bytes: 64, sector_size: SectorSize::S512, sectors: 1, encrypts: true };
    for examined in [Examined::Data, Examined::Key, Examined::Sector] {
        // On a busy machine a longer campaign sees what a short one does not, and a later one what others drowned.
        let verdicts = [1, 4, 16, 16, 16].map(|times| times * SHORT_BATCHES).into_iter();
        let found = verdicts.map(|batches| verdict(&build, examined, &shape, batches)).find_map(Result::err);
        println!("one bit, {examined:?}: |t| = {found:.1?}");
        assert!(found.is_some(), "{examined:?}: not found");
    }
}
