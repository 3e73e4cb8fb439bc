//! Nothing of a key, a round key or a tweak stays on the stack below a call.
//!
//! Each call runs on a thread whose stack is memory of this test, below a frame deep enough that the end of the thread
//! does not overwrite it. Then all of that memory is searched, at every byte, for eight-byte pieces of: the key, the
//! round keys of all schedules in both directions, the IVs of ESSIV, the tweak T of every block, T ^ (first or last
//! round key), which is what the kernels keep, and first ^ last. Of the ciphers beside AES: the key, all that their state
//! holds (round keys, key-dependent tables), IVs and tweaks. What the bitsliced form of the portable cipher leaves would
//! not be recognised.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;

use dmcrypt::{CipherSpec, Kernel, SectorSize};
use sha2::{Digest, Sha256};

use super::region::Region;
use super::schedule::{Block, decrypting, doubled, encrypted, encrypting, xor};
use super::state::{encrypted_with, state};
use super::{SECTOR_SIZES, available, built, noise};

const STACK_BYTES: usize = 512 << 10;
/// What lies between the frame of the thread's start and that of the call.
const DEPTH_BYTES: usize = 96 << 10;
/// Where a frame that is aligned to 64 bytes may begin below one that is aligned to 16.
const DISTANCES: usize = 4;

/// A needle on the stack: how often, and how far below the caller's frame its deepest copy is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    name: String,
    count: usize,
    below_bytes: usize,
}

/// A stack whose thread is gone.
struct DeadStack<'a> {
    memory: &'a [u8],
    /// Where in `memory` the frame of the code that made the call ended.
    caller_at: usize,
}

/// Eight bytes of a secret, and what they are.
struct Needles(HashMap<u64, String>);

impl Needles {
    fn new() -> Needles {
        Needles(HashMap::new())
    }

    /// Any 12 bytes in a row of `block`, and both its halves.
    fn add(&mut self, block: &Block, name: &str) {
        for at in [0, 4, 8] {
            let piece = block[at..].first_chunk().map_or(0, |piece| u64::from_ne_bytes(*piece));
            self.0.entry(piece).or_insert_with(|| name.to_owned());
        }
    }

    /// The round keys of a cipher that is not AES, and the key itself.
    fn add_state(&mut self, cipher: &str, key: &[u8], of: &str) {
        for block in state(cipher, key) {
            self.add(&block, &format!("round keys of the {of} key"));
        }
        for block in key.as_chunks::<16>().0 {
            self.add(block, &format!("the {of} key"));
        }
    }

    fn add_schedule(&mut self, key: &[u8], of: &str) {
        for (direction, keys) in [("encryption", encrypting(key)), ("decryption", decrypting(key))] {
            for round_key in &keys {
                self.add(round_key, &format!("a round key for {direction} of the {of} key"));
            }
            let ends = xor(keys[0], keys[keys.len() - 1]);
            self.add(&ends, &format!("first ^ last round key of the {of} key"));
        }
    }

    /// Every needle on the stack, by name.
    fn found_on(&self, stack: &DeadStack<'_>) -> Vec<Found> {
        let mut found: HashMap<&str, Found> = HashMap::new();
        for (at, piece) in stack.memory.windows(8).enumerate() {
            let piece = piece.first_chunk().map_or(0, |piece| u64::from_ne_bytes(*piece));
            if piece != 0
                && let Some(name) = self.0.get(&piece)
            {
                let below_bytes = stack.caller_at.saturating_sub(at);
                let entry = found.entry(name).or_insert_with(|| Found { name: name.clone(), count: 0, below_bytes });
                entry.count += 1;
            }
        }
        let mut found: Vec<_> = found.into_values().collect();
        found.sort();
        found
    }
}

/// One shape of call.
#[derive(Clone)]
struct Shape {
    spec: &'static str,
    key: Vec<u8>,
    sector_size: SectorSize,
    sectors: usize,
}

const FIRST_SECTOR: u64 = 0x0102_0304_0506;

impl Shape {
    fn len_bytes(&self) -> usize {
        self.sectors * self.sector_size.bytes() as usize
    }

    /// What must not be found after a call.
    fn needles(&self) -> Needles {
        let cipher = self.spec.split('-').next().unwrap_or_default();
        if cipher == "aes" { self.needles_of_aes() } else { self.needles_of(cipher) }
    }

    /// The same for a cipher that is not AES.
    fn needles_of(&self, cipher: &str) -> Needles {
        let mut needles = Needles::new();
        let xts = self.spec.contains("xts");
        let (data, tweak) = if xts { self.key.split_at(self.key.len() / 2) } else { (&self.key[..], &[][..]) };
        needles.add_state(cipher, data, "data");
        if xts {
            needles.add_state(cipher, tweak, "tweak");
        }
        let salt = Sha256::digest(&self.key);
        let essiv = self.spec.contains("essiv");
        if essiv {
            needles.add_state(cipher, &salt, "ESSIV");
        }
        for mut iv in self.numbers() {
            if essiv {
                iv = encrypted_with(cipher, &salt, iv);
                needles.add(&iv, "an IV of ESSIV");
            }
            if xts {
                needles.add_tweaks(encrypted_with(cipher, tweak, iv), &[], self.sector_size);
            }
        }
        needles
    }

    /// The IVs of `plain64`.
    fn numbers(&self) -> impl Iterator<Item = Block> {
        let step = self.sector_size.bytes() / 512;
        (0..self.sectors as u64).map(move |sector| u128::from(FIRST_SECTOR + sector * u64::from(step)).to_le_bytes())
    }

    fn needles_of_aes(&self) -> Needles {
        let mut needles = Needles::new();
        let xts = self.spec.contains("xts");
        let (data, tweak) = if xts { self.key.split_at(self.key.len() / 2) } else { (&self.key[..], &[][..]) };
        needles.add_schedule(data, "data");
        let ends = {
            let keys = encrypting(data);
            [keys[0], keys[keys.len() - 1]]
        };
        if xts {
            needles.add_schedule(tweak, "tweak");
        }
        let salt = Sha256::digest(&self.key);
        let essiv = self.spec.contains("essiv");
        if essiv {
            needles.add_schedule(&salt, "ESSIV");
        }
        for mut iv in self.numbers() {
            if essiv {
                iv = encrypted(&salt, iv);
                needles.add(&iv, "an IV of ESSIV");
            }
            if xts {
                needles.add_tweaks(encrypted(tweak, iv), &ends, self.sector_size);
            }
        }
        needles
    }
}

impl Needles {
    fn add_tweaks(&mut self, first: Block, ends: &[Block], sector_size: SectorSize) {
        let mut tweak = first;
        for _ in 0..sector_size.bytes() / 16 {
            self.add(&tweak, "a tweak T");
            for end in ends {
                self.add(&xor(tweak, *end), "T ^ round key");
            }
            tweak = doubled(tweak);
        }
    }
}

/// Runs `call` far below the start of a thread on `stack`; that memory afterwards.
///
/// Frames of vector code are aligned to 64 bytes; the call comes from one that is aligned to 16 and at `distance` from such
/// an address.
fn stack_after(stack: &mut Region, distance: usize, call: impl FnOnce() + Send) -> DeadStack<'_> {
    /// Address of its frame's end, about.
    #[inline(never)]
    #[allow(clippy::large_stack_arrays)] // it is what this function is for
    fn far_below<const DEPTH_BYTES: usize>(call: impl FnOnce()) -> usize {
        let depth = [0_u8; DEPTH_BYTES];
        let end = black_box(&depth).as_ptr().addr();
        call();
        black_box(&depth);
        end
    }
    let mut caller = 0;
    stack.bytes().fill(0);
    stack.run_on_it(|| {
        caller = match distance {
            0 => far_below::<DEPTH_BYTES>(call),
            1 => far_below::<{ DEPTH_BYTES + 16 }>(call),
            2 => far_below::<{ DEPTH_BYTES + 32 }>(call),
            _ => far_below::<{ DEPTH_BYTES + 48 }>(call),
        }
    });
    let memory = stack.bytes();
    DeadStack { caller_at: caller - memory.as_ptr().addr(), memory }
}

fn shapes(spec: &'static str, key_bytes: usize) -> Vec<(Shape, Needles)> {
    let mut shapes = Vec::new();
    // In the own kernels one of each size of batch, and a sector alone. The others are slow and take one block at a time.
    let counts: &[usize] = if spec.starts_with("aes") { &[1, 7, 20, 200] } else { &[1, 9] };
    for sector_size in SECTOR_SIZES {
        for &sectors in counts {
            let shape = Shape { spec, key: noise(key_bytes as u64 + 11, key_bytes), sector_size, sectors };
            let needles = shape.needles();
            shapes.push((shape, needles));
        }
    }
    shapes
}

/// Kernel, cipher string and key, call, and what was found: copies in all, the deepest one, sectors of the last call.
type Leaks = BTreeMap<String, (usize, usize, String)>;

/// All four calls, and building the cipher.
fn look_below(stack: &mut Region, kernel: Kernel, shape: &Shape, needles: &Needles, leaks: &mut Leaks) {
    let cipher = built(kernel, shape.spec, &shape.key, shape.sector_size);
    let cipher = cipher.as_ref();
    let source = noise(1, shape.len_bytes());
    let mut target = vec![0; shape.len_bytes()];
    let mut look = |call: &str, stack: DeadStack<'_>| {
        for Found { name, count, below_bytes } in needles.found_on(&stack) {
            let line = format!("{}, {}, key of {} bytes, {call}: {name}", kernel.name(), shape.spec, shape.key.len());
            let (counts, deepest, sectors) = leaks.entry(line).or_default();
            *counts += count;
            *deepest = below_bytes.max(*deepest);
            *sectors = format!("{} × {}", shape.sectors, shape.sector_size.bytes());
        }
    };
    for distance in 0..DISTANCES {
        look("encrypt", stack_after(stack, distance, || cipher.encrypt(FIRST_SECTOR, &source, &mut target)));
        look("encrypt_in_place", stack_after(stack, distance, || cipher.encrypt_in_place(FIRST_SECTOR, &mut target)));
        look("decrypt", stack_after(stack, distance, || cipher.decrypt(FIRST_SECTOR, &source, &mut target)));
        look("decrypt_in_place", stack_after(stack, distance, || cipher.decrypt_in_place(FIRST_SECTOR, &mut target)));
    }
    if shape.sectors == 1 {
        let spec = CipherSpec::parse(shape.spec).unwrap();
        let build = || drop(dmcrypt::build_with(kernel, &spec, &shape.key, shape.sector_size).unwrap());
        look("build", stack_after(stack, 0, build));
    }
}

fn check(kernels: &[Kernel], specs: &[(&'static str, usize)]) {
    let mut stack = Region::new(STACK_BYTES);
    let mut leaks = Leaks::new();
    for &(spec, key_bytes) in specs {
        for (shape, needles) in shapes(spec, key_bytes) {
            for &kernel in kernels {
                look_below(&mut stack, kernel, &shape, &needles, &mut leaks);
            }
        }
    }
    let lines: Vec<String> = leaks
        .iter()
        .map(|(what, (count, deepest, sectors))| {
            format!("{what}: {count} times, up to {deepest} bytes below the caller, last with {sectors}")
        })
        .collect();
    assert!(lines.is_empty(), "secrets left on the stack:\n{}", lines.join("\n"));
}

#[test]
fn xts_leaves_no_secret_on_the_stack() {
    let kernels: Vec<Kernel> = available().collect();
    check(&kernels, &[("aes-xts-plain64", 32), ("aes-xts-plain64", 64)]);
}

#[test]
fn xts_with_essiv_leaves_no_secret_on_the_stack() {
    let kernels: Vec<Kernel> = available().collect();
    check(&kernels, &[("aes-xts-essiv:sha256", 64)]);
}

#[test]
fn cbc_leaves_no_secret_on_the_stack() {
    check(
        &[Kernel::Portable],
        &[("aes-cbc-plain64", 16), ("aes-cbc-plain64", 24), ("aes-cbc-plain64", 32), ("aes-cbc-essiv:sha256", 32)],
    );
}

#[test]
fn the_ciphers_beside_aes_leave_no_secret_on_the_stack() {
    check(
        &[Kernel::Portable],
        &[
            ("serpent-xts-plain64", 64),
            ("serpent-cbc-essiv:sha256", 16),
            ("twofish-xts-plain64", 64),
            ("twofish-cbc-essiv:sha256", 24),
            ("camellia-xts-plain64", 32),
            ("camellia-xts-essiv:sha256", 64),
            ("camellia-cbc-essiv:sha256", 24),
        ],
    );
}

#[test]
fn what_the_ciphers_beside_aes_would_leave_is_found() {
    let mut stack = Region::new(STACK_BYTES);
    for (spec, key_bytes) in [("serpent-xts-plain64", 64), ("twofish-xts-plain64", 64), ("camellia-xts-plain64", 64)] {
        let shape = Shape { spec, key: noise(2, key_bytes), sector_size: SectorSize::S512, sectors: 1 };
        let needles = shape.needles();
        let cipher = spec.split('-').next().unwrap();
        for (left, name) in [
            (state(cipher, &shape.key[..32])[4], "round keys of the data key"),
            (state(cipher, &shape.key[32..])[2], "round keys of the tweak key"),
            (*shape.key[32..].first_chunk().unwrap(), "the tweak key"),
            (encrypted_with(cipher, &shape.key[32..], u128::from(FIRST_SECTOR).to_le_bytes()), "a tweak T"),
        ] {
            let found = needles.found_on(&stack_after(&mut stack, 0, || spill(left)));
            assert!(found.iter().any(|found| found.name == name && found.count >= 2), "{cipher}, {name}: {found:?}");
        }
        assert_eq!(needles.found_on(&stack_after(&mut stack, 0, || spill([0x77; 16]))), []);
    }
}

/// Leaves what it is given in its frame, as a spilled register would be.
#[inline(never)]
fn spill(block: Block) {
    let frame = [block; 4];
    black_box(&frame);
}

#[test]
fn what_is_left_behind_is_found() {
    let shape = Shape { spec: "aes-xts-plain64", key: noise(2, 64), sector_size: SectorSize::S512, sectors: 1 };
    let needles = shape.needles();
    let mut stack = Region::new(STACK_BYTES);
    let (data, tweak) = shape.key.split_at(32);
    let sector_tweak = encrypted(tweak, u128::from(FIRST_SECTOR).to_le_bytes());
    let last = encrypting(data)[14];
    for (left, name) in [
        (encrypting(data)[3], "a round key for encryption of the data key"),
        (decrypting(data)[5], "a round key for decryption of the data key"),
        (encrypting(tweak)[14], "a round key for encryption of the tweak key"),
        (xor(encrypting(data)[0], last), "first ^ last round key of the data key"),
        (doubled(sector_tweak), "a tweak T"),
        (xor(doubled(doubled(sector_tweak)), last), "T ^ round key"),
    ] {
        let found = needles.found_on(&stack_after(&mut stack, 0, || spill(left)));
        assert!(found.iter().any(|found| found.name == name && found.count >= 2), "{name}: {found:?}");
    }
    assert_eq!(needles.found_on(&stack_after(&mut stack, 0, || spill([0x77; 16]))), []);
}
