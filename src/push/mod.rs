//! Pushing: read, send, settle. One push session, used by flush, drain and worker alike.
//!
//! [`session::Session`] is the journey, top down: [`reader`] fetches batches in order, [`exchange`] has each answered,
//! [`settle`] writes the answers down, [`report`] counts, [`books`] keeps the counts that the overview shows.
//! Who owns the transactions differs by caller: [`transactions`].

mod background;
mod books;
pub mod credentials;
mod crossing;
mod exchange;
mod manual;
mod mark;
mod reader;
mod report;
mod sender;
mod session;
mod settle;
mod stretch;
pub mod token_file;
pub mod transactions;
mod watch;

pub use background::{Background, CLONED, Next};
pub use manual::{drain, flush};
