//! Draws numbers from a sequence without a trace in the session.
//!
//! `nextval()` changes the result of `lastval()`, which an application may read right after its own INSERT. Apart from
//! that, this does the same as `nextval()`, with the same page, WAL records and numbers, so that others who use, alter,
//! restart, dump or replicate the sequence see no difference.

use super::relation_lock::WriteLocks;
use super::{compat, externs, text};
use crate::error::{Error, SqlState};
use pgrx::pg_sys;
use std::ffi::CStr;

/// How many numbers a WAL record covers beyond those that are drawn (`SEQ_LOG_VALS` in sequence.c): a crash skips at
/// most this many, and most draws write no record.
const LOGGED_AHEAD: i64 = 32;

/// The magic number in the special space of a sequence's page.
const MAGIC: u32 = 0x1717;

/// The definition of a sequence, as far as drawing depends on it. CACHE does not matter, because nothing is kept in the
/// session.
#[derive(Clone, Copy)]
struct Definition {
    increment: i64,
    least: i64,
    most: i64,
    cycles: bool,
}

/// The state of a sequence, which is its only row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct SequenceState {
    last_value: i64,
    log_cnt: i64,
    is_called: bool,
}

/// The result of a draw.
#[derive(Debug, PartialEq)]
struct Draw {
    first: i64,
    after: SequenceState,
    /// The state that replay restores, if a record has to be written.
    logged: Option<SequenceState>,
}

impl Definition {
    /// Draws `n` numbers, each `increment` after the one before. `must_log` says that nothing has been logged since the
    /// last checkpoint. `None` if the sequence has not enough numbers left.
    fn draw(&self, state: SequenceState, n: i64, must_log: bool) -> Option<Draw> {
        let (increment, n) = (i128::from(self.increment), i128::from(n));
        let fits = |value: i128| i128::from(self.least) <= value && value <= i128::from(self.most);
        let before = i128::from(state.last_value);
        let mut first = if state.is_called { before + increment } else { before };
        if !fits(first + (n - 1) * increment) {
            first = i128::from(if increment > 0 { self.least } else { self.most });
            if !self.cycles || !fits(first + (n - 1) * increment) {
                return None;
            }
        }
        let last = first + (n - 1) * increment;
        // A first number that has not been drawn yet needs no record of its own.
        let needed = n - i128::from(!state.is_called);
        let logs = must_log || !state.is_called || i128::from(state.log_cnt) < needed;
        let ahead = if logs {
            let room = if increment > 0 { i128::from(self.most) - last } else { last - i128::from(self.least) };
            (room / increment.abs()).min(i128::from(LOGGED_AHEAD))
        } else {
            i128::from(state.log_cnt) - needed
        };
        let called = |value: i128, log_cnt: i128| SequenceState {
            last_value: value as i64,
            log_cnt: log_cnt as i64,
            is_called: true,
        };
        Some(Draw {
            first: first as i64,
            after: called(last, ahead),
            logged: logs.then(|| called(last + ahead * increment, 0)),
        })
    }
}

/// Draws `n` numbers, at least 1, from a sequence that is among `locks`. Returns the first; each of the others is one
/// increment after the one before. Checks no privileges, because capture works for writers who have none on the outbox.
/// Raises 2200H when there are no numbers left.
pub fn draw(locks: &WriteLocks, sequence: pg_sys::Oid, n: i64) -> i64 {
    if !locks.hold(sequence) {
        pgrx::error!("a number was to be drawn from a sequence that is not locked");
    }
    // SAFETY: inside a transaction on the main thread, and the sequence is locked.
    match unsafe { externs::guarded(|| draw_unguarded(sequence, n)) } {
        Ok(first) => first,
        Err(refusal) => refusal.raise(),
    }
}

/// Why nothing was drawn. The name of a sequence is in the server encoding.
enum Refusal {
    Exhausted(pg_sys::NameData),
    NoSequence(pg_sys::NameData),
}

impl Refusal {
    fn raise(self) -> ! {
        let (Refusal::Exhausted(name) | Refusal::NoSequence(name)) = &self;
        // SAFETY: a name ends with a NUL.
        let name = text::name(unsafe { CStr::from_ptr(name.data.as_ptr()) });
        match self {
            Refusal::Exhausted(_) => Error::new(
                SqlState::ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED,
                format!("the sequence \"{name}\" of the outbox has no number left"),
            )
            .hint("ALTER SEQUENCE .. AS bigint NO MAXVALUE; gives it the numbers that it was made with."),
            Refusal::NoSequence(_) => Error::new(
                SqlState::ERRCODE_WRONG_OBJECT_TYPE,
                format!("\"{name}\" is no sequence as PostgreSQL makes them"),
            ),
        }
        .raise()
    }
}

/// Unguarded calls only, and nothing to be dropped: an ERROR jumps over this frame, and PostgreSQL's abort gives back
/// what it holds.
///
/// # Safety
/// Inside a transaction on the main thread, and a guard; this transaction has locked the sequence with ROW EXCLUSIVE.
unsafe fn draw_unguarded(oid: pg_sys::Oid, n: i64) -> Result<i64, Refusal> {
    // SAFETY: the steps of nextval_internal in sequence.c: the relation is locked; its only block is read under an
    // exclusive lock, verified before anything is changed, and changed in a critical section in which nothing can fail
    // but the writing of WAL.
    unsafe {
        let sequence = externs::relation_open(oid, pg_sys::NoLock as pg_sys::LOCKMODE);
        let form = &*(*sequence).rd_rel;
        if form.relkind as u8 != pg_sys::RELKIND_SEQUENCE {
            let name = form.relname;
            externs::relation_close(sequence, pg_sys::NoLock as pg_sys::LOCKMODE);
            return Err(Refusal::NoSequence(name));
        }
        externs::PreventCommandIfReadOnly(c"sync_outbox_capture()".as_ptr());
        externs::PreventCommandIfParallelMode(c"sync_outbox_capture()".as_ptr());
        let definition = definition(oid);

        let buffer = externs::ReadBuffer(sequence, 0);
        externs::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
        let page = pg_sys::BufferGetPage(buffer);
        let header = page.cast::<pg_sys::PageHeaderData>();
        let item = *(*header).pd_linp.as_ptr();
        let magic = *page.cast::<u8>().add(usize::from((*header).pd_special)).cast::<u32>();
        let tuple = page.cast::<u8>().add(item.lp_off() as usize).cast::<pg_sys::HeapTupleHeaderData>();
        let stored = tuple.cast::<u8>().add(usize::from((*tuple).t_hoff)).cast::<SequenceTuple>();
        let state = SequenceState {
            last_value: (*stored).last_value,
            log_cnt: (*stored).log_cnt,
            is_called: (*stored).is_called,
        };
        let lsn = (u64::from((*header).pd_lsn.xlogid) << 32) | u64::from((*header).pd_lsn.xrecoff);
        let drawn = match &definition {
            Some(definition) if magic == MAGIC => {
                definition.draw(state, n, lsn <= externs::GetRedoRecPtr()).ok_or(Refusal::Exhausted(form.relname))
            }
            _ => Err(Refusal::NoSequence(form.relname)),
        };
        let drawn = match drawn {
            Ok(drawn) => drawn,
            Err(refusal) => {
                externs::UnlockReleaseBuffer(buffer);
                externs::relation_close(sequence, pg_sys::NoLock as pg_sys::LOCKMODE);
                return Err(refusal);
            }
        };

        let logged = drawn.logged.filter(|_| needs_wal(sequence));
        if logged.is_some() {
            // So that the commit flushes the record, even if it is the only one.
            externs::GetTopTransactionId();
        }
        // The head of the WAL record, `xl_seq_rec` of `commands/sequence.h`.
        let mut record = compat::file_locator(sequence);
        pg_sys::CritSectionCount += 1;
        externs::MarkBufferDirty(buffer);
        if let Some(logged) = logged {
            externs::XLogBeginInsert();
            externs::XLogRegisterBuffer(0, buffer, pg_sys::REGBUF_WILL_INIT as u8);
            store(stored, logged);
            externs::XLogRegisterData((&raw mut record).cast(), size_of_val(&record) as _);
            externs::XLogRegisterData(tuple.cast(), item.lp_len() as _);
            let end = externs::XLogInsert(pg_sys::RmgrIds::RM_SEQ_ID as u8, XLOG_SEQ_LOG);
            (*header).pd_lsn = pg_sys::PageXLogRecPtr { xlogid: (end >> 32) as u32, xrecoff: end as u32 };
        }
        store(stored, drawn.after);
        pg_sys::CritSectionCount -= 1;

        externs::UnlockReleaseBuffer(buffer);
        externs::relation_close(sequence, pg_sys::NoLock as pg_sys::LOCKMODE);
        Ok(drawn.first)
    }
}

/// `XLOG_SEQ_LOG` of `commands/sequence.h`.
const XLOG_SEQ_LOG: u8 = 0;

/// `FormData_pg_sequence_data` of `commands/sequence.h`, the same in 15 to 18.
#[repr(C)]
struct SequenceTuple {
    last_value: i64,
    log_cnt: i64,
    is_called: bool,
}

/// # Safety
/// `place` is a sequence's row in a buffer that is locked exclusively.
unsafe fn store(place: *mut SequenceTuple, SequenceState { last_value, log_cnt, is_called }: SequenceState) {
    // SAFETY: by contract.
    unsafe {
        (*place).last_value = last_value;
        (*place).log_cnt = log_cnt;
        (*place).is_called = is_called;
    }
}

/// `InvalidSubTransactionId` of `c.h`.
const NO_SUBTRANSACTION: pg_sys::SubTransactionId = 0;

/// `RelationNeedsWAL` of `utils/rel.h`.
///
/// # Safety
/// An open relation.
unsafe fn needs_wal(relation: pg_sys::Relation) -> bool {
    // SAFETY: by contract; plain globals and fields.
    unsafe {
        let new_file = compat::first_new_file_in(relation);
        (*(*relation).rd_rel).relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
            && (pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32
                || ((*relation).rd_createSubid == NO_SUBTRANSACTION && new_file == NO_SUBTRANSACTION))
    }
}

/// `FormData_pg_sequence` of `catalog/pg_sequence.h`, the same in 15 to 18.
#[repr(C)]
struct CatalogRow {
    seqrelid: pg_sys::Oid,
    seqtypid: pg_sys::Oid,
    seqstart: i64,
    seqincrement: i64,
    seqmax: i64,
    seqmin: i64,
    seqcache: i64,
    seqcycle: bool,
}

/// The definition in `pg_sequence`.
///
/// # Safety
/// Inside a transaction and a guard.
unsafe fn definition(oid: pg_sys::Oid) -> Option<Definition> {
    // SAFETY: a syscache look-up; the row is copied before it is given back.
    unsafe {
        let tuple = externs::SearchSysCache1(pg_sys::SysCacheIdentifier::SEQRELID as i32, oid.into());
        if tuple.is_null() {
            return None;
        }
        let row = &*pg_sys::GETSTRUCT(tuple).cast::<CatalogRow>();
        let definition =
            Definition { increment: row.seqincrement, least: row.seqmin, most: row.seqmax, cycles: row.seqcycle };
        externs::ReleaseSysCache(tuple);
        Some(definition).filter(|definition| definition.increment != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIGINT: Definition = Definition { increment: 1, least: 1, most: i64::MAX, cycles: false };
    const UP_TO_10: Definition = Definition { most: 10, ..BIGINT };
    const DOWN: Definition = Definition { increment: -3, least: -10, most: -1, cycles: true };

    fn called(last_value: i64, log_cnt: i64) -> SequenceState {
        SequenceState { last_value, log_cnt, is_called: true }
    }

    /// What nextval() of sequence.c does, number by number.
    fn nextval(definition: &Definition, state: SequenceState, must_log: bool) -> Option<Draw> {
        let step = |from: i64| {
            from.checked_add(definition.increment).filter(|to| definition.least <= *to && *to <= definition.most)
        };
        let logs = must_log || !state.is_called || state.log_cnt < 1;
        let first = if !state.is_called {
            state.last_value
        } else {
            let start = if definition.increment > 0 { definition.least } else { definition.most };
            step(state.last_value).or(definition.cycles.then_some(start))?
        };
        let (mut ahead, mut reached) = (0, first);
        while logs && ahead < LOGGED_AHEAD {
            let Some(next) = step(reached) else { break };
            (ahead, reached) = (ahead + 1, next);
        }
        let log_cnt = if logs { ahead } else { state.log_cnt - 1 };
        Some(Draw { first, after: called(first, log_cnt), logged: logs.then(|| called(reached, 0)) })
    }

    #[test]
    fn one_number_is_drawn_as_nextval_does() {
        for definition in [BIGINT, UP_TO_10, DOWN, Definition { cycles: true, ..UP_TO_10 }] {
            for must_log in [false, true, false] {
                let start = if definition.increment > 0 { definition.least } else { definition.most };
                let mut state = SequenceState { last_value: start, log_cnt: 0, is_called: false };
                for _ in 0..100 {
                    let drawn = definition.draw(state, 1, must_log);
                    assert_eq!(drawn, nextval(&definition, state, must_log));
                    let Some(drawn) = drawn else { break };
                    state = drawn.after;
                }
            }
        }
    }

    #[test]
    fn a_record_is_written_when_what_was_logged_is_used_up() {
        let drawn = BIGINT.draw(called(5, 0), 1, false).unwrap();
        assert_eq!(drawn, Draw { first: 6, after: called(6, 32), logged: Some(called(38, 0)) });
        let drawn = BIGINT.draw(called(6, 32), 1, false).unwrap();
        assert_eq!(drawn, Draw { first: 7, after: called(7, 31), logged: None });
        let drawn = BIGINT.draw(called(6, 31), 1, true).unwrap();
        assert_eq!(drawn, Draw { first: 7, after: called(7, 32), logged: Some(called(39, 0)) });
    }

    #[test]
    fn several_numbers_follow_each_other() {
        let drawn = BIGINT.draw(SequenceState { last_value: 1, log_cnt: 0, is_called: false }, 10, false).unwrap();
        assert_eq!(drawn, Draw { first: 1, after: called(10, 32), logged: Some(called(42, 0)) });
        let drawn = BIGINT.draw(called(10, 32), 30, false).unwrap();
        assert_eq!(drawn, Draw { first: 11, after: called(40, 2), logged: None });
        assert!(BIGINT.draw(called(40, 2), 3, false).unwrap().logged.is_some());
    }

    #[test]
    fn it_ends_with_the_last_number() {
        assert_eq!(UP_TO_10.draw(called(9, 1), 1, false).unwrap().first, 10);
        assert_eq!(UP_TO_10.draw(called(10, 0), 1, false), None);
        assert_eq!(UP_TO_10.draw(called(5, 0), 6, false), None);
        assert_eq!(UP_TO_10.draw(called(5, 0), 1, false).unwrap().logged, Some(called(10, 0)));
        assert_eq!(BIGINT.draw(called(i64::MAX, 0), 1, false), None);
        assert_eq!(DOWN.draw(called(-10, 0), 2, false).unwrap().first, -1);
    }
}
