//! Certificates that an authority issues without anybody's hand (ACME, RFC 8555). It owns the certificates that are
//! obtained so, one task for each that runs, and the challenges that are shown meanwhile; the protocol with the authority
//! is instant-acme's. It opens no listener: those ask it for certificates and for answers to challenges.
//! Its inputs are `listeners[].tls.acme` and the folder that certificates are stored in.

mod challenges;
mod order;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::RootCertStore;
use sha2::{Digest, Sha256};
use spillway_config::schema;
use spillway_filter::HttpClient;
use tokio::task::AbortHandle;

pub use challenges::Challenges;

use super::{Pair, TlsError, authorities, read};
use crate::http_client::Http;
use crate::telemetry::Metrics;
use order::OrderError;
use storage::Storage;

/// Longest order, from the first question to the certificate.
const ORDER: Duration = Duration::from_secs(600);
/// Shortest pause after the authority has said that there were too many orders.
const TOO_MANY: Duration = Duration::from_secs(3600);
/// Longest sleep: a clock that was set, or a machine that slept, is noticed after it.
const NAP: Duration = Duration::from_secs(3600);
/// Longest pause until what could not be stored is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(60);

/// What an obtained certificate is known by over reloads.
type Key = [u8; 32];

/// All certificates that are obtained.
pub struct Acme {
    challenges: Arc<Challenges>,
    known: Mutex<HashMap<Key, Weak<Managed>>>,
    running: Mutex<HashMap<Key, Running>>,
    /// Held while an account is looked up or made, so that two certificates do not make two. Accounts that could not be
    /// stored, by their files: an authority lets nobody make one for each order.
    account: tokio::sync::Mutex<HashMap<PathBuf, String>>,
    metrics: Arc<Metrics>,
}

/// A certificate that is looked after, and the task that does.
struct Running {
    _managed: Arc<Managed>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One certificate that is obtained and renewed.
pub struct Managed {
    key: Key,
    written: schema::Acme,
    hmac_key: Option<Vec<u8>>,
    http: Arc<dyn HttpClient>,
    storage: Storage,
    pair: ArcSwapOption<Pair>,
    /// From 0 to 1: gateways that got their certificates at the same time renew them at different ones.
    jitter: f64,
}

impl std::fmt::Debug for Managed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Managed({:?})", self.written.domains)
    }
}

impl Acme {
    /// None is obtained yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            challenges: Arc::default(),
            known: Mutex::default(),
            running: Mutex::default(),
            account: tokio::sync::Mutex::default(),
            metrics,
        }
    }

    /// Answers to challenges that are shown now.
    pub fn challenges(&self) -> &Arc<Challenges> {
        &self.challenges
    }

    /// The certificate for what is written, with what is stored of it. It is obtained when it is kept, not before.
    /// Reads files: not for the runtime's threads.
    pub fn certificate(&self, written: &schema::Acme) -> Result<Arc<Managed>, TlsError> {
        let mut digest = Sha256::new();
        digest.update(format!("{written:?}"));
        let roots = match &written.ca_file {
            None => None,
            Some(file) => {
                let pem = read(file)?;
                digest.update(&pem);
                Some(authorities(file, &pem)?.roots)
            }
        };
        let hmac_key = match &written.external_account {
            None => None,
            Some(account) => {
                let key = external_key(account).map_err(TlsError::setup)?;
                digest.update(&key);
                Some(key)
            }
        };
        let key = digest.finalize().into();
        let mut known = self.known.lock();
        known.retain(|_, managed| managed.strong_count() > 0);
        if let Some(managed) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(managed);
        }
        let managed = Arc::new(Managed::new(key, written.clone(), hmac_key, roots));
        known.insert(key, Arc::downgrade(&managed));
        Ok(managed)
    }

    /// Looks after these certificates from now on, and after no others.
    pub fn keep(self: &Arc<Self>, wanted: &[Arc<Managed>]) {
        let mut running = self.running.lock();
        running.retain(|key, _| wanted.iter().any(|managed| managed.key == *key));
        for managed in wanted {
            running.entry(managed.key).or_insert_with(|| Running {
                _managed: managed.clone(),
                task: tokio::spawn(look_after(self.clone(), managed.clone())).abort_handle(),
            });
        }
    }

    /// Ends all tasks.
    pub fn stop(&self) {
        self.running.lock().clear();
    }
}

fn external_key(account: &schema::ExternalAccount) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let text = account.hmac_key.resolve(&|name| std::env::var(name).ok()).map_err(|e| e.to_string())?;
    let key = URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('='));
    key.map_err(|_| "`acme.externalAccount.hmacKey` is no base64url".to_owned())
}

impl Managed {
    fn new(key: Key, written: schema::Acme, hmac_key: Option<Vec<u8>>, roots: Option<RootCertStore>) -> Self {
        let storage = Storage::new(&written);
        let stored = storage.certificate();
        if let Some(Err(e)) = &stored {
            tracing::warn!(event = "stored_certificate_not_used", reason = %e, "another one is obtained");
        }
        let pair = stored.and_then(Result::ok).filter(|pair| written.domains.iter().all(|name| pair.names.cover(name)));
        Self {
            key,
            http: Arc::new(roots.map_or_else(Http::default, Http::with_roots)),
            storage,
            pair: ArcSwapOption::from(pair.map(Arc::new)),
            jitter: rand::random(),
            hmac_key,
            written,
        }
    }

    /// Over what is written of it and the files that this names.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// The names that it is for.
    pub fn domains(&self) -> &[String] {
        &self.written.domains
    }

    /// Whether it is shown in a TLS handshake that it is ours to have.
    pub fn is_challenged_by_tls(&self) -> bool {
        self.written.challenge == schema::AcmeChallenge::TlsAlpn01
    }

    /// The certificate, if there is one.
    pub fn pair(&self) -> Option<Arc<Pair>> {
        self.pair.load_full()
    }

    /// How long it is until another one is wanted.
    fn due(&self, now: i64) -> Duration {
        let Some(pair) = self.pair() else { return Duration::ZERO };
        let renewed = renewal(pair.valid, self.written.renew_before.map(|before| before.0), self.jitter);
        Duration::from_secs(u64::try_from(renewed.saturating_sub(now)).unwrap_or(0))
    }

    /// Waits until another one is wanted.
    async fn until_due(&self) {
        loop {
            let due = self.due(unix_now());
            if due.is_zero() {
                return;
            }
            tokio::time::sleep(due.min(NAP)).await;
        }
    }

    /// The pause after so many orders in a row that failed.
    fn pause(&self, failures: u32, error: &OrderError) -> Duration {
        let (base, max) = (self.written.retry.base.0, self.written.retry.max.0);
        let pause = base.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(31))).min(max);
        // Between a half and all of it.
        let pause = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        if error.is_rate_limit() { pause.max(TOO_MANY) } else { pause }
    }
}

/// When a certificate is renewed, in Unix seconds: so long before its end, up to a tenth more.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "times of certificates are below 2^53")]
fn renewal((from, to): (i64, i64), before: Option<Duration>, jitter: f64) -> i64 {
    let life = to.saturating_sub(from).max(0) as f64;
    let before = before.map_or(life / 3.0, |before| before.as_secs_f64());
    // Longer than it lives would be at once and for ever.
    let before = (before * (1.0 + jitter / 10.0)).min(life * 2.0 / 3.0);
    to.saturating_sub(before as i64)
}

fn unix_now() -> i64 {
    i64::try_from(crate::clock::unix_now()).unwrap_or(i64::MAX)
}

/// Obtains a certificate and renews it, for as long as it is kept.
async fn look_after(acme: Arc<Acme>, managed: Arc<Managed>) {
    let domains = managed.written.domains.join(", ");
    let (mut failures, mut pause, mut unstored) = (0, Duration::ZERO, None);
    loop {
        {
            let due = async {
                tokio::time::sleep(pause).await;
                managed.until_due().await;
            };
            let stored = async {
                if let Some(pair) = &unstored {
                    store(&acme, &managed, pair).await;
                }
                unstored = None;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = due => {}
                () = stored => {}
            }
        }
        let ordered =
            tokio::time::timeout(ORDER, order::run(&acme, &managed)).await.unwrap_or(Err(OrderError::TooSlow));
        pause = match ordered {
            Ok(pair) => {
                failures = 0;
                let (ends, pair) = (pair.valid.1, Arc::new(pair));
                // It is told when it is true: whoever reads the line gets this certificate.
                managed.pair.store(Some(pair.clone()));
                unstored = Some(pair);
                acme.metrics.acme_ok.inc();
                tracing::info!(event = "certificate_issued", domains, ends);
                // Even where its times make no sense to us, the authority is not asked without end.
                managed.written.retry.base.0
            }
            Err(e) => {
                failures += 1;
                let pause = managed.pause(failures, &e);
                acme.metrics.acme_failed.inc();
                let kept = if managed.pair().is_some() {
                    "the certificate that is there is kept"
                } else {
                    "there is none yet"
                };
                tracing::warn!(event = "acme_failed", domains, reason = %e, next_try_seconds = pause.as_secs_f64(), "{kept}");
                pause
            }
        };
    }
}

/// Stores a certificate, which is served meanwhile, however often that fails: the folder may be mended, or the disk freed.
async fn store(acme: &Acme, managed: &Arc<Managed>, pair: &Arc<Pair>) {
    let domains = managed.written.domains.join(", ");
    let pause = managed.written.retry.base.0.min(STORE_AGAIN);
    let mut failing = false;
    while let Err(e) = order::store(managed, pair).await {
        acme.metrics.process.acme_unstored.inc();
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(event = "certificate_not_stored", domains, reason = %e, "it is served, and lost with the process");
        }
        tokio::time::sleep(pause).await;
    }
    if failing {
        tracing::info!(event = "certificate_stored", domains);
    }
}
