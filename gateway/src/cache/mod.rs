//! Answers that several gateways share, in a Redis or Valkey server. The room owns the connection and the task that keeps it
//! and writes answers. A request waits for the server at most `timeout`. After a first timeout every look is a miss at once,
//! until the server answers again. Answers are written in the background, from a queue that is bounded in number and bytes;
//! beyond its end they are dropped and counted. What the server returns is read as foreign bytes.
//!
//! Each route has a key with its generation, beside those of its answers, and each answer says under which generation it was
//! asked for. A purge replaces the generation: that one write is felt by every gateway at its next look. A generation is a
//! random number, so that a key that was evicted never makes old answers count again.

mod keep;
mod sweep;
mod value;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult};
use sha2::{Digest, Sha256};
use spillway_config::schema::CacheRedis;
use spillway_filter::{AnswerKey, AnswerPut, AnswerStore, AnswerStores, Generation, Looked, Looking, Purging};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::commit_steps::CommitSteps;
use crate::redis_client::{self, ClientError, LONGEST_ANSWER};
use crate::telemetry::{CacheLookup, CacheWrite, LogThrottle, Metrics};
use value::NoAnswer;

/// Bytes of the digest of a route's name in keys: enough that no two routes share theirs.
const ROUTE_DIGEST: usize = 16;

/// Reason why a store cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("state.cache.redis: {0}")]
pub struct CacheStoreError(#[from] pub ClientError);

/// Shared store with the configuration and file that it was made from.
pub struct SharedAnswers {
    written: CacheRedis,
    /// Content of the file of authorities.
    authorities: Option<Vec<u8>>,
    server: Arc<Server>,
}

impl SharedAnswers {
    /// Store of a new snapshot: that of `previous` if its configuration is the same. The store need not be reachable, and is
    /// not contacted before the snapshot is adopted.
    ///
    /// # Errors
    /// [`CacheStoreError`] where URL, password or authorities cannot be used.
    pub fn sharing(
        written: Option<&CacheRedis>,
        previous: Option<&Arc<Self>>,
        metrics: &Arc<Metrics>,
        commit_steps: &CommitSteps,
    ) -> Result<Option<Arc<Self>>, CacheStoreError> {
        let Some(written) = written else { return Ok(None) };
        let authorities = redis_client::authorities(written)?;
        if let Some(known) = previous.filter(|known| known.written == *written && known.authorities == authorities) {
            return Ok(Some(known.clone()));
        }
        let server = Server::new(written, redis_client::client(written, authorities.clone())?, metrics);
        let begun = server.clone();
        commit_steps.add(move || begun.begin());
        Ok(Some(Arc::new(Self { written: written.clone(), authorities, server })))
    }

    /// True while the server is connected.
    pub fn is_up(&self) -> bool {
        self.server.connection.load().is_some()
    }
}

impl AnswerStores for SharedAnswers {
    fn of_route(&self, route: &str) -> Arc<dyn AnswerStore> {
        let digest = Sha256::digest(route.as_bytes());
        let digest = hex::encode(digest.get(..ROUTE_DIGEST).unwrap_or_default());
        let keys = RouteKeys {
            generation: format!("{}:cache:{digest}", self.written.key_prefix),
            answers: format!("{}:cache:{digest}:", self.written.key_prefix),
        };
        Arc::new(RouteAnswers { server: self.server.clone(), keys: Arc::new(keys) })
    }
}

/// Keys of a route.
struct RouteKeys {
    /// Key of its generation.
    generation: String,
    /// Beginning of the keys of its answers.
    answers: String,
}

impl RouteKeys {
    fn answer(&self, key: &AnswerKey) -> String {
        format!("{}{}", self.answers, hex::encode(key))
    }
}

/// Answers of one route.
struct RouteAnswers {
    server: Arc<Server>,
    keys: Arc<RouteKeys>,
}

impl AnswerStore for RouteAnswers {
    fn look(&self, key: AnswerKey, longest: usize) -> Looking {
        let (server, keys) = (self.server.clone(), self.keys.clone());
        Box::pin(async move { server.look(&keys, Some((&key, longest))).await })
    }

    fn generation(&self) -> Looking {
        let (server, keys) = (self.server.clone(), self.keys.clone());
        Box::pin(async move { server.look(&keys, None).await })
    }

    fn put(&self, put: AnswerPut) {
        self.server.put(&self.keys, put);
    }

    fn purge(&self, dry_run: bool) -> Purging {
        let (client, keys) = (self.server.client.clone(), self.keys.clone());
        Box::pin(async move { sweep::purge(&client, &keys, dry_run).await })
    }
}

/// Answer in the queue of those that are to be written.
struct Queued {
    key: String,
    value: Vec<u8>,
    ttl: u64,
    _until_done: Box<dyn Send>,
    _bytes: OwnedSemaphorePermit,
}

/// Connection to the server, with the queue of answers.
struct Server {
    client: Client,
    timeout: Duration,
    connection: ArcSwapOption<MultiplexedConnection>,
    lost: Arc<Notify>,
    losses: LogThrottle,
    returns: LogThrottle,
    lookups: Semaphore,
    writes: mpsc::Sender<Queued>,
    pending_bytes: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    task: OnceLock<AbortHandle>,
    /// Queue of the task, until it begins.
    unbegun: Mutex<Option<mpsc::Receiver<Queued>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Settings of a connection: requests have a time limit of their own, which is shorter.
fn patient() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(LONGEST_ANSWER)).set_response_timeout(Some(LONGEST_ANSWER))
}

/// New generation: no other one is like it.
fn new_generation() -> Generation {
    Generation(rand::random())
}

impl Server {
    fn new(written: &CacheRedis, client: Client, metrics: &Arc<Metrics>) -> Arc<Self> {
        let count = |count: std::num::NonZeroU32| {
            usize::try_from(count.get()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
        };
        let bytes = usize::try_from(written.max_pending_bytes.0).unwrap_or(usize::MAX);
        let (writes, queue) = mpsc::channel(count(written.max_pending_writes));
        Arc::new(Self {
            client,
            timeout: written.timeout.0,
            connection: ArcSwapOption::empty(),
            lost: Arc::default(),
            losses: LogThrottle::default(),
            returns: LogThrottle::default(),
            lookups: Semaphore::new(count(written.max_lookups)),
            writes,
            pending_bytes: Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))),
            metrics: metrics.clone(),
            task: OnceLock::new(),
            unbegun: Mutex::new(Some(queue)),
        })
    }

    /// Starts the task that connects to the server, once.
    fn begin(self: &Arc<Self>) {
        let Some(queue) = self.unbegun.lock().take() else { return };
        let task = keep::keep(self.client.clone(), Arc::downgrade(self), queue, self.lost.clone());
        let _ = self.task.set(tokio::spawn(task).abort_handle());
    }

    /// Drops the connection: no request waits for the server until it is back.
    fn give_up(&self, reason: &str) {
        if self.connection.swap(None).is_some() {
            self.losses.add(1, |times| {
                tracing::warn!(event = "cache_store_lost", reason, times, "requests of shared caches are misses");
            });
            self.lost.notify_one();
        }
    }

    /// Looks for the generation of a route, and for an answer with a body of at most so many bytes.
    async fn look(&self, keys: &RouteKeys, answer: Option<(&AnswerKey, usize)>) -> Looked {
        let Some(connection) = self.connection.load_full() else {
            self.metrics.cache_lookup(CacheLookup::Unreachable, None);
            return Looked::default();
        };
        let Ok(_permit) = self.lookups.try_acquire() else {
            self.metrics.cache_lookup(CacheLookup::Busy, None);
            return Looked::default();
        };
        let began = Instant::now();
        let mut connection = MultiplexedConnection::clone(&connection);
        let asked = tokio::time::timeout(self.timeout, ask(&mut connection, keys, answer)).await;
        let took = Some(began.elapsed());
        let (looked, result) = match asked {
            Ok(Ok(looked)) => looked,
            Ok(Err(e)) if is_of_server(&e) => (Looked::default(), CacheLookup::Failed),
            Ok(Err(e)) => {
                self.give_up(&e.to_string());
                (Looked::default(), CacheLookup::Unreachable)
            }
            Err(_) => {
                self.give_up("a request was not answered in time");
                (Looked::default(), CacheLookup::TimedOut)
            }
        };
        self.metrics.cache_lookup(result, took);
        looked
    }

    fn put(&self, keys: &RouteKeys, put: AnswerPut) {
        let queued = || {
            if self.connection.load().is_none() {
                return Err(CacheWrite::Unreachable);
            }
            let length = put.answer.body.len().saturating_add(value::MOST_BESIDE);
            let length = u32::try_from(length).map_err(|_| CacheWrite::Full)?;
            let bytes = self.pending_bytes.clone().try_acquire_many_owned(length).map_err(|_| CacheWrite::Full)?;
            let value = value::encode(&put).ok_or(CacheWrite::Unfit)?;
            let ttl = u64::try_from(put.ttl.as_millis()).unwrap_or(u64::MAX).max(1);
            Ok((keys.answer(&put.key), value, ttl, bytes))
        };
        let sent = queued().and_then(|(key, value, ttl, bytes)| {
            let queued = Queued { key, value, ttl, _until_done: put.until_done, _bytes: bytes };
            self.writes.try_send(queued).map_err(|_| CacheWrite::Full)
        });
        if let Err(why) = sent {
            self.metrics.cache_writes(why, 1);
        }
    }
}

/// True for an error that the server said: the connection is as good as before.
fn is_of_server(e: &RedisError) -> bool {
    matches!(e.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension)
}

/// Asks for a generation and an answer in one round trip, or two where the route has no generation yet.
async fn ask(
    connection: &mut MultiplexedConnection,
    keys: &RouteKeys,
    answer: Option<(&AnswerKey, usize)>,
) -> RedisResult<(Looked, CacheLookup)> {
    // No transaction: a server that is out of memory refuses one, even of reads. An answer that takes the place of another one
    // between its time and its bytes counts as older than it is, and never as younger.
    let mut pipe = redis::pipe();
    pipe.ignore_errors().cmd("GET").arg(&keys.generation);
    if let Some((key, longest)) = answer {
        // One byte more than the longest value: a longer one is known by it, and no more of it is read.
        let end = longest.saturating_add(value::MOST_BESIDE);
        let key = keys.answer(key);
        pipe.cmd("PTTL").arg(&key).cmd("GETRANGE").arg(&key).arg(0).arg(end);
    }
    let mut replies = pipe.query_async::<Vec<RedisResult<redis::Value>>>(connection).await?.into_iter();
    let known = match replies.next() {
        Some(reply) => redis::from_redis_value::<Option<Vec<u8>>>(reply?)?,
        None => None,
    };
    let Some(generation) = known.and_then(|known| <[u8; 16]>::try_from(known).ok()).map(Generation) else {
        let generation = begin_generation(connection, keys).await?;
        return Ok((Looked { generation, found: None }, CacheLookup::Miss));
    };
    let nothing = |why| Ok((Looked { generation: Some(generation), found: None }, why));
    let Some((key, longest)) = answer else { return nothing(CacheLookup::Miss) };
    let (Some(left), Some(value)) = (replies.next(), replies.next()) else { return nothing(CacheLookup::Malformed) };
    // A value of another type is an error of this one command.
    let value = value.ok().and_then(|value| redis::from_redis_value::<Vec<u8>>(value).ok());
    let left = left.ok().and_then(|left| redis::from_redis_value::<i64>(left).ok());
    let (Some(value), Some(left)) = (value, left) else { return nothing(CacheLookup::Malformed) };
    if left == MISSING {
        return nothing(CacheLookup::Miss);
    }
    match value::decode(value, (key, generation), left, longest) {
        Ok(found) => Ok((Looked { generation: Some(generation), found: Some(found) }, CacheLookup::Hit)),
        Err(NoAnswer::Forgotten) => nothing(CacheLookup::Forgotten),
        Err(NoAnswer::Malformed) => nothing(CacheLookup::Malformed),
    }
}

/// Reply of `PTTL` for a key that does not exist.
const MISSING: i64 = -2;

/// Gives a route a generation unless another gateway has, and returns the one that it has. A value that is none is left to a
/// purge: without a generation nothing is kept, and nothing is served.
async fn begin_generation(connection: &mut MultiplexedConnection, keys: &RouteKeys) -> RedisResult<Option<Generation>> {
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(&keys.generation).arg(&new_generation().0[..]).arg("NX").ignore();
    pipe.cmd("GET").arg(&keys.generation);
    let (known,) = pipe.query_async::<(Option<Vec<u8>>,)>(connection).await?;
    Ok(known.and_then(|known| <[u8; 16]>::try_from(known).ok()).map(Generation))
}
