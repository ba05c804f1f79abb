//! The table `sync_outbox_identity`: which database of which server sends, so that a copy of it does not (`invariants`
//! 19).
//!
//! The row says where it was written. A copy of the whole database has the row, and sees that it was written elsewhere.
//! A copy of the schema alone has no row: it is known by its attached tables or changes, because the row is written
//! before there can be any (by the first attach, import or target that is set).

use super::Schema;
use crate::pg::spi::{self, Arg};
use crate::pg::{database, file, server, xact};
use std::fs;

/// Why this outbox counts as a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Another database wrote the identity: a restored dump, a template copy, pg_upgrade.
    Database,
    /// This database wrote it, but in another data directory or on another host, and no standby was promoted since.
    Directory,
    /// There is no identity: a dump of the schema alone was restored.
    Schema,
}

impl Copied {
    pub fn reason(self) -> &'static str {
        match self {
            Copied::Database => "the outbox was restored, upgraded or copied from another database",
            Copied::Directory => "the data directory was copied or moved, or the host has another name",
            Copied::Schema => "the attached tables were restored without the outbox they belong to",
        }
    }
}

/// What the identity says of this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was written by this database, here.
    Ours,
    /// It was written by this database, before a promotion or a move that is known to be harmless.
    Moved,
    /// There is no identity yet, and nothing to be a copy of.
    Unnamed,
    Copied(Copied),
}

/// A row of the table, compared with this database.
#[derive(Clone, Copy)]
struct Written {
    /// It was written by this database of this server, or of a physical copy of it.
    ours: bool,
    /// It was written on this host, in this data directory.
    here: bool,
    timeline: i32,
}

/// Judges by the rows alone. A timeline that is higher than the recorded one is that of a promoted standby, which the
/// original cannot reach.
fn judge(rows: &[Written], timeline: i32) -> Standing {
    if rows.iter().any(|row| !row.ours) {
        return Standing::Copied(Copied::Database);
    }
    match rows.first() {
        None => Standing::Unnamed,
        Some(row) if row.here && row.timeline == timeline => Standing::Ours,
        Some(row) if row.here || row.timeline < timeline => Standing::Moved,
        Some(_) => Standing::Copied(Copied::Directory),
    }
}

/// What the identity says of this database. Reads only; a standby is never a copy.
pub fn standing(schema: &Schema) -> Standing {
    if xact::in_recovery() {
        return Standing::Ours;
    }
    let mut rows = Vec::new();
    spi::query(
        &schema.sql(
            "SELECT system_identifier OPERATOR(pg_catalog.=) $1 AND database_oid OPERATOR(pg_catalog.=) $2,
                    host OPERATOR(pg_catalog.=) $3 AND data_directory OPERATOR(pg_catalog.=) $4, timeline
               FROM @.sync_outbox_identity",
        ),
        &here()[..4],
        |row| {
            rows.push(Written {
                ours: row.get(1).unwrap_or_default(),
                here: row.get(2).unwrap_or_default(),
                timeline: row.get(3).unwrap_or_default(),
            })
        },
    );
    match judge(&rows, server::timeline()) {
        Standing::Unnamed if is_used(schema) => Standing::Copied(Copied::Schema),
        Standing::Copied(Copied::Database) if !is_used(schema) && !is_aimed(schema) => Standing::Unnamed,
        standing => standing,
    }
}

/// Whether this database may send; writes its identity if there is none yet.
pub fn admit(schema: &Schema) -> Result<(), Copied> {
    match standing(schema) {
        Standing::Ours => {}
        Standing::Copied(copied) => return Err(copied),
        Standing::Moved => {
            spi::run(
                &schema.sql(
                    "UPDATE @.sync_outbox_identity SET host = $3, data_directory = $4, timeline = $5,
                            recorded_at = pg_catalog.now()
                      WHERE system_identifier OPERATOR(pg_catalog.=) $1 AND database_oid OPERATOR(pg_catalog.=) $2",
                ),
                &here(),
            );
        }
        Standing::Unnamed => {
            // If there are rows at all, they are those of an empty template.
            spi::run(
                &schema.sql(
                    "DELETE FROM @.sync_outbox_identity
                      WHERE system_identifier OPERATOR(pg_catalog.<>) $1 OR database_oid OPERATOR(pg_catalog.<>) $2",
                ),
                &here()[..2],
            );
            write(schema, None, None);
        }
    }
    Ok(())
}

/// Makes this database the one that sends, whatever the table says: as the `same` source as before, or as a new one.
pub fn adopt(schema: &Schema, same: bool, who: &str) {
    let source = spi::first(
        &schema.sql(
            "SELECT source FROM @.sync_outbox_identity
              ORDER BY (system_identifier OPERATOR(pg_catalog.=) $1 AND database_oid OPERATOR(pg_catalog.=) $2) DESC,
                       recorded_at DESC LIMIT 1",
        ),
        &here()[..2],
        |row| row.uuid(1),
    );
    spi::run(&schema.sql("DELETE FROM @.sync_outbox_identity"), &[]);
    write(schema, source.filter(|_| same), Some(who));
}

/// Records that this database sends, as a new source if none is given. Does nothing if somebody else has just done so.
fn write(schema: &Schema, source: Option<uuid::Uuid>, adopted_by: Option<&str>) {
    let mut arguments = Vec::from(here());
    arguments.push(Arg::opt(source.map(|source| pgrx::Uuid::from_bytes(*source.as_bytes()))));
    arguments.push(Arg::opt_utf8(adopted_by));
    spi::run(
        &schema.sql(
            "INSERT INTO @.sync_outbox_identity
                    (system_identifier, database_oid, host, data_directory, timeline, source, adopted_by)
             VALUES ($1, $2, $3, $4, $5, coalesce($6, pg_catalog.gen_random_uuid()),
                     $7::pg_catalog.text::pg_catalog.name)
             ON CONFLICT DO NOTHING",
        ),
        &arguments,
    );
}

/// System identifier, database, host, data directory and timeline: $1 to $5 of the statements above.
fn here() -> [Arg<'static>; 5] {
    let directory = file::data_directory();
    // One directory may be reached by several names.
    let directory = fs::canonicalize(&directory).unwrap_or(directory);
    [
        server::system_identifier().into(),
        database::current().into(),
        Arg::text_utf8(&server::host_name()),
        Arg::text_utf8(&directory.to_string_lossy()),
        server::timeline().into(),
    ]
}

/// Whether there is anything that could come from another database.
fn is_used(schema: &Schema) -> bool {
    let _plans = super::index_order();
    spi::first(
        &schema.sql(
            "SELECT EXISTS (SELECT FROM @.sync_outbox)
                 OR EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgfoid OPERATOR(pg_catalog.=) $1)",
        ),
        &[schema.capture().into()],
        |row| row.get(1),
    )
    .flatten()
    .unwrap_or_default()
}

/// Whether somebody has said where to send. The default target alone does not count, because many calls create it.
fn is_aimed(schema: &Schema) -> bool {
    spi::first(
        &schema.sql(
            "SELECT true FROM @.sync_outbox_target
              WHERE base_url IS NOT NULL OR name OPERATOR(pg_catalog.<>) 'default' LIMIT 1",
        ),
        &[],
        |_| (),
    )
    .is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(ours: bool, here: bool, timeline: i32) -> Standing {
        judge(&[Written { ours, here, timeline }], 2)
    }

    #[test]
    fn what_was_written_here_sends() {
        assert_eq!(judged(true, true, 2), Standing::Ours);
        assert_eq!(judge(&[], 2), Standing::Unnamed);
    }

    #[test]
    fn a_promoted_standby_goes_on() {
        assert_eq!(judged(true, false, 1), Standing::Moved);
        assert_eq!(judged(true, true, 1), Standing::Moved);
    }

    #[test]
    fn a_copied_directory_is_of_the_same_timeline_or_of_an_older_one() {
        assert_eq!(judged(true, false, 2), Standing::Copied(Copied::Directory));
        assert_eq!(judged(true, false, 3), Standing::Copied(Copied::Directory));
    }

    #[test]
    fn one_foreign_row_is_enough() {
        assert_eq!(judged(false, true, 1), Standing::Copied(Copied::Database));
        let ours = Written { ours: true, here: true, timeline: 2 };
        assert_eq!(judge(&[ours, Written { ours: false, ..ours }], 2), Standing::Copied(Copied::Database));
    }
}
