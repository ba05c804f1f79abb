//! Reading a body.
//!
//! The parts of a change that a table's columns decide about (`pk`, `data`, `old`) stay JSON text: PostgreSQL reads
//! them with the types of the hub's own columns.
//!
//! A body of many tiny parts would take many times its size in memory, and running out of it would end the whole
//! server. So the number of parts is limited, and more than the position of its text is kept of one change at a time
//! only.

use crate::Operation;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// Most changes of a body: the greatest `sync_outbox.batch_rows`.
const MOST_CHANGES: usize = 100_000;
/// Most members of an object: as many columns as a table can have.
const MOST_MEMBERS: usize = 1_600;

/// One change, borrowed from the body.
#[derive(Debug)]
pub struct Incoming<'a> {
    pub schema: Cow<'a, str>,
    pub table: Cow<'a, str>,
    pub operation: Operation,
    /// Empty for TRUNCATE only.
    pub pk: Object<'a>,
    /// Empty for DELETE and TRUNCATE.
    pub data: Object<'a>,
    /// The values before an UPDATE or DELETE, if the sender includes them.
    pub old: Option<Object<'a>>,
    pub dedup_key: uuid::Uuid,
    /// As the sender wrote it, so that the answer repeats it exactly.
    pub dedup_key_as_sent: Cow<'a, str>,
}

/// A JSON object: its text, and its members with their values as text.
#[derive(Debug, Default)]
pub struct Object<'a> {
    pub text: &'a str,
    pub members: BTreeMap<Cow<'a, str>, &'a RawValue>,
}

/// The changes of a body, in order, each of which can be read.
#[derive(Debug)]
pub struct Changes<'a>(Vec<&'a RawValue>);

impl<'a> Changes<'a> {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Incoming<'a>> {
        self.0.iter().filter_map(|change| parse_change(change.get()).ok()) // all have been read before
    }
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, deserialize_with = "few_changes")]
    changes: Vec<&'a RawValue>,
}

/// An array of not too many changes, as their text.
fn few_changes<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<&'a RawValue>, D::Error> {
    struct ChangesVisitor<'a>(PhantomData<&'a ()>);
    impl<'de: 'a, 'a> Visitor<'de> for ChangesVisitor<'a> {
        type Value = Vec<&'a RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of changes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
            let mut changes = Vec::new();
            while let Some(change) = array.next_element()? {
                if changes.len() == MOST_CHANGES {
                    return Err(A::Error::custom(format_args!("more than {MOST_CHANGES} changes")));
                }
                changes.push(change);
            }
            Ok(changes)
        }
    }
    deserializer.deserialize_seq(ChangesVisitor(PhantomData))
}

/// An object of not too many members.
struct FewMembers<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for FewMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for MembersVisitor<'a> {
            type Value = FewMembers<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = object.next_entry::<MemberName<'a>, &'a RawValue>()? {
                    members.insert(name.0, value);
                    if members.len() > MOST_MEMBERS {
                        return Err(A::Error::custom(format_args!("more than {MOST_MEMBERS} members")));
                    }
                }
                Ok(FewMembers(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

/// A member's name, borrowed where nothing is escaped in it.
#[derive(Deserialize)]
struct MemberName<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow)]
    schema: Cow<'a, str>,
    #[serde(borrow)]
    table: Cow<'a, str>,
    #[serde(rename = "op")]
    operation: Operation,
    #[serde(borrow)]
    pk: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    old: Option<&'a RawValue>,
    #[serde(borrow)]
    dedup_key: Cow<'a, str>,
}

/// The changes of a body, in order; or what is wrong with it.
pub fn parse(body: &str) -> Result<Changes<'_>, String> {
    must_be_object(body, "the payload")?;
    let Body { changes } = serde_json::from_str(body).map_err(|error| error.to_string())?;
    for (i, change) in changes.iter().enumerate() {
        parse_change(change.get()).map_err(|why| format!("change {}: {why}", i + 1))?;
    }
    Ok(Changes(changes))
}

/// What a change is known by, and nothing else of it.
#[derive(Debug, Deserialize)]
pub struct Identity<'a> {
    /// As the sender wrote it, so that the answer repeats it exactly.
    #[serde(borrow)]
    pub dedup_key: Cow<'a, str>,
    /// `None` for TRUNCATE.
    #[serde(borrow)]
    pub pk: Option<&'a RawValue>,
}

/// What the changes of a body are known by, in order, for a receiver that passes them on and does not look into them.
/// The body is read to its end, but only [`parse`] says whether each change is complete.
pub fn identities(body: &str) -> Result<Vec<Identity<'_>>, String> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        changes: Vec<Identity<'a>>,
    }
    must_be_object(body, "the payload")?;
    let Body { changes } = serde_json::from_str(body).map_err(|error| error.to_string())?;
    Ok(changes)
}

fn parse_change(text: &str) -> Result<Incoming<'_>, String> {
    must_be_object(text, "it")?;
    let members: Members = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let dedup_key = uuid::Uuid::try_parse(&members.dedup_key)
        .map_err(|_| format!("dedup_key is not a UUID: \"{}\"", members.dedup_key))?;
    let pk = match members.operation {
        Operation::Truncate => Object::default(),
        _ => object(members.pk, "pk")?,
    };
    if members.operation != Operation::Truncate && pk.members.is_empty() {
        return Err("pk names no column".into());
    }
    let data = match members.operation {
        Operation::Insert | Operation::Update => object(members.data, "data")?,
        Operation::Delete | Operation::Truncate => Object::default(),
    };
    let old = match (members.operation, members.old) {
        (Operation::Update | Operation::Delete, Some(old)) if old.get() != "null" => Some(object(Some(old), "old")?),
        _ => None,
    };
    let Members { schema, table, operation, dedup_key: dedup_key_as_sent, .. } = members;
    Ok(Incoming { schema, table, operation, pk, data, old, dedup_key, dedup_key_as_sent })
}

fn object<'a>(value: Option<&'a RawValue>, member: &str) -> Result<Object<'a>, String> {
    let text = value.map(RawValue::get).unwrap_or("null");
    must_be_object(text, member)?;
    let FewMembers(members) = serde_json::from_str(text).map_err(|error| format!("{member}: {error}"))?;
    Ok(Object { text, members })
}

/// serde would take an array for the members in order.
fn must_be_object(text: &str, what: &str) -> Result<(), String> {
    if text.trim_start().starts_with('{') { Ok(()) } else { Err(format!("{what} is not a JSON object")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "01920000-0000-7000-8000-000000000001";

    fn change(members: &str) -> String {
        format!(r#"{{"changes": [{{"schema": "s", "table": "t", "dedup_key": "{KEY}", {members}}}]}}"#)
    }

    fn first<'a>(changes: &Changes<'a>) -> Incoming<'a> {
        changes.iter().next().unwrap()
    }

    #[test]
    fn parts_are_counted() {
        let changes = |n: usize| format!(r#"{{"changes": [{}]}}"#, vec!["1"; n].join(","));
        assert!(parse(&changes(MOST_CHANGES)).unwrap_err().starts_with("change 1: "));
        assert!(parse(&changes(MOST_CHANGES + 1)).unwrap_err().starts_with("more than 100000 changes"));
        let columns = |n: usize| (0..n).map(|i| format!("\"c{i}\": 1")).collect::<Vec<_>>().join(", ");
        for member in ["data", "old"] {
            let update = |n| {
                change(&format!(r#""op": "UPDATE", "data": {{}}, "pk": {{"id": 1}}, "{member}": {{{}}}"#, columns(n)))
            };
            let update =
                |n| update(n).replacen(r#""data": {}, "#, if member == "data" { "" } else { r#""data": {}, "# }, 1);
            assert!(parse(&update(MOST_MEMBERS)).is_ok());
            assert!(parse(&update(MOST_MEMBERS + 1)).unwrap_err().contains("more than 1600 members"));
        }
    }

    #[test]
    fn takes_the_six_members_and_ignores_others() {
        let body = change(r#""op": "UPDATE", "pk": {"id": 7}, "data": {"b": [1, {"c": null}], "a": 1.50}, "id": 3"#);
        let changes = parse(&body).unwrap();
        assert_eq!(changes.count(), 1);
        let change = first(&changes);
        assert_eq!((&*change.schema, &*change.table, change.operation), ("s", "t", Operation::Update));
        assert_eq!(change.pk.text, r#"{"id": 7}"#);
        let data: Vec<_> = change.data.members.iter().map(|(name, value)| (&**name, value.get())).collect();
        assert_eq!(data, [("a", "1.50"), ("b", r#"[1, {"c": null}]"#)]);
        assert_eq!(change.dedup_key_as_sent, KEY);
    }

    #[test]
    fn identities_are_those_of_the_changes() {
        let body = change(r#""op": "UPDATE", "pk": {"id": 7}, "data": {"b": [1, {"c": null}]}"#).replacen(
            "[{",
            &format!(r#"[{{"op": "TRUNCATE", "schema": "s", "table": "t", "dedup_key": "{KEY}"}}, {{"#),
            1,
        );
        let identities = identities(&body).unwrap();
        let changes = parse(&body).unwrap();
        assert_eq!(identities.len(), changes.count());
        for (identity, change) in identities.iter().zip(changes.iter()) {
            assert_eq!(identity.dedup_key, change.dedup_key_as_sent);
            assert_eq!(identity.pk.map_or("", |pk| pk.get()), change.pk.text);
        }
    }

    #[test]
    fn delete_and_truncate_need_no_data() {
        assert!(parse(&change(r#""op": "DELETE", "pk": {"id": 7}, "data": null"#)).is_ok());
        assert!(parse(&change(r#""op": "TRUNCATE", "pk": null, "data": null"#)).is_ok());
        assert!(parse(&change(r#""op": "TRUNCATE""#)).is_ok());
    }

    #[test]
    fn old_values_belong_to_update_and_delete() {
        for (members, expected) in [
            (r#""op": "UPDATE", "pk": {"id": 1}, "data": {"a": 2}, "old": {"a": 1}"#, Some(r#"{"a": 1}"#)),
            (r#""op": "DELETE", "pk": {"id": 1}, "old": {"a": 1}"#, Some(r#"{"a": 1}"#)),
            (r#""op": "DELETE", "pk": {"id": 1}, "old": null"#, None),
            (r#""op": "INSERT", "pk": {"id": 1}, "data": {"id": 1}, "old": {"a": 1}"#, None),
        ] {
            let body = change(members);
            assert_eq!(first(&parse(&body).unwrap()).old.as_ref().map(|old| old.text), expected, "{members}");
        }
    }

    #[test]
    fn escaped_names_are_read() {
        let body = change(r#""op": "DELETE", "pk": {"\u00e9\"": 1}"#);
        assert!(first(&parse(&body).unwrap()).pk.members.contains_key("é\""));
    }

    #[test]
    fn says_what_is_wrong() {
        for (body, why) in [
            ("[]".to_owned(), "the payload is not a JSON object"),
            ("\"x\"".to_owned(), "the payload is not a JSON object"),
            ("{}".to_owned(), "missing field `changes`"),
            (r#"{"changes": {}}"#.to_owned(), "invalid type: map"),
            (r#"{"changes": [["s", "t", "DELETE"]]}"#.to_owned(), "change 1: it is not a JSON object"),
            (r#"{"changes": [{}]}"#.to_owned(), "change 1: missing field"),
            (change(r#""op": "MERGE", "pk": {"id": 1}"#), "unknown variant `MERGE`"),
            (change(r#""op": "DELETE", "pk": 7"#), "change 1: pk is not a JSON object"),
            (change(r#""op": "DELETE", "pk": {}"#), "change 1: pk names no column"),
            (change(r#""op": "DELETE""#), "change 1: pk is not a JSON object"),
            (change(r#""op": "INSERT", "pk": {"id": 1}, "data": null"#), "change 1: data is not a JSON object"),
            (change(r#""op": "DELETE", "pk": {"id": 1}, "old": [1]"#), "change 1: old is not a JSON object"),
            (change(r#""op": "DELETE", "pk": {"id": 1}"#).replace(KEY, "k1"), "dedup_key is not a UUID: \"k1\""),
            (change(r#""op": "DELETE", "pk": {"id": 1}"#).replace("\"s\"", "5"), "invalid type: integer `5`"),
        ] {
            let error = parse(&body).unwrap_err();
            assert!(error.contains(why), "{body}: {error}");
        }
    }

    #[test]
    fn deep_nesting_in_a_value_is_left_to_postgresql() {
        let deep = "[".repeat(5_000) + &"]".repeat(5_000);
        assert!(parse(&change(&format!(r#""op": "UPDATE", "pk": {{"id": 1}}, "data": {{"doc": {deep}}}"#))).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn any_body_is_taken_or_refused(
            body in crate::properties::json(&[
                "changes", "schema", "table", "op", "pk", "data", "old", "dedup_key",
                "INSERT", "UPDATE", "DELETE", "TRUNCATE", KEY,
            ])
        ) {
            crate::properties::body(body.as_bytes());
        }

        #[test]
        fn a_change_that_is_taken_has_a_key(
            pk in crate::properties::json(&["id"]), data in crate::properties::json(&["a"])
        ) {
            for op in ["INSERT", "UPDATE", "DELETE"] {
                let body = change(&format!(r#""op": "{op}", "pk": {pk}, "data": {data}, "old": {data}"#));
                crate::properties::body(body.as_bytes());
            }
        }
    }
}
