//! Who calls: an API key or a token becomes a [`Consumer`]. It owns the table of key digests and the verified tokens of one
//! snapshot. It never keeps, logs or repeats a credential, and never decides what a consumer may do.
//! Its inputs are the configuration's `consumers` and `authentication`, the header of one request and its address.

mod api_key;
mod certificate;
mod consumer;
mod failures;
mod jwt;
mod new_key;
mod tenants;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use spillway_config::schema;
use spillway_config::schema::RouteAuthentication;
use spillway_filter::{ErrorKind, Refusal};

use api_key::Keys;
use certificate::Certificates;
pub use consumer::Consumer;
use failures::Failures;
use jwt::{Judged, Tokens};
pub use jwt::{Parts, TokenError};
pub use new_key::{KeyError, NewKey};
use tenants::Tenants;

use crate::limits::{BudgetRules, Credential};
use crate::telemetry::BudgetSample;
use crate::tls::ClientCertificate;

/// Longest API key that is looked at, in bytes; real ones have some fifty to two hundred.
const MAX_KEY_BYTES: usize = 512;

/// What a token says.
#[derive(Debug, Default)]
pub struct Token {
    /// What it lets its bearer do.
    pub scopes: Vec<String>,
    /// All it says.
    pub claims: Value,
}

/// A caller that showed who it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who it is.
    pub consumer: Arc<Consumer>,
    /// The header that said so, the first one in the configured order.
    pub header: HeaderName,
    /// What tells the key or token from others.
    pub credential: Credential,
    /// What its token says, if it is one.
    pub token: Option<Arc<Token>>,
}

/// Why a credential is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialError {
    /// None was shown.
    Missing,
    /// It has no form that is known here, or two of them contradict each other.
    Malformed,
    /// No consumer has this key.
    UnknownKey,
    /// No consumer has this client certificate.
    UnknownCertificate,
    /// The client certificate of the connection has ended.
    CertificateExpired,
    /// Its address has shown too many bad ones; this one was not looked at.
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
            Self::UnknownCertificate => "unknown_certificate",
            Self::CertificateExpired => "certificate_expired",
            Self::Throttled => "throttled",
            Self::Token(error) => error.as_str(),
        }
    }
}

/// A credential that was refused: what the caller is told, and what the audit log says.
#[derive(Debug)]
pub struct Unidentified {
    /// For the caller.
    pub refusal: Refusal,
    /// For the audit log.
    pub reason: CredentialError,
    /// Whether it was refused unseen, for what its address has shown before.
    pub throttled: bool,
}

/// Why the identities of a configuration cannot be compiled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// One key would mean two callers.
    #[error(
        "consumers `{first}` and `{second}` have the same key digest: give each a key of its own (`spillway key new`)"
    )]
    SharedKey {
        /// The consumer that stands first.
        first: String,
        /// The other.
        second: String,
    },
    /// Something that is no header name.
    #[error("`{0}` in authentication.apiKey.headers is not a header name")]
    HeaderName(String),
    /// Keys of consumers or of an issuer cannot be read.
    #[error("{0}")]
    Keys(String),
    /// The limits of consumers cannot be kept.
    #[error("{0}")]
    Limits(String),
}

/// Identifies the callers of one snapshot.
#[derive(Debug)]
pub struct Authenticator {
    headers: Vec<HeaderName>,
    keys: Keys,
    tokens: Tokens,
    certificates: Certificates,
    failures: Failures,
    budgets: BudgetRules,
}

/// What a request shows of its caller.
struct Presented<'h> {
    header: &'h HeaderName,
    credential: &'h [u8],
}

impl Authenticator {
    /// Compiles consumers and what tenants share, the headers that hold their keys and the issuers of tokens. Addresses that have shown bad
    /// credentials to `previous` are still known.
    pub fn new(
        authentication: &schema::Authentication,
        consumers: &[schema::Consumer],
        tenants: &[schema::Tenant],
        previous: Option<&Self>,
        parts: Parts<'_>,
    ) -> Result<Self, IdentityError> {
        let mut headers: Vec<HeaderName> = Vec::new();
        for written in &authentication.api_key.headers {
            let name =
                HeaderName::from_bytes(written.as_bytes()).map_err(|_| IdentityError::HeaderName(written.clone()))?;
            if !headers.contains(&name) {
                headers.push(name);
            }
        }
        let tenants = Arc::new(Tenants::new(tenants, parts).map_err(IdentityError::Limits)?);
        let mut keys = Keys::default();
        let mut compiled = Vec::with_capacity(consumers.len());
        for written in consumers {
            let consumer = Arc::new(Consumer::new(written, &tenants, parts)?);
            keys.enter(&consumer, &written.keys)?;
            if let Some(file) = &written.keys_file {
                keys.enter(&consumer, &spillway_config::read_keys(file).map_err(IdentityError::Keys)?)?;
            }
            compiled.push(consumer);
        }
        let tokens = Tokens::new(authentication, consumers, &compiled, &tenants, parts)?;
        let certificates = Certificates::new(authentication, consumers, &compiled);
        let failures = Failures::new(&authentication.failures, previous.map(|p| &p.failures), parts.metrics);
        let budgets = BudgetRules::of(compiled.iter().flat_map(|consumer| &consumer.rules).chain(tenants.all()));
        Ok(Self { headers, keys, tokens, certificates, failures, budgets })
    }

    /// What is spent of the budgets that the file names; those of consumers made from claims come without end.
    pub fn budgets(&self) -> Vec<BudgetSample> {
        self.budgets.samples()
    }

    /// Says who calls. `None` is an anonymous caller and comes only where `mode` allows one; a credential that is shown
    /// and not known is refused even where none is asked for. It waits only where a token names a key of its issuer that
    /// is not there yet, and then for a bounded time.
    pub async fn identify(
        &self,
        headers: &HeaderMap,
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
        if self.tokens.takes(credential) {
            let bearer = self.bearer(credential, address, now).await?;
            return Ok(Some(Identity {
                consumer: bearer.consumer,
                header: header.clone(),
                credential: bearer.credential,
                token: Some(bearer.token),
            }));
        }
        match self.keys.find(credential, now) {
            Some((consumer, credential)) => {
                Ok(Some(Identity { consumer: consumer.clone(), header: header.clone(), credential, token: None }))
            }
            None => {
                let refusal = unauthenticated("The API key is not known here. Check that the whole key was sent.");
                Err(self.refused(address, refusal, CredentialError::UnknownKey))
            }
        }
    }

    /// Says who calls by the certificate of its connection. `None` where certificates do not say that, or where a request
    /// shows a key or token, which goes before.
    pub fn identify_by_certificate(
        &self,
        headers: &HeaderMap,
        address: IpAddr,
        certificate: &ClientCertificate,
    ) -> Option<Result<(Arc<Consumer>, Credential), Unidentified>> {
        if !self.certificates.count() || self.headers.iter().any(|name| headers.contains_key(name)) {
            return None;
        }
        Some(self.certificates.find(certificate).ok_or_else(|| {
            let refusal = Refusal::new(
                StatusCode::UNAUTHORIZED,
                ErrorKind::Authentication,
                "invalid_certificate",
                "The certificate of this connection does not stand for anybody who may call.",
            );
            self.refused(address, refusal, CredentialError::UnknownCertificate)
        }))
    }

    /// Who a token stands for.
    async fn bearer(&self, token: &[u8], address: IpAddr, now: u64) -> Result<jwt::Bearer, Unidentified> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(bearer) = self.tokens.remembered(&digest, now) {
            return Ok(bearer);
        }
        // A signature costs a hundred times what a key does: it is not checked for who has shown many bad ones.
        if let Some(wait) = self.failures.wait(address) {
            return Err(throttled(wait));
        }
        let mut judged = self.tokens.judge(token, &digest, now);
        if let Judged::Unknown(keys) = &judged {
            keys.refresh().await;
            judged = self.tokens.judge(token, &digest, now);
        }
        let (reason, is_guess) = match judged {
            Judged::Believed(bearer) => return Ok(bearer),
            Judged::Refused(why) => (why, true),
            // Where the issuer could never be asked, nobody knows whether the token is good.
            Judged::Unknown(keys) => (TokenError::Key, keys.is_known()),
        };
        let refusal = Refusal::new(
            StatusCode::UNAUTHORIZED,
            ErrorKind::Authentication,
            "invalid_token",
            "The token is not accepted here: it has ended, is not for this service, or is not from a known issuer.",
        );
        if is_guess {
            return Err(self.refused(address, refusal, CredentialError::Token(reason)));
        }
        Err(Unidentified { refusal, reason: CredentialError::Token(reason), throttled: false })
    }

    /// Counts a refused credential against its address.
    fn refused(&self, address: IpAddr, refusal: Refusal, reason: CredentialError) -> Unidentified {
        // Nobody guesses anything by showing nothing.
        if reason != CredentialError::Missing {
            if let Some(wait) = self.failures.wait(address) {
                return throttled(wait);
            }
            self.failures.note(address);
        }
        Unidentified { refusal, reason, throttled: false }
    }

    /// Counts a bad key against its address, where a request is refused before anybody asks who calls: guesses count whichever
    /// step refuses them. A token is left out, since only its signature would say that it is bad.
    pub fn note_guess(&self, headers: &HeaderMap, address: IpAddr, now: u64) {
        let is_bad = match self.presented(headers) {
            Ok(None) => false,
            Ok(Some(shown)) => !self.tokens.takes(shown.credential) && self.keys.find(shown.credential, now).is_none(),
            Err(_) => true,
        };
        if is_bad && self.failures.wait(address).is_none() {
            self.failures.note(address);
        }
    }

    /// True if a header value holds a key of the configuration, ended or not, or a token that is addressed to this
    /// gateway: by itself, behind a scheme, or in one half of `Basic` (RFC 7617).
    pub fn holds_credential(&self, value: &[u8]) -> bool {
        let is_ours = |text: &[u8]| {
            !text.is_empty()
                && if self.tokens.takes(text) {
                    self.tokens.is_addressed_here(text)
                } else {
                    text.len() <= MAX_KEY_BYTES && self.keys.holds(text)
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

    /// The one credential that a request shows, and the first header that holds it.
    fn presented<'h>(&'h self, headers: &'h HeaderMap) -> Result<Option<Presented<'h>>, Refusal> {
        let mut found: Option<Presented<'h>> = None;
        for name in &self.headers {
            for value in headers.get_all(name) {
                let credential = if *name == http::header::AUTHORIZATION {
                    bearer(value.as_bytes())?
                } else {
                    value.as_bytes().trim_ascii()
                };
                let most = if self.tokens.takes(credential) { jwt::MAX_TOKEN_BYTES } else { MAX_KEY_BYTES };
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

/// The credential in a header that identified a caller.
pub fn credential_in<'v>(header: &HeaderName, value: &'v HeaderValue) -> &'v [u8] {
    if *header == http::header::AUTHORIZATION {
        bearer(value.as_bytes()).unwrap_or_default()
    } else {
        value.as_bytes().trim_ascii()
    }
}

/// The token of `Bearer TOKEN`; the scheme is written in any case (RFC 9110, section 11.1).
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

/// Refuses what cannot be a credential before it is hashed.
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

fn throttled(wait: std::time::Duration) -> Unidentified {
    let refusal = Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::RateLimited,
        "too_many_failures",
        "Too many bad credentials came from this address.",
    );
    Unidentified { refusal: refusal.retry_after(wait), reason: CredentialError::Throttled, throttled: true }
}
