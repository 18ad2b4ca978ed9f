//! Active health checks and scrapes of endpoints, and questions for their models: one task for each, kept over reloads while nothing about it changed. The
//! tasks own the counts of good and bad checks; results go to the state of the endpoint.

mod client;
mod error;
mod grpc;
mod http1;
mod models;
mod scrape;

use std::sync::Weak;
use std::time::Duration;

use spillway_config::schema::HealthCheck;

pub(super) use self::client::Server;
use self::error::ProbeError;
pub use self::models::ServedModels;
pub(super) use self::models::{ListPlan, list};
pub(super) use self::scrape::{ScrapePlan, scrape};
use super::EndpointState;
use crate::clock::now_millis;
use crate::connect::EndpointKey;

/// Most bytes of a check's answer that are read; the status decides, the body is only drained.
const MAX_ANSWER: usize = 64 << 10;

/// Plan of the health check of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CheckPlan {
    /// The check as configured.
    pub check: HealthCheck,
    /// Body of the completion that the check requests.
    pub completion: Option<String>,
    /// Statuses that mean full, which is not unhealthy.
    pub full_statuses: Vec<u16>,
}

impl CheckPlan {
    /// Plan for a check as configured. `model` is the name that the servers know.
    pub(crate) fn new(check: &HealthCheck, model: Option<&str>, full_statuses: &[u16]) -> Self {
        let completion = check.completion.as_ref().map(|completion| {
            serde_json::json!({
                "model": completion.model.as_deref().or(model).unwrap_or_default(),
                "messages": [{"role": "user", "content": "ping"}],
                "max_tokens": completion.max_tokens,
            })
            .to_string()
        });
        Self { check: check.clone(), completion, full_statuses: full_statuses.to_vec() }
    }

    async fn probe(&self, server: &Server) -> Result<(), ProbeError> {
        let timeout = self.check.timeout.0;
        tokio::time::timeout(timeout, self.send(server)).await.unwrap_or(Err(ProbeError::TimedOut(timeout)))
    }

    async fn send(&self, server: &Server) -> Result<(), ProbeError> {
        if let Some(grpc) = &self.check.grpc {
            let request = grpc::HealthCheckRequest { service: grpc.service.clone() };
            let answer: grpc::HealthCheckResponse = server.call(grpc::CHECK, &request, MAX_ANSWER).await?;
            return if answer.status == grpc::SERVING { Ok(()) } else { Err(ProbeError::NotServing(answer.status)) };
        }
        let (path, expected) = match (&self.check.http, &self.completion) {
            (Some(http), _) => {
                (http.path.as_str(), http.expected_statuses.iter().map(|status| status.0).collect::<Vec<_>>())
            }
            (None, Some(_)) => ("/v1/chat/completions", [&[200], self.full_statuses.as_slice()].concat()),
            (None, None) => return server.connect().await,
        };
        // The body does not matter, even where it is too long.
        let (status, _) = server.send(path, self.completion.clone(), MAX_ANSWER).await?;
        if expected.contains(&status.as_u16()) { Ok(()) } else { Err(ProbeError::Status(status.as_u16())) }
    }
}

/// Checks an endpoint until it is gone.
pub(super) async fn watch(key: EndpointKey, plan: CheckPlan, server: Server, state: Weak<EndpointState>) {
    let mut tally = Tally::default();
    // The first check comes at once; the jitter keeps a thousand endpoints from being asked in the same millisecond.
    let mut wait = Duration::ZERO;
    loop {
        tokio::time::sleep(wait).await;
        wait = plan.check.interval.0.mul_f64(rand::random_range(0.9..1.1));
        let verdict = plan.probe(&server).await;
        let Some(state) = state.upgrade() else { return };
        let was = state.is_healthy();
        let is = tally.add(verdict.is_ok(), was, &plan.check);
        if let Err(why) = &verdict {
            state.note_error(format!("health_check: {why}"));
        }
        if was != is {
            state.set_healthy(is, now_millis());
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
    /// False before the first check.
    begun: bool,
}

impl Tally {
    fn add(&mut self, ok: bool, was_healthy: bool, check: &HealthCheck) -> bool {
        let first = !std::mem::replace(&mut self.begun, true);
        if ok {
            self.good = self.good.saturating_add(1);
            self.bad = 0;
            // A new endpoint is available after its first check: it never failed one.
            was_healthy || first || self.good >= check.healthy_threshold.get()
        } else {
            self.bad = self.bad.saturating_add(1);
            self.good = 0;
            was_healthy && self.bad < check.unhealthy_threshold.get()
        }
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

    fn history(mut healthy: bool, results: &[bool]) -> Vec<bool> {
        let mut tally = Tally::default();
        let mut next = |ok: &bool| {
            healthy = tally.add(*ok, healthy, &check());
            healthy
        };
        results.iter().map(&mut next).collect()
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        assert_eq!(
            history(true, &[false, false, true, false, false, false, true, false, true, true]),
            [true, true, true, true, true, false, false, false, false, true]
        );
    }

    #[test]
    fn a_new_endpoint_takes_traffic_after_its_first_good_check() {
        assert_eq!(history(false, &[true, false, false, false]), [true, true, true, false]);
        assert_eq!(history(false, &[false, true, true]), [false, false, true]);
    }

    #[test]
    fn a_completion_asks_for_the_model_that_the_servers_know() {
        let check: HealthCheck = serde_json::from_value(serde_json::json!({"completion": {}})).unwrap();
        let plan = CheckPlan::new(&check, Some("m"), &[429]);
        let body: serde_json::Value = serde_json::from_str(&plan.completion.unwrap()).unwrap();
        assert_eq!((&body["model"], &body["max_tokens"]), (&"m".into(), &1.into()));
    }
}
