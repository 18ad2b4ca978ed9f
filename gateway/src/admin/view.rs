//! View of the running gateway that the admin address serves, also before the gateway is ready.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::response::Response;
use sha2::{Digest, Sha256};
use spillway_filter::KeptAnswers;
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::backends::{self, backend_samples, reports, samples};
use super::caches::{self, NoCache};
use super::consumers;
use super::history::History;
use super::lasting::LastingAnswer;
use super::overview::{self, Shown};
use super::playground::{Chat, NoChat, Playground};
use super::{AdminState, Login, RunningKeys, ShownCosts};
use crate::audit::Audit;
use crate::edits::Edits;
use crate::gateway::{Gateway, Phase};
use crate::handover::{HandOverReport, HandOvers, NoHandOver};
use crate::limits::{CostRow, Costs};
use crate::listener::ListenerSet;
use crate::quality::{Example, NoExamples, NoReference, ReferenceFile};
use crate::rollout::{self, Rollouts};
use crate::telemetry::{
    CostSample, EngineSample, GpuSample, HEADS_PER_SECOND, MAX_HEADS, Metrics, MetricsFormat, RecentHead, Samples, Tail,
};

/// View of the gateway for the admin address, also before the gateway is ready.
pub struct AdminView {
    pub(crate) gateway: ArcSwap<Option<Arc<Gateway>>>,
    pub(crate) listeners: ArcSwapOption<ListenerSet>,
    pub(crate) phase: Arc<Phase>,
    pub(crate) hand_overs: Arc<HandOvers>,
    /// True once the parts of the configuration from elsewhere than its file were read, where there are to be some.
    pub(crate) discovered: watch::Receiver<bool>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) edits: Arc<Edits>,
    pub(crate) chats: Playground,
    pub(crate) token: Option<[u8; 32]>,
    pub(crate) login: Option<Arc<Login>>,
    pub(crate) address: SocketAddr,
    pub(crate) hosts: Vec<String>,
    pub(crate) max_connections: usize,
    pub(crate) history: Arc<History>,
    pub(crate) traces_url: Option<String>,
    pub(crate) playground: bool,
    /// Form of the metrics before the gateway is ready.
    pub(crate) open_metrics: bool,
}

impl AdminView {
    /// State of the built-in models.
    pub fn engines(&self) -> Vec<EngineSample> {
        let gateway = self.gateway.load();
        let snapshot = gateway.as_ref().as_ref().map(|gateway| gateway.snapshot.load_full());
        snapshot.map(|snapshot| snapshot.models.iter().map(|model| model.sample()).collect()).unwrap_or_default()
    }
}

/// Head of a request that has ended, with where it goes now.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownHead {
    #[serde(flatten)]
    head: RecentHead,
    /// Targets that the route tries first.
    first_target: Option<String>,
}

fn cost_samples(costs: &Costs) -> Vec<CostSample> {
    let sample = |row: CostRow| CostSample {
        consumer: row.consumer,
        tenant: row.tenant,
        route: row.route,
        model: row.model,
        answers: row.answers,
        nanos: row.nanos,
    };
    costs.rows().into_iter().map(sample).collect()
}

#[async_trait::async_trait]
impl AdminState for AdminView {
    fn readiness(&self) -> Result<(), &'static str> {
        if self.phase.is_draining() {
            Err("draining")
        } else if self.gateway.load().is_none() || !*self.discovered.borrow() {
            Err("starting")
        } else {
            Ok(())
        }
    }
    fn metrics(&self) -> (&'static str, String) {
        let running = self.gateway.load();
        let is_open =
            running.as_ref().as_ref().map_or(self.open_metrics, |gateway| gateway.snapshot.load().open_metrics);
        let format = if is_open { MetricsFormat::OpenMetrics } else { MetricsFormat::Text };
        let text = match running.as_ref() {
            None => self.metrics.encode(&Samples::default(), format),
            Some(gateway) => {
                let snapshot = gateway.snapshot.load();
                let engines: Vec<_> = snapshot.models.iter().map(|model| model.sample()).collect();
                let (store_up, gateways) = snapshot.limits.store_seen();
                self.metrics.process.limit_store_up.set(store_up.into());
                self.metrics.process.limit_store_gateways.set(gateways.into());
                let answers_up = snapshot.answers.as_ref().is_some_and(|answers| answers.is_up());
                self.metrics.process.cache_store_up.set(answers_up.into());
                self.metrics.process.buffered_bytes.set(i64::try_from(gateway.bodies.used()).unwrap_or(i64::MAX));
                let unread = gateway.downstream.answers.used();
                self.metrics.process.buffered_answer_bytes.set(i64::try_from(unread).unwrap_or(i64::MAX));
                let endpoints = samples(&snapshot.backends);
                let backends = backend_samples(&snapshot.backends);
                let shown = self.listeners.load().as_ref().map(|listeners| listeners.certificates());
                let certificates: Vec<_> =
                    shown.into_iter().flatten().chain(snapshot.certificates.iter().cloned()).collect();
                let budgets = snapshot.identity.budgets();
                let costs = cost_samples(snapshot.limits.costs());
                let rollouts = rollout::samples(&gateway.rollouts);
                let labels = snapshot.feedback.as_ref().map(|plan| plan.state.samples());
                let log_dropped = gateway.log.dropped();
                let samples = Samples {
                    engines: &engines,
                    model_memory: (snapshot.models.memory().taken(), snapshot.models.memory().limit()),
                    gpus: &gpus(gateway),
                    backends: &backends,
                    endpoints: &endpoints,
                    certificates: &certificates,
                    budgets: &budgets,
                    costs: &costs,
                    rollouts: &rollouts,
                    feedback: labels.as_ref(),
                    quality: &gateway.quality.samples(),
                    quality_write_failures: gateway.quality.write_failures(),
                    quality_panics: gateway.quality.panics(),
                    log_dropped,
                };
                self.metrics.encode(&samples, format)
            }
        };
        (format.content_type(), text)
    }
    fn config(&self) -> serde_json::Value {
        let gateway = self.gateway.load();
        let running = gateway.as_ref().as_ref().map(|gateway| gateway.snapshot.load_full());
        serde_json::json!({
            "generation": running.as_ref().map(|snapshot| snapshot.generation),
            "running": running.as_ref().map(|snapshot| snapshot.shown.read()),
            "lastEdit": *self.edits.last(),
        })
    }
    fn overview(&self) -> serde_json::Value {
        let (gateway, listeners) = (self.gateway.load(), self.listeners.load());
        let shown = Shown {
            state: self.readiness().err().unwrap_or("ready"),
            traces_url: self.traces_url.clone(),
            playground: self.playground,
        };
        let gateway = gateway.as_ref().as_ref().map(|gateway| &**gateway);
        let report = overview::overview(&self.metrics, &self.history, gateway, listeners.as_deref(), shown);
        serde_json::json!(report)
    }
    fn history(&self) -> &History {
        &self.history
    }
    fn models(&self) -> serde_json::Value {
        let gateway = self.gateway.load();
        let memory = gateway.as_ref().as_ref().map(|gateway| {
            let snapshot = gateway.snapshot.load();
            let memory = snapshot.models.memory();
            serde_json::json!({"used": memory.taken(), "limit": memory.limit()})
        });
        let models = overview::models(self.engines(), &self.history.model_rates());
        serde_json::json!({"models": models, "memory": memory})
    }
    fn edits(&self) -> serde_json::Value {
        serde_json::json!({"edits": self.edits.kept()})
    }
    fn consumers(&self, tenant: Option<&str>, after: Option<&str>) -> Option<serde_json::Value> {
        let gateway = self.gateway.load();
        let snapshot = gateway.as_ref().as_ref()?.snapshot.load_full();
        Some(serde_json::json!(consumers::report(&snapshot.identity, tenant, after)))
    }
    fn tail(&self) -> Option<Arc<Tail>> {
        self.gateway.load().as_ref().as_ref().map(|gateway| gateway.tail.clone())
    }
    fn recent(&self) -> Option<serde_json::Value> {
        let gateway = self.gateway.load();
        let gateway = gateway.as_ref().as_ref()?;
        let snapshot = gateway.snapshot.load_full();
        let heads = gateway.recent.as_ref().map(|recent| recent.of(snapshot.generation)).unwrap_or_default();
        let shown = |head: &'_ Arc<RecentHead>| {
            let route = head.route.as_ref().and_then(|route| snapshot.routes.named(route));
            let first_target = route.map(|route| route.first_targets(head.model.as_deref()));
            ShownHead { head: RecentHead::clone(head), first_target }
        };
        let heads: Vec<ShownHead> = heads.iter().map(shown).collect();
        Some(serde_json::json!({"heads": heads, "most": MAX_HEADS, "perSecond": HEADS_PER_SECOND}))
    }
    async fn chat(&self, chat: Chat, lasting: LastingAnswer) -> Result<Response, NoChat> {
        if !self.playground {
            return Err(NoChat::Off);
        }
        let gateway = Option::clone(&self.gateway.load()).ok_or(NoChat::Starting)?;
        self.chats.chat(&gateway, chat, lasting).await
    }
    fn backends(&self) -> serde_json::Value {
        let gateway = self.gateway.load();
        let running = gateway.as_ref().as_ref().map(|gateway| gateway.snapshot.load_full());
        let reports = running.map(|snapshot| reports(&snapshot.backends)).unwrap_or_default();
        serde_json::json!({ "backends": reports })
    }
    fn feedback(&self) -> serde_json::Value {
        let gateway = self.gateway.load();
        let running = gateway.as_ref().as_ref().map(|gateway| gateway.snapshot.load_full());
        let shown = running.and_then(|snapshot| Some(snapshot.feedback.as_ref()?.state.shown()));
        serde_json::json!({ "feedback": shown })
    }
    fn quality(&self) -> serde_json::Value {
        let gateway = self.gateway.load();
        let reports = gateway.as_ref().as_ref().map(|gateway| gateway.quality.reports()).unwrap_or_default();
        serde_json::json!({ "routes": reports })
    }
    async fn reference(&self, route: &str) -> Result<ReferenceFile, NoReference> {
        let quality = self.gateway.load().as_ref().as_ref().map(|gateway| gateway.quality.clone());
        match quality {
            Some(quality) => quality.reference(route).await,
            None => Err(NoReference::Busy),
        }
    }
    async fn examples(&self, route: Option<String>) -> Result<Vec<Example>, NoExamples> {
        let quality = self.gateway.load().as_ref().as_ref().map(|gateway| gateway.quality.clone());
        match quality {
            Some(quality) => quality.examples(route).await,
            None => Err(NoExamples::Busy),
        }
    }
    async fn delete_examples(&self, route: Option<String>) -> Result<usize, NoExamples> {
        let quality = self.gateway.load().as_ref().as_ref().map(|gateway| gateway.quality.clone());
        match quality {
            Some(quality) => quality.delete_examples(route).await,
            None => Err(NoExamples::Busy),
        }
    }
    fn drain(&self, backend: &str, endpoint: &str, drained: bool) -> Option<Vec<(String, bool)>> {
        let gateway = self.gateway.load();
        let gateway = gateway.as_ref().as_ref()?;
        let snapshot = gateway.snapshot.load_full();
        let backend = snapshot.backends.iter().find(|known| *known.name == *backend)?;
        let found = backends::drain(backend, endpoint, drained);
        for (endpoint, _) in found.iter().filter(|(_, has_changed)| *has_changed) {
            gateway.drain_sockets(&backend.name, endpoint, drained);
        }
        Some(found)
    }
    async fn purge_cache(&self, route: &str, dry_run: bool) -> Result<KeptAnswers, NoCache> {
        let snapshot = self.gateway.load().as_ref().as_ref().map(|gateway| gateway.snapshot.load_full());
        let snapshot = snapshot.ok_or(NoCache::Unknown)?;
        caches::of_route(snapshot.routes.named(route), dry_run).await
    }
    fn rollouts(&self) -> Option<Rollouts> {
        self.gateway.load().as_ref().as_ref().map(|gateway| gateway.rollouts.clone())
    }
    fn keys(&self) -> Option<RunningKeys> {
        let gateway = self.gateway.load();
        let gateway = gateway.as_ref().as_ref()?;
        let table = gateway.snapshot.load().identity.issued().cloned();
        Some(RunningKeys { keys: gateway.issued_keys.clone(), table })
    }
    fn costs(&self) -> Option<ShownCosts> {
        let gateway = self.gateway.load();
        let snapshot = gateway.as_ref().as_ref()?.snapshot.load_full();
        let costs = snapshot.limits.costs();
        Some(ShownCosts { since: costs.since, rows: costs.rows(), unpriced: costs.unpriced() })
    }
    async fn begin_hand_over(&self) -> Result<u32, NoHandOver> {
        if self.gateway.load().is_none() {
            return Err(NoHandOver::Starting);
        }
        self.hand_overs.begin().await
    }
    fn hand_overs(&self) -> HandOverReport {
        self.hand_overs.report()
    }
    fn token_matches(&self, token: Option<&[u8]>) -> Option<bool> {
        let expected = self.token.as_ref()?;
        let shown: [u8; 32] = Sha256::digest(token.unwrap_or_default()).into();
        Some(token.is_some() && bool::from(shown.ct_eq(expected)))
    }
    fn audit(&self, client: std::net::IpAddr, who: &str, method: &str, path: &str, status: u16) {
        self.audit.admin(client, who, method, path, status);
    }
    fn login(&self) -> Option<&Arc<Login>> {
        self.login.as_ref()
    }
    fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }
    fn hosts(&self) -> Vec<String> {
        self.hosts.clone()
    }
    fn max_connections(&self) -> usize {
        self.max_connections
    }
    fn connections_dropped(&self, count: usize) {
        if count > 0 {
            self.metrics.process.admin_connections_dropped.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}

/// Graphics processors of the machine.
#[cfg(feature = "gpu")]
fn gpus(gateway: &Gateway) -> Vec<GpuSample> {
    gateway.gpus.samples()
}

/// No processors: this build asks no driver.
#[cfg(not(feature = "gpu"))]
fn gpus(_: &Gateway) -> Vec<GpuSample> {
    Vec::new()
}
