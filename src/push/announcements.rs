//! What writers tell the worker, handed on to the session of each target; and when the worker has to look again.

use super::reader::News;
use crate::store::identity::Copied;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// No id.
const NOTHING: i64 = i64::MAX;

/// When to look again.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// Something is due then, whether or not anything new is committed.
    pub due: Option<Instant>,
    /// Nothing deliverable is left.
    pub idle: bool,
    /// A request is out, or something is to be settled.
    pub busy: bool,
    /// Nothing is due then, but a look at what waits.
    pub look_in: Option<Duration>,
    /// The database is a copy, so that nothing is sent until somebody adopts it.
    pub cloned: Option<Copied>,
}

impl Next {
    pub fn idle() -> Self {
        Next { due: None, idle: true, busy: false, look_in: None, cloned: None }
    }
}

/// What writers tell the worker of a database.
pub trait Signals {
    /// The first id of what has been committed since the last call, or may have been.
    fn take_first_id(&self) -> i64;
    /// Takes the announcement of work down; whether it was up.
    fn take_wanted(&self) -> bool;
}

/// The announcements, handed on to the session of each target.
pub struct Announcements {
    signals: Rc<dyn Signals>,
    /// By target: whether there is news that its session has not asked for, and the first id of what it has not been
    /// told.
    untold: RefCell<BTreeMap<i16, (bool, i64)>>,
}

impl Announcements {
    pub fn new(signals: Rc<dyn Signals>) -> Self {
        Announcements { signals, untold: RefCell::default() }
    }

    /// There is a session for this target from now on: there may be news for it.
    pub fn begin(&self, target_id: i16) {
        self.untold.borrow_mut().insert(target_id, (true, NOTHING));
    }

    /// Those for one target.
    pub fn of(&self, target_id: i16) -> impl News {
        TargetNews { all: self, target_id }
    }

    /// Takes the flag down that writers raise: the next one who commits wakes us.
    pub fn look(&self) {
        if self.signals.take_wanted() {
            self.untold.borrow_mut().values_mut().for_each(|(is_there, _)| *is_there = true);
        }
    }
}

struct TargetNews<'a> {
    all: &'a Announcements,
    target_id: i16,
}

impl News for TargetNews<'_> {
    fn first_id(&self) -> i64 {
        let first_id = self.all.signals.take_first_id();
        let mut untold = self.all.untold.borrow_mut();
        untold.values_mut().for_each(|(_, first)| *first = first_id.min(*first));
        let told = untold.insert(self.target_id, (false, NOTHING));
        told.map_or(first_id, |(_, first)| first)
    }

    fn is_there(&self) -> bool {
        self.all.look();
        self.all.untold.borrow().get(&self.target_id).is_none_or(|(is_there, _)| *is_there)
    }
}
