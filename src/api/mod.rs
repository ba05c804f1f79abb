//! The functions that users call. Their SQL declarations are in `sql/`.

mod accept;
mod adopt;
mod apply;
mod argument;
mod attach;
mod backfill;
pub mod config;
mod configure;
mod discard;
mod import;
mod json;
mod overview;
mod pause;
pub mod push;
mod requeue;
mod settings_report;
mod stats;
mod target;
mod token;
mod version;
