//! Durability before sending.

use pgrx::pg_sys;

/// Makes the WAL of everything visible so far durable, also that of commits made with `synchronous_commit = off`.
///
/// The insert position can be right after a page header, where nothing has been written yet. A flush up to there raises
/// an ERROR (`invariants` 13), so the header is subtracted first.
pub fn flush() {
    // SAFETY: plain calls of xlog.c outside recovery; XLogFlush returns at once when the position is flushed already.
    unsafe {
        let mut position = pg_sys::GetXLogInsertRecPtr();
        let page = pg_sys::XLOG_BLCKSZ as u64;
        let first_of_segment = position % (pg_sys::wal_segment_size as u64) < page;
        let header = if first_of_segment {
            core::mem::size_of::<pg_sys::XLogLongPageHeaderData>()
        } else {
            core::mem::size_of::<pg_sys::XLogPageHeaderData>()
        }
        .next_multiple_of(8) as u64;
        if position % page == header {
            position -= header;
        }
        pg_sys::XLogFlush(position);
    }
}
