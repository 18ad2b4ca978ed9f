//! `notifications`: webhooks that are told of events of the gateway.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, FilePath, Secret};

/// Receiver of events. Each event is a CloudEvent in JSON, signed as Standard Webhooks describes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Notification {
    /// Receiver.
    pub webhook: Webhook,
    /// Events that are sent.
    pub events: Vec<NotificationEvent>,
}

/// Kind of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NotificationEvent {
    /// Begin, steps, pauses and end of a rollout.
    Rollout,
    /// Drift of `routes[].quality`: features that pass a limit and are back, probes that fail, pass again or are answered by
    /// another model.
    Drift,
}

/// HTTP server that receives events, each in a POST of its own. An answer of 2xx confirms an event; after any other, or none,
/// it is sent again. Events wait in memory and are lost when the process ends.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// URL of the receiver. Events that wait are kept over edits as long as it stays.
    pub url: String,
    /// Key of the signature, at least 24 bytes: `whsec_` and base64, or a text whose bytes are the key.
    pub secret: Secret,
    /// Authorities that are trusted for a receiver with TLS, in PEM; those of the system when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<FilePath>,
    /// Longest wait for an answer.
    #[serde(default = "Webhook::timeout")]
    pub timeout: Duration,
    /// Further attempts at an event that was not confirmed.
    #[serde(default)]
    pub retry: WebhookRetry,
    /// Most events that wait; further ones are dropped and counted.
    #[serde(default = "Webhook::max_pending")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_pending: NonZeroU32,
}

impl Webhook {
    /// Standard Webhooks recommends 15 to 30 s.
    fn timeout() -> Duration {
        Duration::seconds(15)
    }

    /// An event takes some kilobytes.
    fn max_pending() -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(255)
    }
}

/// Attempts at one event: after each that fails, a random part of a time that doubles from `base` up to `max`. `Retry-After` of
/// an answer makes it longer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhookRetry {
    /// Most attempts, the first included.
    #[schemars(range(min = 1, max = 1000))]
    pub attempts: NonZeroU32,
    /// Before the second attempt.
    pub base: Duration,
    /// At most.
    pub max: Duration,
    /// Age at which an event is given up.
    pub give_up_after: Duration,
}

impl Default for WebhookRetry {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::MIN.saturating_add(15),
            // A receiver that restarts misses some seconds; one that is down is asked every five minutes.
            base: Duration::seconds(1),
            max: Duration::seconds(300),
            // Events of rollouts are no news after an hour.
            give_up_after: Duration::seconds(3600),
        }
    }
}
