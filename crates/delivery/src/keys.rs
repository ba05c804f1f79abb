//! Which keys a change touches, and which keys are parked: a change goes out only after the earlier changes of its
//! keys.

use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Above this many parked keys a table is parked as a whole: memory stays bounded.
pub const MOST_KEYS: usize = 100_000;

/// The keys of one change. A key change touches the old and the new key, TRUNCATE every key of its table.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Touched {
    table: u64,
    /// A hash of the names of the key's columns, 0 for every key.
    columns: u64,
    /// `None`: every key of the table.
    keys: Option<(u64, Option<u64>)>,
}

impl Touched {
    /// From the change's key before it, and the columns it captured. Without a key: the whole table.
    pub fn new(schema: &str, table: &str, pk: Option<&str>, data: Option<&str>) -> Self {
        let table = hash(&(schema, table));
        let everything = Touched { table, columns: 0, keys: None };
        let Some(mut key) = pk.and_then(object) else { return everything };
        let Some(old) = hash_key(&key) else { return everything };
        let columns = hash_columns(&key);
        let changed = match data.filter(|data| may_name_a_column(data, &key)) {
            None => None,
            // What cannot be read may change the key.
            Some(data) => match object(data) {
                None => return everything,
                data => data,
            },
        };
        let new = match changed {
            None => None,
            Some(data) => {
                for (column, value) in key.iter_mut() {
                    if let Some(new) = data.get(column) {
                        *value = new;
                    }
                }
                match hash_key(&key) {
                    None => return everything,
                    new => new,
                }
            }
        };
        Touched { table, columns, keys: Some((old, new.filter(|new| *new != old))) }
    }
}

/// The members of a JSON object, each as its text. Columns that are not part of the key are skipped however deep they
/// are nested; a parser that builds values would refuse deep ones.
fn object(json: &str) -> Option<BTreeMap<String, &RawValue>> {
    serde_json::from_str(json).ok()
}

/// Whether a JSON text can have one of the key's columns as a member. Most updates change no key, and need not be
/// parsed to see that. Only where something is escaped can a name be present without being found.
fn may_name_a_column(json: &str, key: &BTreeMap<String, &RawValue>) -> bool {
    json.contains('\\') || key.keys().any(|column| json.contains(column.as_str()))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn hash_columns(key: &BTreeMap<String, &RawValue>) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.keys().for_each(|column| column.hash(&mut hasher));
    hasher.finish()
}

/// Longest value of a key that is compared, in bytes of JSON: parsed, it takes many times its size. A value in a unique
/// index is shorter, unless it compresses very well.
const MOST_VALUE_BYTES: usize = 64 * 1024;

/// `None` where a value is nested too deep to be compared, or too long: such a change waits for every key of its table,
/// and they for it.
fn hash_key(key: &BTreeMap<String, &RawValue>) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    for (column, value) in key {
        if value.get().len() > MOST_VALUE_BYTES {
            return None;
        }
        column.hash(&mut hasher);
        hash_value(&serde_json::from_str(value.get()).ok()?, &mut hasher);
    }
    Some(hasher.finish())
}

/// Values that are equal to PostgreSQL have the same hash: 1 and 1.0 are one key, also inside a document. So has a
/// value before and after its column gets another type: 1 and "1" are one key. If two different keys are taken for one,
/// the only effect is that one of them waits for the other now and then.
fn hash_value(value: &Value, hasher: &mut DefaultHasher) {
    match value {
        Value::Null => 0u8.hash(hasher),
        Value::Bool(value) => (1u8, if *value { "true" } else { "false" }).hash(hasher),
        Value::Number(number) => (1u8, &*canonical_number(&number.to_string())).hash(hasher),
        Value::String(text) => (1u8, &*canonical_text(text)).hash(hasher),
        Value::Array(values) => {
            (4u8, values.len()).hash(hasher);
            values.iter().for_each(|value| hash_value(value, hasher));
        }
        Value::Object(members) => {
            (5u8, members.len()).hash(hasher);
            for (name, value) in members {
                name.hash(hasher);
                hash_value(value, hasher);
            }
        }
    }
}

/// A number without what does not change its value: zeros in front and at the end of the fraction, a sign of zero.
fn canonical_number(text: &str) -> Cow<'_, str> {
    if text.contains(['e', 'E']) {
        return text.parse::<f64>().map_or(Cow::Borrowed(text), |f| Cow::Owned(f.to_string()));
    }
    let trimmed = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    let (sign, digits) = match trimmed.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", trimmed),
    };
    match digits.trim_start_matches('0') {
        "" => Cow::Borrowed("0"),
        rest if rest.len() == digits.len() => Cow::Borrowed(trimmed),
        rest if rest.starts_with('.') => Cow::Owned(format!("{sign}0{rest}")),
        rest => Cow::Owned(format!("{sign}{rest}")),
    }
}

/// A text in the form that other types give the same value: a number as a number, without the blanks that pad a
/// `character(n)`, a `uuid` in lower case, and of a date and time only the parts that the types with one share. The
/// time zone is ignored, because it cannot be known.
fn canonical_text(text: &str) -> Cow<'_, str> {
    let text = text.trim_end_matches(' ');
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let bytes = unsigned.as_bytes();
    let is_number = bytes.first().is_some_and(u8::is_ascii_digit)
        && bytes.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
        && bytes.iter().filter(|byte| **byte == b'.').count() <= 1
        || bytes.first().is_some_and(u8::is_ascii_digit) && text.contains(['e', 'E']) && text.parse::<f64>().is_ok();
    if is_number {
        return canonical_number(text);
    }
    let at = |i: usize, byte: u8| bytes.get(i) == Some(&byte);
    if bytes.len() == 36 && [8, 13, 18, 23].into_iter().all(|i| at(i, b'-')) {
        return Cow::Owned(text.to_ascii_lowercase());
    }
    let begins_with_a_date = bytes.len() > 10 && at(4, b'-') && at(7, b'-') && (at(10, b'T') || at(10, b' '));
    if begins_with_a_date && bytes[..4].iter().all(u8::is_ascii_digit) {
        let time = &unsigned[11..];
        let time = ["+00:00", "+00", "Z"].into_iter().find_map(|zone| time.strip_suffix(zone)).unwrap_or(time);
        return Cow::Owned(match time {
            "00:00:00" => unsigned[..10].to_owned(),
            time => format!("{} {time}", &unsigned[..10]),
        });
    }
    Cow::Borrowed(text)
}

/// The keys behind which later changes have to wait, with the first change that they wait for. Changes before that one
/// are not blocked (they may have been requeued, or become due, while a later one of their key is in conflict).
#[derive(Debug, Default)]
pub struct Parked {
    tables: HashMap<u64, ParkedTable>,
}

#[derive(Debug)]
struct ParkedTable {
    /// The first parked change of any key.
    first: i64,
    /// The first parked change that parks every key.
    whole: Option<i64>,
    keys: HashMap<u64, i64>,
    /// The first parked change of each set of columns that keys are made of: mostly there is one.
    columns: HashMap<u64, i64>,
}

impl Parked {
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Whether the change with this id has to wait.
    pub fn blocks(&self, touched: &Touched, id: i64) -> bool {
        let Some(table) = self.tables.get(&touched.table) else { return false };
        let behind = |first: &i64| *first < id;
        match touched.keys {
            None => behind(&table.first),
            Some((old, new)) => {
                table.whole.as_ref().is_some_and(behind)
                    // Keys of other columns may belong to the same row.
                    || table.columns.iter().any(|(columns, first)| *columns != touched.columns && behind(first))
                    || table.keys.get(&old).is_some_and(behind)
                    || new.is_some_and(|new| table.keys.get(&new).is_some_and(behind))
            }
        }
    }

    /// Whether everything of the table after its first parked change waits.
    pub fn is_parked_as_a_whole(&self, touched: &Touched) -> bool {
        self.tables.get(&touched.table).is_some_and(|table| table.whole == Some(table.first))
    }

    /// Makes the changes after the one with this id wait if they have one of these keys. Returns whether the
    /// table has just become parked as a whole because it has too many parked keys.
    pub fn park(&mut self, touched: &Touched, id: i64) -> bool {
        let table = self.tables.entry(touched.table).or_insert_with(|| ParkedTable {
            first: id,
            whole: None,
            keys: HashMap::new(),
            columns: HashMap::new(),
        });
        table.first = table.first.min(id);
        let Some((old, new)) = touched.keys else {
            table.whole = Some(table.whole.map_or(id, |first| first.min(id)));
            return false;
        };
        let first = table.columns.entry(touched.columns).or_insert(id);
        *first = id.min(*first);
        for key in std::iter::once(old).chain(new) {
            let first = table.keys.entry(key).or_insert(id);
            *first = id.min(*first);
        }
        if table.keys.len() <= MOST_KEYS {
            return false;
        }
        let told = table.whole == Some(table.first);
        table.whole = Some(table.first);
        table.keys = HashMap::new();
        !told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(pk: &str, data: Option<&str>) -> Touched {
        Touched::new("public", "sales", Some(pk), data)
    }

    #[test]
    fn a_parked_key_blocks_itself_and_nothing_else() {
        let mut parked = Parked::default();
        parked.park(&touched(r#"{"id":1}"#, None), 5);
        assert!(parked.blocks(&touched(r#"{"id":1}"#, Some(r#"{"qty":3}"#)), 6));
        assert!(!parked.blocks(&touched(r#"{"id":2}"#, None), 6));
        assert!(!parked.blocks(&Touched::new("public", "stock", Some(r#"{"id":1}"#), None), 6));
    }

    #[test]
    fn what_is_earlier_than_the_parked_change_does_not_wait() {
        let mut parked = Parked::default();
        parked.park(&touched(r#"{"id":1}"#, None), 5);
        parked.park(&touched(r#"{"id":1}"#, None), 9);
        assert!(!parked.blocks(&touched(r#"{"id":1}"#, None), 4));
        assert!(!parked.blocks(&touched(r#"{"id":1}"#, None), 5), "nor for itself, once its time has come");
        assert!(parked.blocks(&touched(r#"{"id":1}"#, None), 6));
        assert!(!parked.blocks(&Touched::new("public", "sales", None, None), 4));
    }

    #[test]
    fn keys_of_other_columns_wait_for_each_other() {
        let mut parked = Parked::default();
        parked.park(&touched(r#"{"id":1}"#, None), 5);
        assert!(parked.blocks(&touched(r#"{"number":2}"#, None), 6));
        assert!(!parked.blocks(&touched(r#"{"number":2}"#, None), 4));
        assert!(!parked.blocks(&touched(r#"{"id":2}"#, None), 6));
    }

    #[test]
    fn a_key_change_belongs_to_both_keys() {
        let mut parked = Parked::default();
        parked.park(&touched(r#"{"id":1}"#, Some(r#"{"id":2,"qty":3}"#)), 5);
        assert!(parked.blocks(&touched(r#"{"id":1}"#, None), 6));
        assert!(parked.blocks(&touched(r#"{"id":2}"#, None), 6));
        let mut parked = Parked::default();
        parked.park(&touched(r#"{"id":2}"#, None), 5);
        assert!(parked.blocks(&touched(r#"{"id":1}"#, Some(r#"{"id":2}"#)), 6));
    }

    #[test]
    fn a_key_change_is_seen_however_it_is_spelled() {
        let moved = touched(r#"{"id":1}"#, Some(r#"{"id":2}"#));
        assert_eq!(touched(r#"{"id":1}"#, Some(r#"{"\u0069d": 2.0, "qty":3}"#)), moved);
        assert_eq!(touched(r#"{"id":1}"#, Some(r#"{"paid":2}"#)), touched(r#"{"id":1}"#, None));
    }

    #[test]
    fn a_key_change_is_seen_beside_a_column_that_is_nested_deep() {
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let moved = touched(r#"{"id":1}"#, Some(r#"{"id":2}"#));
        assert_eq!(touched(r#"{"id":1}"#, Some(&format!(r#"{{"doc":{deep},"id":2}}"#))), moved);
        assert_eq!(touched(r#"{"id":1}"#, Some(&format!(r#"{{"id":2.0,"doc":{deep}}}"#))), moved);
        // The name is in it, and the key is not changed.
        assert_eq!(touched(r#"{"id":1}"#, Some(&format!(r#"{{"void":{deep}}}"#))), touched(r#"{"id":1}"#, None));
    }

    #[test]
    fn a_key_that_is_nested_too_deep_stands_for_every_key() {
        let deep = format!(r#"{{"doc":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        let everything = Touched::new("public", "sales", None, None);
        assert_eq!(touched(&deep, None), everything);
        assert_eq!(touched(r#"{"doc":1}"#, Some(&deep)), everything);
        assert_eq!(touched(r#"{"doc":1}"#, Some(r#"{"doc":"#)), everything, "nor can what is no JSON be told from it");
    }

    #[test]
    fn a_key_that_is_too_long_stands_for_every_key() {
        let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(MOST_VALUE_BYTES));
        assert_eq!(touched(&long, None), Touched::new("public", "sales", None, None));
        assert_ne!(touched(&long.replacen('x', "", 2), None), Touched::new("public", "sales", None, None));
    }

    #[test]
    fn equal_documents_are_one_key() {
        assert_eq!(touched(r#"{"k":{"a":1.0,"b":[2]}}"#, None), touched(r#"{ "k": {"b": [2.00], "a": 1} }"#, None));
        assert_ne!(touched(r#"{"k":[[1],2]}"#, None), touched(r#"{"k":[1,[2]]}"#, None));
    }

    #[test]
    fn a_key_of_another_type_is_the_same_key() {
        let same = [
            (r#"1"#, r#""1""#),
            (r#"1.0"#, r#""1""#),
            (r#"1"#, r#""1.00""#),
            (r#"7"#, r#""007""#),
            (r#"-7"#, r#""-7""#),
            (r#"0.5"#, r#""0.50""#),
            (r#"-0.5"#, r#""-00.5""#),
            (r#"0"#, r#""-0.00""#),
            (r#"1e+20"#, r#""100000000000000000000""#),
            (r#"true"#, r#""true""#),
            (r#""abc""#, r#""abc   ""#),
            (r#""550E8400-E29B-41D4-A716-446655440000""#, r#""550e8400-e29b-41d4-a716-446655440000""#),
            (r#""2026-02-03T04:05:06""#, r#""2026-02-03 04:05:06""#),
            (r#""2026-02-03T04:05:06""#, r#""2026-02-03T04:05:06+00:00""#),
            (r#""2026-02-03""#, r#""2026-02-03T00:00:00""#),
            (r#""2026-02-03 00:00:00+00""#, r#""2026-02-03T00:00:00+00:00""#),
        ];
        let key = |value: &str| touched(&format!(r#"{{"k":{value}}}"#), None);
        for (before, after) in same {
            assert_eq!(key(before), key(after), "{before} and {after}");
        }
        let others = [
            (r#"1"#, r#""1x""#),
            (r#"1"#, r#""1.0.0""#),
            (r#""abc""#, r#""ABC""#),
            (r#""-""#, r#""0""#),
            (r#""""#, r#""0""#),
            (r#"null"#, r#""null""#),
            (r#""2026-02-03T04:05:06""#, r#""2026-02-03T04:05:07""#),
            (r#""1""#, r#""-1""#),
        ];
        for (one, another) in others {
            assert_ne!(key(one), key(another), "{one} and {another}");
        }
        key(r#""äöüß-äö-äö äöü""#); // cut nowhere but between characters
        key(r#""2026-02-0ä04:05""#);
    }

    #[test]
    fn truncate_waits_for_every_key_and_every_key_for_truncate() {
        let truncate = Touched::new("public", "sales", None, None);
        let mut parked = Parked::default();
        assert!(!parked.blocks(&truncate, 6));
        parked.park(&touched(r#"{"id":1}"#, None), 5);
        assert!(parked.blocks(&truncate, 6));
        parked.park(&truncate, 6);
        assert!(parked.blocks(&touched(r#"{"id":9}"#, None), 7));
        assert!(!parked.blocks(&touched(r#"{"id":9}"#, None), 5));
    }

    #[test]
    fn equal_numbers_are_one_key() {
        assert_eq!(touched(r#"{"id":1.00}"#, None), touched(r#"{"id":1}"#, None));
        assert_eq!(touched(r#"{"id":-0}"#, None), touched(r#"{"id":0}"#, None));
        assert_ne!(touched(r#"{"id":10}"#, None), touched(r#"{"id":1}"#, None));
        assert_ne!(
            touched(r#"{"id":123456789012345678901234567890}"#, None),
            touched(r#"{"id":123456789012345678901234567891}"#, None)
        );
    }

    #[test]
    fn too_many_keys_park_the_table() {
        let mut parked = Parked::default();
        let told =
            (0..=MOST_KEYS as i64 + 5).filter(|i| parked.park(&touched(&format!("{{\"id\":{i}}}"), None), *i)).count();
        assert_eq!(told, 1);
        assert!(parked.blocks(&touched(r#"{"id":"never seen"}"#, None), 1));
    }
}
