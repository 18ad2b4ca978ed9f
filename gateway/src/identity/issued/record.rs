//! Documents of keys that are made at run time. Plain data: a document has digests, never a key.

use serde::{Deserialize, Serialize};
use spillway_config::schema::ConsumerLimits;
use spillway_config::values::KeyDigest;

/// Key of a consumer, as it is stored. A document with a field that this version does not know is not read: the field may
/// restrict the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct KeyRecord {
    /// Name of the key, which is no secret.
    pub(super) id: String,
    /// Consumer that the key identifies.
    pub(super) consumer: String,
    /// SHA-256 of the key.
    pub(super) sha256: KeyDigest,
    /// Time at which the key was made, Unix seconds.
    pub(super) created_at: u64,
    /// Operator who made it: the proof of access, and the address.
    pub(super) created_by: String,
    /// Time from which on the key is refused, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires: Option<u64>,
    /// Limits of the key, beside those of its consumer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) limits: Option<ConsumerLimits>,
    /// Time of the last rotation, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rotated_at: Option<u64>,
    /// Secret before the last rotation, while it is still accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) previous: Option<PreviousSecret>,
}

/// Secret that was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PreviousSecret {
    /// SHA-256 of the key.
    pub(super) sha256: KeyDigest,
    /// Time from which on it is refused, Unix seconds.
    pub(super) until: u64,
}

impl KeyRecord {
    /// Digests of the key with the times from which on each is refused.
    pub(super) fn secrets(&self) -> impl Iterator<Item = (KeyDigest, u64)> {
        let ends = self.expires.unwrap_or(u64::MAX);
        let previous = self.previous.iter().map(move |previous| (previous.sha256, previous.until.min(ends)));
        std::iter::once((self.sha256, ends)).chain(previous)
    }

    /// True from the end of the key on.
    pub(super) fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|ends| ends <= now)
    }
}
