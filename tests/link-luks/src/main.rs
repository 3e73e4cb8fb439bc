//! A container in memory, by a program that links `luks` alone: made, unlocked, written, read, and given a second keyslot.

use std::time::{Duration, Instant};

use block::{BlockIo as _, Bytes, MemDisk};
use luks::env::{Clock, Env, EnvError, MemoryBudget, Rng};
use luks::format::NewKdf;
use luks::{Container, FormatParams, KdfParams, Limits, NewKeyslot, UnlockRequest};
use secret::Secret;

/// What the format crate asks of a machine. The keys here are random ones that need no slow derivation, so clocks and
/// memory are never asked for.
struct Machine(Instant);

impl Rng for Machine {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        getrandom::fill(buf).map_err(|error| EnvError::Random { len_bytes: buf.len(), reason: error.to_string() })
    }
}

impl Clock for Machine {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn process_cpu(&self) -> Duration {
        self.0.elapsed()
    }
}

impl MemoryBudget for Machine {
    fn total(&self) -> Bytes {
        Bytes(1 << 30)
    }

    fn available(&self) -> Bytes {
        Bytes(1 << 29)
    }

    fn free_without_swap(&self) -> Option<Bytes> {
        None
    }

    fn online_cpus(&self) -> u32 {
        1
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine(Instant::now());
    let env = Env { rng: &machine, clock: &machine, memory: &machine };
    let key = |seed: u8| Secret::copy_of(&[seed; 32]);
    let disk = MemDisk::new(Bytes(20 << 20));
    let params = FormatParams { kdf: NewKdf::Given(KdfParams::minimal_for_random_key()), ..FormatParams::default() };
    luks::format::format(&disk, &disk, &env, &params, &key(1)?)?;

    let mut container = Container::open(&disk, &disk, Limits::default())?;
    let volume_key = container.unlock(&env, &UnlockRequest::default(), &key(1)?)?;
    let new = NewKeyslot::new(KdfParams::minimal_for_random_key());
    let keyslot = container.keyslot_add(&env, &volume_key, &key(2)?, &new)?;
    let volume_key = container.unlock(&env, &UnlockRequest::default(), &key(2)?)?;
    let volume = container.into_volume(&volume_key, false)?;
    volume.write_at(Bytes(0), &[0x5a; 4096], true)?;
    let (mut plain, mut raw) = ([0; 4096], [0; 4096]);
    volume.read_at(Bytes(0), &mut plain)?;
    disk.read_at(Bytes(16 << 20), &mut raw)?;
    if plain != [0x5a; 4096] || raw == plain {
        return Err("what was read is not what was written, or it was never encrypted".into());
    }
    println!("keyslot {keyslot} opened a container; its data came back");
    Ok(())
}
