//! A transactional outbox inside PostgreSQL.
//!
//! A change's journey: a write to an attached table is captured ([`capture`]) into the outbox ([`store`]) in the writer's
//! own transaction; a push session ([`push`]) reads it, sends it ([`delivery`]) and settles it by the target's answer.
//! [`api`] holds the functions people call, [`worker`] pushes in the background, [`hub`] applies what another store has
//! pushed, and [`pg`] is the only place with `unsafe`.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod api;
mod capture;
mod error;
mod hub;
mod pg;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod push;
mod settings;
mod store;
mod wake;
mod worker;

::pgrx::pg_module_magic!();

#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::init();
    capture::init();
    worker::init();
}
