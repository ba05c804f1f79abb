//! Writing a body. Stored JSON is joined, never parsed.

use std::borrow::Cow;
use std::ops::Range;
use uuid::Uuid;

/// A change as it is sent: text is UTF-8; `pk`, `data` and `old` are JSON, `created_at` is ISO 8601.
#[derive(Clone, Debug, Default)]
pub struct Outgoing<'a> {
    pub schema: Cow<'a, str>,
    pub table: Cow<'a, str>,
    pub op: Cow<'a, str>,
    pub pk: Option<Cow<'a, str>>,
    pub data: Option<Cow<'a, str>>,
    pub old: Option<Cow<'a, str>>,
    pub dedup_key: Uuid,
    pub id: i64,
    pub txid: u64,
    pub branch: Option<Cow<'a, str>>,
    pub reason: Option<Cow<'a, str>>,
    pub created_at: Cow<'a, str>,
}

/// Where a change stands in the buffer that it was written to.
pub struct Parts {
    pub json: Range<usize>,
    pub pk: Option<Range<usize>>,
    pub data: Option<Range<usize>>,
}

impl Outgoing<'_> {
    /// How many bytes its JSON needs at most. Stored JSON goes as it is; a character of other text becomes six bytes at
    /// most.
    pub fn most_bytes(&self) -> usize {
        let length = |text: &Option<Cow<'_, str>>| text.as_ref().map_or(0, |text| text.len());
        let json: usize = [&self.pk, &self.data, &self.old].into_iter().map(length).sum();
        let text = [&self.branch, &self.reason].into_iter().map(length).sum::<usize>();
        let names = self.schema.len() + self.table.len() + self.op.len() + self.created_at.len();
        json + 6 * (text + names) + 256
    }

    /// Appends its JSON. Members come in the order of the wire format: the six that every receiver knows, then those
    /// that only say more. Allocates nothing where the buffer has room for [`Outgoing::most_bytes`].
    pub fn write(&self, out: &mut Vec<u8>) -> Parts {
        let start = out.len();
        out.extend_from_slice(b"{\"schema\":");
        string(&self.schema, out);
        out.extend_from_slice(b",\"table\":");
        string(&self.table, out);
        out.extend_from_slice(b",\"op\":");
        string(&self.op, out);
        out.extend_from_slice(b",\"pk\":");
        let pk = json_or_null(self.pk.as_deref(), out);
        out.extend_from_slice(b",\"data\":");
        let data = json_or_null(self.data.as_deref(), out);
        out.extend_from_slice(b",\"dedup_key\":\"");
        out.extend_from_slice(self.dedup_key.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
        out.extend_from_slice(b"\",\"id\":");
        out.extend_from_slice(itoa::Buffer::new().format(self.id).as_bytes());
        out.extend_from_slice(b",\"txid\":\"");
        out.extend_from_slice(itoa::Buffer::new().format(self.txid).as_bytes());
        out.push(b'"');
        for (name, value) in [(",\"branch\":", &self.branch), (",\"reason\":", &self.reason)] {
            if let Some(value) = value {
                out.extend_from_slice(name.as_bytes());
                string(value, out);
            }
        }
        if let Some(old) = &self.old {
            out.extend_from_slice(b",\"old\":");
            out.extend_from_slice(old.as_bytes());
        }
        out.extend_from_slice(b",\"created_at\":");
        string(&self.created_at, out);
        out.push(b'}');
        Parts { json: start..out.len(), pk, data }
    }
}

/// How many bytes the body of changes takes whose JSON is of these lengths, at most.
pub fn joined_bytes(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.map(|length| length + 1).sum::<usize>() + 16
}

/// Appends the body of changes that are written already.
pub fn join<'a>(changes: impl Iterator<Item = &'a [u8]>, body: &mut Vec<u8>) {
    body.extend_from_slice(b"{\"changes\":[");
    for (n, change) in changes.enumerate() {
        if n > 0 {
            body.push(b',');
        }
        body.extend_from_slice(change);
    }
    body.extend_from_slice(b"]}");
}

fn json_or_null(json: Option<&str>, out: &mut Vec<u8>) -> Option<Range<usize>> {
    let start = out.len();
    out.extend_from_slice(json.unwrap_or("null").as_bytes());
    json.map(|_| start..out.len())
}

fn string(text: &str, out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use crate::Operation;
    use crate::answer::{Answer, AnswerWriter, Verdict};
    use proptest::prelude::*;

    fn json() -> impl Strategy<Value = String> {
        crate::properties::json(&["id", "a", "b"])
            .prop_map(|json| {
                serde_json::from_str::<serde_json::Value>(&json).map_or("null".into(), |json| json.to_string())
            })
            .prop_map(|value| format!("{{\"id\": {value}}}"))
    }

    fn text() -> impl Strategy<Value = String> {
        any::<String>()
    }

    prop_compose! {
        fn change()(
            schema in text(), table in text(), operation in prop::sample::select(Operation::ALL.to_vec()), pk in json(),
            data in json(), old in proptest::option::of(json()), key: u128, id: i64, txid: u64,
            branch in proptest::option::of(text()), reason in proptest::option::of(text()),
        ) -> Outgoing<'static> {
            Outgoing {
                schema: schema.into(), table: table.into(), op: operation.name().into(), pk: Some(pk.into()),
                data: Some(data.into()), old: old.map(Into::into), dedup_key: Uuid::from_u128(key), id, txid,
                branch: branch.map(Into::into), reason: reason.map(Into::into),
                created_at: "2026-01-01T00:00:00+00:00".into(),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(changes in prop::collection::vec(change(), 0..5)) {
            let mut buffer = Vec::new();
            let mut ranges = Vec::new();
            for change in &changes {
                let before = buffer.len();
                ranges.push(change.write(&mut buffer).json);
                prop_assert!(buffer.len() - before <= change.most_bytes());
            }
            let mut body = Vec::new();
            join(ranges.iter().map(|range| &buffer[range.clone()]), &mut body);
            prop_assert!(body.len() <= joined_bytes(ranges.iter().map(ExactSizeIterator::len)));
            let body = String::from_utf8(body).unwrap();

            let read = parse(&body).unwrap();
            prop_assert_eq!(read.count(), changes.len());
            let mut writer = AnswerWriter::default();
            for (read, change) in read.iter().zip(&changes) {
                prop_assert_eq!((&read.schema, &read.table), (&change.schema, &change.table));
                prop_assert_eq!((read.operation.name(), read.dedup_key), (&*change.op, change.dedup_key));
                if read.operation != Operation::Truncate {
                    prop_assert_eq!(read.pk.text, change.pk.as_deref().unwrap());
                }
                if matches!(read.operation, Operation::Insert | Operation::Update) {
                    prop_assert_eq!(read.data.text, change.data.as_deref().unwrap());
                }
                if matches!(read.operation, Operation::Update | Operation::Delete) {
                    prop_assert_eq!(read.old.as_ref().map(|old| old.text), change.old.as_deref());
                }
                match read.dedup_key.as_u128() % 3 {
                    0 => writer.ack(read.dedup_key_as_sent.clone()),
                    1 => writer.error(read.dedup_key_as_sent.clone(), &change.schema),
                    _ => writer.conflict(read.dedup_key_as_sent.clone(), &change.schema),
                }
            }
            let answer = Answer::parse(writer.json().as_bytes()).unwrap();
            for change in &changes {
                let words = super::super::super::answer::clean(&change.schema);
                let expected = match change.dedup_key.as_u128() % 3 {
                    0 => Verdict::Acked,
                    1 => Verdict::Refused(words),
                    _ => Verdict::Conflict(words),
                };
                let twice = changes.iter().filter(|other| other.dedup_key == change.dedup_key).count() > 1;
                prop_assert!(twice || answer.verdict(&change.dedup_key) == expected);
            }
        }
    }
}
