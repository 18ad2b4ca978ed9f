//! The challenges that are shown now: texts that the authority asks for over HTTP (RFC 8555, 8.3), and certificates that
//! it asks for in a TLS handshake (RFC 8737). Each is shown until what stands for it is dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::tls::{TlsError, provider};

/// What comes before the token in the path of a challenge.
const PATH: &str = "/.well-known/acme-challenge/";
/// The protocol of a handshake that is a challenge (RFC 8737, 6.2).
const PROTOCOL: &[u8] = b"acme-tls/1";

/// The challenges that are shown now.
#[derive(Default)]
pub struct Challenges {
    /// How many; most of the time none, and then nobody looks further.
    shown: AtomicUsize,
    texts: RwLock<HashMap<String, String>>,
    certificates: RwLock<HashMap<String, Arc<CertifiedKey>>>,
    config: OnceLock<Arc<ServerConfig>>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Challenges({})", self.shown.load(Ordering::Relaxed))
    }
}

/// A challenge that is shown until this is dropped.
pub(super) struct Shown {
    challenges: Arc<Challenges>,
    what: What,
}

enum What {
    Text(String),
    Certificate(String, Arc<CertifiedKey>),
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.challenges.shown.fetch_sub(1, Ordering::Release);
        match &self.what {
            What::Text(token) => drop(self.challenges.texts.write().remove(token)),
            What::Certificate(domain, own) => {
                let mut certificates = self.challenges.certificates.write();
                // Another order for the same name may show its own meanwhile.
                if certificates.get(domain).is_some_and(|shown| Arc::ptr_eq(shown, own)) {
                    certificates.remove(domain);
                }
            }
        }
    }
}

impl Challenges {
    /// What is to be answered to a request for this path, where it is one for a challenge that is shown.
    pub fn text(&self, path: &str) -> Option<String> {
        if self.shown.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.texts.read().get(path.strip_prefix(PATH)?).cloned()
    }

    /// Shows a text to whoever asks for its token.
    pub(super) fn show_text(self: &Arc<Self>, token: &str, text: &str) -> Shown {
        self.texts.write().insert(token.to_owned(), text.to_owned());
        self.shown(What::Text(token.to_owned()))
    }

    /// Shows the digest of a key authorization in a handshake for `domain`.
    pub(super) fn show_certificate(self: &Arc<Self>, domain: &str, digest: &[u8]) -> Result<Shown, TlsError> {
        let mut params = CertificateParams::new([domain.to_owned()]).map_err(TlsError::setup)?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let key = KeyPair::generate().map_err(TlsError::setup)?;
        let certificate = params.self_signed(&key).map_err(TlsError::setup)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // Not `from_der`, which holds the two against each other: it knows no extension that is critical, as this one is.
        let key = provider().key_provider.load_private_key(key).map_err(TlsError::setup)?;
        let certified = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key));
        let domain = domain.to_ascii_lowercase();
        self.certificates.write().insert(domain.clone(), certified.clone());
        Ok(self.shown(What::Certificate(domain, certified)))
    }

    /// How many certificates are shown.
    #[cfg(test)]
    pub(super) fn certificates(&self) -> usize {
        self.certificates.read().len()
    }

    fn shown(self: &Arc<Self>, what: What) -> Shown {
        self.shown.fetch_add(1, Ordering::Release);
        Shown { challenges: self.clone(), what }
    }

    /// Whether a client that says this is an authority that looks at a challenge: the protocol of challenges is the only
    /// one that it offers (RFC 8737, 3).
    pub fn is_asked_for(hello: &ClientHello<'_>) -> bool {
        let mut offered = hello.alpn().into_iter().flatten();
        offered.next() == Some(PROTOCOL) && offered.next().is_none()
    }

    /// TLS for handshakes that look at a challenge. Nobody has to show a certificate there, and nothing is said after it.
    pub fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let resolver = Arc::new(Resolver(Arc::downgrade(self)));
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let mut config = builder.map_err(TlsError::setup)?.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(self.config.get_or_init(|| Arc::new(config)).clone())
    }
}

#[derive(Debug)]
struct Resolver(std::sync::Weak<Challenges>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        self.0.upgrade()?.certificates.read().get(&name).cloned()
    }
}
