//! `consumers` and `authentication`: who may call and how they show it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConsumerLimits;
use crate::values::{Date, Duration, KeyDigest, Secret};

/// Somebody who may call.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Consumer {
    /// Name in logs, metrics and limits.
    pub name: String,
    /// Whom the consumer belongs to; its own name when left out.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Rank among those who wait in a queue: a higher one is served before all lower ones.
    #[serde(default)]
    pub priority: i32,
    /// Its API keys; all share the consumer's limits.
    #[serde(default)]
    pub keys: Vec<ConsumerKey>,
    /// A file with further digests of keys, one a line, as `spillway key new` prints them; after a digest may stand the
    /// day on which the key ends. Lines that begin with # are comments. Read again when it changes.
    #[serde(default)]
    pub keys_file: Option<PathBuf>,
    /// The token that stands for it, beside its keys.
    #[serde(default)]
    pub jwt: Option<ConsumerToken>,
    /// The certificates that stand for it, beside its keys.
    #[serde(default)]
    pub mtls: Option<ConsumerCertificates>,
    /// Models that it may name, on every route; `*` stands for any characters. All when left out. With it, the bodies of its
    /// requests are held and read on routes that pass bodies on otherwise, too.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// What it may use.
    #[serde(default)]
    pub limits: ConsumerLimits,
    /// Credentials for backends that replace the backend's own for this consumer's requests, by the backend's name.
    #[serde(default)]
    pub credentials: BTreeMap<String, super::Credentials>,
}

/// A tenant: what all consumers that belong to it may use together, beside what each of them may.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tenant {
    /// Its name, as `consumers[].tenant` or the claim that `claims.tenant` names has it.
    pub name: String,
    /// What its consumers may use together.
    pub limits: ConsumerLimits,
}

/// An API key, stored as its digest.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumerKey {
    /// SHA-256 of the key; `spillway key new` prints a key and its digest.
    pub sha256: KeyDigest,
    /// The day, in UTC, at whose beginning the key ends.
    #[serde(default)]
    pub expires: Option<Date>,
}

/// Which tokens stand for a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumerToken {
    /// One of `authentication.jwt`.
    pub issuer: String,
    /// The token's `sub`.
    pub subject: String,
}

/// Which certificates stand for a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumerCertificates {
    /// What they say of who they are, exactly; `authentication.mtls.identity` says where it stands.
    pub identities: Vec<String>,
}

/// Who calls, by the certificate that a client shows to a listener with `tls.clientCertificates`. A key or token that is
/// sent beside it goes before.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mtls {
    /// What of the certificate says who calls.
    pub identity: CertificateIdentity,
}

/// What of a certificate says who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateIdentity {
    /// An alternative name that is a URI, such as a SPIFFE id.
    SanUri,
    /// An alternative name that is a host.
    SanDns,
    /// An alternative name that is a mail address.
    SanEmail,
    /// The whole subject, such as `CN=billing, O=Example`.
    Subject,
    /// The common name of the subject.
    CommonName,
}

/// How callers show who they are.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    /// API keys in headers.
    pub api_key: ApiKeyHeaders,
    /// Issuers of tokens that are accepted as `Authorization: Bearer TOKEN`.
    pub jwt: Vec<JwtIssuer>,
    /// Certificates of clients; they say nothing of who calls when left out.
    pub mtls: Option<Mtls>,
    /// Headers that tell backends who calls. A caller's own are removed on every route.
    pub identity_headers: IdentityHeaders,
    /// What bad credentials cost their sender.
    pub failures: FailureLimit,
    /// Verified tokens that are remembered until they end, at most.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub token_cache: Option<u32>,
}

/// The headers that may hold an API key; `authorization` holds it as `Bearer KEY`. A key in the query is not accepted.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ApiKeyHeaders {
    /// Header names, tried in this order.
    pub headers: Vec<String>,
}

impl Default for ApiKeyHeaders {
    fn default() -> Self {
        Self { headers: ["authorization", "x-api-key", "api-key"].map(str::to_owned).to_vec() }
    }
}

/// Headers that tell backends who calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IdentityHeaders {
    /// Holds the consumer's name, such as `x-spillway-consumer`; not sent when left out.
    pub consumer: Option<String>,
    /// Holds the tenant; not sent when left out.
    pub tenant: Option<String>,
}

/// Bad credentials from one address (of IPv6 the first 64 bits): when there were too many, further requests with
/// credentials that are not known by heart are refused with 429 before they are looked at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FailureLimit {
    /// How many in how long.
    pub rate: crate::values::Rate,
    /// Addresses that are remembered, at most.
    #[schemars(range(min = 16, max = 1_000_000))]
    pub max_addresses: u32,
}

impl Default for FailureLimit {
    fn default() -> Self {
        let period = std::time::Duration::from_secs(60);
        let count = std::num::NonZeroU32::MIN.saturating_add(59);
        Self { rate: crate::values::Rate { count, period }, max_addresses: 65_536 }
    }
}

/// An issuer of tokens.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtIssuer {
    /// The token's `iss`, exactly.
    pub issuer: String,
    /// One of these must be in the token's `aud`.
    pub audiences: Vec<String>,
    /// Where its keys are; found through `ISSUER/.well-known/openid-configuration` when left out.
    #[serde(default)]
    pub jwks: Option<Jwks>,
    /// Authorities that its servers are believed by; those of the system when left out.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Signatures that are accepted.
    #[serde(default = "all_algorithms")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// How far clocks may differ.
    #[serde(default = "leeway")]
    pub leeway: Duration,
    /// What tokens say of a caller that is no consumer of the file. Without it only consumers with `jwt` may call.
    #[serde(default)]
    pub claims: Option<Claims>,
    /// What each consumer that is made from claims may use.
    #[serde(default)]
    pub limits: ConsumerLimits,
    /// The same by the value of the claim that `claims.plan` names.
    #[serde(default)]
    pub plans: BTreeMap<String, ConsumerLimits>,
}

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Jwks {
    /// A JSON Web Key Set, fetched and kept; an issuer that is down changes nothing.
    pub url: Option<String>,
    /// The same in a file, read again when it changes.
    pub file: Option<PathBuf>,
    /// How often it is fetched; an unknown key id asks for it at once, but not more than every ten seconds.
    pub refresh: Duration,
}

impl Default for Jwks {
    fn default() -> Self {
        Self { url: None, file: None, refresh: Duration::seconds(600) }
    }
}

fn leeway() -> Duration {
    Duration::seconds(30)
}

fn all_algorithms() -> Vec<JwtAlgorithm> {
    use JwtAlgorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
    vec![Rs256, Rs384, Rs512, Ps256, Ps384, Ps512, Es256, Es384, EdDsa]
}

/// A signature by a public key. Shared secrets (HS256) and `none` are never accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum JwtAlgorithm {
    /// RSA, PKCS 1 v1.5.
    #[serde(rename = "RS256")]
    Rs256,
    /// RSA, PKCS 1 v1.5.
    #[serde(rename = "RS384")]
    Rs384,
    /// RSA, PKCS 1 v1.5.
    #[serde(rename = "RS512")]
    Rs512,
    /// RSA, PSS.
    #[serde(rename = "PS256")]
    Ps256,
    /// RSA, PSS.
    #[serde(rename = "PS384")]
    Ps384,
    /// RSA, PSS.
    #[serde(rename = "PS512")]
    Ps512,
    /// ECDSA on P-256.
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA on P-384.
    #[serde(rename = "ES384")]
    Es384,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// Which claims say who calls: names of claims, with dots for claims inside claims.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claims {
    /// The consumer's name, such as `sub`. A token that names a consumer of the file is refused: that one says itself
    /// which tokens stand for it.
    pub consumer: String,
    /// The tenant; the consumer's name when left out.
    #[serde(default)]
    pub tenant: Option<String>,
    /// One of `plans`.
    #[serde(default)]
    pub plan: Option<String>,
}

/// The secrets of all consumers.
pub(crate) fn secrets(consumers: &mut [Consumer]) -> impl Iterator<Item = &mut Secret> {
    consumers
        .iter_mut()
        .flat_map(|consumer| consumer.credentials.values_mut())
        .map(|credentials| &mut credentials.bearer)
}
