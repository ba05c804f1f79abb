//! Arguments that several functions take.

use crate::store::target;

/// The target's name: `default` where none is given.
pub fn target(name: Option<&str>) -> &str {
    name.unwrap_or(target::DEFAULT)
}

/// Ids without NULLs.
pub fn ids(ids: Vec<Option<i64>>) -> Vec<i64> {
    ids.into_iter().flatten().collect()
}

/// A text without white space around it; `None` if nothing is left.
pub fn text(text: Option<&str>) -> Option<String> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}
