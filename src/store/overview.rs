//! How each target is doing, and where the settings come from.

use super::Schema;
use super::target::{self, Target};
use crate::pg::spi;
use pgrx::datum::TimestampWithTimeZone;

/// Every target. `default` comes first, even if it has not been created yet.
pub fn targets(schema: &Schema) -> Vec<Target> {
    let mut targets: Vec<Target> = target::all(schema);
    if !targets.iter().any(|target| target.name == target::DEFAULT) {
        let default = Target {
            id: target::id_for_capture(target::DEFAULT),
            name: target::DEFAULT.to_owned(),
            ..Target::default()
        };
        targets.insert(0, default);
    }
    targets
}

/// What the sender has recorded about a target, and the rate at which changes go there.
#[derive(Default)]
pub struct TargetStatus {
    pub auth: Option<String>,
    pub consecutive_failures: i32,
    pub next_try_at: Option<TimestampWithTimeZone>,
    /// Whether `next_try_at` is in the future.
    pub waits: bool,
    pub last_success_at: Option<TimestampWithTimeZone>,
    pub last_error: Option<String>,
    pub last_error_at: Option<TimestampWithTimeZone>,
    /// Changes acknowledged since the outbox was last empty.
    pub drained: i64,
    /// Over the last 15 minutes, the current one included.
    pub rows_per_minute: f64,
    /// The share of the changes sent in that time that was acknowledged; `None` if nothing was sent.
    pub success_rate: Option<f64>,
    /// When everything that is left will have been sent at the present rate; `None` if nothing is left or the rate is
    /// 0.
    pub estimated_completion: Option<TimestampWithTimeZone>,
}

/// The status of a target that has `left` changes to send.
///
/// The completion is estimated from the rate of the last 15 minutes, but of this drain only: an earlier drain says
/// nothing about it, and neither do days offline.
pub fn status(schema: &Schema, target_id: i16, left: i64) -> TargetStatus {
    spi::first(
        &schema.sql(
            "SELECT s.auth, coalesce(s.consecutive_failures, 0), s.next_try_at,
                    s.next_try_at OPERATOR(pg_catalog.>) t.now,
                    s.last_success_at, s.last_error, s.last_error_at, coalesce(s.drain_acked, 0),
                    (w.acked OPERATOR(pg_catalog./)
                        (extract(epoch FROM t.now OPERATOR(pg_catalog.-) t.since) OPERATOR(pg_catalog./) 60))::pg_catalog.float8,
                    CASE WHEN w.sent OPERATOR(pg_catalog.>) 0
                         THEN w.acked::pg_catalog.float8 OPERATOR(pg_catalog./) w.sent END,
                    CASE WHEN $2 OPERATOR(pg_catalog.>) 0 AND least(w.acked, s.drain_acked) OPERATOR(pg_catalog.>) 0 THEN
                        t.now OPERATOR(pg_catalog.+) (interval '1 second' OPERATOR(pg_catalog.*) least(
                            extract(epoch FROM interval '100 years'),
                            $2 OPERATOR(pg_catalog.*)
                            extract(epoch FROM t.now OPERATOR(pg_catalog.-) greatest(t.since, s.drain_started_at))
                            OPERATOR(pg_catalog./) least(w.acked, s.drain_acked))) END
               FROM (SELECT c.now,
                            pg_catalog.date_trunc('minute', c.now) OPERATOR(pg_catalog.-) interval '14 minutes' AS since
                       FROM pg_catalog.clock_timestamp() AS c (now)) t
               LEFT JOIN @.sync_outbox_target_state s ON s.target_id OPERATOR(pg_catalog.=) $1
               CROSS JOIN LATERAL (
                   SELECT coalesce(pg_catalog.sum(sent), 0) AS sent, coalesce(pg_catalog.sum(acked), 0) AS acked
                     FROM @.sync_outbox_throughput
                    WHERE target_id OPERATOR(pg_catalog.=) $1 AND minute OPERATOR(pg_catalog.>=) t.since) w",
        ),
        &[target_id.into(), left.into()],
        |row| TargetStatus {
            auth: row.utf8(1),
            consecutive_failures: row.get(2).unwrap_or_default(),
            next_try_at: row.get(3),
            waits: row.get(4).unwrap_or_default(),
            last_success_at: row.get(5),
            last_error: row.utf8(6),
            last_error_at: row.get(7),
            drained: row.int(8),
            rows_per_minute: row.get(9).unwrap_or_default(),
            success_rate: row.get(10),
            estimated_completion: row.get(11),
        },
    )
    .unwrap_or_default()
}

/// A setting as `SHOW` prints it, without the prefix `sync_outbox.`.
pub struct Setting {
    pub name: String,
    pub value: String,
    /// As PostgreSQL calls it: `default`, `configuration file`, `command line` and so on.
    pub source: String,
}

/// The settings of the extension, without the token, which PostgreSQL lists nowhere.
pub fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    spi::query(
        "SELECT pg_catalog.split_part(name, '.', 2), pg_catalog.current_setting(name), source
           FROM pg_catalog.pg_settings WHERE pg_catalog.starts_with(name, 'sync_outbox.') ORDER BY name",
        &[],
        |row| {
            let text = |n| row.utf8(n).unwrap_or_default();
            settings.push(Setting { name: text(1), value: text(2), source: text(3) })
        },
    );
    settings
}

/// Whether a role may read every setting, also those that name files.
pub fn reads_all_settings(role: crate::pg::Oid) -> bool {
    spi::first("SELECT pg_catalog.pg_has_role($1, 'pg_read_all_settings', 'USAGE')", &[role.into()], |row| row.get(1))
        .flatten()
        .unwrap_or_default()
}
