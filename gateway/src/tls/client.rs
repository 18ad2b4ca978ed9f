//! TLS towards the endpoints of a backend: trusted authorities, client certificate, name of the server.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use spillway_config::schema::BackendTls;

use super::{CertificatePair, TlsError, authorities, provider, read};
use crate::telemetry::CertificateSample;

/// Compiled TLS of a backend.
pub struct UpstreamTls {
    /// Name of the server in place of the URL's host.
    pub sni: Option<String>,
    /// Trusted authorities; those of the system if `None`.
    pub authorities: Option<Vec<CertificateDer<'static>>>,
    /// Client certificate: the chain and its key.
    pub client_certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Configuration of connections that do not come from the pool.
    pub config: Arc<ClientConfig>,
    /// Metrics of the client certificate.
    pub sample: Option<CertificateSample>,
    /// Digest over configuration and files: only backends with the same digest share connections.
    pub digest: [u8; 32],
}

impl UpstreamTls {
    /// Reads and compiles the files that a backend names. The system needs authorities only if a URL of the backend is
    /// `https`.
    pub fn read(written: &BackendTls, http2: bool, https: bool) -> Result<Self, TlsError> {
        let mut digest = Sha256::new();
        digest.update(format!("{:?}", (&written.sni, http2)));
        let given: Option<(PathBuf, Arc<[u8]>)> = match (&written.authorities, &written.ca_file) {
            (Some(given), _) => Some((PathBuf::from(&given.name), given.pem.clone())),
            (None, Some(file)) => Some((file.to_path_buf(), read(file)?.into())),
            (None, None) => None,
        };
        let (roots, trusted) = match given {
            None if https => (system()?, None),
            None => (Arc::new(RootCertStore::empty()), None),
            Some((name, pem)) => {
                digest.update(&pem);
                let read = authorities(&name, &pem)?;
                (Arc::new(read.roots), Some(read.certificates))
            }
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::setup)?
            .with_root_certificates(roots);
        let (mut client_certificate, mut sample) = (None, None);
        let mut config = match &written.client_certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let pair = CertificatePair::read(&files.cert_file, &files.key_file)?;
                pair.read.iter().for_each(|bytes| digest.update(bytes));
                let chain = pair.certified.cert.clone();
                sample = Some(pair.sample(""));
                client_certificate = Some((chain.clone(), pair.key.clone_key()));
                builder.with_client_auth_cert(chain, pair.key).map_err(TlsError::setup)?
            }
        };
        config.alpn_protocols = if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { Vec::new() };
        Ok(Self {
            sni: written.sni.clone(),
            authorities: trusted,
            client_certificate,
            config: Arc::new(config),
            sample,
            digest: digest.finalize().into(),
        })
    }

    /// Name of a server whose URL has this host.
    pub fn name<'a>(&'a self, host: &'a str) -> &'a str {
        self.sni.as_deref().unwrap_or(host)
    }
}

/// Authorities of the system, read once. An empty store is no error here: each handshake fails and reports that.
fn system() -> Result<Arc<RootCertStore>, TlsError> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = SYSTEM.get() {
        return Ok(roots.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    // An unreadable store of several does no harm if others are readable.
    if let (true, Some(e)) = (found.certs.is_empty(), found.errors.first()) {
        let why = format!("the authorities of this system cannot be read ({e}); name `caFile`");
        return Err(TlsError::Setup(why));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    Ok(SYSTEM.get_or_init(|| Arc::new(roots)).clone())
}

#[cfg(test)]
mod tests {
    use spillway_config::schema::{CertificateFiles, PemAuthorities};

    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn what_is_believed_and_shown_is_read_and_tells_backends_apart() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let (cert_file, key_file) = authority.client("gateway", "spiffe://example/gateway").write(folder.path(), "gw");
        let mut written = BackendTls { ca_file: Some(authority.write(folder.path()).into()), ..BackendTls::default() };
        let plain = UpstreamTls::read(&written, false, true).unwrap();
        assert_eq!(plain.authorities.as_ref().unwrap().len(), 1);
        assert_eq!(plain.name("server.test"), "server.test");
        written.sni = Some("other.test".into());
        written.client_certificate =
            Some(CertificateFiles { cert_file: cert_file.clone().into(), key_file: key_file.into() });
        let shown = UpstreamTls::read(&written, false, true).unwrap();
        assert_eq!(shown.name("server.test"), "other.test");
        assert!(shown.client_certificate.is_some() && shown.digest != plain.digest);
        assert_ne!(shown.digest, UpstreamTls::read(&written, true, true).unwrap().digest);
        // Pingora asks a key for its form and panics where it has none.
        let (_, key) = shown.client_certificate.unwrap();
        assert!(PrivateKeyDer::try_from(key.secret_der().to_vec()).is_ok());
        let pem = std::fs::read(folder.path().join("ca.pem")).unwrap();
        let given = |pem: &[u8]| Some(PemAuthorities { name: "ConfigMap a/b".to_owned(), pem: pem.into() });
        let other = BackendTls { ca_file: None, authorities: given(&pem), ..BackendTls::default() };
        let other = UpstreamTls::read(&other, false, true).unwrap();
        assert_eq!((other.authorities, other.digest), (plain.authorities, plain.digest), "a file or not");
        let wrong = BackendTls { authorities: given(b"no certificate"), ..BackendTls::default() };
        assert!(UpstreamTls::read(&wrong, false, true).err().unwrap().to_string().contains("ConfigMap a/b"));
        written.ca_file = Some(folder.path().join("gw.key").into());
        assert!(UpstreamTls::read(&written, false, true).err().unwrap().to_string().contains("gw.key"));
    }
}
