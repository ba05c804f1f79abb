#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    wire::properties::body(input);
    delivery::properties::keys_of_body(input);
});
