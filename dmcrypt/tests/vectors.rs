//! Known answers (`vectors/sectors.txt`), and what `build` and the calls refuse.
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use dmcrypt::{CipherError, CipherSpec, SectorSize};
use sha2::{Digest, Sha256};

const KEY: [u8; 64] = [0x5a; 64];

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn counting(len_bytes: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len_bytes).collect()
}

fn check(line: &str) {
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
    let cipher = dmcrypt::build(&spec, &key, SectorSize::try_from(len_bytes).unwrap()).unwrap();
    let iv_sector = iv_sector.parse().unwrap();
    let mut sector = plain.clone();
    cipher.encrypt_in_place(iv_sector, &mut sector);
    assert_eq!(sector[..16], unhex(first), "{name}: first block");
    assert_eq!(Sha256::digest(&sector).to_vec(), unhex(digest), "{name}: whole sector");
    cipher.decrypt_in_place(iv_sector, &mut sector);
    assert!(sector == plain, "{name}: decryption");
}

#[test]
fn every_vector_holds() {
    let lines = include_str!("vectors/sectors.txt").lines();
    let vectors: Vec<&str> = lines.filter(|line| !line.starts_with('#')).collect();
    assert_eq!(vectors.len(), 19);
    for vector in vectors {
        check(vector);
    }
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
    for (spec, good) in [("aes-xts-plain64", &[32, 64][..]), ("aes-cbc-essiv:sha256", &[16, 24, 32])] {
        let spec = CipherSpec::parse(spec).unwrap();
        assert_eq!(spec.key_sizes(), good);
        for len_bytes in 0..=KEY.len() {
            let built = dmcrypt::build(&spec, &KEY[..len_bytes], SectorSize::S512);
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
