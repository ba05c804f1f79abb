//! `sync_outbox_overview()`: whether the queue is empty, whether the target answers, and how fast changes are sent.

use super::argument::TextResult;
use super::settings_report;
use crate::error::{Error, Result, SqlState, or_raise};
use crate::pg::role::{self, ActAs};
use crate::pg::{Oid, lock, text};
use crate::store::identity::{self, Standing};
use crate::store::overview::{self, TargetStatus};
use crate::store::stats::{self, Figures};
use crate::store::target::Target;
use crate::store::{Schema, backlog, intervention};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::iter::TableIterator;
use pgrx::name;
use std::collections::{BTreeSet, HashMap};

/// The function of version 0.1.0, whose objects are too old for this library: always 55000, because there is no row
/// that it could give. Its row has a column less, so that neither library may be called for the objects of the other.
/// The name of the other function says which library it is in, because all that an older library can say is that it has
/// no such function.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_overview() {
    // While the update runs, its version is already the new one: an event trigger can call this then.
    or_raise(Schema::installed().and_then(|_| {
        Err::<(), _>(
            Error::new(
                SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "sync_outbox_overview() cannot be called while the extension is being updated",
            )
            .hint("Disable the event trigger that calls it until the update is done."),
        )
    }))
}

/// A row per target, including `default` before it has been created; and a row whose `target` is NULL for each id of a
/// target that is gone but still has changes. Nobody sends those, and `last_error` says so.
///
/// `paused`: by a person, or because this database is a copy, in which case the reason begins with `cloned`.
///
/// `clean`: the outbox holds no change for the target, whatever its status. `breaker`: `closed`; `open` until
/// `next_try_at`; `half_open` when the next request decides. `rows_per_minute` (acknowledged) and `success_rate`
/// (acknowledged divided by sent) are those of the last 15 minutes. `percent_done` is of what has been sent since the
/// outbox was last empty and what is still to be sent; `estimated_completion` is NULL while nothing is acknowledged.
/// Above a million changes the counts are estimated, as those of `sync_outbox_stats()`. `over_threshold` names the
/// thresholds that the outbox as a whole has passed. `sender_pid` has the turn, and its transaction has been open since
/// `sender_since`: a flush keeps the turn to the end of its caller's transaction, a worker or drain has no transaction
/// open most of the time. `settings` has the value and source of each effective setting, but only the source of the
/// token, and the names of files only for roles that may read every setting.
///
/// Reads only: works on a standby and in a read-only transaction, and whatever the settings are.
#[pgrx::pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn sync_outbox_overview_0_2_0() -> TableIterator<
    'static,
    (
        name!(target, Option<TextResult>),
        name!(clean, bool),
        name!(total, i64),
        name!(pending, i64),
        name!(failed, i64),
        name!(conflicts, i64),
        name!(dead, i64),
        name!(oldest_pending, Option<TimestampWithTimeZone>),
        name!(paused, bool),
        name!(paused_reason, Option<TextResult>),
        name!(auth, Option<String>),
        name!(breaker, &'static str),
        name!(consecutive_failures, i32),
        name!(next_try_at, Option<TimestampWithTimeZone>),
        name!(last_success_at, Option<TimestampWithTimeZone>),
        name!(last_error, Option<TextResult>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
        name!(rows_per_minute, f64),
        name!(success_rate, Option<f64>),
        name!(percent_done, f64),
        name!(estimated_completion, Option<TimestampWithTimeZone>),
        name!(sender_pid, Option<i32>),
        name!(over_threshold, Option<String>),
        name!(settings, TextResult),
        name!(sender_since, Option<TimestampWithTimeZone>),
    ),
> {
    let rows = or_raise(overview(role::current_user()));
    TableIterator::new(rows.into_iter().map(
        |Overview { named, target, figures, status, sender, over_threshold, settings }| {
            (
                named.then(|| text::from_utf8(&target.name)),
                named && figures.total() == 0,
                figures.total(),
                figures.pending,
                figures.failed,
                figures.conflicts,
                figures.dead,
                figures.oldest_pending,
                target.paused,
                target.paused_reason.as_deref().map(text::from_utf8),
                status.auth,
                breaker(status.consecutive_failures, status.waits),
                status.consecutive_failures,
                status.next_try_at,
                status.last_success_at,
                status.last_error.as_deref().map(text::from_utf8),
                status.last_error_at,
                status.rows_per_minute,
                status.success_rate,
                percent_done(status.drained, left(&figures)),
                status.estimated_completion.filter(|_| !target.paused),
                sender.as_ref().map(|sender| sender.pid),
                over_threshold,
                text::from_utf8(&settings.to_string()),
                sender.and_then(|sender| sender.since),
            )
        },
    ))
}

struct Overview {
    /// Whether the target exists.
    named: bool,
    target: Target,
    figures: Figures,
    status: TargetStatus,
    sender: Option<lock::Holder>,
    over_threshold: Option<String>,
    settings: serde_json::Value,
}

fn overview(caller: Oid) -> Result<Vec<Overview>> {
    let _owner = ActAs::owner();
    let schema = Schema::installed()?;
    let mut figures: HashMap<i16, Figures> = HashMap::new();
    let count = stats::count(&schema, None);
    let estimated = count.estimated;
    for (key, counted) in &count.figures {
        *figures.entry(key.target_id).or_default() += counted;
    }
    let crossed = backlog::crossed(&schema);
    let over_threshold = (!crossed.is_empty()).then(|| crossed.join(", "));
    let settings = settings_report::SettingsReport::read(caller);
    let cloned = match identity::standing(&schema) {
        Standing::Copied(copied) => Some(format!("cloned: {}", copied.reason())),
        _ => None,
    };
    let mut rows: Vec<Overview> = Vec::new();
    for mut target in overview::targets(&schema) {
        if cloned.is_some() {
            (target.paused, target.paused_reason) = (true, cloned.clone());
        }
        let figures = figures.remove(&target.id).unwrap_or_default();
        rows.push(Overview {
            named: true,
            status: overview::status(&schema, target.id, left(&figures)),
            sender: lock::holder(schema.outbox(), target.id),
            over_threshold: over_threshold.clone(),
            settings: settings.of(&target),
            target,
            figures,
        });
    }
    // If the backlog is long and only sampled, the sample need not contain their changes.
    let known: BTreeSet<i16> = rows.iter().map(|row| row.target.id).collect();
    let all = figures
        .keys()
        .copied()
        .chain(estimated.then(|| intervention::lanes(&schema)).into_iter().flatten().map(|lane| lane.target_id));
    let orphans: BTreeSet<i16> = all.filter(|id| !known.contains(id)).collect();
    for id in orphans {
        rows.push(Overview {
            named: false,
            status: TargetStatus {
                last_error: Some(format!("there is no target with id {id}: its changes are not sent")),
                ..TargetStatus::default()
            },
            sender: None,
            over_threshold: over_threshold.clone(),
            settings: serde_json::json!({}),
            target: Target { id, ..Target::default() },
            figures: figures.get(&id).cloned().unwrap_or_default(),
        });
    }
    Ok(rows)
}

/// The number of changes that are still to be sent; those in conflict or dead wait for a person.
fn left(figures: &Figures) -> i64 {
    figures.pending + figures.failed
}

fn breaker(consecutive_failures: i32, waits: bool) -> &'static str {
    match (consecutive_failures > 0, waits) {
        (_, true) => "open",
        (true, false) => "half_open",
        (false, false) => "closed",
    }
}

fn percent_done(done: i64, left: i64) -> f64 {
    if left == 0 { 100.0 } else { 100.0 * done as f64 / (done + left) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaker_states() {
        assert_eq!(breaker(0, false), "closed");
        assert_eq!(breaker(3, true), "open");
        assert_eq!(breaker(3, false), "half_open");
    }

    #[test]
    fn percent_is_of_what_was_sent_and_what_is_left() {
        assert_eq!(percent_done(0, 0), 100.0);
        assert_eq!(percent_done(0, 10), 0.0);
        assert_eq!(percent_done(30, 10), 75.0);
        assert_eq!(percent_done(30, 0), 100.0);
    }
}
