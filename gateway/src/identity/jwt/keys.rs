//! The keys of an issuer: fetched, kept, fetched again when a token names one that is not there. It owns one task for each
//! issuer with a URL; an issuer that is down keeps the keys that it had.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use jsonwebtoken::jwk::{Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use spillway_filter::HttpClient;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::telemetry::Metrics;

/// Longest fetch.
const FETCH: Duration = Duration::from_secs(5);
/// Shortest time between two fetches, whoever asks.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest wait of a request for the keys to be fetched.
const WAIT: Duration = Duration::from_secs(2);
/// Keys of an issuer that are looked at.
const MAX_KEYS: usize = 64;

/// What is said of a set that is of no use.
const NO_KEY: &str =
    "it holds no key that could check a signature (RSA of 2048 to 8192 bits, P-256, P-384 and Ed25519 keys can)";

/// Keys at a time.
#[derive(Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// Changes with the keys: what was verified under another number is verified again.
    pub(super) epoch: u64,
}

struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    /// The key as it was given, to see whether it changed.
    written: Jwk,
    key: DecodingKey,
}

impl KeySet {
    /// Keys that can check a signature; others are left out: secrets, curves without a verifier, RSA too short to be
    /// believed.
    fn read(text: &[u8]) -> Result<Vec<Key>, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(text).map_err(|e| format!("this is no JSON Web Key Set: {e}"))?;
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

    /// The one key that a token means. A key is for the kind of signature that it was made for, and where it says so for
    /// one algorithm alone. A token that names no key means the only one that fits.
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

    /// Whether a token's key is unknown, so that fetching might help.
    pub(super) fn lacks(&self, id: Option<&str>) -> bool {
        match id {
            Some(id) => !self.keys.iter().any(|key| key.id.as_deref() == Some(id)),
            None => self.keys.is_empty(),
        }
    }
}

/// One algorithm of each kind of key that there is a verifier for.
const KINDS: [Algorithm; 4] = [Algorithm::RS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

/// Whether a key is for signatures of an algorithm: of its family, on its curve (RFC 7518, 3.4; points as in SEC 1, 2.3.3,
/// without compression), and as long as verifiers ask for (RFC 7518, 3.3 and 3.5).
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

/// Bits of a number, the most significant byte first.
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

/// Where keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A JSON Web Key Set.
    Url(String),
    /// The issuer's own description (OpenID Connect Discovery 1.0, section 4) says where.
    Discovery(String),
}

impl std::fmt::Display for Place {
    /// The server alone: what stands behind it in a URL may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Url(text) | Self::Discovery(text)) = self;
        f.write_str(&server_of(text))
    }
}

/// The server of a URL, for messages: scheme, host and port.
fn server_of(url: &str) -> String {
    url::Url::parse(url).map_or_else(|_| "no URL".to_owned(), |url| url.origin().ascii_serialization())
}

/// Keys of one issuer; kept over reloads.
pub(in crate::identity) struct KeySource {
    set: ArcSwap<KeySet>,
    epochs: AtomicU64,
    /// Counts fetches that went well.
    succeeded: AtomicU64,
    /// Counts fetches that have ended, well or not.
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
    /// No keys yet.
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

    /// Keys from a file.
    pub(super) fn from_file(path: &Path) -> Result<Arc<Self>, String> {
        let text = spillway_config::read_bytes(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let source = Self::empty();
        let keys = KeySet::read(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        if keys.is_empty() {
            return Err(format!("{}: {NO_KEY}", path.display()));
        }
        source.take(keys);
        Ok(Arc::new(source))
    }

    /// Begins to fetch keys, once.
    pub(super) fn begin(
        self: &Arc<Self>,
        place: Place,
        refresh: Duration,
        http: Arc<dyn HttpClient>,
        metrics: Arc<Metrics>,
    ) {
        let source = Arc::downgrade(self);
        self.task.get_or_init(|| tokio::spawn(keep(source, place, refresh, http, metrics)).abort_handle());
    }

    /// The keys now.
    pub(super) fn set(&self) -> Arc<KeySet> {
        self.set.load_full()
    }

    /// Whether its keys were ever had: until then nobody can know who is believed.
    pub(in crate::identity) fn is_known(&self) -> bool {
        self.task.get().is_none() || self.succeeded.load(Ordering::Relaxed) > 0
    }

    /// Asks for the keys to be fetched and waits for that, for a bounded time; at once when that would change nothing.
    pub(in crate::identity) async fn refresh(&self) {
        let mut fetched = self.fetched.subscribe();
        fetched.mark_unchanged();
        if self.task.get().is_none() {
            return;
        }
        self.wanted.notify_one();
        let _ = tokio::time::timeout(WAIT, fetched.changed()).await;
    }

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
    place: Place,
    refresh: Duration,
    http: Arc<dyn HttpClient>,
    metrics: Arc<Metrics>,
) {
    let mut failing = false;
    loop {
        let began = Instant::now();
        let got = fetch(&place, &*http).await.and_then(|text| KeySet::read(&text));
        let Some(held) = source.upgrade() else { return };
        let ok = got.is_ok();
        match got {
            Ok(keys) => {
                // An issuer may withdraw its last key; nobody is believed by it then.
                if keys.is_empty() && !held.set().keys.is_empty() {
                    tracing::warn!(event = "jwks_empty", place = %place, reason = NO_KEY);
                }
                held.succeeded.fetch_add(1, Ordering::Relaxed);
                if std::mem::take(&mut failing) {
                    tracing::info!(event = "jwks_reached", place = %place);
                }
                held.take(keys);
            }
            Err(reason) => {
                metrics.process.jwks_failures.inc();
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(event = "jwks_failed", place = %place, reason, "the keys that are there are kept");
                }
            }
        }
        held.fetched.send_modify(|count| *count += 1);
        drop(held);
        // Whoever asks within the pause is told that nothing is new when it is over, or stops waiting.
        let next = began + if ok { refresh } else { PAUSE };
        let soonest = began + PAUSE;
        loop {
            let Some(held) = source.upgrade() else { return };
            let wanted = held.wanted.notified();
            tokio::pin!(wanted);
            let asked = tokio::select! {
                () = tokio::time::sleep_until(next.min(Instant::now() + Duration::from_secs(5))) => false,
                () = &mut wanted => true,
            };
            if asked && Instant::now() < soonest {
                // No fetch: nobody waits for one in vain.
                held.fetched.send_modify(|count| *count += 1);
                continue;
            }
            if asked || Instant::now() >= next {
                break;
            }
        }
    }
}

async fn fetch(place: &Place, http: &dyn HttpClient) -> Result<Bytes, String> {
    match place {
        Place::Url(url) => get("the keys", url, http).await,
        Place::Discovery(issuer) => {
            #[derive(Deserialize)]
            struct Description {
                issuer: String,
                jwks_uri: String,
            }
            let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
            let text = get("the description", &url, http).await?;
            let said: Description = serde_json::from_slice(&text).map_err(|e| format!("the description: {e}"))?;
            // OpenID Connect Discovery 1.0, section 4.3: they must be the same.
            if said.issuer != *issuer {
                return Err(format!("the description is of `{}`", said.issuer));
            }
            if issuer.starts_with("https:") && !said.jwks_uri.starts_with("https:") {
                return Err("the keys of an https issuer must not come over http".to_owned());
            }
            get("the keys", &said.jwks_uri, http).await
        }
    }
}

async fn get(what: &str, url: &str, http: &dyn HttpClient) -> Result<Bytes, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{what} at {}: {why}", server_of(url));
    let request = http::Request::get(url)
        .header(http::header::ACCEPT, "application/json")
        .body(Bytes::new())
        .map_err(|e| failed(&e))?;
    let answer = http.call(request, FETCH).await.map_err(|e| failed(&e))?;
    if answer.status() != http::StatusCode::OK {
        return Err(failed(&format!("it answered {}", answer.status())));
    }
    Ok(answer.into_body())
}
