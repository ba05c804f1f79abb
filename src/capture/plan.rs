//! What capture knows of an attached table: which columns are written and how, what the key is, where changes go.
//!
//! Made once per trigger and backend, and thrown away when PostgreSQL says that something it was made from has changed.

use super::encode::{Encoder, write_string};
use super::options::{Options, Priority};
use super::order::Order;
use crate::error::{Error, SqlState};
use crate::pg::datum;
use crate::pg::guc::Nest;
use crate::pg::heap::Columns;
use crate::pg::key_index::KeyIndex;
use crate::pg::relation::{self, Borrowed};
use crate::pg::role::ActAs;
use crate::pg::text::{self, Kept};
use crate::pg::trigger::{Event, Fired};
use crate::store::attached;
use pgrx::pg_sys::Oid;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// How one column is captured.
struct Captured {
    index: usize,
    /// `"name":`, escaped once.
    label: Vec<u8>,
    encoder: Encoder,
    by_value: bool,
    length: i16,
}

pub struct Plan {
    columns: Vec<Captured>,
    /// Positions in `columns`, in the order of the key's index.
    key: Vec<usize>,
    branch: Option<(usize, Encoder)>,
    follows_settings: bool,
    pub schema_name: Kept,
    pub table_name: Kept,
    pub target_id: i16,
    pub priority: Priority,
    pub include_old: bool,
    pub require_reason: bool,
    pub captures_insert: bool,
    pub captures_update: bool,
    pub captures_delete: bool,
    /// Whether the rows that a trigger is handed say which commands have made and ended them.
    pub knows_versions: bool,
    pub order: Rc<Order>,
    key_index: OnceCell<KeyIndex>,
    /// The table that was attached, and the partition that is written to, if it is another.
    made_from: [Oid; 2],
    valid: Cell<bool>,
}

thread_local! {
    /// By the trigger's oid, which is another one for every partition.
    static PLANS: RefCell<HashMap<Oid, Rc<Plan>>> = RefCell::new(HashMap::new());
    /// The plan that was used last: most rows are of the same table as the one before.
    static LAST: RefCell<Option<(Oid, Rc<Plan>)>> = const { RefCell::new(None) };
    static ALL_STALE: Cell<bool> = const { Cell::new(false) };
}

pub fn init() {
    relation::on_change(|oid| {
        super::append::forget(oid);
        // May run inside a look-up of ours: only take note.
        PLANS.with(|plans| match plans.try_borrow() {
            Ok(plans) if oid != Oid::INVALID => {
                plans.values().filter(|p| p.made_from.contains(&oid)).for_each(|p| p.valid.set(false))
            }
            _ => ALL_STALE.set(true),
        });
    });
}

/// The plan of the trigger that is being fired.
pub fn of(fired: &Fired<'_>) -> Rc<Plan> {
    if ALL_STALE.take() {
        PLANS.with_borrow_mut(HashMap::clear);
        LAST.take();
    }
    let trigger = fired.oid();
    let last = LAST.with_borrow(|last| last.as_ref().filter(|(of, _)| *of == trigger).map(|(_, plan)| plan.clone()));
    let known = last.or_else(|| PLANS.with_borrow(|plans| plans.get(&trigger).cloned()));
    if let Some(plan) = known.filter(|plan| plan.valid.get()) {
        LAST.with_borrow_mut(|last| match last {
            Some((of, _)) if *of == trigger => {}
            _ => *last = Some((trigger, plan.clone())),
        });
        return plan;
    }
    let plan = Rc::new(Plan::make(fired));
    PLANS.with_borrow_mut(|plans| plans.insert(trigger, plan.clone()));
    LAST.set(Some((trigger, plan.clone())));
    plan
}

impl Plan {
    fn make(fired: &Fired<'_>) -> Self {
        let _owner = ActAs::owner();
        let Some(options) =
            fired.argument().and_then(|json| serde_json::from_str::<Options>(&text::to_utf8(json)).ok())
        else {
            Error::new(
                SqlState::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "the capture trigger was not made by sync_outbox_attach()",
            )
            .hint("Drop the trigger and call sync_outbox_attach() on the table.")
            .raise()
        };
        let written = fired.relation();
        let root = attached::root_of(fired.oid()).unwrap_or_else(|| written.oid());
        Self::new(root, &written, &options)
    }

    /// The plan of what is written to `written`, which is the attached table `root` or a partition of it. Runs as the
    /// extension's owner.
    pub fn new(root: Oid, written: &Borrowed<'_>, options: &Options) -> Self {
        let name = attached::name(root);
        let key_names = attached::key_of(root, options.key_columns.as_deref()).unwrap_or_else(|error| error.raise());
        let stored = written.columns();
        let find = |wanted: &str| {
            stored.iter().find(|c| text::to_utf8(&c.name) == wanted).unwrap_or_else(|| missing(wanted, &name.1))
        };

        let is_key = |column: &str| key_names.iter().any(|k| k == column);
        let listed =
            |list: &Option<Vec<String>>, column: &str| list.as_ref().map(|l| l.iter().any(|name| name == column));
        options.columns.iter().flatten().for_each(|c| {
            find(c);
        });
        let columns: Vec<Captured> = stored
            .iter()
            .filter(|c| {
                let name = text::to_utf8(&c.name);
                is_key(&name)
                    || listed(&options.columns, &name).unwrap_or(true)
                        && !listed(&options.exclude, &name).unwrap_or(false)
            })
            .map(|c| Captured {
                index: c.index,
                label: label(&c.name),
                encoder: Encoder::of(c.type_oid),
                by_value: c.by_value,
                length: c.length,
            })
            .collect();
        let key = key_names
            .iter()
            .map(|name| {
                let index = find(name).index;
                columns.iter().position(|c| c.index == index).unwrap_or_default()
            })
            .collect();
        let captures = |event: Event| options.operations.iter().any(|operation| operation == event.name());
        let branch = options.branch_column.as_deref().map(find).map(|c| (c.index, Encoder::of(c.type_oid)));
        Plan {
            follows_settings: columns.iter().any(|c| c.encoder.follows_settings())
                || branch.as_ref().is_some_and(|(_, e)| e.follows_settings()),
            columns,
            key,
            branch,
            schema_name: Kept::new(&name.0),
            table_name: Kept::new(&name.1),
            target_id: crate::store::target::id_for_capture(&options.target),
            priority: options.priority,
            include_old: options.include_old,
            require_reason: options.require_reason,
            captures_insert: captures(Event::Insert),
            captures_update: captures(Event::Update),
            captures_delete: captures(Event::Delete),
            knows_versions: written.is_heap(),
            order: Order::of(root),
            key_index: OnceCell::new(),
            made_from: [root, written.oid()],
            valid: Cell::new(true),
        }
    }

    /// Default output settings for as long as the result lives, if a column needs them and the session has others.
    pub fn neutral_settings(&self) -> Option<Nest> {
        (self.follows_settings && !datum::output_settings_are_default()).then(Nest::neutral_output)
    }

    /// The key as an object.
    pub fn write_key(&self, row: &Columns, out: &mut Vec<u8>) {
        write_object(self.key.iter().map(|i| &self.columns[*i]), row, out);
    }

    /// Every captured column.
    pub fn write_all(&self, row: &Columns, out: &mut Vec<u8>) {
        write_object(self.columns.iter(), row, out);
    }

    /// The captured columns that `changed` marks.
    pub fn write_changed(&self, row: &Columns, changed: &[bool], out: &mut Vec<u8>) {
        write_object(self.columns.iter().zip(changed).filter(|(_, c)| **c).map(|(column, _)| column), row, out);
    }

    /// Marks the captured columns whose bytes differ; `false` if none does.
    pub fn mark_changed(&self, old: &Columns, new: &Columns, changed: &mut Vec<bool>) -> bool {
        changed.clear();
        changed.extend(self.columns.iter().map(|c| match (old.get(c.index), new.get(c.index)) {
            (Some(a), Some(b)) => !a.same_image(b, c.by_value, c.length),
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
        self.key_index.get_or_init(|| {
            let columns: Vec<usize> = self.key.iter().map(|i| self.columns[*i].index).collect();
            KeyIndex::over(self.made_from[1], &columns).unwrap_or_else(|| {
                Error::new(
                    SqlState::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("\"{}\" has no usable index on its key", String::from_utf8_lossy(self.table_name.bytes())),
                )
                .hint("It needs a valid, immediate unique index on the key, as when it was attached.")
                .raise()
            })
        })
    }

    /// The branch of a row, as plain text.
    pub fn branch(&self, row: &Columns) -> Option<Vec<u8>> {
        let (index, encoder) = self.branch.as_ref()?;
        let mut json = Vec::new();
        encoder.write(row.get(*index)?, &mut json);
        Some(match json.first() {
            // The one place where a value is needed as text: take the quotes off again.
            Some(b'"') => unquote(&json),
            _ => json,
        })
    }
}

/// The text of a JSON string made by [`write_string`], which escapes nothing but ASCII.
fn unquote(json: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(json.len());
    let mut bytes = json[1..json.len() - 1].iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, byte == b'\\') {
            (_, false) => text.push(byte),
            _ => match bytes.next() {
                Some(b'n') => text.push(b'\n'),
                Some(b'r') => text.push(b'\r'),
                Some(b't') => text.push(b'\t'),
                Some(b'b') => text.push(8),
                Some(b'f') => text.push(12),
                Some(b'u') => {
                    let digits: Vec<u8> = bytes.by_ref().take(4).collect();
                    let code = std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
                    text.push(code.unwrap_or(b'?'));
                }
                Some(other) => text.push(other),
                None => {}
            },
        }
    }
    text
}

fn write_object<'a>(columns: impl Iterator<Item = &'a Captured>, row: &Columns, out: &mut Vec<u8>) {
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
    let mut label = Vec::with_capacity(name.len() + 3);
    write_string(name, &mut label);
    label.push(b':');
    label
}

fn missing(column: &str, table: &[u8]) -> ! {
    Error::new(
        SqlState::ERRCODE_UNDEFINED_COLUMN,
        format!(
            "column \"{column}\" of \"{}\" is named in sync_outbox_attach() but is gone",
            String::from_utf8_lossy(table)
        ),
    )
    .hint("Call sync_outbox_attach() again with the columns that the table has now.")
    .raise()
}
