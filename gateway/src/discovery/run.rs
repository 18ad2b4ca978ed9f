//! Task that keeps the running configuration and the statuses of the cluster as the objects say: changes are collected for a
//! moment, translated, offered, and, by the leader, reported in statuses.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use spillway_config::schema::Kubernetes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::leader::{Candidate, stopped};
use super::objects::{Kind, Objects};
use super::status::{StatusWrite, differing};
use super::translate::{Statuses, translate};
use super::watch::{Change, Event, api, watch as watch_kind};
use super::{Offer, Outcome};
use crate::telemetry::{LogThrottle, Metrics};

/// Changes that wait to be read; the watches wait while there are more.
const MAX_EVENTS: usize = 1_024;
/// Statuses that are written before changes are looked at again.
const MAX_WRITES: usize = 64;
/// Time until statuses are tried again that could not be written.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time of one write of a status.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for the lease to be given up at the end.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// Name of the gateway as a writer of fields.
const MANAGER: &str = "spillway";
/// Longest time to connect to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why the API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The file with address and credentials cannot be used.
    #[error("discovery.kubernetes.kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// There is no file, and this is no pod.
    #[error(
        "discovery.kubernetes: no API server is known ({0}): run in a pod with a service account, or name a `kubeconfig`"
    )]
    Unknown(#[from] kube::config::InferConfigError),
    /// A client cannot be made of the credentials.
    #[error("discovery.kubernetes: {0}")]
    Client(#[from] kube::Error),
}

/// API server that discovery will watch, with the namespace of its credentials; found before anything is served.
pub struct ApiServer {
    settings: Kubernetes,
    client: Client,
    default_namespace: String,
}

impl ApiServer {
    /// Finds address and credentials of the API server; asks it nothing.
    ///
    /// # Errors
    /// No API server is known, or its credentials cannot be read. A server that does not answer is no error.
    pub async fn find(settings: Kubernetes) -> Result<Self, DiscoveryError> {
        let mut config = config(settings.kubeconfig.as_deref()).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let default_namespace = config.default_namespace.clone();
        Ok(Self { settings, client: Client::try_from(config)?, default_namespace })
    }
}

/// Running discovery; stopped by [`Discovery::stop`].
pub struct Discovery {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Discovery {
    /// Starts to watch. `offers` takes the parts of the configuration; `edited` tells of each edit of the file, after which the
    /// parts are offered again. `synced` becomes true once the first offer was decided.
    pub fn start(
        server: ApiServer,
        offers: mpsc::Sender<Offer>,
        edited: watch::Receiver<u64>,
        synced: watch::Sender<bool>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let ApiServer { settings, client, default_namespace } = server;
        let namespace = settings.leader_election.namespace.clone().unwrap_or(default_namespace);
        let (stop, stopped) = watch::channel(false);
        let (leads, leading) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let host = std::env::var("HOSTNAME").unwrap_or_default();
        let identity = format!("{host}_{}", uuid::Uuid::new_v4().simple());
        let election = &settings.leader_election;
        let candidate = Candidate::new(&client, &namespace, &election.name, identity, election.duration.0);
        tasks.spawn(candidate.run(leads, stopped.clone()));
        let (events, received) = mpsc::channel(MAX_EVENTS);
        let most = usize::try_from(settings.max_objects.get()).unwrap_or(usize::MAX);
        let mut unread = BTreeSet::new();
        for (kind, namespace) in watched(&settings) {
            unread.insert((kind, namespace.clone()));
            let class = settings.gateway_class.as_str().into();
            tasks.spawn(watch_kind(client.clone(), kind, namespace, class, most, events.clone()));
        }
        let task = Task {
            settings,
            client,
            objects: Objects::default(),
            unread,
            offers,
            statuses: None,
            is_other: true,
            unwritten: true,
            metrics,
            failures: LogThrottle::default(),
            refusals: LogThrottle::default(),
            synced,
        };
        tasks.spawn(task.run(received, edited, leading, stopped));
        Self { stop, tasks }
    }

    /// Ends all tasks, and gives the lease up.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(STOP_TIMEOUT, async {
            // The watches end with their receiver, and the lease with its release.
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
        self.tasks.abort_all();
    }
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, DiscoveryError> {
    match kubeconfig {
        Some(file) => {
            let read = Kubeconfig::read_from(file)?;
            Ok(Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?)
        }
        None => Ok(Config::infer().await?),
    }
}

/// Kinds that are watched, each with its namespaces.
fn watched(settings: &Kubernetes) -> Vec<(Kind, Option<Arc<str>>)> {
    let is_asked = |kind: &Kind| match kind {
        Kind::Secret => settings.tls_secrets,
        Kind::ConfigMap => settings.ca_config_maps,
        Kind::InferencePool | Kind::Pod => settings.inference_pools,
        _ => true,
    };
    let namespaces: Vec<Option<Arc<str>>> = match settings.namespaces.as_slice() {
        [] => vec![None],
        named => named.iter().map(|name| Some(name.as_str().into())).collect(),
    };
    let of_kind = |kind: Kind| {
        let all = if kind.is_cluster_wide() { vec![None] } else { namespaces.clone() };
        all.into_iter().map(move |namespace| (kind, namespace))
    };
    Kind::ALL.into_iter().filter(is_asked).flat_map(of_kind).collect()
}

struct Task {
    settings: Kubernetes,
    client: Client,
    objects: Objects,
    /// Watches whose objects were not read yet.
    unread: BTreeSet<(Kind, Option<Arc<str>>)>,
    offers: mpsc::Sender<Offer>,
    /// Statuses that the last offer led to.
    statuses: Option<Statuses>,
    /// True if the objects differ from those of the last offer.
    is_other: bool,
    /// True if statuses may differ from those that are wanted.
    unwritten: bool,
    metrics: Arc<Metrics>,
    failures: LogThrottle,
    refusals: LogThrottle,
    synced: watch::Sender<bool>,
}

impl Task {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut edited: watch::Receiver<u64>,
        mut leading: watch::Receiver<bool>,
        mut stop: watch::Receiver<bool>,
    ) {
        let interval = self.settings.min_interval.0;
        let (mut offer_at, mut write_at) = (Instant::now() + interval, Instant::now());
        loop {
            let may_offer = self.is_other && self.is_complete();
            let may_write = self.unwritten && self.statuses.is_some() && *leading.borrow();
            tokio::select! {
                // Taken before anything is made of them.
                biased;
                () = stopped(&mut stop) => return,
                event = events.recv() => {
                    let Some(event) = event else { return };
                    let was_other = self.is_other;
                    self.take(event);
                    if self.is_other && !was_other {
                        offer_at = offer_at.max(Instant::now() + interval);
                    }
                }
                changed = edited.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.is_other = true;
                }
                changed = leading.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.unwritten = true;
                    self.metrics.process.kubernetes_leader.set(i64::from(*leading.borrow()));
                }
                () = sleep_until(offer_at), if may_offer => {
                    if !self.offer().await {
                        return;
                    }
                    offer_at = Instant::now() + interval;
                    write_at = Instant::now();
                }
                () = sleep_until(write_at), if may_write => {
                    write_at = Instant::now() + if self.write().await { interval } else { RETRY };
                }
            }
        }
    }

    /// True if the objects of all watches were read, and are not too many.
    fn is_complete(&self) -> bool {
        let most = usize::try_from(self.settings.max_objects.get()).unwrap_or(usize::MAX);
        if self.objects.len() > most {
            self.refusals.add(1, |_| {
                tracing::error!(
                    event = "kubernetes_too_many_objects",
                    objects = self.objects.len(),
                    most,
                    "the last configuration is kept: raise `discovery.kubernetes.maxObjects`, or name `namespaces`"
                );
            });
            return false;
        }
        self.unread.is_empty()
    }

    fn take(&mut self, event: Event) {
        let Event { kind, namespace, change } = event;
        self.unwritten = true;
        let is_other = match change {
            Change::All(objects) => {
                let is_first = self.unread.remove(&(kind, namespace.clone()));
                self.objects.replace(kind, namespace.as_deref(), objects) || is_first
            }
            Change::One(object) => self.objects.insert(kind, *object),
            Change::Gone(key) => self.objects.remove(kind, &key),
            Change::Failed(reason) => {
                self.metrics.process.kubernetes_watch_failures.inc();
                self.failures.add(1, |times| {
                    tracing::warn!(event = "kubernetes_watch_failed", kind = kind.as_str(), reason, times);
                });
                false
            }
        };
        self.is_other |= is_other;
        self.metrics.process.kubernetes_objects.set(i64::try_from(self.objects.len()).unwrap_or(i64::MAX));
    }

    /// Translates the objects and offers the result; false if nobody takes offers any more.
    async fn offer(&mut self) -> bool {
        let (objects, settings) = (self.objects.clone(), self.settings.clone());
        let translated = tokio::task::spawn_blocking(move || translate(&objects, &settings)).await;
        let Ok(translation) = translated else { return true };
        self.is_other = false;
        let (reply, outcome) = oneshot::channel();
        let offer = Offer { further: translation.further.clone(), reply };
        if self.offers.send(offer).await.is_err() {
            return false;
        }
        let Ok(Outcome { refused, errors }) = outcome.await else { return false };
        self.metrics.process.kubernetes_refused.set(i64::try_from(refused.len()).unwrap_or(i64::MAX));
        for part in &refused {
            tracing::warn!(event = "kubernetes_part_refused", part = %part.name, reason = %part.message);
        }
        if errors.is_empty() {
            self.statuses = Some(translation.statuses_without(&refused));
            self.unwritten = true;
        }
        self.synced.send_replace(true);
        true
    }

    /// Writes statuses that are not as they should be; false if one could not be written.
    async fn write(&mut self) -> bool {
        let Some(statuses) = &self.statuses else { return true };
        let now = format!("{:.0}", jiff::Timestamp::now());
        let mut writes = differing(&self.objects, statuses, &self.settings.published_addresses, &now);
        let is_all = writes.len() <= MAX_WRITES;
        writes.truncate(MAX_WRITES);
        let mut sound = true;
        for write in writes {
            match tokio::time::timeout(WRITE_TIMEOUT, self.write_one(&write)).await {
                Ok(Ok(())) => {}
                // The watch brings the object that was written meanwhile.
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => sound = false,
                failed => {
                    sound = false;
                    self.metrics.process.kubernetes_status_failures.inc();
                    let reason = match failed {
                        Ok(Err(e)) => e.to_string(),
                        _ => "no answer in time".to_owned(),
                    };
                    self.failures.add(1, |times| {
                        let (kind, object) = (write.kind.as_str(), &write.key);
                        tracing::warn!(event = "kubernetes_status_failed", kind, %object, reason, times);
                    });
                }
            }
        }
        self.unwritten = !(is_all && sound);
        sound
    }

    async fn write_one(&self, write: &StatusWrite) -> Result<(), kube::Error> {
        let namespace = Some(write.key.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let patch = json!({"metadata": {"resourceVersion": write.version}, "status": write.status});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let api = api(&self.client, write.kind, namespace);
        api.patch_status(&write.key.name, &params, &Patch::Merge(patch)).await.map(|_| ())
    }
}
