//! Fuzzes [`luks_fuzz::luks1_header`]; what it promises stands there.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| luks_fuzz::luks1_header(input));
