//! Tokens (JSON Web Tokens, RFC 7519) of configured issuers become consumers. It owns the verified tokens of one snapshot;
//! issuers' keys outlive it. A token is believed when its issuer is known, its algorithm is one that is allowed and the
//! one its key is for, and signature, audience and times hold; nothing it says of its own checking is believed
//! (RFC 8725, sections 3.1 to 3.9).

mod cache;
mod claims;
mod crypto;
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
use keys::{KeySource, Place};

use super::{Consumer, IdentityError, Tenants, Token};
use crate::adoptions::Adoptions;
use crate::http_client::Http;
use crate::limits::{Credential, Limits};
use crate::telemetry::Metrics;

/// Longest token that is looked at, in bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Verified tokens that are remembered unless the configuration says otherwise.
const TOKENS: u32 = 10_000;

/// What is needed to compile issuers.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// Rules of consumers.
    pub limits: &'a Limits,
    /// What outlives a snapshot.
    pub states: &'a SharedStates,
    /// Fetches keys.
    pub http: &'a Arc<dyn HttpClient>,
    /// Series.
    pub metrics: &'a Arc<Metrics>,
    /// What is put off until the snapshot is adopted.
    pub adoptions: &'a Adoptions,
}

/// Why a token is refused, for the audit log; callers are not told which of them it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// It is no JSON Web Token, or names a critical header that is not known here.
    Malformed,
    /// Its issuer is not one of the configuration.
    Issuer,
    /// Its algorithm is not allowed.
    Algorithm,
    /// No key of its issuer has its key id, or that key is not for its algorithm.
    Key,
    /// Its signature does not verify.
    Signature,
    /// It has ended.
    Expired,
    /// It has not begun.
    NotYet,
    /// It is for another audience.
    Audience,
    /// A claim is missing or has another type.
    Claims,
    /// Its claims name no consumer, or one that only the configuration may name.
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

/// Who a token stands for.
#[derive(Debug, Clone)]
pub(super) struct Bearer {
    pub(super) consumer: Arc<Consumer>,
    pub(super) token: Arc<Token>,
    pub(super) credential: Credential,
}

/// What is known of a token now.
pub(super) enum Judged {
    Believed(Bearer),
    Refused(TokenError),
    /// Its key is not there; fetching the issuer's keys may help.
    Unknown(Arc<KeySource>),
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

/// Judges the tokens of one snapshot.
#[derive(Default)]
pub(super) struct Tokens {
    issuers: Vec<Issuer>,
    cache: Cache,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} issuers)", self.issuers.len())
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

/// The keys of an issuer: those that an earlier snapshot fetched, where it fetched them from the same place and
/// believed the same authorities.
fn source(written: &schema::JwtIssuer, parts: Parts<'_>) -> Result<Arc<KeySource>, IdentityError> {
    let jwks = written.jwks.clone().unwrap_or_default();
    if let Some(file) = &jwks.file {
        return KeySource::from_file(file).map_err(IdentityError::Keys);
    }
    let place = match jwks.url {
        Some(url) => Place::Url(url),
        None => Place::Discovery(written.issuer.clone()),
    };
    let (http, believed): (Arc<dyn HttpClient>, _) = match &written.ca_file {
        None => (parts.http.clone(), String::new()),
        Some(file) => {
            let (roots, pem) = crate::tls::roots(file).map_err(|e| IdentityError::Keys(e.to_string()))?;
            (Arc::new(Http::with_roots(roots)), hex::encode(Sha256::digest(pem)))
        }
    };
    let name = format!("jwks {place:?} {:?} {believed}", jwks.refresh);
    http.prepare();
    let held = parts.states.get_or_insert(&name, KeySource::empty);
    let (source, metrics) = (held.clone(), parts.metrics.clone());
    parts.adoptions.add(move || source.begin(place, jwks.refresh.0, http, metrics));
    Ok(held)
}

impl Tokens {
    pub(super) fn new(
        authentication: &schema::Authentication,
        written: &[schema::Consumer],
        consumers: &[Arc<Consumer>],
        tenants: &Arc<Tenants>,
        parts: Parts<'_>,
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
                keys: source(issuer, parts)?,
                algorithms,
                validation,
                leeway,
                consumers: own.collect(),
                claims: FromClaims::new(issuer, (taken, taken_tenants), tenants.clone(), parts)
                    .map_err(IdentityError::Limits)?,
            });
        }
        let most = authentication.token_cache.unwrap_or(TOKENS);
        Ok(Self { issuers, cache: Cache::new(most, parts.metrics.process.token_cache_entries.clone()) })
    }

    /// Whether a credential is judged here and not as an API key: three parts with dots between them, where there are
    /// issuers.
    pub(super) fn takes(&self, credential: &[u8]) -> bool {
        !self.issuers.is_empty()
            && credential.starts_with(b"ey")
            && credential.iter().filter(|b| **b == b'.').count() == 2
    }

    /// True if a token names an issuer of the configuration and one of its audiences. Its signature is not checked: the
    /// answer decides only that the token is kept from servers.
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
        if token.len() > MAX_TOKEN_BYTES || !self.takes(token) {
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

    /// Who a token stands for, if that was found out before and still holds.
    pub(super) fn remembered(&self, digest: &[u8; 32], now: u64) -> Option<Bearer> {
        let verified = self.cache.get(digest)?;
        let issuer = self.issuers.get(verified.issuer)?;
        (now < verified.until && verified.epoch == issuer.keys.set().epoch).then_some(verified.bearer)
    }

    /// Verifies a token and remembers it.
    pub(super) fn judge(&self, token: &[u8], digest: &[u8; 32], now: u64) -> Judged {
        match self.verify(token) {
            Ok((issuer, epoch, expires, bearer)) => {
                let leeway = self.issuers.get(issuer).map_or(0, |issuer| issuer.leeway);
                let until = expires.saturating_add(leeway);
                self.cache.put(*digest, Verified { issuer, epoch, until, bearer: bearer.clone() }, now);
                Judged::Believed(bearer)
            }
            Err(judged) => judged,
        }
    }

    #[allow(clippy::type_complexity, reason = "the parts of one cache entry")]
    fn verify(&self, token: &[u8]) -> Result<(usize, u64, u64, Bearer), Judged> {
        #[derive(Deserialize)]
        struct Claimed {
            iss: String,
        }
        let refused = Judged::Refused;
        let header = jsonwebtoken::decode_header(token).map_err(|e| {
            // `none` and what else is no algorithm fails to be read at all.
            let unknown = matches!(e.kind(), ErrorKind::InvalidAlgorithmName | ErrorKind::Json(_));
            refused(if unknown { TokenError::Algorithm } else { TokenError::Malformed })
        })?;
        // RFC 7515, 4.1.11: who does not understand what is critical must refuse. We understand none of it.
        if header.crit.is_some() || header.enc.is_some() {
            return Err(refused(TokenError::Malformed));
        }
        // Only to find the issuer; what it says is checked below.
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
                Judged::Unknown(issuer.keys.clone())
            } else {
                refused(TokenError::Key)
            });
        };
        let mut validation = issuer.validation.clone();
        validation.algorithms = vec![header.alg];
        let decoded = jsonwebtoken::decode::<serde_json::Value>(token, key, &validation);
        let claims = decoded.map_err(|e| refused(why(e.kind())))?.claims;
        let (expires, subject) = match (claims.get("exp").and_then(seconds), claims.get("sub").and_then(|s| s.as_str()))
        {
            (Some(expires), Some(subject)) => (expires, subject),
            _ => return Err(refused(TokenError::Claims)),
        };
        let credential = claims::credential(&issuer.name, subject);
        let consumer = match (issuer.consumers.get(subject), &issuer.claims) {
            (Some(consumer), _) => consumer.clone(),
            (None, Some(from)) => from.consumer(&claims).ok_or(refused(TokenError::Consumer))?,
            (None, None) => return Err(refused(TokenError::Consumer)),
        };
        let token = Arc::new(Token { scopes: claims::scopes(&claims), claims });
        Ok((n, set.epoch, expires, Bearer { consumer, token, credential }))
    }
}

/// A time as RFC 7519 has it: seconds, whole or not.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
fn seconds(value: &serde_json::Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64))
}

fn why(kind: &ErrorKind) -> TokenError {
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
