//! TLS of a listener: choice of the certificate, versions and protocols, verification of client certificates.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use spillway_config::schema::{ClientCertificateMode, ListenerTls, TlsVersion};

use super::{Acme, CertificatePair, ManagedCertificate, TlsError, authorities, provider, read};

/// Application protocols, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Compiled TLS of a listener.
pub struct ServerTls {
    /// Configuration of handshakes.
    pub config: Arc<ServerConfig>,
    /// Configuration of handshakes in which an authority verifies a challenge, with the challenge `tls-alpn-01`.
    pub challenge: Option<Arc<ServerConfig>>,
    chooser: Arc<Chooser>,
    /// Digest over configuration and files: tickets of earlier connections stay valid as long as it is the same.
    digest: [u8; 32],
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("certificates", &self.chooser.pairs.len()).finish_non_exhaustive()
    }
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// Certificates by the names they are valid for.
struct Chooser {
    pairs: Vec<Arc<CertificatePair>>,
    /// Obtained certificate, which may arrive and change while connections are served.
    managed: Option<Arc<ManagedCertificate>>,
    exact: HashMap<Box<str>, Vec<usize>>,
    /// Certificates by the suffix behind the star.
    wildcard: HashMap<Box<str>, Vec<usize>>,
}

impl Chooser {
    fn new(pairs: Vec<CertificatePair>, managed: Option<Arc<ManagedCertificate>>) -> Self {
        let mut chooser = Self { pairs: Vec::new(), managed, exact: HashMap::new(), wildcard: HashMap::new() };
        for (n, pair) in pairs.iter().enumerate() {
            for name in &pair.names.exact {
                chooser.exact.entry(name.clone()).or_default().push(n);
            }
            for suffix in &pair.names.wildcard {
                chooser.wildcard.entry(suffix.clone()).or_default().push(n);
            }
        }
        chooser.pairs = pairs.into_iter().map(Arc::new).collect();
        chooser
    }

    /// Finds the certificates for a name, several if the name has one for each kind of key. Without one for the name
    /// the first of all is chosen. Empty while the only certificate is still to be obtained.
    fn candidates(&self, name: Option<&str>) -> SmallVec<[Arc<CertificatePair>; 2]> {
        let lower = name.map(str::to_ascii_lowercase);
        let managed = || self.managed.as_ref().and_then(|managed| managed.pair());
        let found = lower.as_deref().and_then(|lower| {
            let suffix = || lower.find('.').and_then(|dot| lower.get(dot..));
            if let Some(exact) = self.exact.get(lower) {
                return Some(exact.as_slice());
            }
            // A name with an obtained certificate is not served one with a star.
            if self.managed.as_ref().is_some_and(|m| m.domains().iter().any(|own| own.eq_ignore_ascii_case(lower))) {
                return None;
            }
            self.wildcard.get(suffix()?).map(Vec::as_slice)
        });
        match found {
            Some(found) => found.iter().filter_map(|n| self.pairs.get(*n).cloned()).collect(),
            None => {
                let own = managed().filter(|pair| lower.as_deref().is_some_and(|name| pair.names.cover(name)));
                own.or_else(|| self.pairs.first().cloned()).or_else(managed).into_iter().collect()
            }
        }
    }
}

impl std::fmt::Debug for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.pairs.iter().map(|pair| &pair.names)).finish()
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable =
            |pair: &&Arc<CertificatePair>| pair.certified.key.choose_scheme(hello.signature_schemes()).is_some();
        let candidates = self.candidates(hello.server_name());
        candidates.iter().find(usable).or_else(|| candidates.first()).map(|pair| pair.certified.clone())
    }
}

impl ServerTls {
    /// Reads and compiles the files that a listener names.
    pub fn read(written: &ListenerTls, acme: &Acme) -> Result<Self, TlsError> {
        let mut digest = Sha256::new();
        let clients = written.client_certificates.as_ref().map(|clients| clients.mode);
        digest.update(format!("{:?}", (written.min_version, clients, &written.acme)));
        let mut feed = |bytes: &[u8]| {
            digest.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(bytes);
        };
        let mut pairs = Vec::new();
        for files in &written.certificates {
            let pair = CertificatePair::read(&files.cert_file, &files.key_file)?;
            pair.read.iter().for_each(|bytes| feed(bytes));
            pairs.push(pair);
        }
        for pair in &written.pairs {
            let pair = CertificatePair::of(pair)?;
            pair.read.iter().for_each(|bytes| feed(bytes));
            pairs.push(pair);
        }
        let versions: &[&SupportedProtocolVersion] = match written.min_version {
            TlsVersion::V12 => &[&version::TLS13, &version::TLS12],
            TlsVersion::V13 => &[&version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(TlsError::setup)?;
        let builder = match &written.client_certificates {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let pem = read(&clients.ca_file)?;
                feed(&pem);
                let roots = Arc::new(authorities(&clients.ca_file, &pem)?.roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = match clients.mode {
                    ClientCertificateMode::Required => verifier,
                    ClientCertificateMode::Optional => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(verifier.build().map_err(TlsError::setup)?)
            }
        };
        let managed = written.acme.as_ref().map(|written| acme.certificate(written)).transpose()?;
        if let Some(managed) = &managed {
            feed(managed.id());
        }
        let challenge = match managed.as_ref().is_some_and(|managed| managed.is_challenged_by_tls()) {
            true => Some(acme.challenges().config()?),
            false => None,
        };
        let chooser = Arc::new(Chooser::new(pairs, managed));
        let mut config = builder.with_cert_resolver(chooser.clone());
        config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        // Tickets need no memory for each client; their key changes every six hours. Early data stays off, because it
        // can be replayed.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(TlsError::setup)?;
        Ok(Self { config: Arc::new(config), challenge, chooser, digest: digest.finalize().into() })
    }

    /// True if a connection that asked for `name` may carry a request for `host`. That is the same name, or another one
    /// of the certificate that the connection was served (RFC 9110, 15.5.20; RFC 9113, 9.1.1).
    pub fn answers_for(&self, name: &str, host: &str) -> bool {
        name.eq_ignore_ascii_case(host) || self.chooser.candidates(Some(name)).iter().any(|pair| pair.names.cover(host))
    }

    /// Obtained certificate of the listener.
    pub fn managed(&self) -> Option<&Arc<ManagedCertificate>> {
        self.chooser.managed.as_ref()
    }

    /// All certificates that the listener may serve.
    pub fn certificates(&self) -> impl Iterator<Item = Arc<CertificatePair>> + '_ {
        let managed = self.chooser.managed.as_ref().and_then(|managed| managed.pair());
        self.chooser.pairs.iter().cloned().chain(managed)
    }
}

#[cfg(test)]
mod tests {
    use spillway_config::schema::CertificateFiles;

    use super::*;
    use crate::tls::testing::Authority;

    fn acme() -> Acme {
        Acme::new(Arc::new(crate::telemetry::Metrics::new()))
    }

    fn listener(folder: &std::path::Path, certificates: &[&[&str]]) -> ListenerTls {
        let authority = Authority::new();
        let certificates = certificates.iter().enumerate().map(|(n, names)| {
            let (cert_file, key_file) = authority.server(names).write(folder, &n.to_string());
            CertificateFiles { cert_file: cert_file.into(), key_file: key_file.into() }
        });
        ListenerTls {
            certificates: certificates.collect(),
            pairs: Vec::new(),
            acme: None,
            client_certificates: None,
            min_version: TlsVersion::default(),
        }
    }

    #[test]
    fn the_name_chooses_the_certificate_exact_before_wildcard_and_the_first_for_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let written = listener(folder.path(), &[&["first.test"], &["*.b.test"], &["x.b.test", "y.b.test"]]);
        let tls = ServerTls::read(&written, &acme()).unwrap();
        let shown = |name: Option<&str>| {
            let pairs = tls.chooser.candidates(name);
            assert_eq!(pairs.len(), 1);
            pairs[0].file.file_stem().unwrap().to_str().unwrap().to_owned()
        };
        for (name, file) in [
            (Some("first.test"), "0"),
            (Some("any.b.test"), "1"),
            (Some("X.b.Test"), "2"),
            (Some("b.test"), "0"),
            (Some("c.a.b.test"), "0"),
            (Some("other.test"), "0"),
            (None, "0"),
        ] {
            assert_eq!(shown(name), file, "{name:?}");
        }
        assert!(tls.answers_for("x.b.test", "x.b.test"));
        assert!(tls.answers_for("x.b.test", "Y.b.test"), "another name of the same certificate");
        assert!(!tls.answers_for("x.b.test", "z.b.test"));
        assert!(!tls.answers_for("x.b.test", "first.test"));
        assert!(tls.answers_for("unknown.test", "first.test"), "it was shown the first certificate");
    }

    #[test]
    fn early_data_is_not_taken_because_it_can_be_replayed() {
        let folder = tempfile::tempdir().unwrap();
        let written = listener(folder.path(), &[&["a.test"]]);
        assert_eq!(ServerTls::read(&written, &acme()).unwrap().config.max_early_data_size, 0);
    }

    #[test]
    fn what_did_not_change_is_the_same_and_what_did_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut written = listener(folder.path(), &[&["a.test"]]);
        let before = ServerTls::read(&written, &acme()).unwrap();
        assert!(before == ServerTls::read(&written, &acme()).unwrap());
        written.min_version = TlsVersion::V13;
        assert!(before != ServerTls::read(&written, &acme()).unwrap());
        let written = listener(folder.path(), &[&["a.test"]]);
        assert!(before != ServerTls::read(&written, &acme()).unwrap());
    }
}
