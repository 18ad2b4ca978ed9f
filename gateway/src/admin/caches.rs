//! Answers that the caches of a route keep: counted, and forgotten for an operator.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use spillway_filter::{KeptAnswers, NotPurged, Purging};

use super::AdminState;
use super::access::{problem, refuse_change};
use crate::topology::Route;

/// Reason why there is nothing to forget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCache {
    /// No route has the name.
    #[error("there is no such route; /api/config shows them")]
    Unknown,
    /// No filter of the route keeps answers.
    #[error("the route has no filter `cache`")]
    Without,
    /// A store did not confirm that the answers are forgotten or counted.
    #[error(transparent)]
    Unconfirmed(#[from] NotPurged),
}

/// How answers are forgotten. A misspelled `dryRun` must not forget them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PurgeQuery {
    #[serde(default)]
    dry_run: bool,
}

/// Forgets the answers of a route, or only counts them.
pub(super) async fn of_route(route: Option<&Arc<Route>>, dry_run: bool) -> Result<KeptAnswers, NoCache> {
    let route = route.ok_or(NoCache::Unknown)?;
    // All begin, whatever becomes of the first.
    let purging: Vec<Purging> = route.all_filters().filter_map(|named| named.filter.purge(dry_run)).collect();
    if purging.is_empty() {
        return Err(NoCache::Without);
    }
    let mut sum = KeptAnswers::default();
    for kept in futures::future::join_all(purging).await {
        let kept = kept?;
        sum.answers += kept.answers;
        sum.bytes += kept.bytes;
    }
    Ok(sum)
}

pub(super) async fn purge(
    State(state): State<Arc<dyn AdminState>>,
    headers: HeaderMap,
    Path(route): Path<String>,
    query: Result<Query<PurgeQuery>, QueryRejection>,
) -> Response {
    if let Some(refused) = refuse_change(&headers) {
        return refused;
    }
    let Ok(Query(PurgeQuery { dry_run })) = query else {
        return problem(StatusCode::BAD_REQUEST, "expected no query, or `dryRun=true` or `dryRun=false`");
    };
    match state.purge_cache(&route, dry_run).await {
        Ok(kept) => {
            let KeptAnswers { answers, bytes } = kept;
            if !dry_run {
                tracing::info!(event = "admin_change", action = "purge", %route, answers);
            }
            let shown = serde_json::json!({"route": route, "dryRun": dry_run, "answers": answers, "bytes": bytes});
            axum::Json(shown).into_response()
        }
        Err(error @ NoCache::Unconfirmed(_)) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        Err(error) => problem(StatusCode::NOT_FOUND, &error.to_string()),
    }
}
