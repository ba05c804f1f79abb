#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| delivery::properties::address_list(input));
