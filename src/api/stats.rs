//! `sync_outbox_stats()`: the queue, a row per attached table and priority.

use super::argument::{self, Text, TextResult};
use crate::error::{Result, or_raise};
use crate::pg::role::ActAs;
use crate::pg::text;
use crate::store::Schema;
use crate::store::stats::{self, Figures, StatsKey};
use delivery::keys::{Parked, Touched};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::iter::TableIterator;
use pgrx::name;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use wire::Priority;

/// The key of a row of the result: schema, table and priority.
type RowKey = (String, String, Priority);

/// Above a million changes, only this many are examined for blocked ones.
const BLOCKED_AMONG: usize = 100_000;

/// A row for every attached table with its priority, even if it has no changes, and for every other table and priority
/// that has changes. With `branch`, only the changes of that branch count.
///
/// `blocked` are changes that cannot be sent because an earlier change of the same key is in conflict, dead, or refused
/// and not due yet; they are included in `pending` and `failed`. `last_update` is when a change was last captured or
/// tried. Up to a million changes everything is exact. Beyond that `estimated` is true: `pending` is estimated from a
/// sample of the table, and `blocked` counts only those among the 100,000 changes that follow the first parked one.
///
/// Reads only: works on a standby and in a read-only transaction.
#[pgrx::pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn sync_outbox_stats(
    branch: Text<'_>,
) -> TableIterator<
    'static,
    (
        name!(schema_name, TextResult),
        name!(table_name, TextResult),
        name!(priority, &'static str),
        name!(total, i64),
        name!(pending, i64),
        name!(failed, i64),
        name!(conflicts, i64),
        name!(dead, i64),
        name!(blocked, i64),
        name!(oldest_pending, Option<TimestampWithTimeZone>),
        name!(last_update, Option<TimestampWithTimeZone>),
        name!(last_conflict_at, Option<TimestampWithTimeZone>),
        name!(estimated, bool),
    ),
> {
    let stats = or_raise(argument::utf8(branch, "branch").and_then(|branch| Stats::read(branch.as_deref())));
    TableIterator::new(stats.rows.into_iter().map(move |((schema_name, table_name, priority), (f, blocked))| {
        (
            text::from_utf8(&schema_name),
            text::from_utf8(&table_name),
            priority.name(),
            f.total(),
            f.pending,
            f.failed,
            f.conflicts,
            f.dead,
            blocked,
            f.oldest_pending,
            f.last_update,
            f.last_conflict_at,
            stats.estimated,
        )
    }))
}

struct Stats {
    rows: BTreeMap<RowKey, (Figures, i64)>,
    estimated: bool,
}

impl Stats {
    fn read(branch: Option<&str>) -> Result<Stats> {
        let _owner = ActAs::owner();
        let schema = Schema::installed()?;
        let count = stats::count(&schema, branch);
        let mut rows: BTreeMap<RowKey, (Figures, i64)> =
            stats::attached(&schema).into_iter().map(|key| (key, Default::default())).collect();
        for (group, figures) in &count.figures {
            let key = (group.schema_name.clone(), group.table_name.clone(), group.priority);
            rows.entry(key).or_default().0 += figures;
        }
        let among = if count.estimated { BLOCKED_AMONG } else { usize::MAX };
        for (key, blocked) in blocked(&schema, branch, among) {
            rows.entry(key).or_default().1 += blocked;
        }
        Ok(Stats { rows, estimated: count.estimated })
    }
}

/// How many changes wait behind a parked one. A change that waits parks its other key in turn, so they are examined in
/// the order of their ids, whatever their priority. If nothing is parked, which is the normal case, nothing is read.
fn blocked(schema: &Schema, branch: Option<&str>, among: usize) -> HashMap<RowKey, i64> {
    let mut blocked = HashMap::new();
    for changes in stats::parked(schema) {
        let mut parked = Parked::default();
        let mut left = among;
        let mut position = 0;
        changes.followed_by(schema, branch, |change| {
            let StatsKey { schema_name, table_name, priority, .. } = change.key;
            let touched = Touched::new(&schema_name, &table_name, change.pk.as_deref(), change.data.as_deref());
            if change.parked || parked.blocks(&touched, position) {
                parked.park(&touched, position);
                if !change.parked && change.in_branch {
                    *blocked.entry((schema_name, table_name, priority)).or_default() += 1;
                }
            }
            position += 1;
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }
    blocked
}
