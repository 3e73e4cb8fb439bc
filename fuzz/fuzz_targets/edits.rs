//! Fuzzes [`luks_fuzz::edits`]; what it promises stands there.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| luks_fuzz::edits(input));
