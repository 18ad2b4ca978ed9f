//! Folder in which accounts and certificates outlive the process. A file is written whole or not at all. Only the
//! gateway's user may read it, because it holds private keys.

use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spillway_config::schema;

use crate::tls::{CertificatePair, TlsError};
use crate::whole_file;

/// Files of one certificate.
pub(super) struct Storage {
    /// Account at the directory, which all its certificates share.
    account: PathBuf,
    /// Certificate and key in one file, so that they never belong to different orders.
    certificate: PathBuf,
}

/// Stored form of an account.
#[derive(Deserialize, Serialize)]
pub(super) struct StoredAccount {
    /// Contact that the authority was given last.
    pub(super) email: Option<String>,
    pub(super) credentials: AccountCredentials,
}

/// Failure to write a file of the storage.
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

    /// Reads the stored certificate; `None` if there is none.
    pub(super) fn certificate(&self) -> Option<Result<CertificatePair, TlsError>> {
        self.certificate.exists().then(|| CertificatePair::read(&self.certificate, &self.certificate))
    }

    /// Parses a certificate with its key, in the form in which a restart reads them.
    pub(super) fn pair(&self, chain: &str, key: &str) -> Result<CertificatePair, TlsError> {
        let text = format!("{}\n{key}", chain.trim_end()).into_bytes();
        CertificatePair::parse(&self.certificate, &self.certificate, [text.clone(), text])
    }

    /// Stores a certificate that [`Self::pair`] has made.
    pub(super) fn store_certificate(&self, pair: &CertificatePair) -> Result<(), StorageError> {
        let [text, _] = &pair.read;
        write(&self.certificate, text)
    }

    /// File of the account.
    pub(super) fn account_file(&self) -> &Path {
        &self.account
    }

    /// Reads the stored account, or else `kept`, one that could not be stored; `None` if neither can be used.
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

    /// Renames the file of an account that the authority does not know, so that a new one is made and the operator
    /// keeps it.
    pub(super) fn put_account_aside(&self) {
        let _ = std::fs::rename(&self.account, self.account.with_extension("refused"));
    }
}

/// Replaces a file as a whole.
fn write(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    whole_file::replace(path, bytes).map_err(|source| StorageError { path: path.to_owned(), source })
}
