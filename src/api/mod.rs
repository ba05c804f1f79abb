//! The functions people call: arguments in, answers out. Their SQL declarations stand in `sql/`.

mod accept;
mod apply;
mod push;
