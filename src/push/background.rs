//! Pushing in the background: what the worker of a database calls whenever it is woken.

use super::sender::Sender;
use super::transactions::{Own, Transactions};
use super::watch::Watch;
use crate::error::or_raise;
use crate::pg::extension;
use crate::settings;
use crate::store::identity::{self, Copied, Standing};
use crate::store::{Schema, queue, target};
use std::collections::HashMap;
use std::time::Duration;

/// How often a copy says that it is one, and how soon it looks again: adoption wakes the worker.
pub const CLONED: Duration = Duration::from_secs(3600);

/// When to look again.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// Something is due then, whether or not anything new is committed.
    pub due_in: Option<Duration>,
    /// Nothing deliverable is left.
    pub idle: bool,
    /// Nothing can change before, whatever is committed: writers may go on without waking anybody.
    pub deaf_for: Duration,
    /// Nothing is due then, but a look at what waits.
    pub look_in: Option<Duration>,
    /// The database is a copy, so that nothing is sent until somebody adopts it.
    pub cloned: Option<Copied>,
}

impl Next {
    pub fn idle() -> Self {
        Next { due_in: None, idle: true, deaf_for: Duration::ZERO, look_in: None, cloned: None }
    }

    pub fn not_before(due_in: Duration) -> Self {
        Next { due_in: Some(due_in), idle: false, ..Next::idle() }
    }
}

/// A database's senders, one for each target. They live as long as the worker.
#[derive(Default)]
pub struct Background {
    senders: HashMap<i16, Sender>,
    watch: Watch,
}

impl Background {
    /// Changes that have been there for long may be deliverable now.
    pub fn look_at_everything(&mut self) {
        self.senders.values_mut().for_each(Sender::look_at_everything);
    }

    /// Pushes everything that may be pushed now, for every target. Called outside any transaction. PostgreSQL's ERRORs
    /// come out as unwinds; the caller aborts what is open.
    pub fn run(&mut self) -> Next {
        if !settings::enabled() {
            return Next::idle();
        }
        let Background { senders, watch } = self;
        let Some((schema, targets)) = Own.step(|| {
            let schema = or_raise(Schema::of(extension::installed()?));
            watch.look(&schema);
            match identity::standing(&schema) {
                Standing::Copied(copied) => return Some((schema, Err(copied))),
                // At once, so that a copy made of a promoted standby is known as one.
                Standing::Moved => _ = identity::admit(&schema),
                Standing::Ours | Standing::Unnamed => {}
            }
            let mut targets = Vec::new();
            for target in target::all(&schema) {
                let mark = senders.entry(target.id).or_default().begin_at();
                let waiting = queue::any_left(&schema, target.id, None, mark, i64::MAX);
                targets.push((target::state(&schema, target.id), waiting, target));
            }
            Some((schema, Ok(targets)))
        }) else {
            return Next::idle();
        };
        let targets = match targets {
            Ok(targets) => targets,
            Err(copied) => return Next { look_in: Some(CLONED), cloned: Some(copied), ..Next::idle() },
        };
        let mut next = Next { deaf_for: Duration::MAX, look_in: self.watch.too_old_in(), ..Next::idle() };
        for (state, waiting, target) in targets {
            let Some(sender) = self.senders.get_mut(&target.id) else { continue };
            let one = sender.run(&schema, target, &state, waiting);
            next.idle &= one.idle;
            next.due_in = [next.due_in, one.due_in].into_iter().flatten().min();
            next.deaf_for = next.deaf_for.min(one.deaf_for);
        }
        if next.deaf_for == Duration::MAX {
            next.deaf_for = Duration::ZERO; // no target yet
        }
        next
    }

    /// Brings everything up to date that is written down now and then, before the worker leaves.
    pub fn finish(&mut self) {
        if let Ok(schema) = Own.step(Schema::installed) {
            self.senders.iter_mut().for_each(|(id, sender)| sender.finish(&schema, *id));
        }
    }
}
