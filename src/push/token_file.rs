//! Files that hold a secret: those of an administrator, and our own with a token, in `sync_outbox` below the data
//! directory.
//!
//! Nothing here is transactional, and no error shows any of a file's content.

use crate::pg::{Oid, database, file};
use delivery::secret_file;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wire::signature::{SecretError, Secrets};
use wire::token::{self, TokenError};

/// What is wrong with a file that holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialFileError {
    #[error(transparent)]
    File(secret_file::FileError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("was not written by sync_outbox_set_token()")]
    Format,
}

impl From<secret_file::FileError> for CredentialFileError {
    fn from(error: secret_file::FileError) -> Self {
        match error {
            secret_file::FileError::TooLong(_) => TokenError::TooLong.into(),
            error => CredentialFileError::File(error),
        }
    }
}

/// The token in a file of the administrator's. It may be reached through a symbolic link, as Kubernetes mounts secrets.
pub fn read(path: &Path) -> Result<String, CredentialFileError> {
    Ok(token::from_file(&content(path, 0)?)?)
}

/// The signing secrets in a file of the administrator's.
pub fn read_secrets(path: &Path) -> Result<Secrets, CredentialFileError> {
    Ok(Secrets::from_file(&content(path, 0)?)?)
}

fn content(path: &Path, flags: i32) -> Result<Vec<u8>, secret_file::FileError> {
    // Room for the longest token and the JSON around it in our own files.
    secret_file::read(path, file::server_uid(), flags, 2 * token::MAX_BYTES as u64)
}

/// A token and the origin it was set for: it is sent nowhere else.
#[derive(Serialize, Deserialize)]
pub struct StoredToken {
    pub origin: String,
    pub token: String,
}

impl StoredToken {
    /// Reads the content of our own file.
    pub fn parse(content: &[u8]) -> Result<Self, CredentialFileError> {
        let kept: StoredToken = serde_json::from_slice(content).map_err(|_| CredentialFileError::Format)?;
        token::check(&kept.token)?;
        Ok(kept)
    }
}

/// Our own file for one target of this installation.
///
/// Its name is made of the database, the extension and the target. The extension's oid is another one after DROP and
/// CREATE EXTENSION, so that a token never passes to who installs it next; a restored dump and a template copy have
/// another database; a standby and a base backup have the same.
pub struct TokenFile {
    directory: PathBuf,
    name: String,
}

impl TokenFile {
    pub fn new(extension: Oid, target_id: i16) -> Self {
        TokenFile {
            directory: file::data_directory().join("sync_outbox"),
            name: format!("token_{}_{}_{target_id}.json", database::current().to_u32(), extension.to_u32()),
        }
    }

    pub fn read(&self) -> Result<Option<StoredToken>, CredentialFileError> {
        let content = match content(&self.directory.join(&self.name), libc::O_NOFOLLOW) {
            Err(secret_file::FileError::Missing) => return Ok(None),
            content => content?,
        };
        StoredToken::parse(&content).map(Some)
    }

    /// Removes the file, if it is there and can be removed.
    pub fn remove(&self) {
        let _ = fs::remove_file(self.directory.join(&self.name)); // who asks has dropped what it was good for
    }

    /// Replaces the file in one step that survives a crash.
    pub fn write(&self, token: &StoredToken) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.directory).or_else(|error| match error.kind() {
            ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })?;
        let temporary = self.directory.join(format!("{}.{}", self.name, std::process::id()));
        let written = self.write_new(&temporary, token);
        if written.is_err() {
            let _ = fs::remove_file(&temporary); // the first error is the one to report
        }
        written
    }

    fn write_new(&self, temporary: &Path, token: &StoredToken) -> io::Result<()> {
        match fs::remove_file(temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {} // what a crashed process of the same pid left behind is gone
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        file.write_all(&serde_json::to_vec(token)?)?;
        file.sync_all()?;
        fs::rename(temporary, self.directory.join(&self.name))?;
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn whatever_our_own_file_holds_cannot_break_a_header(content in wire::properties::json(&["origin", "token", "t0ken"])) {
            crate::properties::kept_token(content.as_bytes());
        }
    }
}
