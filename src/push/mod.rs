//! Pushing: read, send, settle.
//!
//! [`session::Session`] is the journey of a batch, top down, as a state machine that never waits: [`destination`] says
//! where to send, [`reader`] reads batches in order, [`exchange`] has each answered over an [`http_link`], [`settle`]
//! writes the verdicts down, [`report`] counts, [`counters`] keeps the counts that the overview shows. The caller does
//! the waiting: [`manual`] for flush and drain, which advance one session, and [`background`] for the worker, which
//! advances those of all targets. They differ in whose transactions they use: [`transactions`].

mod activity;
mod announcements;
mod background;
mod bounds;
mod counters;
pub mod credentials;
mod destination;
mod exchange;
mod http_link;
mod manual;
mod reader;
mod report;
mod sender;
mod session;
mod settle;
mod suspicion;
pub mod token_file;
pub mod transactions;
mod watch;

pub use announcements::{Next, Signals};
pub use background::{BackgroundPush, CLONED};
pub use manual::{drain, flush};
