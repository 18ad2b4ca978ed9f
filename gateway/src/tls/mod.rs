//! Compiles TLS of both sides of the proxy, also for `spillway check`. Certificates, keys and authorities are read from
//! files and checked against each other, or certificates are obtained from an authority (`acme`). The room watches no
//! file: the reload does that. Every error about a file names it.

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
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use spillway_config::schema::{PemAuthorities, PemPair};

pub use acme::{Acme, Challenges, ExternalAccountError, ManagedCertificate};
pub use certificate::{CertificatePair, Names};
pub use client::UpstreamTls;
pub use peer::ClientCertificate;
pub use server::ServerTls;

/// Reason why TLS cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// File.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A file lacks the expected content, or holds something else.
    #[error("{path}: {reason}")]
    Content {
        /// File.
        path: PathBuf,
        /// Fault of the content.
        reason: String,
    },
    /// A certificate and a key do not belong together.
    #[error("the key in {key} does not belong to the certificate in {cert}")]
    Mismatch {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// The key of an external account with an authority cannot be used.
    #[error("TLS cannot be set up: {0}")]
    ExternalAccount(#[from] ExternalAccountError),
    /// A library of TLS refuses the configuration.
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

/// Cryptography provider of the process, the one that Pingora uses.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    spillway_config::read_bytes(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Parses the certificates of a PEM file, at least one.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| TlsError::content(path, format!("not valid PEM: {e}")))?;
    if all.is_empty() {
        return Err(TlsError::content(path, "no certificate found; expected PEM (`-----BEGIN CERTIFICATE-----`)"));
    }
    Ok(all)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED PRIVATE KEY";
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let encrypted = memchr::memmem::find(pem, ENCRYPTED).is_some();
        let why = if encrypted {
            "the private key is encrypted, which is not supported: store it without a password"
        } else {
            "no private key found; expected PEM with PKCS #8, PKCS #1 or SEC 1"
        };
        TlsError::content(path, why)
    })
}

/// Trusted authorities, as a store and one by one.
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
            .map_err(|e| TlsError::content(path, format!("certificate {} cannot be an authority: {e}", n + 1)))?;
    }
    Ok(Authorities { roots, certificates })
}

/// Validates a certificate and its key for `spillway check`; returns warnings.
pub fn check_pair(cert: &Path, key: &Path, server: bool) -> Result<Vec<String>, TlsError> {
    CertificatePair::read(cert, key).map(|pair| pair.warnings(std::time::SystemTime::now(), server))
}

/// Checks that a certificate and its key that are no files belong together.
pub fn check_pem(pair: &PemPair) -> Result<(), TlsError> {
    CertificatePair::of(pair).map(|_| ())
}

/// Checks authorities that are no file.
pub fn check_authorities_pem(given: &PemAuthorities) -> Result<(), TlsError> {
    authorities(Path::new(&given.name), &given.pem).map(|_| ())
}

/// True for a name of a server, which its certificate may have; not for an address.
pub fn is_server_name(name: &str) -> bool {
    matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)))
}

/// Validates a file of authorities and returns its content, for clients that compile it themselves.
pub fn read_authorities(path: &Path) -> Result<Vec<u8>, TlsError> {
    let pem = read(path)?;
    authorities(path, &pem).map(|_| pem)
}

/// Reads the authorities of a file, and returns its content as well.
pub fn roots(path: &Path) -> Result<(RootCertStore, Vec<u8>), TlsError> {
    let pem = read(path)?;
    Ok((authorities(path, &pem)?.roots, pem))
}

/// Validates a file of authorities for `spillway check`.
pub fn check_authorities(path: &Path) -> Result<(), TlsError> {
    authorities(path, &read(path)?).map(|_| ())
}
