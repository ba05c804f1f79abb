//! JSON that people hand over, as values.

use serde_json::Value;

/// From this length on, text is looked at twice.
const SHORT: usize = 64 * 1024;

/// Reads a text as a value; `None` if it is not JSON, or nothing that a person would write.
///
/// serde_json takes an object whose first member has a certain private name for more JSON in a string, to be read with
/// a fresh limit of nesting (its features `raw_value` and `arbitrary_precision`): half a megabyte of such text
/// overflows the stack. A short one cannot hold enough of it, and whoever writes the name, or hides it behind `\u`,
/// means no harm only in a short one.
pub fn value(text: &str) -> Option<Value> {
    if text.len() > SHORT && (text.contains("$serde_json") || text.contains("\\u")) {
        return None;
    }
    serde_json::from_str(text).ok()
}
