//! Notifications: events of the gateway for webhooks. The module owns the receivers, the messages that wait for them, and the
//! tasks that send them. Its inputs are events, which it takes without waiting: a receiver that is slow, hangs or refuses blocks
//! nobody. What waits is bounded and in memory; what is dropped, given up or lost is counted and logged.

mod event;
mod lanes;
mod receiver;
mod signature;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use serde::Serialize;
use spillway_config::schema::{Notification, NotificationEvent};
use spillway_config::values::ValueError;
use spillway_filter::HttpClient as _;

pub use self::event::Event;
use self::event::Message;
use self::lanes::Bounds;
use self::receiver::{Receiver, Settings};
pub use self::signature::KeyError;
use self::signature::SigningKey;
use crate::http_client::Http;
use crate::telemetry::Metrics;
use crate::tls::TlsError;

/// Longest wait at the end of the process for messages that were not tried yet.
const LAST_ATTEMPTS: Duration = Duration::from_secs(2);
/// Time between two looks at whether they are sent.
const POLL: Duration = Duration::from_millis(20);

/// Reason why a receiver cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("notifications[{place}].webhook.{fault}")]
pub struct ReceiverError {
    /// Number of the receiver in the file, from 0.
    place: usize,
    #[source]
    fault: ReceiverFault,
}

/// Fault of a receiver, with its key.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverFault {
    /// The secret cannot be read.
    #[error("secret: {0}")]
    Secret(#[from] ValueError),
    /// The secret is no key.
    #[error("secret: {0}")]
    Key(#[from] KeyError),
    /// The authorities cannot be read.
    #[error("caFile: {0}")]
    Authorities(#[from] TlsError),
    /// The URL cannot be called.
    #[error("url: not a URL that can be called ({0}); expected https://HOST/PATH")]
    Url(#[from] http::uri::InvalidUri),
}

/// Receiver of a configuration that is not in use yet.
pub struct ReceiverPlan {
    settings: Settings,
    events: Vec<NotificationEvent>,
}

/// Receivers of events.
pub struct Notifier {
    receivers: Mutex<Vec<(Receiver, Vec<NotificationEvent>)>>,
    http: Http,
    metrics: Arc<Metrics>,
}

impl Notifier {
    /// Creates a notifier without receivers.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { receivers: Mutex::default(), http: Http::default(), metrics }
    }

    /// Compiles the receivers of a configuration; changes nothing.
    ///
    /// # Errors
    /// Every receiver whose secret, authorities or URL cannot be used.
    pub fn compile(&self, written: &[Notification]) -> Result<Vec<ReceiverPlan>, Vec<ReceiverError>> {
        let mut plans = Vec::new();
        let mut errors = Vec::new();
        for (place, written) in written.iter().enumerate() {
            match self.settings(written) {
                Ok(settings) => plans.push(ReceiverPlan { settings, events: written.events.clone() }),
                Err(fault) => errors.push(ReceiverError { place, fault }),
            }
        }
        if errors.is_empty() { Ok(plans) } else { Err(errors) }
    }

    fn settings(&self, written: &Notification) -> Result<Settings, ReceiverFault> {
        let webhook = &written.webhook;
        let key = SigningKey::parse(&crate::credentials::secret(&webhook.secret)?)?;
        let http = match &webhook.ca_file {
            None => self.http.clone(),
            Some(file) => Http::with_roots(crate::tls::roots(file)?.0),
        };
        http.prepare();
        // As the library of URLs writes it, without a fragment, which is not sent.
        let parsed = url::Url::parse(&webhook.url).ok();
        let server = parsed.as_ref().map_or_else(|| "no URL".to_owned(), |url| url.origin().ascii_serialization());
        let written_url = parsed.as_ref().map_or(webhook.url.as_str(), |url| url.as_str());
        let uri: Uri = written_url.split('#').next().unwrap_or_default().parse()?;
        let retry = &webhook.retry;
        Ok(Settings {
            url: webhook.url.clone(),
            uri,
            server,
            key,
            http,
            timeout: webhook.timeout.0,
            bounds: Bounds {
                pending: usize::try_from(webhook.max_pending.get()).unwrap_or(usize::MAX),
                attempts: retry.attempts.get(),
                base: retry.base.0,
                max: retry.max.0,
                age: retry.give_up_after.0,
            },
        })
    }

    /// Uses these receivers from now on. One whose URL stays keeps what waits for it; what waits for one that is gone is lost.
    /// Must be called within the runtime.
    pub fn adopt(&self, plans: Vec<ReceiverPlan>) {
        let mut receivers = self.receivers.lock();
        let mut before = std::mem::take(&mut *receivers);
        for ReceiverPlan { settings, events } in plans {
            let place = before.iter().position(|(known, _)| known.is_at(&settings.url));
            let receiver = match place.map(|place| before.swap_remove(place)) {
                Some((known, _)) => {
                    known.adopt(settings);
                    known
                }
                None => {
                    let metrics = self.metrics.receiver(&settings.server);
                    Receiver::start(settings, metrics)
                }
            };
            receivers.push((receiver, events));
        }
        drop(receivers);
        before.iter().for_each(|(gone, _)| gone.end());
    }

    /// Sends an event to the receivers that want its kind, without waiting for them.
    pub fn send<D: Serialize>(&self, of: NotificationEvent, event: &Event<'_, D>) {
        let receivers = self.receivers.lock();
        let mut wanted = receivers.iter().filter(|(_, events)| events.contains(&of)).peekable();
        if wanted.peek().is_none() {
            return;
        }
        match Message::of(event) {
            Ok(message) => wanted.for_each(|(receiver, _)| receiver.send(message.clone())),
            Err(reason) => {
                tracing::error!(event = "notification_not_written", kind = event.kind, subject = event.subject, %reason);
            }
        }
    }

    /// Sends what was not tried yet, for a bounded time, and ends all tasks.
    pub async fn close(&self) {
        let has_news = || self.receivers.lock().iter().any(|(receiver, _)| receiver.has_news());
        let waiting = async {
            while has_news() {
                tokio::time::sleep(POLL).await;
            }
        };
        // What is left then is counted as lost.
        let _ = tokio::time::timeout(LAST_ATTEMPTS, waiting).await;
        let receivers = std::mem::take(&mut *self.receivers.lock());
        receivers.iter().for_each(|(receiver, _)| receiver.end());
    }
}
