//! The task that keeps the connection to a shared store: it reaches the server again and again, tells it what was
//! corrected, and says that this gateway is there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script};
use tokio::sync::{Notify, mpsc};

use super::{Settlement, Shared};
use crate::clock::unix_now;

/// Settlements that go in one round trip.
const BATCH: usize = 256;
/// Pause between tries to reach the server.
const RETRY: Duration = Duration::from_millis(250);
/// How often a gateway says that it is there.
const PRESENCE: Duration = Duration::from_secs(1);
/// How long one that says nothing counts.
const PRESENT: u64 = 5;

/// Keeps the connection, and what goes through it besides reservations, until the store is dropped.
pub(super) async fn keep(
    client: Client,
    shared: std::sync::Weak<Shared>,
    mut queue: mpsc::Receiver<Settlement>,
    lost: Arc<Notify>,
) {
    let me = format!("{:016x}", rand::random::<u64>());
    let settle = Script::new(include_str!("settle.lua"));
    let mut told = false;
    loop {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(1)));
        let connected = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            // The script is there before the first request asks for it: none pays a second round trip.
            if let Some(shared) = shared.upgrade() {
                shared.reserve.load_async(&mut connection).await?;
            }
            present(&mut connection, &shared, &me).await?;
            Ok::<_, redis::RedisError>(connection)
        };
        match connected.await {
            Ok(mut connection) => {
                let Some(store) = shared.upgrade() else { return };
                store.connection.store(Some(Arc::new(connection.clone())));
                tracing::info!(event = "limit_store_reached", gateways = store.gateways().get());
                told = false;
                drop(store);
                let Err(e) = converse(&mut connection, &shared, &mut queue, &settle, &lost, &me).await else { return };
                let Some(store) = shared.upgrade() else { return };
                store.give_up(&e.to_string());
                // What was said of this connection is not said of the next one.
                let _ = futures::FutureExt::now_or_never(lost.notified());
            }
            Err(e) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(event = "limit_store_unreachable", reason = %e, "limits hold for this gateway's share");
                }
            }
        }
        // What was to be corrected there is of no use later: the levels there were lost or have moved on.
        let mut lost = 0;
        while queue.try_recv().is_ok() {
            lost += 1;
        }
        let Some(store) = shared.upgrade() else { return };
        store.metrics.process.limit_settlements_lost.inc_by(lost);
        drop(store);
        tokio::time::sleep(RETRY).await;
    }
}

/// `Ok` when the store was dropped, an error when the server is gone.
async fn converse(
    connection: &mut MultiplexedConnection,
    shared: &std::sync::Weak<Shared>,
    queue: &mut mpsc::Receiver<Settlement>,
    settle: &Script,
    lost: &Notify,
    me: &str,
) -> redis::RedisResult<()> {
    let mut presence = tokio::time::interval(PRESENCE);
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            count = queue.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
                let mut script = settle.prepare_invoke();
                for settlement in batch.drain(..) {
                    match settlement {
                        Settlement::Move { key, micros } => script.key(key).arg("r").arg(micros),
                        Settlement::Leave { key, lease } => script.key(key).arg("c").arg(lease),
                        Settlement::Spend { key, tokens, nanos } => script.key(key).arg("b").arg(tokens).arg(nanos),
                    };
                }
                script.invoke_async::<i64>(connection).await?;
            }
            _ = presence.tick() => present(connection, shared, me).await?,
            () = lost.notified() => {
                let why = (redis::ErrorKind::Io, "a request was not answered in time");
                return Err(redis::RedisError::from(why));
            }
        }
    }
}

/// Says that this gateway is there, and learns how many are.
async fn present(
    connection: &mut MultiplexedConnection,
    shared: &std::sync::Weak<Shared>,
    me: &str,
) -> redis::RedisResult<()> {
    let Some(store) = shared.upgrade() else { return Ok(()) };
    let key = format!("{}:gateways", store.prefix);
    let now = unix_now();
    let (gateways,): (u32,) = redis::pipe()
        .atomic()
        .cmd("ZADD")
        .arg(&key)
        .arg(now)
        .arg(me)
        .ignore()
        .cmd("ZREMRANGEBYSCORE")
        .arg(&key)
        .arg("-inf")
        .arg(now.saturating_sub(PRESENT))
        .ignore()
        .cmd("EXPIRE")
        .arg(&key)
        .arg(3600)
        .ignore()
        .cmd("ZCARD")
        .arg(&key)
        .query_async(connection)
        .await?;
    store.gateways.store(gateways, Ordering::Relaxed);
    Ok(())
}
