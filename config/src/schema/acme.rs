//! `listeners[].tls.acme`: a certificate that an authority issues automatically (ACME, RFC 8555).

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, FilePath, Secret, StatePath};

/// Certificate that is ordered from an authority, stored, and renewed before it ends. The listener serves its other
/// names until the certificate arrives. To name a directory is to agree to the terms of service of its authority.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Acme {
    /// Directory URL of the authority, with `https`; that of Let's Encrypt when left out.
    #[serde(default = "lets_encrypt")]
    pub directory: String,
    /// DNS names of the certificate.
    pub domains: Vec<String>,
    /// Mail address to which the authority writes.
    #[serde(default)]
    pub email: Option<String>,
    /// Proof that the names lead to this gateway.
    #[serde(default)]
    pub challenge: AcmeChallenge,
    /// Folder of the account's key and of the certificates with their keys; created when it does not exist. Only the
    /// gateway's user may read its files.
    #[serde(default = "storage")]
    pub storage: StatePath,
    /// Authorities that are trusted for the directory's own server, in PEM; those of the system when left out.
    #[serde(default)]
    pub ca_file: Option<FilePath>,
    /// How long before its end the certificate is renewed, and up to a tenth more; a third of its time when left out. At
    /// most two thirds of its time.
    #[serde(default)]
    pub renew_before: Option<Duration>,
    /// Customer's account at the authority, where it requires one (external account binding).
    #[serde(default)]
    pub external_account: Option<ExternalAccount>,
    /// Pauses after an order that failed.
    #[serde(default)]
    pub retry: AcmeRetry,
}

fn lets_encrypt() -> String {
    "https://acme-v02.api.letsencrypt.org/directory".to_owned()
}

fn storage() -> StatePath {
    PathBuf::from("state/acme").into()
}

/// Proof that a name leads to this gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AcmeChallenge {
    /// TLS connection of the authority to port 443 of the name (RFC 8737), which must lead to this listener.
    #[default]
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// Request of the authority to port 80 of the name for a text (RFC 8555, 8.3); a listener with `protocol: http`
    /// answers before any route.
    #[serde(rename = "http-01")]
    Http01,
}

/// Customer's account at an authority that requires one.
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
    /// First pause, and shortest time between two orders.
    pub base: Duration,
    /// Longest pause.
    pub max: Duration,
}

impl Default for AcmeRetry {
    fn default() -> Self {
        // Let's Encrypt allows five failed validations of a name in an hour.
        Self { base: Duration::seconds(300), max: Duration::seconds(6 * 3600) }
    }
}
