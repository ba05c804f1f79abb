//! Which keys a change touches, and which keys are parked: a change goes out only after the earlier changes of its keys.

use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
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

/// The keys behind which later changes have to wait.
#[derive(Debug, Default)]
pub struct Parked {
    tables: HashMap<u64, Table>,
}

#[derive(Debug, Default)]
struct Table {
    whole: bool,
    keys: HashSet<u64>,
}

impl Parked {
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Whether a change has to wait.
    pub fn blocks(&self, touched: &Touched) -> bool {
        let Some(table) = self.tables.get(&touched.table) else { return false };
        match touched.keys {
            None => true,
            Some((old, new)) => {
                table.whole || table.keys.contains(&old) || new.is_some_and(|new| table.keys.contains(&new))
            }
        }
    }

    /// Makes everything later of these keys wait. Returns whether the table has just become parked as a whole because it
    /// has too many parked keys.
    pub fn park(&mut self, touched: &Touched) -> bool {
        let table = self.tables.entry(touched.table).or_default();
        match touched.keys {
            None => table.whole = true,
            Some((old, new)) if !table.whole => {
                table.keys.insert(old);
                table.keys.extend(new);
                if table.keys.len() > MOST_KEYS {
                    *table = Table { whole: true, keys: HashSet::new() };
                    return true;
                }
            }
            Some(_) => {}
        }
        false
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
        parked.park(&touched(r#"{"id":1}"#, None));
        assert!(parked.blocks(&touched(r#"{"id":1}"#, Some(r#"{"qty":3}"#))));
        assert!(!parked.blocks(&touched(r#"{"id":2}"#, None)));
        assert!(!parked.blocks(&Touched::new("public", "stock", Some(r#"{"id":1}"#), None)));
    }

    #[test]
    fn a_key_change_belongs_to_both_keys() {
        let mut parked = Parked::default();
        parked.park(&touched(r#"{"id":1}"#, Some(r#"{"id":2,"qty":3}"#)));
        assert!(parked.blocks(&touched(r#"{"id":1}"#, None)));
        assert!(parked.blocks(&touched(r#"{"id":2}"#, None)));
        let mut parked = Parked::default();
        parked.park(&touched(r#"{"id":2}"#, None));
        assert!(parked.blocks(&touched(r#"{"id":1}"#, Some(r#"{"id":2}"#))));
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
        assert!(!parked.blocks(&truncate));
        parked.park(&touched(r#"{"id":1}"#, None));
        assert!(parked.blocks(&truncate));
        parked.park(&truncate);
        assert!(parked.blocks(&touched(r#"{"id":9}"#, None)));
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
        let told = (0..=MOST_KEYS).filter(|i| parked.park(&touched(&format!("{{\"id\":{i}}}"), None))).count();
        assert_eq!(told, 1);
        assert!(parked.blocks(&touched(r#"{"id":"never seen"}"#, None)));
    }
}
