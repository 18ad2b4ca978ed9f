//! Rollouts in a Redis or Valkey server that several gateways share.
//!
//! The lead of a rollout is a key with the gateway's name that expires unless it is renewed. Writes are scripts that compare
//! the name and the fencing number, so a leader that was away too long writes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::{Script, ScriptInvocation};
use spillway_config::schema::RedisState;

use super::{GatewayCounts, KEPT, KEPT_DECISIONS, RolloutStore, StoreError};
use crate::rollout::record::{HISTORY, HistoryEntry};
use crate::rollout::stored::{Counts, Decided, Stored};
use crate::state_server::StateServer;

/// Time for which a lead lasts after its last renewal. Renewed every second, four renewals may be lost.
const LEAD: Duration = Duration::from_secs(5);
/// Most gateways whose counts of one step are kept: more than share a server, with those of processes that have ended.
const GATEWAYS: u32 = 256;
/// Time for which counts are kept after the last write or tidying.
const COUNTS_KEPT: Duration = Duration::from_secs(7 * 86_400);
/// Longest wait at the end of the process.
const CLOSING: Duration = Duration::from_secs(1);

/// Store in a Redis server.
pub struct RedisStore {
    server: StateServer,
    prefix: String,
    /// Name of this process among the gateways: a random number.
    me: String,
    led: Mutex<BTreeSet<String>>,
    lead: Script,
    save: Script,
    publish: Script,
    release: Script,
}

impl RedisStore {
    /// Makes a store that is not connected yet. With TLS, `authorities` (PEM) are trusted in place of the system's.
    ///
    /// # Errors
    ///
    /// [`StoreError::Client`] where URL, password or authorities cannot be used.
    pub fn new(written: &RedisState, authorities: Option<Vec<u8>>) -> Result<Self, StoreError> {
        Ok(Self {
            server: StateServer::new(written, authorities).map_err(Arc::new)?,
            // In braces, so that a cluster keeps all keys in one place and scripts may use them together.
            prefix: format!("{{{}}}:rollout", written.key_prefix),
            me: format!("{:016x}", rand::random::<u64>()),
            led: Mutex::default(),
            lead: Script::new(include_str!("lead.lua")),
            save: Script::new(include_str!("save.lua")),
            publish: Script::new(include_str!("publish.lua")),
            release: Script::new(include_str!("release.lua")),
        })
    }

    /// Key of a rollout. The length of the name keeps names and parts apart, whatever characters a name has.
    pub(super) fn key(&self, name: &str, part: &str) -> String {
        format!("{}:{}:{name}:{part}", self.prefix, name.len())
    }

    fn counts_key(&self, name: &str, key: &str) -> String {
        self.key(name, &format!("counts:{key}"))
    }

    async fn invoke(&self, script: &ScriptInvocation<'_>) -> Result<u64, StoreError> {
        Ok(self.server.invoke(script).await?)
    }

    async fn acquire(&self, name: &str, by_force: bool) -> Result<Option<u64>, StoreError> {
        let mut script = self.lead.prepare_invoke();
        script.key(self.key(name, "lead")).key(self.key(name, "fence")).key(self.key(name, "state"));
        script.arg(&self.me).arg(LEAD.as_secs() * 1000).arg(u8::from(by_force));
        let fence = self.invoke(&script).await?;
        let mut led = self.led.lock();
        if fence == 0 {
            led.remove(name);
            return Ok(None);
        }
        led.insert(name.to_owned());
        Ok(Some(fence))
    }
}

#[async_trait]
impl RolloutStore for RedisStore {
    fn gateway(&self) -> &str {
        &self.me
    }

    async fn names(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    async fn load(&self, name: &str) -> Result<Option<Stored>, StoreError> {
        let mut connection = self.server.connection().await?;
        let mut both = redis::pipe();
        both.atomic();
        both.cmd("HGET").arg(self.key(name, "state")).arg("document");
        both.cmd("LRANGE").arg(self.key(name, "history")).arg(0).arg(-1);
        let answer = both.query_async::<(Option<Vec<u8>>, Vec<Vec<u8>>)>(&mut connection).await;
        let (document, history) = self.server.answered(answer).await?;
        let Some(document) = document else { return Ok(None) };
        let mut stored: Stored = super::read(&format!("the rollout `{name}`"), &document)?;
        for entry in history {
            stored.record.history.push(super::read(&format!("the history of the rollout `{name}`"), &entry)?);
        }
        Ok(Some(stored))
    }

    async fn save(&self, stored: &Stored, entries: &[HistoryEntry]) -> Result<(), StoreError> {
        let documents = super::Documents::of(stored, entries)?;
        let name = &stored.record.name;
        let mut script = self.save.prepare_invoke();
        for part in ["lead", "state", "history", "decided", "decidedAt"] {
            script.key(self.key(name, part));
        }
        script.arg(&self.me).arg(stored.fence).arg(documents.stored).arg(HISTORY).arg(KEPT.as_secs());
        script.arg(&stored.record.identity).arg(documents.decided.unwrap_or_default());
        script.arg(stored.record.updated_at).arg(KEPT_DECISIONS);
        for entry in documents.entries {
            script.arg(entry);
        }
        match self.invoke(&script).await? {
            0 => Err(StoreError::NotLeader(name.clone())),
            _ => Ok(()),
        }
    }

    async fn decided(&self, name: &str, identity: &str) -> Result<Option<Decided>, StoreError> {
        let mut connection = self.server.connection().await?;
        let answer = redis::cmd("HGET")
            .arg(self.key(name, "decided"))
            .arg(identity)
            .query_async::<Option<Vec<u8>>>(&mut connection)
            .await;
        let found = self.server.answered(answer).await?;
        let what = format!("a decision about the rollout `{name}`");
        found.map(|document| super::read(&what, &document)).transpose()
    }

    async fn publish(&self, name: &str, key: &str, counts: &Counts) -> Result<(), StoreError> {
        let document = super::write(counts)?;
        let mut script = self.publish.prepare_invoke();
        script.key(self.counts_key(name, key));
        script.arg(&self.me).arg(document).arg(GATEWAYS).arg(COUNTS_KEPT.as_secs());
        match self.invoke(&script).await? {
            0 => Err(StoreError::Full(name.to_owned())),
            _ => Ok(()),
        }
    }

    async fn gather(&self, name: &str, key: &str) -> Result<Vec<GatewayCounts>, StoreError> {
        let mut connection = self.server.connection().await?;
        let answer = redis::cmd("HGETALL")
            .arg(self.counts_key(name, key))
            .query_async::<Vec<(String, Vec<u8>)>>(&mut connection)
            .await;
        let what = format!("the counts of the rollout `{name}`");
        let documents = self.server.answered(answer).await?;
        documents.into_iter().map(|(gateway, document)| Ok((gateway, super::read(&what, &document)?))).collect()
    }

    async fn lead(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.acquire(name, false).await
    }

    async fn take_lead(&self, name: &str) -> Result<u64, StoreError> {
        // A lead taken by force is never refused.
        self.acquire(name, true).await?.ok_or_else(|| StoreError::NotLeader(name.to_owned()))
    }

    async fn release(&self, name: &str) -> Result<(), StoreError> {
        self.led.lock().remove(name);
        let mut script = self.release.prepare_invoke();
        script.key(self.key(name, "lead")).arg(&self.me);
        self.invoke(&script).await.map(|_| ())
    }

    async fn tidy(&self, present: &[(String, String)], _: f64) -> Result<(), StoreError> {
        // What nobody keeps alive expires by itself.
        let mut connection = self.server.connection().await?;
        let mut all = redis::pipe();
        for (name, key) in present {
            for part in ["state", "history", "decided", "decidedAt", "fence"] {
                all.cmd("EXPIRE").arg(self.key(name, part)).arg(KEPT.as_secs()).ignore();
            }
            all.cmd("EXPIRE").arg(self.counts_key(name, key)).arg(COUNTS_KEPT.as_secs()).ignore();
        }
        let answer = all.query_async::<()>(&mut connection).await;
        Ok(self.server.answered(answer).await?)
    }

    async fn close(&self) {
        let led = std::mem::take(&mut *self.led.lock());
        let release = async {
            for name in led {
                if let Err(e) = self.release(&name).await {
                    // The lead expires by itself.
                    tracing::debug!(event = "rollout_lead_not_released", rollout = name, reason = %e);
                }
            }
        };
        let _ = tokio::time::timeout(CLOSING, release).await;
    }
}
