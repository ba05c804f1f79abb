//! The C functions that PostgreSQL calls in this library: when it is loaded, as SQL functions that take the raw call
//! information, and as the mains of background workers.
//!
//! This module is above all others, and apart from `pg` it is the only one with `unsafe`. It passes functions that `pg`
//! calls, such as hooks, down to it, so that `pg` imports nothing from the folders above it.

use crate::error::{Error, SqlState, or_raise, report_through};
use crate::pg::shmem::Shared;
use crate::pg::text;
use crate::pg::trigger::Fired;
use crate::{api, capture, settings, shared, wake, worker};
use pgrx::pg_sys;
use wire::Operation;

/// Called by PostgreSQL when it loads the library.
#[allow(non_snake_case)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    report_through(text::reportable);
    settings::init();
    capture::init();
    worker::init();
}

// SAFETY: the table holds oids, numbers, flags and points in time of CLOCK_MONOTONIC, which all processes share.
unsafe impl Shared for shared::SharedTable {}

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
finfo!(pg_finfo_sync_outbox_drain);
finfo!(pg_finfo_sync_outbox_target_changed);

/// `sync_outbox_capture()`: 39P01 when it is not fired as one of the triggers that `sync_outbox_attach()` makes.
///
/// # Safety
/// Called by PostgreSQL's function manager only.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn sync_outbox_capture(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the function manager passes its call info.
    let fired = unsafe { Fired::from_call(fcinfo) };
    match fired.filter(|f| f.is_after() && f.is_for_row() == (f.event() != Operation::Truncate)) {
        Some(fired) => capture::capture(&fired),
        None => Error::new(
            SqlState::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            "sync_outbox_capture() can only be called as the trigger that sync_outbox_attach() makes",
        )
        .hint("SELECT sync_outbox_attach('your_table');")
        .raise(),
    }
    pg_sys::Datum::from(0)
}

/// `sync_outbox_target_changed()`: 39P01 when it is not fired as a trigger.
///
/// # Safety
/// Called by PostgreSQL's function manager only.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn sync_outbox_target_changed(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the function manager passes its call info.
    if unsafe { Fired::from_call(fcinfo) }.is_none() {
        Error::new(
            SqlState::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            "sync_outbox_target_changed() can only be called as the trigger of the table sync_outbox_target",
        )
        .hint("Write to the table sync_outbox_target; the trigger does the rest.")
        .raise()
    }
    wake::control_at_commit();
    pg_sys::Datum::from(0)
}

/// `CALL sync_outbox_drain(branch, target)`: 25001 inside a transaction block or a function, where it cannot commit.
///
/// # Safety
/// Called by PostgreSQL's function manager only.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn sync_outbox_drain(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the function manager passes its call info, a CallContext for CALL, and two text arguments.
    let (atomic, branch, target) = unsafe {
        let context = (*fcinfo).context;
        let call = !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_CallContext;
        (
            !call || (*context.cast::<pg_sys::CallContext>()).atomic,
            pgrx::fcinfo::pg_getarg::<&[u8]>(fcinfo, 0),
            pgrx::fcinfo::pg_getarg::<&[u8]>(fcinfo, 1),
        )
    };
    if atomic {
        Error::new(
            SqlState::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "sync_outbox_drain() commits as it goes and cannot run inside a transaction block",
        )
        .hint("CALL it outside a transaction, or call SELECT sync_outbox_flush(); instead.")
        .raise()
    }
    or_raise(api::push::drain(branch, target));
    pg_sys::Datum::from(0)
}

/// The main function of the launcher.
///
/// # Safety
/// Called by PostgreSQL in a background worker only.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn sync_outbox_launcher_main(_argument: pg_sys::Datum) {
    worker::launcher::main()
}

/// The main function of the worker of a database.
///
/// # Safety
/// Called by PostgreSQL in a background worker only, with the argument that [`crate::pg::bgworker::Handle::start`]
/// gave.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn sync_outbox_worker_main(argument: pg_sys::Datum) {
    worker::database::main(pg_sys::Oid::from(argument.value() as u32))
}
