//! Keys of an issuer: fetched at an interval, and again if a token names an unknown key. The module owns one task for
//! each issuer with a URL. While an issuer is down, its last keys stay in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use jsonwebtoken::jwk::{Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use spillway_filter::{HttpClient, HttpError};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::telemetry::Metrics;

/// Longest call to an issuer, seconds: one that takes longer is as good as down. A fetch by discovery makes two calls.
const FETCH: Duration = Duration::from_secs(5);
/// Shortest time between two fetches, seconds: tokens with invented key ids must not flood the issuer.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest wait of a request for a fetch, seconds: short enough for a caller, long enough for a healthy issuer.
const WAIT: Duration = Duration::from_secs(2);
/// Most keys of an issuer that are kept; real issuers have a handful.
const MAX_KEYS: usize = 64;

/// Message about a set without a usable key.
const NO_KEY: &str = "no key can verify a signature; expected RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519";

/// Reason why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// File.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{}: this is no JSON Web Key Set: {source}", path.display())]
    NotAKeySet {
        /// File.
        path: PathBuf,
        /// Error of the parser.
        source: serde_json::Error,
    },
    /// No key in the file can verify a signature.
    #[error("{}: {NO_KEY}", path.display())]
    NoUsableKey {
        /// File.
        path: PathBuf,
    },
}

/// Reason why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{what} at {server}: {source}")]
    Request { what: &'static str, server: String, source: http::Error },
    #[error("{what} at {server}: {source}")]
    Call { what: &'static str, server: String, source: HttpError },
    #[error("{what} at {server}: the server answered {status}, expected 200")]
    Status { what: &'static str, server: String, status: http::StatusCode },
    #[error("the description: {0}")]
    Description(serde_json::Error),
    #[error("the description is of the issuer `{0}`: write that name as `issuer`, or correct the description")]
    OtherIssuer(String),
    #[error("the keys of an https issuer must not come over http: expected an https URL as `jwks_uri`")]
    Insecure,
    #[error("this is no JSON Web Key Set: {0}")]
    NotAKeySet(#[from] serde_json::Error),
}

/// Keys of an issuer at one time.
#[derive(Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// Number of the set, which changes with the keys: a token that an earlier set verified is verified again.
    pub(super) epoch: u64,
}

struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    /// Key as received, to detect changes.
    written: Jwk,
    key: DecodingKey,
}

impl KeySet {
    /// Parses the keys that can verify a signature. Others are left out: secrets, curves without a verifier, RSA keys
    /// that are too short.
    fn read(text: &[u8]) -> serde_json::Result<Vec<Key>> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(text)?;
        let keys = set.keys.into_iter().filter_map(|key| {
            let jwk: Jwk = serde_json::from_value(key).ok()?;
            if jwk.common.public_key_use.as_ref().is_some_and(|kind| *kind != PublicKeyUse::Signature) {
                return None;
            }
            let algorithm = match jwk.common.key_algorithm {
                None => None,
                Some(named) => Some(algorithm(named)?),
            };
            let key = DecodingKey::from_jwk(&jwk).ok().filter(|key| KINDS.iter().any(|kind| suits(key, *kind)))?;
            Some(Key { id: jwk.common.key_id.clone(), algorithm, written: jwk, key })
        });
        let keys: Vec<Key> = keys.take(MAX_KEYS).collect();
        Ok(keys)
    }

    /// Finds the key of a token. A key fits the kind of signature that it was made for, or only the algorithm that it
    /// names. A token without a key id means the only key that fits.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let fits = |key: &&Key| suits(&key.key, algorithm) && key.algorithm.is_none_or(|only| only == algorithm);
        match id {
            Some(id) => self.keys.iter().filter(|key| key.id.as_deref() == Some(id)).find(fits),
            None => {
                let mut all = self.keys.iter().filter(fits);
                all.next().filter(|_| all.next().is_none())
            }
        }
        .map(|key| &key.key)
    }

    /// True if the key of a token is unknown, so that a fetch may help.
    pub(super) fn lacks(&self, id: Option<&str>) -> bool {
        match id {
            Some(id) => !self.keys.iter().any(|key| key.id.as_deref() == Some(id)),
            None => self.keys.is_empty(),
        }
    }
}

/// Algorithms, one for each kind of key that has a verifier.
const KINDS: [Algorithm; 4] = [Algorithm::RS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

/// True if a key fits the signatures of an algorithm. Its family must be the same, and its curve (RFC 7518, 3.4; points
/// as in SEC 1, 2.3.3, uncompressed). An RSA key must be as long as verifiers require (RFC 7518, 3.3 and 3.5).
fn suits(key: &DecodingKey, algorithm: Algorithm) -> bool {
    let is_point = |length| matches!(key.kind(), DecodingKeyKind::SecretOrDer(point) if point.len() == length);
    key.family() == algorithm.family()
        && match algorithm {
            Algorithm::ES256 => is_point(65),
            Algorithm::ES384 => is_point(97),
            Algorithm::EdDSA => is_point(32),
            _ => match key.kind() {
                DecodingKeyKind::RsaModulusExponent { n, .. } => (2048..=8192).contains(&bits(n)),
                DecodingKeyKind::SecretOrDer(_) => false,
            },
        }
}

/// Bit length of a big-endian number.
fn bits(number: &[u8]) -> u32 {
    let mut digits = number.iter().skip_while(|byte| **byte == 0);
    let first = digits.next().map_or(0, |byte| 8 - byte.leading_zeros());
    first + 8 * u32::try_from(digits.count()).unwrap_or(u32::MAX / 16)
}

fn algorithm(named: KeyAlgorithm) -> Option<Algorithm> {
    Some(match named {
        KeyAlgorithm::RS256 => Algorithm::RS256,
        KeyAlgorithm::RS384 => Algorithm::RS384,
        KeyAlgorithm::RS512 => Algorithm::RS512,
        KeyAlgorithm::PS256 => Algorithm::PS256,
        KeyAlgorithm::PS384 => Algorithm::PS384,
        KeyAlgorithm::PS512 => Algorithm::PS512,
        KeyAlgorithm::ES256 => Algorithm::ES256,
        KeyAlgorithm::ES384 => Algorithm::ES384,
        KeyAlgorithm::EdDSA => Algorithm::EdDSA,
        _ => return None,
    })
}

/// Source of an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeyLocation {
    /// URL of a JSON Web Key Set.
    Url(String),
    /// Issuer whose description (OpenID Connect Discovery 1.0, section 4) names the URL.
    Discovery(String),
}

impl std::fmt::Display for KeyLocation {
    /// Writes the server alone: the rest of a URL may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Url(text) | Self::Discovery(text)) = self;
        f.write_str(&server_of(text))
    }
}

/// Server of a URL, for messages: scheme, host and port.
fn server_of(url: &str) -> String {
    url::Url::parse(url).map_or_else(|_| "no URL".to_owned(), |url| url.origin().ascii_serialization())
}

/// Keys of one issuer, kept over reloads.
pub(in crate::identity) struct KeySource {
    set: ArcSwap<KeySet>,
    epochs: AtomicU64,
    /// Number of successful fetches.
    succeeded: AtomicU64,
    /// Number of finished fetches, successful or not, and of requests for one that came too soon.
    fetched: watch::Sender<u64>,
    wanted: tokio::sync::Notify,
    task: std::sync::OnceLock<AbortHandle>,
}

impl Drop for KeySource {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl KeySource {
    /// Makes a source without keys.
    pub(super) fn empty() -> Self {
        Self {
            set: ArcSwap::from_pointee(KeySet::default()),
            epochs: AtomicU64::new(1),
            succeeded: AtomicU64::new(0),
            fetched: watch::Sender::new(0),
            wanted: tokio::sync::Notify::new(),
            task: std::sync::OnceLock::new(),
        }
    }

    /// Reads the keys of a file.
    pub(super) fn from_file(path: &Path) -> Result<Arc<Self>, KeyFileError> {
        let text = spillway_config::read_bytes(path)
            .map_err(|source| KeyFileError::Unreadable { path: path.to_owned(), source })?;
        let source = Self::empty();
        let keys = KeySet::read(&text).map_err(|source| KeyFileError::NotAKeySet { path: path.to_owned(), source })?;
        if keys.is_empty() {
            return Err(KeyFileError::NoUsableKey { path: path.to_owned() });
        }
        source.take(keys);
        Ok(Arc::new(source))
    }

    /// Starts the task that fetches keys, once.
    pub(super) fn begin(
        self: &Arc<Self>,
        location: KeyLocation,
        refresh: Duration,
        http: Arc<dyn HttpClient>,
        metrics: Arc<Metrics>,
    ) {
        let source = Arc::downgrade(self);
        self.task.get_or_init(|| tokio::spawn(keep(source, location, refresh, http, metrics)).abort_handle());
    }

    /// Current keys.
    pub(super) fn set(&self) -> Arc<KeySet> {
        self.set.load_full()
    }

    /// True once keys were read: until then no token can be called bad.
    pub(in crate::identity) fn is_known(&self) -> bool {
        self.task.get().is_none() || self.succeeded.load(Ordering::Relaxed) > 0
    }

    /// Requests a fetch and waits for its end, for a bounded time; returns at once if a fetch would change nothing.
    pub(in crate::identity) async fn refresh(&self) {
        let mut fetched = self.fetched.subscribe();
        fetched.mark_unchanged();
        if self.task.get().is_none() {
            return;
        }
        self.wanted.notify_one();
        let _ = tokio::time::timeout(WAIT, fetched.changed()).await;
    }

    /// Uses these keys from now on; the epoch changes only if they differ.
    fn take(&self, keys: Vec<Key>) {
        let now = self.set.load();
        let same = now.keys.len() == keys.len() && now.keys.iter().zip(&keys).all(|(a, b)| a.written == b.written);
        if !same {
            let epoch = self.epochs.fetch_add(1, Ordering::Relaxed);
            self.set.store(Arc::new(KeySet { keys, epoch }));
        }
    }
}

async fn keep(
    source: std::sync::Weak<KeySource>,
    location: KeyLocation,
    refresh: Duration,
    http: Arc<dyn HttpClient>,
    metrics: Arc<Metrics>,
) {
    let mut failing = false;
    loop {
        let began = Instant::now();
        let got = fetch(&location, &*http).await.and_then(|text| Ok(KeySet::read(&text)?));
        let Some(held) = source.upgrade() else { return };
        let ok = got.is_ok();
        match got {
            Ok(keys) => {
                // An issuer may withdraw its last key; none of its tokens is accepted then.
                if keys.is_empty() && !held.set().keys.is_empty() {
                    tracing::warn!(event = "jwks_empty", place = %location, reason = NO_KEY);
                }
                held.succeeded.fetch_add(1, Ordering::Relaxed);
                if std::mem::take(&mut failing) {
                    tracing::info!(event = "jwks_reached", place = %location);
                }
                held.take(keys);
            }
            Err(reason) => {
                metrics.process.jwks_failures.inc();
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(event = "jwks_failed", place = %location, %reason, "the last keys stay in use");
                }
            }
        }
        held.fetched.send_modify(|count| *count += 1);
        drop(held);
        // Requests for a fetch within the pause are answered at once: nothing is new.
        let next = began + if ok { refresh } else { PAUSE };
        let soonest = began + PAUSE;
        loop {
            // Held for at most five seconds at a time, so that a source that nobody else has is dropped.
            let Some(held) = source.upgrade() else { return };
            let wanted = held.wanted.notified();
            tokio::pin!(wanted);
            let asked = tokio::select! {
                () = tokio::time::sleep_until(next.min(Instant::now() + Duration::from_secs(5))) => false,
                () = &mut wanted => true,
            };
            if asked && Instant::now() < soonest {
                // No fetch starts now, so waiters are released.
                held.fetched.send_modify(|count| *count += 1);
                continue;
            }
            if asked || Instant::now() >= next {
                break;
            }
        }
    }
}

async fn fetch(location: &KeyLocation, http: &dyn HttpClient) -> Result<Bytes, FetchError> {
    match location {
        KeyLocation::Url(url) => get("the keys", url, http).await,
        KeyLocation::Discovery(issuer) => {
            let said = describe(issuer, http).await?;
            if issuer.starts_with("https:") && !said.jwks_uri.starts_with("https:") {
                return Err(FetchError::Insecure);
            }
            get("the keys", &said.jwks_uri, http).await
        }
    }
}

/// Description of an issuer (OpenID Connect Discovery 1.0, section 3): the parts that are used here.
#[derive(Debug, Clone, Deserialize)]
pub struct Description {
    /// Name of the issuer.
    issuer: String,
    jwks_uri: String,
    /// Endpoint to which browsers are sent; left out by issuers of tokens for programs.
    pub authorization_endpoint: Option<String>,
    /// Endpoint at which a code becomes tokens.
    pub token_endpoint: Option<String>,
    /// Ways in which a client proves itself at the token endpoint; `client_secret_basic` when left out.
    pub token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// Fetches the description of an issuer.
pub(super) async fn describe(issuer: &str, http: &dyn HttpClient) -> Result<Description, FetchError> {
    let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let text = get("the description", &url, http).await?;
    let said: Description = serde_json::from_slice(&text).map_err(FetchError::Description)?;
    // OpenID Connect Discovery 1.0, section 4.3: the issuers must be the same.
    if said.issuer == issuer { Ok(said) } else { Err(FetchError::OtherIssuer(said.issuer)) }
}

async fn get(what: &'static str, url: &str, http: &dyn HttpClient) -> Result<Bytes, FetchError> {
    let request = http::Request::get(url)
        .header(http::header::ACCEPT, "application/json")
        .body(Bytes::new())
        .map_err(|source| FetchError::Request { what, server: server_of(url), source })?;
    let answer = http.call(request, FETCH).await;
    let answer = answer.map_err(|source| FetchError::Call { what, server: server_of(url), source })?;
    if answer.status() != http::StatusCode::OK {
        return Err(FetchError::Status { what, server: server_of(url), status: answer.status() });
    }
    Ok(answer.into_body())
}
