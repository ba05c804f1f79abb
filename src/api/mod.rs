//! The functions people call: arguments in, answers out. Their SQL declarations stand in `sql/`.

mod attach;
