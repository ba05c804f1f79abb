//! What capture knows of an attached table: which columns are written and how, what the key is, where changes go.
//!
//! It is made once per trigger and backend, and dropped when PostgreSQL invalidates something that it was made from.

use super::encode::{Encoder, write_string};
use super::order::Order;
use crate::error::{Error, SqlState, or_raise};
use crate::pg::buffer::{Buffer, VarlenaBuffer};
use crate::pg::datum;
use crate::pg::guc::Nest;
use crate::pg::heap::Columns;
use crate::pg::invalidation;
use crate::pg::key_index::KeyIndex;
use crate::pg::relation::{Borrowed, Column};
use crate::pg::role::ActAs;
use crate::pg::text::{self, KeptText, Varlena};
use crate::pg::trigger::Fired;
use crate::store::options::Options;
use crate::store::{attached, quote_ident, quote_literal};
use once_cell::unsync::OnceCell;
use pgrx::pg_sys::Oid;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use wire::{Operation, Priority};

/// How one column is captured.
struct CapturedColumn {
    index: usize,
    /// `"name":`, escaped once.
    label: Vec<u8>,
    encoder: Encoder,
}

pub struct Plan {
    columns: Vec<CapturedColumn>,
    /// Positions in `columns`, in the order of the key's index.
    key: Vec<usize>,
    branch: Option<(usize, Encoder)>,
    follows_settings: bool,
    /// Encoding a row can run casts of users.
    pub runs_users_code: bool,
    pub schema_name: KeptText,
    pub table_name: KeptText,
    pub target_id: i16,
    /// The table has a name that another one may have had, whose changes may wait with another target or priority.
    pub is_renamed: bool,
    /// When that was recorded for the sender, as [`crate::pg::executor::undone`] counts, and from which id on.
    pub renaming_recorded: Cell<(u64, i64)>,
    pub priority: Priority,
    pub include_old: bool,
    pub require_reason: bool,
    pub captures_insert: bool,
    pub captures_update: bool,
    pub captures_delete: bool,
    pub captures_truncate: bool,
    /// Whether the rows that a trigger gets show which commands have made and ended them.
    pub knows_versions: bool,
    pub order: Rc<Order>,
    key_index: OnceCell<KeyIndex>,
    /// The table that was attached, and the table or partition that is written to.
    made_from: [Oid; 2],
    valid: Cell<bool>,
}

thread_local! {
    /// By the trigger's oid, which is different for every partition.
    static PLANS: RefCell<HashMap<Oid, Rc<Plan>>> = RefCell::new(HashMap::new());
    /// The plan that was used last: most rows are of the same table as the one before.
    static LAST: RefCell<Option<(Oid, Rc<Plan>)>> = const { RefCell::new(None) };
    static ALL_STALE: Cell<bool> = const { Cell::new(false) };
    /// While a plan is being made, the relations that have changed since that began; otherwise `None`.
    static CHANGED_WHILE_MAKING: RefCell<Option<Vec<Oid>>> = const { RefCell::new(None) };
}

/// Takes note that a relation has changed; called from an invalidation callback, which may run while a plan is made.
pub fn forget(oid: Oid) {
    CHANGED_WHILE_MAKING.with(|changed| match changed.try_borrow_mut().as_deref_mut() {
        Ok(Some(changed)) => changed.push(oid),
        Ok(None) => {}
        Err(_) => ALL_STALE.set(true),
    });
    PLANS.with(|plans| match plans.try_borrow() {
        Ok(plans) if oid != Oid::INVALID => {
            plans.values().filter(|p| p.made_from.contains(&oid)).for_each(|p| p.valid.set(false))
        }
        _ => ALL_STALE.set(true),
    });
}

/// The plan of the trigger that is being fired.
pub fn of(fired: &Fired<'_>) -> Rc<Plan> {
    let trigger = fired.oid();
    let last = LAST.with_borrow(|last| last.as_ref().filter(|(of, _)| *of == trigger).map(|(_, plan)| plan.clone()));
    let known = last.or_else(|| PLANS.with_borrow(|plans| plans.get(&trigger).cloned()));
    if known.as_ref().is_some_and(|plan| plan.is_of_partition()) {
        // A session that writes to a partition directly has no lock on the root, whose name may have changed.
        invalidation::accept_changes();
    }
    let all_stale = ALL_STALE.take();
    if all_stale {
        PLANS.with_borrow_mut(HashMap::clear);
        LAST.take();
    }
    if let Some(plan) = known.filter(|plan| plan.valid.get() && !all_stale) {
        LAST.with_borrow_mut(|last| match last {
            Some((of, _)) if *of == trigger => {}
            _ => *last = Some((trigger, plan.clone())),
        });
        return plan;
    }
    let plan = Rc::new(make(fired));
    PLANS.with_borrow_mut(|plans| plans.insert(trigger, plan.clone()));
    LAST.set(Some((trigger, plan.clone())));
    plan
}

/// Makes a plan. An invalidation that arrives meanwhile finds no plan to mark, so a plan that was made from something
/// that has changed is used for this row, whose table is locked, and is not kept for the next.
fn make(fired: &Fired<'_>) -> Plan {
    /// Ends the listening, also after an error.
    struct Listening;
    impl Drop for Listening {
        fn drop(&mut self) {
            CHANGED_WHILE_MAKING.take();
        }
    }
    CHANGED_WHILE_MAKING.set(Some(Vec::new()));
    let _listening = Listening;
    let plan = Plan::make(fired);
    let changed = CHANGED_WHILE_MAKING.take().unwrap_or_default();
    plan.valid.set(!changed.iter().any(|oid| *oid == Oid::INVALID || plan.made_from.contains(oid)));
    plan
}

impl Plan {
    fn make(fired: &Fired<'_>) -> Self {
        let _owner = ActAs::owner();
        let options = Self::options(fired);
        let written = fired.relation();
        let root = attached::root_of(fired.oid()).unwrap_or_else(|| written.oid());
        Self::new(root, &written, &options)
    }

    /// The options of attach, from the trigger's argument.
    fn options(fired: &Fired<'_>) -> Options {
        fired.argument().and_then(|json| serde_json::from_str(&text::to_utf8(json)).ok()).unwrap_or_else(|| {
            Error::new(
                SqlState::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "the capture trigger was not made by sync_outbox_attach()",
            )
            .hint("Drop the trigger and call sync_outbox_attach() on the table.")
            .raise()
        })
    }

    /// The plan for writes to `written`, which is the attached table `root` or a partition of it. Runs as the
    /// extension's owner.
    pub fn new(root: Oid, written: &Borrowed<'_>, options: &Options) -> Self {
        let name = attached::name(root);
        let stored = written.columns();
        let find = |wanted: &str, argument: &str| {
            let found = stored.iter().find(|c| text::to_utf8(&c.name) == wanted);
            found.unwrap_or_else(|| missing(wanted, argument, &name).raise())
        };
        options.named_columns().for_each(|(column, argument)| {
            find(column, argument);
        });
        require_the_same_columns(root, options, &name);
        let key_names = attached::key_of(root, options.key_columns.as_deref())
            .unwrap_or_else(|error| error.hint(again(&name, "with a key that the table has")).raise());

        require_key_not_excluded(options, &key_names, &name);
        let columns = captured_columns(&stored, options, &key_names);
        let key = key_names
            .iter()
            .map(|name| {
                let index = find(name, "key_columns").index;
                columns.iter().position(|c| c.index == index).unwrap_or_default()
            })
            .collect();
        let captures = |event: Operation| options.operations.iter().any(|operation| operation == event.name());
        let branch = options
            .branch_column
            .as_deref()
            .map(|name| find(name, "branch_column"))
            .map(|c| (c.index, Encoder::of(c.type_oid)));
        Plan {
            follows_settings: columns.iter().any(|c| c.encoder.follows_settings())
                || branch.as_ref().is_some_and(|(_, e)| e.follows_settings()),
            runs_users_code: columns.iter().any(|c| c.encoder.runs_users_code())
                || branch.as_ref().is_some_and(|(_, e)| e.runs_users_code()),
            columns,
            key,
            branch,
            schema_name: KeptText::new(&name.0),
            table_name: KeptText::new(&name.1),
            is_renamed: options
                .named
                .as_ref()
                .is_some_and(|[schema, table]| *schema != text::to_utf8(&name.0) || *table != text::to_utf8(&name.1)),
            renaming_recorded: Cell::new((0, i64::MAX)),
            target_id: crate::store::target::id_for_capture(&options.target),
            priority: options.priority,
            include_old: options.include_old,
            require_reason: options.require_reason,
            captures_insert: captures(Operation::Insert),
            captures_update: captures(Operation::Update),
            captures_delete: captures(Operation::Delete),
            captures_truncate: captures(Operation::Truncate),
            knows_versions: written.is_heap(),
            order: Order::of(root),
            key_index: OnceCell::new(),
            made_from: [root, written.oid()],
            valid: Cell::new(true),
        }
    }

    /// The plan of a partition of the table whose trigger is being fired, which is not what is being written to.
    pub fn of_partition(fired: &Fired<'_>, partition: &Borrowed<'_>) -> Self {
        let _owner = ActAs::owner();
        Self::new(fired.relation().oid(), partition, &Self::options(fired))
    }

    /// The table that was attached.
    pub fn root(&self) -> Oid {
        self.made_from[0]
    }

    fn is_of_partition(&self) -> bool {
        self.made_from[0] != self.made_from[1]
    }

    /// Default output settings for as long as the result lives, if a column needs them and the session has others.
    pub fn neutral_settings(&self) -> Option<Nest> {
        (self.follows_settings && !datum::output_settings_are_default()).then(Nest::neutral_output)
    }

    /// The key as an object.
    pub fn write_key(&self, row: &Columns, out: &mut Buffer) {
        write_object(self.key.iter().map(|i| &self.columns[*i]), row, out);
    }

    /// Every captured column.
    pub fn write_all(&self, row: &Columns, out: &mut Buffer) {
        write_object(self.columns.iter(), row, out);
    }

    /// The captured columns that `changed` marks.
    pub fn write_changed(&self, row: &Columns, changed: &[bool], out: &mut Buffer) {
        write_object(self.columns.iter().zip(changed).filter(|(_, c)| **c).map(|(column, _)| column), row, out);
    }

    /// Marks the captured columns whose bytes differ; `false` if none does.
    pub fn mark_changed(&self, old: &Columns, new: &Columns, changed: &mut Vec<bool>) -> bool {
        changed.clear();
        changed.extend(self.columns.iter().map(|c| match (old.get(c.index), new.get(c.index)) {
            (Some(a), Some(b)) => !a.same_image(b),
            (None, None) => false,
            _ => true,
        }));
        changed.contains(&true)
    }

    /// Whether a column of the key is among the `changed` ones.
    pub fn changes_key(&self, changed: &[bool]) -> bool {
        self.key.iter().any(|i| changed[*i])
    }

    /// The index of the table or partition that is written to, in which its rows are found by their key.
    pub fn key_index(&self) -> &KeyIndex {
        or_raise(self.key_index.get_or_try_init(|| {
            let columns: Vec<usize> = self.key.iter().map(|i| self.columns[*i].index).collect();
            KeyIndex::over(self.made_from[1], &columns).ok_or_else(|| {
                Error::new(
                    SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("\"{}\" has no usable index on its key", text::to_utf8(self.table_name.bytes())),
                )
                .hint("It needs a valid, immediate unique index on the key, as when it was attached.")
            })
        }))
    }

    /// The branch of a row, as plain text.
    pub fn branch<'b>(&self, row: &Columns, text: &'b mut VarlenaBuffer) -> Option<Varlena<'b>> {
        let (index, encoder) = self.branch.as_ref()?;
        encoder.write_text(row.get(*index)?, text.clear());
        Some(text.datum())
    }
}

/// The columns that are captured: those of the key, and those that the options do not leave out.
fn captured_columns(stored: &[Column], options: &Options, key_names: &[String]) -> Vec<CapturedColumn> {
    let is_key = |column: &str| key_names.iter().any(|k| k == column);
    let listed = |list: &Option<Vec<String>>, column: &str| list.as_ref().map(|l| l.iter().any(|name| name == column));
    let is_captured = |c: &&Column| {
        let name = text::to_utf8(&c.name);
        is_key(&name)
            || listed(&options.columns, &name).unwrap_or(true) && !listed(&options.exclude, &name).unwrap_or(false)
    };
    let captured = stored.iter().filter(is_captured);
    captured
        .map(|c| CapturedColumn { index: c.index, label: label(&c.name), encoder: Encoder::of(c.type_oid) })
        .collect()
}

fn write_object<'a>(columns: impl Iterator<Item = &'a CapturedColumn>, row: &Columns, out: &mut Buffer) {
    out.push(b'{');
    for (i, column) in columns.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&column.label);
        match row.get(column.index) {
            Some(value) => column.encoder.write(value, out),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
}

fn label(name: &[u8]) -> Vec<u8> {
    let mut label = Buffer::default();
    write_string(name, &mut label);
    label.push(b':');
    label.to_vec()
}

/// Refuses the write if an excluded column has become part of the key.
fn require_key_not_excluded(options: &Options, key_names: &[String], name: &(Vec<u8>, Vec<u8>)) {
    if let Some(column) = options.exclude.iter().flatten().find(|column| key_names.contains(column)) {
        Error::new(
            SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("column \"{column}\" of \"{}\" is excluded, and part of the key now", text::to_utf8(&name.1)),
        )
        .detail("Without its key a change cannot be applied anywhere.")
        .hint(again(name, "and leave the column out of exclude, or give the table another key"))
        .raise()
    }
}

/// Refuses the write if a column has the name of one that the options name, but is a different one. Then an excluded
/// column may have been renamed, and would be captured under its new name, or a column that must not be captured may
/// have taken the name of one that may.
fn require_the_same_columns(root: Oid, options: &Options, name: &(Vec<u8>, Vec<u8>)) {
    let same_table = options.attnums_of == Some(root.to_u32());
    let lists = [
        (&options.exclude, &options.exclude_attnums, &options.exclude_places, "exclude"),
        (&options.columns, &options.columns_attnums, &options.columns_places, "capture"),
    ];
    for (columns, numbers, places, what_for) in lists {
        let Some(columns) = columns.as_deref().filter(|_| !numbers.is_empty()) else { continue };
        let now = attached::attribute_numbers(root, columns).into_iter().map(|(number, _)| number);
        let all = columns.iter().zip(now);
        let replaced = match same_table {
            true => all.zip(numbers).find(|((_, now), then)| now != *then).map(|(of, _)| of),
            // Columns in front may have been dropped before the dump, so that every number is different. Then a column
            // that was made later cannot be told from the one that was meant.
            false => all.zip(places).find(|((_, now), place)| now != *place).map(|(of, _)| of),
        };
        if let Some((column, _)) = replaced {
            Error::new(
                SqlState::ERRCODE_UNDEFINED_COLUMN,
                format!(
                    "column \"{column}\" of \"{}\" is not the one that sync_outbox_attach() was told to {what_for}",
                    text::to_utf8(&name.1)
                ),
            )
            .detail(if same_table {
                "The one that was meant has been renamed or dropped."
            } else {
                "Columns of the table have been renamed or dropped, before or after it was restored."
            })
            .hint(again(
                name,
                if what_for == "exclude" {
                    "and exclude what must not be captured"
                } else {
                    "and name what is to be captured"
                },
            ))
            .raise()
        }
    }
}

/// The error if a column that the options name does not exist: 42703. Capturing without it could capture more than is
/// wanted, so writes fail until somebody attaches the table again.
pub fn missing(column: &str, argument: &str, name: &(Vec<u8>, Vec<u8>)) -> Error {
    Error::new(
        SqlState::ERRCODE_UNDEFINED_COLUMN,
        format!("column \"{column}\" of \"{}\", which is attached with {argument}, is gone", text::to_utf8(&name.1)),
    )
    .detail("It has been renamed or dropped.")
    .hint(again(name, "with the columns that the table has now"))
}

/// The hint that names the call to be made again.
fn again(name: &(Vec<u8>, Vec<u8>), how: &str) -> String {
    let [schema, table] = [&name.0, &name.1].map(|name| quote_ident(&text::to_utf8(name)));
    format!("Call sync_outbox_attach({}, ..) again {how}.", quote_literal(&format!("{schema}.{table}")))
}
