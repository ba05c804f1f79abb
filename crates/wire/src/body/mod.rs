//! The body of a request: `{"changes": [..]}`, each change an object with `schema`, `table`, `op`, `pk`, `data` and
//! `dedup_key`, which every receiver knows, and with members that only say more.

mod read;
mod write;

pub use read::{Changes, Identity, Incoming, Object, identities, parse};
pub use write::{Outgoing, Parts, join, joined_bytes};
