//! Reading an answer: the target's verdict on each change.

use super::Verdict;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use std::marker::PhantomData;
use uuid::Uuid;

/// The verdicts of an answer. Keys that were not in the request do no harm, because they are never looked up.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// Sorted.
    acked: Vec<Uuid>,
    errors: HashMap<Uuid, String>,
    conflicts: HashMap<Uuid, String>,
}

impl Answer {
    /// Reads a body; `None` if it is not a JSON object with lists where lists belong. An entry that is not understood
    /// is ignored, so its change counts as not mentioned.
    pub fn parse(body: &[u8]) -> Option<Self> {
        if body.trim_ascii_start().first() != Some(&b'{') {
            return None; // serde would take a list for an object's members in order
        }
        let body: RawAnswer = serde_json::from_slice(body).ok()?;
        let mut acked = body.acked.unwrap_or_default().0;
        acked.sort_unstable();
        let ErrorList(errors) = body.errors.unwrap_or_default();
        let ErrorList(conflicts) = body.conflicts.unwrap_or_default();
        Some(Answer { acked, errors, conflicts })
    }

    /// The verdict on `key`. If an answer contradicts itself, the acknowledgement does not count: a change is resent
    /// rather than lost.
    pub fn verdict(&self, key: &Uuid) -> Verdict {
        if let Some(error) = self.errors.get(key) {
            Verdict::Refused(error.clone())
        } else if let Some(error) = self.conflicts.get(key) {
            Verdict::Conflict(error.clone())
        } else if self.acked.binary_search(key).is_ok() {
            Verdict::Acked
        } else {
            Verdict::Unmentioned
        }
    }
}

#[derive(serde::Deserialize)]
struct RawAnswer {
    #[serde(default)]
    acked: Option<KeyList>,
    #[serde(default)]
    errors: Option<ErrorList>,
    #[serde(default)]
    conflicts: Option<ErrorList>,
}

/// The keys of a list. Entries without one are not kept: there can be many in few bytes.
#[derive(Default)]
struct KeyList(Vec<Uuid>);

/// The keys of a list, each with the target's error text.
#[derive(Default)]
struct ErrorList(HashMap<Uuid, String>);

impl Extend<(Uuid, String)> for KeyList {
    fn extend<T: IntoIterator<Item = (Uuid, String)>>(&mut self, items: T) {
        self.0.extend(items.into_iter().map(|(key, _)| key));
    }
}

impl Extend<(Uuid, String)> for ErrorList {
    fn extend<T: IntoIterator<Item = (Uuid, String)>>(&mut self, items: T) {
        self.0.extend(items);
    }
}

impl<'de> Deserialize<'de> for KeyList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(List(PhantomData))
    }
}

impl<'de> Deserialize<'de> for ErrorList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(List(PhantomData))
    }
}

struct List<T>(PhantomData<T>);

impl<'de, T: Default + Extend<(Uuid, String)>> Visitor<'de> for List<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<T, A::Error> {
        let mut items = T::default();
        while let Some(Item { key, error }) = list.next_element()? {
            items.extend(key.map(|key| (key, error)));
        }
        Ok(items)
    }
}

/// A key, alone or in an object with the target's error text. Any other item has no key.
#[derive(Default)]
struct Item {
    key: Option<Uuid>,
    error: String,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a dedup_key or an object with one")
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item { key: Uuid::try_parse(text).ok(), error: String::new() })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let mut item = Item::default();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match &*name {
                "dedup_key" => item.key = map.next_value::<Item>()?.key,
                "error" => item.error = map.next_value::<ErrorText>()?.0,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(item)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Item::default())
    }

    fn visit_unit<E>(self) -> Result<Item, E> {
        Ok(Item::default())
    }
    fn visit_bool<E>(self, _: bool) -> Result<Item, E> {
        Ok(Item::default())
    }
    fn visit_i64<E>(self, _: i64) -> Result<Item, E> {
        Ok(Item::default())
    }
    fn visit_u64<E>(self, _: u64) -> Result<Item, E> {
        Ok(Item::default())
    }
    fn visit_f64<E>(self, _: f64) -> Result<Item, E> {
        Ok(Item::default())
    }
}

/// How many characters are kept of an error that is not a string: more than are shown of it.
const MOST_CHARS_OF_JSON: usize = 2_000;

/// The target's error text: a string, or the text of whatever JSON it has sent instead. Foreign JSON is not parsed into
/// values, because a few bytes of it can mean many levels.
struct ErrorText(String);

impl<'de> Deserialize<'de> for ErrorText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        Ok(ErrorText(match json {
            "null" => String::new(),
            json if json.starts_with('"') => serde_json::from_str(json).map_err(D::Error::custom)?,
            json => json.chars().take(MOST_CHARS_OF_JSON).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "00000000-0000-0000-0000-00000000000a";
    const B: &str = "00000000-0000-0000-0000-00000000000b";

    fn verdict(body: &str, key: &str) -> Verdict {
        Answer::parse(body.as_bytes()).unwrap().verdict(&Uuid::try_parse(key).unwrap())
    }

    #[test]
    fn reads_every_member() {
        let body =
            format!(r#"{{"acked":["{A}"],"errors":[{{"dedup_key":"{B}","error":"no \u0041"}}],"conflicts":null}}"#);
        assert_eq!(verdict(&body, A), Verdict::Acked);
        assert_eq!(verdict(&body, B), Verdict::Refused("no A".into()));
    }

    #[test]
    fn conflicts_may_be_keys_or_objects() {
        assert_eq!(verdict(&format!(r#"{{"conflicts":["{A}"]}}"#), A), Verdict::Conflict(String::new()));
        let object = format!(r#"{{"conflicts":[{{"dedup_key":"{A}","error":{{"old":1}}}}]}}"#);
        assert_eq!(verdict(&object, A), Verdict::Conflict(r#"{"old":1}"#.into()));
    }

    #[test]
    fn silence_is_not_an_ack() {
        assert_eq!(verdict("{}", A), Verdict::Unmentioned);
        assert_eq!(verdict(r#"{"acked":[]}"#, A), Verdict::Unmentioned);
    }

    #[test]
    fn strange_entries_are_ignored() {
        let body = format!(r#"{{"acked":[1,-1,1.5,null,true,[["{A}"]],{{"x":{{}}}},"junk","{B}","{B}"],"more":[1]}}"#);
        assert_eq!(verdict(&body, B), Verdict::Acked);
        assert_eq!(verdict(&body, A), Verdict::Unmentioned);
    }

    #[test]
    fn a_contradiction_is_not_an_ack() {
        let body = format!(r#"{{"acked":["{A}"],"errors":[{{"dedup_key":"{A}"}}]}}"#);
        assert_eq!(verdict(&body, A), Verdict::Refused(String::new()));
    }

    #[test]
    fn other_shapes_are_no_answer() {
        for body in ["", "<html>", "[]", "{\"acked\":", r#"{"acked":"x"}"#, "{\"acked\":[]} trailing"] {
            assert_eq!(Answer::parse(body.as_bytes()), None, "{body}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(body: Vec<u8>) {
            crate::properties::answer(&body);
        }

        #[test]
        fn nothing_is_acked_that_the_answer_does_not_name(
            body in crate::properties::json(&["acked", "errors", "conflicts", "dedup_key", "error", A, B])
        ) {
            crate::properties::answer(body.as_bytes());
        }
    }
}
