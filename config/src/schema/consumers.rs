//! `consumers` and `authentication`: who may call and how they show it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::KeyDigest;

/// Somebody who may call.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Consumer {
    /// Name in logs, metrics and limits.
    pub name: String,
    /// Whom the consumer belongs to; its own name when left out.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Rank among those who wait in a queue: a higher one is served before all lower ones.
    #[serde(default)]
    pub priority: i32,
    /// Its API keys; all share the consumer's limits.
    #[serde(default)]
    pub keys: Vec<ConsumerKey>,
}

/// An API key, stored as its digest.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumerKey {
    /// SHA-256 of the key; `spillway key new` prints a key and its digest.
    pub sha256: KeyDigest,
}

/// How callers show who they are.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authentication {
    /// API keys in headers.
    #[serde(default)]
    pub api_key: ApiKeyHeaders,
}

/// The headers that may hold an API key; `authorization` holds it as `Bearer KEY`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ApiKeyHeaders {
    /// Header names, tried in this order.
    pub headers: Vec<String>,
}

impl Default for ApiKeyHeaders {
    fn default() -> Self {
        Self { headers: ["authorization", "x-api-key", "api-key"].map(str::to_owned).to_vec() }
    }
}
