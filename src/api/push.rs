//! `sync_outbox_flush` and `sync_outbox_drain`.

use crate::error::or_raise;
use crate::push;

/// Pushes now; answers JSON text (json is stored as text). Errors: 22023 bad argument or URL, 55000 no URL or standby, 25001 isolation level,
/// 25006 read-only transaction. An unreachable server is no error: the answer says so.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_flush(branch: Option<String>, max_rows: Option<i32>, target: Option<String>) -> String {
    let target = target.unwrap_or_else(|| crate::store::target::DEFAULT.to_owned());
    or_raise(push::flush(branch, max_rows, &target))
}
