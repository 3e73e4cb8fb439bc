//! Argon2i and Argon2id, version 0x13, without secret or associated data (RFC 9106).
//!
//! The work memory is [`Sheltered`]: it cannot abort the process when it is not there, is kept out of core dumps and
//! swap where the system allows, and is wiped. Lanes run on threads of their own which end with the derivation, after
//! their stacks were scrubbed: the process is left with no thread and no block behind.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use block::Bytes;
use secret::{Secret, Sheltered, scrubbed};

use super::{at_most, check_memory, within};
use crate::env::Env;
use crate::error::Error;
use crate::limits::Limits;
use crate::metadata::keyslot::Argon2Variant;

/// The cost parameters of one derivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Argon2i or Argon2id.
    pub variant: Argon2Variant,
    /// Passes over the memory (t).
    pub time: u32,
    /// Memory in KiB (m).
    pub memory_kib: u32,
    /// Lanes (p), the `cpus` member of the metadata.
    pub lanes: u32,
}

impl Cost {
    /// Holds the numbers against the caller's bounds and the algorithm's own (t ≥ 1, p ≥ 1, m ≥ 8p). Pure arithmetic.
    ///
    /// # Errors
    /// [`Error::KdfLimit`] names the first parameter that does not fit.
    pub fn check(&self, limits: &Limits) -> Result<(), Error> {
        within("cpus", u64::from(self.lanes), 1, u64::from(limits.kdf_lanes.min(Params::MAX_P_COST)))?;
        let least_kib = u64::from(self.lanes) * u64::from(Params::MIN_M_COST);
        within("memory in KiB", u64::from(self.memory_kib), least_kib, u64::from(limits.kdf_memory_kib))?;
        within("time", u64::from(self.time), 1, u64::from(limits.kdf_time))?;
        at_most("memory × time in KiB", u64::from(self.memory_kib) * u64::from(self.time), limits.kdf_total_work_kib)
    }

    /// Work memory of the derivation.
    pub fn memory(&self) -> Bytes {
        Bytes(u64::from(self.memory_kib) * 1024)
    }
}

/// Derives `out_len_bytes` (at least 4) bytes. The caller has run [`Cost::check`]; memory is checked here.
pub(crate) fn derive(
    env: &Env<'_>,
    cost: &Cost,
    salt: &[u8],
    passphrase: &[u8],
    out_len_bytes: usize,
) -> Result<Secret, Error> {
    check_memory(env, cost.memory())?;
    let refused = |reason: argon2::Error| Error::Argon2 { reason };
    let params = Params::new(cost.memory_kib, cost.time, cost.lanes, None).map_err(refused)?;
    let algorithm = match cost.variant {
        Argon2Variant::I => Algorithm::Argon2i,
        Argon2Variant::Id => Algorithm::Argon2id,
    };
    let threads = cost.lanes.min(env.memory.online_cpus()).max(1);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads as usize)
        .thread_name(|_| "argon2".to_owned())
        .build()
        .map_err(|error| Error::Threads { count: threads, reason: error.to_string() })?;
    let mut memory: Sheltered<Block> = Sheltered::new(params.block_count())?;
    let argon2 = Argon2::new(algorithm, Version::V0x13, params);
    let derived = Secret::fill_with(out_len_bytes, |out| {
        let blocks: &mut [Block] = &mut memory;
        pool.install(|| argon2.hash_password_into_with_memory(passphrase, salt, out, blocks)).map_err(refused)
    });
    // Blocks and hash states lie on the dead stacks of the workers; each scrubs its own.
    pool.broadcast(|_| scrubbed(|| ()));
    derived
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::fixed::FixedEnv;
    use crate::hex::hex;

    fn run(variant: Argon2Variant, time: u32, memory_kib: u32, lanes: u32, salt: &[u8], len: usize) -> String {
        let fixed = FixedEnv::new(1, 1);
        let cost = Cost { variant, time, memory_kib, lanes };
        cost.check(&Limits::default()).unwrap();
        hex(derive(&fixed.env(), &cost, salt, b"password", len).unwrap().expose())
    }

    /// From the reference implementation's test set (version 0x13), which RFC 9106 §5 is drawn from; the RFC's own
    /// vectors use a secret and associated data, which LUKS2 has not.
    #[test]
    fn reference_vectors_hold() {
        let cases = [
            (Argon2Variant::I, 2, 1 << 16, 1, "c1628832147d9720c5bd1cfd61367078729f6dfb6f8fea9ff98158e0d7816ed0"),
            (Argon2Variant::I, 2, 1 << 8, 1, "89e9029f4637b295beb027056a7336c414fadd43f6b208645281cb214a56452f"),
            (Argon2Variant::I, 2, 1 << 8, 2, "4ff5ce2769a1d7f4c8a491df09d41a9fbe90e5eb02155a13e4c01e20cd4eab61"),
            (Argon2Variant::Id, 2, 1 << 16, 1, "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"),
            (Argon2Variant::Id, 2, 1 << 8, 1, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
            (Argon2Variant::Id, 2, 1 << 8, 2, "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"),
        ];
        for (variant, time, memory_kib, lanes, expected) in cases {
            assert_eq!(run(variant, time, memory_kib, lanes, b"somesalt", 32), expected);
        }
    }

    /// RFC 9106 §5.2 and §5.3, straight through the same library and memory as [`derive`] uses, with the secret and
    /// associated data that those vectors have.
    #[test]
    fn rfc_9106_vectors_hold() {
        let cases = [
            (Algorithm::Argon2i, "c814d9d1dc7f37aa13f0d77f2494bda1c8de6b016dd388d29952a4c4672b6ce8"),
            (Algorithm::Argon2id, "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"),
        ];
        for (algorithm, expected) in cases {
            let data = argon2::AssociatedData::new(&[4; 12]).unwrap();
            let params = argon2::ParamsBuilder::new().m_cost(32).t_cost(3).p_cost(4).data(data).build().unwrap();
            let mut memory: Sheltered<Block> = Sheltered::new(params.block_count()).unwrap();
            let argon2 = Argon2::new_with_secret(&[3; 8], algorithm, Version::V0x13, params).unwrap();
            let mut out = [0; 32];
            let blocks: &mut [Block] = &mut memory;
            argon2.hash_password_into_with_memory(&[1; 32], &[2; 16], &mut out, blocks).unwrap();
            assert_eq!(hex(&out), expected);
        }
    }

    #[test]
    fn odd_memory_sizes_and_more_lanes_than_cpus_work() {
        assert_ne!(
            run(Argon2Variant::Id, 1, 35, 4, b"somesalt", 64),
            run(Argon2Variant::Id, 1, 32, 4, b"somesalt", 64),
            "the memory cost itself is hashed"
        );
    }
}
