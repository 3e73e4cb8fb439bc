//! Every mode of every cipher against an independent implementation of it: xts-mode for XTS, a block-at-a-time CBC
//! written here.
//!
//! Runs of random length (0 to 200 sectors, so that full and partial batches occur), all sector sizes, both ways, in
//! place and out of place, from random sector numbers including the wraps at 2^32 and 2^64. The sweep leaves nothing to
//! chance: every count from 1 to 200 for each kernel, sector size, key size and direction.
//!
//! `PROPTEST_CASES` sets the number of random cases, `DMCRYPT_SWEEP_STEP` takes every n-th count: for emulated machines.
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

#[path = "support/noise.rs"]
mod noise;

use aes::cipher::consts::U16;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use camellia::{Camellia128, Camellia192, Camellia256};
use dmcrypt::{CipherSpec, Kernel, SectorCipher, SectorSize};
use noise::noise;
use proptest::prelude::*;
use serpent::Serpent;
use sha2::{Digest, Sha256};
use twofish::Twofish;
use xts_mode::Xts128;

/// One random case.
#[derive(Debug, Clone)]
struct Case {
    cipher: &'static str,
    mode: &'static str,
    iv: &'static str,
    key: Vec<u8>,
    sector_size: SectorSize,
    iv_sector: u64,
    plain: Vec<u8>,
}

/// Cases of up to `max_sectors` sectors.
fn cases(ciphers: &'static [&'static str], max_sectors: usize) -> impl Strategy<Value = Case> {
    let shape = (
        (
            prop::sample::select(ciphers),
            prop::sample::select(vec![("xts", 32), ("xts", 48), ("xts", 64), ("cbc", 16), ("cbc", 24), ("cbc", 32)]),
        ),
        prop_oneof![Just("plain"), Just("plain64"), Just("essiv:sha256")],
        prop_oneof![Just(SectorSize::S512), Just(SectorSize::S1024), Just(SectorSize::S2048), Just(SectorSize::S4096),],
        prop_oneof![
            0_u64..1000,
            any::<u64>(),
            (0_u64..600).prop_map(|back| (1 << 32) - back),
            (0_u64..600).prop_map(|back| u64::MAX - back),
        ],
        prop_oneof![0_usize..12, 0..=max_sectors],
    );
    shape.prop_flat_map(|((cipher, (mode, key_bytes)), iv, sector_size, iv_sector, sectors)| {
        let len_bytes = sectors * sector_size.bytes() as usize;
        let bytes = any::<u64>().prop_map(move |seed| noise(seed, len_bytes));
        (prop::collection::vec(any::<u8>(), key_bytes), bytes).prop_map(move |(key, plain)| Case {
            cipher,
            mode,
            iv,
            key,
            sector_size,
            iv_sector,
            plain,
        })
    })
}

/// The IV block as the kernel's document words it.
fn oracle_iv<E: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>>(
    iv: &str,
    key: &[u8],
    number: u64,
) -> [u8; 16] {
    let mut block = [0; 16];
    match iv {
        "plain" => block[..4].copy_from_slice(&number.to_le_bytes()[..4]),
        _ => block[..8].copy_from_slice(&number.to_le_bytes()),
    }
    if iv == "essiv:sha256" {
        let mut block = block.into();
        E::new_from_slice(&Sha256::digest(key)).unwrap().encrypt_block(&mut block);
        return block.into();
    }
    block
}

fn oracle_xts<C>(key: &[u8], iv: [u8; 16], sector: &mut [u8])
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
{
    let (data, tweak) = key.split_at(key.len() / 2);
    let xts = Xts128::new(C::new_from_slice(data).unwrap(), C::new_from_slice(tweak).unwrap());
    xts.encrypt_sector(sector, iv.into());
}

fn oracle_cbc<C: KeyInit + BlockCipherEncrypt>(key: &[u8], iv: [u8; 16], sector: &mut [u8]) {
    let cipher = C::new_from_slice(key).unwrap();
    let mut chain = iv.to_vec();
    for piece in sector.chunks_mut(16) {
        let mut block = Block::<C>::default();
        for (out, (plain, chain)) in block.iter_mut().zip(piece.iter().zip(&chain)) {
            *out = plain ^ chain;
        }
        cipher.encrypt_block(&mut block);
        piece.copy_from_slice(&block);
        chain = piece.to_vec();
    }
}

/// What dm-crypt would have on disk.
fn oracle(case: &Case) -> Vec<u8> {
    let halves = if case.mode == "xts" { 2 } else { 1 };
    match (case.cipher, case.key.len() / halves) {
        ("aes", 16) => oracle_with::<Aes128, Aes256>(case),
        ("aes", 24) => oracle_with::<Aes192, Aes256>(case),
        ("aes", 32) => oracle_with::<Aes256, Aes256>(case),
        ("serpent", _) => oracle_with::<Serpent, Serpent>(case),
        ("twofish", _) => oracle_with::<Twofish, Twofish>(case),
        ("camellia", 16) => oracle_with::<Camellia128, Camellia256>(case),
        ("camellia", 24) => oracle_with::<Camellia192, Camellia256>(case),
        ("camellia", 32) => oracle_with::<Camellia256, Camellia256>(case),
        other => unreachable!("{other:?}"),
    }
}

/// The same with the cipher `C` and, for ESSIV, `E`.
fn oracle_with<C, E>(case: &Case) -> Vec<u8>
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
    E: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
{
    let sector_bytes = case.sector_size.bytes() as usize;
    let mut bytes = case.plain.clone();
    for (n, sector) in bytes.chunks_mut(sector_bytes).enumerate() {
        let number = case.iv_sector.wrapping_add((n * sector_bytes / 512) as u64);
        let iv = oracle_iv::<E>(case.iv, &case.key, number);
        match case.mode {
            "xts" => oracle_xts::<C>(&case.key, iv, sector),
            _ => oracle_cbc::<C>(&case.key, iv, sector),
        }
    }
    bytes
}

/// The cipher on every kernel that this machine can run; those beside AES have but one.
fn built(case: &Case) -> Vec<(Kernel, Box<dyn SectorCipher>)> {
    let spec = CipherSpec::parse(&format!("{}-{}-{}", case.cipher, case.mode, case.iv)).unwrap();
    let kernels: &[Kernel] = if case.cipher == "aes" { &Kernel::ALL } else { &[Kernel::Portable] };
    let available = kernels.iter().copied().filter(|kernel| kernel.is_available());
    available.map(|kernel| (kernel, dmcrypt::build_with(kernel, &spec, &case.key, case.sector_size).unwrap())).collect()
}

/// Where the sweep's runs start: the counts rotate through them, and 200 sectors of 512 bytes pass each wrap.
const STARTS: [u64; 5] = [0, (1 << 32) - 77, u64::MAX, u64::MAX - 99, 0x0123_4567_89ab_cdef];

/// Both ways, in place and out of place, `count` sectors from `case.iv_sector`; `encrypted` is the oracle's answer.
fn check_count(kernel: Kernel, cipher: &dyn SectorCipher, case: &Case, encrypted: &[u8], count: usize) {
    let len_bytes = count * case.sector_size.bytes() as usize;
    let (plain, encrypted) = (&case.plain[..len_bytes], &encrypted[..len_bytes]);
    let what = || format!("{kernel}, {count} sectors of {:?} from {}", case.sector_size, case.iv_sector);
    let mut bytes = vec![0xa5; len_bytes + 64];
    let bytes = &mut bytes[count % 64..][..len_bytes];
    cipher.encrypt(case.iv_sector, plain, bytes);
    assert!(bytes == encrypted, "{}: encrypt", what());
    cipher.decrypt_in_place(case.iv_sector, bytes);
    assert!(bytes == plain, "{}: decrypt_in_place", what());
    cipher.encrypt_in_place(case.iv_sector, bytes);
    assert!(bytes == encrypted, "{}: encrypt_in_place", what());
    bytes.fill(0xa5);
    cipher.decrypt(case.iv_sector, encrypted, bytes);
    assert!(bytes == plain, "{}: decrypt", what());
}

#[test]
fn every_count_of_every_shape_equals_the_oracle() {
    const MAX_COUNT: usize = 200;
    let step = std::env::var("DMCRYPT_SWEEP_STEP").map_or(1, |step| step.parse().unwrap());
    for sector_size in [SectorSize::S512, SectorSize::S1024, SectorSize::S2048, SectorSize::S4096] {
        for key_bytes in [32, 64] {
            let cases = STARTS.map(|iv_sector| {
                let plain = noise(iv_sector ^ 0x5eed, MAX_COUNT * sector_size.bytes() as usize);
                let key = noise(key_bytes as u64 ^ iv_sector, key_bytes);
                let case = Case { cipher: "aes", mode: "xts", iv: "plain64", key, sector_size, iv_sector, plain };
                let encrypted = oracle(&case);
                (built(&case), case, encrypted)
            });
            for count in (1..=MAX_COUNT).step_by(step) {
                let (ciphers, case, encrypted) = &cases[count % STARTS.len()];
                for (kernel, cipher) in ciphers {
                    check_count(*kernel, cipher.as_ref(), case, encrypted, count);
                }
            }
        }
    }
}

/// So many cases unless the environment says another number.
fn cases_from_environment(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    ProptestConfig { cases, ..default }
}

/// All four calls, on neither source nor destination aligned to anything.
fn check_both_ways(case: &Case, shift: usize) -> Result<(), TestCaseError> {
    let expected = oracle(case);
    for (kernel, cipher) in built(case) {
        let mut out = vec![0xa5; case.plain.len() + 128];
        let out = &mut out[64 - shift..][..case.plain.len()];
        let mut in_place = vec![0; shift];
        in_place.extend_from_slice(&case.plain);
        let in_place = &mut in_place[shift..];

        cipher.encrypt(case.iv_sector, in_place, out);
        prop_assert!(out == expected, "{kernel}: encrypt");
        cipher.encrypt_in_place(case.iv_sector, in_place);
        prop_assert!(in_place == expected, "{kernel}: encrypt_in_place");

        cipher.decrypt(case.iv_sector, in_place, out);
        prop_assert!(out == case.plain, "{kernel}: decrypt");
        cipher.decrypt_in_place(case.iv_sector, in_place);
        prop_assert!(in_place == case.plain, "{kernel}: decrypt_in_place");
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases_from_environment(400))]

    #[test]
    fn bytes_equal_the_oracle_both_ways(case in cases(&["aes"], 200), shift in 0_usize..64) {
        check_both_ways(&case, shift)?;
    }

    #[test]
    fn a_run_may_be_cut_at_any_sector(case in cases(&["aes"], 200), cut in any::<prop::sample::Index>()) {
        let sector_bytes = case.sector_size.bytes() as usize;
        let sectors = case.plain.len() / sector_bytes;
        let cut_sectors = cut.index(sectors + 1);
        for (kernel, cipher) in built(&case) {
            let mut whole = case.plain.clone();
            cipher.encrypt_in_place(case.iv_sector, &mut whole);
            let mut parts = case.plain.clone();
            let (first, second) = parts.split_at_mut(cut_sectors * sector_bytes);
            let second_sector = case.iv_sector.wrapping_add((cut_sectors * sector_bytes / 512) as u64);
            cipher.encrypt_in_place(second_sector, second);
            cipher.encrypt_in_place(case.iv_sector, first);
            prop_assert!(whole == parts, "{kernel}");
        }
    }
}

proptest! {
    // Batches of 64 sectors end within 70.
    #![proptest_config(cases_from_environment(200))]

    #[test]
    fn the_ciphers_beside_aes_equal_the_oracle(
        case in cases(&["serpent", "twofish", "camellia"], 70),
        shift in 0_usize..64,
    ) {
        check_both_ways(&case, shift)?;
    }
}
