//! Small safe wrappers, each named after the PostgreSQL idea it stands for. Apart from the C entry points in
//! `entry.rs`, this is the only place with `unsafe`.
//!
//! Nothing here imports from a folder above it: callbacks are passed down as functions.
//!
//! Everything here must run on the backend's main thread. An `ERROR` of PostgreSQL travels through these wrappers as a
//! Rust unwind, so their guards release what they hold only if there is no error; after an error, the abort of the
//! (sub)transaction does it.

pub mod activity;
pub mod bgworker;
pub mod buffer;
pub mod clock;
pub mod code_locks;
mod compat;
pub mod confine;
pub mod database;
pub mod datum;
pub mod direct;
pub mod executor;
pub mod extension;
pub mod externs;
pub mod file;
pub mod function;
pub mod guc;
pub mod heap;
pub mod index;
pub mod interrupt;
pub mod invalidation;
pub mod key_index;
pub mod lane_lock;
pub mod latch;
pub mod lock;
pub mod memory;
pub mod process;
pub mod relation;
pub mod relation_lock;
pub mod role;
pub mod scan;
pub mod secret;
pub mod sequence;
pub mod server;
pub mod shmem;
pub mod spi;
pub mod text;
pub mod timeout;
pub mod transaction_id;
pub mod trigger;
pub mod truncation;
pub mod types;
pub mod utility;
pub mod wal;
pub mod xact;

pub use pgrx::pg_sys::{self, Oid};
