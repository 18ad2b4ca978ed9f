//! `listeners[].tls.acme`: a certificate that an authority issues without anybody's hand (ACME, RFC 8555).

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Secret};

/// A certificate that is asked for at an authority, stored, and renewed before it ends. The listener serves its other
/// names until the certificate is there. To name a directory is to agree to the terms of service of its authority.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Acme {
    /// Where the authority says what it offers, an `https` URL; that of Let's Encrypt when left out.
    #[serde(default = "lets_encrypt")]
    pub directory: String,
    /// The names that the certificate is for, all in one.
    pub domains: Vec<String>,
    /// Whom the authority writes to.
    #[serde(default)]
    pub email: Option<String>,
    /// How the authority sees that the names lead to this gateway.
    #[serde(default)]
    pub challenge: AcmeChallenge,
    /// The folder of the account's key and of the certificates with theirs; made when it is not there. Its files are for
    /// the gateway's user alone.
    #[serde(default = "storage")]
    pub storage: PathBuf,
    /// Authorities that the directory's own server is believed by; those of the system when left out.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// How long before its end the certificate is renewed, and up to a tenth more; a third of its time when left out. At
    /// most two thirds of its time.
    #[serde(default)]
    pub renew_before: Option<Duration>,
    /// The customer's account that the authority wants to know of (external account binding).
    #[serde(default)]
    pub external_account: Option<ExternalAccount>,
    /// Pauses after an order that failed.
    #[serde(default)]
    pub retry: AcmeRetry,
}

fn lets_encrypt() -> String {
    "https://acme-v02.api.letsencrypt.org/directory".to_owned()
}

fn storage() -> PathBuf {
    PathBuf::from("state/acme")
}

/// How the authority sees that a name leads to this gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AcmeChallenge {
    /// It opens a TLS connection to port 443 of the name (RFC 8737), which must lead to this listener.
    #[default]
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// It asks port 80 of the name for a text (RFC 8555, 8.3); a listener with `protocol: http` answers before any route.
    #[serde(rename = "http-01")]
    Http01,
}

/// The customer's account at an authority that wants to know it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalAccount {
    /// The name of the key.
    pub key_id: String,
    /// The key, in base64url as authorities give it.
    pub hmac_key: Secret,
}

/// Pauses after an order that failed: twice as long after each, with a random part. After a refusal for too many orders,
/// an hour at least.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AcmeRetry {
    /// The first one, and the shortest time between two orders.
    pub base: Duration,
    /// The longest one.
    pub max: Duration,
}

impl Default for AcmeRetry {
    fn default() -> Self {
        // Let's Encrypt allows five failed validations of a name in an hour.
        Self { base: Duration::seconds(300), max: Duration::seconds(6 * 3600) }
    }
}
