//! Redis or Valkey server that `state.store` names, and that several gateways share. The module owns the connection, which it
//! makes on demand. Every call ends within the time limit, and a server that failed is left alone for a moment.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, RedisResult, ScriptInvocation};
use spillway_config::schema::RedisState;

use crate::redis_client::{self, ClientError};

/// Shortest time limit of a call: documents are larger than the levels of limits, and no request waits for them.
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failure: a server that restarts is back within it, and one that is down is not flooded.
const RETRY: Duration = Duration::from_millis(250);

/// Failure to reach the server, with the reason.
#[derive(Clone, Debug)]
pub(crate) struct Unreachable(pub(crate) String);

/// Connection, or the last failure to make or use one.
enum Connection {
    None,
    Open(MultiplexedConnection),
    Failed(Instant, String),
}

/// Server with the connection to it.
pub(crate) struct StateServer {
    client: Client,
    timeout: Duration,
    connection: tokio::sync::Mutex<Connection>,
}

impl StateServer {
    /// Makes a server that is not connected yet. With TLS, `authorities` (PEM) are trusted in place of the system's.
    ///
    /// # Errors
    ///
    /// [`ClientError`] where URL, password or authorities cannot be used.
    pub(crate) fn new(written: &RedisState, authorities: Option<Vec<u8>>) -> Result<Self, ClientError> {
        Ok(Self {
            client: redis_client::client(written, authorities)?,
            timeout: written.timeout.0.max(LEAST_TIMEOUT),
            connection: tokio::sync::Mutex::new(Connection::None),
        })
    }

    /// Connection to the server.
    pub(crate) async fn connection(&self) -> Result<MultiplexedConnection, Unreachable> {
        let mut connection = self.connection.lock().await;
        match &*connection {
            Connection::Open(open) => return Ok(open.clone()),
            Connection::Failed(at, reason) if at.elapsed() < RETRY => {
                return Err(Unreachable(reason.clone()));
            }
            Connection::None | Connection::Failed(..) => {}
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        match self.client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(open) => {
                *connection = Connection::Open(open.clone());
                Ok(open)
            }
            Err(e) => {
                *connection = Connection::Failed(Instant::now(), e.to_string());
                Err(Unreachable(e.to_string()))
            }
        }
    }

    /// Result of a call; after a failure the next call makes another connection.
    pub(crate) async fn answered<T>(&self, answer: RedisResult<T>) -> Result<T, Unreachable> {
        match answer {
            Ok(value) => Ok(value),
            Err(e) => {
                *self.connection.lock().await = Connection::Failed(Instant::now(), e.to_string());
                Err(Unreachable(e.to_string()))
            }
        }
    }

    /// Runs a script.
    pub(crate) async fn invoke<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Unreachable> {
        let mut connection = self.connection().await?;
        let answer = script.invoke_async::<T>(&mut connection).await;
        self.answered(answer).await
    }
}
