//! Types, as the catalogs describe them.

use super::compat;
use pgrx::pg_sys;
use std::ffi::CStr;

/// What PostgreSQL's JSON functions do with a type that is not a simple one.
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

/// Decides like `json_categorize_type` of json.c: arrays, composites, then a cast to json for types that are not built
/// in.
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

/// The function that converts a type, or the one under a domain, to json, if its json is not the text of the output
/// function. It takes one argument of the type, and returns a json.
pub(super) fn json_function(type_oid: pg_sys::Oid) -> Option<pg_sys::Oid> {
    match json_kind(base_type(type_oid)) {
        JsonKind::Array => Some(pg_sys::Oid::from(pg_sys::F_ARRAY_TO_JSON_ANYARRAY)),
        JsonKind::Composite => Some(pg_sys::Oid::from(pg_sys::F_ROW_TO_JSON_RECORD)),
        JsonKind::Cast(function) => Some(function),
        JsonKind::Other => None,
    }
}

/// What the values of a type contain.
#[derive(Clone, Copy, Default)]
pub struct Contents {
    /// Names of objects, whose text depends on `search_path`.
    pub names: bool,
    /// Composites, to which columns can be added.
    pub composites: bool,
    /// Values that a user's cast writes as json.
    pub casts: bool,
}

/// Looked up in the catalogs, through arrays, ranges, composites and domains.
pub fn contents(oid: pg_sys::Oid) -> Contents {
    let mut contents = Contents::default();
    look_into(oid, &mut contents, &mut Vec::new());
    contents
}

/// `seen` are the composites that have been looked into: each can contain another one in many columns.
fn look_into(oid: pg_sys::Oid, contents: &mut Contents, seen: &mut Vec<pg_sys::Oid>) {
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
        JsonKind::Array => look_into(unsafe { pg_sys::get_element_type(base) }, contents, seen),
        JsonKind::Composite => {
            contents.composites = true;
            if !seen.contains(&base) {
                seen.push(base);
                super::interrupt::check();
                row_types(base).into_iter().for_each(|column| look_into(column, contents, seen));
            }
        }
        JsonKind::Cast(_) => contents.casts = true,
        JsonKind::Other => {
            // SAFETY: syscache look-ups.
            let inner = unsafe { [pg_sys::get_range_subtype(base), pg_sys::get_multirange_range(base)] };
            let inner = inner.into_iter().filter(|inner| *inner != pg_sys::InvalidOid);
            inner.for_each(|inner| look_into(inner, contents, seen));
        }
    }
}

/// The types of a composite type's columns.
fn row_types(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // The type `record` itself has no columns.
    if oid == pg_sys::RECORDOID {
        return Vec::new();
    }
    // SAFETY: a composite type; the copy lives as long as the current memory context.
    unsafe {
        let descriptor = pg_sys::lookup_rowtype_tupdesc_copy(oid, -1);
        let column = |i: usize| {
            let att = compat::attribute(descriptor, i);
            (!att.attisdropped).then_some(att.atttypid)
        };
        (0..(*descriptor).natts as usize).filter_map(column).collect()
    }
}

/// Whether a type was created by a user, and not by initdb, so that its casts can be anybody's code.
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

/// The oid of a type in a schema, if there is one.
pub fn lookup(schema: pg_sys::Oid, name: &CStr) -> Option<pg_sys::Oid> {
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
