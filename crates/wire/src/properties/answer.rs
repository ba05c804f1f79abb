use crate::answer::{Answer, Verdict};
use serde_json::Value;
use std::collections::HashSet;
use uuid::Uuid;

/// Nothing counts as acknowledged that the answer does not name in `acked`, or that it names in `errors` or `conflicts`
/// as well.
pub fn answer(body: &[u8]) {
    let (Some(answer), Ok(json)) = (Answer::parse(body), serde_json::from_slice::<Value>(body)) else { return };
    let acked = keys(&json["acked"]);
    for key in keys(&json) {
        assert!(acked.contains(&key) || answer.verdict(&key) != Verdict::Acked, "{key} is not in acked");
    }
    for member in ["errors", "conflicts"] {
        for key in json[member].as_array().into_iter().flatten().filter_map(key) {
            assert_ne!(answer.verdict(&key), Verdict::Acked, "{key} is in {member}");
        }
    }
}

/// The key that an entry names, alone or as the member of an object.
fn key(entry: &Value) -> Option<Uuid> {
    let name = entry.as_str().or_else(|| entry["dedup_key"].as_str())?;
    Uuid::try_parse(name).ok()
}

/// Every key that stands anywhere in `json`.
fn keys(json: &Value) -> HashSet<Uuid> {
    match json {
        Value::String(text) => Uuid::try_parse(text).into_iter().collect(),
        Value::Array(list) => list.iter().flat_map(keys).collect(),
        Value::Object(members) => members.values().flat_map(keys).collect(),
        _ => HashSet::new(),
    }
}
