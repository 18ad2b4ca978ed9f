//! Obtains certificates from an authority (ACME, RFC 8555). The module owns the obtained certificates, one task for
//! each, and the challenges that are published meanwhile; instant-acme implements the protocol. No listener is opened
//! here: listeners ask for certificates and for answers to challenges. Inputs are `listeners[].tls.acme` and the folder
//! that stores certificates.

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
use spillway_config::values::ValueError;
use spillway_filter::HttpClient;
use tokio::task::AbortHandle;

pub use challenges::Challenges;

use super::{CertificatePair, TlsError, authorities, read};
use crate::http_client::Http;
use crate::telemetry::Metrics;
use order::OrderError;
use storage::Storage;

/// Longest order, from the first request to the certificate: ten minutes, above the polling limits of its parts.
const ORDER: Duration = Duration::from_secs(600);
/// Shortest pause after the authority has reported too many orders: an hour, the usual window of authorities.
const TOO_MANY: Duration = Duration::from_secs(3600);
/// Longest sleep, an hour: a clock that was set, or a machine that slept, is noticed after it.
const NAP: Duration = Duration::from_secs(3600);
/// Longest pause between attempts to store a certificate: a minute, in which a mended folder or disk is noticed.
const STORE_AGAIN: Duration = Duration::from_secs(60);

/// Identity of an obtained certificate over reloads.
type ManagedId = [u8; 32];

/// Obtained certificates of the process.
pub struct Acme {
    challenges: Arc<Challenges>,
    known: Mutex<HashMap<ManagedId, Weak<ManagedCertificate>>>,
    running: Mutex<HashMap<ManagedId, RenewalTask>>,
    /// Accounts that could not be stored, by their files: authorities limit new accounts. The lock is held while an
    /// account is looked up or made, so that two certificates do not make two.
    account: tokio::sync::Mutex<HashMap<PathBuf, String>>,
    metrics: Arc<Metrics>,
}

/// Task that obtains and renews a certificate, with the certificate.
struct RenewalTask {
    _managed: Arc<ManagedCertificate>,
    task: AbortHandle,
}

impl Drop for RenewalTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Certificate that is obtained and renewed.
pub struct ManagedCertificate {
    id: ManagedId,
    written: schema::Acme,
    hmac_key: Option<Vec<u8>>,
    http: Arc<dyn HttpClient>,
    storage: Storage,
    pair: ArcSwapOption<CertificatePair>,
    /// Random number from 0 to 1: gateways that got their certificates at the same time renew them at different ones.
    jitter: f64,
}

impl std::fmt::Debug for ManagedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ManagedCertificate({:?})", self.written.domains)
    }
}

impl Acme {
    /// Starts without certificates.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            challenges: Arc::default(),
            known: Mutex::default(),
            running: Mutex::default(),
            account: tokio::sync::Mutex::default(),
            metrics,
        }
    }

    /// Published challenges.
    pub fn challenges(&self) -> &Arc<Challenges> {
        &self.challenges
    }

    /// Returns the certificate of a configuration, with its stored content. No order starts before [`Self::keep`].
    /// Reads files: not for the runtime's threads.
    pub fn certificate(&self, written: &schema::Acme) -> Result<Arc<ManagedCertificate>, TlsError> {
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
                let key = external_key(account)?;
                digest.update(&key);
                Some(key)
            }
        };
        let id = digest.finalize().into();
        let mut known = self.known.lock();
        known.retain(|_, managed| managed.strong_count() > 0);
        if let Some(managed) = known.get(&id).and_then(Weak::upgrade) {
            return Ok(managed);
        }
        let managed = Arc::new(ManagedCertificate::new(id, written.clone(), hmac_key, roots));
        known.insert(id, Arc::downgrade(&managed));
        Ok(managed)
    }

    /// Obtains and renews these certificates from now on, and no others.
    pub fn keep(self: &Arc<Self>, wanted: &[Arc<ManagedCertificate>]) {
        let mut running = self.running.lock();
        running.retain(|id, _| wanted.iter().any(|managed| managed.id == *id));
        for managed in wanted {
            running.entry(managed.id).or_insert_with(|| RenewalTask {
                _managed: managed.clone(),
                task: tokio::spawn(obtain_and_renew(self.clone(), managed.clone())).abort_handle(),
            });
        }
    }

    /// Ends all tasks.
    pub fn stop(&self) {
        self.running.lock().clear();
    }
}

/// Reason why the key of an external account cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExternalAccountError {
    /// The secret is not in the place that the configuration names.
    #[error(transparent)]
    Secret(#[from] ValueError),
    /// The secret has characters that base64url does not have.
    #[error("`acme.externalAccount.hmacKey` is no base64url: expected A to Z, a to z, 0 to 9, `-` and `_`")]
    NotBase64Url,
}

fn external_key(account: &schema::ExternalAccount) -> Result<Vec<u8>, ExternalAccountError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let text = crate::credentials::secret(&account.hmac_key)?;
    let key = URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('='));
    key.map_err(|_| ExternalAccountError::NotBase64Url)
}

impl ManagedCertificate {
    fn new(id: ManagedId, written: schema::Acme, hmac_key: Option<Vec<u8>>, roots: Option<RootCertStore>) -> Self {
        let storage = Storage::new(&written);
        let stored = storage.certificate();
        if let Some(Err(e)) = &stored {
            tracing::warn!(event = "stored_certificate_not_used", reason = %e, "a new certificate is obtained");
        }
        let pair = stored.and_then(Result::ok).filter(|pair| written.domains.iter().all(|name| pair.names.cover(name)));
        Self {
            id,
            http: Arc::new(roots.map_or_else(Http::default, Http::with_roots)),
            storage,
            pair: ArcSwapOption::from(pair.map(Arc::new)),
            jitter: rand::random(),
            hmac_key,
            written,
        }
    }

    /// Digest over the configuration and the files that it names.
    pub(super) fn id(&self) -> &[u8] {
        &self.id
    }

    /// Names that the certificate is ordered for.
    pub fn domains(&self) -> &[String] {
        &self.written.domains
    }

    /// True if the authority verifies the names in TLS handshakes.
    pub fn is_challenged_by_tls(&self) -> bool {
        self.written.challenge == schema::AcmeChallenge::TlsAlpn01
    }

    /// Current certificate, if there is one.
    pub fn pair(&self) -> Option<Arc<CertificatePair>> {
        self.pair.load_full()
    }

    /// Time until the certificate is renewed.
    fn due(&self, now: i64) -> Duration {
        let Some(pair) = self.pair() else { return Duration::ZERO };
        let renewed = renewal(pair.valid, self.written.renew_before.map(|before| before.0), self.jitter);
        Duration::from_secs(u64::try_from(renewed.saturating_sub(now)).unwrap_or(0))
    }

    /// Waits until the certificate is renewed.
    async fn until_due(&self) {
        loop {
            let due = self.due(unix_now());
            if due.is_zero() {
                return;
            }
            tokio::time::sleep(due.min(NAP)).await;
        }
    }

    /// Pause after a number of failed orders in a row.
    fn pause(&self, failures: u32, error: &OrderError) -> Duration {
        let (base, max) = (self.written.retry.base.0, self.written.retry.max.0);
        let pause = base.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(31))).min(max);
        // Draws a pause between a half and all of it.
        let pause = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        if error.is_rate_limit() { pause.max(TOO_MANY) } else { pause }
    }
}

/// Unix second at which a certificate is renewed: `before` its end, or by `jitter` up to a tenth of `before` earlier.
/// No renewal falls in the first third of its life.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "times of certificates are below 2^53")]
fn renewal((from, to): (i64, i64), before: Option<Duration>, jitter: f64) -> i64 {
    let life = to.saturating_sub(from).max(0) as f64;
    let before = before.map_or(life / 3.0, |before| before.as_secs_f64());
    // A time longer than the life of certificates would renew without end.
    let before = (before * (1.0 + jitter / 10.0)).min(life * 2.0 / 3.0);
    to.saturating_sub(before as i64)
}

fn unix_now() -> i64 {
    i64::try_from(crate::clock::unix_now()).unwrap_or(i64::MAX)
}

/// Obtains a certificate and renews it, until the task is aborted.
async fn obtain_and_renew(acme: Arc<Acme>, managed: Arc<ManagedCertificate>) {
    let domains = managed.written.domains.join(", ");
    let (mut failures, mut pause, mut unstored) = (0, Duration::ZERO, None);
    loop {
        {
            let due = async {
                tokio::time::sleep(pause).await;
                managed.until_due().await;
            };
            // Never ends: a certificate that cannot be stored is tried again until the next one is due.
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
                // The certificate is served before the log line says so.
                managed.pair.store(Some(pair.clone()));
                unstored = Some(pair);
                acme.metrics.acme_ok.inc();
                tracing::info!(event = "certificate_issued", domains, ends);
                // Even a certificate with senseless times must not cause orders without end.
                managed.written.retry.base.0
            }
            Err(e) => {
                failures += 1;
                let pause = managed.pause(failures, &e);
                acme.metrics.acme_failed.inc();
                let kept = if managed.pair().is_some() {
                    "the current certificate stays in use"
                } else {
                    "there is no certificate yet"
                };
                tracing::warn!(event = "acme_failed", domains, reason = %e, next_try_seconds = pause.as_secs_f64(), "{kept}");
                pause
            }
        };
    }
}

/// Stores a certificate, which is served meanwhile. Failed attempts are repeated, because a folder may be mended or a
/// disk freed.
async fn store(acme: &Acme, managed: &Arc<ManagedCertificate>, pair: &Arc<CertificatePair>) {
    let domains = managed.written.domains.join(", ");
    let pause = managed.written.retry.base.0.min(STORE_AGAIN);
    let mut failing = false;
    while let Err(e) = order::store(managed, pair).await {
        acme.metrics.process.acme_unstored.inc();
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(event = "certificate_not_stored", domains, reason = %e, "served, and lost when the process ends");
        }
        tokio::time::sleep(pause).await;
    }
    if failing {
        tracing::info!(event = "certificate_stored", domains);
    }
}
