//! Verifies id tokens (OpenID Connect Core 1.0, section 3.1.3.7) of one issuer, for persons who log in. The module owns the keys of
//! that issuer, which the task of [`KeySource`] fetches, and knows no session. An id token is accepted if a public key of the issuer
//! signed it, for this client, in this login, and not too long ago.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, Validation};
use serde_json::Value;
use spillway_filter::HttpClient;

use super::keys::{Description, FetchError, KeyLocation, KeySource, describe};
use super::{MAX_TOKEN_BYTES, TokenError, crypto, token_error};
use crate::telemetry::Metrics;

/// Largest difference between clocks, seconds: that of `authentication.jwt` when left out.
const LEEWAY: u64 = 30;
/// Time between two fetches of keys: that of `authentication.jwt` when left out.
const REFRESH: std::time::Duration = std::time::Duration::from_secs(600);
/// Algorithms by a public key. Shared secrets (HS256) and `none` have no verifier.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Reason why an issuer cannot be used for a login.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IssuerError(#[from] FetchError);

/// Verifies the id tokens of one issuer for one client.
pub struct IdTokens {
    issuer: String,
    client: String,
    keys: Arc<KeySource>,
    http: Arc<dyn HttpClient>,
}

impl std::fmt::Debug for IdTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdTokens({})", self.issuer)
    }
}

impl IdTokens {
    /// Begins to fetch the keys of an issuer by its description. Must be called in a runtime.
    pub fn begin(issuer: &str, client: &str, http: Arc<dyn HttpClient>, metrics: Arc<Metrics>) -> Self {
        crypto::install();
        let keys = Arc::new(KeySource::empty());
        keys.begin(KeyLocation::Discovery(issuer.to_owned()), REFRESH, http.clone(), metrics);
        Self { issuer: issuer.to_owned(), client: client.to_owned(), keys, http }
    }

    /// Fetches the description of the issuer.
    ///
    /// # Errors
    /// The issuer does not answer, or describes another one.
    pub async fn describe(&self) -> Result<Description, IssuerError> {
        Ok(describe(&self.issuer, &*self.http).await?)
    }

    /// Verifies the id token of a login with this nonce, and returns its claims. Waits, for a bounded time, where the issuer has to be
    /// asked for the key.
    ///
    /// # Errors
    /// The token is not accepted.
    pub async fn verify(&self, token: &str, nonce: &str) -> Result<Value, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        match self.judge(token, nonce) {
            Err(TokenError::Key) => {
                self.keys.refresh().await;
                self.judge(token, nonce)
            }
            judged => judged,
        }
    }

    fn judge(&self, token: &str, nonce: &str) -> Result<Value, TokenError> {
        let header = super::decode_known_header(token.as_bytes())?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(TokenError::Algorithm);
        }
        let set = self.keys.set();
        let key = set.find(header.kid.as_deref(), header.alg).ok_or(TokenError::Key)?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.client]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let decoded = jsonwebtoken::decode::<Value>(token, key, &validation);
        let claims = decoded.map_err(|e| token_error(e.kind()))?.claims;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        // Steps 4 and 5: a token for several names the one that it was issued to.
        let is_for_several = claims.get("aud").and_then(Value::as_array).is_some_and(|aud| aud.len() > 1);
        let is_issued_here = match claims.get("azp") {
            Some(party) => party.as_str() == Some(&self.client),
            None => !is_for_several,
        };
        if !is_issued_here {
            return Err(TokenError::Audience);
        }
        // Step 11: another nonce is that of another login.
        if text("nonce") != Some(nonce) || text("sub").is_none_or(str::is_empty) {
            return Err(TokenError::Claims);
        }
        Ok(claims)
    }
}
