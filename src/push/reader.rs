//! Reading batches in order, in each priority forward from a cursor, so that what lies dead behind it costs nothing.
//!
//! **What is behind a cursor has been dealt with**: it is gone, or its key is parked. That is what keeps the order of a
//! key, and it holds because of three things. A transaction that drew a low id and commits late is announced with its
//! first id ([`News`]), and the cursor goes back there before anything that the new snapshot sees is read. What is left
//! behind (refused, not due, blocked) parks its keys. And what frees such a change (its time, a requeue, a discard,
//! another sender's turn) is followed by a rescan, which goes back to it and asks the table anew which keys are parked.
//!
//! **Changes that are tried again have at most half of the time** while others have not been tried at all: a run of
//! changes that the target refuses, one request each, would otherwise be due again before it is through, and nothing
//! behind it would go.
//!
//! A bounded session (flush, drain) has nobody who announces anything: it sees what was committed at its beginning, and
//! what comes later in HIGH, which it reads from its head for every batch.

use super::cross_priority::CrossPriority;
use crate::pg::clock;
use crate::pg::relation_lock::LockMode;
use crate::pg::wal;
use crate::store::queue::ParkedUpTo;
use crate::store::queue_scan::QueueScan;
use crate::store::shape::Shape;
use crate::store::snapshot::Snapshot;
use crate::store::{Schema, queue};
use delivery::batch::Batch;
use delivery::keys::{Parked, Touched};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use uuid::Uuid;
use wire::Priority;

/// Below every id.
const HEAD: i64 = i64::MIN;
/// No id.
const NOTHING: i64 = i64::MAX;
/// Every so many requests, the lower priorities have their share of one first: a quarter of its changes and bytes each.
const FAIR_EVERY: u32 = 8;
/// How often keys with changes in several priorities are looked for while there are any: that reads all of theirs.
const CROSS_PRIORITY_EVERY: Duration = Duration::from_secs(1);
/// Looking back may take this share of the time, one in so many; a bounded session's looks for HIGH changes too, as
/// long as that has none of them wait longer than this.
const LOOK_BACK_SHARE: u32 = 10;
const LOOK_FOR_HIGH_EVERY: Duration = Duration::from_millis(5);
/// How long looking back, or passing over what cannot go, may take at a time: the other targets of a worker wait so
/// long.
const STEP: Duration = Duration::from_millis(20);
/// How often looking back in steps may be disturbed before it is done in one.
const MOST_AGAIN: u32 = 3;

/// Which changes a session is about.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub branch: Option<String>,
    /// The caller's own transaction.
    pub own_txid: Option<u64>,
}

/// Where a rescan begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rescan {
    /// At the first change that was left behind.
    Left,
    /// At the first change there is: anything may have been freed, or brought by hand.
    Head,
}

/// Tells from which id on something may have been committed since the last call; asked after a snapshot was taken.
pub trait News {
    fn first_id(&self) -> i64;
    /// Whether there may be any.
    fn is_there(&self) -> bool;
}

/// How far one priority has been read.
#[derive(Clone, Debug)]
struct Lane {
    cursor: i64,
    /// Where it has been before it went back: up to there is what the session may have in hand.
    been_at: i64,
    /// Nothing that the snapshot sees is in front of the cursor.
    at_end: bool,
    /// What is read is what this sees.
    committed: Snapshot,
    /// The first change behind the cursor that is still there and does not wait for a person.
    first_left: Option<i64>,
}

impl Lane {
    fn go_back_to(&mut self, cursor: i64) {
        if cursor < self.cursor {
            self.been_at = self.been_at.max(self.cursor);
            self.cursor = cursor;
        }
    }
}

/// The cursors, to be put back when the step that moved them is undone.
pub struct Position([Lane; 3]);

pub struct Reader {
    target_id: i16,
    scope: Scope,
    bounded: bool,
    lanes: [Lane; 3],
    /// Keys behind which later changes wait.
    parked: Parked,
    /// Changes that wait for a person, as far as they have been seen.
    waiting: BTreeSet<i64>,
    /// FAILED changes due until then may go (microseconds, as `clock::now_micros()`): what was parked was found out
    /// then.
    due_by: i64,
    /// When the next one is due after that.
    next_due: Option<Instant>,
    /// Since when those are tried again, until a batch holds none of them.
    retrying_since: Option<Instant>,
    /// Those that have become due wait so long for changes that have not been tried yet.
    untried_until: Instant,
    /// A bounded session tries a change once: not again, and what comes later of its keys waits.
    tried: HashMap<i64, Touched>,
    cross_priority: CrossPriority,
    cross_priority_loaded: Option<Instant>,
    /// News that have not been read for sure, and those of the read before: a transaction that was announced after the
    /// snapshot was taken is seen by the next one.
    news: i64,
    news_before: i64,
    /// Tables that wait as a whole because too many of their keys are parked, quoted.
    pub waiting_tables: BTreeSet<String>,
    requests: u32,
    rescan: Option<Rescan>,
    looking_back: Option<LookingBack>,
    /// The last read passed over so much that it ended before its time.
    cut_short: bool,
    /// News have been put off until that has got somewhere.
    put_off: bool,
    /// No rescan before this, unless somebody asks for one: the last one was expensive.
    not_before: Instant,
    /// When a HIGH change was last looked for, and may be again.
    high_not_before: Instant,
    looked_at_everything: Instant,
}

/// A look at every change that parks its keys, over as many steps as it takes.
struct LookingBack {
    from: Rescan,
    started: Instant,
    /// The time then, and what was due by when may go (microseconds, as `clock::now_micros()`).
    now: i64,
    due_by: i64,
    /// Changes that have become due since the last look may go.
    retries: bool,
    up_to: ParkedUpTo,
    parked: Parked,
    waiting: BTreeSet<i64>,
    waiting_tables: BTreeSet<String>,
    /// How many it has seen, and the sum of their ids, as `queue::count_parked()` counts.
    seen: (i64, i64),
    steps: u32,
    /// How often it had to begin anew.
    again: u32,
    took: Duration,
}

impl LookingBack {
    /// Changes that have become due since `due_before` may go only with `retries`.
    fn new(from: Rescan, retries: bool, due_before: i64) -> Self {
        let now = clock::now_micros();
        LookingBack {
            from,
            started: Instant::now(),
            now,
            due_by: if retries { now } else { due_before },
            retries,
            up_to: ParkedUpTo::default(),
            parked: Parked::default(),
            waiting: BTreeSet::new(),
            waiting_tables: BTreeSet::new(),
            seen: (0, 0),
            steps: 0,
            again: 0,
            took: Duration::ZERO,
        }
    }

    /// Goes on for one step that began then; whether it is at the end.
    fn advance(&mut self, schema: &Schema, target_id: i16, began: Instant) -> bool {
        let LookingBack { due_by, up_to, parked, waiting, waiting_tables, .. } = self;
        let (mut rows, mut sum) = (0, 0);
        let whole = self.again >= MOST_AGAIN;
        let stopped_at = queue::parked(schema, target_id, *due_by, up_to, |row| {
            let touched = Touched::new(&row.schema_name, &row.table_name, row.pk.as_deref(), row.data.as_deref());
            if row.waits_for_a_person() {
                waiting.insert(row.id);
            }
            if parked.park(&touched, row.id) {
                waiting_tables.insert(format!("\"{}\".\"{}\"", row.schema_name, row.table_name));
            }
            (rows, sum) = (rows + 1, sum + row.id % queue::PARKED_MODULUS);
            let long = !whole && began.elapsed() >= STEP;
            if long { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // Only here: a step that is undone is done again.
        self.seen = (self.seen.0 + rows, self.seen.1 + sum);
        self.steps += 1;
        if let Some(up_to) = stopped_at {
            self.up_to = up_to;
            self.took += began.elapsed();
            return false;
        }
        // Each step has seen the table as it was then: what somebody moved meanwhile by hand can have been passed over.
        if self.steps > 1 && self.seen != queue::count_parked(schema, target_id, self.due_by) {
            let took = self.took + began.elapsed();
            *self =
                LookingBack { again: self.again + 1, took, ..LookingBack::new(self.from, self.retries, self.due_by) };
            return false;
        }
        true
    }
}

impl Reader {
    pub fn new(target_id: i16, scope: Scope, bounded: bool) -> Self {
        let lane =
            Lane { cursor: HEAD, been_at: HEAD, at_end: false, committed: Snapshot::default(), first_left: None };
        let now = Instant::now();
        Reader {
            target_id,
            scope,
            bounded,
            lanes: [lane.clone(), lane.clone(), lane],
            parked: Parked::default(),
            waiting: BTreeSet::new(),
            due_by: i64::MIN,
            next_due: None,
            retrying_since: None,
            untried_until: now,
            tried: HashMap::new(),
            cross_priority: CrossPriority::default(),
            cross_priority_loaded: None,
            news: NOTHING,
            news_before: NOTHING,
            waiting_tables: BTreeSet::new(),
            requests: 0,
            rescan: Some(Rescan::Head),
            looking_back: None,
            cut_short: false,
            put_off: false,
            not_before: now,
            high_not_before: now,
            looked_at_everything: now,
        }
    }

    pub fn parked(&mut self) -> &mut Parked {
        &mut self.parked
    }

    /// Has the next read begin further back.
    pub fn ask_for_rescan(&mut self, from: Rescan) {
        self.rescan = self.rescan.max(Some(from));
        // A look that is under way goes on: whoever begins anew each time he is asked never comes to an end. At its end
        // it compares what it has seen with what is there by then.
    }

    /// Another sender may have had the turn: nothing that was found out counts any more.
    pub fn forget(&mut self) {
        self.cut_short = false;
        self.ask_for_rescan(Rescan::Head);
    }

    /// Whether the next read has to begin further back: because somebody asked for it, or the time of a change has
    /// come. `ahead`: a batch has been read that is not sent yet.
    pub fn has_to_rescan(&self, ahead: bool) -> bool {
        if self.cut_short {
            return false; // it goes on until it has got somewhere: whoever always begins anew sends nothing
        }
        let now = Instant::now();
        let is_due =
            || self.next_due.is_some_and(|due| due <= now) && self.not_before <= now && self.may_retry(now, ahead);
        self.rescan.is_some()
            || self.looking_back.is_some()
            || !self.bounded && is_due()
            || !self.cross_priority.is_empty() && self.cross_priority_is_old()
    }

    /// Whether changes that have become due again may go: those that have not been tried have had their turn, or there
    /// are none. Whoever asks for a rescan may have left some behind the cursors.
    fn may_retry(&self, now: Instant, ahead: bool) -> bool {
        self.retrying_since.is_none() && self.untried_until <= now
            || self.rescan.is_none() && !ahead && self.lanes.iter().all(|lane| lane.at_end)
    }

    /// Everything that is due may be tried again: the target was down meanwhile.
    pub fn start_again(&mut self) {
        (self.retrying_since, self.untried_until) = (None, Instant::now());
        self.ask_for_rescan(Rescan::Left);
    }

    /// Whether it has gone only some of the way, back or forward.
    pub fn is_under_way(&self) -> bool {
        self.looking_back.is_some() || self.cut_short || self.put_off
    }

    fn cross_priority_is_old(&self) -> bool {
        self.cross_priority_loaded.is_none_or(|at| at.elapsed() >= CROSS_PRIORITY_EVERY)
    }

    /// When the time of the next change that was left has come.
    pub fn next_due(&self) -> Option<Instant> {
        self.next_due.map(|due| due.max(self.not_before))
    }

    /// When it last came to the end of a look back to the head.
    pub fn looked_at_everything(&self) -> Instant {
        self.looked_at_everything
    }

    /// Whether nothing is left but what waits for a person.
    pub fn is_through(&self) -> bool {
        self.lanes.iter().all(|lane| lane.at_end && lane.first_left.is_none())
    }

    /// Whether nothing at all is left, of any status.
    pub fn is_empty(&self) -> bool {
        self.is_through() && self.waiting.is_empty()
    }

    /// Goes back, inside a step, or some of the way: whether it has come to the end. What the session has had answered
    /// is settled, and nothing is sent before it is at the end. `ahead`: a batch had been read that was not sent.
    pub fn look_back(&mut self, schema: &Schema, ahead: bool) -> bool {
        let began = Instant::now();
        let from = self.rescan.unwrap_or(Rescan::Left);
        let retries = self.bounded || from == Rescan::Head || self.may_retry(began, ahead);
        let Reader { target_id, due_by, looking_back, .. } = self;
        let going = looking_back.get_or_insert_with(|| LookingBack::new(from, retries, *due_by));
        if !going.advance(schema, *target_id, began) {
            return false;
        }
        let Some(looked) = self.looking_back.take() else { return false };
        let LookingBack { from, started, now, due_by, retries, mut parked, waiting, waiting_tables, took, .. } = looked;
        let mut from = self.rescan.map_or(from, |asked_meanwhile| asked_meanwhile.max(from));
        // Somebody has freed a change that was passed over, and has not been able to say so yet.
        if self.waiting.iter().any(|id| !waiting.contains(id)) {
            from = Rescan::Head;
        }
        self.tried.iter().for_each(|(id, touched)| _ = parked.park(touched, *id));
        (self.parked, self.waiting, self.waiting_tables) = (parked, waiting, waiting_tables);
        if retries {
            self.retrying_since = Some(Instant::now());
        }
        for lane in &mut self.lanes {
            match (from, lane.first_left) {
                (Rescan::Head, _) => lane.go_back_to(HEAD),
                (Rescan::Left, Some(id)) => lane.go_back_to(id.saturating_sub(1)),
                (Rescan::Left, None) => {}
            }
            (lane.first_left, lane.at_end) = (None, false);
        }
        self.due_by = due_by;
        self.next_due = queue::due_in_ms(schema, self.target_id, due_by).map(|ms| {
            let micros = ms.saturating_mul(1000).saturating_sub(now.saturating_sub(due_by));
            started + Duration::from_micros(micros.max(1000) as u64)
        });
        if self.bounded && self.requests == 0 {
            let committed = Snapshot::take();
            self.lanes.iter_mut().for_each(|lane| lane.committed = committed.clone());
        }
        if self.bounded {
            self.load_cross_priority(schema);
        } else {
            self.cross_priority_loaded = None; // together with the next snapshot
        }
        if from == Rescan::Head {
            self.looked_at_everything = Instant::now();
        }
        self.rescan = None;
        self.not_before = Instant::now() + LOOK_BACK_SHARE * (took + began.elapsed());
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
        news: &dyn News,
        in_hand: impl FnOnce() -> HashSet<Uuid>,
    ) -> Batch {
        let began = Instant::now();
        self.take_snapshot(schema, news);
        self.cut_short = false;
        let gone_back = self.lanes.iter().any(|lane| lane.cursor < lane.been_at);
        let in_hand = if gone_back { in_hand() } else { HashSet::new() };
        let mut batch = Batch::default();
        let shape = Shape::of(schema.oid, LockMode::AccessShare);
        for (priority, rows, bytes) in self.shares(rows, bytes, only_high) {
            let Reader { target_id, scope, lanes, parked, waiting, tried, due_by, cut_short, .. } = self;
            let lane = &mut lanes[priority as usize];
            if lane.at_end || batch.len() >= rows {
                continue;
            }
            let scan = QueueScan {
                shape: &shape,
                target_id: *target_id,
                priority,
                after: lane.cursor,
                committed: &lane.committed,
                due_by: *due_by,
                rows,
                bytes,
                own_txid: scope.own_txid,
            };
            let first_left = &mut lane.first_left;
            let ended = scan.read(
                schema,
                &mut batch,
                |id, dedup_key| !tried.contains_key(&id) && (in_hand.is_empty() || !in_hand.contains(&dedup_key())),
                |left| {
                    parked.park(&left.touched, left.id);
                    if left.waits_for_a_person {
                        waiting.insert(left.id);
                    } else {
                        *first_left = Some(first_left.map_or(left.id, |first| first.min(left.id)));
                    }
                    // The clock is looked at for every row: it can be large.
                    if began.elapsed() >= STEP {
                        *cut_short = true;
                        return ControlFlow::Break(());
                    }
                    ControlFlow::Continue(())
                },
            );
            lane.cursor = ended.at;
            lane.at_end = !ended.full;
        }
        if !batch.is_empty() {
            self.cut_short = false; // it has got somewhere
            wal::flush();
        }
        batch
    }

    /// Whether HIGH may have something that was not there when the last batch was read.
    pub fn may_have_high(&self, news: &dyn News) -> bool {
        if self.bounded { self.high_may_be_read_again() } else { news.is_there() }
    }

    fn high_may_be_read_again(&self) -> bool {
        self.cross_priority.is_empty()
            && self.high_not_before <= Instant::now()
            && self.lanes[Priority::High as usize].at_end
    }

    /// Marks the next deliverable change DEAD without reading its data. Inside a step.
    pub fn give_up_on_next(&mut self, schema: &Schema, target_id: i16, why: &str) {
        for priority in Priority::ALL {
            let lane = &mut self.lanes[priority as usize];
            if let Some(id) = queue::give_up_on_next(schema, target_id, priority, lane.cursor, why) {
                self.waiting.insert(id);
                return;
            }
        }
    }

    /// Has the cursors see what has been committed meanwhile, and go back as far as they have to.
    fn take_snapshot(&mut self, schema: &Schema, news: &dyn News) {
        if self.bounded {
            if self.high_may_be_read_again() {
                let high = &mut self.lanes[Priority::High as usize];
                high.go_back_to(HEAD);
                (high.at_end, high.committed) = (false, Snapshot::take());
                self.load_cross_priority(schema); // of what has just been committed too
            }
            return;
        }
        if self.cut_short {
            self.news = self.news.min(news.first_id());
        }
        // Whoever always begins anew sends nothing.
        let is_on_its_way =
            self.cut_short && self.lanes.iter().any(|lane| self.news.min(self.news_before) <= lane.cursor);
        if is_on_its_way || !self.cross_priority.is_empty() && !self.cross_priority_is_old() {
            self.put_off = is_on_its_way;
            // What may have been announced after the last snapshot is read with the next one.
            self.news = self.news.min(self.news_before);
            return;
        }
        self.put_off = false;
        let committed = Snapshot::take();
        self.news = self.news.min(news.first_id());
        let from = self.news.min(self.news_before);
        self.load_cross_priority(schema);
        for lane in &mut self.lanes {
            lane.go_back_to(from.saturating_sub(1));
            (lane.committed, lane.at_end) = (committed.clone(), false);
        }
    }

    fn load_cross_priority(&mut self, schema: &Schema) {
        self.cross_priority = CrossPriority::load(schema, self.target_id);
        self.cross_priority_loaded = Some(Instant::now());
    }

    /// In which order the priorities are read, and up to how many changes and bytes the batch may have after each.
    fn shares(&self, rows: usize, bytes: usize, only_high: bool) -> Vec<(Priority, usize, usize)> {
        use Priority::{High, Low, Normal};
        if only_high {
            return vec![(High, rows, bytes)];
        }
        let mut shares = vec![(High, rows, bytes), (Normal, rows, bytes), (Low, rows, bytes)];
        if self.requests % FAIR_EVERY == FAIR_EVERY - 1 {
            let share = |all: usize, of: usize| (all / of).max(1);
            // In turns, for requests that have room for one change only.
            let (first, second) =
                if (self.requests / FAIR_EVERY).is_multiple_of(2) { (Low, Normal) } else { (Normal, Low) };
            shares.splice(0..0, [(first, share(rows, 4), share(bytes, 4)), (second, share(rows, 2), share(bytes, 2))]);
        }
        shares
    }

    /// Where the cursors are.
    pub fn position(&self) -> Position {
        Position(self.lanes.clone())
    }

    /// The step that moved the cursors was undone.
    pub fn put_back(&mut self, position: Position) {
        self.lanes = position.0;
    }

    /// The step that read was done: its news have been read, or will be seen by the next snapshot.
    pub fn confirm(&mut self, took: Duration, only_high: bool) {
        self.requests = self.requests.wrapping_add(u32::from(!only_high));
        (self.news_before, self.news) = (self.news, NOTHING);
        if self.bounded {
            self.high_not_before = Instant::now() + (LOOK_BACK_SHARE * took).min(LOOK_FOR_HIGH_EVERY).max(took);
        }
    }

    /// Has the cursors go back to where a batch was read: nothing of it was picked.
    pub fn take_back(&mut self, batch: &Batch) {
        for change in &batch.changes {
            let lane = &mut self.lanes[change.priority as usize];
            lane.go_back_to(change.id.saturating_sub(1));
            lane.at_end = false;
        }
    }

    /// A change has been tried, or not even that, and is still there.
    pub fn leave(&mut self, priority: Priority, id: i64, waits_for_a_person: bool) {
        if waits_for_a_person {
            self.waiting.insert(id);
            return;
        }
        let first = &mut self.lanes[priority as usize].first_left;
        *first = Some(first.map_or(id, |first| first.min(id)));
    }

    /// Remembers that a bounded session has tried a change that is still there.
    pub fn tried(&mut self, id: i64, touched: Touched) {
        if self.bounded {
            self.tried.insert(id, touched);
        }
    }

    /// A change that was refused may be tried again after a while.
    pub fn due_in(&mut self, wait: Duration) {
        let due = Instant::now() + wait;
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
    }

    /// Whether keys have changes in several priorities, some of which wait for those of another one.
    pub fn waits_across_priorities(&self) -> bool {
        !self.cross_priority.is_empty()
    }

    /// Which changes of a batch may go now, and how many have to wait for an earlier one of their key. What has to
    /// wait, or belongs to another branch, makes everything later of its keys wait as well. At most `most` are picked;
    /// the rest is left.
    pub fn pick(&mut self, batch: &Batch, most: usize) -> (Vec<usize>, usize) {
        if let Some(since) = self.retrying_since
            && batch.changes.iter().all(|change| change.attempts == 0)
        {
            (self.retrying_since, self.untried_until) = (None, Instant::now() + since.elapsed());
        }
        let wanted = self.scope.branch.as_deref();
        let in_branch = |branch: Option<&str>| wanted.is_none() || branch == wanted;
        let nothing_waits = self.parked.is_empty() && self.cross_priority.is_empty();
        if nothing_waits && wanted.is_none() && batch.len() <= most {
            return ((0..batch.len()).collect(), 0);
        }
        let (mut picked, mut blocked, mut left) = (Vec::with_capacity(batch.len()), 0, Vec::new());
        for (i, change) in batch.changes.iter().enumerate() {
            let touched: Touched = batch.touched(change);
            let other_branch = !in_branch(change.branch.as_deref());
            if !other_branch
                && !self.parked.blocks(&touched, change.id)
                && !self.cross_priority.blocks(&touched, change)
                && picked.len() < most
            {
                picked.push(i);
                continue;
            }
            self.parked.park(&touched, change.id);
            left.push((change.priority, change.id));
            if !other_branch && picked.len() < most {
                blocked += 1;
            }
        }
        left.into_iter().for_each(|(priority, id)| self.leave(priority, id, false));
        (picked, blocked)
    }

    /// Leaves changes of a batch where they are, behind the cursor: what comes later of their keys waits for the next
    /// rescan.
    pub fn leave_all(&mut self, batch: &Batch, positions: impl IntoIterator<Item = usize>) {
        for i in positions {
            let change = &batch.changes[i];
            self.parked.park(&batch.touched(change), change.id);
            self.leave(change.priority, change.id, false);
        }
    }
}
