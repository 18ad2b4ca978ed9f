//! Files become TLS: certificates, keys and authorities are read, held against each other and compiled, for both sides
//! of the proxy and for `spillway check`; or an authority issues them (`acme`). It watches no file: the reload does that.
//! Every error names the file that is at fault.

mod acme;
mod certificate;
mod client;
mod peer;
mod server;
#[cfg(test)]
pub(crate) mod testing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use acme::{Acme, Challenges, Managed};
pub use certificate::{Names, Pair};
pub use client::UpstreamTls;
pub use peer::ClientCertificate;
pub use server::ServerTls;

/// Files that cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file without what is looked for, or with something else in its place.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate and a key that do not belong together.
    #[error("the key in {key} does not belong to the certificate in {cert}")]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// What rustls does not take.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl TlsError {
    fn content(path: &Path, reason: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), reason: reason.into() }
    }
    fn setup(error: impl std::fmt::Display) -> Self {
        Self::Setup(error.to_string())
    }
}

/// The implementation of cryptography: the one that Pingora has.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    spillway_config::read_bytes(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| TlsError::content(path, format!("it is not sound PEM: {e}")))?;
    if all.is_empty() {
        return Err(TlsError::content(path, "it holds no certificate (`-----BEGIN CERTIFICATE-----`)"));
    }
    Ok(all)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED PRIVATE KEY";
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let encrypted = memchr::memmem::find(pem, ENCRYPTED).is_some();
        let why = if encrypted {
            "its key is locked with a password, which is not supported: write it without one"
        } else {
            "it holds no private key in PEM (PKCS #8, PKCS #1 or SEC 1)"
        };
        TlsError::content(path, why)
    })
}

/// Authorities, as rustls wants them.
struct Authorities {
    roots: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

fn authorities(path: &Path, pem: &[u8]) -> Result<Authorities, TlsError> {
    let certificates = certificates(path, pem)?;
    let mut roots = RootCertStore::empty();
    for (n, certificate) in certificates.iter().enumerate() {
        roots
            .add(certificate.clone())
            .map_err(|e| TlsError::content(path, format!("certificate {} in it is no authority: {e}", n + 1)))?;
    }
    Ok(Authorities { roots, certificates })
}

/// Judges a certificate and its key for `spillway check`; gives warnings.
pub fn check_pair(cert: &Path, key: &Path, server: bool) -> Result<Vec<String>, TlsError> {
    Pair::read(cert, key).map(|pair| pair.warnings(std::time::SystemTime::now(), server))
}

/// A file of authorities as it stands, for those who compile it themselves.
pub fn read_authorities(path: &Path) -> Result<Vec<u8>, TlsError> {
    let pem = read(path)?;
    authorities(path, &pem).map(|_| pem)
}

/// Authorities as rustls wants them, and their file as it stands.
pub fn roots(path: &Path) -> Result<(RootCertStore, Vec<u8>), TlsError> {
    let pem = read(path)?;
    Ok((authorities(path, &pem)?.roots, pem))
}

/// Judges a file of authorities for `spillway check`.
pub fn check_authorities(path: &Path) -> Result<(), TlsError> {
    authorities(path, &read(path)?).map(|_| ())
}
