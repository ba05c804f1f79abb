//! Writing an answer.

use std::borrow::Cow;
use std::fmt::Write;

/// Longest error text in an answer, in characters: the sender stores it with the change.
const ERROR_MAX: usize = 500;
/// The same in bytes, after escaping: one character can take twelve. The sender reads 4096 bytes for each change that
/// it has sent, key and punctuation included.
const ERROR_BYTES: usize = 3000;

/// What became of the changes of a body. A change that is in no list was not acknowledged.
#[derive(Default)]
pub struct AnswerWriter<'a> {
    acked: Vec<Cow<'a, str>>,
    errors: Vec<(Cow<'a, str>, String)>,
    conflicts: Vec<(Cow<'a, str>, String)>,
}

impl<'a> AnswerWriter<'a> {
    pub fn ack(&mut self, dedup_key: impl Into<Cow<'a, str>>) {
        self.acked.push(dedup_key.into());
    }

    pub fn error(&mut self, dedup_key: impl Into<Cow<'a, str>>, error: &str) {
        self.errors.push((dedup_key.into(), clean(error)));
    }

    pub fn conflict(&mut self, dedup_key: impl Into<Cow<'a, str>>, why: &str) {
        self.conflicts.push((dedup_key.into(), clean(why)));
    }

    /// As JSON of ASCII characters only, which is the same in every server encoding.
    pub fn json(&self) -> String {
        let mut out = String::from("{\"acked\": [");
        for (i, key) in self.acked.iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            string(key, &mut out);
        }
        out.push_str("], \"errors\": [");
        errors(&self.errors, &mut out);
        out.push_str("], \"conflicts\": [");
        errors(&self.conflicts, &mut out);
        out.push_str("]}");
        out
    }
}

/// A list of keys, each with its error text.
fn errors(entries: &[(Cow<'_, str>, String)], out: &mut String) {
    for (i, (key, error)) in entries.iter().enumerate() {
        out.push_str(if i > 0 { ", {\"dedup_key\": " } else { "{\"dedup_key\": " });
        string(key, out);
        out.push_str(", \"error\": ");
        string(error, out);
        out.push('}');
    }
}

/// One line of bounded length, also when it is escaped.
pub fn clean(error: &str) -> String {
    let (mut clean, mut bytes) = (String::new(), 0);
    for (position, c) in error.chars().map(|c| if c.is_control() { ' ' } else { c }).enumerate() {
        bytes += escaped_bytes(c);
        if position == ERROR_MAX || bytes > ERROR_BYTES {
            clean.push('…');
            break;
        }
        clean.push(c);
    }
    clean
}

fn escaped_bytes(c: char) -> usize {
    match c {
        '"' | '\\' => 2,
        ' '..='~' => 1,
        _ => 6 * c.len_utf16(),
    }
}

fn string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_text() {
        assert_eq!(AnswerWriter::default().json(), r#"{"acked": [], "errors": [], "conflicts": []}"#);
        let mut answer = AnswerWriter::default();
        answer.ack("a");
        answer.ack("b");
        answer.error("c", "row not found");
        answer.error("d", "é \"x\"\n\u{1f600}\\");
        answer.conflict("e", "other values in a");
        assert_eq!(
            answer.json(),
            concat!(
                r#"{"acked": ["a", "b"], "errors": [{"dedup_key": "c", "error": "row not found"}, "#,
                r#"{"dedup_key": "d", "error": "\u00e9 \"x\" \ud83d\ude00\\"}], "#,
                r#""conflicts": [{"dedup_key": "e", "error": "other values in a"}]}"#
            )
        );
    }

    #[test]
    fn errors_are_bounded() {
        assert_eq!(clean(&"é".repeat(ERROR_MAX)).chars().count(), ERROR_MAX);
        let long = clean(&"é".repeat(10_000));
        assert_eq!(long.chars().count(), ERROR_MAX + 1);
        assert!(long.ends_with('…'));
        let escaped = |text: &str| {
            let mut out = String::new();
            string(text, &mut out);
            out.len()
        };
        for c in ['\u{1f600}', '€', '"', '\u{7f}', '\u{0}', 'a'] {
            let text = c.to_string().repeat(10_000);
            assert!(escaped(&clean(&text)) <= ERROR_BYTES + 8, "{c:?}");
        }
        let mut answer = AnswerWriter::default();
        let key = uuid::Uuid::nil().urn().to_string(); // the longest form
        answer.error(&key, &"\u{1f600}".repeat(10_000));
        assert!(answer.json().len() < 4096);
    }
}
