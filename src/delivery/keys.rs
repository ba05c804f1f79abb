//! Which keys a change belongs to, and which keys are parked.
//!
//! A key change belongs to the old and the new key, TRUNCATE to every key of its table. Two keys are the same if their
//! JSON is equal as jsonb is: members in any order, `1` and `1.0` alike.

use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

/// More parked keys of one table than this park the table as a whole, so that memory stays bounded.
pub const MAX_PARKED_PER_TABLE: usize = 100_000;

/// The keys of one table that a change belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    All,
    /// The key before the change and, if the change moved the row to another, that one too.
    Some(Key, Option<Key>),
}

/// A key in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Keys {
    /// Those of a change, given its operation, the key before it, and its data. A change without a key (TRUNCATE)
    /// belongs to all.
    pub fn of(op: &str, pk: Option<&str>, data: Option<&str>) -> Keys {
        let Some(pk) = pk else { return Keys::All };
        let before = Key(canonical(pk));
        let after = data.filter(|_| op == "UPDATE").and_then(|data| moved(pk, data)).filter(|after| *after != before);
        Keys::Some(before, after)
    }
}

/// The key after an UPDATE: the one before, with the members that `data` has of it.
fn moved(pk: &str, data: &str) -> Option<Key> {
    let mut key = members(pk)?;
    let data = members(data)?;
    let mut touched = false;
    for (name, value) in &mut key {
        if let Some(new) = data.get(name) {
            *value = *new;
            touched = true;
        }
    }
    touched.then(|| {
        let mut text = String::new();
        write_object(&key, &mut text);
        Key(text)
    })
}

/// The parked keys of every table. A table is named by schema and name.
#[derive(Default)]
pub struct Parked {
    tables: HashMap<(String, String), Table>,
}

enum Table {
    Whole,
    Keys(HashSet<Key>),
}

impl Parked {
    /// Whether a change must wait; if so, its own keys are parked in turn. It is asked for them only if its table has
    /// parked ones.
    pub fn holds_back(&mut self, table: &(String, String), keys: impl FnOnce() -> Keys) -> bool {
        let parked = match self.tables.get(table) {
            None => return false,
            Some(Table::Whole) => return true,
            Some(Table::Keys(parked)) => parked,
        };
        let keys = keys();
        let waits = match &keys {
            Keys::All => true,
            Keys::Some(before, after) => {
                parked.contains(before) || after.as_ref().is_some_and(|after| parked.contains(after))
            }
        };
        if waits {
            self.park(table, keys);
        }
        waits
    }

    /// Parks the keys of a change that does not go out.
    pub fn park(&mut self, table: &(String, String), keys: Keys) {
        let entry = match self.tables.get_mut(table) {
            Some(entry) => entry,
            None => self.tables.entry(table.clone()).or_insert_with(|| Table::Keys(HashSet::new())),
        };
        match (entry, keys) {
            (Table::Whole, _) => {}
            (entry, Keys::All) => *entry = Table::Whole,
            (Table::Keys(parked), Keys::Some(before, after)) => {
                parked.insert(before);
                parked.extend(after);
                if parked.len() > MAX_PARKED_PER_TABLE {
                    self.tables.insert(table.clone(), Table::Whole);
                }
            }
        }
    }
}

type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// The members of a JSON object; of a repeated one the last, as in jsonb.
fn members(json: &str) -> Option<Members<'_>> {
    serde_json::from_str(json).ok()
}

/// One spelling for all JSON texts that are equal as jsonb. What is no JSON is only equal to itself.
fn canonical(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    match serde_json::from_str::<&RawValue>(json) {
        Ok(value) => write_value(value, &mut text),
        Err(_) => text.push_str(json),
    }
    text
}

fn write_value(value: &RawValue, out: &mut String) {
    let text = value.get().trim();
    match text.as_bytes().first() {
        Some(b'{') => match members(text) {
            Some(members) => write_object(&members, out),
            None => out.push_str(text),
        },
        Some(b'[') => match serde_json::from_str::<Vec<&RawValue>>(text) {
            Ok(elements) => {
                out.push('[');
                elements.iter().for_each(|element| {
                    write_value(element, out);
                    out.push(',');
                });
                out.push(']');
            }
            Err(_) => out.push_str(text),
        },
        Some(b'"') => write_string(text, out),
        Some(b'-' | b'0'..=b'9') => write_number(text, out),
        _ => out.push_str(text),
    }
}

fn write_object(members: &Members, out: &mut String) {
    out.push('{');
    for (name, value) in members {
        out.push_str(&serde_json::Value::from(name.as_ref()).to_string());
        out.push(':');
        write_value(value, out);
        out.push(',');
    }
    out.push('}');
}

fn write_string(text: &str, out: &mut String) {
    match text.contains('\\').then(|| serde_json::from_str::<String>(text)) {
        Some(Ok(unescaped)) => out.push_str(&serde_json::Value::from(unescaped).to_string()),
        _ => out.push_str(text),
    }
}

/// A number as significant digits and a power of ten: exact, unlike a float.
fn write_number(text: &str, out: &mut String) {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let Ok(exponent) = exponent.parse::<i64>() else { return out.push_str(text) };
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    let exponent = exponent - fraction.len() as i64 + (digits.len() - significant.len()) as i64;
    match significant.trim_start_matches('0') {
        "" => out.push('0'),
        significant => out.push_str(&format!("{sign}{significant}e{exponent}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> (String, String) {
        ("public".into(), "sales".into())
    }

    fn key(pk: &str) -> Keys {
        Keys::of("UPDATE", Some(pk), None)
    }

    #[test]
    fn keys_are_equal_as_jsonb_is() {
        for (a, b) in [
            (r#"{"id": 1}"#, r#"{"id":1.0}"#),
            (r#"{"id": 100}"#, r#"{"id": 1e2}"#),
            (r#"{"id": 0.10}"#, r#"{"id": 1E-1}"#),
            (r#"{"id": 0}"#, r#"{"id": -0.00}"#),
            (r#"{"a": 1, "b": 2}"#, r#"{ "b":2, "a":1 }"#),
            (r#"{"a": "é"}"#, r#"{"a": "\u00e9"}"#),
            (r#"{"a": [1.0, {"x": null}]}"#, r#"{"a":[1,{"x":null}]}"#),
            (r#"{"a": 1, "a": 2}"#, r#"{"a": 2}"#),
            (r#"{"a\"": "\n"}"#, r#"{"a\u0022": "\u000a"}"#),
        ] {
            assert_eq!(key(a), key(b));
        }
    }

    #[test]
    fn keys_that_differ_stay_apart() {
        for (a, b) in [
            (r#"{"id": 1}"#, r#"{"id": "1"}"#),
            (r#"{"id": 1}"#, r#"{"id": -1}"#),
            (r#"{"id": 1}"#, r#"{"id": 10}"#),
            (r#"{"id": 9007199254740993}"#, r#"{"id": 9007199254740992}"#),
            (r#"{"id": 0.12345678901234567891}"#, r#"{"id": 0.12345678901234567892}"#),
            (r#"{"a": [1, 2]}"#, r#"{"a": [2, 1]}"#),
            (r#"{"a": null}"#, r#"{"a": "null"}"#),
            (r#"{"a": "x"}"#, r#"{"b": "x"}"#),
        ] {
            assert_ne!(key(a), key(b));
        }
    }

    #[test]
    fn a_key_change_belongs_to_both_keys() {
        let change = Keys::of("UPDATE", Some(r#"{"a": 1, "b": 2}"#), Some(r#"{"b": 3, "qty": 9}"#));
        let Keys::Some(before, Some(after)) = change else { panic!("two keys") };
        assert_eq!(Keys::Some(before, None), key(r#"{"a": 1, "b": 2}"#));
        assert_eq!(Keys::Some(after, None), key(r#"{"a": 1, "b": 3}"#));
    }

    #[test]
    fn other_changes_belong_to_one() {
        let pk = Some(r#"{"id": 1}"#);
        assert!(matches!(Keys::of("UPDATE", pk, Some(r#"{"qty": 2}"#)), Keys::Some(_, None)));
        assert!(matches!(Keys::of("UPDATE", pk, Some(r#"{"id": 1.0}"#)), Keys::Some(_, None)));
        assert!(matches!(Keys::of("INSERT", pk, Some(r#"{"id": 1}"#)), Keys::Some(_, None)));
        assert!(matches!(Keys::of("DELETE", pk, None), Keys::Some(_, None)));
        assert_eq!(Keys::of("TRUNCATE", None, None), Keys::All);
    }

    #[test]
    fn a_parked_key_holds_its_own_changes_only() {
        let mut parked = Parked::default();
        parked.park(&table(), key(r#"{"id": 1}"#));
        assert!(parked.holds_back(&table(), || key(r#"{"id": 1}"#)));
        assert!(!parked.holds_back(&table(), || key(r#"{"id": 2}"#)));
        assert!(!parked.holds_back(&("other".into(), "sales".into()), || key(r#"{"id": 1}"#)));
    }

    #[test]
    fn what_waits_parks_its_other_key() {
        let mut parked = Parked::default();
        parked.park(&table(), key(r#"{"id": 1}"#));
        assert!(parked.holds_back(&table(), || Keys::of("UPDATE", Some(r#"{"id": 1}"#), Some(r#"{"id": 2}"#))));
        assert!(parked.holds_back(&table(), || Keys::of("UPDATE", Some(r#"{"id": 3}"#), Some(r#"{"id": 2}"#))));
        assert!(parked.holds_back(&table(), || key(r#"{"id": 3}"#)));
        assert!(!parked.holds_back(&table(), || key(r#"{"id": 4}"#)));
    }

    #[test]
    fn truncate_waits_for_every_key_and_every_key_for_truncate() {
        let mut parked = Parked::default();
        assert!(!parked.holds_back(&table(), || Keys::All));
        parked.park(&table(), key(r#"{"id": 1}"#));
        assert!(!parked.holds_back(&table(), || key(r#"{"id": 2}"#)));
        assert!(parked.holds_back(&table(), || Keys::All));
        assert!(parked.holds_back(&table(), || key(r#"{"id": 2}"#)));
    }

    #[test]
    fn too_many_parked_keys_park_the_table() {
        let mut parked = Parked::default();
        for id in 0..=MAX_PARKED_PER_TABLE {
            assert!(!parked.holds_back(&table(), || key(r#"{"id": -1}"#)));
            parked.park(&table(), key(&format!(r#"{{"id": {id}}}"#)));
        }
        assert!(parked.holds_back(&table(), || key(r#"{"id": -1}"#)));
    }
}
