//! The side of commands that need a database without connections, such as DROP DATABASE: they keep its worker away.

use super::{TABLE, wake};
use crate::pg::process::{self, Process};
use crate::pg::{Oid, latch};
use std::time::{Duration, Instant};

/// How long a command waits for the worker of its database to leave: as long as PostgreSQL itself waits for others.
const LEAVING: Duration = Duration::from_secs(5);

/// While it lives, no worker of ours is connected to the database, and none can connect.
pub struct Barrier {
    _cleanup: Option<process::Cleanup>,
}

impl Barrier {
    /// Terminates the worker and waits until it has exited, for five seconds at most.
    pub fn new(database: Oid) -> Self {
        let entered = {
            let mut table = TABLE.exclusive();
            table.enter(database).map(|at| table.entries[at].barriers += 1).is_some()
        };
        let cleanup = entered.then(|| process::Cleanup::new(lift, database));
        let until = Instant::now() + LEAVING;
        let mut told = None;
        while let Some(worker) = worker_of(database)
            && Instant::now() < until
        {
            if told.replace(worker) != Some(worker) {
                worker.terminate();
            }
            latch::wait(None, Duration::from_millis(5), latch::WaitEvent::WorkerExit);
        }
        Barrier { _cleanup: cleanup }
    }
}

fn lift(database: Oid) {
    let mut table = TABLE.exclusive();
    let launcher = table.launcher;
    if let Some(entry) = table.entry(database) {
        entry.barriers = entry.barriers.saturating_sub(1);
        entry.free_if_empty();
    }
    drop(table);
    wake(launcher);
}

fn worker_of(database: Oid) -> Option<Process> {
    let table = TABLE.share();
    table.find(database).and_then(|at| table.entries[at].worker)
}
