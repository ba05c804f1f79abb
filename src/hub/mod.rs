//! The hub: applies the changes of a request body one by one, in order, and answers each by its key.
//!
//! A change and the record that its key was applied commit or roll back together. Only accepted tables are written,
//! each as its owner, in a context that the owner's code cannot escape from (`invariants` 1).

mod definition;
mod failure;
mod lock_budget;
mod statement;
mod table;

use crate::error::{Error, Result, SqlState};
use crate::pg::code_locks::{self, SessionLocks};
use crate::pg::confine;
use crate::pg::guc::Nest;
use crate::pg::memory::ScratchContext;
use crate::pg::role::ActAs;
use crate::pg::spi::{self, Arg};
use crate::pg::timeout::{StatementLimit, Time};
use crate::pg::xact::{self, Caught};
use crate::settings;
use crate::store::{Schema, applied};
use delivery::keys::{Parked, Touched};
use lock_budget::LockBudget;
use statement::Compared;
use table::{HubTable, HubTables};
use wire::Operation;
use wire::answer::AnswerWriter;
use wire::body::{self, Incoming};

/// Applies a body and returns the answer as JSON text.
pub fn apply(payload: &str) -> Result<String> {
    let changes = read(payload)?;
    let schema = Schema::installed()?;
    let limit = StatementLimit::new(settings::apply_statement_timeout());
    confine::all_immediate();
    let session_locks = SessionLocks::new();
    let _settings = as_a_replica();
    let _owner = ActAs::owner();
    let mut request = ApplyCall::new(&schema, &limit, &session_locks);
    // Before anything is applied, so that nothing that happens later can prevent it.
    xact::commit_durably();
    for (position, change) in (0..).zip(changes.iter()) {
        if request.has_to_wait(&change, position) {
            continue; // left unmentioned: it must not overtake
        }
        let attempt = request.attempt(&change);
        let is_last = request.is_out_of_time(&attempt)?;
        request.record(&change, position, attempt, is_last)?;
        if is_last {
            break; // the others are left unmentioned
        }
    }
    if request.any_known {
        applied::commit_something();
    }
    applied::prune_now_and_then(&schema, changes.count());
    Ok(request.answer.json())
}

fn read(payload: &str) -> Result<body::Changes<'_>> {
    body::parse(payload).map_err(|why| {
        Error::argument("the payload is not a body of changes").detail(wire::answer::clean(&why)).hint(
            r#"Pass {"changes": [{"schema": .., "table": .., "op": "UPDATE", "pk": {..}, "data": {..}, "dedup_key": ".."}]}."#,
        )
    })
}

/// Applies changes as logical replication does: without capture, and without foreign keys, because a cascade arrives
/// parents first. Values are read with the settings that they were written with.
fn as_a_replica() -> Nest {
    let nest = Nest::neutral_output();
    nest.set("session_replication_role", "replica").set("sync_outbox.capture", "off").set("xmloption", "content");
    nest
}

/// One call: what it knows of its tables, the time it may still wait for locks, and what it is going to answer.
struct ApplyCall<'a> {
    schema: &'a Schema,
    limit: &'a StatementLimit,
    session_locks: &'a SessionLocks,
    /// `None`: waits for locks are not limited.
    lock_budget: Option<LockBudget>,
    scratch: ScratchContext,
    tables: HubTables<'a>,
    /// Keys with a change that was not applied, whose later changes have to wait.
    parked: Parked,
    answer: AnswerWriter<'a>,
    /// Whether a change was acknowledged that an earlier request has applied.
    any_known: bool,
}

/// The result of an attempt to apply a change.
struct Attempt {
    result: std::result::Result<Applied, Caught>,
    /// Whether the change's table was found and locked, or refused.
    table_is_known: bool,
}

impl Attempt {
    /// Whether an error says that the body is to be sent again, and nothing about the change.
    fn ends_the_request(&self) -> bool {
        self.result.as_ref().is_err_and(failure::ends_the_request)
    }
}

impl<'a> ApplyCall<'a> {
    fn new(schema: &'a Schema, limit: &'a StatementLimit, session_locks: &'a SessionLocks) -> Self {
        ApplyCall {
            schema,
            limit,
            session_locks,
            lock_budget: LockBudget::new(),
            scratch: ScratchContext::new(),
            tables: HubTables::new(schema),
            parked: Parked::default(),
            answer: AnswerWriter::default(),
            any_known: false,
        }
    }

    /// Whether an earlier change of one of its keys was not applied.
    fn has_to_wait(&self, change: &Incoming<'_>, position: i64) -> bool {
        !self.parked.is_empty() && self.parked.blocks(&touched(change), position)
    }

    /// Looks the change's table up and applies the change, which takes the time that it waits for locks off the budget.
    fn attempt(&mut self, change: &Incoming<'_>) -> Attempt {
        let mut table_is_known = false;
        code_locks::watch();
        let waited = self.lock_budget.as_ref().map_or(0, LockBudget::waited);
        let result = self.scratch.run(|| {
            let table = self.tables.get(change)?;
            table_is_known = true;
            apply_one(self.schema, table, change)
        });
        if let Some(budget) = &mut self.lock_budget {
            budget.spend_since(waited);
        }
        Attempt { result, table_is_known }
    }

    /// Whether the time of the call is up, so that this change is the last one. Fails if the statement has to end with
    /// 57014: unless code of a table has caught that error, or if it was the caller's own limit.
    fn is_out_of_time(&self, attempt: &Attempt) -> Result<bool> {
        match self.limit.look(!attempt.ends_the_request()) {
            Time::Left => Ok(false),
            Time::Caught if self.limit.is_ours() => Ok(true),
            Time::Caught | Time::Over => {
                Err(Error::new(SqlState::ERRCODE_QUERY_CANCELED, "canceling statement due to statement timeout")
                    .hint(SEND_AGAIN))
            }
        }
    }

    /// Puts what became of a change into the answer, and parks its keys if it was not applied. Fails if the whole
    /// request has to be sent again.
    fn record(&mut self, change: &Incoming<'a>, position: i64, attempt: Attempt, is_last: bool) -> Result<()> {
        let ends_the_request = attempt.ends_the_request();
        if attempt.result.is_err() {
            self.session_locks.restore(); // the locks that it has left would take the room of others
        }
        let key = change.dedup_key_as_sent.clone();
        match attempt.result {
            Ok(Applied::Done) => self.answer.ack(key),
            Ok(Applied::Before) => {
                self.any_known = true;
                self.answer.ack(key);
            }
            Ok(Applied::Conflict(why)) => {
                self.answer.conflict(key, &why);
                self.parked.park(&touched(change), position);
            }
            // It is left unmentioned and its key is parked, so that its sender sends it again, while the others are
            // applied.
            Err(caught) if failure::is_in_the_way(&caught) => {
                let whole_table = || Touched::new(&change.schema, &change.table, None, None);
                let keys = if attempt.table_is_known { touched(change) } else { whole_table() };
                self.parked.park(&keys, position);
            }
            // The error is this change's. As the error of the request it would use up the time of every request that
            // the change is in, and its store would wait for ever.
            Err(_) if ends_the_request && is_last => self.answer.error(key, CAUGHT_THE_END),
            Err(caught) if ends_the_request => {
                return Err(Error::new(caught.sqlstate, caught.message).hint(SEND_AGAIN));
            }
            Err(caught) => {
                self.answer.error(key, &caught.message);
                self.parked.park(&touched(change), position);
            }
        }
        Ok(())
    }
}

/// The error of a change whose code has caught the error that ends a call.
const CAUGHT_THE_END: &str =
    "it took longer than sync_outbox.apply_statement_timeout, and code of its table caught that error";

/// The hint of an error that ends the request.
const SEND_AGAIN: &str = "Nothing was applied. Send the same body again.";

/// What became of a change that is not refused.
enum Applied {
    Done,
    /// An earlier request has applied it, whose commit may not be on disk yet.
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
        if !applied::remember(schema, &change.dedup_key) {
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
                // Now it is as the sender saw it again, so the change is to be sent again.
                refuse("the row was being changed by others");
            }
            conflict = Some(format!("the row has other values in {}", columns.join(", ")));
            refuse("conflict"); // this also undoes the record that its key was applied
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

/// Rolls the subtransaction of a change back. The message is sent to its sender.
fn refuse(why: &str) -> ! {
    Error::new(SqlState::ERRCODE_RAISE_EXCEPTION, why).raise()
}

fn touched(change: &Incoming<'_>) -> Touched {
    let pk = (change.operation != Operation::Truncate).then_some(change.pk.text);
    Touched::new(&change.schema, &change.table, pk, Some(change.data.text))
}
