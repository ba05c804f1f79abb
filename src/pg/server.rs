//! Identifies this server, so that a copy of a data directory can be told from the original.

use pgrx::pg_sys;
use std::ffi::CStr;

/// Made by initdb, the same in every physical copy.
pub fn system_identifier() -> i64 {
    // SAFETY: read from the control file when the server started.
    unsafe { pg_sys::GetSystemIdentifier() as i64 }
}

/// The timeline that this server writes. Only outside recovery.
pub fn timeline() -> i32 {
    // SAFETY: set at the end of recovery, and not changed after it.
    unsafe { pg_sys::GetWALInsertionTimeLine() as i32 }
}

/// The name of the machine or container, empty if it has none.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer is of the length given; its last byte, which is not, ends a name that was cut off.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned()
}
