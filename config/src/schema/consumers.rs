//! `consumers` and `authentication`: callers, and the credentials that identify them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConsumerLimits;
use crate::values::{Date, Duration, FilePath, KeyDigest};

/// Identity that may call.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Consumer {
    /// Name in logs, metrics and limits.
    pub name: String,
    /// Tenant that the consumer belongs to; its own name when left out.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Rank in a queue: waiters of a higher rank are served before all lower ones.
    #[serde(default)]
    pub priority: i32,
    /// API keys; all share the consumer's limits.
    #[serde(default)]
    pub keys: Vec<ConsumerKey>,
    /// File with further digests of keys, one a line, as `spillway key new` prints them. The day on which a key ends
    /// may follow its digest. Lines that begin with # are comments. Read again when it changes.
    #[serde(default)]
    pub keys_file: Option<FilePath>,
    /// Token that identifies the consumer, beside its keys.
    #[serde(default)]
    pub jwt: Option<ConsumerToken>,
    /// Certificates that identify the consumer, beside its keys.
    #[serde(default)]
    pub mtls: Option<ConsumerCertificates>,
    /// Models that the consumer may name, on every route; `*` stands for any characters. All when left out. With it,
    /// the bodies of its requests are held and read on routes that pass bodies on otherwise, too.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// Names of the consumer's own for models, on every route: the name that it sends, and the name of the model. The alias
    /// goes before a model of the same name, and before the `modelAlias` of a route, which may then name a built-in model by
    /// it. With `models`, both names must be in that list.
    #[serde(default)]
    pub model_alias: BTreeMap<String, String>,
    /// False where no text of its requests may be kept as an example (`routes[].quality.keepExamples`), nor in traces
    /// (`telemetry.tracing.captureContent`).
    #[serde(default = "yes")]
    pub keep_examples: bool,
    /// Limits of the consumer.
    #[serde(default)]
    pub limits: ConsumerLimits,
    /// Credentials for backends that replace the backend's own for this consumer's requests, by the backend's name.
    #[serde(default)]
    pub credentials: BTreeMap<String, super::Credentials>,
}

fn yes() -> bool {
    true
}

/// Tenant: limits of all consumers that belong to it together, beside those of each consumer.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tenant {
    /// Name, as in `consumers[].tenant` or in the claim that `claims.tenant` names.
    pub name: String,
    /// Limits of its consumers together.
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

/// Token that identifies a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumerToken {
    /// Issuer, one of `authentication.jwt`.
    pub issuer: String,
    /// The token's `sub`.
    pub subject: String,
}

/// Certificates that identify a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumerCertificates {
    /// Identities of its certificates, exactly; `authentication.mtls.identity` names the part that holds them.
    pub identities: Vec<String>,
}

/// Identification by the certificate that a client presents to a listener with `tls.clientCertificates`. A key or token
/// in the request takes precedence.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mtls {
    /// Part of the certificate that identifies the caller.
    pub identity: CertificateIdentity,
}

/// Part of a certificate that identifies the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateIdentity {
    /// Alternative name that is a URI, such as a SPIFFE id.
    SanUri,
    /// Alternative name that is a host.
    SanDns,
    /// Alternative name that is a mail address.
    SanEmail,
    /// The whole subject, such as `CN=billing, O=Example`.
    Subject,
    /// The common name of the subject.
    CommonName,
}

/// Credentials that identify callers.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    /// API keys in headers.
    pub api_key: ApiKeyHeaders,
    /// Issuers of tokens that are accepted as `Authorization: Bearer TOKEN`.
    pub jwt: Vec<JwtIssuer>,
    /// Certificates of clients; they identify no caller when left out.
    pub mtls: Option<Mtls>,
    /// Headers that name the consumer to backends. A caller's own are removed on every route.
    pub identity_headers: IdentityHeaders,
    /// Limit on bad credentials from one address.
    pub failures: FailureLimit,
    /// Verified tokens that are remembered until they end, at most.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub token_cache: Option<u32>,
}

/// Headers that may hold an API key; `authorization` holds it as `Bearer KEY`. A key in the query is not accepted.
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

/// Headers that name the consumer to backends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IdentityHeaders {
    /// Holds the consumer's name, such as `x-spillway-consumer`; not sent when left out.
    pub consumer: Option<String>,
    /// Holds the tenant; not sent when left out.
    pub tenant: Option<String>,
}

/// Limit on bad credentials from one address (of IPv6 the first 64 bits). Beyond it, requests with credentials that
/// were not verified before are refused with 429, unread.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FailureLimit {
    /// Bad credentials in a period.
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
    /// Audiences of which the token's `aud` must have one.
    pub audiences: Vec<String>,
    /// Source of its keys; found through `ISSUER/.well-known/openid-configuration` when left out.
    #[serde(default)]
    pub jwks: Option<Jwks>,
    /// Authorities that are trusted for its servers, in PEM; those of the system when left out.
    #[serde(default)]
    pub ca_file: Option<FilePath>,
    /// Algorithms of signatures that are accepted.
    #[serde(default = "all_algorithms")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// Largest difference between clocks.
    #[serde(default = "leeway")]
    pub leeway: Duration,
    /// Claims that identify callers which are no consumer of the file. Without it only consumers with `jwt` may call.
    #[serde(default)]
    pub claims: Option<Claims>,
    /// Limits of each consumer that is made from claims.
    #[serde(default)]
    pub limits: ConsumerLimits,
    /// Limits by the value of the claim that `claims.plan` names.
    #[serde(default)]
    pub plans: BTreeMap<String, ConsumerLimits>,
}

/// Source of an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Jwks {
    /// URL of a JSON Web Key Set, fetched and kept; the keys stay valid while the issuer is down.
    pub url: Option<String>,
    /// File with a JSON Web Key Set, read again when it changes.
    pub file: Option<FilePath>,
    /// Time between two fetches; an unknown key id causes one at once, but not more than every ten seconds.
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

/// Names of the claims that identify a caller, with dots for claims inside claims.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claims {
    /// Claim with the consumer's name, such as `sub`. A token that names a consumer of the file is refused, because
    /// the consumer's own `jwt` says which tokens identify it.
    pub consumer: String,
    /// Claim with the tenant; the consumer's name when left out.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Claim with the name of one of `plans`.
    #[serde(default)]
    pub plan: Option<String>,
}
