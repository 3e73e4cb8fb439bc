//! Fuzzes [`luks_fuzz::round_trip`]; what it promises stands there.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| luks_fuzz::round_trip(input));
