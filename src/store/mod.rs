//! Every statement that the library runs on its own tables, one module per table, with typed rows around them.
//!
//! Callers act as the extension's owner ([`crate::pg::role::ActAs`]) inside a transaction; every object is named with its
//! schema.

pub mod accepted;
pub mod applied;
pub mod attached;
pub mod backlog;
pub mod history;
pub mod identity;
pub mod import;
pub mod lane;
pub mod overview;
pub mod queue;
pub mod reclaim;
pub mod relation;
pub mod run;
pub mod shape;
pub mod snapshot;
pub mod stats;
pub mod steer;
pub mod target;

use crate::error::{Error, Result};
use crate::pg::Oid;
use crate::pg::guc::Nest;
use crate::pg::relation as pg_relation;
use crate::pg::spi;

/// The schema that the extension's objects are in.
#[derive(Clone, Debug)]
pub struct Schema {
    pub oid: Oid,
    ident: String,
}

impl Schema {
    pub fn new(oid: Oid) -> Self {
        let name = String::from_utf8_lossy(&pg_relation::schema_name(oid)).into_owned();
        Schema { oid, ident: quote_ident(&name) }
    }

    /// That of the installed extension.
    pub fn installed() -> Result<Self> {
        spi::extension().map(|e| Schema::new(e.schema)).ok_or_else(Error::not_installed)
    }

    /// A statement with `@` for the schema.
    pub fn sql(&self, text: &str) -> String {
        text.replace('@', &self.ident)
    }

    /// The oid of the trigger function.
    pub fn capture(&self) -> Oid {
        pg_relation::trigger_function(self.oid, c"sync_outbox_capture").unwrap_or(Oid::INVALID)
    }

    /// The oid of the outbox table.
    pub fn outbox(&self) -> Oid {
        pg_relation::lookup(self.oid, c"sync_outbox").unwrap_or(Oid::INVALID)
    }
}

/// Every read of the outbox goes along its index. A queue's statistics are always wrong (it was empty, or held a million
/// rows, when it was analyzed), and a plan that sorts reads a whole backlog for one batch.
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
