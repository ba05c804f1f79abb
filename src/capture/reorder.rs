//! Putting the changes of one row into the order in which they happened (`hard-facts` 2).
//!
//! When a user's trigger on one row of a statement changes another row of the same statement, PostgreSQL runs the
//! capture of that nested change before the capture of the row itself. The nested changes are in the outbox already, but
//! not committed, so they can be given new ids behind the one that was just written.

use super::append::Outbox;
use super::plan::Plan;
use crate::pg::role::ActAs;
use crate::pg::xact;
use crate::store::{Schema, queue};
use serde_json::{Map, Value};

/// Gives new ids to what this transaction captured of the row since `command`, which made the version that was captured
/// just now with key `pk` and columns `data`.
pub fn move_behind(outbox: &Outbox, plan: &Plan, data: &[u8], pk: &[u8], command: u32) {
    let _owner = ActAs::owner();
    xact::command_counter_increment();
    let schema = Schema::new(outbox.schema);
    let Some(mut key) = object(pk) else { return };
    // The statement may have moved the row to another key; the nested changes then start from that one.
    follow(&mut key, object(data));
    let latest = queue::OwnChanges {
        target_id: plan.target_id,
        priority: plan.priority,
        schema_name: plan.schema_name.bytes(),
        table_name: plan.table_name.bytes(),
        first_id: outbox.first_own_id(),
        since_command: command,
    };
    let mut nested = latest.read(&schema);
    nested.pop(); // the one captured just now
    for change in nested {
        if object(change.pk.as_bytes()).as_ref() == Some(&key) {
            queue::renumber(&schema, plan.target_id, plan.priority, change.id, outbox.next_id());
            follow(&mut key, object(change.data.as_bytes()));
        }
    }
}

fn object(json: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_str(&String::from_utf8_lossy(json)).ok()
}

/// Follows a key change: takes the new values of the key's columns from what the change captured.
fn follow(key: &mut Map<String, Value>, data: Option<Map<String, Value>>) {
    let Some(data) = data else { return };
    for (column, value) in key.iter_mut() {
        if let Some(new) = data.get(column) {
            *value = new.clone();
        }
    }
}
