//! Verifies tokens (JSON Web Tokens, RFC 7519) of configured issuers. The module owns the verified tokens of one
//! snapshot; the keys of issuers outlive it. A token is accepted if its issuer is known, its algorithm is allowed and
//! fits its key, and signature, audience and times are valid. Nothing in a token decides how the token is verified (RFC
//! 8725, sections 3.1 to 3.9).

mod cache;
mod claims;
mod crypto;
mod id_token;
mod keys;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use spillway_config::schema::{self, JwtAlgorithm};
use spillway_filter::{HttpClient, SharedStates};

use cache::{Cache, Verified};
use claims::FromClaims;
pub use id_token::{IdTokens, IssuerError};
pub use keys::{Description, KeyFileError};
use keys::{KeyLocation, KeySource};

use super::{Consumer, IdentityError, Tenants, Token};
use crate::commit_steps::CommitSteps;
use crate::http_client::Http;
use crate::limits::{Credential, Limits};
use crate::telemetry::Metrics;

/// Longest token that is examined, bytes: as large as a header that common servers accept.
pub(super) const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Default of `authentication.tokenCache`, verified tokens: some 10 MiB at a KiB of claims each.
const TOKENS: u32 = 10_000;

/// Dependencies of the compiler of identities.
#[derive(Clone, Copy)]
pub struct IdentityDeps<'a> {
    /// Compiler of limits.
    pub limits: &'a Limits,
    /// State that outlives a snapshot.
    pub states: &'a SharedStates,
    /// Client that fetches keys.
    pub http: &'a Arc<dyn HttpClient>,
    /// Metrics of the process.
    pub metrics: &'a Arc<Metrics>,
    /// Steps to run once the snapshot is adopted.
    pub commit_steps: &'a CommitSteps,
}

/// Reason why a token is refused, for the audit log; the answer to the caller does not tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// The text is no JSON Web Token, or names an unknown critical header.
    Malformed,
    /// The issuer is not configured.
    Issuer,
    /// The algorithm is not allowed.
    Algorithm,
    /// The issuer has no key with the id in the token, or that key is for another algorithm.
    Key,
    /// The signature is invalid.
    Signature,
    /// The token has expired.
    Expired,
    /// The token is not valid yet.
    NotYet,
    /// The token is for another audience.
    Audience,
    /// A claim is missing or has another type.
    Claims,
    /// The claims name no consumer, or one that only the configuration may name.
    Consumer,
}

impl TokenError {
    /// Reason in the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "token_malformed",
            Self::Issuer => "token_issuer",
            Self::Algorithm => "token_algorithm",
            Self::Key => "token_key",
            Self::Signature => "token_signature",
            Self::Expired => "token_expired",
            Self::NotYet => "token_not_yet_valid",
            Self::Audience => "token_audience",
            Self::Claims => "token_claims",
            Self::Consumer => "token_consumer",
        }
    }
}

/// Bearer of a verified token.
#[derive(Debug, Clone)]
pub(super) struct Bearer {
    pub(super) consumer: Arc<Consumer>,
    pub(super) token: Arc<Token>,
    pub(super) credential: Credential,
}

/// Result of verifying a token.
pub(super) enum TokenVerdict {
    Accepted(Bearer),
    Refused(TokenError),
    /// The key of the token is unknown; fetching the issuer's keys may help.
    UnknownKey(Arc<KeySource>),
}

struct Issuer {
    name: String,
    keys: Arc<KeySource>,
    algorithms: Vec<Algorithm>,
    validation: Validation,
    leeway: u64,
    consumers: HashMap<String, Arc<Consumer>>,
    claims: Option<FromClaims>,
}

/// Verifies the tokens of one snapshot.
#[derive(Default)]
pub(super) struct TokenVerifier {
    issuers: Vec<Issuer>,
    cache: Cache,
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenVerifier({} issuers)", self.issuers.len())
    }
}

fn algorithm(written: JwtAlgorithm) -> Algorithm {
    match written {
        JwtAlgorithm::Rs256 => Algorithm::RS256,
        JwtAlgorithm::Rs384 => Algorithm::RS384,
        JwtAlgorithm::Rs512 => Algorithm::RS512,
        JwtAlgorithm::Ps256 => Algorithm::PS256,
        JwtAlgorithm::Ps384 => Algorithm::PS384,
        JwtAlgorithm::Ps512 => Algorithm::PS512,
        JwtAlgorithm::Es256 => Algorithm::ES256,
        JwtAlgorithm::Es384 => Algorithm::ES384,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}

/// Keys of an issuer: those that an earlier snapshot fetched, if location and trusted authorities are the same.
fn source(written: &schema::JwtIssuer, deps: IdentityDeps<'_>) -> Result<Arc<KeySource>, IdentityError> {
    let jwks = written.jwks.clone().unwrap_or_default();
    if let Some(file) = &jwks.file {
        return Ok(KeySource::from_file(file)?);
    }
    let location = match jwks.url {
        Some(url) => KeyLocation::Url(url),
        None => KeyLocation::Discovery(written.issuer.clone()),
    };
    let (http, trusted): (Arc<dyn HttpClient>, _) = match &written.ca_file {
        None => (deps.http.clone(), String::new()),
        Some(file) => {
            let (roots, pem) = crate::tls::roots(file)?;
            (Arc::new(Http::with_roots(roots)), hex::encode(Sha256::digest(pem)))
        }
    };
    let name = format!("jwks {location:?} {:?} {trusted}", jwks.refresh);
    http.prepare();
    let held = deps.states.get_or_insert(&name, KeySource::empty);
    let (source, metrics) = (held.clone(), deps.metrics.clone());
    deps.commit_steps.add(move || source.begin(location, jwks.refresh.0, http, metrics));
    Ok(held)
}

impl Issuer {
    /// Consumer of a token with this subject and these claims; `None` where they name none.
    fn consumer(&self, subject: &str, claims: &serde_json::Value) -> Option<Arc<Consumer>> {
        let named = || self.claims.as_ref()?.consumer(claims);
        self.consumers.get(subject).cloned().or_else(named)
    }
}

impl TokenVerifier {
    pub(super) fn new(
        authentication: &schema::Authentication,
        written: &[schema::Consumer],
        consumers: &[Arc<Consumer>],
        tenants: &Arc<Tenants>,
        deps: IdentityDeps<'_>,
    ) -> Result<Self, IdentityError> {
        crypto::install();
        let mut issuers = Vec::new();
        for issuer in &authentication.jwt {
            let algorithms: Vec<Algorithm> = issuer.algorithms.iter().copied().map(algorithm).collect();
            let leeway = issuer.leeway.0.as_secs();
            let mut validation = Validation::new(Algorithm::RS256);
            validation.leeway = leeway;
            validation.validate_nbf = true;
            validation.set_audience(&issuer.audiences);
            validation.set_issuer(&[&issuer.issuer]);
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            let own = written.iter().zip(consumers).filter_map(|(written, consumer)| {
                let token = written.jwt.as_ref().filter(|token| token.issuer == issuer.issuer)?;
                Some((token.subject.clone(), consumer.clone()))
            });
            let taken = consumers.iter().map(|consumer| consumer.name.clone()).collect();
            let of_consumers = consumers.iter().map(|consumer| consumer.tenant.clone());
            let taken_tenants = of_consumers.chain(tenants.names().map(Into::into)).collect();
            issuers.push(Issuer {
                name: issuer.issuer.clone(),
                keys: source(issuer, deps)?,
                algorithms,
                validation,
                leeway,
                consumers: own.collect(),
                claims: FromClaims::new(issuer, (taken, taken_tenants), tenants.clone(), deps)?,
            });
        }
        let most = authentication.token_cache.unwrap_or(TOKENS);
        Ok(Self { issuers, cache: Cache::new(most, deps.metrics.process.token_cache_entries.clone()) })
    }

    /// True if a credential is verified as a token and not as an API key. A token has three parts with dots between
    /// them, and needs a configured issuer.
    pub(super) fn is_token(&self, credential: &[u8]) -> bool {
        !self.issuers.is_empty()
            && credential.starts_with(b"ey")
            && credential.iter().filter(|b| **b == b'.').count() == 2
    }

    /// True if a token names a configured issuer and one of its audiences. The signature is not verified: the answer
    /// decides only that the token is kept from servers.
    pub(super) fn is_addressed_here(&self, token: &[u8]) -> bool {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Audiences {
            One(String),
            Several(Vec<String>),
        }
        #[derive(Deserialize)]
        struct Claimed {
            iss: String,
            aud: Audiences,
        }
        if token.len() > MAX_TOKEN_BYTES || !self.is_token(token) {
            return false;
        }
        let Ok(claimed) = jsonwebtoken::dangerous::insecure_decode_claims::<Claimed>(token) else { return false };
        let named = match &claimed.aud {
            Audiences::One(one) => std::slice::from_ref(one),
            Audiences::Several(several) => several,
        };
        let of_issuer = self.issuers.iter().filter(|issuer| issuer.name == claimed.iss);
        of_issuer.flat_map(|issuer| &issuer.validation.aud).any(|ours| named.iter().any(|aud| ours.contains(aud)))
    }

    /// True if the claims of a token that was verified before still name the consumer. Its times and keys are not judged.
    pub(super) fn names(&self, claims: &serde_json::Value, consumer: &str) -> bool {
        self.holder(claims, consumer).is_some()
    }

    /// The consumer of this name, if the claims of a token that was verified before still name it.
    pub(super) fn holder(&self, claims: &serde_json::Value, consumer: &str) -> Option<Arc<Consumer>> {
        let text = |name: &str| claims.get(name).and_then(serde_json::Value::as_str);
        let (issuer, subject) = (text("iss")?, text("sub")?);
        let known = self.issuers.iter().find(|known| known.name == issuer)?;
        known.consumer(subject, claims).filter(|known| *known.name == *consumer)
    }

    /// Bearer of a token that was verified before and is still valid.
    pub(super) fn remembered(&self, digest: &[u8; 32], now: u64) -> Option<Bearer> {
        let verified = self.cache.get(digest)?;
        let issuer = self.issuers.get(verified.issuer)?;
        (now < verified.until && verified.epoch == issuer.keys.set().epoch).then_some(verified.bearer)
    }

    /// Verifies a token and caches it.
    pub(super) fn judge(&self, token: &[u8], digest: &[u8; 32], now: u64) -> TokenVerdict {
        match self.verify(token) {
            Ok((issuer, epoch, expires, bearer)) => {
                let leeway = self.issuers.get(issuer).map_or(0, |issuer| issuer.leeway);
                let until = expires.saturating_add(leeway);
                self.cache.put(*digest, Verified { issuer, epoch, until, bearer: bearer.clone() }, now);
                TokenVerdict::Accepted(bearer)
            }
            Err(verdict) => verdict,
        }
    }

    #[allow(clippy::type_complexity, reason = "the parts of one cache entry")]
    fn verify(&self, token: &[u8]) -> Result<(usize, u64, u64, Bearer), TokenVerdict> {
        #[derive(Deserialize)]
        struct Claimed {
            iss: String,
        }
        let refused = TokenVerdict::Refused;
        let header = decode_known_header(token).map_err(refused)?;
        // Finds the issuer only; the claim is verified below.
        let claimed: Claimed =
            jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| refused(TokenError::Malformed))?;
        let found = self.issuers.iter().enumerate().find(|(_, issuer)| issuer.name == claimed.iss);
        let (n, issuer) = found.ok_or(refused(TokenError::Issuer))?;
        if !issuer.algorithms.contains(&header.alg) {
            return Err(refused(TokenError::Algorithm));
        }
        let set = issuer.keys.set();
        let Some(key) = set.find(header.kid.as_deref(), header.alg) else {
            return Err(if set.lacks(header.kid.as_deref()) {
                TokenVerdict::UnknownKey(issuer.keys.clone())
            } else {
                refused(TokenError::Key)
            });
        };
        let mut validation = issuer.validation.clone();
        validation.algorithms = vec![header.alg];
        let decoded = jsonwebtoken::decode::<serde_json::Value>(token, key, &validation);
        let claims = decoded.map_err(|e| refused(token_error(e.kind())))?.claims;
        let (expires, subject) = match (claims.get("exp").and_then(seconds), claims.get("sub").and_then(|s| s.as_str()))
        {
            (Some(expires), Some(subject)) => (expires, subject),
            _ => return Err(refused(TokenError::Claims)),
        };
        let credential = claims::credential(&issuer.name, subject);
        let consumer = issuer.consumer(subject, &claims).ok_or(refused(TokenError::Consumer))?;
        let token = Arc::new(Token { scopes: claims::scopes(&claims), claims });
        Ok((n, set.epoch, expires, Bearer { consumer, token, credential }))
    }
}

/// Header of a token, whose algorithm has a name and which asks for nothing that is not known here.
fn decode_known_header(token: &[u8]) -> Result<jsonwebtoken::Header, TokenError> {
    let header = jsonwebtoken::decode_header(token).map_err(|e| {
        // A header with `none`, or another name that is no algorithm, cannot be parsed.
        let unknown = matches!(e.kind(), ErrorKind::InvalidAlgorithmName | ErrorKind::Json(_));
        if unknown { TokenError::Algorithm } else { TokenError::Malformed }
    })?;
    // RFC 7515, 4.1.11: an unknown critical header must be refused, and none is known here.
    if header.crit.is_some() || header.enc.is_some() { Err(TokenError::Malformed) } else { Ok(header) }
}

/// Time of RFC 7519: seconds, whole or fractional.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
fn seconds(value: &serde_json::Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64))
}

fn token_error(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYet,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::InvalidIssuer => TokenError::Issuer,
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => TokenError::Algorithm,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => TokenError::Claims,
        _ => TokenError::Malformed,
    }
}
