//! `sync_outbox_version()`: which library the server has loaded, and for which version the objects were made.

use crate::pg::extension::{self, Version};
use pgrx::iter::TableIterator;
use pgrx::name;
use serde_json::{Value, json};

/// The version of the library in this process, that of the extension's objects in this database, and whether they are
/// the same. They differ between the installation of a new library and `ALTER EXTENSION sync_outbox UPDATE`, and in
/// sessions that loaded the old library.
#[pgrx::pg_extern(sql = false)]
fn sync_outbox_version()
-> TableIterator<'static, (name!(library, String), name!(extension, String), name!(matches, bool))> {
    let Versions { library, extension } = Versions::read();
    TableIterator::once((library.to_string(), extension.to_string(), library == extension))
}

/// The same as a member of the overview's settings.
pub fn report() -> Value {
    let Versions { library, extension } = Versions::read();
    json!({ "library": library.to_string(), "extension": extension.to_string(), "matches": library == extension })
}

struct Versions {
    library: Version,
    extension: Version,
}

impl Versions {
    /// Who calls has called a function of the extension, so it is there; but its version may be one that this library
    /// does not know.
    fn read() -> Self {
        let extension = extension::installed().map_or(Version::default(), |extension| extension.version);
        Versions { library: Version::library(), extension }
    }
}
