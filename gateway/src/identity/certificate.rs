//! Identifies callers by the client certificate of their connection, which the listener has verified.

use std::collections::HashMap;
use std::sync::Arc;

use spillway_config::schema::{self, CertificateIdentity};

use super::Consumer;
use crate::limits::Credential;
use crate::tls::ClientCertificate;

/// Consumers by the name in their certificates.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// Field of a certificate that identifies its consumer; `None` without `authentication.mtls`.
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

    /// True if certificates identify callers.
    pub(super) fn is_enabled(&self) -> bool {
        self.identity.is_some()
    }

    /// Finds the consumer of a certificate: that of the first name that belongs to one.
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
