//! The server's own files: where its data directory is, and who it runs as.

use pgrx::pg_sys;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

pub fn data_directory() -> PathBuf {
    // SAFETY: DataDir is set before any backend starts and never changes.
    OsStr::from_bytes(unsafe { CStr::from_ptr(pg_sys::DataDir) }.to_bytes()).into()
}

/// The user that the server runs as.
pub fn server_uid() -> u32 {
    // SAFETY: always succeeds.
    unsafe { libc::geteuid() }
}
