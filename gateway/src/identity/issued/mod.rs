//! API keys that are made while the gateway runs. The module owns what is known of them, the store that keeps them, and the
//! tables in which the requests of each snapshot look them up. It keeps digests and never a key: that is returned once, to the
//! operator who asked for it.
//!
//! Several gateways may share a store. Each looks at its revision four times a second and reads all keys when it has moved, so a
//! change takes effect everywhere within a second, and at once where it was made. A change is stored before it takes effect; while
//! the store fails there is none. Inputs are the commands of operators, and the consumers of each snapshot.

mod known;
mod record;
mod store;
mod table;

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use spillway_config::schema::{ConsumerLimits, KeysByApi, StateStore};
use spillway_config::values::KeyDigest;

use self::known::{Known, StoredKey};
use self::record::{KeyRecord, PreviousSecret};
pub use self::store::KeyStoreError;
use self::store::{Change, KeyStore, Written};
use self::table::Freshness;
pub use self::table::IssuedTable;
use super::{Consumer, KeyError, NewKey};
use crate::clock::unix_now;
use crate::commit_steps::CommitSteps;
use crate::limits::Limits;
use crate::telemetry::{Metrics, rfc3339_millis};

/// Time between two looks at the revision of the store: a change of another gateway takes effect within a second, also where one
/// look is slow.
const POLL: Duration = Duration::from_millis(250);
/// Longest time for which the secret before a rotation may go on, seconds: 30 days. A key that is to have two secrets for longer
/// is two keys.
const MAX_GRACE: u64 = 30 * 86_400;
/// Tries of a change that other changes of the same key overtake.
const TRIES: u32 = 3;

/// Reason why a configuration cannot use keys that are made at run time.
#[derive(Debug, thiserror::Error)]
pub enum IssuedKeysError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] KeyStoreError),
    /// Another store than the one that is open.
    #[error("`state.store` cannot be changed while the gateway runs and has keys there: restart it")]
    Changed,
}

/// Reason why a command about a key fails. Nothing is changed then, unless the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum KeyCommandError {
    /// The configuration has no keys that are made at run time.
    #[error("keys are not made at run time here: add `authentication: {{keysByApi: {{}}}}` to the configuration")]
    Off,
    /// There is no such consumer.
    #[error("there is no such consumer in the configuration; /api/keys makes keys for those alone")]
    UnknownConsumer,
    /// There is no such key.
    #[error("there is no key with this id; /api/keys lists them")]
    UnknownKey,
    /// There are as many keys as may exist.
    #[error("there are {0} keys, and no more may exist (authentication.keysByApi.maxKeys): revoke some, or raise it")]
    Full(u32),
    /// The key has ended.
    #[error("the key has expired: make another one")]
    Expired,
    /// This version cannot read the key.
    #[error("the key was written by a later version of the gateway, which alone can change it; it can be revoked here")]
    Unreadable,
    /// A time that is over.
    #[error("`{0}` is over; expected a time to come")]
    Past(&'static str),
    /// A grace time that is too long.
    #[error("`grace` is longer than 30 days; expected less, or make a second key")]
    Grace,
    /// The limits make no sense.
    #[error("{0}")]
    Limits(String),
    /// Other changes of the key came first.
    #[error("the key is being changed by others; look at it, and try again")]
    Overtaken,
    /// The system has no random bytes.
    #[error(transparent)]
    Random(#[from] KeyError),
    /// The store failed, or its answer was lost.
    #[error("{0}; look at the list of keys before you try again")]
    Store(#[from] KeyStoreError),
}

/// Key to be made.
#[derive(Debug, Clone)]
pub struct KeyOrder {
    /// Consumer that it identifies.
    pub consumer: String,
    /// Time from which on it is refused, Unix seconds.
    pub expires: Option<u64>,
    /// Limits of the key, beside those of its consumer.
    pub limits: Option<ConsumerLimits>,
}

/// Key that was made or rotated, with its secret: the only place where that is.
#[derive(Serialize)]
pub struct MadeKey {
    /// The key, for the caller.
    pub key: String,
    /// Facts about the key, without its secret.
    #[serde(flatten)]
    pub shown: ShownKey,
}

/// Key as operators see it, without its digest.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownKey {
    /// Name of the key, which is no secret.
    pub id: String,
    /// Consumer that it identifies; left out for one that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// State.
    pub state: KeyState,
    /// Time at which it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// Operator who made it: the proof of access, and the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Time from which on it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Time of the last rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<String>,
    /// Time of the last request with it on this gateway, to the second; left out before the first one since the process began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used: Option<String>,
    /// Time until which the secret before the last rotation is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_until: Option<String>,
    /// Limits of the key, in the form of `consumers[].limits`: those that are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<serde_json::Value>,
}

/// State of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyState {
    /// Accepted.
    Active,
    /// Past its end.
    Expired,
    /// Refused, because the configuration has no such consumer.
    Inactive,
    /// Refused, because this version cannot read it.
    Unreadable,
}

/// Store with the configuration that it was opened for.
#[derive(Clone)]
struct OpenStore {
    written: StateStore,
    store: Arc<dyn KeyStore>,
}

#[derive(Default)]
struct State {
    open: Option<OpenStore>,
    /// Settings of the running configuration; `None` where it has no such keys.
    settings: Option<KeysByApi>,
    known: Known,
    /// Tables of the snapshots that live.
    tables: Vec<Weak<IssuedTable>>,
    /// True once a configuration with such keys was active: the store cannot be changed any more.
    is_begun: bool,
    /// True while the store does not answer.
    is_lost: bool,
    /// True where a change is to be told a second time: a socket may have opened by the key while it was told first.
    is_to_tell: bool,
}

/// Called when keys have changed.
type Listener = Box<dyn Fn() + Send + Sync>;

/// Keys of the process that are made at run time.
pub struct IssuedKeys {
    state: Mutex<State>,
    /// Held by the only one that reads or changes the store.
    changing: tokio::sync::Mutex<()>,
    freshness: Arc<Freshness>,
    metrics: Arc<Metrics>,
    changed: OnceLock<Listener>,
}

impl IssuedKeys {
    /// Creates the keys of a new process; no store is open.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            state: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            freshness: Arc::default(),
            metrics,
            changed: OnceLock::new(),
        }
    }

    /// Sets what is called when keys have changed; only the first one is.
    pub fn on_change(&self, changed: impl Fn() + Send + Sync + 'static) {
        // A second one would be a mistake of the program's start, which has one.
        let _ = self.changed.set(Box::new(changed));
    }

    /// Opens the store of a configuration in the making and reads its keys. A server that does not answer is asked again later,
    /// and until then every key that is made at run time is refused.
    ///
    /// # Errors
    ///
    /// [`IssuedKeysError`] where the store cannot be used.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        settings: Option<&KeysByApi>,
        written: &StateStore,
        steps: &CommitSteps,
    ) -> Result<(), IssuedKeysError> {
        let settings = settings.cloned();
        if settings.is_some() {
            let (open, is_begun) = {
                let state = self.state.lock();
                (state.open.as_ref().map(|open| open.written == *written), state.is_begun)
            };
            match open {
                Some(true) => {}
                Some(false) if is_begun => return Err(IssuedKeysError::Changed),
                Some(false) | None => {
                    let store = store::open(written).await?;
                    let mut state = self.state.lock();
                    state.open = Some(OpenStore { written: written.clone(), store });
                    state.known = Known::default();
                }
            }
            let is_known = self.state.lock().known.revision.is_some();
            if !is_known {
                let _one = self.changing.lock().await;
                match self.refresh().await {
                    Ok(()) => {}
                    Err(KeyStoreError::Unreachable(reason)) => {
                        tracing::warn!(
                            event = "keys_unknown",
                            reason,
                            "keys made at run time are refused until it answers"
                        );
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
        let adopted = self.clone();
        steps.add(move || adopted.adopt(settings));
        Ok(())
    }

    /// Validates the store of a configuration, without making or changing anything.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError`] where the file cannot be used.
    pub(crate) async fn judge(settings: Option<&KeysByApi>, written: &StateStore) -> Result<(), KeyStoreError> {
        if settings.is_some() { store::judge(written).await } else { Ok(()) }
    }

    /// Table for the requests of a snapshot in the making. It changes with the keys for as long as it lives. `facts`: a route
    /// spills; models have prices.
    pub(super) fn table(
        &self,
        consumers: &[Arc<Consumer>],
        limits: &Limits,
        settings: &KeysByApi,
        facts: (bool, bool),
    ) -> Arc<IssuedTable> {
        let table = IssuedTable::new(consumers, limits.clone(), settings.max_keys, facts, self.freshness.clone());
        let table = Arc::new(table);
        let mut state = self.state.lock();
        table.fill(&state.known);
        state.tables.retain(|table| table.strong_count() > 0);
        state.tables.push(Arc::downgrade(&table));
        table
    }

    fn adopt(self: &Arc<Self>, settings: Option<KeysByApi>) {
        let mut state = self.state.lock();
        let most = settings.as_ref().map_or(0, |settings| settings.max_keys);
        self.metrics.process.api_keys_limit.set(most.into());
        let begins = settings.is_some() && !state.is_begun;
        state.is_begun |= begins;
        state.settings = settings;
        if begins {
            tokio::spawn(self.clone().follow());
        }
    }

    /// Follows the changes of other gateways.
    async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL).await;
            if std::mem::take(&mut self.state.lock().is_to_tell) {
                self.tell();
            }
            if self.state.lock().settings.is_none() {
                continue;
            }
            let _one = self.changing.lock().await;
            match self.refresh().await {
                Ok(()) => {
                    if std::mem::take(&mut self.state.lock().is_lost) {
                        tracing::info!(event = "keys_followed", "the store of keys answers again");
                    }
                }
                Err(e) => {
                    if !std::mem::replace(&mut self.state.lock().is_lost, true) {
                        tracing::error!(event = "keys_not_followed", reason = %e, "keys stay as they are for maxStale");
                    }
                }
            }
        }
    }

    fn store(&self) -> Result<Arc<dyn KeyStore>, KeyCommandError> {
        let state = self.state.lock();
        let open = state.open.as_ref().filter(|_| state.settings.is_some());
        open.map(|open| open.store.clone()).ok_or(KeyCommandError::Off)
    }

    /// Reads the keys anew if the revision has moved. To be called under `changing`.
    async fn refresh(self: &Arc<Self>) -> Result<(), KeyStoreError> {
        let Some(store) = self.state.lock().open.as_ref().map(|open| open.store.clone()) else { return Ok(()) };
        let read = async {
            let known = self.state.lock().known.revision;
            if known == Some(store.revision().await?) { Ok(None) } else { store.load().await.map(Some) }
        };
        let read: Result<_, KeyStoreError> = read.await;
        self.metrics.process.api_key_store_up.set(read.is_ok().into());
        if let Some(contents) = read? {
            self.put(move |before| Known::read(contents, before)).await;
        }
        let max_stale = {
            let state = self.state.lock();
            state.settings.as_ref().map_or(KeysByApi::default().max_stale, |settings| settings.max_stale)
        };
        self.freshness.renew(u64::try_from(max_stale.0.as_millis()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Puts the keys into effect that `next` makes of those before, on a thread of its own: ten thousand take milliseconds, and
    /// no request waits for them.
    async fn put(self: &Arc<Self>, next: impl FnOnce(&Known) -> Known + Send + 'static) {
        let this = self.clone();
        let putting = tokio::task::spawn_blocking(move || {
            let before = this.state.lock().known.clone();
            this.replace(next(&before));
        });
        if let Err(e) = putting.await {
            tracing::error!(event = "keys_not_followed", reason = %e, "keys stay as they are for maxStale");
        }
    }

    /// Puts keys into effect.
    fn replace(&self, known: Known) {
        {
            let mut state = self.state.lock();
            let State { known: before, tables, .. } = &mut *state;
            *before = known;
            self.metrics.process.api_keys.set(i64::try_from(before.keys.len()).unwrap_or(i64::MAX));
            tables.retain(|table| match table.upgrade() {
                Some(table) => {
                    table.fill(before);
                    true
                }
                None => false,
            });
            state.is_to_tell = true;
        }
        self.tell();
    }

    fn tell(&self) {
        if let Some(changed) = self.changed.get() {
            changed();
        }
    }

    /// Stores a change and puts it into effect. `next` makes the document that replaces the one that is there, of the newest
    /// state of the key.
    async fn change<T>(
        self: &Arc<Self>,
        table: &IssuedTable,
        id: &str,
        mut next: impl FnMut(Option<&StoredKey>) -> Result<(Option<KeyRecord>, T), KeyCommandError>,
    ) -> Result<T, KeyCommandError> {
        let store = self.store()?;
        let _one = self.changing.lock().await;
        for _ in 0..TRIES {
            self.refresh().await?;
            let (known, before) = {
                let state = self.state.lock();
                (state.known.revision, state.known.keys.get(id).cloned())
            };
            let (record, value) = next(before.as_deref())?;
            let after = record.as_ref().map(document).transpose()?;
            let change = Change {
                id: id.to_owned(),
                before: before.map(|before| before.document.clone()),
                after: after.clone(),
                most: table.most(),
            };
            match store.change(&change).await? {
                Written::Full => return Err(KeyCommandError::Full(table.most())),
                Written::Differs => {}
                Written::Done(revision) if known.and_then(|known| known.checked_add(1)) == Some(revision) => {
                    let id = id.to_owned();
                    self.put(move |before| before.with(revision, id, after.map(|after| (after, record)))).await;
                    return Ok(value);
                }
                // Others have changed other keys meanwhile.
                Written::Done(_) => {
                    self.refresh().await?;
                    return Ok(value);
                }
            }
        }
        Err(KeyCommandError::Overtaken)
    }

    /// Makes a key. `by` names the operator.
    ///
    /// # Errors
    ///
    /// [`KeyCommandError`] where it cannot be made.
    pub async fn create(
        self: &Arc<Self>,
        table: &IssuedTable,
        order: KeyOrder,
        by: &str,
    ) -> Result<MadeKey, KeyCommandError> {
        if !table.has_consumer(&order.consumer) {
            return Err(KeyCommandError::UnknownConsumer);
        }
        let now = unix_now();
        if order.expires.is_some_and(|ends| ends <= now) {
            return Err(KeyCommandError::Past("expires"));
        }
        let limits = order.limits.filter(|limits| *limits != ConsumerLimits::default());
        if let Some(fault) = limits.as_ref().and_then(|limits| table.fault_of(limits)) {
            return Err(KeyCommandError::Limits(fault));
        }
        let secret = NewKey::generate()?;
        let record = KeyRecord {
            id: format!("key-{:024x}", rand::random::<u128>() >> 32),
            consumer: order.consumer,
            sha256: digest_of(&secret),
            created_at: now,
            created_by: by.to_owned(),
            expires: order.expires,
            limits,
            rotated_at: None,
            previous: None,
        };
        let id = record.id.clone();
        let made = |before: Option<&StoredKey>| match before {
            // 96 random bits are drawn twice by no accident.
            Some(_) => Err(KeyCommandError::Overtaken),
            None => Ok((Some(record.clone()), show(&record.id, Some(&record), None, table, now))),
        };
        let shown = self.change(table, &id, made).await?;
        Ok(MadeKey { key: secret.key, shown })
    }

    /// True unless the last look at the store failed: no key can be changed then, and the list is that of the last reading.
    pub fn store_answers(&self) -> bool {
        !self.state.lock().is_lost
    }

    /// Lists all keys.
    pub fn list(&self, table: &IssuedTable) -> Vec<ShownKey> {
        let (known, now) = (self.state.lock().known.clone(), unix_now());
        known.keys.iter().map(|(id, key)| show(id, key.record.as_ref(), Some(key), table, now)).collect()
    }

    /// Removes a key.
    ///
    /// # Errors
    ///
    /// [`KeyCommandError`] where it cannot be removed.
    pub async fn revoke(self: &Arc<Self>, table: &IssuedTable, id: &str) -> Result<(), KeyCommandError> {
        self.change(table, id, |before| before.map(|_| (None, ())).ok_or(KeyCommandError::UnknownKey)).await
    }

    /// Gives a key a new secret. The one before is accepted for `grace` seconds more.
    ///
    /// # Errors
    ///
    /// [`KeyCommandError`] where it cannot be rotated.
    pub async fn rotate(
        self: &Arc<Self>,
        table: &IssuedTable,
        id: &str,
        grace: u64,
    ) -> Result<MadeKey, KeyCommandError> {
        if grace > MAX_GRACE {
            return Err(KeyCommandError::Grace);
        }
        let secret = NewKey::generate()?;
        let sha256 = digest_of(&secret);
        let now = unix_now();
        let rotated = |before: Option<&StoredKey>| {
            let record = readable(before, now)?;
            let previous = PreviousSecret { sha256: record.sha256, until: now.saturating_add(grace) };
            let record = KeyRecord {
                sha256,
                rotated_at: Some(now),
                previous: Some(previous).filter(|_| grace > 0),
                ..record.clone()
            };
            let shown = show(id, Some(&record), before, table, now);
            Ok((Some(record), shown))
        };
        let shown = self.change(table, id, rotated).await?;
        Ok(MadeKey { key: secret.key, shown })
    }

    /// Sets the end of a key: `at` (Unix seconds), or now.
    ///
    /// # Errors
    ///
    /// [`KeyCommandError`] where that cannot be.
    pub async fn expire(
        self: &Arc<Self>,
        table: &IssuedTable,
        id: &str,
        at: Option<u64>,
    ) -> Result<ShownKey, KeyCommandError> {
        let now = unix_now();
        if at.is_some_and(|at| at < now) {
            return Err(KeyCommandError::Past("at"));
        }
        let ended = |before: Option<&StoredKey>| {
            let record = KeyRecord { expires: Some(at.unwrap_or(now)), ..readable(before, now)?.clone() };
            let shown = show(id, Some(&record), before, table, now);
            Ok((Some(record), shown))
        };
        self.change(table, id, ended).await
    }

    /// Closes the store, for a bounded time.
    pub async fn close(&self) {
        let open = self.state.lock().open.take();
        if let Some(open) = open {
            open.store.close().await;
        }
    }
}

fn digest_of(secret: &NewKey) -> KeyDigest {
    KeyDigest(super::api_key::hash(secret.key.as_bytes()))
}

/// Record of a key that may be changed.
fn readable(before: Option<&StoredKey>, now: u64) -> Result<&KeyRecord, KeyCommandError> {
    let record = before.ok_or(KeyCommandError::UnknownKey)?.record.as_ref().ok_or(KeyCommandError::Unreadable)?;
    if record.is_expired(now) { Err(KeyCommandError::Expired) } else { Ok(record) }
}

fn document(record: &KeyRecord) -> Result<String, KeyCommandError> {
    serde_json::to_string(record).map_err(|e| KeyCommandError::Limits(e.to_string()))
}

/// Limits without those that are not set.
fn set_limits(limits: &ConsumerLimits) -> serde_json::Value {
    fn without_nulls(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(entries) => {
                let set = entries.into_iter().filter(|(_, value)| !value.is_null());
                set.map(|(key, value)| (key, without_nulls(value))).collect()
            }
            other => other,
        }
    }
    without_nulls(serde_json::to_value(limits).unwrap_or_default())
}

/// Key as operators see it. `stored` is the key as it was before a change, and as it is without one.
fn show(id: &str, record: Option<&KeyRecord>, stored: Option<&StoredKey>, table: &IssuedTable, now: u64) -> ShownKey {
    let state = match record {
        None => KeyState::Unreadable,
        Some(record) if record.is_expired(now) => KeyState::Expired,
        Some(record) if !table.has_consumer(&record.consumer) => KeyState::Inactive,
        Some(_) => KeyState::Active,
    };
    let time = |seconds: u64| {
        rfc3339_millis(UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::now()))
    };
    let previous = record.filter(|record| !record.is_expired(now)).and_then(|record| record.previous.as_ref());
    let previous = previous.filter(|previous| previous.until > now);
    ShownKey {
        id: id.to_owned(),
        consumer: record.map(|record| record.consumer.clone()),
        state,
        created_at: record.map(|record| time(record.created_at)),
        created_by: record.map(|record| record.created_by.clone()),
        expires: record.and_then(|record| record.expires).map(time),
        rotated_at: record.and_then(|record| record.rotated_at).map(time),
        last_used: stored.and_then(|stored| stored.last_use.read()).map(time),
        previous_until: previous.map(|previous| time(previous.until)),
        limits: record.and_then(|record| record.limits.as_ref()).map(set_limits),
    }
}
