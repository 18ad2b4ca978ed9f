//! Levels that several gateways share, in a Redis or Valkey server: one atomic script and one round trip for all
//! reservations of a request. The module owns the connection and the task that keeps it, settles, and reports the
//! presence of this gateway. A request waits for the server at most `timeout`. After a first timeout all requests are
//! judged here, by this gateway's share, until the server answers again. Settlements go through a bounded queue; beyond
//! its end they are dropped and counted.

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
use spillway_config::values::ValueError;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::budgets::{Amount, until_next_window, window};
use super::reservation::{ReservationOutcome, ReservationRequest};
use super::rules::{Rule, RuleKind};
use crate::clock::unix_now;
use crate::telemetry::Metrics;
use crate::tls::TlsError;

/// Most settlements that wait for the task: a few MiB.
const QUEUE: usize = 65_536;
/// Longest life of a concurrency permit that its gateway does not release: the default of `timeouts.request`, ten
/// minutes, and half a minute more. A request that runs longer counts no more.
const LEASE: Duration = Duration::from_secs(630);
/// Time for which a budget is kept after its day or month, seconds: a day, for gateways whose clocks are behind.
const BUDGET_AFTER: u64 = 86_400;

/// Correction of the store after a request.
enum Settlement {
    Move { key: String, micros: f64 },
    Leave { key: String, lease: u64 },
    Spend { key: String, tokens: i64, nanos: i64 },
}

/// Reason why a shared store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file of authorities cannot be used.
    #[error("state.limits.redis: {0}")]
    Authorities(#[from] TlsError),
    /// The password is not in the place that the configuration names.
    #[error("state.limits.redis: {0}")]
    Password(#[from] ValueError),
    /// The client of the store refuses the URL or the authorities.
    #[error("state.limits.redis: {0}")]
    Client(#[from] redis::RedisError),
}

/// Shared store of levels.
pub(super) struct SharedStore {
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
    /// Client and queue of the task, until it begins.
    unbegun: Mutex<Option<(Client, mpsc::Receiver<Settlement>)>>,
}

impl Drop for SharedStore {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl SharedStore {
    /// Makes a store that is not connected yet. `gateways` is the number of gateways to assume until the store reports
    /// it. With TLS, `authorities` (PEM) are trusted in place of the system's.
    pub(super) fn new(
        written: &RedisState,
        authorities: Option<Vec<u8>>,
        gateways: u32,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, StoreError> {
        let mut info = written.url.as_str().into_connection_info()?;
        if let Some(password) = &written.password {
            let password = crate::credentials::secret(password)?;
            let settings = info.redis_settings().clone().set_password(password);
            info = info.set_redis_settings(settings);
        }
        let client = match authorities {
            None => Client::open(info),
            Some(pem) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem) }),
        }?;
        let (settlements, queue) = mpsc::channel(QUEUE);
        Ok(Arc::new(Self {
            prefix: format!("{{{}}}", written.key_prefix),
            timeout: written.timeout.0,
            reserve: Script::new(include_str!("reserve.lua")),
            connection: ArcSwapOption::empty(),
            lost: Arc::default(),
            gateways: AtomicU32::new(gateways),
            // No other gateway uses these numbers, nor this one after a restart.
            leases: AtomicU64::new(rand::random()),
            settlements,
            metrics: metrics.clone(),
            task: std::sync::OnceLock::new(),
            unbegun: Mutex::new(Some((client, queue))),
        }))
    }

    /// Starts the task that connects to the server, once.
    pub(super) fn begin(self: &Arc<Self>) {
        let Some((client, queue)) = self.unbegun.lock().take() else { return };
        let task = tokio::spawn(keep::keep(client, Arc::downgrade(self), queue, self.lost.clone())).abort_handle();
        let _ = self.task.set(task);
    }

    /// True if the server is connected, and how many gateways share it.
    pub(super) fn seen(&self) -> (bool, u32) {
        (self.connection.load().is_some(), self.gateways().get())
    }

    /// Gateways that share the limits, as last reported.
    pub(super) fn gateways(&self) -> NonZeroU32 {
        NonZeroU32::new(self.gateways.load(Ordering::Relaxed)).unwrap_or(NonZeroU32::MIN)
    }

    fn key(&self, number: u128) -> String {
        format!("{}:{number:032x}", self.prefix)
    }

    /// Makes all reservations or none. `None` if the server does not answer: then the request is judged here.
    pub(super) async fn reserve(
        &self,
        wanted: &[ReservationRequest<'_>],
    ) -> Option<(SmallVec<[ReservationOutcome; 8]>, u64)> {
        let connection = self.connection.load_full();
        let Some(connection) = connection else {
            self.metrics.process.limit_store_fallbacks.inc();
            return None;
        };
        let lease = self.leases.fetch_add(1, Ordering::Relaxed);
        let mut script = self.reserve.key(format!("{}:gateways", self.prefix));
        script.arg(lease);
        for request in wanted {
            self.add(&mut script, request);
        }
        let mut connection = (*connection).clone();
        let asked = tokio::time::timeout(self.timeout, script.invoke_async::<Vec<i64>>(&mut connection)).await;
        match asked {
            Ok(Ok(said)) if said.len() == wanted.len() * 4 => Some((outcomes(wanted, &said), lease)),
            wrong => {
                let reason = match &wrong {
                    Err(_) => "no answer within `timeout`".to_owned(),
                    Ok(Err(e)) => e.to_string(),
                    Ok(Ok(_)) => "an answer of the wrong length".to_owned(),
                };
                self.give_up(&reason);
                self.metrics.process.limit_store_fallbacks.inc();
                None
            }
        }
    }

    fn add(&self, script: &mut redis::ScriptInvocation<'_>, request: &ReservationRequest<'_>) {
        let rule = request.rule;
        let strict = u8::from(rule.on_exceeded == OnExceeded::Reject);
        match &rule.kind {
            RuleKind::Rate { limit, .. } => {
                script.key(self.key(rule.number ^ request.key)).arg("r").arg(strict);
                script.arg(request.amount).arg(micros(limit.every)).arg(limit.burst.get());
            }
            RuleKind::Concurrency { most, .. } => {
                script.key(self.key(rule.number ^ request.key)).arg("c").arg(strict);
                script.arg(most.get()).arg(LEASE.as_secs());
            }
            RuleKind::Budget { account, period, tokens, nanos, .. } => {
                let now = unix_now();
                let (window, next) = window(*period, now);
                let bound = |most: &Option<u64>| most.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX));
                let own = account.spent(now);
                script.key(self.budget_key(rule, window)).arg("b").arg(strict);
                script.arg(request.amount).arg(request.nanos).arg(bound(tokens)).arg(bound(nanos));
                script.arg(next.saturating_sub(now).saturating_add(BUDGET_AFTER)).arg(own.tokens).arg(own.nanos);
            }
        }
    }

    fn budget_key(&self, rule: &Rule, window: u64) -> String {
        let mut key = self.key(rule.number);
        let _ = write!(key, ":{window}");
        key
    }

    /// Drops the connection: no request waits for the server until it is back.
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
        let RuleKind::Budget { period, .. } = &rule.kind else { return };
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

/// Outcomes in the answer of the script, four numbers for each reservation.
fn outcomes(wanted: &[ReservationRequest<'_>], said: &[i64]) -> SmallVec<[ReservationOutcome; 8]> {
    let micros = |n: i64| Duration::from_micros(u64::try_from(n).unwrap_or(0));
    wanted
        .iter()
        .zip(said.chunks_exact(4))
        .map(|(request, said)| {
            let [ok, remaining, reset, wait] = said.try_into().unwrap_or([0; 4]);
            let (remaining, reset) = (u64::try_from(remaining).unwrap_or(0), micros(reset));
            let never = match &request.rule.kind {
                RuleKind::Rate { limit, .. } => request.amount > u64::from(limit.burst.get()),
                _ => false,
            };
            let wait = match &request.rule.kind {
                RuleKind::Budget { period, .. } => until_next_window(*period, unix_now()),
                _ => micros(wait),
            };
            if ok == 1 {
                ReservationOutcome::Granted { remaining, reset }
            } else if never {
                ReservationOutcome::TooMuch
            } else {
                ReservationOutcome::Refused { wait, remaining, reset }
            }
        })
        .collect()
}
