//! Entry points that PostgreSQL calls with a raw `FunctionCallInfo`: the trigger function and the drain procedure.

use super::trigger::Fired;
use crate::error::{Error, SqlState};
use pgrx::pg_sys;

/// Version 1 of the calling convention, for the functions below.
macro_rules! finfo {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> &'static pg_sys::Pg_finfo_record {
            const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
            &V1
        }
    };
}

finfo!(pg_finfo_sync_outbox_capture);

/// `sync_outbox_capture()`: 39P01 when it is not fired as one of the triggers that `sync_outbox_attach()` makes.
///
/// # Safety
/// Called by PostgreSQL's function manager only.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn sync_outbox_capture(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the function manager passes its call info.
    let fired = unsafe { Fired::from_call(fcinfo) };
    match fired.filter(|f| f.is_after() && f.is_for_row() == (f.event() != super::trigger::Event::Truncate)) {
        Some(fired) => crate::capture::capture(&fired),
        None => Error::new(
            SqlState::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            "sync_outbox_capture() can only be called as the trigger that sync_outbox_attach() makes",
        )
        .hint("SELECT sync_outbox_attach('your_table');")
        .raise(),
    }
    pg_sys::Datum::from(0)
}
