//! Pushing in the background: what the worker of a database calls whenever it is woken. It never waits; the sessions of
//! all targets share one bell, which the worker sleeps on together with its latch.

use super::announcements::{Announcements, Announcer, Next, Signals};
use super::sender::Sender;
use super::transactions::{Own, StepError, Transactions};
use super::watch::Watch;
use crate::error::or_raise;
use crate::pg::activity;
use crate::pg::latch::Bell;
use crate::pg::lock;
use crate::pg::{Oid, extension};
use crate::settings;
use crate::store::Schema;
use crate::store::identity::{self, Copied, Standing};
use crate::store::target::{self, State, Target};
use crate::wake;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a copy logs that it is one, and how soon it checks again: adoption wakes the worker.
pub const CLONED: Duration = Duration::from_secs(3600);
/// How often the activity that others see is brought up to date.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// A database's senders, one for each target. They live as long as the worker.
pub struct BackgroundPush {
    announcer: Announcer,
    pub bell: Arc<Bell>,
    senders: BTreeMap<i16, Sender>,
    installed: Option<Oid>,
    schema: Option<Schema>,
    /// When everything was last looked up, and under which control number.
    looked: Option<(Option<u64>, Instant)>,
    standing: Option<Copied>,
    watch: Watch,
    shown: Instant,
}

impl BackgroundPush {
    pub fn new(signals: Rc<dyn Signals>) -> std::io::Result<Self> {
        Ok(BackgroundPush {
            announcer: Announcer::new(signals),
            bell: Arc::new(Bell::new()?),
            senders: BTreeMap::new(),
            installed: None,
            schema: None,
            looked: None,
            standing: None,
            watch: Watch::default(),
            shown: Instant::now(),
        })
    }

    /// The server's settings have been read again.
    pub fn settings_changed(&mut self) {
        self.looked = None;
    }

    /// An ERROR outside of every step has reached the worker. If a transaction was open, its abort has released every
    /// lock of the process. With `cancelled`, somebody does not want to wait for the requests that are out.
    pub fn recover(&mut self, cancelled: bool) {
        self.looked = None;
        lock::release_all();
        self.senders.values_mut().for_each(|sender| sender.recover(cancelled));
    }

    /// Whether the extension was installed at the last look.
    pub fn is_installed(&self) -> bool {
        self.schema.is_some()
    }

    /// Pushes what may be pushed now, for every target. With `closing`, no new request is begun, but replies to
    /// requests that are out are taken. Called outside any transaction.
    pub fn run(&mut self, closing: bool) -> Next {
        self.bell.clear();
        if self.is_out_of_date() && !self.look_around() {
            return Next { due: Some(Instant::now() + Duration::from_secs(1)), idle: false, ..Next::idle() };
        }
        let BackgroundPush { announcer, senders, schema: Some(schema), standing, watch, .. } = self else {
            return Next::idle();
        };
        if let Some(copied) = *standing {
            return Next { look_in: Some(CLONED), cloned: Some(copied), ..Next::idle() };
        }
        let mut next = Next { look_in: watch.too_old_in(), ..Next::idle() };
        for sender in senders.values_mut() {
            let one = sender.advance(schema, announcer, closing);
            sender.write_counters(schema);
            next.idle &= one.idle;
            next.busy |= one.busy;
            next.due = [next.due, one.due].into_iter().flatten().min();
        }
        // Transactions that commit from here on find the flag cleared, and wake the worker.
        if senders.values().any(|sender| sender.listens() && announcer.for_target(sender.id).clear_flag_and_check()) {
            next.due = Some(Instant::now());
        }
        self.show();
        next
    }

    fn is_out_of_date(&self) -> bool {
        self.looked.is_none_or(|(control, at)| control != wake::control() || at.elapsed() >= settings::interval())
    }

    /// Looks up what is installed, whether it may send, and which targets there are; `false` if somebody's lock is in
    /// the way.
    fn look_around(&mut self) -> bool {
        let control = wake::control(); // before the snapshot
        let control_changed = self.looked.is_none_or(|(then, _)| then != control);
        let watch = &mut self.watch;
        let found = Own.step(|| {
            let installed = extension::installed()?;
            let schema = or_raise(Schema::of(installed));
            watch.look(&schema);
            let copied = match identity::standing(&schema) {
                Standing::Copied(copied) => Some(copied),
                // At once, so that a copy made of a promoted standby is known as one.
                Standing::Moved => {
                    let _ = identity::admit(&schema);
                    None
                }
                Standing::Ours | Standing::Unnamed => None,
            };
            let targets = target::all(&schema).into_iter().map(|target| (target::state(&schema, target.id), target));
            let targets: Vec<(State, Target)> = targets.collect();
            Some((installed, schema, copied, targets))
        });
        let found = match found {
            Ok(found) => found,
            Err(StepError::Locked) => return false,
            Err(StepError::Failed(error)) => error.raise(),
        };
        self.looked = Some((control, Instant::now()));
        let Some((installed, schema, copied, targets)) = found else {
            (self.schema, self.senders) = (None, BTreeMap::new());
            return true;
        };
        if self.installed != Some(installed.oid) {
            self.senders.clear(); // of another outbox
            self.installed = Some(installed.oid);
        }
        self.schema = Some(schema.clone());
        self.standing = copied;
        // What a target acknowledged is still to be settled, even if the target is gone.
        self.senders.retain(|id, sender| sender.is_busy() || targets.iter().any(|(_, target)| target.id == *id));
        for (state, target) in &targets {
            match self.senders.get_mut(&target.id) {
                Some(sender) if control_changed => sender.control(state),
                Some(_) => {}
                None => {
                    let sender = Sender::new(&schema, target, state, &self.bell);
                    self.senders.insert(target.id, sender);
                    self.announcer.begin(target.id);
                }
            }
        }
        true
    }

    /// Shows what is being sent.
    fn show(&mut self) {
        if self.shown.elapsed() < SHOW_EVERY {
            return;
        }
        let (mut acked, mut longest) = (0, Duration::ZERO);
        for (of_one, since) in self.senders.values().filter_map(Sender::progress) {
            acked += of_one;
            longest = longest.max(since);
        }
        if acked > 0 {
            self.shown = Instant::now();
            let rate = acked as f64 / longest.as_secs_f64().max(0.001);
            activity::report(&format!("sending: {acked} done, {rate:.0} rows/s"));
        }
    }

    /// Writes everything that is otherwise written now and then, before the worker leaves.
    pub fn finish(&mut self) {
        // Announcements that no sender waits for are no reason to stay: the next worker begins at the head.
        if !self.senders.values().any(Sender::listens) {
            self.announcer.clear_flag();
        }
        if let Some(schema) = &self.schema {
            self.senders.values_mut().for_each(|sender| sender.finish(schema));
        }
    }
}
