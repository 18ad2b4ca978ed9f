//! `feedback`: labels that callers send for answers that they got.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Size};

/// Labels of answers, which callers send with POST: a score, a label, or the answer that was expected. The consumer who made
/// a request may label it. The gateway answers the path itself, before any route: a route with a longer reach, such as the
/// prefix `/v1`, does not get it. Calls of models that a backend or a built-in model has answered are
/// remembered by the hashes of their ids; no text of them is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Feedback {
    /// Name of the listener that takes labels; every listener when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// Path that takes labels.
    pub path: String,
    /// Scopes of tokens, one of which lets a caller label the requests of every consumer, and of callers that are not known.
    pub scopes: Vec<String>,
    /// Memory of requests that may be labelled.
    pub remember: Remember,
    /// Most bytes of a label's body, decoded. From 1KiB to 1MiB.
    pub max_body: Size,
    /// True to write each `comment` to the log, with the request that it is about. Otherwise comments are checked and
    /// forgotten.
    pub log_comments: bool,
}

impl Default for Feedback {
    fn default() -> Self {
        Self {
            listener: None,
            path: "/v1/feedback".to_owned(),
            scopes: Vec::new(),
            remember: Remember::default(),
            max_body: Size::kib(16),
            log_comments: false,
        }
    }
}

/// Memory of requests that may be labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Remember {
    /// Latest requests that are remembered, those of all callers together; about 130 bytes each. Older ones can no longer be
    /// labelled.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub requests: NonZeroU32,
    /// Time after the end of a request in which it may be labelled. From 1s to 90d.
    #[serde(rename = "for")]
    pub keep: Duration,
}

impl Default for Remember {
    fn default() -> Self {
        Self { requests: NonZeroU32::new(100_000).unwrap_or(NonZeroU32::MIN), keep: Duration::seconds(24 * 3600) }
    }
}
