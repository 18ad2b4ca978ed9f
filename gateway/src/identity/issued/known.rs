//! Keys as they were last read from the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::record::KeyRecord;
use super::store::Contents;
use crate::identity::api_key::LastUse;

/// Document of a key.
#[derive(Debug)]
pub(super) struct StoredKey {
    /// Text, as the store has it.
    pub(super) document: String,
    /// Content; `None` where this version cannot read it, and the key admits nobody.
    pub(super) record: Option<KeyRecord>,
    /// Last use on this gateway, which outlives changes of the document.
    pub(super) last_use: Arc<LastUse>,
}

impl StoredKey {
    pub(super) fn read(id: &str, document: String, last_use: Arc<LastUse>) -> Self {
        let record = match serde_json::from_str::<KeyRecord>(&document) {
            Ok(record) if record.id == id => Some(record),
            Ok(_) => {
                tracing::error!(event = "key_unreadable", id, reason = "it has another id", "the key admits nobody");
                None
            }
            Err(e) => {
                tracing::error!(event = "key_unreadable", id, reason = %e, "the key admits nobody");
                None
            }
        };
        Self { document, record, last_use }
    }
}

/// All keys of the store, by id.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Revision of the store; `None` before the first reading.
    pub(super) revision: Option<u64>,
    pub(super) keys: BTreeMap<String, Arc<StoredKey>>,
}

impl Known {
    /// Reads all documents; those that did not change are taken from `before`.
    pub(super) fn read(contents: Contents, before: &Self) -> Self {
        let keys = contents.documents.into_iter().map(|(id, document)| {
            let known = before.keys.get(&id);
            let key = known.filter(|known| known.document == document).cloned();
            let key = key.unwrap_or_else(|| Arc::new(StoredKey::read(&id, document, last_use(known))));
            (id, key)
        });
        Self { revision: Some(contents.revision), keys: keys.collect() }
    }

    /// The keys after a change of one: to a document with its content, or to none.
    pub(super) fn with(&self, revision: u64, id: String, after: Option<(String, Option<KeyRecord>)>) -> Self {
        let mut keys = self.keys.clone();
        match after {
            Some((document, record)) => {
                let last_use = last_use(keys.get(&id));
                keys.insert(id, Arc::new(StoredKey { document, record, last_use }));
            }
            None => drop(keys.remove(&id)),
        }
        Self { revision: Some(revision), keys }
    }

    /// Records that can be read, each with its last use.
    pub(super) fn records(&self) -> impl Iterator<Item = (&KeyRecord, &Arc<LastUse>)> {
        self.keys.values().filter_map(|key| Some((key.record.as_ref()?, &key.last_use)))
    }
}

/// Last use of the key that was known before, or of a new one.
fn last_use(before: Option<&Arc<StoredKey>>) -> Arc<LastUse> {
    before.map(|before| before.last_use.clone()).unwrap_or_default()
}
