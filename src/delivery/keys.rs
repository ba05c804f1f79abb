//! Which keys a change touches, and which keys are parked: a change goes out only after the earlier changes of its keys.

use serde_json::{Map, Value};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Above this many parked keys a table is parked as a whole: memory stays bounded.
pub const MOST_KEYS: usize = 100_000;

/// The keys of one change. A key change touches the old and the new key, TRUNCATE every key of its table.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Touched {
    table: u64,
    /// `None`: every key of the table.
    keys: Option<(u64, Option<u64>)>,
}

impl Touched {
    /// From the change's key before it, and the columns it captured. Without a key: the whole table.
    pub fn new(schema: &str, table: &str, pk: Option<&str>, data: Option<&str>) -> Self {
        let table = hash(&(schema, table));
        let Some(mut key) = pk.and_then(object) else {
            return Touched { table, keys: None };
        };
        let old = hash_key(&key);
        let new = data.filter(|data| may_name_a_column(data, &key)).and_then(object).map(|data| {
            for (column, value) in key.iter_mut() {
                if let Some(new) = data.get(column) {
                    *value = new.clone();
                }
            }
            hash_key(&key)
        });
        Touched { table, keys: Some((old, new.filter(|new| *new != old))) }
    }
}

fn object(json: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(json).ok()
}

/// Whether a JSON text can have one of the key's columns as a member. Most updates change no key, and need not be parsed
/// to see that; only where something is escaped a name can hide.
fn may_name_a_column(json: &str, key: &Map<String, Value>) -> bool {
    json.contains('\\') || key.keys().any(|column| json.contains(column.as_str()))
}

impl Touched {
    /// A hash of schema and name.
    pub fn table(&self) -> u64 {
        self.table
    }

    /// Hashes of the old key and, if it changes, the new one; `None` is every key of the table.
    pub fn keys(&self) -> Option<(u64, Option<u64>)> {
        self.keys
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn hash_key(key: &Map<String, Value>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (column, value) in key {
        column.hash(&mut hasher);
        match value {
            // 1 and 1.0 are one key to PostgreSQL: compare numbers as numbers.
            Value::Number(number) => canonical_number(&number.to_string()).hash(&mut hasher),
            other => other.to_string().hash(&mut hasher),
        }
    }
    hasher.finish()
}

/// A number without what does not change its value: trailing zeros of the fraction, a sign of zero.
fn canonical_number(text: &str) -> String {
    if text.contains(['e', 'E']) {
        return text.parse::<f64>().map(|f| f.to_string()).unwrap_or_else(|_| text.to_owned());
    }
    let trimmed = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    if trimmed == "-0" { "0".to_owned() } else { trimmed.to_owned() }
}

/// The keys behind which later changes have to wait, with the first change that they wait for: what is earlier than that
/// does not wait (it may have been requeued, or become due, while a later one of its key is in conflict).
#[derive(Debug, Default)]
pub struct Parked {
    tables: HashMap<u64, Table>,
}

#[derive(Debug)]
struct Table {
    /// The first parked change of any key.
    first: i64,
    /// The first that parks every key.
    whole: Option<i64>,
    keys: HashMap<u64, i64>,
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
                    || table.keys.get(&old).is_some_and(behind)
                    || new.is_some_and(|new| table.keys.get(&new).is_some_and(behind))
            }
        }
    }

    /// Makes what comes after the change with this id wait, as far as it has one of these keys. Returns whether the table
    /// has just become parked as a whole because it has too many parked keys.
    pub fn park(&mut self, touched: &Touched, id: i64) -> bool {
        let table =
            self.tables.entry(touched.table).or_insert_with(|| Table { first: id, whole: None, keys: HashMap::new() });
        table.first = table.first.min(id);
        let Some((old, new)) = touched.keys else {
            table.whole = Some(table.whole.map_or(id, |first| first.min(id)));
            return false;
        };
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
