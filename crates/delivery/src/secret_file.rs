//! Files that hold a secret: who may have written or read them.
//!
//! A file is opened first and checked afterwards, so that what was checked is what is read. No error shows any of its
//! content.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Group may read (Kubernetes and base backups of group-access clusters need it), others may nothing.
const FORBIDDEN_MODE: u32 = 0o037;

/// What is wrong with a file that holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("does not exist")]
    Missing,
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("is not a regular file")]
    NotRegular,
    #[error("belongs to neither the server's user nor root")]
    Owner,
    #[error("can be read or written by others (its mode is {0:04o})")]
    Mode(u32),
    #[error("is longer than {0} bytes")]
    TooLong(u64),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::NotFound { FileError::Missing } else { FileError::Unreadable(error) }
    }
}

/// Opens a file that nobody but root, `server_uid` and the file's group can read. `flags` are further ones of open(2).
pub fn open(path: &Path, server_uid: u32, flags: i32) -> Result<File, FileError> {
    // O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular);
    }
    if ![0, server_uid].contains(&metadata.uid()) {
        return Err(FileError::Owner);
    }
    if metadata.mode() & FORBIDDEN_MODE != 0 {
        return Err(FileError::Mode(metadata.mode() & 0o7777));
    }
    Ok(file)
}

/// The content of such a file, which has at most `most` bytes.
pub fn read(path: &Path, server_uid: u32, flags: i32, most: u64) -> Result<Vec<u8>, FileError> {
    let mut content = Vec::new();
    open(path, server_uid, flags)?.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most { Err(FileError::TooLong(most)) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_what_others_cannot_read_is_read() {
        let path = std::env::temp_dir().join(format!("sync_outbox_secret_{}", std::process::id()));
        fs::write(&path, b"secret").unwrap();
        let owner = fs::metadata(&path).unwrap().uid();
        let with = |mode: u32| {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(&path, owner, 0, 6).map_err(|error| error.to_string())
        };
        assert_eq!(with(0o600).as_deref(), Ok(&b"secret"[..]));
        assert!(with(0o640).is_ok());
        for mode in [0o644, 0o604, 0o660, 0o602] {
            assert!(with(mode).unwrap_err().contains(&format!("its mode is {mode:04o}")));
        }
        let _ = with(0o600);
        assert!(matches!(read(&path, owner, 0, 5), Err(FileError::TooLong(5))));
        if owner != 0 {
            assert!(matches!(read(&path, owner + 1, 0, 6), Err(FileError::Owner)));
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(read(&path, owner, 0, 6), Err(FileError::Missing)));
        assert!(matches!(read(&std::env::temp_dir(), owner, 0, 6), Err(FileError::NotRegular)));
    }
}
