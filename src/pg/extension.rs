//! The installed extension, read from `pg_extension` without SPI, so that a database without it costs next to nothing.

use pgrx::{FromDatum, pg_sys};

/// Its owner, the schema of its objects, and their version of `sql/`, which may differ from the library's version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extension {
    pub oid: pg_sys::Oid,
    pub owner: pg_sys::Oid,
    pub schema: pg_sys::Oid,
    pub version: Version,
}

/// `0.1.0`, as numbers, so that 0.10.0 is later than 0.9.0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Version(pub [u32; 3]);

impl Version {
    /// The version of this library.
    pub fn library() -> Self {
        Version::parse(env!("CARGO_PKG_VERSION"))
    }

    /// A part that is not a number counts as 0.
    fn parse(text: &str) -> Self {
        let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
        Version(std::array::from_fn(|_| numbers.next().unwrap_or(0)))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// `None` if the extension is not installed in this database.
pub fn installed() -> Option<Extension> {
    // SAFETY: an ordinary catalog scan inside a transaction with an explicit key; closed on every path. The version is
    // read while its tuple is held.
    unsafe {
        let oid = pg_sys::get_extension_oid(c"sync_outbox".as_ptr(), true);
        if oid == pg_sys::InvalidOid {
            return None;
        }
        let relation = pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as i32);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_extension_oid as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::Oid::from(pg_sys::F_OIDEQ),
            oid.into(),
        );
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::Oid::from(pg_sys::ExtensionOidIndexId),
            true,
            core::ptr::null_mut(),
            1,
            &mut key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let found = if tuple.is_null() {
            None
        } else {
            let form = pg_sys::GETSTRUCT(tuple) as *const pg_sys::FormData_pg_extension;
            let mut null = false;
            let column = pg_sys::Anum_pg_extension_extversion as i32;
            let version = pg_sys::heap_getattr(tuple, column, (*relation).rd_att, &mut null);
            let version = Version::parse(&String::from_datum(version, null).unwrap_or_default());
            Some(Extension { oid, owner: (*form).extowner, schema: (*form).extnamespace, version })
        };
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(Version::parse("0.9.0") < Version::parse("0.10.0"));
        assert_eq!(Version::parse("0.1.0"), Version([0, 1, 0]));
        assert_eq!(Version::parse("1.2"), Version([1, 2, 0]));
        assert_eq!(Version::parse("unreleased").to_string(), "0.0.0");
    }
}
