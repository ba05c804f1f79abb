//! Arguments that several functions take.

use crate::error::{Error, Result, SqlState};
use crate::pg::{spi, text};
use crate::store::target;
use std::borrow::Cow;
use std::ffi::CStr;
use wire::reason::{MAX_CHARS as REASON_MAX_CHARS, MIN_CHARS as REASON_MIN_CHARS};
use wire::{Operation, Priority};

/// A text argument: bytes, because the server encoding is not always UTF-8.
pub type Text<'a> = Option<&'a [u8]>;

/// A text or json as the result of a function: bytes in the server encoding, see [`text::from_utf8`].
pub type TextResult = Vec<u8>;

/// A `text[]` argument.
pub type TextArray<'a> = Option<pgrx::Array<'a, &'a [u8]>>;

/// A `name[]` argument.
pub type NameArray<'a> = Option<pgrx::Array<'a, &'a CStr>>;

/// The target's name: `default` where none is given.
pub fn target(name: Option<&str>) -> &str {
    name.unwrap_or(target::DEFAULT)
}

/// A `bigint[]` argument.
pub type IdArray<'a> = Option<pgrx::Array<'a, i64>>;

/// The ids, without a copy because there can be millions of them. A NULL among them matches nothing.
pub fn ids(ids: IdArray<'_>) -> Option<spi::Ids<'_>> {
    ids.map(spi::Ids::new)
}

/// The most bytes that a text or json argument may have. If PostgreSQL cannot allocate memory, the statement fails, but
/// if Rust cannot, the server ends. So nothing longer is copied; values that are read from a json take many times its
/// length.
const MOST_BYTES: usize = 1 << 20;

/// The most elements that a list may have: the most columns that a table can have.
const MOST_ELEMENTS: usize = 1_600;

/// Raises 54000 for a text that is too long.
fn bounded<'a>(text: &'a [u8], argument: &str) -> Result<&'a [u8]> {
    if text.len() > MOST_BYTES { Err(too_long(text.len(), argument)) } else { Ok(text) }
}

fn too_long(bytes: usize, argument: &str) -> Error {
    Error::new(SqlState::ERRCODE_PROGRAM_LIMIT_EXCEEDED, format!("{argument} is too long"))
        .detail(format!("It has {bytes} bytes, the most is {MOST_BYTES}."))
        .hint("Say it in less: in several calls, or by naming a table that holds what is long.")
}

/// Raises 54000 for a list of too many elements.
fn few(elements: usize, argument: &str) -> Result<()> {
    if elements <= MOST_ELEMENTS {
        return Ok(());
    }
    Err(Error::new(SqlState::ERRCODE_PROGRAM_LIMIT_EXCEEDED, format!("{argument} is too long"))
        .detail(format!("It has {elements} elements, the most is {MOST_ELEMENTS}."))
        .hint(format!("A table has no more columns than that: name each once in {argument}.")))
}

/// A text without white space around it, as UTF-8; `None` if nothing is left.
pub fn trimmed(text: Text<'_>, argument: &str) -> Result<Option<String>> {
    Ok(utf8(text, argument)?.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
}

/// Why somebody does something, without white space around it; `None` if nothing is left. 22001 if it is too long.
pub fn reason(text: Text<'_>) -> Result<Option<String>> {
    /// A reason of more bytes has too many characters in any encoding, unless it is nearly all white space. So it is
    /// refused before anything is copied.
    const MOST_BYTES: usize = 1 << 16;
    let too_long = || {
        Error::new(
            SqlState::ERRCODE_STRING_DATA_RIGHT_TRUNCATION,
            format!("the reason is longer than {REASON_MAX_CHARS} characters"),
        )
        .hint(format!("Say it in at most {REASON_MAX_CHARS} characters."))
    };
    if text.is_some_and(|text| text.len() > MOST_BYTES) {
        return Err(too_long());
    }
    match trimmed(text, "reason")? {
        Some(reason) if reason.chars().count() > REASON_MAX_CHARS => Err(too_long()),
        reason => Ok(reason),
    }
}

/// As [`reason`], but raises 23514 if a reason is given that has fewer than five characters.
pub fn telling_reason(text: Text<'_>, too_short: &str, hint: &str) -> Result<Option<String>> {
    let reason = reason(text)?;
    if text.is_some() && reason.as_deref().unwrap_or_default().chars().count() < REASON_MIN_CHARS {
        return Err(Error::new(
            SqlState::ERRCODE_CHECK_VIOLATION,
            format!("{too_short} at least {REASON_MIN_CHARS} characters"),
        )
        .hint(hint));
    }
    Ok(reason)
}

/// A text as UTF-8: 54000 if it is too long.
pub fn utf8<'a>(text: Text<'a>, argument: &str) -> Result<Option<Cow<'a, str>>> {
    text.map(|text| bounded(text, argument).map(text::to_utf8)).transpose()
}

/// The elements of a `text[]` as UTF-8: 54000 if they are too many or too long.
pub fn texts(array: TextArray<'_>, argument: &str) -> Result<Option<Vec<Option<String>>>> {
    let Some(array) = array else { return Ok(None) };
    few(array.len(), argument)?;
    let bytes = array.iter().flatten().map(<[u8]>::len).sum();
    if bytes > MOST_BYTES {
        return Err(too_long(bytes, argument));
    }
    Ok(Some(array.iter().map(|element| element.map(|bytes| text::to_utf8(bytes).into_owned())).collect()))
}

/// The elements of a `name[]` as UTF-8: 54000 if they are too many.
pub fn names(array: NameArray<'_>, argument: &str) -> Result<Option<Vec<Option<String>>>> {
    let Some(array) = array else { return Ok(None) };
    few(array.len(), argument)?;
    Ok(Some(array.iter().map(|name| name.map(text::name)).collect()))
}

/// An argument that may not be NULL.
pub fn required<T>(value: Option<T>, argument: &str) -> Result<T> {
    value.ok_or_else(|| {
        Error::new(SqlState::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("{argument} must not be NULL"))
            .hint(format!("Give a value for {argument}."))
    })
}

/// A priority in upper or lower case; 22023 for another word.
pub fn priority(name: &str) -> Result<Priority> {
    Priority::parse(name)
        .ok_or_else(|| Error::argument(format!("unknown priority \"{name}\"")).hint("Use 'HIGH', 'NORMAL' or 'LOW'."))
}

/// A list that is not empty, without NULL and without duplicates; `None` if it is absent.
pub fn list(given: Option<Vec<Option<String>>>, argument: &str) -> Result<Option<Vec<String>>> {
    let Some(given) = given else { return Ok(None) };
    let Some(list) = given.into_iter().collect::<Option<Vec<String>>>() else {
        return Err(Error::argument(format!("{argument} must not contain NULL")).hint("Take the NULL out of the list."));
    };
    few(list.len(), argument)?; // a list in a json has not been counted yet
    if list.is_empty() {
        return Err(Error::argument(format!("{argument} must not be an empty list"))
            .hint(format!("Leave {argument} out to get the default.")));
    }
    no_duplicates(&list, argument)?;
    Ok(Some(list))
}

/// Raises 22023 if a name is in the list twice.
fn no_duplicates(list: &[String], argument: &str) -> Result<()> {
    match list.iter().enumerate().find(|(i, name)| list[..*i].contains(name)) {
        Some((_, name)) => {
            Err(Error::argument(format!("\"{name}\" is named twice in {argument}")).hint("Name it once."))
        }
        None => Ok(()),
    }
}

/// Operations in upper or lower case; returns them in the order of a trigger's events.
pub fn operations(given: Vec<String>) -> Result<Vec<String>> {
    let given: Vec<String> = given.iter().map(|op| op.trim().to_ascii_uppercase()).collect();
    no_duplicates(&given, "operations")?;
    match given.iter().find(|op| Operation::parse(op).is_none()) {
        Some(unknown) => Err(Error::argument(format!("unknown operation \"{unknown}\""))
            .hint("Use any of 'INSERT', 'UPDATE', 'DELETE' and 'TRUNCATE'.")),
        None => Ok(Operation::ALL
            .map(Operation::name)
            .into_iter()
            .filter(|op| given.iter().any(|g| g == op))
            .map(str::to_owned)
            .collect()),
    }
}
