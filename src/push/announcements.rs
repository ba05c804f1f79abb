//! What writers announce to the worker of a database, passed on to the session of each target; and when the worker has
//! to look again.

pub use crate::shared::NOTHING;
use crate::store::identity::Copied;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// When to look again.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// Something is due then, whether or not anything new is committed.
    pub due: Option<Instant>,
    /// Nothing deliverable is left.
    pub idle: bool,
    /// A request is out, or something is to be settled.
    pub busy: bool,
    /// Nothing is due then, but the backlog is to be looked at.
    pub look_in: Option<Duration>,
    /// The database is a copy, so that nothing is sent until somebody adopts it.
    pub cloned: Option<Copied>,
}

impl Next {
    pub fn idle() -> Self {
        Next { due: None, idle: true, busy: false, look_in: None, cloned: None }
    }
}

/// What writers announce to the worker of a database.
pub trait Signals {
    /// The first id of what has been committed since the last call, or may have been.
    fn take_first_id(&self) -> i64;
    /// Clears the flag that writers raise. Returns whether it was raised.
    fn take_wanted(&self) -> bool;
}

/// What was announced to the session of one target.
pub trait Announcements {
    /// Takes the announcements: from which id on something may have been committed since the last call, or
    /// [`NOTHING`]. To be called after a snapshot was taken.
    fn take_first_id(&self) -> i64;
    /// Clears the flag that writers raise, and returns whether there may be announcements that have not been taken.
    fn clear_flag_and_check(&self) -> bool;
}

/// Passes the announcements on to the session of each target.
pub struct Announcer {
    signals: Rc<dyn Signals>,
    /// By target, what its session has not taken: whether there may be announcements, and their first id.
    pending: RefCell<BTreeMap<i16, (bool, i64)>>,
}

impl Announcer {
    pub fn new(signals: Rc<dyn Signals>) -> Self {
        Announcer { signals, pending: RefCell::default() }
    }

    /// There is a session for this target from now on: there may be announcements for it.
    pub fn begin(&self, target_id: i16) {
        self.pending.borrow_mut().insert(target_id, (true, NOTHING));
    }

    /// The announcements for one target.
    pub fn for_target(&self, target_id: i16) -> impl Announcements {
        ForTarget { announcer: self, target_id }
    }

    /// Clears the flag that writers raise: the next one that commits wakes the worker.
    pub fn clear_flag(&self) {
        if self.signals.take_wanted() {
            self.pending.borrow_mut().values_mut().for_each(|(any, _)| *any = true);
        }
    }
}

struct ForTarget<'a> {
    announcer: &'a Announcer,
    target_id: i16,
}

impl Announcements for ForTarget<'_> {
    fn take_first_id(&self) -> i64 {
        let first_id = self.announcer.signals.take_first_id();
        let mut pending = self.announcer.pending.borrow_mut();
        pending.values_mut().for_each(|(_, first)| *first = first_id.min(*first));
        let before = pending.insert(self.target_id, (false, NOTHING));
        before.map_or(first_id, |(_, first)| first)
    }

    fn clear_flag_and_check(&self) -> bool {
        self.announcer.clear_flag();
        self.announcer.pending.borrow().get(&self.target_id).is_none_or(|(any, _)| *any)
    }
}
