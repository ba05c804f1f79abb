//! When the reader goes back to what it has left behind: because somebody asked for it, or because a change is due.

use super::cursors::Rescan;
use super::look_back::LookBack;
use super::retry_share::RetryShare;
use crate::store::{Schema, queue};
use delivery::batch::Batch;
use std::time::{Duration, Instant};

/// Looking back may take one part in so many of the time.
pub const LOOK_BACK_SHARE: u32 = 10;

pub struct Rescans {
    bounded: bool,
    requested: Option<Rescan>,
    /// A rescan begins with a look back, which finds out what is parked.
    look_back: Option<LookBack>,
    /// FAILED changes due by then may go (microseconds, as `clock::now_micros()`): that was when the parked keys were
    /// looked up.
    due_by: i64,
    /// When the next one is due after that.
    next_due: Option<Instant>,
    retry_share: RetryShare,
    /// No rescan before this, unless somebody asks for one: the last one was expensive.
    not_before: Instant,
    looked_at_everything: Instant,
}

impl Rescans {
    pub fn new(bounded: bool) -> Self {
        let now = Instant::now();
        Rescans {
            bounded,
            requested: Some(Rescan::Head),
            look_back: None,
            due_by: i64::MIN,
            next_due: None,
            retry_share: RetryShare::new(),
            not_before: now,
            looked_at_everything: now,
        }
    }

    /// Has the next read begin further back.
    pub fn request(&mut self, from: Rescan) {
        self.requested = self.requested.max(Some(from));
        // A look back that is under way goes on. If it began again with each request, it would never come to an end. At
        // its end it compares what it has seen with what is there by then.
    }

    /// Everything that is due may be tried again at once.
    pub fn retry_at_once(&mut self) {
        self.retry_share.reset();
        self.request(Rescan::LeftBehind);
    }

    /// Whether the next read has to begin further back. `nothing_in_front`: the session has no change at hand that
    /// could go now, and there is none in front of the cursors.
    pub fn are_wanted(&self, nothing_in_front: bool) -> bool {
        let now = Instant::now();
        let is_due = || {
            self.next_due.is_some_and(|due| due <= now)
                && self.not_before <= now
                && self.may_retry(now, nothing_in_front)
        };
        self.requested.is_some() || self.look_back.is_some() || !self.bounded && is_due()
    }

    /// Whether changes that have become due again may go: those that have not been tried have had their share, or there
    /// are none. After a request for a rescan there may be some behind the cursors.
    fn may_retry(&self, now: Instant, nothing_in_front: bool) -> bool {
        self.retry_share.allows_retries(now) || self.requested.is_none() && nothing_in_front
    }

    /// Whether a look back has gone only some of the way.
    pub fn is_under_way(&self) -> bool {
        self.look_back.is_some()
    }

    /// FAILED changes that are due by then may go.
    pub fn due_by(&self) -> i64 {
        self.due_by
    }

    /// When the next change that was left behind becomes due.
    pub fn next_due(&self) -> Option<Instant> {
        self.next_due.map(|due| due.max(self.not_before))
    }

    /// A change that was refused may be tried again after a while.
    pub fn due_in(&mut self, wait: Duration) {
        let due = Instant::now() + wait;
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
    }

    /// When it last came to the end of a look back to the head.
    pub fn looked_at_everything(&self) -> Instant {
        self.looked_at_everything
    }

    /// Looks back for one step, which began at `began`. Returns what it has found out when it has come to the end.
    pub fn look_back(
        &mut self,
        schema: &Schema,
        target_id: i16,
        nothing_in_front: bool,
        began: Instant,
    ) -> Option<LookBack> {
        let from = self.requested.unwrap_or(Rescan::LeftBehind);
        let retries = self.bounded || self.may_retry(began, nothing_in_front);
        let Rescans { due_by, look_back, .. } = self;
        let under_way = look_back.get_or_insert_with(|| LookBack::new(from, retries, *due_by));
        if under_way.advance(schema, target_id, began) { self.look_back.take() } else { None }
    }

    /// Where the rescan begins after a look back that began with `from`: further back, if that was asked for meanwhile.
    pub fn furthest(&self, from: Rescan) -> Rescan {
        self.requested.map_or(from, |requested| requested.max(from))
    }

    /// Takes note of a batch that goes now.
    pub fn note_batch(&mut self, batch: &Batch) {
        self.retry_share.note_batch(batch);
    }

    /// Takes note that there is nothing to send.
    pub fn rest(&mut self) {
        self.retry_share.reset();
    }

    /// Looks up when the next change becomes due after a look back that began at `started`, when the time was `now`.
    pub fn look_up_next_due(&mut self, schema: &Schema, target_id: i16, due_by: i64, (started, now): (Instant, i64)) {
        self.due_by = due_by;
        self.next_due = queue::due_in_ms(schema, target_id, due_by).map(|ms| {
            let micros = ms.saturating_mul(1000).saturating_sub(now.saturating_sub(due_by));
            started + Duration::from_micros(micros.max(1000) as u64)
        });
    }

    /// The rescan has begun. Finding out where took so long.
    pub fn have_begun(&mut self, from: Rescan, took: impl FnOnce() -> Duration) {
        if from == Rescan::Head {
            self.looked_at_everything = Instant::now();
        }
        self.requested = None;
        self.not_before = Instant::now() + LOOK_BACK_SHARE * took();
    }
}
