//! Known answers on every kernel of this machine, and what `build` and the calls refuse.
//!
//! `vectors/sectors.txt` holds whole sectors; `vectors/serpent-nessie.txt` and `vectors/blocks.txt` single blocks of the
//! ciphers beside AES; `vectors/ieee-1619.txt` is annex B of IEEE 1619-2018; `vectors/nist/` has
//! the response files of NIST's validation program. Units shorter than a sector are checked as its first blocks: what
//! XTS makes of a block depends on nothing behind it. Units that end in part of a block cannot occur here; the tests
//! count them.
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use dmcrypt::{Algorithm, CipherError, CipherSpec, Kernel, SectorSize};
use sha2::{Digest, Sha256};

const KEY: [u8; 64] = [0x5a; 64];

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn counting(len_bytes: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len_bytes).collect()
}

fn available() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn check(kernel: Kernel, line: &str) {
    let fields: Vec<&str> = line.split(' ').collect();
    let [name, spec, key, sector_bytes, iv_sector, plain, first, digest] = fields[..] else {
        panic!("malformed vector: {line}");
    };
    let key = match key.strip_prefix("count:") {
        Some(count) => counting(count.parse().unwrap()),
        None => unhex(key),
    };
    let len_bytes: u32 = sector_bytes.parse().unwrap();
    let plain = match plain {
        "zero" => vec![0; len_bytes as usize],
        "count" => counting(len_bytes as usize),
        other => panic!("{name}: plaintext {other:?}"),
    };
    let spec = CipherSpec::parse(spec).unwrap();
    let cipher = dmcrypt::build_with(kernel, &spec, &key, SectorSize::try_from(len_bytes).unwrap()).unwrap();
    let iv_sector = iv_sector.parse().unwrap();
    let mut sector = plain.clone();
    cipher.encrypt_in_place(iv_sector, &mut sector);
    assert_eq!(sector[..16], unhex(first), "{kernel}, {name}: first block");
    assert_eq!(Sha256::digest(&sector).to_vec(), unhex(digest), "{kernel}, {name}: whole sector");
    cipher.decrypt_in_place(iv_sector, &mut sector);
    assert!(sector == plain, "{kernel}, {name}: decryption");
}

#[test]
fn every_vector_holds() {
    let lines = include_str!("vectors/sectors.txt").lines();
    let vectors: Vec<&str> = lines.filter(|line| !line.starts_with('#')).collect();
    assert_eq!(vectors.len(), 56);
    for kernel in available() {
        for vector in &vectors {
            check(kernel, vector);
        }
    }
}

/// One block under the bare cipher, through CBC: in sector 0 of `plain64` the IV is zero, so the first block is just that.
fn check_block(algorithm: Algorithm, key: &[u8], plain: &[u8], encrypted: &[u8]) {
    let spec = CipherSpec::parse(&format!("{}-cbc-plain64", algorithm.name())).unwrap();
    let cipher = dmcrypt::build(&spec, key, SectorSize::S512).unwrap();
    let mut sector = [0x3c; 512];
    sector[..16].copy_from_slice(plain);
    cipher.encrypt_in_place(0, &mut sector);
    assert_eq!(sector[..16], *encrypted, "{algorithm:?}, key of {} bytes: encryption", key.len());
    sector[..16].copy_from_slice(encrypted);
    cipher.decrypt_in_place(0, &mut sector);
    assert_eq!(sector[..16], *plain, "{algorithm:?}, key of {} bytes: decryption", key.len());
}

#[test]
fn the_vectors_of_nessie_hold_for_serpent() {
    let lines = include_str!("vectors/serpent-nessie.txt").lines().filter(|line| !line.starts_with('#'));
    let mut count = 0;
    for line in lines {
        let fields: Vec<Vec<u8>> = line.split(' ').map(unhex).collect();
        let [key, plain, encrypted] = &fields[..] else { panic!("malformed vector: {line}") };
        check_block(Algorithm::Serpent, key, plain, encrypted);
        count += 1;
    }
    assert_eq!(count, 249);
}

#[test]
fn the_vectors_of_twofish_and_camellia_hold() {
    let lines = include_str!("vectors/blocks.txt").lines().filter(|line| !line.starts_with('#'));
    let mut counts = [0, 0];
    for line in lines {
        let (cipher, fields) = line.split_once(' ').unwrap();
        let fields: Vec<Vec<u8>> = fields.split(' ').map(unhex).collect();
        let [key, plain, encrypted] = &fields[..] else { panic!("malformed vector: {line}") };
        let (algorithm, count) = match cipher {
            "twofish" => (Algorithm::Twofish, &mut counts[0]),
            "camellia" => (Algorithm::Camellia, &mut counts[1]),
            other => panic!("{other}"),
        };
        check_block(algorithm, key, plain, encrypted);
        *count += 1;
    }
    assert_eq!(counts, [3 * 49, 3]);
}

/// One data unit of the standard's own tests.
struct Unit {
    name: String,
    key: Vec<u8>,
    sector: u64,
    plain: Vec<u8>,
    encrypted: Vec<u8>,
}

/// Both ways as the first blocks of a sector, alone and as the last of 19 sectors.
fn check_unit(kernel: Kernel, unit: &Unit) {
    const BEFORE: u64 = 18;
    let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
    let cipher = dmcrypt::build_with(kernel, &spec, &unit.key, SectorSize::S512).unwrap();
    let len_bytes = unit.plain.len();
    for before in [0, BEFORE] {
        let first_sector = unit.sector.wrapping_sub(before);
        let at = usize::try_from(before).unwrap() * 512;
        let mut sectors = vec![0x3c; at + 512];
        sectors[at..][..len_bytes].copy_from_slice(&unit.plain);
        cipher.encrypt_in_place(first_sector, &mut sectors);
        assert!(sectors[at..][..len_bytes] == unit.encrypted, "{kernel}, {}: encryption", unit.name);
        sectors[at + len_bytes..].fill(0x3c);
        cipher.decrypt_in_place(first_sector, &mut sectors);
        assert!(sectors[at..][..len_bytes] == unit.plain, "{kernel}, {}: decryption", unit.name);
    }
}

/// Checks those of whole blocks; how many those were, and how many were not.
fn check_units(units: &[Unit]) -> (usize, usize) {
    let (whole, cut): (Vec<&Unit>, Vec<&Unit>) = units.iter().partition(|unit| unit.plain.len().is_multiple_of(16));
    for kernel in available() {
        whole.iter().for_each(|unit| check_unit(kernel, unit));
    }
    (whole.len(), cut.len())
}

#[test]
fn annex_b_of_ieee_1619_holds() {
    let lines = include_str!("vectors/ieee-1619.txt").lines();
    let units = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, key, sector, plain, encrypted] = fields[..] else { panic!("malformed vector: {line}") };
        let (name, sector) = (format!("vector {name}"), sector.parse().unwrap());
        Unit { name, key: unhex(key), sector, plain: unhex(plain), encrypted: unhex(encrypted) }
    });
    // Vectors 15 to 18 have 17 to 20 bytes.
    assert_eq!(check_units(&units.collect::<Vec<_>>()), (15, 4));
}

/// The units of a response file whose length is a number of bytes, and how many were not.
fn nist_units(name: &str, text: &str) -> (Vec<Unit>, usize) {
    let mut units = Vec::new();
    let mut not_bytes = 0;
    for record in text.split("\n\n").filter(|record| record.contains("COUNT = ")) {
        let field = |name: &str| {
            let value = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            value.unwrap_or_else(|| panic!("no {name} in: {record}"))
        };
        let len_bits: usize = field("DataUnitLen").parse().unwrap();
        if !len_bits.is_multiple_of(8) {
            not_bytes += 1;
            continue;
        }
        let unit = Unit {
            name: format!("{name}, count {}", field("COUNT")),
            key: unhex(field("Key")),
            sector: field("DataUnitSeqNumber").parse().unwrap(),
            plain: unhex(field("PT")),
            encrypted: unhex(field("CT")),
        };
        assert_eq!(unit.plain.len(), len_bits / 8, "{}", unit.name);
        units.push(unit);
    }
    (units, not_bytes)
}

#[test]
fn the_response_files_of_nist_hold() {
    // Of 1000 each: 600 of whole blocks, 200 of whole bytes that would need ciphertext stealing, 200 of odd bits.
    let (units, not_bytes) = nist_units("XTSGenAES128", include_str!("vectors/nist/XTSGenAES128.rsp"));
    assert_eq!((check_units(&units), not_bytes), ((600, 200), 200));
    let (units, not_bytes) = nist_units("XTSGenAES256", include_str!("vectors/nist/XTSGenAES256.rsp"));
    assert_eq!((check_units(&units), not_bytes), ((600, 0), 400));
}

#[test]
fn sectors_of_4096_count_ivs_in_512_byte_units() {
    let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
    let cipher = dmcrypt::build(&spec, &counting(64), SectorSize::S4096).unwrap();
    let mut run = vec![0; 3 * 4096];
    cipher.encrypt_in_place(0, &mut run);
    // The second sector is the vector of IV 8.
    assert_eq!(run[4096..4112], unhex("32557c9efcea00dfdf521bbc053d1a7b"));
}

#[test]
fn key_sizes_are_refused_by_name() {
    for (mode, good) in [("xts-plain64", &[32, 48, 64][..]), ("cbc-essiv:sha256", &[16, 24, 32])] {
        for algorithm in Algorithm::ALL {
            check_key_sizes(&format!("{}-{mode}", algorithm.name()), good);
        }
    }
}

fn check_key_sizes(spec: &str, good: &[usize]) {
    let spec = CipherSpec::parse(spec).unwrap();
    assert_eq!(spec.key_sizes(), good);
    for kernel in available() {
        for len_bytes in 0..=KEY.len() {
            let built = dmcrypt::build_with(kernel, &spec, &KEY[..len_bytes], SectorSize::S512);
            match built {
                Ok(_) => assert!(good.contains(&len_bytes), "{spec}: {len_bytes} bytes accepted"),
                Err(CipherError::KeySize { spec: named, got_bytes, allowed }) => {
                    assert!(!good.contains(&len_bytes), "{spec}: {len_bytes} bytes refused");
                    assert_eq!((named, got_bytes, allowed), (spec.to_string(), len_bytes, good));
                }
                Err(other) => panic!("{spec}: {other}"),
            }
        }
    }
}

#[test]
fn equal_xts_halves_are_allowed() {
    let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
    assert!(dmcrypt::build(&spec, &KEY, SectorSize::S512).is_ok());
}

#[test]
fn an_empty_run_is_no_work() {
    let spec = CipherSpec::parse("aes-cbc-plain64").unwrap();
    let cipher = dmcrypt::build(&spec, &KEY[..32], SectorSize::S4096).unwrap();
    cipher.encrypt_in_place(0, &mut []);
    cipher.decrypt(u64::MAX, &[], &mut []);
}

#[test]
#[should_panic(expected = "not whole sectors of 4096")]
fn part_of_a_sector_is_a_bug_of_the_caller() {
    let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
    let cipher = dmcrypt::build(&spec, &KEY, SectorSize::S4096).unwrap();
    cipher.encrypt_in_place(0, &mut [0; 512]);
}

#[test]
#[should_panic(expected = "source of 512 bytes, destination of 1024")]
fn unequal_lengths_are_a_bug_of_the_caller() {
    let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
    let cipher = dmcrypt::build(&spec, &KEY, SectorSize::S512).unwrap();
    cipher.encrypt(0, &[0; 512], &mut [0; 1024]);
}
