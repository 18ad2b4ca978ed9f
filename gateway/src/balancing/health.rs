//! Active health checks: one task for each endpoint that has one, kept over reloads while nothing about it changed.
//! It owns those tasks and the counts of good and bad checks; the verdict stands in the endpoint's state.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use spillway_config::schema::HealthCheck;
use tokio::task::AbortHandle;

use super::{EndpointKey, EndpointState};

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
                    && r.state.upgrade().is_some_and(|state| Arc::ptr_eq(&state, &probe.state))
                    || {
                        r.task.abort();
                        false
                    }
            });
            let entry = kept.unwrap_or_else(|| {
                let (address, check, state) = (probe.address, probe.check, Arc::downgrade(&probe.state));
                let task = tokio::spawn(watch(probe.key.clone(), address, check.clone(), state.clone())).abort_handle();
                Running { address, check, state, task }
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

async fn watch(key: EndpointKey, address: SocketAddr, check: HealthCheck, state: Weak<EndpointState>) {
    let mut tally = Tally::default();
    // The first check comes at once; the jitter keeps a thousand endpoints from being asked in the same millisecond.
    let mut wait = Duration::ZERO;
    loop {
        tokio::time::sleep(wait).await;
        wait = check.interval.0.mul_f64(rand::random_range(0.9..1.1));
        let verdict = probe(&key, address, &check).await;
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

async fn probe(key: &EndpointKey, address: SocketAddr, check: &HealthCheck) -> Result<(), String> {
    match tokio::time::timeout(check.timeout.0, ask(key, address, check)).await {
        Ok(verdict) => verdict,
        Err(_) => Err(format!("no answer within {}", check.timeout)),
    }
}

/// One `GET` over a connection of its own: a pooled one would hide that no new connection can be opened.
async fn ask(key: &EndpointKey, address: SocketAddr, check: &HealthCheck) -> Result<(), String> {
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|e| format!("cannot connect: {e}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
    let connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
    let request = http::Request::get(check.http.path.as_str())
        .header(http::header::HOST, format!("{}:{}", key.url.host, key.url.port))
        .header(http::header::USER_AGENT, concat!("spillway/", env!("CARGO_PKG_VERSION"), " health-check"))
        .header(http::header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = answer.status().as_u16();
    let _ = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    drop(connection);
    if check.http.expected_statuses.iter().any(|s| s.0 == status) { Ok(()) } else { Err(format!("status {status}")) }
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
