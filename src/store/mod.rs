//! Every statement that the library runs on its own tables, one module per table, and typed rows.
//!
//! Callers act as the extension's owner ([`crate::pg::role::ActAs`]) inside a transaction; every object is named with
//! its schema.

pub mod accepted;
pub mod applied;
pub mod attached;
pub mod backlog;
pub mod history;
pub mod identity;
pub mod import;
pub mod intervention;
pub mod lane;
pub mod options;
pub mod overview;
pub mod queue;
pub mod queue_scan;
pub mod reclaim;
pub mod relation;
pub mod shape;
pub mod snapshot;
pub mod stats;
pub mod target;

use crate::error::{Error, Result, SqlState};
use crate::pg::Oid;
use crate::pg::extension::{self, Extension, Version};
use crate::pg::guc::Nest;
use crate::pg::relation as pg_relation;
use crate::pg::{function, text};

/// The oldest version of `sql/` that the statements here work with. A release whose statements need what its update
/// script creates must raise it.
const OLDEST: Version = Version([0, 2, 0]);

/// The schema that the extension's objects are in.
#[derive(Clone, Debug)]
pub struct Schema {
    pub oid: Oid,
    ident: String,
}

impl Schema {
    pub fn new(oid: Oid) -> Self {
        let name = text::to_utf8(&pg_relation::schema_name(oid)).into_owned();
        Schema { oid, ident: quote_ident(&name) }
    }

    /// The schema of the installed extension.
    pub fn installed() -> Result<Self> {
        extension::installed().ok_or_else(Error::not_installed).and_then(Self::of)
    }

    /// The schema of this extension; 55000 if the library is newer than the tables. Then it is better to do nothing
    /// than half of it, because what is sent must also be settled. Capture does not check, so that writers do not pay
    /// for it.
    pub fn of(Extension { schema, version, .. }: Extension) -> Result<Self> {
        if version < OLDEST {
            return Err(Error::new(
                SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the objects of extension \"sync_outbox\" are of version {version}, too old for its library"),
            )
            .detail(format!(
                "The library needs version {OLDEST} or later. Changes are captured meanwhile, and not sent."
            ))
            .hint("ALTER EXTENSION sync_outbox UPDATE;"));
        }
        Ok(Schema::new(schema))
    }

    /// A statement with `@` for the schema.
    pub fn sql(&self, text: &str) -> String {
        text.replace('@', &self.ident)
    }

    /// The oid of the trigger function.
    pub fn capture(&self) -> Oid {
        function::lookup_trigger(self.oid, c"sync_outbox_capture").unwrap_or(Oid::INVALID)
    }

    /// The oid of the outbox table.
    pub fn outbox(&self) -> Oid {
        pg_relation::lookup(self.oid, c"sync_outbox").unwrap_or(Oid::INVALID)
    }
}

/// Makes every read of the outbox use its index, until the result is dropped. The statistics of a queue are always
/// wrong, because it was empty or held a million rows when it was analyzed, and a plan that sorts reads a whole backlog
/// for one batch.
pub fn index_order() -> Nest {
    let nest = Nest::new();
    nest.set("enable_sort", "off")
        .set("enable_seqscan", "off")
        .set("enable_bitmapscan", "off")
        .set("plan_cache_mode", "force_generic_plan")
        .set("jit", "off");
    nest
}

/// A name as it must be written in a statement.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string as a literal that does not depend on `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}
