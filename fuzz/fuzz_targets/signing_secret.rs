#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wire::properties::signing_secret(input));
