//! The functions people call: arguments in, answers out. Their SQL declarations stand in `sql/`.

mod accept;
mod apply;
mod argument;
mod attach;
mod configure;
mod discard;
mod overview;
mod pause;
mod push;
mod requeue;
mod settings_report;
mod stats;
mod token;
