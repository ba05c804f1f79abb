#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sync_outbox::properties::kept_token(input));
