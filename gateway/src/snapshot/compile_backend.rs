//! Compiles backends: TLS files, addresses, endpoints and limits of each backend of a configuration.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use spillway_config::ModelPattern;
use spillway_config::schema::{self, BackendProtocol, Config, OpenAiApi};
use spillway_filter::SharedStates;
use tokio::task::JoinError;

use super::Snapshot;
use crate::balancing::{
    AddressError, Addresses, BackgroundTasks, Balancer, Blueprint, ConnectOptions, Detector, Endpoints, Resolve,
    ResolvedAddresses, addresses_by_host, report_unresolved,
};
use crate::credentials::{CredentialsError, credential};
use crate::protocol::translate::ServerWords;
use crate::protocol::{ANTHROPIC, Dialect, ForeignOperations, OIP, OIP_GRPC, OLLAMA, OPENAI};
use crate::queueing::{RetryBudget, Room};
use crate::telemetry::{CertificateSample, Metrics};
use crate::tls::{TlsError, UpstreamTls};
use crate::topology::Backend;

/// Longest silence of a server where the file has no limit: as nginx has it. A model may think longer before and in its
/// answer, but takes its request at once.
const SILENCE: Duration = Duration::from_secs(60);

/// Backend that passed validation and still cannot run.
#[derive(Debug, thiserror::Error)]
pub(super) enum BackendError {
    /// The certificates or authorities cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The thread that reads files panicked.
    #[error(transparent)]
    Stopped(#[from] JoinError),
}

/// Backends of one configuration, with what runs and is reported beside them.
#[derive(Default)]
pub(super) struct CompiledBackends<'c> {
    pub(super) by_name: HashMap<&'c str, Arc<Backend>>,
    pub(super) background_tasks: Vec<BackgroundTasks>,
    /// Certificates that the gateway presents to backends.
    pub(super) certificates: Vec<CertificateSample>,
}

/// State that the backends of one configuration are compiled with.
#[derive(Clone, Copy)]
pub(super) struct BackendCompiler<'a> {
    pub(super) states: &'a SharedStates,
    pub(super) endpoints: &'a Arc<Endpoints>,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) resolver: &'a Arc<dyn Resolve>,
    pub(super) previous: Option<&'a Snapshot>,
}

impl BackendCompiler<'_> {
    /// Compiles every backend, once all names are resolved or cannot be; adds the errors of those that fail to `errors`.
    pub(super) async fn backends<'c>(self, config: &'c Config, errors: &mut Vec<String>) -> CompiledBackends<'c> {
        let mut compiled = CompiledBackends::default();
        let hosts =
            config.backends.iter().flat_map(|b| &b.endpoints).map(|endpoint| endpoint.url.host.clone()).collect();
        let resolved = addresses_by_host(self.resolver, hosts).await;
        let personal: HashSet<&str> =
            config.consumers.iter().flat_map(|consumer| consumer.credentials.keys().map(String::as_str)).collect();
        for written in &config.backends {
            let is_personal = personal.contains(written.name.as_str());
            match self.backend(written, is_personal, &resolved, &mut compiled).await {
                Ok(backend) => {
                    compiled.by_name.insert(written.name.as_str(), Arc::new(backend));
                }
                Err(e) => errors.push(format!("backend `{}`: {e}", written.name)),
            }
        }
        compiled
    }

    async fn backend(
        self,
        written: &schema::Backend,
        is_personal: bool,
        resolved: &ResolvedHosts,
        compiled: &mut CompiledBackends<'_>,
    ) -> Result<Backend, BackendError> {
        let tls = read_tls(written).await?;
        let place = format!("backend {}", written.name);
        compiled.certificates.extend(tls.sample.clone().map(|sample| CertificateSample { place, ..sample }));
        let credentials = written.credentials.as_ref().map(credential).transpose()?;
        let dialect = dialect_of(written.protocol);
        let full: Vec<u16> = match &written.capacity.statuses {
            Some(statuses) => statuses.iter().map(|status| status.0).collect(),
            None => dialect.map_or_else(Vec::new, |dialect| dialect.full_statuses().to_vec()),
        };
        let silence = dialect.is_none().then_some(SILENCE);
        let foreign = foreign_to(written, dialect);
        let connect = ConnectOptions {
            timeout: written.timeouts.connect.0,
            tls,
            http2: written.http2,
            max_header_bytes: written.limits.max_header_bytes.0,
        };
        let (endpoints, metrics) = (self.endpoints.clone(), self.metrics.clone());
        let room = self.states.get_or_insert(&written.name, Room::default);
        let blueprint = Blueprint::new(written, &full, credentials.clone(), connect, room.clone(), endpoints, metrics);
        let blueprint = Arc::new(blueprint.personal(is_personal).listing(written, dialect));
        let addresses = addresses_of(written, self.previous, resolved);
        // At start all endpoints count as available; one that a reload adds gets traffic after its first check.
        let (set, watches) = blueprint.build(&addresses, self.previous.is_some());
        let set = Arc::new(ArcSwap::from_pointee(set));
        let resolver = self.resolver.clone();
        compiled.background_tasks.push(BackgroundTasks { blueprint, set: set.clone(), addresses, watches, resolver });
        Ok(Backend {
            name: written.name.as_str().into(),
            dialect,
            balancer: Balancer::new(set, Detector::new(&written.outlier_detection))
                .limited(written.circuit_breaker.max_in_flight),
            max_retries: written.circuit_breaker.max_retries.unwrap_or(u32::MAX),
            max_pending: written.circuit_breaker.max_pending.map_or(u32::MAX, NonZeroU32::get),
            hash_on: written.load_balancing.hash_on.clone(),
            policy: written.load_balancing.policy,
            http2: written.http2,
            load_reports: written.capacity.load_reports,
            retries: self.states.get_or_insert(&written.name, RetryBudget::default),
            room,
            model: written.model.as_deref().map(Into::into),
            serves: written.models.as_ref().map(|models| models.iter().map(|name| ModelPattern::new(name)).collect()),
            lists_models: written.model_list.is_some(),
            upstream_model: written.model.as_ref().map(|model| serde_json::Value::from(model.as_str()).to_string()),
            credentials,
            default_headers: dialect.map_or_else(Vec::new, |dialect| dialect.default_headers()),
            foreign,
            has_responses: has_api(written, OpenAiApi::Responses, true),
            has_tokenize: has_api(written, OpenAiApi::Tokenize, false),
            drop_fields: written.drop_fields.clone(),
            rewrites: foreign != ForeignOperations::NONE || !written.drop_fields.is_empty(),
            words: words_of(written),
            stream_usage: asks_for_usage(written),
            passes_credentials: written.caller_credentials == Some(schema::CallerCredentials::Pass),
            full_statuses: full,
            max_full_for: written.capacity.max_full_for.0,
            first_byte_timeout: written.timeouts.first_byte.map(|t| t.0).or(silence),
            idle_timeout: written.timeouts.idle.map(|t| t.0).or(silence),
            send_timeout: written.timeouts.idle.map_or(SILENCE, |t| t.0),
            max_header_bytes: written.limits.max_header_bytes.0,
            max_translated_bytes: usize::try_from(written.limits.max_translated_bytes.0).unwrap_or(usize::MAX),
            metrics: dialect.map(|dialect| self.metrics.model(dialect.name(), &written.name)),
        })
    }
}

/// True if the servers of a backend are asked for the usage of their streams: not with a field that they do not get.
fn asks_for_usage(written: &schema::Backend) -> bool {
    let is_asking = |name: &String| matches!(name.as_str(), "stream_options" | "stream_options.include_usage");
    written.stream_usage.unwrap_or(true) && !written.drop_fields.iter().any(is_asking)
}

/// True if the servers of a backend have an API of OpenAI's; `otherwise` where the file does not say.
fn has_api(written: &schema::Backend, api: OpenAiApi, otherwise: bool) -> bool {
    written.apis.as_ref().map_or(otherwise, |apis| apis.contains(&api))
}

/// Operations whose requests are translated for the servers of a backend.
fn foreign_to(written: &schema::Backend, dialect: Option<&'static dyn Dialect>) -> ForeignOperations {
    let mut foreign = dialect.map_or(ForeignOperations::NONE, ForeignOperations::to);
    if !has_api(written, OpenAiApi::Responses, true) {
        foreign = foreign.and_responses();
    }
    if !has_api(written, OpenAiApi::Completions, true) {
        foreign = foreign.and_completions();
    }
    foreign
}

/// Hosts of OpenAI's API, or the ends of their names.
const OPENAI_HOSTS: [&str; 6] = [
    "api.openai.com",
    ".api.openai.com",
    ".openai.azure.com",
    ".openai.azure.us",
    ".services.ai.azure.com",
    ".cognitiveservices.azure.com",
];

/// Words in which the servers of a backend read translated requests.
fn words_of(written: &schema::Backend) -> ServerWords {
    let is_openais = |host: &str| {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        OPENAI_HOSTS.iter().any(|known| if known.starts_with('.') { host.ends_with(known) } else { host == *known })
    };
    let are_openais = || written.endpoints.iter().all(|endpoint| is_openais(&endpoint.url.host));
    ServerWords {
        has_newer_max_tokens: match written.max_tokens_field {
            Some(field) => field == schema::MaxTokensField::MaxCompletionTokens,
            None => are_openais(),
        },
        no_reasoning: written.no_reasoning.map(schema::NoReasoning::as_str),
    }
}

/// Addresses of all hosts of a configuration, or the reasons why there are none.
type ResolvedHosts = HashMap<String, Result<ResolvedAddresses, AddressError>>;

/// Addresses of a backend's endpoints. A name that cannot be resolved keeps the addresses of the previous snapshot; without
/// those it has none, and is resolved again in the background.
fn addresses_of(written: &schema::Backend, previous: Option<&Snapshot>, resolved: &ResolvedHosts) -> Addresses {
    let had = previous.and_then(|p| p.backends.iter().find(|b| *b.name == *written.name));
    let addresses = |endpoint: &schema::Endpoint| match resolved.get(&endpoint.url.host) {
        Some(Ok(resolved)) => resolved.addresses.clone(),
        Some(Err(reason)) => {
            let set = had.map(|backend| backend.balancer.endpoints());
            let known = set.iter().flat_map(|set| set.all()).filter(|known| known.url == endpoint.url);
            let known: Vec<_> = known.map(|known| known.socket.ip()).collect();
            report_unresolved(&written.name, &endpoint.url, !known.is_empty(), reason);
            known
        }
        None => Vec::new(),
    };
    written.endpoints.iter().map(addresses).collect()
}

/// Reads the TLS files of a backend, off the runtime's threads.
async fn read_tls(written: &schema::Backend) -> Result<Arc<UpstreamTls>, BackendError> {
    let https = written.endpoints.iter().any(|endpoint| endpoint.url.https);
    let (tls, http2) = (written.tls.clone(), written.http2);
    let read = tokio::task::spawn_blocking(move || UpstreamTls::read(&tls, http2, https)).await?;
    Ok(Arc::new(read?))
}

/// Dialect that the servers of a backend speak.
fn dialect_of(protocol: BackendProtocol) -> Option<&'static dyn Dialect> {
    match protocol {
        BackendProtocol::Openai => Some(OPENAI),
        BackendProtocol::Anthropic => Some(ANTHROPIC),
        BackendProtocol::Ollama => Some(OLLAMA),
        BackendProtocol::Oip => Some(OIP),
        BackendProtocol::OipGrpc => Some(OIP_GRPC),
        BackendProtocol::Http => None,
    }
}
