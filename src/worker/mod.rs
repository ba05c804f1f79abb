//! What runs in the background where the library is preloaded: a launcher for the server, and a worker for each
//! database that has something to send.
//!
//! The launcher sees no extension and no queue, because it is connected to no database. It starts a worker where one is
//! asked for, and the worker checks what there is to do and leaves when there is nothing. It is therefore safe to ask
//! for a worker that may not be needed: that costs no more than a process that starts and ends.

pub mod database;
mod hooks;
pub mod launcher;
mod retry;

use crate::pg::{bgworker, utility};

/// Called from `_PG_init`; does nothing without preloading, where flush, drain and pg_cron do the worker's job.
pub fn init() {
    if bgworker::is_preloading() {
        crate::shared::init();
        utility::set_background_hooks(hooks::BACKGROUND);
        crate::wake::init();
        bgworker::register_launcher();
    }
}
