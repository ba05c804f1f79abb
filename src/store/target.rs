//! The tables `sync_outbox_target` and `sync_outbox_target_state`: where changes go, and how sending them went lately.

use super::Schema;
use crate::error::{Error, Result, or_raise};
use crate::pg::extension;
use crate::pg::spi::{self, Arg, Row};

/// The target that is used where no other is named. The first call that needs it creates it, always with this id.
pub const DEFAULT: &str = "default";
const DEFAULT_ID: i16 = 1;

/// A row of `sync_outbox_target`; a column that is NULL is `None`, and the setting applies.
#[derive(Clone, Debug, Default)]
pub struct Target {
    pub id: i16,
    pub name: String,
    pub base_url: Option<String>,
    pub upload_path: Option<String>,
    pub ca_file: Option<String>,
    pub client_cert_file: Option<String>,
    pub client_key_file: Option<String>,
    pub signing_secret_file: Option<String>,
    pub paused: bool,
    pub paused_reason: Option<String>,
}

impl Target {
    /// The settings, with the files that the target itself names.
    pub fn settings(&self, settings: delivery::Settings) -> delivery::Settings {
        let own = |setting: Option<String>, column: &Option<String>| column.clone().or(setting);
        delivery::Settings {
            ca_file: own(settings.ca_file, &self.ca_file),
            client_cert_file: own(settings.client_cert_file, &self.client_cert_file),
            client_key_file: own(settings.client_key_file, &self.client_key_file),
            signing_secret_file: own(settings.signing_secret_file, &self.signing_secret_file),
            ..settings
        }
    }
}

/// What capture writes into `target_id`.
pub fn id_for_capture(name: &str) -> i16 {
    if name == DEFAULT {
        return DEFAULT_ID;
    }
    let schema = extension::installed().map(|extension| Schema::new(extension.schema));
    or_raise(schema.ok_or_else(Error::not_installed).and_then(|schema| {
        // Nothing but the id is read: capture goes on while the objects are those of an older version.
        spi::first(
            &schema.sql("SELECT id FROM @.sync_outbox_target WHERE name OPERATOR(pg_catalog.=) $1"),
            &[Arg::text_utf8(name)],
            |row| row.get(1),
        )
        .flatten()
        .ok_or_else(|| unknown(name))
    }))
}

/// The target of that name; `default` is created if it is missing.
pub fn find(schema: &Schema, name: &str) -> Result<Target> {
    if name == DEFAULT {
        make_default(schema);
    }
    look_up(schema, name).ok_or_else(|| unknown(name))
}

/// As [`find`], and keeps others from dropping the target until the transaction ends, for callers that are about to
/// refer to it.
pub fn find_and_keep(schema: &Schema, name: &str) -> Result<Target> {
    find(schema, name)?;
    locked(schema, name, "KEY SHARE").ok_or_else(|| unknown(name))
}

/// The target of that name, which nobody else changes, drops or refers to until the transaction ends.
pub fn find_to_drop(schema: &Schema, name: &str) -> Result<Target> {
    locked(schema, name, "UPDATE").ok_or_else(|| unknown(name))
}

/// The target of that name, which nobody else changes until the transaction ends; created if it is missing.
pub fn find_or_make(schema: &Schema, name: &str) -> Result<Target> {
    if name == DEFAULT {
        make_default(schema);
    } else if look_up(schema, name).is_none() {
        make(schema, name);
    }
    let found = locked(schema, name, "NO KEY UPDATE").or_else(|| {
        make(schema, name); // somebody has dropped it while we waited for the lock
        locked(schema, name, "NO KEY UPDATE")
    });
    found.ok_or_else(|| unknown(name))
}

fn make(schema: &Schema, name: &str) {
    keep_ids_apart(schema);
    spi::run(
        &schema.sql("INSERT INTO @.sync_outbox_target (name) VALUES ($1) ON CONFLICT (name) DO NOTHING"),
        &[Arg::text_utf8(name)],
    );
}

fn locked(schema: &Schema, name: &str, strength: &str) -> Option<Target> {
    spi::first(
        &schema.sql(&format!(
            "SELECT {COLUMNS} FROM @.sync_outbox_target WHERE name OPERATOR(pg_catalog.=) $1 FOR {strength}"
        )),
        &[Arg::text_utf8(name)],
        target,
    )
}

fn unknown(name: &str) -> Error {
    Error::argument(format!("target \"{name}\" does not exist")).hint(
        "SELECT name FROM sync_outbox_target; lists the targets; leave the argument out for the one named default.",
    )
}

/// As [`find`], for readers: creates nothing, so that it works on a standby and in a read-only transaction.
pub fn look_up(schema: &Schema, name: &str) -> Option<Target> {
    spi::first(
        &schema.sql(&format!("SELECT {COLUMNS} FROM @.sync_outbox_target WHERE name OPERATOR(pg_catalog.=) $1")),
        &[Arg::text_utf8(name)],
        target,
    )
}

const COLUMNS: &str = "id, name, base_url, upload_path, ca_file, client_cert_file, client_key_file, signing_secret_file, paused, paused_reason";

fn target(row: &Row<'_>) -> Target {
    Target {
        id: row.get(1).unwrap_or_default(),
        name: row.utf8(2).unwrap_or_default(),
        base_url: row.utf8(3),
        upload_path: row.utf8(4),
        ca_file: row.utf8(5),
        client_cert_file: row.utf8(6),
        client_key_file: row.utf8(7),
        signing_secret_file: row.utf8(8),
        paused: row.get(9).unwrap_or_default(),
        paused_reason: row.utf8(10),
    }
}

/// Every target, `default` first.
pub fn all(schema: &Schema) -> Vec<Target> {
    let mut targets = Vec::new();
    spi::query(&schema.sql(&format!("SELECT {COLUMNS} FROM @.sync_outbox_target ORDER BY id")), &[], |row| {
        targets.push(target(row))
    });
    targets
}

fn make_default(schema: &Schema) {
    if look_up(schema, DEFAULT).is_none() {
        spi::run(
            &schema.sql("INSERT INTO @.sync_outbox_target (id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING"),
            &[DEFAULT_ID.into(), DEFAULT.into()],
        );
        keep_ids_apart(schema);
    }
}

/// Makes the next ids greater than those that were given by hand, and never smaller than before. Changes, token files
/// and sessions refer to a target by its id, so the id must not be given again after the target was dropped.
fn keep_ids_apart(schema: &Schema) {
    spi::run(
        &schema.sql(
            "SELECT pg_catalog.setval('@.sync_outbox_target_id_seq', t.last)
               FROM (SELECT pg_catalog.max(id)::bigint AS last FROM @.sync_outbox_target) t, @.sync_outbox_target_id_seq s
              WHERE t.last OPERATOR(pg_catalog.>=) s.last_value",
        ),
        &[],
    );
}

/// Sets columns of a target to the members of the same name of a JSON object, a text in UTF-8.
pub fn set(schema: &Schema, id: i16, columns: &[&'static str], members: &str) {
    let columns: Vec<String> = columns.iter().map(|column| format!("{column} = r.{column}")).collect();
    spi::run(
        &schema.sql(&format!(
            "UPDATE @.sync_outbox_target t SET {}
               FROM pg_catalog.json_populate_record(NULL::@.sync_outbox_target, $2) r
              WHERE t.id OPERATOR(pg_catalog.=) $1",
            columns.join(", ")
        )),
        &[id.into(), Arg::json_utf8(members)],
    );
}

/// Whether any change waits for a target, whatever its status.
pub fn has_changes(schema: &Schema, id: i16) -> bool {
    let _plans = super::index_order();
    spi::first(
        &schema.sql(
            "SELECT true FROM @.sync_outbox WHERE target_id OPERATOR(pg_catalog.=) $1
              ORDER BY target_id, priority, id LIMIT 1",
        ),
        &[id.into()],
        |_| (),
    )
    .is_some()
}

/// Drops a target and its state.
pub fn drop(schema: &Schema, id: i16) {
    forget(schema, id);
    spi::run(&schema.sql("DELETE FROM @.sync_outbox_lane WHERE target_id OPERATOR(pg_catalog.=) $1"), &[id.into()]);
    spi::run(&schema.sql("DELETE FROM @.sync_outbox_target WHERE id OPERATOR(pg_catalog.=) $1"), &[id.into()]);
}

/// Keeps a URL with the target; `None` clears it, so that the setting applies.
pub fn set_base_url(schema: &Schema, id: i16, base_url: Option<&str>) {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox_target SET base_url = $2
              WHERE id OPERATOR(pg_catalog.=) $1
                AND coalesce(base_url OPERATOR(pg_catalog.<>) $2, base_url IS NOT NULL OR $2 IS NOT NULL)",
        ),
        &[id.into(), Arg::opt_utf8(base_url)],
    );
}

pub fn set_paused(schema: &Schema, id: i16, paused: bool, reason: Option<&str>) {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox_target
                SET paused = $2, paused_reason = $3, paused_at = CASE WHEN $2 THEN pg_catalog.now() END
              WHERE id OPERATOR(pg_catalog.=) $1",
        ),
        &[id.into(), paused.into(), Arg::opt_utf8(reason)],
    );
}

/// What the sender remembers of a target between sessions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub consecutive_failures: u32,
    /// Milliseconds from now until the breaker lets the worker try again; `None`: at once.
    pub wait_ms: Option<i64>,
    pub auth: Option<String>,
}

pub fn state(schema: &Schema, id: i16) -> State {
    spi::first(
        &schema.sql(
            "SELECT consecutive_failures,
                    (extract(epoch FROM next_try_at OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp())
                     OPERATOR(pg_catalog.*) 1000)::bigint, auth
               FROM @.sync_outbox_target_state WHERE target_id OPERATOR(pg_catalog.=) $1",
        ),
        &[id.into()],
        |row| State {
            consecutive_failures: row.get::<i32>(1).unwrap_or_default().max(0) as u32,
            wait_ms: row.get::<i64>(2).filter(|ms| *ms > 0),
            auth: row.get(3),
        },
    )
    .unwrap_or_default()
}

// The following functions may be called for a target that has just been dropped. Then they do nothing.

/// Records a request that got through, and closes the breaker.
pub fn note_success(schema: &Schema, id: i16) {
    spi::run(
        &schema.sql(
            "INSERT INTO @.sync_outbox_target_state (target_id, last_success_at)
             SELECT t.id, pg_catalog.clock_timestamp()
               FROM (SELECT id FROM @.sync_outbox_target WHERE id OPERATOR(pg_catalog.=) $1 FOR KEY SHARE) t
             ON CONFLICT (target_id) DO UPDATE SET consecutive_failures = 0, next_try_at = NULL, auth = NULL,
                 last_success_at = pg_catalog.clock_timestamp()",
        ),
        &[id.into()],
    );
}

/// Records a request that did not get through or was rejected, and opens the breaker for `wait_ms`.
pub fn note_failure(schema: &Schema, id: i16, failures: u32, wait_ms: i64, auth: Option<&str>, error: &str) {
    spi::run(
        &schema.sql(
            "INSERT INTO @.sync_outbox_target_state
                    (target_id, consecutive_failures, next_try_at, auth, last_error, last_error_at)
             SELECT t.id, $2, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) ($3 OPERATOR(pg_catalog.*) interval '1 millisecond'),
                    $4, $5, pg_catalog.clock_timestamp()
               FROM (SELECT id FROM @.sync_outbox_target WHERE id OPERATOR(pg_catalog.=) $1 FOR KEY SHARE) t
             ON CONFLICT (target_id) DO UPDATE SET consecutive_failures = excluded.consecutive_failures,
                 next_try_at = excluded.next_try_at, auth = excluded.auth, last_error = excluded.last_error,
                 last_error_at = excluded.last_error_at",
        ),
        &[
            id.into(),
            (failures.min(i32::MAX as u32) as i32).into(),
            wait_ms.into(),
            Arg::opt(auth),
            Arg::text_utf8(error),
        ],
    );
}

/// Lets the next try happen at once.
pub fn close_breaker(schema: &Schema, id: i16) {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox_target_state SET consecutive_failures = 0, next_try_at = NULL, auth = NULL
              WHERE target_id OPERATOR(pg_catalog.=) $1
                AND (consecutive_failures OPERATOR(pg_catalog.<>) 0 OR next_try_at IS NOT NULL OR auth IS NOT NULL)",
        ),
        &[id.into()],
    );
}

/// Forgets the state of a target: breaker, rates and drain.
pub fn forget(schema: &Schema, id: i16) {
    spi::run(
        &schema.sql("DELETE FROM @.sync_outbox_target_state WHERE target_id OPERATOR(pg_catalog.=) $1"),
        &[id.into()],
    );
    spi::run(
        &schema.sql("DELETE FROM @.sync_outbox_throughput WHERE target_id OPERATOR(pg_catalog.=) $1"),
        &[id.into()],
    );
}

/// Adds to the rates of the overview, and deletes those that are older than an hour.
pub fn count(schema: &Schema, id: i16, sent: i64, acked: i64) {
    spi::run(
        &schema.sql(
            "INSERT INTO @.sync_outbox_throughput AS t (target_id, minute, sent, acked)
             VALUES ($1, pg_catalog.date_trunc('minute', pg_catalog.clock_timestamp()), $2, $3)
             ON CONFLICT (target_id, minute) DO UPDATE SET sent = t.sent OPERATOR(pg_catalog.+) excluded.sent,
                 acked = t.acked OPERATOR(pg_catalog.+) excluded.acked",
        ),
        &[id.into(), sent.into(), acked.into()],
    );
    spi::run(
        &schema.sql(
            "DELETE FROM @.sync_outbox_throughput
              WHERE minute OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) interval '1 hour')",
        ),
        &[],
    );
}

/// How far the present drain has come, for the overview.
pub fn count_drained(schema: &Schema, id: i16, acked: i64) {
    spi::run(
        &schema.sql(
            "INSERT INTO @.sync_outbox_target_state AS s (target_id, drain_started_at, drain_acked)
             SELECT t.id, pg_catalog.clock_timestamp(), $2
               FROM (SELECT id FROM @.sync_outbox_target WHERE id OPERATOR(pg_catalog.=) $1 FOR KEY SHARE) t
             ON CONFLICT (target_id) DO UPDATE SET drain_acked = s.drain_acked OPERATOR(pg_catalog.+) $2,
                 drain_started_at = coalesce(s.drain_started_at, pg_catalog.clock_timestamp())",
        ),
        &[id.into(), acked.into()],
    );
}

/// Called when the outbox is empty, so that the next drain counts from 0.
pub fn end_drain(schema: &Schema, id: i16) {
    spi::run(
        &schema.sql(
            "UPDATE @.sync_outbox_target_state SET drain_started_at = NULL, drain_acked = 0
              WHERE target_id OPERATOR(pg_catalog.=) $1 AND drain_started_at IS NOT NULL",
        ),
        &[id.into()],
    );
}

/// The time `wait` from now, ISO 8601 in UTC.
pub fn iso_after(wait: std::time::Duration) -> String {
    let mut text = Vec::new();
    spi::first(
        "SELECT pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) ($1 OPERATOR(pg_catalog.*) interval '1 millisecond')",
        &[(wait.as_millis() as i64).into()],
        |row| row.iso_time(1, &mut text),
    );
    String::from_utf8(text).unwrap_or_default()
}
