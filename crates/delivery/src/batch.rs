//! A batch: changes read from the outbox, and the request bodies made of them.
//!
//! The JSON of every change is written once, into one buffer. A body is joined from parts of that buffer, so that
//! halving and bisecting write nothing anew. Stored JSON is joined, never parsed.

use super::keys::Touched;
use std::ops::Range;
use std::rc::Rc;
use uuid::Uuid;
use wire::Priority;
use wire::body::{self, Outgoing};

/// Where a row is in the heap: block and offset.
pub type TupleId = (u32, u16);

/// One change of a batch.
#[derive(Clone, Debug)]
pub struct Change {
    pub id: i64,
    pub priority: Priority,
    pub place: TupleId,
    pub dedup_key: Uuid,
    pub branch: Option<Rc<str>>,
    pub reason: Option<Rc<str>>,
    pub attempts: i32,
    pub refusals: i32,
    /// Marked FAILED because a request did not get through.
    pub was_offline: bool,
    /// Why it can never be sent as it is.
    pub unsendable: Option<String>,
    /// Its JSON in the batch's buffer. `pk` and `data` lie inside it, and show which keys the change touches.
    json: Range<usize>,
    table: Rc<TableName>,
    pk: Option<Range<usize>>,
    data: Option<Range<usize>>,
    /// The keys of a change whose JSON is not in the buffer.
    touched: Option<Touched>,
}

/// A change as it is read from the outbox: what is sent of it, and what else is known of it.
#[derive(Clone, Default)]
pub struct StoredChange<'a> {
    pub outgoing: Outgoing<'a>,
    pub priority: Priority,
    pub place: TupleId,
    pub attempts: i32,
    pub refusals: i32,
    pub was_offline: bool,
    pub unsendable: Option<String>,
}

#[derive(Debug)]
struct TableName {
    schema: String,
    name: String,
}

/// Changes in the order in which they are sent.
#[derive(Default, Debug)]
pub struct Batch {
    buffer: Vec<u8>,
    pub changes: Vec<Change>,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of JSON so far.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Adds a change; one that cannot be sent is added without its JSON.
    pub fn push(&mut self, stored: &StoredChange<'_>) {
        let outgoing = &stored.outgoing;
        let bytes = outgoing.most_bytes();
        if stored.unsendable.is_none() && self.buffer.try_reserve(bytes).is_ok() && leaves_headroom(bytes) {
            if !self.buffer.is_empty() {
                self.buffer.push(b',');
            }
            let body::Parts { json, pk, data } = outgoing.write(&mut self.buffer);
            let change = self.change(stored, json, pk, data);
            self.changes.push(change);
            return;
        }
        if bytes > LARGE {
            self.buffer.shrink_to_fit();
        }
        let why = || format!("not enough memory for {bytes} bytes");
        let nothing = self.buffer.len()..self.buffer.len();
        let Outgoing { schema, table, pk, data, .. } = outgoing;
        let change = Change {
            unsendable: Some(stored.unsendable.clone().unwrap_or_else(why)),
            touched: Some(Touched::new(schema, table, pk.as_deref(), data.as_deref())),
            ..self.change(stored, nothing, None, None)
        };
        self.changes.push(change);
    }

    fn change(
        &self,
        stored: &StoredChange<'_>,
        json: Range<usize>,
        pk: Option<Range<usize>>,
        data: Option<Range<usize>>,
    ) -> Change {
        let before = self.changes.last();
        let Outgoing { schema, table, .. } = &stored.outgoing;
        Change {
            id: stored.outgoing.id,
            priority: stored.priority,
            place: stored.place,
            dedup_key: stored.outgoing.dedup_key,
            branch: shared(stored.outgoing.branch.as_deref(), before.and_then(|b| b.branch.as_ref())),
            reason: shared(stored.outgoing.reason.as_deref(), before.and_then(|b| b.reason.as_ref())),
            attempts: stored.attempts,
            refusals: stored.refusals,
            was_offline: stored.was_offline,
            unsendable: None,
            json,
            table: match before {
                Some(before) if before.table.name == *table && before.table.schema == *schema => before.table.clone(),
                _ => Rc::new(TableName { schema: schema.to_string(), name: table.to_string() }),
            },
            pk,
            data,
            touched: None,
        }
    }

    /// The keys that a change touches.
    pub fn touched(&self, change: &Change) -> Touched {
        if let Some(touched) = &change.touched {
            return touched.clone();
        }
        let text = |range: &Range<usize>| std::str::from_utf8(&self.buffer[range.clone()]).unwrap_or_default();
        let Change { table, pk, data, .. } = change;
        Touched::new(&table.schema, &table.name, pk.as_ref().map(text), data.as_ref().map(text))
    }

    /// The body of a request with the changes at `picked`, which are in sending order; `None` if there is no memory for
    /// it.
    pub fn body(&self, picked: &[usize]) -> Option<Vec<u8>> {
        let json = |i: &usize| &self.buffer[self.changes[*i].json.clone()];
        let bytes = body::joined_bytes(picked.iter().map(|i| json(i).len()));
        let mut body = Vec::new();
        body.try_reserve_exact(bytes).ok().filter(|()| leaves_headroom(bytes))?;
        body::join(picked.iter().map(json), &mut body);
        Some(body)
    }

    /// The reason that all the picked changes share, for the X-Reason header.
    pub fn shared_reason(&self, picked: &[usize]) -> Option<&str> {
        let first = self.changes[*picked.first()?].reason.as_deref()?;
        picked.iter().all(|i| self.changes[*i].reason.as_deref() == Some(first)).then_some(first)
    }

    /// `Idempotency-Key`: the same for the same changes, and different for any other batch. A change is never altered,
    /// so its key stands for it.
    pub fn idempotency_key(&self, picked: &[usize]) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        picked.iter().for_each(|i| hash.update(self.changes[*i].dedup_key.as_bytes()));
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
    }
}

/// Above this size, an allocation succeeds only if enough memory is left for others.
const LARGE: usize = 4 * 1024 * 1024;
/// The bytes that have to be left for the small allocations of this process, which end it if they fail.
const HEADROOM: usize = 64 * 1024 * 1024;

/// Whether there is memory left after so many bytes were reserved.
fn leaves_headroom(bytes: usize) -> bool {
    bytes <= LARGE || Vec::<u8>::new().try_reserve_exact(HEADROOM).is_ok()
}

/// The text, shared with the previous change where it is the same.
fn shared(text: Option<&str>, before: Option<&Rc<str>>) -> Option<Rc<str>> {
    text.map(|text| before.filter(|before| ***before == *text).cloned().unwrap_or_else(|| text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(n: i64) -> Batch {
        let mut batch = Batch::default();
        for id in 1..=n {
            let pk = format!("{{\"id\":{id}}}");
            let outgoing = Outgoing {
                id,
                dedup_key: Uuid::from_u128(id as u128),
                txid: 7,
                schema: "public".into(),
                table: "sa\"les".into(),
                op: "DELETE".into(),
                pk: Some(pk.into()),
                reason: (id != 3).then_some("count".into()),
                created_at: "2026-01-01T00:00:00+00:00".into(),
                ..Outgoing::default()
            };
            batch.push(&StoredChange { outgoing, place: (0, id as u16), ..StoredChange::default() });
        }
        batch
    }

    #[test]
    fn a_body_holds_the_picked_changes_and_is_json() {
        let batch = batch(4);
        let body: serde_json::Value = serde_json::from_slice(&batch.body(&[0, 3]).unwrap()).unwrap();
        let changes = body["changes"].as_array().unwrap();
        assert_eq!(changes.len(), 2);
        assert_eq!(changes[1]["pk"]["id"], 4);
        assert_eq!(changes[1]["table"], "sa\"les");
        assert_eq!(changes[1]["data"], serde_json::Value::Null);
        assert_eq!(changes[1]["dedup_key"], "00000000-0000-0000-0000-000000000004");
    }

    #[test]
    fn the_idempotency_key_follows_the_changes() {
        let batch = batch(3);
        let key = |picked: &[usize]| batch.idempotency_key(picked);
        assert_eq!(key(&[0, 1]), key(&[0, 1]));
        assert_ne!(key(&[0, 1]), key(&[0]));
    }

    #[test]
    fn a_reason_is_shared_only_if_every_change_has_it() {
        let batch = batch(4);
        assert_eq!(batch.shared_reason(&[0, 1]), Some("count"));
        assert_eq!(batch.shared_reason(&[0, 2]), None);
        assert_eq!(batch.shared_reason(&[2]), None);
    }
}
