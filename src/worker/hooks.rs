//! What the background processes do before and after utility statements of other sessions.

use crate::pg::utility::BackgroundHooks;
use crate::pg::{database, extension};
use crate::shared::Barrier;
use crate::wake;
use std::ffi::CStr;

/// What the hook around utility statements calls.
pub const BACKGROUND: BackgroundHooks =
    BackgroundHooks { before_extension_change, before_commit_prepared, without_worker };

/// CREATE and ALTER EXTENSION give the worker something to do, DROP EXTENSION makes it leave.
fn before_extension_change() {
    wake::control_at_commit();
}

/// No callback of a prepared transaction runs when it commits, and nothing records whether it had captured anything.
fn before_commit_prepared() {
    if extension::installed().is_some() {
        wake::before_commit_prepared();
    }
}

/// Runs `statement`, which needs `name` to be a database without connections, while the worker of that database is kept
/// away. Only for its owner: others may not run such a statement, and must not disturb the worker by trying.
fn without_worker(name: Option<&CStr>, statement: &mut dyn FnMut()) {
    let _barrier = name.and_then(database::by_name).filter(|&oid| database::is_owned(oid)).map(Barrier::new);
    statement();
}
