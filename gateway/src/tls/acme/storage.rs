//! The folder in which accounts and certificates outlive the process. A file is written whole or not at all, and is for
//! the gateway's user alone: accounts and certificates stand there with their keys.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spillway_config::schema;

use crate::tls::{Pair, TlsError};

/// What is stored of one certificate.
pub(super) struct Storage {
    /// The account at the directory, which all its certificates share.
    account: PathBuf,
    /// Certificate and key in one file, so that they never belong to different orders.
    certificate: PathBuf,
}

/// An account as it is stored.
#[derive(Deserialize, Serialize)]
pub(super) struct StoredAccount {
    /// Whom the authority writes to, as far as it was told.
    pub(super) email: Option<String>,
    pub(super) credentials: AccountCredentials,
}

/// What cannot be stored.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source} (`acme.storage` must be a folder that the gateway may write)", path.display())]
pub(super) struct StorageError {
    path: PathBuf,
    source: std::io::Error,
}

fn short_digest(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.to_ascii_lowercase());
        digest.update([0]);
    }
    hex::encode(digest.finalize().get(..8).unwrap_or_default())
}

impl Storage {
    pub(super) fn new(written: &schema::Acme) -> Self {
        let directory = written.directory.as_str();
        let mut names: Vec<&str> = vec![directory];
        names.extend(written.domains.iter().map(String::as_str));
        let first = written.domains.first().map(String::as_str).unwrap_or_default().to_ascii_lowercase();
        Self {
            account: written.storage.join(format!("account-{}.json", short_digest(&[directory]))),
            certificate: written.storage.join(format!("{first}-{}.pem", short_digest(&names))),
        }
    }

    /// The stored certificate; `None` where there is none.
    pub(super) fn certificate(&self) -> Option<Result<Pair, TlsError>> {
        self.certificate.exists().then(|| Pair::read(&self.certificate, &self.certificate))
    }

    /// Stores a certificate with its key and reads them back as they will be read after a restart.
    pub(super) fn store_certificate(&self, chain: &str, key: &str) -> Result<Result<Pair, TlsError>, StorageError> {
        write(&self.certificate, format!("{}\n{key}", chain.trim_end()).as_bytes())?;
        Ok(Pair::read(&self.certificate, &self.certificate))
    }

    /// The stored account; `None` where there is none that can be used.
    pub(super) fn account(&self) -> Option<StoredAccount> {
        let text = std::fs::read(&self.account).ok()?;
        match serde_json::from_slice(&text) {
            Ok(account) => Some(account),
            Err(e) => {
                tracing::warn!(event = "stored_account_not_used", file = %self.account.display(), reason = %e);
                self.put_account_aside();
                None
            }
        }
    }

    pub(super) fn store_account(&self, account: &StoredAccount) -> Result<(), StorageError> {
        let text = serde_json::to_vec(account).map_err(std::io::Error::other);
        let text = text.map_err(|source| StorageError { path: self.account.clone(), source })?;
        write(&self.account, &text)
    }

    /// The authority does not know the account: it is kept for the operator, and another one is made.
    pub(super) fn put_account_aside(&self) {
        let _ = std::fs::rename(&self.account, self.account.with_extension("refused"));
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let written = || {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        // One that was left there may have been readable by others.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    written().map_err(|source| StorageError { path: path.to_owned(), source })
}
