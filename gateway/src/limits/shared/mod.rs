//! Levels that several gateways share, in a Redis or Valkey server: one atomic script and one round trip for all
//! reservations of a request. The module owns the connection and the task that keeps it, settles, and reports the
//! presence of this gateway. A request waits for the server at most `timeout`. After a first timeout all requests are
//! judged here, by this gateway's share, until the server answers again. Settlements go through a bounded queue; beyond
//! its end they are dropped and counted.

mod keep;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Client, Script};
use spillway_config::schema::RedisState;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use crate::redis_client::{self, ClientError};
use crate::telemetry::Metrics;

/// Most settlements that wait for the task: a few MiB.
const QUEUE: usize = 65_536;

/// Correction of the store after a request.
pub(super) enum Settlement {
    Move { key: String, micros: f64 },
    Leave { key: String, lease: u64 },
    Spend { key: String, tokens: i64, nanos: i64 },
}

/// Reason why a shared store cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("state.limits.redis: {0}")]
pub struct StoreError(#[from] pub ClientError);

/// Shared store of levels.
pub(super) struct SharedStore {
    pub(super) prefix: String,
    pub(super) timeout: Duration,
    pub(super) reserve: Script,
    pub(super) connection: ArcSwapOption<MultiplexedConnection>,
    lost: Arc<Notify>,
    gateways: AtomicU32,
    pub(super) leases: AtomicU64,
    settlements: mpsc::Sender<Settlement>,
    pub(super) metrics: Arc<Metrics>,
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
        let client = redis_client::client(written, authorities)?;
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

    pub(super) fn key(&self, number: u128) -> String {
        format!("{}:{number:032x}", self.prefix)
    }

    /// Drops the connection: no request waits for the server until it is back.
    pub(super) fn give_up(&self, reason: &str) {
        if self.connection.swap(None).is_some() {
            tracing::warn!(event = "limit_store_lost", reason, "limits hold for this gateway's share");
            self.lost.notify_one();
        }
    }

    pub(super) fn send(&self, settlement: Settlement) {
        if self.settlements.try_send(settlement).is_err() {
            self.metrics.process.limit_settlements_lost.inc();
        }
    }

    /// Settles a level by `more` units, each of which takes `every` to return. `key` is that of the rule and its subject.
    pub(super) fn move_level(&self, key: u128, every: Duration, more: i64) {
        #[allow(clippy::cast_precision_loss, reason = "amounts of tokens are far below 2^52")]
        let micros = micros(every) * more as f64;
        self.send(Settlement::Move { key: self.key(key), micros });
    }

    /// Releases a concurrency permit.
    pub(super) fn leave(&self, key: u128, lease: u64) {
        self.send(Settlement::Leave { key: self.key(key), lease });
    }
}

#[allow(clippy::cast_precision_loss, reason = "intervals are far below 2^52 nanoseconds")]
pub(super) fn micros(every: Duration) -> f64 {
    every.as_nanos() as f64 / 1e3
}
