//! Keys in the Redis or Valkey server of `state.store`, which several gateways share.

use std::sync::Arc;

use async_trait::async_trait;
use redis::Script;
use spillway_config::schema::RedisState;

use super::{Change, Contents, KeyStore, KeyStoreError, Written};
use crate::state_server::{StateServer, Unreachable};

/// Store in a Redis server.
pub(in crate::identity::issued) struct RedisKeys {
    server: StateServer,
    /// Hash of documents by id.
    keys: String,
    /// Number that every change moves.
    revision: String,
    change: Script,
}

impl RedisKeys {
    /// Makes a store that is not connected yet. With TLS, `authorities` (PEM) are trusted in place of the system's.
    pub(super) fn new(written: &RedisState, authorities: Option<Vec<u8>>) -> Result<Self, KeyStoreError> {
        // In braces, so that a cluster keeps both in one place and the script may use them together.
        let keys = format!("{{{}}}:keys", written.key_prefix);
        Ok(Self {
            server: StateServer::new(written, authorities).map_err(Arc::new)?,
            revision: format!("{keys}:revision"),
            keys,
            change: Script::new(include_str!("change.lua")),
        })
    }
}

#[async_trait]
impl KeyStore for RedisKeys {
    async fn revision(&self) -> Result<u64, KeyStoreError> {
        let mut connection = self.server.connection().await?;
        let answer = redis::cmd("GET").arg(&self.revision).query_async::<Option<u64>>(&mut connection).await;
        Ok(self.server.answered(answer).await?.unwrap_or(0))
    }

    async fn load(&self) -> Result<Contents, KeyStoreError> {
        let mut connection = self.server.connection().await?;
        let mut both = redis::pipe();
        both.atomic();
        both.cmd("GET").arg(&self.revision);
        both.cmd("HGETALL").arg(&self.keys);
        let answer = both.query_async::<(Option<u64>, Vec<(String, String)>)>(&mut connection).await;
        let (revision, documents) = self.server.answered(answer).await?;
        Ok(Contents { revision: revision.unwrap_or(0), documents })
    }

    async fn change(&self, change: &Change) -> Result<Written, KeyStoreError> {
        let mut script = self.change.prepare_invoke();
        script.key(&self.keys).key(&self.revision).arg(&change.id);
        script.arg(change.before.as_deref().unwrap_or_default()).arg(change.after.as_deref().unwrap_or_default());
        script.arg(change.most).arg(super::first_revision());
        match self.server.invoke::<(u8, u64)>(&script).await? {
            (0, revision) => Ok(Written::Done(revision)),
            (1, _) => Ok(Written::Full),
            (2, _) => Ok(Written::Differs),
            _ => Err(Unreachable("the server gave an unknown answer".to_owned()).into()),
        }
    }

    async fn close(&self) {}
}
