//! What runs in the background where the library is preloaded: a launcher for the server, and a worker for each database
//! that has something to send.
//!
//! The launcher knows no extension and no queue, because it is connected to no database. It starts a worker where one is
//! said to be needed, and the worker looks for itself and leaves when there is nothing to do. Whoever says so may
//! therefore err on the side of waking: nothing is lost but a process that starts and ends.

pub mod database;
pub mod hooks;
pub mod launcher;
pub mod shared;

use crate::pg::{bgworker, utility};
use std::time::Duration;

/// Called from `_PG_init`; does nothing without preloading, where flush, drain and pg_cron do the worker's job.
pub fn init() {
    if bgworker::is_preloading() {
        shared::init();
        utility::init();
        crate::wake::init();
        bgworker::register_launcher();
    }
}

/// How long to wait after the `failures`th failure in a row: 1 s, doubling up to a minute.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs(2u64.saturating_pow(failures.saturating_sub(1)).min(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_from_a_second_to_a_minute() {
        let seconds: Vec<u64> = [1, 2, 3, 6, 7, 8, u32::MAX].map(|n| backoff(n).as_secs()).into();
        assert_eq!(seconds, [1, 2, 4, 32, 60, 60, 60]);
    }
}
