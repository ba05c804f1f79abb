//! Creating capture's triggers on a table, and dropping them.
//!
//! What is checked before the lock is taken is checked again under it. If nothing changes, no lock is taken: applying
//! the same configuration again must not make the writers of a busy table queue.

use super::eligible;
use crate::error::{Error, Result, SqlState};
use crate::pg::relation_lock::LockMode;
use crate::pg::{Oid, spi, text, xact};
use crate::store::attached::{self, Trigger};
use crate::store::options::Options;
use crate::store::relation::{self, Relation};
use crate::store::{Schema, identity, lane, quote_ident, quote_literal, target};

/// Sorts before the names that people give: capture of a row comes before what their triggers do (`invariants` 2).
const ROW_TRIGGER: &str = "!sync_outbox_row";
const TRUNCATE_TRIGGER: &str = "!sync_outbox_truncate";
const TRUNCATE: &str = "TRUNCATE";

/// What attaching a table has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachOutcome {
    Attached,
    Changed,
    Unchanged,
}

/// Captures the writes to a relation with these options. Runs as the extension's owner; `caller` must own the relation.
pub fn install(schema: &Schema, caller: Oid, oid: Oid, options: &Options) -> Result<AttachOutcome> {
    // Recorded while there is nothing to send: later it could not be found out whether this is a copy. A copy may
    // attach tables, and send later.
    let _ = identity::admit(schema);
    target::find(schema, &options.target)?;
    let capture = schema.capture();
    eligible::check(schema, caller, oid, options)?;
    let before = Installed::read(capture, oid);
    let wanted = before.wanted(schema, oid, options)?;
    if before.is(&wanted) {
        return Ok(AttachOutcome::Unchanged);
    }
    let target_id = target::find_and_keep(schema, &options.target)?.id;
    let changes_lane =
        |before: &Installed, wanted: &Options| !before.has_lane_of(wanted) || before.has_another_name_than(wanted);
    if changes_lane(&before, &wanted) {
        // Before the table's lock is taken: otherwise every writer would queue behind it while this waits for a long
        // backfill.
        lane::lock_to_change_lane(schema, oid)?;
    }
    let mode =
        if before.unwanted(options).is_empty() { LockMode::ShareRowExclusive } else { LockMode::AccessExclusive };
    relation::with_lock(oid, mode, || {
        let table = eligible::check(schema, caller, oid, options)?;
        let before = Installed::read(capture, oid);
        let options = &before.wanted(schema, oid, options)?;
        if before.is(options) {
            return Ok(AttachOutcome::Unchanged);
        }
        put_triggers(schema, &table, options, &before);
        // After the triggers are created, which also locks the partitions: nobody can be writing to any of them now.
        if changes_lane(&before, options) {
            lane::lock_to_change_lane(schema, oid)?; // locked already, unless somebody has changed the lane meanwhile
            check_lane(schema, &table, target_id, options)?;
        }
        eligible::notice(&table);
        Ok(if before.0.is_empty() { AttachOutcome::Attached } else { AttachOutcome::Changed })
    })
}

/// Ends capture on a relation; what was captured stays.
pub fn remove(schema: &Schema, caller: Oid, oid: Oid) -> Result<()> {
    let capture = schema.capture();
    let table = relation::find(schema, oid)?;
    table.require_owner(caller)?;
    if attached::triggers(capture, oid).is_empty() {
        let error = Error::new(SqlState::ERRCODE_UNDEFINED_OBJECT, format!("{} is not attached", table.name));
        return Err(match attached::attached_ancestor(capture, oid) {
            Some(root) => {
                error.hint(format!("It is a partition: SELECT sync_outbox_detach({});", quote_literal(&root)))
            }
            None => error.hint("SELECT relation FROM sync_outbox_attached; lists the attached tables."),
        });
    }
    relation::with_lock(oid, LockMode::AccessExclusive, || {
        let table = relation::find(schema, oid)?;
        table.require_owner(caller)?;
        attached::triggers(capture, oid).iter().for_each(|trigger| drop_trigger(&table, &trigger.name));
        Ok(())
    })
}

impl Options {
    /// Adds what has to be kept of the columns beside their names.
    fn of_relation(mut self, oid: Oid) -> Self {
        let numbers = |columns: &Option<Vec<String>>| {
            attached::attribute_numbers(oid, columns.as_deref().unwrap_or_default()).into_iter().unzip()
        };
        if self.exclude_attnums.is_empty() && self.columns_attnums.is_empty() {
            (self.exclude_attnums, self.exclude_places) = numbers(&self.exclude);
            (self.columns_attnums, self.columns_places) = numbers(&self.columns);
            let any = !self.exclude_attnums.is_empty() || !self.columns_attnums.is_empty();
            self.attnums_of = any.then(|| oid.to_u32());
        }
        self
    }

    /// Adds the name that the table has now.
    fn named_now(mut self, capture: Oid, oid: Oid) -> Self {
        let (schema, table) = attached::name(oid);
        let name = [schema, table].map(|name| text::to_utf8(&name).into_owned());
        let is_claimed = attached::another_is_named(capture, oid, &name);
        self.named = Some(if is_claimed { Default::default() } else { name });
        self
    }
}

/// The triggers that exist.
struct Installed(Vec<Trigger>);

impl Installed {
    fn read(capture: Oid, oid: Oid) -> Self {
        Installed(attached::triggers(capture, oid))
    }

    /// Whether they are exactly what `options` ask for.
    fn is(&self, options: &Options) -> bool {
        let enabled = if options.always { "A" } else { "O" };
        let names: Vec<&str> = self.0.iter().map(|t| t.name.as_str()).collect();
        names == wanted(options).iter().map(|(name, _)| *name).collect::<Vec<_>>()
            && self.0.iter().all(|t| t.enabled == enabled && t.options.as_ref() == Some(options))
    }

    /// The names of triggers that `options` do not need.
    fn unwanted(&self, options: &Options) -> Vec<&str> {
        let wanted = wanted(options);
        let names = self.0.iter().map(|t| t.name.as_str());
        names.filter(|name| !wanted.iter().any(|(wanted, _)| wanted == name)).collect()
    }

    /// The options that the triggers are to have: those given, and what is kept of the table. The name that the table
    /// was attached under stays while changes wait in another lane under its present name, because its own changes are
    /// compared with these.
    fn wanted(&self, schema: &Schema, oid: Oid, options: &Options) -> Result<Options> {
        let mut wanted = options.clone().of_relation(oid).named_now(schema.capture(), oid);
        if self.has_lane_of(&wanted) && self.has_another_name_than(&wanted) {
            let target_id = target::find(schema, &options.target)?.id;
            if xact::uses_one_snapshot()
                || attached::waits_elsewhere(schema, &attached::name(oid), target_id, options.priority.name())
            {
                wanted.named = self.name().cloned();
            }
        }
        Ok(wanted)
    }

    fn has_lane_of(&self, options: &Options) -> bool {
        self.lane() == Some((&options.target, options.priority.name()))
    }

    fn has_another_name_than(&self, options: &Options) -> bool {
        self.name().is_some_and(|name| options.named.as_ref() != Some(name))
    }

    /// The name that it was attached under.
    fn name(&self) -> Option<&[String; 2]> {
        self.0.iter().find_map(|t| t.options.as_ref()).and_then(|o| o.named.as_ref())
    }

    /// The target and priority of the changes captured so far.
    fn lane(&self) -> Option<(&str, &str)> {
        self.0.iter().find_map(|t| t.options.as_ref()).map(|o| (o.target.as_str(), o.priority.name()))
    }
}

/// The triggers that options need, by name, with the events they fire on.
fn wanted(options: &Options) -> Vec<(&'static str, String)> {
    let of_rows: Vec<&str> = options.operations.iter().map(String::as_str).filter(|op| *op != TRUNCATE).collect();
    let mut wanted = Vec::new();
    if !of_rows.is_empty() {
        wanted.push((ROW_TRIGGER, format!("AFTER {} ON", of_rows.join(" OR "))));
    }
    if of_rows.len() < options.operations.len() {
        wanted.push((TRUNCATE_TRIGGER, "AFTER TRUNCATE ON".to_owned()));
    }
    wanted
}

fn put_triggers(schema: &Schema, table: &Relation, options: &Options, before: &Installed) {
    before.unwanted(options).into_iter().for_each(|name| drop_trigger(table, name));
    let argument = quote_literal(&serde_json::to_string(options).unwrap_or_default());
    for (name, when) in wanted(options) {
        let level = if name == ROW_TRIGGER { "ROW" } else { "STATEMENT" };
        let (name, on) = (quote_ident(name), &table.sql_name);
        let function = schema.sql("@.sync_outbox_capture");
        // Replacing also enables it again, as ORIGIN.
        run(&format!(
            "CREATE OR REPLACE TRIGGER {name} {when} {on} FOR EACH {level} EXECUTE FUNCTION {function}({argument})"
        ));
        if options.always {
            run(&format!("ALTER TABLE {on} ENABLE ALWAYS TRIGGER {name}"));
        }
    }
}

fn drop_trigger(table: &Relation, name: &str) {
    run(&format!("DROP TRIGGER {} ON {}", quote_ident(name), table.sql_name));
}

fn run(statement: &str) {
    spi::once(statement, &[], |_| ());
}

/// A new lane while changes wait in another would let later changes of a key overtake them (`invariants` 5).
fn check_lane(schema: &Schema, table: &Relation, target_id: i16, options: &Options) -> Result<()> {
    if xact::uses_one_snapshot() {
        return Err(Error::new(
            SqlState::ERRCODE_ACTIVE_SQL_TRANSACTION,
            format!("cannot give {} a priority or target in a REPEATABLE READ transaction", table.name),
        )
        .hint("Attach it in a READ COMMITTED transaction."));
    }
    if !attached::waits_elsewhere(schema, &attached::name(table.oid), target_id, options.priority.name()) {
        return Ok(());
    }
    Err(Error::new(
        SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("changes of {} wait with another priority or target", table.name),
    )
    .detail("Later changes of a row would overtake them.")
    .hint("CALL sync_outbox_drain(); and attach it again when they are delivered, or attach it as it was."))
}
