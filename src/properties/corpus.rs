//! The corpus of the fuzzer, without a fuzzer.

use super::*;
use delivery::properties::{address_list, endpoint, keys_of_body, retry_after};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use wire::properties::{answer, body, signing_secret, token};

type Property = fn(&[u8]);

/// The fuzz targets.
const TARGETS: [(&str, Property); 9] = [
    ("address_list", address_list),
    ("answer", answer),
    ("body", body_and_keys),
    ("config", config),
    ("endpoint", endpoint),
    ("kept_token", kept_token),
    ("retry_after", retry_after),
    ("signing_secret", signing_secret),
    ("token", token),
];

/// What `fuzz_targets/body.rs` checks.
fn body_and_keys(input: &[u8]) {
    body(input);
    keys_of_body(input);
}

fn fuzz(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(directory)
}

fn entries(directory: PathBuf) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn names(directory: &str) -> BTreeSet<String> {
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries(fuzz(directory)).into_iter().map(stem).collect()
}

#[test]
fn every_property_has_a_fuzz_target_and_a_corpus() {
    let expected: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), expected);
    assert_eq!(names("corpus"), expected);
}

#[test]
fn what_the_fuzzer_found_holds() {
    for (name, property) in TARGETS {
        for path in entries(fuzz("corpus").join(name)) {
            println!("{}", path.display()); // shown where it fails
            property(&fs::read(path).unwrap());
        }
    }
}
