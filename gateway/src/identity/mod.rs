//! Identifies callers: an API key, a token or a client certificate becomes a [`Consumer`]. The room owns the table of
//! key digests and the verified tokens of one snapshot, and the keys that are made at run time. It never keeps, logs or repeats a credential, and never decides
//! what a consumer may do. Inputs are the configuration's `consumers` and `authentication`, and the head and address of
//! a request.

mod api_key;
mod certificate;
mod consumer;
mod failures;
mod issued;
mod jwt;
mod new_key;
mod tenants;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use spillway_config::schema;
use spillway_config::schema::RouteAuthentication;

use api_key::{KeyHash, Keys};
use certificate::Certificates;
pub use consumer::{Consumer, ModelAlias};
use failures::Failures;
pub use issued::{
    IssuedKeys, IssuedKeysError, IssuedTable, KeyCommandError, KeyOrder, KeyState, KeyStoreError, MadeKey, ShownKey,
};
pub use jwt::{Description, IdTokens, IdentityDeps, IssuerError, KeyFileError, TokenError};
use jwt::{TokenVerdict, TokenVerifier};
pub use new_key::{KEY_PREFIX, KeyError, NewKey};
use spillway_filter::{ErrorKind, Fields, Refusal};
use tenants::Tenants;

use crate::credentials::CredentialsError;
use crate::limits::{BudgetRules, Credential, Limits, RateTooHigh, Rules};
use crate::telemetry::BudgetSample;
use crate::tls::{ClientCertificate, TlsError};

/// Longest API key that is examined, bytes; real ones have some fifty to two hundred.
const MAX_KEY_BYTES: usize = 512;

/// `Retry-After` of a key that cannot be verified: the end of a store's outage cannot be foreseen, and a second is the shortest
/// time that the header can express.
const KEYS_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// Content of a verified token.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Scopes of the bearer.
    pub scopes: Vec<String>,
    /// All claims.
    pub claims: Value,
}

/// Identified caller.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Consumer of the caller.
    pub consumer: Arc<Consumer>,
    /// Header with the credential, the first one in the configured order.
    pub header: HeaderName,
    /// Number of the key or token.
    pub credential: Credential,
    /// Content of the token, if the credential is one.
    pub token: Option<Arc<Token>>,
}

/// Proof by which a caller was identified, kept where it must hold for longer than a request: that of a socket.
#[derive(Debug, Clone)]
pub enum CallerProof {
    /// API key of this number.
    Key(Credential),
    /// Client certificate.
    Certificate(Arc<ClientCertificate>),
    /// Token.
    Token(Arc<Token>),
}

/// Reason why a credential is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialError {
    /// No credential was sent.
    Missing,
    /// The credential has an unknown form, or several credentials contradict each other.
    Malformed,
    /// The key belongs to no consumer.
    UnknownKey,
    /// The key may be one that was made at run time, and the store of those does not answer.
    KeysUnavailable,
    /// The client certificate belongs to no consumer.
    UnknownCertificate,
    /// The client certificate of the connection has expired.
    CertificateExpired,
    /// The address has sent too many bad credentials; this one was not examined.
    Throttled,
    /// The token is not accepted.
    Token(TokenError),
}

impl CredentialError {
    /// Reason in the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::KeysUnavailable => "keys_unavailable",
            Self::UnknownCertificate => "unknown_certificate",
            Self::CertificateExpired => "certificate_expired",
            Self::Throttled => "throttled",
            Self::Token(error) => error.as_str(),
        }
    }
}

/// Refused credential, with the answer for the caller and the reason for the audit log.
#[derive(Debug)]
pub struct Unidentified {
    /// Answer for the caller.
    pub refusal: Box<Refusal>,
    /// Reason for the audit log.
    pub reason: CredentialError,
    /// True if the credential was refused unseen, because of earlier ones from its address.
    pub throttled: bool,
}

/// Reason why the identities of a configuration cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Two consumers have the same key.
    #[error(
        "consumers `{first}` and `{second}` have the same key digest: give each a key of its own (`spillway key new`)"
    )]
    SharedKey {
        /// Consumer that is first in the file.
        first: String,
        /// Consumer that repeats the key.
        second: String,
    },
    /// A configured header is no header name.
    #[error("`{0}` in authentication.apiKey.headers is not a header name")]
    HeaderName(String),
    /// The file of a consumer's keys cannot be used.
    #[error("{0}")]
    KeysFile(String),
    /// The file of an issuer's keys cannot be used.
    #[error(transparent)]
    IssuerKeys(#[from] KeyFileError),
    /// The file of authorities for an issuer's server cannot be used.
    #[error(transparent)]
    Authorities(#[from] TlsError),
    /// The credentials of a consumer for a backend cannot be used.
    #[error("{label}, credentials for `{backend}`: {source}")]
    Credentials {
        /// Consumer.
        label: String,
        /// Backend.
        backend: String,
        /// Fault of the credentials.
        source: CredentialsError,
    },
    /// A rate of a consumer, plan or tenant is too high.
    #[error(transparent)]
    Limits(#[from] RateTooHigh),
}

/// Identifies the callers of one snapshot.
#[derive(Debug)]
pub struct Authenticator {
    headers: Vec<HeaderName>,
    /// Keys of the file.
    keys: Keys,
    /// Keys made at run time; `None` where the file has none of those.
    issued: Option<Arc<IssuedTable>>,
    tokens: TokenVerifier,
    certificates: Certificates,
    failures: Failures,
    budgets: BudgetRules,
    /// Consumers of the file, in the order of their names.
    consumers: Box<[Arc<Consumer>]>,
    tenants: Arc<Tenants>,
    /// True if a consumer has names of its own for models.
    has_aliases: bool,
}

/// Credential in the head of a request.
struct Presented<'h> {
    header: &'h HeaderName,
    credential: &'h [u8],
}

impl Authenticator {
    /// Compiles consumers, tenants, the headers that hold keys, and the issuers of tokens. Bad credentials that
    /// `previous` has counted stay counted.
    pub fn new(
        authentication: &schema::Authentication,
        consumers: &[schema::Consumer],
        tenants: &[schema::Tenant],
        previous: Option<&Self>,
        deps: IdentityDeps<'_>,
    ) -> Result<Self, IdentityError> {
        let mut headers: Vec<HeaderName> = Vec::new();
        for written in &authentication.api_key.headers {
            let name =
                HeaderName::from_bytes(written.as_bytes()).map_err(|_| IdentityError::HeaderName(written.clone()))?;
            if !headers.contains(&name) {
                headers.push(name);
            }
        }
        let tenants = Arc::new(Tenants::new(tenants, deps)?);
        let mut keys = Keys::default();
        let mut compiled = Vec::with_capacity(consumers.len());
        for written in consumers {
            let consumer = Arc::new(Consumer::new(written, &tenants, deps)?);
            keys.add(&consumer, &written.keys)?;
            if let Some(file) = &written.keys_file {
                keys.add(&consumer, &spillway_config::read_keys(file).map_err(IdentityError::KeysFile)?)?;
            }
            compiled.push(consumer);
        }
        let tokens = TokenVerifier::new(authentication, consumers, &compiled, &tenants, deps)?;
        let certificates = Certificates::new(authentication, consumers, &compiled);
        let failures = Failures::new(&authentication.failures, previous.map(|p| &p.failures), deps.metrics);
        let budgets = BudgetRules::of(compiled.iter().flat_map(|consumer| &consumer.rules).chain(tenants.all()));
        let has_aliases = consumers.iter().any(|consumer| !consumer.model_alias.is_empty());
        compiled.sort_by(|a, b| a.name.cmp(&b.name));
        let (issued, consumers) = (None, compiled.into());
        Ok(Self { headers, keys, issued, consumers, tokens, certificates, failures, budgets, tenants, has_aliases })
    }

    /// Accepts keys that are made at run time as well. `facts`: a route of the snapshot spills; models have prices.
    #[must_use]
    pub fn with_issued(
        mut self,
        issued: &IssuedKeys,
        settings: &schema::KeysByApi,
        limits: &Limits,
        facts: (bool, bool),
    ) -> Self {
        self.issued = Some(issued.table(&self.consumers, limits, settings, facts));
        self
    }

    /// Keys made at run time; `None` where the file has none of those.
    pub fn issued(&self) -> Option<&Arc<IssuedTable>> {
        self.issued.as_ref()
    }

    /// Finds the consumer of a key, of the file or made at run time.
    fn find_key(&self, key: &[u8], now: u64) -> Option<(Arc<Consumer>, Credential)> {
        let digest = api_key::hash(key);
        self.keys.find(&digest, now).or_else(|| self.issued.as_ref()?.find(&digest, now))
    }

    /// True for a key that may be one made at run time, while the store of those does not answer.
    fn may_be_issued(&self, key: &[u8]) -> bool {
        key.starts_with(KEY_PREFIX.as_bytes()) && self.issued.as_ref().is_some_and(|issued| issued.is_stale())
    }

    fn holds_key(&self, digest: &KeyHash) -> bool {
        self.keys.holds(digest) || self.issued.as_ref().is_some_and(|issued| issued.holds(digest))
    }

    /// Consumers of the file, in the order of their names.
    pub fn consumers(&self) -> impl Iterator<Item = &Consumer> {
        self.consumers.iter().map(|consumer| &**consumer)
    }

    /// Names of the tenants of the file, in order.
    pub fn tenants(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tenants.names().collect();
        names.sort_unstable();
        names
    }

    /// Rules that the consumers of a tenant share.
    pub fn rules_of_tenant(&self, name: &str) -> Rules {
        self.tenants.rules(name).collect()
    }

    /// First header in which a key is looked for.
    pub fn key_header(&self) -> &HeaderName {
        self.headers.first().unwrap_or(&http::header::AUTHORIZATION)
    }

    /// True if a consumer has names of its own for models.
    pub fn has_aliases(&self) -> bool {
        self.has_aliases
    }

    /// Reads what is spent of the budgets that the file names; those of consumers made from claims are unbounded in
    /// number.
    pub fn budgets(&self) -> Vec<BudgetSample> {
        self.budgets.samples()
    }

    /// Identifies the caller. `None` is an anonymous one, if `mode` allows that; an unknown credential is refused even
    /// if none is required. The call waits, for a bounded time, only if a token names a key that its issuer has to be
    /// asked for.
    pub async fn identify(
        &self,
        headers: &Fields,
        address: IpAddr,
        now: u64,
        mode: RouteAuthentication,
    ) -> Result<Option<Identity>, Unidentified> {
        if mode == RouteAuthentication::None {
            return Ok(None);
        }
        let presented = self.presented(headers);
        let Some(Presented { header, credential }) =
            presented.map_err(|r| self.refused(address, r, CredentialError::Malformed))?
        else {
            return match mode {
                RouteAuthentication::Required => Err(self.refused(address, self.missing(), CredentialError::Missing)),
                RouteAuthentication::Optional | RouteAuthentication::None => Ok(None),
            };
        };
        if self.tokens.is_token(credential) {
            let bearer = self.bearer(credential, address, now).await?;
            return Ok(Some(Identity {
                consumer: bearer.consumer,
                header: header.clone(),
                credential: bearer.credential,
                token: Some(bearer.token),
            }));
        }
        match self.find_key(credential, now) {
            Some((consumer, credential)) => {
                Ok(Some(Identity { consumer, header: header.clone(), credential, token: None }))
            }
            None if self.may_be_issued(credential) => Err(unverified()),
            None => {
                let refusal = unauthenticated("The API key is not known here. Check that the whole key was sent.");
                Err(self.refused(address, refusal, CredentialError::UnknownKey))
            }
        }
    }

    /// Unix seconds from which on the proof identifies the consumer no longer: 0 where it does not at all, `None` where no
    /// end is known. The times of a certificate are those of its connection, and those of a token are judged when it is shown.
    pub fn ends(&self, proof: &CallerProof, consumer: &str) -> Option<u64> {
        let is_known = match proof {
            CallerProof::Key(key) => {
                let ends = self.keys.ends(*key, consumer);
                let issued = self.issued.as_ref().filter(|_| ends == Some(0));
                return issued.map_or(ends, |issued| issued.ends(*key, consumer));
            }
            CallerProof::Certificate(certificate) => {
                self.certificates.find(certificate).is_some_and(|(known, _)| *known.name == *consumer)
            }
            CallerProof::Token(token) => self.tokens.names(&token.claims, consumer),
        };
        (!is_known).then_some(0)
    }

    /// The consumer that a proof of before still identifies at `now` (Unix seconds). The times of a certificate and of a token are
    /// those of the request that showed it, and are not judged again.
    pub fn holder(&self, proof: &CallerProof, consumer: &str, now: u64) -> Option<Arc<Consumer>> {
        match proof {
            CallerProof::Key(key) => {
                self.keys.holder(*key, consumer, now).or_else(|| self.issued.as_ref()?.holder(*key, consumer, now))
            }
            CallerProof::Certificate(certificate) => {
                self.certificates.find(certificate).map(|(known, _)| known).filter(|known| *known.name == *consumer)
            }
            CallerProof::Token(token) => self.tokens.holder(&token.claims, consumer),
        }
    }

    /// Identifies the caller by the certificate of its connection. `None` without `authentication.mtls`, or if the
    /// request has a key or token, which goes before.
    pub fn identify_by_certificate(
        &self,
        headers: &Fields,
        address: IpAddr,
        certificate: &ClientCertificate,
    ) -> Option<Result<(Arc<Consumer>, Credential), Unidentified>> {
        if !self.certificates.is_enabled() || self.headers.iter().any(|name| headers.contains_key(name)) {
            return None;
        }
        Some(self.certificates.find(certificate).ok_or_else(|| {
            let refusal = Refusal::new(
                StatusCode::UNAUTHORIZED,
                ErrorKind::Authentication,
                "invalid_certificate",
                "The client certificate of this connection matches no consumer.",
            );
            self.refused(address, refusal, CredentialError::UnknownCertificate)
        }))
    }

    /// Identifies the bearer of a token.
    async fn bearer(&self, token: &[u8], address: IpAddr, now: u64) -> Result<jwt::Bearer, Unidentified> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(bearer) = self.tokens.remembered(&digest, now) {
            return Ok(bearer);
        }
        // A signature costs a hundred times what a key does: none is checked for an address with many bad credentials.
        if let Some(wait) = self.failures.wait(address) {
            return Err(throttled(wait));
        }
        let mut verdict = self.tokens.judge(token, &digest, now);
        if let TokenVerdict::UnknownKey(keys) = &verdict {
            keys.refresh().await;
            verdict = self.tokens.judge(token, &digest, now);
        }
        let (reason, is_guess) = match verdict {
            TokenVerdict::Accepted(bearer) => return Ok(bearer),
            TokenVerdict::Refused(why) => (why, true),
            // The issuer could never be asked: the token may be good, so it counts as no guess.
            TokenVerdict::UnknownKey(keys) => (TokenError::Key, keys.is_known()),
        };
        let refusal = Refusal::new(
            StatusCode::UNAUTHORIZED,
            ErrorKind::Authentication,
            "invalid_token",
            "The token is not accepted here: it has expired, is for another service, or comes from an unknown issuer.",
        );
        if is_guess {
            return Err(self.refused(address, refusal, CredentialError::Token(reason)));
        }
        Err(Unidentified { refusal: Box::new(refusal), reason: CredentialError::Token(reason), throttled: false })
    }

    /// Counts a refused credential against its address.
    fn refused(&self, address: IpAddr, refusal: Refusal, reason: CredentialError) -> Unidentified {
        // A request without a credential guesses nothing.
        if reason != CredentialError::Missing {
            if let Some(wait) = self.failures.wait(address) {
                return throttled(wait);
            }
            self.failures.note(address);
        }
        Unidentified { refusal: Box::new(refusal), reason, throttled: false }
    }

    /// Counts a bad key against its address if a request is refused before the caller is identified: guesses count
    /// whichever step refuses them. Tokens are left out, because only a signature shows that one is bad.
    pub fn note_guess(&self, headers: &Fields, address: IpAddr, now: u64) {
        let is_bad = match self.presented(headers) {
            Ok(None) => false,
            Ok(Some(shown)) => {
                !self.tokens.is_token(shown.credential)
                    && self.find_key(shown.credential, now).is_none()
                    && !self.may_be_issued(shown.credential)
            }
            Err(_) => true,
        };
        if is_bad && self.failures.wait(address).is_none() {
            self.failures.note(address);
        }
    }

    /// True if a header value holds a key of the configuration, expired or not, or a token that is addressed to this
    /// gateway. The credential may be the whole value, follow a scheme, or be one half of `Basic` (RFC 7617).
    pub fn holds_credential(&self, value: &[u8]) -> bool {
        let is_ours = |text: &[u8]| {
            !text.is_empty()
                && if self.tokens.is_token(text) {
                    self.tokens.is_addressed_here(text)
                } else {
                    text.len() <= MAX_KEY_BYTES && self.holds_key(&api_key::hash(text))
                }
        };
        let value = value.trim_ascii();
        if is_ours(value) {
            return true;
        }
        let Some((scheme, rest)) = value.iter().position(|b| *b == b' ').and_then(|end| value.split_at_checked(end))
        else {
            return false;
        };
        let rest = rest.trim_ascii();
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return is_ours(rest);
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest).unwrap_or_default();
        decoded.splitn(2, |b| *b == b':').any(is_ours)
    }

    /// Finds the only credential of a request, with the first header that holds it.
    fn presented<'h>(&'h self, headers: &'h Fields) -> Result<Option<Presented<'h>>, Refusal> {
        let mut found: Option<Presented<'h>> = None;
        for name in &self.headers {
            for value in headers.get_all(name) {
                let credential = if *name == http::header::AUTHORIZATION {
                    bearer(value.as_bytes())?
                } else {
                    value.as_bytes().trim_ascii()
                };
                let most = if self.tokens.is_token(credential) { jwt::MAX_TOKEN_BYTES } else { MAX_KEY_BYTES };
                check_form(credential, name, most)?;
                match &found {
                    None => found = Some(Presented { header: name, credential }),
                    // Not in constant time: both sides come from the caller.
                    Some(first) if first.credential == credential => {}
                    Some(_) => {
                        return Err(unauthenticated(
                            "The request shows several different credentials. Send one, in one header.",
                        ));
                    }
                }
            }
        }
        Ok(found)
    }

    fn missing(&self) -> Refusal {
        let message = match self.headers.first() {
            Some(name) if *name == http::header::AUTHORIZATION => {
                "No API key was sent. Send it as `Authorization: Bearer KEY`.".to_owned()
            }
            Some(name) => format!("No API key was sent. Send it in the header `{name}`."),
            None => "This route asks for a known caller, and no header is configured to hold an API key.".to_owned(),
        };
        unauthenticated(message)
    }
}

/// Credential in a header that identified a caller.
pub fn credential_in<'v>(header: &HeaderName, value: &'v HeaderValue) -> &'v [u8] {
    if *header == http::header::AUTHORIZATION {
        bearer(value.as_bytes()).unwrap_or_default()
    } else {
        value.as_bytes().trim_ascii()
    }
}

/// Token of `Bearer TOKEN`; the scheme is case-insensitive (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Result<&[u8], Refusal> {
    let value = value.trim_ascii();
    let (scheme, token) = match value.iter().position(|byte| *byte == b' ') {
        Some(end) => value.split_at_checked(end).unwrap_or((value, b"")),
        None => (value, &b""[..]),
    };
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Ok(token.trim_ascii())
    } else {
        Err(unauthenticated("The `Authorization` header must have the form `Bearer KEY`."))
    }
}

/// Refuses text that cannot be a credential before it is hashed.
fn check_form(key: &[u8], header: &HeaderName, most: usize) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(unauthenticated(format!("The header `{header}` holds no API key.")));
    }
    if key.len() > most {
        return Err(unauthenticated(format!("The credential in `{header}` is longer than {most} bytes.")));
    }
    if !key.iter().all(u8::is_ascii_graphic) {
        return Err(unauthenticated(format!(
            "The header `{header}` must hold one API key: visible ASCII characters without spaces."
        )));
    }
    Ok(())
}

fn unauthenticated(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, "invalid_api_key", message)
}

/// Refusal of a key that cannot be told from a bad one now; it counts as no guess.
fn unverified() -> Unidentified {
    let refusal = Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Overloaded,
        "keys_unavailable",
        "The API key cannot be verified at the moment.",
    );
    let reason = CredentialError::KeysUnavailable;
    Unidentified { refusal: Box::new(refusal.retry_after(KEYS_WAIT)), reason, throttled: false }
}

fn throttled(wait: std::time::Duration) -> Unidentified {
    let refusal = Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::RateLimited,
        "too_many_failures",
        "Too many bad credentials came from this address.",
    );
    Unidentified { refusal: Box::new(refusal.retry_after(wait)), reason: CredentialError::Throttled, throttled: true }
}
