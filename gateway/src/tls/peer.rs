//! Names in a client certificate. Rustls has verified the certificate before this module reads it.

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Most alternative names of one kind that are read; real certificates have a few.
const MAX_NAMES: usize = 64;

/// Names and end of a verified client certificate.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCertificate {
    /// Subject in the form of RFC 4514, such as `CN=billing, O=Example`.
    pub subject: Box<str>,
    /// Common name of the subject.
    pub common_name: Option<Box<str>>,
    /// Alternative names: URIs, such as SPIFFE ids.
    pub uris: Vec<Box<str>>,
    /// Alternative names: hosts.
    pub dns_names: Vec<Box<str>>,
    /// Alternative names: mail addresses.
    pub emails: Vec<Box<str>>,
    /// Last second of validity, Unix time.
    pub not_after: i64,
}

impl ClientCertificate {
    /// True if the certificate has expired at `now`, Unix seconds.
    pub fn has_ended(&self, now: u64) -> bool {
        i64::try_from(now).is_ok_and(|now| now > self.not_after)
    }

    /// Reads a verified certificate; `None` if it cannot be parsed all the same.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate.as_ref()).ok()?;
        let mut of = Self {
            subject: parsed.subject().to_string().into(),
            common_name: parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(Into::into),
            not_after: parsed.validity().not_after.timestamp(),
            ..Self::default()
        };
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        for name in alternatives.iter().flat_map(|names| &names.value.general_names) {
            let (list, name) = match name {
                GeneralName::URI(name) => (&mut of.uris, name),
                GeneralName::DNSName(name) => (&mut of.dns_names, name),
                GeneralName::RFC822Name(name) => (&mut of.emails, name),
                _ => continue,
            };
            if list.len() < MAX_NAMES {
                list.push((*name).into());
            }
        }
        Some(of)
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn a_certificate_says_who_the_client_is() {
        let made = Authority::new().client("billing", "spiffe://example/billing");
        let der = CertificateDer::from_pem_slice(made.cert.as_bytes()).unwrap();
        let of = ClientCertificate::of(&der).unwrap();
        assert_eq!(of.common_name.as_deref(), Some("billing"));
        assert!(of.subject.contains("CN=billing"), "{}", of.subject);
        assert_eq!(of.uris, [Box::<str>::from("spiffe://example/billing")]);
        assert_eq!(of.dns_names, [Box::<str>::from("client.test")]);
        assert_eq!(of.emails, [Box::<str>::from("ops@client.test")]);
        let last = u64::try_from(of.not_after).unwrap();
        assert!(!of.has_ended(crate::clock::unix_now()) && !of.has_ended(last) && of.has_ended(last + 1));
        assert_eq!(ClientCertificate::of(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
