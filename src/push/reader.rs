//! Reading batches in order: forward from a cursor, so that what lies dead behind it costs nothing, and again from the
//! mark, because a change can become visible, due or free behind the cursor.
//!
//! A *pass* goes from the mark to the end of every lane, over what was committed when it began. What is committed later
//! waits for the next pass: an earlier change of its key may have become visible behind the cursor just before, and only a
//! pass that began after both sees them in order. A session is over when a pass has found nothing to send: only then may
//! it say "empty".

use super::crossing::Crossing;
use super::mark::Mark;
use crate::capture::Priority;
use crate::delivery::batch::Batch;
use crate::delivery::keys::{Parked, Touched};
use crate::pg::relation::LockMode;
use crate::pg::wal;
use crate::store::Schema;
use crate::store::run::Run;
use crate::store::shape::Shape;
use crate::store::snapshot::Snapshot;
use std::collections::HashMap;

/// What a session may send.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub branch: Option<String>,
    /// The caller's own transaction.
    pub own_txid: Option<u64>,
}

pub struct Reader {
    target_id: i16,
    scope: Scope,
    cursors: [i64; 3],
    mark: Mark,
    /// What was committed when the pass began.
    committed: Snapshot,
    /// When it began, by the clock of due times: one clock decides what is parked and what may go.
    began_at: i64,
    /// The ids of what was parked then.
    parked: Vec<i64>,
    /// The first change that the pass found and that does not wait for a person.
    first: Option<i64>,
    /// Changes tried in this session that are still there, with their keys: not tried again, and what comes later of
    /// their keys waits, also when their time has come meanwhile.
    tried: HashMap<i64, Touched>,
    crossing: Crossing,
}

impl Reader {
    pub fn new(target_id: i16, scope: Scope, mark: Mark) -> Self {
        Reader {
            target_id,
            scope,
            cursors: [mark.at(); 3],
            mark,
            committed: Snapshot::default(),
            began_at: i64::MIN,
            parked: Vec::new(),
            first: None,
            tried: HashMap::new(),
            crossing: Crossing::default(),
        }
    }

    /// Begins a pass at the mark. `parked` are the ids of what was parked at `began_at`, read before this: what is freed
    /// meanwhile may go in this pass, and what comes later of its key in the next.
    pub fn begin_pass(&mut self, schema: &Schema, began_at: i64, parked: Vec<i64>) {
        self.mark.look_ahead(schema, &parked);
        self.cursors = [self.mark.at(); 3];
        self.first = None;
        (self.began_at, self.parked) = (began_at, parked);
        self.committed = Snapshot::take();
        self.crossing = Crossing::load(schema, self.target_id);
    }

    /// A pass has come to its end and found nothing to send.
    pub fn at_rest(&mut self) {
        self.mark.advance(&self.committed, self.first, &self.parked);
    }

    /// Where the next session begins.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Remembers that a change has been tried and is still there.
    pub fn tried(&mut self, id: i64, touched: Touched) {
        self.tried.insert(id, touched);
    }

    /// Parks the keys of what has been tried.
    pub fn park_tried(&self, parked: &mut Parked) {
        for (id, touched) in &self.tried {
            parked.park(touched, *id);
        }
    }

    /// The next batch: HIGH before NORMAL before LOW, each in order of ids; empty at the end of the pass. What it holds is
    /// durable when this returns (`hard-facts` 13).
    pub fn read(&mut self, schema: &Schema, rows: usize, bytes: usize) -> Batch {
        let mut batch = Batch::default();
        let shape = Shape::of(schema.oid, LockMode::AccessShare);
        for (lane, priority) in Priority::ALL.into_iter().enumerate() {
            let run = Run {
                shape: &shape,
                target_id: self.target_id,
                priority,
                after: self.cursors[lane],
                committed: &self.committed,
                due_by: self.began_at,
                rows,
                bytes,
                own_txid: self.scope.own_txid,
            };
            let ended = run.read(schema, &mut batch, |id| !self.tried.contains_key(&id));
            self.cursors[lane] = ended.at;
            self.first = [self.first, ended.first].into_iter().flatten().min();
            if ended.full {
                break;
            }
        }
        if !batch.is_empty() {
            wal::flush();
        }
        batch
    }

    /// Which changes of a batch may go now, and how many have to wait for an earlier one of their key. What has to wait,
    /// or belongs to another branch, makes everything later of its keys wait as well.
    pub fn pick(&mut self, batch: &Batch, parked: &mut Parked) -> (Vec<usize>, usize) {
        let wanted = self.scope.branch.as_deref();
        let in_branch = |branch: Option<&str>| wanted.is_none() || branch == wanted;
        let nothing_waits = parked.is_empty() && self.crossing.is_empty();
        if nothing_waits && self.scope.branch.is_none() {
            return ((0..batch.len()).collect(), 0);
        }
        let (mut picked, mut blocked) = (Vec::with_capacity(batch.len()), 0);
        for (i, change) in batch.changes.iter().enumerate() {
            let touched: Touched = batch.touched(change);
            if !in_branch(change.branch.as_deref()) {
                parked.park(&touched, change.id);
            } else if parked.blocks(&touched, change.id) || self.crossing.blocks(&touched, change) {
                parked.park(&touched, change.id);
                blocked += 1;
            } else {
                picked.push(i);
            }
        }
        (picked, blocked)
    }
}
