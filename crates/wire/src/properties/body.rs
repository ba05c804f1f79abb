use super::text;
use crate::Operation;
use crate::body;

/// A change that is taken names its key, and is passed on as it was sent; a body that is refused says why.
pub fn body(input: &[u8]) {
    let Some(text) = text(input) else { return };
    let changes = match body::parse(text) {
        Ok(changes) => changes,
        Err(why) => return assert!(!why.is_empty()),
    };
    for change in changes.iter() {
        let truncate = change.operation == Operation::Truncate;
        assert_eq!(change.pk.members.is_empty(), truncate, "only TRUNCATE has no key");
        assert!(uuid::Uuid::try_parse(&change.dedup_key_as_sent) == Ok(change.dedup_key));
        for object in [&change.pk, &change.data].into_iter().chain(&change.old) {
            assert!(text.contains(object.text), "an object is passed on as it was sent");
        }
    }
}
