//! What an error says: whether the change has failed, has to wait, or the whole request is to be sent again.

use crate::error::SqlState;
use crate::pg::code_locks;
use crate::pg::xact::Caught;

/// Whether somebody else holds a lock that the change needs, or there was a deadlock with somebody else.
pub fn is_in_the_way(caught: &Caught) -> bool {
    let locks = [SqlState::ERRCODE_LOCK_NOT_AVAILABLE, SqlState::ERRCODE_T_R_DEADLOCK_DETECTED];
    locks.contains(&caught.sqlstate) && !caught.raised_by_code
}

/// Whether an error says something about the server and not about the change, which is then not refused but sent
/// again. An error that a trigger has raised by hand does not: if the trigger raises it each time the change is sent,
/// the store would wait for ever.
pub fn ends_the_request(caught: &Caught) -> bool {
    let sqlstate = caught.sqlstate;
    if caught.raised_by_code || is_in_the_way(caught) {
        return false;
    }
    // Nor does one of a limit that somebody has set (temp_file_limit): the change exceeds it each time.
    if sqlstate == SqlState::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED {
        return false;
    }
    // Nor does a full lock table if the change's own code has filled it.
    if sqlstate == SqlState::ERRCODE_OUT_OF_MEMORY && code_locks::has_held_very_many() {
        return false;
    }
    // The class of an SQLSTATE: ERRCODE_TO_CATEGORY of utils/elog.h.
    let class = |state: SqlState| state as i32 & 0xFFF;
    [
        SqlState::ERRCODE_OPERATOR_INTERVENTION,
        SqlState::ERRCODE_TRANSACTION_ROLLBACK,
        SqlState::ERRCODE_INSUFFICIENT_RESOURCES,
    ]
    .into_iter()
    .any(|of| class(of) == class(sqlstate))
        || sqlstate == SqlState::ERRCODE_IO_ERROR
}
