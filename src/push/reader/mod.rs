//! Reading batches in order, in each priority forward from a cursor, so that the dead rows behind it cost nothing.
//!
//! **What is behind a cursor has been dealt with**: it is gone, or its key is parked. That is what keeps the order of a
//! key, and it holds because of three things. A transaction that drew a low id and commits late is announced with its
//! first id ([`Announcements`]), and the cursor goes back there before anything that the new snapshot sees is read.
//! What is left behind (refused, not due, blocked) parks its keys. And what frees such a change (its time, a requeue, a
//! discard, another sender's turn) is followed by a rescan, which goes back to it and finds out from the table again
//! which keys are parked ([`look_back`]).
//!
//! Nobody announces anything to a bounded session (flush, drain): it sees what was committed at its beginning, and what
//! comes later in HIGH, which it reads from its head for every batch.

mod cross_priority;
mod cursors;
mod look_back;
mod pick;
mod rescans;
mod retry_share;
mod shares;

use super::announcements::{Announcements, NOTHING};
use super::bounds::Selection;
use crate::pg::relation_lock::LockMode;
use crate::pg::wal;
use crate::store::queue_scan::QueueScan;
use crate::store::shape::Shape;
use crate::store::snapshot::Snapshot;
use crate::store::{Schema, queue};
use cross_priority::CrossPriority;
pub use cursors::Rescan;
use cursors::{Cursors, note_first};
use delivery::batch::Batch;
use delivery::keys::{Parked, Touched};
use look_back::{LookBack, STEP};
use pick::{Picked, pick};
use rescans::{LOOK_BACK_SHARE, Rescans};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use uuid::Uuid;
use wire::Priority;

/// How often keys with changes in several priorities are looked for while there are any: that reads all of theirs.
const CROSS_PRIORITY_EVERY: Duration = Duration::from_secs(1);
/// A bounded session's looks for HIGH changes may take the same share of the time as looking back, as long as none of
/// these changes waits longer than this because of that.
const LOOK_FOR_HIGH_EVERY: Duration = Duration::from_millis(5);

pub struct Reader {
    target_id: i16,
    selection: Selection,
    bounded: bool,
    cursors: Cursors,
    /// Keys behind which later changes wait.
    parked: Parked,
    /// Changes that wait for a person, as far as they have been seen.
    waiting: BTreeSet<i64>,
    /// A bounded session tries a change once: it is not tried again, and what comes later of its keys waits.
    tried: HashMap<i64, Touched>,
    /// The change that is being read. It stays here where reading it fails.
    reading: Option<(Priority, i64)>,
    cross_priority: CrossPriority,
    cross_priority_loaded: Option<Instant>,
    /// The first id of the announcements that may not have been read yet, and that of those before the last read: a
    /// transaction that was announced after the snapshot was taken is seen by the next one.
    announced: i64,
    announced_before: i64,
    /// Tables that wait as a whole because too many of their keys are parked, quoted.
    pub waiting_tables: BTreeSet<String>,
    requests: u32,
    rescans: Rescans,
    /// The last read passed over so much that it ended before it had a batch.
    cut_short: bool,
    /// Announcements have been put off until the reader has got past what it has to pass over.
    put_off: bool,
    /// No look for HIGH changes before this: the last one was expensive.
    high_not_before: Instant,
}

impl Reader {
    pub fn new(target_id: i16, selection: Selection, bounded: bool) -> Self {
        Reader {
            target_id,
            selection,
            bounded,
            cursors: Cursors::at_head(),
            parked: Parked::default(),
            waiting: BTreeSet::new(),
            tried: HashMap::new(),
            reading: None,
            cross_priority: CrossPriority::default(),
            cross_priority_loaded: None,
            announced: NOTHING,
            announced_before: NOTHING,
            waiting_tables: BTreeSet::new(),
            requests: 0,
            rescans: Rescans::new(bounded),
            cut_short: false,
            put_off: false,
            high_not_before: Instant::now(),
        }
    }

    pub fn parked(&mut self) -> &mut Parked {
        &mut self.parked
    }

    /// When the reader goes back, which everybody may ask for.
    pub fn rescans(&mut self) -> &mut Rescans {
        &mut self.rescans
    }

    /// Another sender may have had the turn: nothing that was found out counts any more.
    pub fn forget(&mut self) {
        self.cut_short = false;
        self.rescans.request(Rescan::Head);
    }

    /// Whether the next read has to begin further back. `ahead`: a batch has been read that is not sent yet.
    pub fn has_to_rescan(&self, ahead: bool) -> bool {
        if self.cut_short {
            return false; // it goes on until it has a batch: a session that always starts over sends nothing
        }
        let nothing_in_front = !ahead && self.cursors.are_at_end();
        self.rescans.are_wanted(nothing_in_front) || !self.cross_priority.is_empty() && self.cross_priority_is_old()
    }

    /// Whether it has gone only some of the way, back or forward.
    pub fn is_under_way(&self) -> bool {
        self.rescans.is_under_way() || self.cut_short || self.put_off
    }

    fn cross_priority_is_old(&self) -> bool {
        self.cross_priority_loaded.is_none_or(|at| at.elapsed() >= CROSS_PRIORITY_EVERY)
    }

    /// When the next change that was left behind becomes due.
    pub fn next_due(&self) -> Option<Instant> {
        self.rescans.next_due()
    }

    /// When it last came to the end of a look back to the head.
    pub fn looked_at_everything(&self) -> Instant {
        self.rescans.looked_at_everything()
    }

    /// Whether nothing at all is left, of any status.
    pub fn is_empty(&self) -> bool {
        let none_left_behind = self.cursors.iter().all(|cursor| cursor.first_left_behind.is_none());
        self.cursors.are_at_end() && none_left_behind && self.waiting.is_empty()
    }

    /// Goes back, inside a step, or some of the way. Returns whether it has come to the end. The session has settled
    /// everything that was answered, and sends nothing before this has come to its end. `ahead`: a batch had been read
    /// that was not sent.
    pub fn rescan(&mut self, schema: &Schema, ahead: bool) -> bool {
        let began = Instant::now();
        let nothing_in_front = !ahead && self.cursors.are_at_end();
        let Some(found) = self.rescans.look_back(schema, self.target_id, nothing_in_front, began) else {
            return false;
        };
        let LookBack { from, started, now, due_by, mut parked, waiting, waiting_tables, took, .. } = found;
        let mut from = self.rescans.furthest(from);
        // Somebody has freed a change that was passed over, and has not been able to announce that yet.
        if self.waiting.iter().any(|id| !waiting.contains(id)) {
            from = Rescan::Head;
        }
        self.tried.iter().for_each(|(id, touched)| _ = parked.park(touched, *id));
        (self.parked, self.waiting, self.waiting_tables) = (parked, waiting, waiting_tables);
        self.cursors.iter_mut().for_each(|cursor| cursor.rescan(from));
        self.rescans.look_up_next_due(schema, self.target_id, due_by, (started, now));
        if self.bounded && self.requests == 0 {
            let committed = Snapshot::take();
            self.cursors.iter_mut().for_each(|cursor| cursor.committed = committed.clone());
        }
        if self.bounded {
            self.load_cross_priority(schema);
        } else {
            self.cross_priority_loaded = None; // together with the next snapshot
        }
        self.rescans.have_begun(from, || took + began.elapsed());
        true
    }

    /// The next batch; empty if nothing deliverable is in front of the cursors. With `only_high`, only what is in HIGH.
    /// What it holds is durable when this returns (`invariants` 13). `in_hand` are the keys of what the session has
    /// read before and not settled (ids can begin again).
    pub fn read(
        &mut self,
        schema: &Schema,
        (rows, bytes): (usize, usize),
        only_high: bool,
        announcements: &dyn Announcements,
        in_hand: impl FnOnce() -> HashSet<Uuid>,
    ) -> Batch {
        let began = Instant::now();
        self.reading = None;
        self.take_snapshot(schema, announcements);
        self.cut_short = false;
        let in_hand = if self.cursors.have_gone_back() { in_hand() } else { HashSet::new() };
        let mut batch = Batch::default();
        let shape = Shape::of(schema.oid, LockMode::AccessShare);
        let shares = match only_high {
            true => vec![(Priority::High, rows, bytes)],
            false => shares::of_request(self.requests, rows, bytes),
        };
        for (priority, rows, bytes) in shares {
            if !self.cursors.of(priority).at_end && batch.len() < rows {
                self.read_priority(schema, &shape, (priority, rows, bytes), began, &in_hand, &mut batch);
            }
        }
        if !batch.is_empty() {
            self.cut_short = false;
            wal::flush();
        }
        batch
    }

    /// Reads one priority on from its cursor, until the batch has this many changes or bytes.
    fn read_priority(
        &mut self,
        schema: &Schema,
        shape: &Shape,
        (priority, rows, bytes): (Priority, usize, usize),
        began: Instant,
        in_hand: &HashSet<Uuid>,
        batch: &mut Batch,
    ) {
        let Reader { target_id, selection, cursors, parked, waiting, tried, rescans, cut_short, reading, .. } = self;
        let cursor = cursors.of_mut(priority);
        let scan = QueueScan {
            shape,
            target_id: *target_id,
            priority,
            after: cursor.position,
            committed: &cursor.committed,
            due_by: rescans.due_by(),
            rows,
            bytes,
            own_txid: selection.own_txid,
        };
        let first_left_behind = &mut cursor.first_left_behind;
        let ended = scan.read(
            schema,
            batch,
            |id, dedup_key| {
                *reading = Some((priority, id));
                !tried.contains_key(&id) && (in_hand.is_empty() || !in_hand.contains(&dedup_key()))
            },
            |left| {
                parked.park(&left.touched, left.id);
                if left.waits_for_a_person {
                    waiting.insert(left.id);
                } else {
                    note_first(first_left_behind, left.id);
                }
                // The clock is read for every row, because a row can be large.
                if began.elapsed() >= STEP {
                    *cut_short = true;
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            },
        );
        *reading = None;
        cursor.position = ended.at;
        cursor.at_end = !ended.full;
    }

    /// Whether HIGH may have something that was not there when the last batch was read.
    pub fn may_have_high(&self, announcements: &dyn Announcements) -> bool {
        if self.bounded { self.high_may_be_read_again() } else { announcements.clear_flag_and_check() }
    }

    fn high_may_be_read_again(&self) -> bool {
        self.cross_priority.is_empty()
            && self.high_not_before <= Instant::now()
            && self.cursors.of(Priority::High).at_end
    }

    /// Marks the change that the last read has failed at DEAD, without reading its data. Inside a step. Returns whether
    /// there was one, and it could have gone.
    pub fn give_up_on_unreadable(&mut self, schema: &Schema, why: &str) -> bool {
        let Some((priority, id)) = self.reading else { return false };
        let given_up = queue::give_up(schema, self.target_id, priority, id, why);
        if given_up {
            self.waiting.insert(id);
        }
        given_up
    }

    /// Has the cursors see what has been committed meanwhile, and go back as far as they have to.
    fn take_snapshot(&mut self, schema: &Schema, announcements: &dyn Announcements) {
        if self.bounded {
            if self.high_may_be_read_again() {
                let high = self.cursors.of_mut(Priority::High);
                high.go_back_to_head();
                (high.at_end, high.committed) = (false, Snapshot::take());
                self.load_cross_priority(schema); // of what has just been committed too
            }
            return;
        }
        if self.cut_short {
            self.announced = self.announced.min(announcements.take_first_id());
        }
        // A session that always starts over sends nothing.
        let from = self.announced.min(self.announced_before);
        let is_on_its_way = self.cut_short && self.cursors.iter().any(|cursor| from <= cursor.position);
        if is_on_its_way || !self.cross_priority.is_empty() && !self.cross_priority_is_old() {
            self.put_off = is_on_its_way;
            // What may have been announced after the last snapshot is read with the next one.
            self.announced = from;
            return;
        }
        self.put_off = false;
        let committed = Snapshot::take();
        self.announced = self.announced.min(announcements.take_first_id());
        let from = self.announced.min(self.announced_before);
        self.load_cross_priority(schema);
        for cursor in self.cursors.iter_mut() {
            cursor.go_back_before(from);
            (cursor.committed, cursor.at_end) = (committed.clone(), false);
        }
    }

    fn load_cross_priority(&mut self, schema: &Schema) {
        self.cross_priority = CrossPriority::load(schema, self.target_id);
        self.cross_priority_loaded = Some(Instant::now());
    }

    /// Where the cursors are.
    pub fn position(&self) -> Cursors {
        self.cursors.clone()
    }

    /// The step that moved the cursors was rolled back.
    pub fn restore(&mut self, position: Cursors) {
        self.cursors = position;
    }

    /// The step that read was done: what was announced has been read, or will be seen by the next snapshot.
    pub fn confirm(&mut self, took: Duration, only_high: bool) {
        self.requests = self.requests.wrapping_add(u32::from(!only_high));
        (self.announced_before, self.announced) = (self.announced, NOTHING);
        if self.bounded {
            self.high_not_before = Instant::now() + (LOOK_BACK_SHARE * took).min(LOOK_FOR_HIGH_EVERY).max(took);
        }
    }

    /// Has the cursors go back to where a batch was read: nothing of it was picked.
    pub fn put_back(&mut self, batch: &Batch) {
        for change in &batch.changes {
            let cursor = self.cursors.of_mut(change.priority);
            cursor.go_back_before(change.id);
            cursor.at_end = false;
        }
    }

    /// Takes note that a change is still there, whether it has been tried or not.
    pub fn leave_behind(&mut self, priority: Priority, id: i64, waits_for_a_person: bool) {
        if waits_for_a_person {
            self.waiting.insert(id);
        } else {
            note_first(&mut self.cursors.of_mut(priority).first_left_behind, id);
        }
    }

    /// Leaves changes of a batch where they are, behind the cursor: what comes later of their keys waits for the next
    /// rescan.
    pub fn leave_all_behind(&mut self, batch: &Batch, positions: impl IntoIterator<Item = usize>) {
        for i in positions {
            let change = &batch.changes[i];
            self.parked.park(&batch.touched(change), change.id);
            self.leave_behind(change.priority, change.id, false);
        }
    }

    /// Remembers that a bounded session has tried a change that is still there.
    pub fn tried(&mut self, id: i64, touched: Touched) {
        if self.bounded {
            self.tried.insert(id, touched);
        }
    }

    /// Whether keys have changes in several priorities, some of which wait for those of another one.
    pub fn waits_across_priorities(&self) -> bool {
        !self.cross_priority.is_empty()
    }

    /// Picks at most `most` changes of a batch that may go now. Returns their positions, and how many others have to
    /// wait for an earlier change of their key.
    pub fn pick(&mut self, batch: &Batch, most: usize) -> (Vec<usize>, usize) {
        self.rescans.note_batch(batch);
        let Reader { selection, parked, cross_priority, .. } = self;
        let Picked { positions, blocked, left_behind } =
            pick(batch, most, selection.branch.as_deref(), parked, cross_priority);
        left_behind.into_iter().for_each(|(priority, id)| self.leave_behind(priority, id, false));
        (positions, blocked)
    }
}
