//! The anti-forensic splitter. Input: hash, seed, then the key, whose bytes repeated are also taken as stripes.

use luks::HashAlg;
use luks::af::{STRIPES, merge, split};
use secret::Secret;

use super::Rules;
use super::surroundings::Surroundings;

/// Longest key tried: more than a block of any hash, and short enough for many runs in a second.
const KEY_MAX: usize = 80;

pub(crate) fn run(input: &[u8]) -> Rules {
    let &[hash, seed, ref key @ ..] = input else { return Rules::new() };
    let hashes: Vec<HashAlg> = HashAlg::all().collect();
    let alg = hashes[usize::from(hash) % hashes.len()];
    let key = &key[..key.len().min(KEY_MAX)];
    if key.is_empty() {
        assert!(merge(alg, 0, &[0; STRIPES]).is_err(), "no key has no bytes");
        return Rules::new();
    }
    undone_by_merge(alg, seed, key);
    arbitrary_stripes(alg, seed, key);
    Rules::new()
}

fn undone_by_merge(alg: HashAlg, seed: u8, key: &[u8]) {
    let surroundings = Surroundings::new(u64::from(seed));
    let secret = Secret::copy_of(key).expect("memory");
    let stripes = split(alg, &secret, surroundings.env().rng).expect("split");
    assert_eq!(stripes.len(), key.len() * STRIPES);
    let merged = merge(alg, key.len(), stripes.expose()).expect("merge");
    assert!(merged.ct_eq(key), "{} loses a key of {} bytes", alg.name(), key.len());
}

fn arbitrary_stripes(alg: HashAlg, seed: u8, key: &[u8]) {
    let padding = usize::from(seed) * 2;
    let mut stripes: Vec<u8> = key.iter().copied().cycle().take(key.len() * STRIPES + padding).collect();
    let first = merge(alg, key.len(), &stripes).expect("enough stripes");
    for byte in stripes.iter_mut().rev().take(padding) {
        *byte = !*byte;
    }
    let second = merge(alg, key.len(), &stripes).expect("enough stripes");
    assert!(first.ct_eq(second.expose()), "{}: padding or chance in the key", alg.name());
    assert!(merge(alg, key.len(), &stripes[..key.len() * STRIPES - 1]).is_err(), "one byte short");
}
