//! Fuzzes [`luks_fuzz::nbd`]; what it promises stands there.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| luks_fuzz::nbd(input));
