//! Relations: open ones with a guard, and what their descriptors say.

use pgrx::pg_sys;
use std::ffi::CStr;
use std::marker::PhantomData;

/// One column of a relation.
#[derive(Clone, Debug)]
pub struct Column {
    /// Position in a row taken apart: attribute number minus one.
    pub index: usize,
    pub name: Vec<u8>,
    pub type_oid: pg_sys::Oid,
    pub by_value: bool,
    pub length: i16,
    pub not_null: bool,
    pub has_default: bool,
    /// `varchar(10)` has one, `text` has not.
    pub has_modifier: bool,
}

/// A relation that somebody else keeps open.
pub struct Borrowed<'a>(pg_sys::Relation, PhantomData<&'a ()>);

impl Borrowed<'_> {
    /// # Safety
    /// `relation` is open, and stays so while the result lives.
    pub(super) unsafe fn new(relation: pg_sys::Relation) -> Self {
        Borrowed(relation, PhantomData)
    }

    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: an open relation.
        unsafe { (*self.0).rd_id }
    }

    pub fn owner(&self) -> pg_sys::Oid {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_rel).relowner }
    }

    /// Whether this is its schema and name.
    pub fn is_named(&self, schema: &[u8], name: &[u8]) -> bool {
        // SAFETY: an open relation's pg_class row; its name is NUL-terminated.
        let (namespace, own) = unsafe {
            let class = &*(*self.0).rd_rel;
            (class.relnamespace, std::ffi::CStr::from_ptr(class.relname.data.as_ptr()).to_bytes())
        };
        own == name && schema_name(namespace) == schema
    }

    pub fn natts(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_att).natts as usize }
    }

    /// Whether its rows are heap tuples.
    pub fn is_heap(&self) -> bool {
        // SAFETY: as above; the routine is a constant of the server.
        unsafe { (*self.0).rd_tableam == pg_sys::GetHeapamTableAmRoutine() }
    }

    /// The number of its file; none of a partitioned table.
    pub fn file(&self) -> pg_sys::Oid {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_rel).relfilenode }
    }

    /// Whether that is one that our own transaction has given it.
    pub fn has_got_its_file_now(&self) -> bool {
        self.got_its_file_in() != 0
    }

    /// Whether a TRUNCATE in that savepoint leaves its file to it, as it was made there or has got it there.
    pub fn is_emptied_where_it_is(&self, savepoint: pg_sys::SubTransactionId) -> bool {
        // SAFETY: as above.
        self.got_its_file_in() == savepoint || unsafe { (*self.0).rd_createSubid } == savepoint
    }

    /// The savepoint that has given it another file, 0 for none.
    fn got_its_file_in(&self) -> pg_sys::SubTransactionId {
        // SAFETY: as above.
        unsafe {
            #[cfg(feature = "pg15")]
            return (*self.0).rd_newRelfilenodeSubid;
            #[cfg(not(feature = "pg15"))]
            return (*self.0).rd_newRelfilelocatorSubid;
        }
    }

    pub(super) fn raw(&self) -> pg_sys::Relation {
        self.0
    }

    pub(super) fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: as above.
        unsafe { (*self.0).rd_att }
    }

    /// The columns that rows of this relation really store: neither dropped nor virtual.
    pub fn columns(&self) -> Vec<Column> {
        (0..self.natts()).filter_map(|i| self.column(i)).collect()
    }

    fn column(&self, i: usize) -> Option<Column> {
        // SAFETY: i is below natts.
        unsafe {
            #[cfg(not(feature = "pg18"))]
            let att = &*(*self.descriptor()).attrs.as_ptr().add(i);
            #[cfg(feature = "pg18")]
            let att = &*pg_sys::TupleDescAttr(self.descriptor(), i as i32);
            (!att.attisdropped && att.attgenerated as u8 != b'v').then(|| Column {
                index: i,
                name: CStr::from_ptr(att.attname.data.as_ptr()).to_bytes().to_vec(),
                type_oid: att.atttypid,
                by_value: att.attbyval,
                length: att.attlen,
                not_null: att.attnotnull,
                has_default: att.atthasdef,
                has_modifier: att.atttypmod != -1,
            })
        }
    }
}

/// A relation opened by us: closed when dropped, its lock kept to the end of the transaction (`invariants` 25).
pub struct Open {
    relation: pg_sys::Relation,
    is_index: bool,
}

impl Open {
    /// Opens a table for writing.
    pub fn table(oid: pg_sys::Oid) -> Self {
        // SAFETY: raises an ERROR if it is gone.
        Open { relation: unsafe { pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32) }, is_index: false }
    }

    /// Opens a table for reading.
    pub fn for_reading(oid: pg_sys::Oid) -> Self {
        // SAFETY: as above.
        Open { relation: unsafe { pg_sys::table_open(oid, pg_sys::AccessShareLock as i32) }, is_index: false }
    }

    /// Opens a table that this transaction has locked.
    pub fn locked(oid: pg_sys::Oid) -> Self {
        // SAFETY: as above.
        Open { relation: unsafe { pg_sys::table_open(oid, pg_sys::NoLock as i32) }, is_index: false }
    }

    pub fn borrow(&self) -> Borrowed<'_> {
        // SAFETY: open as long as self.
        unsafe { Borrowed::new(self.relation) }
    }

    /// Opens an index.
    pub fn index(oid: pg_sys::Oid, mode: LockMode) -> Self {
        // SAFETY: as above.
        Open { relation: unsafe { pg_sys::index_open(oid, mode.number()) }, is_index: true }
    }

    pub(super) fn raw(&self) -> pg_sys::Relation {
        self.relation
    }

    pub(super) fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation.
        unsafe { (*self.relation).rd_att }
    }

    pub fn columns(&self) -> Vec<Column> {
        self.borrow().columns()
    }

    /// Whether a row can be put into this table, or taken from it, without anything else having to happen: a heap with no
    /// rules, triggers, row security or constraints that would have to be checked.
    pub fn is_plain_heap(&self) -> bool {
        // SAFETY: fields of an open relation; trigdesc and constr may be null.
        unsafe {
            let form = &*(*self.relation).rd_rel;
            let constraints = (*self.descriptor()).constr;
            form.relkind as u8 == pg_sys::RELKIND_RELATION
                && form.relam == pg_sys::HEAP_TABLE_AM_OID
                && !form.relispartition
                && !form.relhasrules
                && !form.relrowsecurity
                && (*self.relation).trigdesc.is_null()
                && (constraints.is_null() || ((*constraints).num_check == 0 && !(*constraints).has_generated_stored))
        }
    }

    /// Whether it is a table that stores rows itself.
    pub fn is_table(&self) -> bool {
        // SAFETY: an open relation.
        unsafe { (*(*self.relation).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION }
    }

    /// Its length in blocks, now.
    pub fn blocks(&self) -> u32 {
        // SAFETY: an open relation with storage.
        unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM) }
    }

    /// The oids of its indexes.
    pub fn indexes(&self) -> Vec<pg_sys::Oid> {
        // SAFETY: RelationGetIndexList returns a fresh list of oids.
        unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let oids = (0..pg_sys::list_length(list)).map(|i| pg_sys::list_nth_oid(list, i)).collect();
            pg_sys::list_free(list);
            oids
        }
    }

    /// For an index: what has to be known of it to add entries without the executor, or to read along it.
    pub fn index_shape(&self) -> IndexShape {
        // SAFETY: rd_index and the arrays beside it are set for an open index; indkey has indnatts entries, the others
        // one for each key column.
        unsafe {
            let form = &*(*self.relation).rd_index;
            let keys = core::slice::from_raw_parts(form.indkey.values.as_ptr(), form.indnatts as usize);
            let columns = usize::min(form.indnkeyatts as usize, keys.len());
            let descriptor = self.borrow();
            let in_usual_order = (0..columns).all(|i| {
                // What an index stores (of a name: a cstring) need not have a default operator class. The type cache keeps the
                // answer, and is told when an operator class comes or goes: this is asked at every read of the outbox.
                let of_type = descriptor
                    .column(i)
                    .map(|column| {
                        (*pg_sys::lookup_type_cache(column.type_oid, pg_sys::TYPECACHE_BTREE_OPFAMILY as i32)).btree_opf
                    })
                    .filter(|family| *family != pg_sys::InvalidOid);
                *(*self.relation).rd_indoption.add(i) == 0 && of_type == Some(*(*self.relation).rd_opfamily.add(i))
            });
            IndexShape {
                keys: keys.to_vec(),
                plain: (*(*self.relation).rd_rel).relam == pg_sys::BTREE_AM_OID
                    && columns == keys.len()
                    && in_usual_order
                    && form.indisready
                    && form.indisvalid
                    && !form.indisexclusion,
                unique: form.indisunique && form.indimmediate,
                predicate: predicate(self.relation),
                key_columns: columns,
                btree: (*(*self.relation).rd_rel).relam == pg_sys::BTREE_AM_OID,
                valid: form.indisvalid && !form.indisexclusion,
            }
        }
    }
}

/// What [`Open::index_shape`] says.
pub struct IndexShape {
    /// Attribute numbers of the table; 0 stands for an expression.
    pub keys: Vec<i16>,
    /// A valid btree without other columns than its keys, each ascending in the usual order of its type.
    pub plain: bool,
    /// How many of them it orders; the rest it only holds (INCLUDE).
    pub key_columns: usize,
    pub btree: bool,
    pub valid: bool,
    /// And immediately so.
    pub unique: bool,
    pub predicate: Predicate,
}

/// Which rows an index covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Predicate {
    All,
    /// Those whose enum column, given as attribute number, has another value than this.
    EnumIsNot(i16, pg_sys::Oid),
    Other,
}

/// # Safety
/// An open index.
unsafe fn predicate(index: pg_sys::Relation) -> Predicate {
    // SAFETY: a list of expression trees, each of which starts with its node tag.
    unsafe {
        let list = pg_sys::RelationGetIndexPredicate(index);
        if list.is_null() {
            return Predicate::All;
        }
        let node = pg_sys::list_nth(list, 0).cast::<pg_sys::Node>();
        if pg_sys::list_length(list) != 1 || (*node).type_ != pg_sys::NodeTag::T_OpExpr {
            return Predicate::Other;
        }
        let comparison = &*node.cast::<pg_sys::OpExpr>();
        if comparison.opfuncid != pg_sys::Oid::from(pg_sys::F_ENUM_NE) {
            return Predicate::Other;
        }
        let [left, right] = [0, 1].map(|i| pg_sys::list_nth(comparison.args, i).cast::<pg_sys::Node>());
        if (*left).type_ != pg_sys::NodeTag::T_Var || (*right).type_ != pg_sys::NodeTag::T_Const {
            return Predicate::Other;
        }
        let (column, value) = (&*left.cast::<pg_sys::Var>(), &*right.cast::<pg_sys::Const>());
        if value.constisnull {
            return Predicate::Other;
        }
        Predicate::EnumIsNot(column.varattno, pg_sys::Oid::from(value.constvalue.value() as u32))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the abort closes it
        }
        // SAFETY: opened in `table` or `index`; NoLock keeps the lock to the end of the transaction.
        unsafe {
            if self.is_index {
                pg_sys::index_close(self.relation, pg_sys::NoLock as i32)
            } else {
                pg_sys::table_close(self.relation, pg_sys::NoLock as i32)
            }
        }
    }
}

/// How strongly a relation is locked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Nobody alters it: the lock of SELECT.
    AccessShare,
    /// Nobody alters it, and we write to it: the lock of INSERT.
    RowExclusive,
    /// Nobody writes, and neither do we: the lock of CREATE INDEX.
    Share,
    /// Nobody writes: the lock of CREATE TRIGGER.
    ShareRowExclusive,
    /// Nobody reads either: the lock of DROP TRIGGER. Taken at once, because raising a lock step by step deadlocks with
    /// a transaction that has read and wants to write.
    AccessExclusive,
}

impl LockMode {
    fn number(self) -> pg_sys::LOCKMODE {
        let mode = match self {
            LockMode::AccessShare => pg_sys::AccessShareLock,
            LockMode::RowExclusive => pg_sys::RowExclusiveLock,
            LockMode::Share => pg_sys::ShareLock,
            LockMode::ShareRowExclusive => pg_sys::ShareRowExclusiveLock,
            LockMode::AccessExclusive => pg_sys::AccessExclusiveLock,
        };
        mode as pg_sys::LOCKMODE
    }
}

/// Locks a relation to the end of the transaction. It may be gone when this returns.
pub fn lock(oid: pg_sys::Oid, mode: LockMode) {
    // SAFETY: inside a transaction; any oid may be locked.
    unsafe { pg_sys::LockRelationOid(oid, mode.number()) }
}

/// As [`lock`]; a savepoint that is rolled back does not give the lock back.
pub fn lock_for_good(oid: pg_sys::Oid, mode: LockMode) {
    // SAFETY: as sequence.c does it; after an error the abort puts the resource owner back.
    unsafe {
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
        lock(oid, mode);
        pg_sys::CurrentResourceOwner = owner;
    }
}

/// The oid of a relation in a schema, if there is one.
pub fn lookup(schema: pg_sys::Oid, name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: syscache look-up inside a transaction.
    let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// The name of a schema, in the server encoding.
pub fn schema_name(oid: pg_sys::Oid) -> Vec<u8> {
    // SAFETY: returns a palloc'd string or null.
    unsafe {
        let name = pg_sys::get_namespace_name(oid);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}

/// Registers `changed` to be told the oid of every relation whose description changed, and a zero oid when any may have
/// (also when schemas are renamed or casts change). It must only take note: it can run in the middle of a look-up.
pub fn on_change(changed: fn(pg_sys::Oid)) {
    use std::sync::OnceLock;
    static CALLBACK: OnceLock<fn(pg_sys::Oid)> = OnceLock::new();
    if CALLBACK.set(changed).is_err() {
        return;
    }
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn relation(_arg: pg_sys::Datum, oid: pg_sys::Oid) {
        if let Some(changed) = CALLBACK.get() {
            changed(oid)
        }
    }
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn catalog(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
        if let Some(changed) = CALLBACK.get() {
            changed(pg_sys::InvalidOid)
        }
    }
    // SAFETY: registered once per backend; the functions live as long as the library, which is never unloaded.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation), pg_sys::Datum::from(0));
        for cache in [pg_sys::SysCacheIdentifier::NAMESPACEOID, pg_sys::SysCacheIdentifier::CASTSOURCETARGET] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(catalog), pg_sys::Datum::from(0));
        }
    }
}

/// Takes note of what others have committed, as taking a lock does.
pub fn accept_changes() {
    // SAFETY: inside a transaction; relations that are open stay so.
    unsafe { pg_sys::AcceptInvalidationMessages() }
}

/// What PostgreSQL's JSON functions do with a type that is none of the simple ones.
pub enum JsonKind {
    Array,
    Composite,
    /// A user's cast to json, by its function.
    Cast(pg_sys::Oid),
    Other,
}

/// The type under a domain, or the type itself.
pub fn base_type(oid: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: syscache look-up.
    unsafe { pg_sys::getBaseType(oid) }
}

/// As `json_categorize_type` decides (json.c): arrays, composites, then for types that are not built in a cast to json.
pub fn json_kind(oid: pg_sys::Oid) -> JsonKind {
    // SAFETY: syscache look-ups inside a transaction.
    unsafe {
        if pg_sys::get_element_type(oid) != pg_sys::InvalidOid
            || oid == pg_sys::ANYARRAYOID
            || oid == pg_sys::RECORDARRAYOID
        {
            return JsonKind::Array;
        }
        if pg_sys::type_is_rowtype(oid) {
            return JsonKind::Composite;
        }
        if oid.to_u32() >= pg_sys::FirstNormalObjectId {
            let mut function = pg_sys::InvalidOid;
            let path = pg_sys::find_coercion_pathway(
                pg_sys::JSONOID,
                oid,
                pg_sys::CoercionContext::COERCION_EXPLICIT,
                &mut function,
            );
            if path == pg_sys::CoercionPathType::COERCION_PATH_FUNC {
                return JsonKind::Cast(function);
            }
        }
        JsonKind::Other
    }
}

/// What values of a type are made of.
#[derive(Clone, Copy, Default)]
pub struct Contents {
    /// Names of objects, written as the `search_path` has it.
    pub names: bool,
    /// Composites, to which columns can be added.
    pub composites: bool,
    /// Values that a user's cast writes as json.
    pub casts: bool,
}

/// Looked up in the catalogs, through arrays, ranges, composites and domains.
pub fn contents(oid: pg_sys::Oid) -> Contents {
    let mut contents = Contents::default();
    look_into(oid, &mut contents);
    contents
}

fn look_into(oid: pg_sys::Oid, contents: &mut Contents) {
    const NAMES: [pg_sys::Oid; 9] = [
        pg_sys::REGPROCOID,
        pg_sys::REGPROCEDUREOID,
        pg_sys::REGOPEROID,
        pg_sys::REGOPERATOROID,
        pg_sys::REGCLASSOID,
        pg_sys::REGCOLLATIONOID,
        pg_sys::REGTYPEOID,
        pg_sys::REGCONFIGOID,
        pg_sys::REGDICTIONARYOID,
    ];
    // SAFETY: plain check, a composite can be nested as deep as somebody makes it; an ERROR where that is too deep.
    unsafe { pg_sys::check_stack_depth() };
    let base = base_type(oid);
    contents.names |= NAMES.contains(&base);
    match json_kind(base) {
        // SAFETY: syscache look-up.
        JsonKind::Array => look_into(unsafe { pg_sys::get_element_type(base) }, contents),
        JsonKind::Composite => {
            contents.composites = true;
            row_types(base).into_iter().for_each(|column| look_into(column, contents));
        }
        JsonKind::Cast(_) => contents.casts = true,
        JsonKind::Other => {
            // SAFETY: syscache look-ups.
            let inner = unsafe { [pg_sys::get_range_subtype(base), pg_sys::get_multirange_range(base)] };
            inner.into_iter().filter(|inner| *inner != pg_sys::InvalidOid).for_each(|inner| look_into(inner, contents));
        }
    }
}

/// The types of a composite type's columns.
fn row_types(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // The type `record` itself says nothing.
    if oid == pg_sys::RECORDOID {
        return Vec::new();
    }
    // SAFETY: a composite type; the copy lives as long as the current memory context.
    unsafe {
        let descriptor = pg_sys::lookup_rowtype_tupdesc_copy(oid, -1);
        let column = |i: usize| {
            #[cfg(not(feature = "pg18"))]
            let att = &*(*descriptor).attrs.as_ptr().add(i);
            #[cfg(feature = "pg18")]
            let att = &*pg_sys::TupleDescAttr(descriptor, i as i32);
            (!att.attisdropped).then_some(att.atttypid)
        };
        (0..(*descriptor).natts as usize).filter_map(column).collect()
    }
}

/// Whether a type was made by somebody, and not by initdb: then its casts can be anybody's code.
pub fn is_users_type(oid: pg_sys::Oid) -> bool {
    oid.to_u32() >= pg_sys::FirstNormalObjectId
}

/// The oid of an enum's label.
pub fn enum_value(type_oid: pg_sys::Oid, label: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: syscache look-up by two keys: the type and the label as a name.
    let oid = unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::ENUMTYPOIDNAME as i32,
            pg_sys::Anum_pg_enum_oid as i16,
            type_oid.into(),
            label.as_ptr().into(),
            pg_sys::Datum::from(0),
            pg_sys::Datum::from(0),
        )
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// The oid of a function without arguments in a schema, if there is one.
pub fn trigger_function(schema: pg_sys::Oid, name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: syscache look-up by name, an empty vector of argument types, and schema.
    let oid = unsafe {
        let no_arguments = pg_sys::buildoidvector(core::ptr::null(), 0);
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as i16,
            name.as_ptr().into(),
            no_arguments.into(),
            schema.into(),
            pg_sys::Datum::from(0),
        )
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// The schema a function is in.
pub fn schema_of_function(oid: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: syscache look-up.
    unsafe { pg_sys::get_func_namespace(oid) }
}

/// The oid of a type in a schema, if there is one.
pub fn type_lookup(schema: pg_sys::Oid, name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: syscache look-up by name and schema.
    let oid = unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
            pg_sys::Anum_pg_type_oid as i16,
            name.as_ptr().into(),
            schema.into(),
            pg_sys::Datum::from(0),
            pg_sys::Datum::from(0),
        )
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}
