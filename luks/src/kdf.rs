//! Key derivation: from a passphrase to the key of a keyslot's area.
//!
//! A header is hostile input and its costs are orders to work: every number is held against [`Limits`], and Argon2's
//! memory against what the machine can give now, **before** anything is allocated or computed.
//!
//! [`KdfParams`] is the writing side: parameters that were measured, or forced and within the floors, so that a
//! passphrase is never protected by less than cryptsetup allows.
//!
//! Source: LUKS2 format specification 1.1.4 (`kdf` object); luks2-format §3.1 and §3.6.

pub mod argon2;
pub mod pbkdf2;

use block::Bytes;
use secret::Secret;

use crate::env::Env;
use crate::error::Error;
use crate::hash::HashAlg;
use crate::json::{decode_base64, encode_base64};
use crate::limits::{Limits, PBKDF2_ITERATIONS_MAX};
use crate::metadata::keyslot::{Argon2Variant, Kdf};

/// Length of the salt of every keyslot and digest, in bytes.
pub const SALT_BYTES: usize = 32;
/// Fewest PBKDF2 iterations that are ever written.
pub const PBKDF2_ITERATIONS_MIN: u32 = 1000;
/// Fewest Argon2 passes that are ever written.
pub const ARGON2_TIME_MIN: u32 = 4;
/// Least Argon2 memory that is ever written, in KiB.
pub const ARGON2_MEMORY_MIN_KIB: u32 = 32;
/// Most Argon2 memory that is ever written, in KiB.
pub const ARGON2_MEMORY_MAX_KIB: u32 = 4 << 20;
/// Most Argon2 lanes that are ever written.
pub const ARGON2_LANES_MAX: u32 = 4;

/// Derives `out_len_bytes` bytes from `passphrase` as `kdf` demands.
///
/// # Errors
/// Before any work: [`Error::KdfLimit`] for a cost beyond `limits` or impossible for the algorithm,
/// [`Error::Memory`] when Argon2 needs more than is available, [`Error::Salt`], [`Error::UnknownHash`],
/// [`Error::UnknownKdf`]. Then [`Error::Secret`] or [`Error::Threads`] when the system refuses memory or threads.
pub fn derive(
    env: &Env<'_>,
    limits: &Limits,
    kdf: &Kdf,
    passphrase: &Secret,
    out_len_bytes: usize,
) -> Result<Secret, Error> {
    at_most("output bytes", out_len_bytes as u64, u64::from(limits.key_bytes))?;
    match kdf {
        Kdf::Pbkdf2 { hash, iterations, salt, .. } => {
            let hash = HashAlg::parse(hash)?;
            pbkdf2::check(limits, *iterations)?;
            pbkdf2::derive(hash, *iterations, &decode_salt(salt)?, passphrase, out_len_bytes)
        }
        Kdf::Argon2 { variant, time, memory_kib, cpus, salt, .. } => {
            let cost = argon2::Cost { variant: *variant, time: *time, memory_kib: *memory_kib, lanes: *cpus };
            cost.check(limits)?;
            let salt = decode_salt(salt)?;
            argon2::derive(env, &cost, &salt, passphrase.expose(), out_len_bytes)
        }
        Kdf::Other { type_name, .. } => Err(Error::UnknownKdf { type_name: type_name.clone() }),
    }
}

/// Decodes a salt and holds it to the length that LUKS2 prescribes.
pub(crate) fn decode_salt(text: &str) -> Result<Vec<u8>, Error> {
    match decode_base64(text) {
        Some(salt) if salt.len() == SALT_BYTES => Ok(salt),
        Some(salt) => Err(Error::Salt { len_bytes: Some(salt.len()) }),
        None => Err(Error::Salt { len_bytes: None }),
    }
}

/// A fresh random salt as metadata carries it.
pub(crate) fn fresh_salt(env: &Env<'_>) -> Result<String, Error> {
    let mut salt = [0; SALT_BYTES];
    env.rng.fill(&mut salt)?;
    Ok(encode_base64(&salt))
}

fn at_most(parameter: &'static str, value: u64, max: u64) -> Result<(), Error> {
    if value <= max { Ok(()) } else { Err(Error::KdfLimit { parameter, value, min: 0, max }) }
}

fn within(parameter: &'static str, value: u64, min: u64, max: u64) -> Result<(), Error> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(Error::KdfLimit { parameter, value, min, max }) }
}

/// What an unlock takes beside the memory of its derivation: keyslot material, stacks, a read-ahead.
const MEMORY_SPARE: Bytes = Bytes::from_mib(4);

/// Refuses what the machine cannot give now.
pub(crate) fn check_memory(env: &Env<'_>, needed: Bytes) -> Result<(), Error> {
    let available = env.memory.available();
    if needed.0.saturating_add(MEMORY_SPARE.0) <= available.0 {
        Ok(())
    } else {
        Err(Error::Memory { needed, available })
    }
}

/// Parameters for a new keyslot, without its salt. Made only by [`calibrate`](crate::calibrate::calibrate), which holds
/// the floors, and by [`minimal_for_random_key`](Self::minimal_for_random_key).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KdfParams(pub(crate) Params);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Params {
    Pbkdf2 { hash: HashAlg, iterations: u32 },
    Argon2(argon2::Cost),
}

impl KdfParams {
    /// PBKDF2 at its floor, for keys that a machine drew at random: guessing 256 random bits needs no slowing down.
    /// Never for something a person chose.
    pub fn minimal_for_random_key() -> KdfParams {
        KdfParams(Params::Pbkdf2 { hash: HashAlg::Sha256, iterations: PBKDF2_ITERATIONS_MIN })
    }

    /// PBKDF2 with `iterations`, refused below the floor and above what [`Limits`] let unlock by default.
    pub(crate) fn pbkdf2(hash: HashAlg, iterations: u32) -> Result<KdfParams, Error> {
        within(
            "iterations",
            u64::from(iterations),
            u64::from(PBKDF2_ITERATIONS_MIN),
            u64::from(PBKDF2_ITERATIONS_MAX),
        )?;
        Ok(KdfParams(Params::Pbkdf2 { hash, iterations }))
    }

    /// Argon2 at `cost`, refused outside the floors and ceilings of luks2-format §3.6 and above the default [`Limits`].
    pub(crate) fn argon2(cost: argon2::Cost) -> Result<KdfParams, Error> {
        within("time", u64::from(cost.time), u64::from(ARGON2_TIME_MIN), u64::from(u32::MAX))?;
        let (min, max) = (u64::from(ARGON2_MEMORY_MIN_KIB), u64::from(ARGON2_MEMORY_MAX_KIB));
        within("memory in KiB", u64::from(cost.memory_kib), min, max)?;
        within("cpus", u64::from(cost.lanes), 1, u64::from(ARGON2_LANES_MAX))?;
        cost.check(&Limits::default())?;
        Ok(KdfParams(Params::Argon2(cost)))
    }

    /// The hash for the anti-forensic splitter and digest that goes with these parameters: PBKDF2's own, else SHA-256.
    pub fn hash(&self) -> HashAlg {
        match self.0 {
            Params::Pbkdf2 { hash, .. } => hash,
            Params::Argon2(_) => HashAlg::Sha256,
        }
    }

    /// The `kdf` object of a new keyslot, with a fresh salt of 32 bytes.
    ///
    /// # Errors
    /// [`Error::Env`] when the random source fails.
    pub fn kdf(&self, env: &Env<'_>) -> Result<Kdf, Error> {
        let salt = fresh_salt(env)?;
        Ok(match &self.0 {
            Params::Pbkdf2 { hash, iterations } => {
                Kdf::Pbkdf2 { hash: hash.name().to_owned(), iterations: *iterations, salt }
            }
            Params::Argon2(cost) => Kdf::Argon2 {
                variant: cost.variant,
                time: cost.time,
                memory_kib: cost.memory_kib,
                cpus: cost.lanes,
                salt,
            },
        })
    }
}

impl std::fmt::Display for KdfParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Params::Pbkdf2 { hash, iterations } => write!(f, "pbkdf2-{}, {iterations} iterations", hash.name()),
            Params::Argon2(cost) => {
                let name = match cost.variant {
                    Argon2Variant::I => "argon2i",
                    Argon2Variant::Id => "argon2id",
                };
                write!(f, "{name}, time {}, memory {} KiB, cpus {}", cost.time, cost.memory_kib, cost.lanes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::fixed::FixedEnv;

    const SALT: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn argon2(time: u32, memory_kib: u32, cpus: u32) -> Kdf {
        Kdf::Argon2 { variant: Argon2Variant::Id, time, memory_kib, cpus, salt: SALT.to_owned() }
    }

    fn pbkdf2(hash: &str, iterations: u32, salt: &str) -> Kdf {
        Kdf::Pbkdf2 { hash: hash.to_owned(), iterations, salt: salt.to_owned() }
    }

    fn refused(kdf: &Kdf, limits: &Limits) -> (Error, u32) {
        let fixed = FixedEnv::new(1, 1);
        let passphrase = Secret::copy_of(b"pass").unwrap();
        let error = match derive(&fixed.env(), limits, kdf, &passphrase, 64) {
            Err(error) => error,
            Ok(_) => panic!("{kdf:?} was derived"),
        };
        (error, fixed.touched())
    }

    /// Each cost over its bound is named, and neither memory nor clock was even asked about.
    #[test]
    fn hostile_costs_are_refused_before_the_machine_is_asked() {
        let limits = Limits { kdf_iterations: 50_000_000, ..Limits::default() };
        let cases = [
            (argon2(4, u32::MAX, 4), "memory in KiB"),
            (argon2(4, (4 << 20) + 1, 4), "memory in KiB"),
            (argon2(u32::MAX, 64, 1), "time"),
            (argon2(9_999, 4 << 20, 4), "memory × time in KiB"),
            (argon2(4, 1 << 20, u32::MAX), "cpus"),
            (argon2(4, 1 << 20, 0), "cpus"),
            (argon2(0, 1 << 20, 1), "time"),
            (argon2(4, 31, 4), "memory in KiB"),
            (argon2(4, 0, 1), "memory in KiB"),
            (pbkdf2("sha256", u32::MAX, SALT), "iterations"),
            (pbkdf2("sha256", 0, SALT), "iterations"),
        ];
        for (kdf, expected) in cases {
            let (error, touched) = refused(&kdf, &limits);
            assert!(matches!(&error, Error::KdfLimit { parameter, .. } if *parameter == expected), "{kdf:?}: {error}");
            assert_eq!(touched, 0, "{kdf:?}");
        }
    }

    #[test]
    fn memory_that_is_not_there_is_a_named_error() {
        let mut fixed = FixedEnv::new(1, 1);
        fixed.available = Bytes(64 << 20);
        let passphrase = Secret::copy_of(b"pass").unwrap();
        let kdf = argon2(4, (64 << 10) + 1, 4);
        let error = derive(&fixed.env(), &Limits::default(), &kdf, &passphrase, 64).err();
        assert!(
            matches!(error, Some(Error::Memory { needed, available })
                if needed == Bytes((64 << 20) + 1024) && available == Bytes(64 << 20)),
            "{error:?}"
        );
    }

    #[test]
    fn bad_salts_hashes_and_kdfs_are_named_errors() {
        let limits = Limits::default();
        for salt in ["", "AAAA", "!!!!", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg=="] {
            assert!(matches!(refused(&pbkdf2("sha256", 1000, salt), &limits).0, Error::Salt { .. }), "{salt}");
        }
        assert!(matches!(refused(&pbkdf2("md4", 1000, SALT), &limits).0, Error::UnknownHash { .. }));
    }

    #[test]
    fn parameters_below_the_floors_cannot_be_made() {
        let cost = |time, memory_kib, lanes| argon2::Cost { variant: Argon2Variant::Id, time, memory_kib, lanes };
        for cost in [cost(3, 64, 1), cost(4, 31, 1), cost(4, 64, 0), cost(4, 64, 5), cost(4, (4 << 20) + 1, 1)] {
            assert!(matches!(KdfParams::argon2(cost.clone()), Err(Error::KdfLimit { .. })), "{cost:?}");
        }
        assert!(KdfParams::argon2(cost(4, 32, 4)).is_ok());
        assert!(matches!(KdfParams::pbkdf2(HashAlg::Sha1, 999), Err(Error::KdfLimit { .. })));
        assert!(KdfParams::pbkdf2(HashAlg::Sha1, 1000).is_ok());
    }

    #[test]
    fn a_new_kdf_object_has_a_fresh_salt_that_can_be_used() {
        let fixed = FixedEnv::new(7, 1);
        let params = KdfParams::minimal_for_random_key();
        let (first, second) = (params.kdf(&fixed.env()).unwrap(), params.kdf(&fixed.env()).unwrap());
        let passphrase = Secret::copy_of(b"pass").unwrap();
        let derived = |kdf| derive(&fixed.env(), &Limits::default(), kdf, &passphrase, 64).unwrap();
        assert!(!derived(&first).ct_eq(derived(&second).expose()));
        assert!(derived(&first).ct_eq(derived(&first).expose()));
    }
}
