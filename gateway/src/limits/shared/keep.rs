//! Task that keeps the connection to a shared store: connects, sends settlements, and reports the presence of this
//! gateway.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script};
use tokio::sync::{Notify, mpsc};

use super::{Settlement, SharedStore};
use crate::clock::unix_now;
use crate::redis_client::LONGEST_ANSWER;

/// Most settlements of one round trip: some 20 KiB.
const BATCH: usize = 256;
/// Pause between attempts to connect: a server that restarts is back within it, and one that is down is not flooded.
const RETRY: Duration = Duration::from_millis(250);
/// Interval at which a gateway reports its presence.
const PRESENCE: Duration = Duration::from_secs(1);
/// Seconds for which a gateway counts after its last report: four may be lost.
const PRESENT: u64 = 5;

/// Keeps the connection, and sends settlements and presence through it, until the store is dropped.
pub(super) async fn keep(
    client: Client,
    shared: std::sync::Weak<SharedStore>,
    mut queue: mpsc::Receiver<Settlement>,
    lost: Arc<Notify>,
) {
    let me = format!("{:016x}", rand::random::<u64>());
    let settle = Script::new(include_str!("settle.lua"));
    let mut reported = false;
    loop {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(LONGEST_ANSWER))
            .set_response_timeout(Some(LONGEST_ANSWER));
        let connected = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            // Loads the script before the first request needs it: none pays a second round trip.
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
                reported = false;
                drop(store);
                let Err(e) = converse(&mut connection, &shared, &mut queue, &settle, &lost, &me).await else { return };
                let Some(store) = shared.upgrade() else { return };
                store.give_up(&e.to_string());
                // A report about this connection is not one about the next.
                let _ = futures::FutureExt::now_or_never(lost.notified());
            }
            Err(e) => {
                if !std::mem::replace(&mut reported, true) {
                    tracing::warn!(event = "limit_store_unreachable", reason = %e, "limits hold for this gateway's share");
                }
            }
        }
        // Settlements are of no use later: the levels in the store were lost or have moved on.
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

/// Sends settlements and presence; `Ok` once the store was dropped, an error once the server is gone.
async fn converse(
    connection: &mut MultiplexedConnection,
    shared: &std::sync::Weak<SharedStore>,
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

/// Reports the presence of this gateway, and reads how many are present.
async fn present(
    connection: &mut MultiplexedConnection,
    shared: &std::sync::Weak<SharedStore>,
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
