//! What has to be known about an index to add entries to it, or to read them, without the executor.

use super::relation::Open;
use pgrx::pg_sys;

impl Open {
    /// For an index: its table.
    pub(super) fn indexed_table(&self) -> pg_sys::Oid {
        // SAFETY: rd_index is set for an open index.
        unsafe { (*(*self.raw()).rd_index).indrelid }
    }

    /// For an index: its shape.
    pub fn index_shape(&self) -> IndexShape {
        // SAFETY: rd_index and the arrays beside it are set for an open index; indkey has indnatts entries, the others
        // one for each key column.
        unsafe {
            let form = &*(*self.raw()).rd_index;
            let keys = core::slice::from_raw_parts(form.indkey.values.as_ptr(), form.indnatts as usize);
            let columns = usize::min(form.indnkeyatts as usize, keys.len());
            let descriptor = self.borrow();
            let in_usual_order = (0..columns).all(|i| {
                // The type that an index stores (cstring for a name) need not have a default operator class. The type
                // cache is used, which is invalidated when operator classes change, because this runs at every read of
                // the outbox.
                let of_type = descriptor
                    .column(i)
                    .map(|column| {
                        (*pg_sys::lookup_type_cache(column.type_oid, pg_sys::TYPECACHE_BTREE_OPFAMILY as i32)).btree_opf
                    })
                    .filter(|family| *family != pg_sys::InvalidOid);
                *(*self.raw()).rd_indoption.add(i) == 0 && of_type == Some(*(*self.raw()).rd_opfamily.add(i))
            });
            IndexShape {
                keys: keys.to_vec(),
                plain: (*(*self.raw()).rd_rel).relam == pg_sys::BTREE_AM_OID
                    && columns == keys.len()
                    && in_usual_order
                    && form.indisready
                    && form.indisvalid
                    && !form.indisexclusion,
                unique: form.indisunique && form.indimmediate,
                predicate: predicate(self.raw()),
                key_columns: columns,
                btree: (*(*self.raw()).rd_rel).relam == pg_sys::BTREE_AM_OID,
                valid: form.indisvalid && !form.indisexclusion,
            }
        }
    }
}

/// The result of [`Open::index_shape`].
pub struct IndexShape {
    /// Attribute numbers of the table; 0 stands for an expression.
    pub keys: Vec<i16>,
    /// Whether it is a valid btree whose only columns are its keys, each ascending in the default order of its type.
    pub plain: bool,
    /// How many of them are ordered; the others are only included (INCLUDE).
    pub key_columns: usize,
    pub btree: bool,
    pub valid: bool,
    /// Whether it is unique, and checked immediately.
    pub unique: bool,
    pub predicate: Predicate,
}

/// The rows that an index covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Predicate {
    All,
    /// Those whose enum column, given by attribute number, has a value other than this one.
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
