//! Fuzzes [`luks_fuzz::open_path`]; what it promises stands there.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| luks_fuzz::open_path(input));
