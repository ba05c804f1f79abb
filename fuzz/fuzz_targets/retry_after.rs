#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| delivery::properties::retry_after(input));
