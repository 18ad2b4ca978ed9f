//! The folder in which accounts and certificates outlive the process. A file is written whole or not at all, and is for
//! the gateway's user alone: accounts and certificates stand there with their keys.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
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

    /// A certificate with its key, as it will be read after a restart.
    pub(super) fn pair(&self, chain: &str, key: &str) -> Result<Pair, TlsError> {
        let text = format!("{}\n{key}", chain.trim_end()).into_bytes();
        Pair::parse(&self.certificate, &self.certificate, [text.clone(), text])
    }

    /// Stores what [`Self::pair`] has made.
    pub(super) fn store_certificate(&self, pair: &Pair) -> Result<(), StorageError> {
        let [text, _] = &pair.read;
        write(&self.certificate, text)
    }

    /// Where the account is stored.
    pub(super) fn account_file(&self) -> &Path {
        &self.account
    }

    /// The stored account, or the one that is kept because it could not be; `None` where there is none that can be used.
    pub(super) fn account(&self, kept: Option<&str>) -> Option<StoredAccount> {
        let stored = std::fs::read(&self.account).ok();
        let text = stored.or_else(|| kept.map(|text| text.as_bytes().to_vec()))?;
        match serde_json::from_slice(&text) {
            Ok(account) => Some(account),
            Err(e) => {
                tracing::warn!(event = "stored_account_not_used", file = %self.account.display(), reason = %e);
                self.put_account_aside();
                None
            }
        }
    }

    pub(super) fn store_account(&self, text: &[u8]) -> Result<(), StorageError> {
        write(&self.account, text)
    }

    /// The authority does not know the account: it is kept for the operator, and another one is made.
    pub(super) fn put_account_aside(&self) {
        let _ = std::fs::rename(&self.account, self.account.with_extension("refused"));
    }
}

/// Writes a file whole: into a new one that no other writer has, another gateway with the same folder included, which then
/// takes its place.
fn write(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let written = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let new = path.with_extension(format!("{:016x}.new", rand::random::<u64>()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let moved = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&new, path));
        if moved.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        moved?;
        // The name too outlives a loss of power.
        std::fs::File::open(folder)?.sync_all()
    };
    written().map_err(|source| StorageError { path: path.to_owned(), source })
}
