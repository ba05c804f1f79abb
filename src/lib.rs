//! A transactional outbox inside PostgreSQL.
//!
//! A change's journey: a write to an attached table is captured ([`capture`]) into the outbox ([`store`]) in the
//! writer's own transaction; a push session ([`push`]) reads it, sends it ([`delivery`]) and settles it by the target's
//! answer. [`api`] holds the functions people call, [`worker`] pushes in the background, and [`hub`] applies what
//! another store has pushed. [`pg`] wraps what PostgreSQL offers, and [`entry`] holds the C functions that PostgreSQL
//! calls: `unsafe` stands only in these two.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod api;
mod capture;
mod entry;
mod error;
mod hub;
mod pg;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod push;
mod settings;
mod shared;
mod store;
mod wake;
mod worker;

::pgrx::pg_module_magic!(name, version);
