//! What goes over the wire, written and read: the change and the request body, the answer, the signature, and the rules
//! for tokens and reasons.
//!
//! The sender, the hub, the receiver of the benchmarks and the fuzz targets speak from this one definition. Nothing in
//! here knows PostgreSQL or HTTP, so that all of it is tested in seconds without a server.

pub mod answer;
pub mod body;
mod change;
#[cfg(any(test, feature = "properties"))]
pub mod properties;
pub mod reason;
pub mod signature;
pub mod text;
pub mod token;

pub use change::{Operation, Priority, Status};
