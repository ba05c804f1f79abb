//! Pushing: read, send, settle. One push session, used by flush, drain and worker alike.
//!
//! [`session::Session`] is the journey, top down: [`reader`] fetches batches in order, [`exchange`] has each answered,
//! [`settle`] writes the answers down, [`report`] counts. Who owns the transactions differs by caller: [`transactions`].

mod background;
pub mod credentials;
mod crossing;
mod exchange;
mod manual;
mod reader;
mod report;
mod session;
mod settle;
mod token_file;
pub mod transactions;

pub use background::{Background, Next};
pub use manual::{drain, flush};
