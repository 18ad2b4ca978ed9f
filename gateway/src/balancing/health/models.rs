//! Questions to servers which models they have, for the lists that callers read. The list is foreign: its pages, names and their
//! number are bounded, and names that cannot be shown are left out. The last list that was read stays while a server does not
//! answer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use spillway_config::schema;

use super::Server;
use super::error::ProbeError;
use crate::balancing::EndpointState;
use crate::connect::EndpointKey;
use crate::protocol::{Dialect, ListPage};
use crate::telemetry::LogThrottle;

/// Most bytes of a page. That of OpenRouter, with 400 models and their prices, has about 1 MiB.
const MAX_PAGE: usize = 4 << 20;

/// Most pages of one list: those of Anthropic's API have up to 1000 models.
const MAX_PAGES: usize = 16;

/// Longest name that is kept, bytes.
const MAX_NAME: usize = 256;

/// Longest time to the next question while a server has not answered one well: it may be starting.
const RETRY: Duration = Duration::from_secs(30);

/// Models of a server, with the times of their creation in Unix seconds, 0 where that is unknown.
pub type ServedModels = Box<[(Box<str>, u64)]>;

/// Plan of the questions to an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ListPlan {
    /// API of the list.
    dialect: &'static dyn Dialect,
    path: String,
    every: Duration,
    timeout: Duration,
    most: usize,
}

impl ListPlan {
    /// Plan for servers that speak `dialect`.
    pub(crate) fn new(written: &schema::ModelList, dialect: &'static dyn Dialect) -> Self {
        Self {
            dialect,
            path: written.path.clone().unwrap_or_else(|| dialect.list_path().to_owned()),
            every: written.every.0,
            timeout: written.timeout.0,
            most: usize::try_from(written.max_models.get()).unwrap_or(usize::MAX),
        }
    }

    /// True if the lists of both are of one API.
    pub(in crate::balancing) fn reads_like(&self, other: &Self) -> bool {
        self.dialect == other.dialect && self.path == other.path
    }

    /// The server of an endpoint as it is asked for its models.
    pub(in crate::balancing) fn server_of(&self, server: Server) -> Server {
        let headers: Vec<(HeaderName, HeaderValue)> = self.dialect.default_headers();
        Server { headers, ..server }
    }

    async fn ask(&self, server: &Server) -> Result<ServedModels, ProbeError> {
        tokio::time::timeout(self.timeout, self.pages(server)).await.unwrap_or(Err(ProbeError::TimedOut(self.timeout)))
    }

    /// Reads all pages of the list, as far as they may be kept.
    async fn pages(&self, server: &Server) -> Result<ServedModels, ProbeError> {
        let mut all: Vec<(Box<str>, u64)> = Vec::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let target = format!("{}{}", self.path, self.dialect.list_query(after.as_deref()));
            let (status, body) = server.send(&target, None, MAX_PAGE).await?;
            if !status.is_success() {
                return Err(ProbeError::Status(status.as_u16()));
            }
            let ListPage { models, next } = self.dialect.read_list(&body?).ok_or(ProbeError::NoModelList)?;
            for (name, created) in models {
                let name = self.dialect.bare_model(&name);
                let is_name = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(char::is_control);
                if is_name && all.len() < self.most {
                    all.push((name.into(), created));
                }
            }
            // A page that ends where the one before did would come for ever.
            if next.is_none() || next == after || all.len() >= self.most {
                break;
            }
            after = next;
        }
        Ok(all.into())
    }
}

/// Asks an endpoint for its models until it is gone.
pub(in crate::balancing) async fn list(key: EndpointKey, plan: ListPlan, server: Server, state: Weak<EndpointState>) {
    let (failures, mut well) = (LogThrottle::default(), true);
    // The first question comes at once; the jitter spreads those of many endpoints.
    let mut wait = plan.every.min(Duration::from_secs(1)).mul_f64(rand::random_range(0.0..0.2));
    loop {
        tokio::time::sleep(wait).await;
        let read = plan.ask(&server).await;
        let Some(state) = state.upgrade() else { return };
        let every = if read.is_ok() { plan.every } else { plan.every.min(RETRY) };
        wait = every.mul_f64(rand::random_range(0.9..1.1));
        match read {
            Ok(models) => {
                if !well {
                    tracing::info!(event = "model_list_read", backend = %key.backend, endpoint = %key.url, models = models.len());
                }
                well = true;
                state.set_models(Some(Arc::new(models)));
            }
            Err(reason) => {
                well = false;
                state.metrics.model_list_failures.inc();
                failures.add(1, |times| {
                    tracing::warn!(event = "model_list_not_read", backend = %key.backend, endpoint = %key.url, %reason, times);
                });
            }
        }
    }
}
