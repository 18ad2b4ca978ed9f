//! Levels that several gateways share, in a Redis or Valkey server: one atomic script and one round trip for all claims of
//! a request. It owns the connection and the task that keeps it, settles, and says that this gateway is there.
//! A request waits for the server at most `timeout`, once; from then on all are judged here, by this gateway's share,
//! until the server answers again. Settlements go through a bounded queue; what finds it full is lost and counted.

mod keep;

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Client, IntoConnectionInfo, Script, TlsCertificates};
use smallvec::SmallVec;
use spillway_config::schema::{OnExceeded, RedisState};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::budgets::{Amount, window};
use super::judging::{Answer, Claim};
use super::rules::{Kind, Rule};
use crate::clock::unix_now;
use crate::telemetry::Metrics;

/// Settlements that wait.
const QUEUE: usize = 65_536;
/// How long a place among running requests is kept when its gateway does not give it back: the default time of a request
/// (`timeouts.request`) and some. One that runs longer counts no more.
const LEASE: Duration = Duration::from_secs(630);
/// How long a budget is kept after its day or month.
const BUDGET_AFTER: u64 = 86_400;

/// A correction.
enum Settlement {
    Move { key: String, micros: f64 },
    Leave { key: String, lease: u64 },
    Spend { key: String, tokens: i64, nanos: i64 },
}

/// The shared store.
pub(super) struct Shared {
    prefix: String,
    timeout: Duration,
    reserve: Script,
    connection: ArcSwapOption<MultiplexedConnection>,
    lost: Arc<Notify>,
    gateways: AtomicU32,
    leases: AtomicU64,
    settlements: mpsc::Sender<Settlement>,
    metrics: Arc<Metrics>,
    task: std::sync::OnceLock<AbortHandle>,
    /// What the task takes when it begins.
    unbegun: Mutex<Option<(Client, mpsc::Receiver<Settlement>)>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl Shared {
    /// A store that is not asked yet; `gateways` are thought to share it until it says how many do.
    /// Where its server has TLS, `authorities` (PEM) are believed in place of the system's.
    pub(super) fn new(
        written: &RedisState,
        authorities: Option<Vec<u8>>,
        gateways: u32,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, String> {
        let mut info = written.url.as_str().into_connection_info().map_err(|e| e.to_string())?;
        if let Some(password) = &written.password {
            let password = password.resolve(&|name| std::env::var(name).ok()).map_err(|e| e.to_string())?;
            let settings = info.redis_settings().clone().set_password(password);
            info = info.set_redis_settings(settings);
        }
        let client = match authorities {
            None => Client::open(info),
            Some(pem) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem) }),
        };
        let client = client.map_err(|e| e.to_string())?;
        let (settlements, queue) = mpsc::channel(QUEUE);
        Ok(Arc::new(Self {
            prefix: format!("{{{}}}", written.key_prefix),
            timeout: written.timeout.0,
            reserve: Script::new(include_str!("reserve.lua")),
            connection: ArcSwapOption::empty(),
            lost: Arc::default(),
            gateways: AtomicU32::new(gateways),
            // A number that no other gateway uses, nor this one after a restart.
            leases: AtomicU64::new(rand::random()),
            settlements,
            metrics: metrics.clone(),
            task: std::sync::OnceLock::new(),
            unbegun: Mutex::new(Some((client, queue))),
        }))
    }

    /// Begins to reach the server, once.
    pub(super) fn begin(self: &Arc<Self>) {
        let Some((client, queue)) = self.unbegun.lock().take() else { return };
        let task = tokio::spawn(keep::keep(client, Arc::downgrade(self), queue, self.lost.clone())).abort_handle();
        let _ = self.task.set(task);
    }

    /// Whether the server is reached, and how many gateways it knows of.
    pub(super) fn seen(&self) -> (bool, u32) {
        (self.connection.load().is_some(), self.gateways().get())
    }

    /// Gateways that share the limits, as far as it was last known.
    pub(super) fn gateways(&self) -> NonZeroU32 {
        NonZeroU32::new(self.gateways.load(Ordering::Relaxed)).unwrap_or(NonZeroU32::MIN)
    }

    fn key(&self, number: u128) -> String {
        format!("{}:{number:032x}", self.prefix)
    }

    /// Takes all claims or none. `None` when the server cannot be asked: then the request is judged here.
    pub(super) async fn reserve(&self, claims: &[Claim<'_>]) -> Option<(SmallVec<[Answer; 8]>, u64)> {
        let connection = self.connection.load_full();
        let Some(connection) = connection else {
            self.metrics.process.limit_store_fallbacks.inc();
            return None;
        };
        let lease = self.leases.fetch_add(1, Ordering::Relaxed);
        let mut script = self.reserve.key(format!("{}:gateways", self.prefix));
        script.arg(lease);
        for claim in claims {
            self.add(&mut script, claim);
        }
        let mut connection = (*connection).clone();
        let asked = tokio::time::timeout(self.timeout, script.invoke_async::<Vec<i64>>(&mut connection)).await;
        match asked {
            Ok(Ok(said)) if said.len() == claims.len() * 4 => Some((answers(claims, &said), lease)),
            wrong => {
                let reason = match &wrong {
                    Err(_) => "it did not answer in time".to_owned(),
                    Ok(Err(e)) => e.to_string(),
                    Ok(Ok(_)) => "it gave an answer of the wrong length".to_owned(),
                };
                self.give_up(&reason);
                self.metrics.process.limit_store_fallbacks.inc();
                None
            }
        }
    }

    fn add(&self, script: &mut redis::ScriptInvocation<'_>, claim: &Claim<'_>) {
        let rule = claim.rule;
        let strict = u8::from(rule.on_exceeded() == OnExceeded::Reject);
        match &rule.kind {
            Kind::Rate { limit, .. } => {
                script.key(self.key(rule.number ^ claim.key)).arg("r").arg(strict);
                script.arg(claim.amount).arg(micros(limit.every)).arg(limit.burst.get());
            }
            Kind::Concurrency { most, .. } => {
                script.key(self.key(rule.number ^ claim.key)).arg("c").arg(strict);
                script.arg(most.get()).arg(LEASE.as_secs());
            }
            Kind::Budget { account, period, tokens, nanos, .. } => {
                let now = unix_now();
                let (window, next) = window(*period, now);
                let bound = |most: &Option<u64>| most.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX));
                let own = account.spent(now);
                script.key(self.budget_key(rule, window)).arg("b").arg(strict);
                script.arg(claim.amount).arg(claim.nanos).arg(bound(tokens)).arg(bound(nanos));
                script.arg(next.saturating_sub(now).saturating_add(BUDGET_AFTER)).arg(own.tokens).arg(own.nanos);
            }
        }
    }

    fn budget_key(&self, rule: &Rule, window: u64) -> String {
        let mut key = self.key(rule.number);
        let _ = write!(key, ":{window}");
        key
    }

    /// The server is gone; nobody waits for it until it is back.
    fn give_up(&self, reason: &str) {
        if self.connection.swap(None).is_some() {
            tracing::warn!(event = "limit_store_lost", reason, "limits hold for this gateway's share");
            self.lost.notify_one();
        }
    }

    fn send(&self, settlement: Settlement) {
        if self.settlements.try_send(settlement).is_err() {
            self.metrics.process.limit_settlements_lost.inc();
        }
    }

    pub(super) fn move_level(&self, rule: &Rule, key: u128, every: Duration, more: i64) {
        #[allow(clippy::cast_precision_loss, reason = "amounts of tokens are far below 2^52")]
        let micros = micros(every) * more as f64;
        self.send(Settlement::Move { key: self.key(rule.number ^ key), micros });
    }

    pub(super) fn leave(&self, rule: &Rule, key: u128, lease: u64) {
        self.send(Settlement::Leave { key: self.key(rule.number ^ key), lease });
    }

    pub(super) fn spend(&self, rule: &Rule, at: u64, taken: Amount, used: Amount) {
        let Kind::Budget { period, .. } = &rule.kind else { return };
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (tokens, nanos) = (signed(used.tokens) - signed(taken.tokens), signed(used.nanos) - signed(taken.nanos));
        if tokens != 0 || nanos != 0 {
            self.send(Settlement::Spend { key: self.budget_key(rule, window(*period, at).0), tokens, nanos });
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "intervals are far below 2^52 nanoseconds")]
fn micros(every: Duration) -> f64 {
    every.as_nanos() as f64 / 1e3
}

fn answers(claims: &[Claim<'_>], said: &[i64]) -> SmallVec<[Answer; 8]> {
    let micros = |n: i64| Duration::from_micros(u64::try_from(n).unwrap_or(0));
    claims
        .iter()
        .zip(said.chunks_exact(4))
        .map(|(claim, said)| {
            let [ok, remaining, reset, wait] = said.try_into().unwrap_or([0; 4]);
            let (remaining, reset) = (u64::try_from(remaining).unwrap_or(0), micros(reset));
            let never = match &claim.rule.kind {
                Kind::Rate { limit, .. } => claim.amount > u64::from(limit.burst.get()),
                _ => false,
            };
            let wait = match &claim.rule.kind {
                Kind::Budget { period, .. } => super::judging::until_next(*period, unix_now()),
                _ => micros(wait),
            };
            if ok == 1 {
                Answer::Taken { remaining, reset }
            } else if never {
                Answer::TooMuch
            } else {
                Answer::Refused { wait, remaining, reset }
            }
        })
        .collect()
}
