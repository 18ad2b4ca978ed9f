//! Published challenges: texts that the authority requests over HTTP (RFC 8555, 8.3), and certificates that it requests
//! in a TLS handshake (RFC 8737). A challenge is published until its [`PublishedChallenge`] is dropped.

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

/// Path of a challenge before its token.
const PATH: &str = "/.well-known/acme-challenge/";
/// Application protocol of a handshake that verifies a challenge (RFC 8737, 6.2).
const PROTOCOL: &[u8] = b"acme-tls/1";

/// Published challenges.
#[derive(Default)]
pub struct Challenges {
    /// Number of published challenges: usually none, which costs requests one atomic read.
    published: AtomicUsize,
    texts: RwLock<HashMap<String, String>>,
    certificates: RwLock<HashMap<String, Arc<CertifiedKey>>>,
    config: OnceLock<Arc<ServerConfig>>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Challenges({})", self.published.load(Ordering::Relaxed))
    }
}

/// Challenge that is published until this is dropped.
pub(super) struct PublishedChallenge {
    challenges: Arc<Challenges>,
    what: What,
}

enum What {
    Text(String),
    Certificate(String, Arc<CertifiedKey>),
}

impl Drop for PublishedChallenge {
    fn drop(&mut self) {
        self.challenges.published.fetch_sub(1, Ordering::Release);
        match &self.what {
            What::Text(token) => drop(self.challenges.texts.write().remove(token)),
            What::Certificate(domain, own) => {
                let mut certificates = self.challenges.certificates.write();
                // Another order for the same name may have published its own meanwhile.
                if certificates.get(domain).is_some_and(|published| Arc::ptr_eq(published, own)) {
                    certificates.remove(domain);
                }
            }
        }
    }
}

impl Challenges {
    /// Answer to a request for a path, if that is the path of a published challenge.
    pub fn text(&self, path: &str) -> Option<String> {
        if self.published.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.texts.read().get(path.strip_prefix(PATH)?).cloned()
    }

    /// Publishes the text of a token.
    pub(super) fn publish_text(self: &Arc<Self>, token: &str, text: &str) -> PublishedChallenge {
        self.texts.write().insert(token.to_owned(), text.to_owned());
        self.published(What::Text(token.to_owned()))
    }

    /// Publishes the digest of a key authorization in handshakes for `domain`.
    pub(super) fn publish_certificate(
        self: &Arc<Self>,
        domain: &str,
        digest: &[u8],
    ) -> Result<PublishedChallenge, TlsError> {
        let mut params = CertificateParams::new([domain.to_owned()]).map_err(TlsError::setup)?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let key = KeyPair::generate().map_err(TlsError::setup)?;
        let certificate = params.self_signed(&key).map_err(TlsError::setup)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // Not `from_der`, which compares the two and refuses critical extensions, such as that of the challenge.
        let key = provider().key_provider.load_private_key(key).map_err(TlsError::setup)?;
        let certified = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key));
        let domain = domain.to_ascii_lowercase();
        self.certificates.write().insert(domain.clone(), certified.clone());
        Ok(self.published(What::Certificate(domain, certified)))
    }

    /// Number of published certificates.
    #[cfg(test)]
    pub(super) fn certificates(&self) -> usize {
        self.certificates.read().len()
    }

    fn published(self: &Arc<Self>, what: What) -> PublishedChallenge {
        self.published.fetch_add(1, Ordering::Release);
        PublishedChallenge { challenges: self.clone(), what }
    }

    /// True if a client is an authority that verifies a challenge: it offers the protocol of challenges alone (RFC
    /// 8737, 3).
    pub fn is_asked_for(hello: &ClientHello<'_>) -> bool {
        let mut offered = hello.alpn().into_iter().flatten();
        offered.next() == Some(PROTOCOL) && offered.next().is_none()
    }

    /// TLS of handshakes that verify a challenge. No client certificate is required, and the connection ends after
    /// them.
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
