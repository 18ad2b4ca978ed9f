//! Callers known by the certificate of their connection. The listener has verified it; here it becomes a consumer.

use std::collections::HashMap;
use std::sync::Arc;

use spillway_config::schema::{self, CertificateIdentity};

use super::Consumer;
use crate::limits::Credential;
use crate::tls::ClientCertificate;

/// Consumers by what their certificates say.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// What of a certificate says who it is; `None` where certificates say nothing.
    identity: Option<CertificateIdentity>,
    consumers: HashMap<Box<str>, Arc<Consumer>>,
}

impl Certificates {
    pub(super) fn new(
        authentication: &schema::Authentication,
        written: &[schema::Consumer],
        compiled: &[Arc<Consumer>],
    ) -> Self {
        let identity = authentication.mtls.as_ref().map(|mtls| mtls.identity);
        let mut consumers = HashMap::new();
        for (written, consumer) in written.iter().zip(compiled) {
            for identity in written.mtls.iter().flat_map(|mtls| &mtls.identities) {
                consumers.insert(identity.as_str().into(), consumer.clone());
            }
        }
        Self { identity, consumers }
    }

    /// Whether certificates say who calls.
    pub(super) fn count(&self) -> bool {
        self.identity.is_some()
    }

    /// Whom a certificate stands for: the first of its names that is a consumer's.
    pub(super) fn find(&self, certificate: &ClientCertificate) -> Option<(Arc<Consumer>, Credential)> {
        let find = |name: &str| {
            let consumer = self.consumers.get(name)?;
            Some((consumer.clone(), ahash::RandomState::with_seeds(5, 6, 7, 8).hash_one(name)))
        };
        let any = |names: &[Box<str>]| names.iter().find_map(|name| find(name));
        match self.identity? {
            CertificateIdentity::SanUri => any(&certificate.uris),
            CertificateIdentity::SanDns => any(&certificate.dns_names),
            CertificateIdentity::SanEmail => any(&certificate.emails),
            CertificateIdentity::Subject => find(&certificate.subject),
            CertificateIdentity::CommonName => find(certificate.common_name.as_deref()?),
        }
    }
}
