//! Certificate with its key: reads both, checks that they belong together, and finds the names that they are valid for.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use spillway_config::schema::PemPair;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TlsError, certificates, private_key, provider, read};
use crate::telemetry::CertificateSample;

/// Time before the end of a certificate at which a warning is given: a week, enough to renew it by hand.
const ENDS_SOON: Duration = Duration::from_secs(7 * 86_400);

/// Names that a certificate is valid for, in lower case.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Names {
    /// Whole names and IP addresses as text.
    pub exact: Vec<Box<str>>,
    /// Suffix behind the star, with its dot: `.example.com`.
    pub wildcard: Vec<Box<str>>,
}

impl Names {
    /// Reads the names of a certificate. Only its alternative names count (RFC 9525, 6.3), not the common name.
    pub fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut names = Self::default();
        let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return names };
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(name) => match name.strip_prefix('*') {
                    Some(suffix) if suffix.starts_with('.') => names.wildcard.push(suffix.to_ascii_lowercase().into()),
                    Some(_) => {}
                    None => names.exact.push(name.to_ascii_lowercase().into()),
                },
                GeneralName::IPAddress(bytes) => {
                    let address = match bytes.len() {
                        4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
                        16 => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
                        _ => None,
                    };
                    names.exact.extend(address.map(|address| address.to_string().into()));
                }
                _ => {}
            }
        }
        names
    }

    /// True if the names include a host: a name, or an IP address without brackets. A star matches one label.
    pub fn cover(&self, host: &str) -> bool {
        self.exact.iter().any(|name| name.eq_ignore_ascii_case(host))
            || host
                .find('.')
                .filter(|dot| *dot > 0 && host.parse::<IpAddr>().is_err())
                .and_then(|dot| host.get(dot..))
                .is_some_and(|rest| self.wildcard.iter().any(|suffix| suffix.eq_ignore_ascii_case(rest)))
    }

    /// Name that identifies the certificate in metrics: the first of the alphabet, because an authority may list the
    /// names of a renewed certificate in another order.
    pub fn first(&self) -> Option<String> {
        let star = self.wildcard.iter().min().map(|suffix| format!("*{suffix}"));
        self.exact.iter().min().map(|name| name.to_string()).or(star)
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty()
    }
}

/// Certificate and its key.
pub struct CertificatePair {
    /// Both, in the form of rustls.
    pub certified: Arc<CertifiedKey>,
    /// Names that the certificate is valid for.
    pub names: Names,
    /// First and last second of validity, Unix time.
    pub valid: (i64, i64),
    /// File of the certificate.
    pub file: PathBuf,
    /// Private key, for clients that do not use rustls.
    pub key: PrivateKeyDer<'static>,
    /// Content of both files.
    pub(super) read: [Vec<u8>; 2],
}

impl CertificatePair {
    /// Reads both files and checks that they belong together.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Self::parse(cert, key, [read(cert)?, read(key)?])
    }

    /// Parses a certificate and its key that are no files.
    pub(super) fn of(pair: &PemPair) -> Result<Self, TlsError> {
        let name = Path::new(&pair.name);
        Self::parse(name, name, [pair.certificate.to_vec(), pair.key.to_vec()])
    }

    /// Parses the content of both files, and checks that they belong together.
    pub(super) fn parse(cert: &Path, key: &Path, [cert_pem, key_pem]: [Vec<u8>; 2]) -> Result<Self, TlsError> {
        let chain = certificates(cert, &cert_pem)?;
        let private = private_key(key, &key_pem)?;
        let mut pair = Self::new(cert, key, chain, private, &provider())?;
        pair.read = [cert_pem, key_pem];
        Ok(pair)
    }

    fn new(
        cert: &Path,
        key: &Path,
        chain: Vec<CertificateDer<'static>>,
        private: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or_else(|| TlsError::content(cert, "no certificate found"))?;
        let unreadable =
            |e: &dyn std::fmt::Display| TlsError::content(cert, format!("the first certificate cannot be read: {e}"));
        let (_, parsed) = X509Certificate::from_der(leaf.as_ref()).map_err(|e| unreadable(&e))?;
        let names = Names::of(&parsed);
        let valid = (parsed.validity.not_before.timestamp(), parsed.validity.not_after.timestamp());
        let again = private.clone_key();
        let certified = CertifiedKey::from_der(chain, private, provider).map_err(|e| match e {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::Mismatch { cert: cert.to_owned(), key: key.to_owned() }
            }
            Error::InvalidCertificate(e) => unreadable(&format!("{e:?}")),
            e => TlsError::content(key, format!("the private key cannot be used: {e}")),
        })?;
        let certified = Arc::new(certified);
        Ok(Self { certified, names, valid, file: cert.to_owned(), key: again, read: Default::default() })
    }

    /// Sample for metrics; `place` is the listener or backend that the certificate is used by.
    pub fn sample(&self, place: &str) -> CertificateSample {
        let file = || self.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        CertificateSample {
            place: place.to_owned(),
            certificate: self.names.first().unwrap_or_else(file),
            ends: self.valid.1,
        }
    }

    /// Warnings about a valid pair that will not work, or not for long.
    pub fn warnings(&self, now: SystemTime, server: bool) -> Vec<String> {
        let now = i64::try_from(crate::clock::unix(now)).unwrap_or(0);
        let soon = now.saturating_add(i64::try_from(ENDS_SOON.as_secs()).unwrap_or(0));
        let mut warnings = Vec::new();
        let file = self.file.display();
        if self.valid.1 < now {
            warnings.push(format!("the certificate in {file} has expired"));
        } else if self.valid.1 < soon {
            warnings.push(format!("the certificate in {file} expires within seven days"));
        }
        if self.valid.0 > now {
            warnings.push(format!("the certificate in {file} is not valid yet"));
        }
        if server && self.names.is_empty() {
            warnings.push(format!(
                "the certificate in {file} has no alternative name (SAN), so clients refuse it: name its hosts there"
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn a_pair_that_does_not_belong_together_is_refused_with_both_files_named() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let (a, b) = (authority.server(&["a.test"]), authority.server(&["b.test"]));
        let (a_cert, _) = a.write(folder.path(), "a");
        let (_, b_key) = b.write(folder.path(), "b");
        let error = CertificatePair::read(&a_cert, &b_key).err().unwrap().to_string();
        assert!(error.contains("a.pem") && error.contains("b.key"), "{error}");
    }

    #[test]
    fn what_is_no_certificate_or_no_key_is_refused_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = Authority::new().server(&["a.test"]).write(folder.path(), "a");
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let junk = put("junk.pem", "junk");
        let broken = put("broken.pem", "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n");
        let nonsense = put("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let locked =
            put("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
        let missing = folder.path().join("missing.pem");
        for (cert, key, said) in [
            (&junk, &key, "junk.pem: no certificate found"),
            (&broken, &key, "broken.pem: not valid PEM"),
            (&nonsense, &key, "nonsense.pem: the first certificate"),
            (&cert, &junk, "junk.pem: no private key found"),
            (&cert, &cert, "a.pem: no private key found"),
            (&cert, &locked, "locked.key: the private key is encrypted"),
            (&missing, &key, "missing.pem"),
        ] {
            let error = CertificatePair::read(cert, key).err().unwrap().to_string();
            assert!(error.contains(said), "{error} has no {said}");
        }
    }

    #[test]
    fn names_cover_hosts_exactly_or_by_one_label() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = Authority::new().server(&["A.test", "*.b.test", "127.0.0.1"]).write(folder.path(), "a");
        let pair = CertificatePair::read(&cert, &key).unwrap();
        for (host, covered) in [
            ("a.test", true),
            ("A.TEST", true),
            ("x.a.test", false),
            ("x.b.test", true),
            ("b.test", false),
            ("y.x.b.test", false),
            (".b.test", false),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("", false),
        ] {
            assert_eq!(pair.names.cover(host), covered, "{host}");
        }
        assert_eq!(pair.warnings(SystemTime::now(), true), Vec::<String>::new());
        assert_eq!(pair.names.first().as_deref(), Some("127.0.0.1"), "whatever their order in the certificate");
        let later = SystemTime::now() + Duration::from_secs(3_000 * 366 * 86_400);
        assert!(pair.warnings(later, true)[0].contains("has expired"));
        assert!(pair.warnings(SystemTime::UNIX_EPOCH, true)[0].contains("not valid yet"));
    }
}
