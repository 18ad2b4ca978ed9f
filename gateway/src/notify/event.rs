//! Events as CloudEvents 1.0 in structured JSON (<https://github.com/cloudevents/spec>, v1.0.2): what a receiver gets as the
//! body of a request.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::Serialize;

use crate::telemetry::rfc3339_millis;

/// Content type of a body.
pub(super) const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";
/// Longest body, in bytes. Standard Webhooks recommends less than 20 kB; the evidence of a rollout with every metric takes
/// about that.
const MAX_BODY: usize = 256 << 10;

/// Event that is sent to receivers.
#[derive(Debug, Clone)]
pub struct Event<'e, D> {
    /// Id, the same wherever and however often the event is sent. It has no full stop, which ends the id where a body is signed.
    pub id: &'e str,
    /// Type, such as `dev.spillway.rollout.aborted`.
    pub kind: &'e str,
    /// Kind of things that events of this type are about, as a path: `/spillway/rollouts`.
    pub source: &'e str,
    /// Thing that the event is about, such as the name of a rollout. Events about one arrive in their order.
    pub subject: &'e str,
    /// Time at which it happened.
    pub time: SystemTime,
    /// Details.
    pub data: D,
}

/// Attributes in the JSON format of CloudEvents, 3.1.
#[derive(Serialize)]
struct Structured<'e, D> {
    specversion: &'static str,
    id: &'e str,
    source: &'e str,
    #[serde(rename = "type")]
    kind: &'e str,
    subject: &'e str,
    time: String,
    datacontenttype: &'static str,
    data: &'e D,
}

/// Event as it waits for a receiver: written once for all of them.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) id: Arc<str>,
    pub(super) kind: Arc<str>,
    pub(super) subject: Arc<str>,
    pub(super) body: Bytes,
}

/// Reason why an event has no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    /// The details are no JSON.
    #[error("its details cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The body would be too long.
    #[error("its body would have {0} bytes, more than {MAX_BODY}")]
    TooLong(usize),
}

impl Message {
    /// Writes an event.
    pub(super) fn of<D: Serialize>(event: &Event<'_, D>) -> Result<Self, MessageError> {
        let body = serde_json::to_vec(&Structured {
            specversion: "1.0",
            id: event.id,
            source: event.source,
            kind: event.kind,
            subject: event.subject,
            time: rfc3339_millis(event.time),
            datacontenttype: "application/json",
            data: &event.data,
        })?;
        if body.len() > MAX_BODY {
            return Err(MessageError::TooLong(body.len()));
        }
        Ok(Self { id: event.id.into(), kind: event.kind.into(), subject: event.subject.into(), body: body.into() })
    }
}
