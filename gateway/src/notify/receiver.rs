//! Receiver of events: its settings, the messages that wait for it, and the task that sends them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::event::{CONTENT_TYPE, Message};
use super::lanes::{Bounds, Failed, Lanes};
use super::signature::SigningKey;
use crate::clock::unix_now;
use crate::http_client::Http;
use crate::telemetry::{LogThrottle, NotificationEnd, ReceiverMetrics};
use crate::upstream::retry_after;

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Most subjects whose messages are sent at once: events are few, and a receiver has other work.
const FLIGHTS: usize = 8;

/// Settings of a receiver.
pub(super) struct Settings {
    /// URL as written, which tells receivers apart.
    pub(super) url: String,
    pub(super) uri: Uri,
    /// Server without path and query, for logs and metrics.
    pub(super) server: String,
    pub(super) key: SigningKey,
    pub(super) http: Http,
    /// Longest wait for an answer.
    pub(super) timeout: Duration,
    pub(super) bounds: Bounds,
}

/// State that the task and its receiver share.
struct Shared {
    settings: ArcSwap<Settings>,
    queue: Mutex<Queue>,
    news: Notify,
    metrics: Arc<ReceiverMetrics>,
    failures: LogThrottle,
    drops: LogThrottle,
}

#[derive(Default)]
struct Queue {
    lanes: Lanes,
    /// Number of messages that metrics show.
    shown: i64,
    /// True once the receiver has said that it wants no more.
    is_gone: bool,
}

/// Receiver of messages. Dropping it ends its task.
pub(super) struct Receiver {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Starts the task of a receiver.
    pub(super) fn start(settings: Settings, metrics: Arc<ReceiverMetrics>) -> Self {
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings),
            queue: Mutex::default(),
            news: Notify::new(),
            metrics,
            failures: LogThrottle::default(),
            drops: LogThrottle::default(),
        });
        let task = tokio::spawn(shared.clone().run());
        Self { shared, task }
    }

    /// Takes new settings; what waits stays. A receiver that had said that it is gone is asked again.
    pub(super) fn adopt(&self, settings: Settings) {
        self.shared.settings.store(Arc::new(settings));
        self.shared.queue.lock().is_gone = false;
        self.shared.news.notify_one();
    }

    /// URL as written.
    pub(super) fn is_at(&self, url: &str) -> bool {
        self.shared.settings.load().url == url
    }

    /// Adds a message, without waiting for anything.
    pub(super) fn send(&self, message: Message) {
        let shared = &self.shared;
        let settings = shared.settings.load();
        let mut queue = shared.queue.lock();
        if queue.is_gone {
            shared.metrics.count(NotificationEnd::Gone, 1);
            return;
        }
        let dropped = queue.lanes.push(message, Instant::now(), settings.bounds.pending);
        shared.show(&mut queue);
        drop(queue);
        shared.news.notify_one();
        if dropped > 0 {
            shared.metrics.count(NotificationEnd::Dropped, dropped);
            let most = settings.bounds.pending;
            shared.drops.add(1, |times| {
                tracing::warn!(event = "notifications_dropped", receiver = %settings.server, most, times, "the oldest gave way");
            });
        }
    }

    /// True while something is being sent or was not tried yet.
    pub(super) fn has_news(&self) -> bool {
        self.shared.queue.lock().lanes.has_news()
    }

    /// Ends the task, and counts what was not sent.
    pub(super) fn end(&self) {
        self.task.abort();
        let mut queue = self.shared.queue.lock();
        let lost = queue.lanes.drain();
        self.shared.show(&mut queue);
        drop(queue);
        if lost > 0 {
            self.shared.metrics.count(NotificationEnd::Lost, lost);
            let receiver = &self.shared.settings.load().server;
            tracing::warn!(event = "notifications_lost", %receiver, notifications = lost);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How an attempt ended.
enum Attempt {
    Confirmed,
    /// 410: the receiver wants nothing more.
    Gone,
    Failed {
        reason: String,
        /// Time for which the receiver wants no message.
        wait: Option<Duration>,
    },
}

impl Shared {
    async fn run(self: Arc<Self>) {
        let mut flights = FuturesUnordered::new();
        loop {
            let due = {
                let mut queue = self.queue.lock();
                while flights.len() < FLIGHTS
                    && let Some(message) = queue.lanes.take(Instant::now())
                {
                    flights.push(attempt(self.settings.load_full(), message));
                }
                // With all flights under way, one must end first.
                queue.lanes.due().filter(|_| flights.len() < FLIGHTS)
            };
            tokio::select! {
                Some((message, attempt)) = flights.next() => {
                    if !self.settle(&message, attempt) {
                        flights.clear();
                    }
                }
                () = self.news.notified() => {}
                () = sleep_until(due) => {}
            }
        }
    }

    /// Records how an attempt ended; false if nothing more may be sent.
    fn settle(&self, message: &Message, attempt: Attempt) -> bool {
        let settings = self.settings.load();
        let (now, receiver) = (Instant::now(), &settings.server);
        let (id, kind, subject) = (&message.id, &message.kind, &message.subject);
        let mut queue = self.queue.lock();
        let (ended, goes_on) = match attempt {
            Attempt::Confirmed => {
                queue.lanes.delivered(subject, now);
                (Some((NotificationEnd::Delivered, 1)), true)
            }
            Attempt::Gone => {
                queue.is_gone = true;
                let lost = queue.lanes.drain();
                tracing::warn!(event = "notifications_not_wanted", %receiver, notifications = lost, "it answered 410");
                (Some((NotificationEnd::Gone, lost)), false)
            }
            Attempt::Failed { reason, wait } => {
                self.metrics.failures.inc();
                self.failures.add(1, |times| {
                    tracing::warn!(event = "notification_failed", %receiver, %kind, %subject, %reason, times);
                });
                let failed = queue.lanes.failed(subject, now, &settings.bounds, rand::random(), wait);
                let given_up = match failed {
                    Failed::Waits => None,
                    Failed::GivenUp(attempts) => {
                        tracing::error!(event = "notification_given_up", %receiver, %id, %kind, %subject, %reason, attempts);
                        Some((NotificationEnd::GivenUp, 1))
                    }
                };
                (given_up, true)
            }
        };
        self.show(&mut queue);
        drop(queue);
        if let Some((end, times)) = ended {
            self.metrics.count(end, times);
        }
        goes_on
    }

    /// Shows in metrics how many messages wait. Receivers at one server share the series, so the change is added.
    fn show(&self, queue: &mut Queue) {
        let pending = i64::try_from(queue.lanes.pending()).unwrap_or(i64::MAX);
        self.metrics.pending.add(pending - queue.shown);
        queue.shown = pending;
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Sends a message once.
async fn attempt(settings: Arc<Settings>, message: Message) -> (Message, Attempt) {
    let timestamp = unix_now();
    let signature = settings.key.sign(&message.id, timestamp, &message.body);
    let request = Request::builder()
        .method(Method::POST)
        .uri(settings.uri.clone())
        .header(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE))
        .header(header::USER_AGENT, concat!("spillway/", env!("CARGO_PKG_VERSION")))
        .header(&WEBHOOK_ID, &*message.id)
        .header(&WEBHOOK_TIMESTAMP, timestamp)
        .header(&WEBHOOK_SIGNATURE, signature)
        .body(message.body.clone());
    let answer = match request {
        Ok(request) => settings.http.head(request, settings.timeout).await.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    let attempt = match answer {
        Ok(head) if head.status.is_success() => Attempt::Confirmed,
        Ok(head) if head.status == StatusCode::GONE => Attempt::Gone,
        Ok(head) => {
            let text = |name: &HeaderName| head.headers.get(name)?.to_str().ok().map(str::trim);
            let wait = retry_after(text, SystemTime::now());
            Attempt::Failed { reason: format!("it answered {}", head.status.as_u16()), wait }
        }
        Err(reason) => Attempt::Failed { reason, wait: None },
    };
    (message, attempt)
}
