//! The target `lists` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::lists(input));
