//! Election of the replica that writes statuses, by a `Lease` of the API server. All replicas translate and serve; only what is
//! written to the cluster has one writer. A lease that was not renewed for its duration, by the clock of who looks on, is taken
//! over; of two that try, the API server refuses one by the version of the object.

use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::LogThrottle;

/// Longest time of one request about the lease.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until the gateway stops.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is an end too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Candidate for the lease.
pub(super) struct Candidate {
    api: Api<DynamicObject>,
    namespace: String,
    name: String,
    identity: String,
    duration: Duration,
    /// Content of another's lease, with the time since which it is the same.
    seen: Option<(Value, Instant)>,
    /// Last renewal of the own lease.
    renewed: Option<Instant>,
    failures: LogThrottle,
}

impl Candidate {
    pub(super) fn new(client: &Client, namespace: &str, name: &str, identity: String, duration: Duration) -> Self {
        let kind = GroupVersionKind::gvk("coordination.k8s.io", "v1", "Lease");
        let resource = ApiResource::from_gvk_with_plural(&kind, "leases");
        Self {
            api: Api::namespaced_with(client.clone(), namespace, &resource),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity,
            duration,
            seen: None,
            renewed: None,
            failures: LogThrottle::default(),
        }
    }

    /// Takes and renews the lease until it is dropped; `leads` says whether it is held.
    pub(super) async fn run(mut self, leads: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
        loop {
            let tried = tokio::time::timeout(TIMEOUT.min(self.duration), self.attempt()).await;
            match tried {
                Ok(Ok(true)) => self.renewed = Some(Instant::now()),
                Ok(Ok(false)) => self.renewed = None,
                Ok(Err(e)) => self.failed(&e.to_string()),
                Err(_) => self.failed("no answer in time"),
            }
            // Another may hold it as soon as it has ended.
            let holds = self.renewed.is_some_and(|at| at.elapsed() < self.duration);
            if leads.send_if_modified(|known| std::mem::replace(known, holds) != holds) {
                tracing::info!(event = "kubernetes_leader", leads = holds, lease = %self.name);
            }
            tokio::select! {
                () = tokio::time::sleep(self.duration / 3) => {}
                () = stopped(&mut stop) => break,
            }
        }
        if self.renewed.is_some() {
            let _ = tokio::time::timeout(TIMEOUT, self.release()).await;
        }
    }

    fn failed(&self, reason: &str) {
        self.failures.add(1, |times| {
            tracing::warn!(event = "kubernetes_lease_failed", lease = %self.name, reason, times);
        });
    }

    /// Takes or renews the lease; true if it is held.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let known = self.api.get_opt(&self.name).await?;
        let Some(mut lease) = known else {
            let written = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": self.spec(&Value::Null, true),
            });
            let lease = serde_json::from_value(written).map_err(kube::Error::SerdeError)?;
            return unless_conflict(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.data.get("spec").cloned().unwrap_or_default();
        let holder = spec.get("holderIdentity").and_then(Value::as_str).unwrap_or_default();
        let is_own = holder == self.identity;
        if !is_own && !holder.is_empty() {
            let since = match &self.seen {
                Some((seen, since)) if *seen == spec => *since,
                _ => {
                    self.seen = Some((spec, Instant::now()));
                    return Ok(false);
                }
            };
            let seconds = spec.get("leaseDurationSeconds").and_then(Value::as_u64);
            if since.elapsed() < seconds.map_or(self.duration, Duration::from_secs) {
                return Ok(false);
            }
        }
        let next = self.spec(&spec, !is_own);
        if let Some(data) = lease.data.as_object_mut() {
            data.insert("spec".to_owned(), next);
        }
        unless_conflict(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, before: &Value, is_taken: bool) -> Value {
        let now = format!("{:.6}", jiff::Timestamp::now());
        let taken = before.get("leaseTransitions").and_then(Value::as_u64).unwrap_or(0);
        let acquired = before.get("acquireTime").filter(|_| !is_taken).cloned().unwrap_or_else(|| now.clone().into());
        json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.duration.as_secs(),
            "acquireTime": acquired,
            "renewTime": now,
            "leaseTransitions": taken.saturating_add(u64::from(is_taken)),
        })
    }

    /// Gives the lease up, so that another replica need not wait for its end.
    async fn release(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let holder = lease.data.pointer("/spec/holderIdentity").and_then(Value::as_str);
        if holder == Some(&self.identity)
            && let Some(holder) = lease.data.pointer_mut("/spec/holderIdentity")
        {
            *holder = Value::Null;
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// True unless another was faster.
fn unless_conflict<T>(written: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}
