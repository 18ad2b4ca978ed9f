//! Active health checks: one task for each endpoint that has one, kept over reloads while nothing about it changed.
//! It owns those tasks and the counts of good and bad checks; the verdict stands in the endpoint's state.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use spillway_config::schema::HealthCheck;
use tokio::task::AbortHandle;

use super::{EndpointKey, EndpointState};
use crate::tls::UpstreamTls;

/// Most bytes of a check's answer that are read; the status decides, the body is only drained.
const MAX_ANSWER: usize = 64 << 10;

/// A check to run.
pub struct Probe {
    /// Whose check it is.
    pub key: EndpointKey,
    /// The endpoint's address.
    pub address: SocketAddr,
    /// How it is checked.
    pub check: HealthCheck,
    /// Where the verdict goes.
    pub state: Arc<EndpointState>,
    /// How its TLS is judged, where its URL says https.
    pub tls: Arc<UpstreamTls>,
    /// Whether it speaks HTTP/2.
    pub http2: bool,
}

/// Runs the checks of the current snapshot.
#[derive(Default)]
pub struct HealthSupervisor {
    running: Mutex<HashMap<EndpointKey, Running>>,
}

struct Running {
    address: SocketAddr,
    check: HealthCheck,
    state: Weak<EndpointState>,
    tls: [u8; 32],
    task: AbortHandle,
}

impl HealthSupervisor {
    /// Starts what is new, ends what is gone or changed, leaves the rest alone.
    pub fn apply(&self, probes: Vec<Probe>) {
        let mut running = self.running.lock();
        let mut wanted = HashMap::new();
        for probe in probes {
            let kept = running.remove(&probe.key).filter(|r| {
                r.address == probe.address
                    && r.check == probe.check
                    && r.tls == probe.tls.digest
                    && r.state.upgrade().is_some_and(|state| Arc::ptr_eq(&state, &probe.state))
                    || {
                        r.task.abort();
                        false
                    }
            });
            let entry = kept.unwrap_or_else(|| {
                let (address, check, state) = (probe.address, probe.check, Arc::downgrade(&probe.state));
                let way = Way { key: probe.key.clone(), address, tls: probe.tls.clone(), http2: probe.http2 };
                let task = tokio::spawn(watch(way, check.clone(), state.clone())).abort_handle();
                Running { address, check, state, tls: probe.tls.digest, task }
            });
            wanted.insert(probe.key, entry);
        }
        for (_, gone) in running.drain() {
            gone.task.abort();
            if let Some(state) = gone.state.upgrade() {
                // An endpoint that is no longer checked counts as healthy again.
                state.set_healthy(true);
            }
        }
        *running = wanted;
    }

    /// Ends all checks.
    pub fn stop(&self) {
        for (_, running) in self.running.lock().drain() {
            running.task.abort();
        }
    }
}

/// How a server is reached.
struct Way {
    key: EndpointKey,
    address: SocketAddr,
    tls: Arc<UpstreamTls>,
    http2: bool,
}

async fn watch(way: Way, check: HealthCheck, state: Weak<EndpointState>) {
    let key = &way.key;
    let mut tally = Tally::default();
    // The first check comes at once; the jitter keeps a thousand endpoints from being asked in the same millisecond.
    let mut wait = Duration::ZERO;
    loop {
        tokio::time::sleep(wait).await;
        wait = check.interval.0.mul_f64(rand::random_range(0.9..1.1));
        let verdict = probe(&way, &check).await;
        let Some(state) = state.upgrade() else { return };
        let was = state.is_healthy();
        let is = tally.add(verdict.is_ok(), was, &check);
        if was != is {
            state.set_healthy(is);
            match verdict {
                Ok(()) => tracing::info!(event = "endpoint_healthy", backend = %key.backend, endpoint = %key.url),
                Err(why) => {
                    tracing::warn!(event = "endpoint_unhealthy", backend = %key.backend, endpoint = %key.url, reason = %why);
                }
            }
        }
    }
}

/// Checks in a row with the same result.
#[derive(Default)]
struct Tally {
    good: u32,
    bad: u32,
}

impl Tally {
    fn add(&mut self, ok: bool, was_healthy: bool, check: &HealthCheck) -> bool {
        if ok {
            self.good = self.good.saturating_add(1);
            self.bad = 0;
            was_healthy || self.good >= check.healthy_threshold.get()
        } else {
            self.bad = self.bad.saturating_add(1);
            self.good = 0;
            was_healthy && self.bad < check.unhealthy_threshold.get()
        }
    }
}

async fn probe(way: &Way, check: &HealthCheck) -> Result<(), String> {
    match tokio::time::timeout(check.timeout.0, ask(way, check)).await {
        Ok(verdict) => verdict,
        Err(_) => Err(format!("no answer within {}", check.timeout)),
    }
}

/// One `GET` over a connection of its own: a pooled one would hide that no new connection can be opened.
async fn ask(way: &Way, check: &HealthCheck) -> Result<(), String> {
    let url = &way.key.url;
    let stream = tokio::net::TcpStream::connect(way.address).await.map_err(|e| format!("cannot connect: {e}"))?;
    if !url.https {
        return converse(TokioIo::new(stream), way, way.http2, check).await;
    }
    let name = ServerName::try_from(way.tls.name(&url.host).to_owned()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(way.tls.config.clone());
    let stream = connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    converse(TokioIo::new(stream), way, http2, check).await
}

async fn converse<S>(stream: S, way: &Way, http2: bool, check: &HealthCheck) -> Result<(), String>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let url = &way.key.url;
    let authority =
        format!("{}:{}", if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() }, url.port);
    let request = http::Request::get(check.http.path.as_str())
        .header(http::header::USER_AGENT, concat!("spillway/", env!("CARGO_PKG_VERSION"), " health-check"))
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| e.to_string())?;
    let (mut head, body) = request.into_parts();
    let answer = if http2 {
        let scheme = if url.https { "https" } else { "http" };
        head.uri = format!("{scheme}://{authority}{}", check.http.path).parse().map_err(|e| format!("{e}"))?;
        let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
        let (mut sender, connection) = client.map_err(|e| e.to_string())?;
        let _connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
        drained(sender.send_request(http::Request::from_parts(head, body)).await).await
    } else {
        head.headers
            .insert(http::header::HOST, authority.parse().map_err(|_| "its host is no header value".to_owned())?);
        head.headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(|e| e.to_string())?;
        let _connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
        drained(sender.send_request(http::Request::from_parts(head, body)).await).await
    };
    let status = answer?;
    if check.http.expected_statuses.iter().any(|s| s.0 == status) { Ok(()) } else { Err(format!("status {status}")) }
}

/// The status of an answer whose body was read while its connection lived.
async fn drained(answer: hyper::Result<http::Response<hyper::body::Incoming>>) -> Result<u16, String> {
    let answer = answer.map_err(|e| e.to_string())?;
    let status = answer.status().as_u16();
    let _ = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    Ok(status)
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        serde_json::from_value(serde_json::json!({
            "http": {"path": "/health"}, "healthyThreshold": 2, "unhealthyThreshold": 3
        }))
        .unwrap()
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let check = check();
        let mut tally = Tally::default();
        let mut healthy = true;
        let mut history = Vec::new();
        for ok in [false, false, true, false, false, false, true, false, true, true] {
            healthy = tally.add(ok, healthy, &check);
            history.push(healthy);
        }
        assert_eq!(history, [true, true, true, true, true, false, false, false, false, true]);
    }
}
