//! Task that keeps the connections to the shared store of answers: connects, writes answers, and finds out that an idle
//! server is gone.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, Pipeline};
use tokio::sync::{Notify, mpsc};

use super::{Queued, Server, is_of_server, patient};
use crate::telemetry::CacheWrite;

/// Most answers of one round trip.
const BATCH: usize = 32;
/// First pause between attempts to connect: a server that restarts is back within it.
const RETRY: Duration = Duration::from_millis(250);
/// Longest pause: a server that is down is not flooded.
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// Interval at which an idle server is asked for a sign of life.
const SIGN: Duration = Duration::from_secs(1);

/// Keeps the connections, and writes answers, until the store is dropped.
pub(super) async fn keep(client: Client, server: Weak<Server>, mut queue: mpsc::Receiver<Queued>, lost: Arc<Notify>) {
    let mut pause = RETRY;
    let mut is_reported = false;
    loop {
        let connected = async {
            let looks = client.get_multiplexed_async_connection_with_config(&patient()).await?;
            // Long answers on their way in hold up no request that looks for one.
            let writes = client.get_multiplexed_async_connection_with_config(&patient()).await?;
            Ok::<_, redis::RedisError>((looks, writes))
        };
        match connected.await {
            Ok((mut looks, mut writes)) => {
                let Some(store) = server.upgrade() else { return };
                // A report about the last connection is not one about this.
                let _ = futures::FutureExt::now_or_never(lost.notified());
                store.connection.store(Some(Arc::new(looks.clone())));
                store.returns.add(1, |times| tracing::info!(event = "cache_store_reached", times));
                drop(store);
                (pause, is_reported) = (RETRY, false);
                let Err(e) = converse((&mut looks, &mut writes), &server, &mut queue, &lost).await else { return };
                let Some(store) = server.upgrade() else { return };
                store.give_up(&e.to_string());
            }
            Err(e) => {
                if !std::mem::replace(&mut is_reported, true) {
                    let reason = e.to_string();
                    tracing::warn!(event = "cache_store_unreachable", reason, "requests of shared caches are misses");
                }
                pause = pause.saturating_mul(2).min(LONGEST_RETRY);
            }
        }
        let mut dropped = 0;
        while queue.try_recv().is_ok() {
            dropped += 1;
        }
        let Some(store) = server.upgrade() else { return };
        store.metrics.cache_writes(CacheWrite::Unreachable, dropped);
        drop(store);
        tokio::time::sleep(pause).await;
    }
}

/// Writes answers and asks for signs of life; `Ok` once the store was dropped, an error once the server is gone.
async fn converse(
    (looks, writes): (&mut MultiplexedConnection, &mut MultiplexedConnection),
    server: &Weak<Server>,
    queue: &mut mpsc::Receiver<Queued>,
    lost: &Notify,
) -> redis::RedisResult<()> {
    let mut sign = tokio::time::interval(SIGN);
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            count = queue.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
                let ends = write(writes, &commands(&batch)).await;
                let Some(store) = server.upgrade() else { return Ok(()) };
                // Who asks the same from now on finds the answer in the store.
                batch.clear();
                match ends {
                    Ok((written, failed)) => {
                        store.metrics.cache_writes(CacheWrite::Written, written);
                        store.metrics.cache_writes(CacheWrite::Failed, failed);
                    }
                    Err(e) => {
                        store.metrics.cache_writes(CacheWrite::Unreachable, u64::try_from(count).unwrap_or(u64::MAX));
                        return Err(e);
                    }
                }
            }
            _ = sign.tick() => {
                match redis::cmd("PING").query_async::<()>(looks).await {
                    Err(e) if !is_of_server(&e) => return Err(e),
                    _ => {}
                }
            }
            () = lost.notified() => {
                let why = (redis::ErrorKind::Io, "a request was not answered in time");
                return Err(redis::RedisError::from(why));
            }
        }
    }
}

/// Commands that write answers.
fn commands(batch: &[Queued]) -> Pipeline {
    let mut pipe = redis::pipe();
    pipe.ignore_errors();
    for Queued { key, value, ttl, .. } in batch {
        pipe.cmd("SET").arg(key).arg(value.as_slice()).arg("PX").arg(*ttl);
    }
    pipe
}

/// Writes answers; returns how many are kept, and how many the server refused.
async fn write(connection: &mut MultiplexedConnection, commands: &Pipeline) -> redis::RedisResult<(u64, u64)> {
    let ends = commands.query_async::<Vec<redis::RedisResult<redis::Value>>>(connection).await?;
    let (written, failed): (Vec<_>, Vec<_>) = ends.into_iter().partition(Result::is_ok);
    let count = |ends: Vec<_>| u64::try_from(ends.len()).unwrap_or(u64::MAX);
    Ok((count(written), count(failed)))
}
