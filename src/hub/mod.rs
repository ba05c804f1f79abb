//! The hub's half: a request body is applied change by change, in order, and answered by key.
//!
//! A change and the memory of its key commit or roll back together. Nothing but accepted tables is written, each as its
//! owner, in a context from which that owner's code cannot leave (`invariants` 1).

mod definition;
mod statement;
mod table;

use crate::error::{Error, Result, SqlState};
use crate::pg::code_locks::{self, SessionLocks};
use crate::pg::confine;
use crate::pg::guc::{self, Nest};
use crate::pg::memory::ScratchContext;
use crate::pg::role::ActAs;
use crate::pg::spi::{self, Arg};
use crate::pg::timeout::{LockWaits, StatementLimit, Time};
use crate::pg::xact::{self, Caught};
use crate::settings;
use crate::store::{Schema, applied};
use delivery::keys::{Parked, Touched};
use statement::Compared;
use table::{HubTable, HubTables};
use wire::Operation;
use wire::answer::AnswerWriter;
use wire::body::{self, Incoming};

/// Applies a body and returns the answer as JSON text.
pub fn apply(payload: &str) -> Result<String> {
    let changes = body::parse(payload).map_err(|why| {
        Error::argument("the payload is not a body of changes").detail(wire::answer::clean(&why)).hint(
            r#"Pass {"changes": [{"schema": .., "table": .., "op": "UPDATE", "pk": {..}, "data": {..}, "dedup_key": ".."}]}."#,
        )
    })?;
    let schema = Schema::installed()?;
    let time = StatementLimit::new(settings::apply_statement_timeout());
    confine::all_immediate();
    let session_locks = SessionLocks::new();
    let _settings = as_a_replica();
    let _owner = ActAs::owner();
    let mut waits = Waits::new();
    let mut tables = HubTables::new(&schema);
    let mut parked = Parked::default();
    let mut answer = AnswerWriter::default();
    let mut any_known = false;
    // First, so that nothing that happens later can leave it out.
    xact::commit_durably();
    let scratch = ScratchContext::new();
    for (position, change) in (0..).zip(changes.iter()) {
        let change = &change;
        if !parked.is_empty() && parked.blocks(&touched(change), position) {
            continue; // left unmentioned: it must not overtake
        }
        let mut table_is_known = false;
        code_locks::watch();
        let waited = waits.as_ref().map_or(0, |waits| waits.clock.waited());
        let applied = scratch.run(|| {
            let table = tables.get(change)?;
            table_is_known = true;
            apply_one(&schema, table, change)
        });
        if let Some(waits) = &mut waits {
            waits.take_off(waited);
        }
        let asks_to_come_again = applied.as_ref().is_err_and(ends_the_request);
        let is_last = match time.look(!asks_to_come_again) {
            Time::Left => false,
            Time::Caught if time.is_ours() => true,
            Time::Caught | Time::Over => {
                return Err(Error::new(
                    SqlState::ERRCODE_QUERY_CANCELED,
                    "canceling statement due to statement timeout",
                )
                .hint("Nothing was applied. Send the same body again."));
            }
        };
        if applied.is_err() {
            session_locks.restore(); // what it has left would take the room of others
        }
        match applied {
            Ok(Applied::Done) => answer.ack(change.dedup_key.clone()),
            Ok(Applied::Before) => {
                any_known = true;
                answer.ack(change.dedup_key.clone());
            }
            Ok(Applied::Conflict(why)) => {
                answer.conflict(change.dedup_key.clone(), &why);
                parked.park(&touched(change), position);
            }
            // Left unmentioned, and its key waits: it comes again by itself, while the others are applied.
            Err(caught) if is_in_the_way(&caught) => {
                let whole_table = || Touched::new(&change.schema, &change.table, None, None);
                parked.park(&if table_is_known { touched(change) } else { whole_table() }, position);
            }
            // Not told of the whole request: it would use up the time of each that it is in, and its store would wait
            // for ever.
            Err(_) if asks_to_come_again && is_last => answer.error(change.dedup_key.clone(), CAUGHT_THE_END),
            Err(caught) if asks_to_come_again => {
                return Err(
                    Error::new(caught.sqlstate, caught.message).hint("Nothing was applied. Send the same body again.")
                );
            }
            Err(caught) => {
                answer.error(change.dedup_key.clone(), &caught.message);
                parked.park(&touched(change), position);
            }
        }
        if is_last {
            break; // the others are left unmentioned
        }
    }
    if any_known {
        applied::commit_something();
    }
    applied::prune_now_and_then(&schema, changes.count());
    Ok(answer.json())
}

/// What a change is told whose code has caught the error that ends a call.
const CAUGHT_THE_END: &str =
    "it took longer than sync_outbox.apply_statement_timeout, and code of its table caught that error";

/// As logical replication applies: no capture, and no foreign keys, because a cascade arrives parents first. Values are
/// read under the settings they were written under.
fn as_a_replica() -> Nest {
    let nest = Nest::neutral_output();
    nest.set("session_replication_role", "replica").set("sync_outbox.capture", "off").set("xmloption", "content");
    nest
}

/// What is left of the time in which one call may wait for locks of others, in microseconds.
struct Waits {
    left: i64,
    clock: LockWaits,
}

impl Waits {
    /// `None` is no limit.
    fn new() -> Option<Self> {
        let left = settings::apply_lock_timeout()?.as_micros() as i64;
        let waits = Waits { left, clock: LockWaits::new() };
        waits.set();
        Some(waits)
    }

    /// A lock is waited for as long as is left, or less if the session says so. Holds until the nest level ends that is
    /// open.
    fn set(&self) {
        guc::limit_lock_wait((self.left / 1000).max(1) as i32);
    }

    /// Takes off what has been waited since the clock said `before`.
    fn take_off(&mut self, before: i64) {
        let waited = self.clock.waited() - before;
        if waited > 0 {
            self.left -= waited;
            self.set();
        }
    }
}

/// What became of a change that is not refused.
enum Applied {
    Done,
    /// By an earlier request, whose commit may not be on disk yet.
    Before,
    /// The row is not as the sender saw it; nothing was touched.
    Conflict(String),
}

/// Applies one change in a subtransaction, unless its key was applied before.
fn apply_one(
    schema: &Schema,
    table: &std::result::Result<HubTable, String>,
    change: &Incoming<'_>,
) -> std::result::Result<Applied, Caught> {
    let mut conflict = None;
    let applied = xact::subtransaction(|| {
        if !applied::remember(schema, &change.id) {
            return Applied::Before;
        }
        let table = table.as_ref().unwrap_or_else(|why| refuse(why));
        let statement = statement::of(change, &table.definition).unwrap_or_else(|why| refuse(&why));
        table.must_be_as_it_was();
        let _restricted = ActAs::restricted(table.owner);
        let old = change.old.as_ref().map_or("{}", |old| old.text);
        let arguments = [Arg::json_utf8(change.pk.text), Arg::json_utf8(change.data.text), Arg::json_utf8(old)];
        if spi::run_varied(&statement.sql, &arguments) > 0 {
            return Applied::Done;
        }
        if let Some(columns) = statement.compared.and_then(|compared| differing(&compared, &arguments)) {
            if columns.is_empty() {
                refuse("the row was being changed by others"); // and is as it was again: the change comes again
            }
            conflict = Some(format!("the row has other values in {}", columns.join(", ")));
            refuse("conflict"); // undone with it: the memory of its key
        }
        if let Some(why) = statement.if_none {
            refuse(why);
        }
        Applied::Done
    });
    match conflict {
        Some(why) => Ok(Applied::Conflict(why)),
        None => applied,
    }
}

/// The columns in which the row is not as the sender saw it; `None` if there is no row.
fn differing(compared: &Compared, arguments: &[Arg]) -> Option<Vec<String>> {
    let mut differing = None;
    spi::once(&compared.sql, arguments, |row| {
        let differs = (1..).map(|i| row.get::<bool>(i).unwrap_or_default());
        differing = Some(compared.columns.iter().zip(differs).filter(|(_, d)| *d).map(|(c, _)| c.clone()).collect());
    });
    differing
}

/// Ends the subtransaction of a change: the message goes to its sender.
fn refuse(why: &str) -> ! {
    Error::new(SqlState::ERRCODE_RAISE_EXCEPTION, why).raise()
}

fn touched(change: &Incoming<'_>) -> Touched {
    let pk = (change.operation != Operation::Truncate).then_some(change.pk.text);
    Touched::new(&change.schema, &change.table, pk, Some(change.data.text))
}

/// Somebody has a lock that the change needs, or waits for one of ours while we wait for his.
fn is_in_the_way(caught: &Caught) -> bool {
    let locks = [SqlState::ERRCODE_LOCK_NOT_AVAILABLE, SqlState::ERRCODE_T_R_DEADLOCK_DETECTED];
    locks.contains(&caught.sqlstate) && !caught.raised_by_code
}

/// Errors that say something about the server and not about the change: it is not refused, it comes again. Not so where
/// a trigger has raised them by hand: a change that it always meets so would keep its store waiting for ever.
fn ends_the_request(caught: &Caught) -> bool {
    let sqlstate = caught.sqlstate;
    if caught.raised_by_code || is_in_the_way(caught) {
        return false;
    }
    // Nor where somebody has set a limit (temp_file_limit): the change always meets it.
    if sqlstate == SqlState::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED {
        return false;
    }
    // Nor where the locks that there is no room for are its own.
    if sqlstate == SqlState::ERRCODE_OUT_OF_MEMORY && code_locks::has_held_very_many() {
        return false;
    }
    // The class of an SQLSTATE: ERRCODE_TO_CATEGORY of utils/elog.h.
    let class = |state: SqlState| state as i32 & 0xFFF;
    [
        SqlState::ERRCODE_OPERATOR_INTERVENTION,
        SqlState::ERRCODE_TRANSACTION_ROLLBACK,
        SqlState::ERRCODE_INSUFFICIENT_RESOURCES,
    ]
    .into_iter()
    .any(|of| class(of) == class(sqlstate))
        || sqlstate == SqlState::ERRCODE_IO_ERROR
}
