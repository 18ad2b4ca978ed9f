use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use http::StatusCode;
use parking_lot::Mutex;
use spillway_config::schema::{Notification, NotificationEvent};
use tokio::time::timeout;

use super::{Event, Notifier};
use crate::telemetry::{Metrics, Samples};

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Server that answers by the path, and keeps what it was sent.
#[derive(Default)]
struct Seen {
    /// Path and id of each attempt.
    attempts: Mutex<Vec<(String, String)>>,
    /// Answers of each path in turn; when there are none left, 204.
    answers: Mutex<HashMap<String, Vec<StatusCode>>>,
}

async fn answer(State(seen): State<Arc<Seen>>, request: Request) -> axum::response::Response {
    let path = request.uri().path().to_owned();
    let id = request.headers()["webhook-id"].to_str().unwrap().to_owned();
    seen.attempts.lock().push((path.clone(), id));
    if path == "/hangs" {
        std::future::pending::<()>().await;
    }
    let next = seen.answers.lock().get_mut(&path).and_then(|answers| (!answers.is_empty()).then(|| answers.remove(0)));
    let status = next.unwrap_or(StatusCode::NO_CONTENT);
    if status == StatusCode::TOO_MANY_REQUESTS {
        return (status, [("retry-after", "0.2")]).into_response();
    }
    status.into_response()
}

async fn receiver() -> (String, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().fallback(answer).with_state(seen.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, seen)
}

impl Seen {
    fn answers(&self, path: &str, answers: &[StatusCode]) {
        self.answers.lock().insert(path.to_owned(), answers.to_vec());
    }

    /// Ids of the attempts at a path, once there are so many.
    async fn at(&self, path: &str, many: usize) -> Vec<String> {
        let ids = || -> Vec<String> {
            self.attempts.lock().iter().filter(|(at, _)| at == path).map(|(_, id)| id.clone()).collect()
        };
        let enough = async {
            while ids().len() < many {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(PATIENCE, enough).await.is_ok(), "{path}: only {:?}", ids());
        ids()
    }
}

/// Receivers at these paths of a server, each with these further settings.
fn written(url: &str, receivers: &[(&str, serde_json::Value)]) -> Vec<Notification> {
    // Any file that is long enough is a secret.
    let secret = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let one = |(path, further): &(&str, serde_json::Value)| {
        let mut webhook = serde_json::json!({
            "url": format!("{url}{path}"), "secret": {"file": secret}, "retry": {"base": "10ms", "max": "20ms"},
        });
        webhook.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
        serde_json::from_value(serde_json::json!({"webhook": webhook, "events": ["rollout"]})).unwrap()
    };
    receivers.iter().map(one).collect()
}

fn send(notifier: &Notifier, subject: &str, id: &str) {
    let event = Event {
        id,
        kind: "dev.spillway.test",
        source: "/spillway/tests",
        subject,
        time: SystemTime::now(),
        data: serde_json::json!({}),
    };
    notifier.send(NotificationEvent::Rollout, &event);
}

/// Waits until a series has this value.
async fn metric(metrics: &Metrics, series: &str, value: u64) {
    let line = format!("{series} {value}");
    let text = || metrics.encode(&Samples::default(), crate::telemetry::MetricsFormat::OpenMetrics);
    let becomes = async {
        while !text().lines().any(|shown| shown == line) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let shown = || text().lines().filter(|line| line.contains("notification")).collect::<Vec<_>>().join("\n");
    assert!(timeout(PATIENCE, becomes).await.is_ok(), "not {line} in\n{}", shown());
}

fn notifier() -> (Arc<Metrics>, Notifier) {
    let metrics = Arc::new(Metrics::new());
    (metrics.clone(), Notifier::new(metrics))
}

#[tokio::test]
async fn a_receiver_that_hangs_or_refuses_holds_up_no_other_and_order_is_kept() {
    let ((url, seen), (metrics, notifier)) = (receiver().await, notifier());
    seen.answers("/refuses", &[StatusCode::INTERNAL_SERVER_ERROR; 2]);
    let none = serde_json::json!({});
    let settings = written(&url, &[("/hangs", none.clone()), ("/refuses", none.clone()), ("/takes", none)]);
    notifier.adopt(notifier.compile(&settings).unwrap());
    for id in ["a1", "a2", "a3"] {
        send(&notifier, "a", id);
    }
    assert_eq!(seen.at("/takes", 3).await, ["a1", "a2", "a3"]);
    assert_eq!(seen.at("/refuses", 5).await, ["a1", "a1", "a1", "a2", "a3"]);
    assert_eq!(seen.at("/hangs", 1).await, ["a1"]);
    let server = url.as_str();
    metric(&metrics, &format!("spillway_notifications_total{{receiver=\"{server}\",result=\"delivered\"}}"), 6).await;
    metric(&metrics, &format!("spillway_notification_failures_total{{receiver=\"{server}\"}}"), 2).await;
    metric(&metrics, &format!("spillway_notifications_pending{{receiver=\"{server}\"}}"), 3).await;
    // Another subject does not wait for the one that hangs.
    send(&notifier, "b", "b1");
    assert_eq!(seen.at("/hangs", 2).await, ["a1", "b1"]);
}

#[tokio::test]
async fn a_notification_is_given_up_after_its_attempts_and_the_next_is_sent() {
    let ((url, seen), (metrics, notifier)) = (receiver().await, notifier());
    seen.answers("/hook", &[StatusCode::BAD_REQUEST, StatusCode::TOO_MANY_REQUESTS, StatusCode::FOUND]);
    let retry = serde_json::json!({"retry": {"attempts": 3, "base": "10ms", "max": "20ms"}});
    notifier.adopt(notifier.compile(&written(&url, &[("/hook", retry)])).unwrap());
    send(&notifier, "a", "a1");
    send(&notifier, "a", "a2");
    assert_eq!(seen.at("/hook", 4).await, ["a1", "a1", "a1", "a2"]);
    metric(&metrics, &format!("spillway_notifications_total{{receiver=\"{url}\",result=\"given_up\"}}"), 1).await;
    metric(&metrics, &format!("spillway_notifications_total{{receiver=\"{url}\",result=\"delivered\"}}"), 1).await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_gets_nothing_until_the_next_edit() {
    let ((url, seen), (metrics, notifier)) = (receiver().await, notifier());
    seen.answers("/hook", &[StatusCode::GONE]);
    let settings = written(&url, &[("/hook", serde_json::json!({}))]);
    notifier.adopt(notifier.compile(&settings).unwrap());
    send(&notifier, "a", "a1");
    let gone = format!("spillway_notifications_total{{receiver=\"{url}\",result=\"gone\"}}");
    metric(&metrics, &gone, 1).await;
    send(&notifier, "a", "a2");
    metric(&metrics, &gone, 2).await;
    notifier.adopt(notifier.compile(&settings).unwrap());
    send(&notifier, "a", "a3");
    assert_eq!(seen.at("/hook", 2).await, ["a1", "a3"]);
}

#[tokio::test]
async fn an_edit_keeps_what_waits_for_a_receiver_that_stays() {
    let ((url, seen), (metrics, notifier)) = (receiver().await, notifier());
    // Nothing listens there.
    let nobody = {
        let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        format!("http://127.0.0.1:{port}")
    };
    let hang = serde_json::json!({"timeout": "100ms", "retry": {"base": "10ms", "max": "20ms", "attempts": 1000}});
    let mut settings = written(&url, &[("/hangs", hang)]);
    settings.extend(written(&nobody, &[("/", serde_json::json!({}))]));
    notifier.adopt(notifier.compile(&settings).unwrap());
    send(&notifier, "a", "a1");
    send(&notifier, "a", "a2");
    assert!(seen.at("/hangs", 2).await.iter().all(|id| id == "a1"), "the second waits for the first");
    settings.truncate(1);
    settings[0].webhook.max_pending = std::num::NonZeroU32::MIN.saturating_add(1);
    notifier.adopt(notifier.compile(&settings).unwrap());
    let count = |result: &str, of: &str| format!("spillway_notifications{of}{{receiver=\"{url}\"{result}}}");
    metric(&metrics, &count("", "_pending"), 2).await;
    send(&notifier, "a", "a3");
    metric(&metrics, &count(",result=\"dropped\"", "_total"), 1).await;
    metric(&metrics, &count("", "_pending"), 2).await;
    notifier.close().await;
    metric(&metrics, &count(",result=\"lost\"", "_total"), 2).await;
}

#[tokio::test]
async fn a_fault_names_its_receiver_and_no_secret() {
    let (_, notifier) = notifier();
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short");
    std::fs::write(&short, "whsec_aHVudGVyMg").unwrap();
    let mut settings = written("http://127.0.0.1:1", &[("/a", serde_json::json!({})), ("/b", serde_json::json!({}))]);
    settings[1].webhook.secret = spillway_config::values::Secret::File(short.into());
    let Err(faults) = notifier.compile(&settings) else { panic!("a short secret was taken") };
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "notifications[1].webhook.secret: the secret has 7 bytes; expected 24 or more: write `whsec_` and what `openssl rand -base64 32` prints"
        ]
    );
}
