//! JSON arguments, parsed to values.

use serde_json::Value;

/// Texts of this length or more are checked first.
const SHORT: usize = 64 * 1024;

/// Parses a text; `None` if it is not JSON, or not what a person would write.
///
/// If the first member of an object has a certain private name, serde_json parses its string as JSON again, with a
/// fresh nesting limit (because of its features `raw_value` and `arbitrary_precision`). Half a megabyte of such text
/// overflows the stack. A short text cannot contain enough of it. A long one that has the name, or any `\u`, which
/// could hide it, is refused.
pub fn value(text: &str) -> Option<Value> {
    if text.len() > SHORT && (text.contains("$serde_json") || text.contains("\\u")) {
        return None;
    }
    serde_json::from_str(text).ok()
}
