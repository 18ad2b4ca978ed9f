//! Paths of Azure OpenAI as those of OpenAI. Azure names the deployment, its word for a model, in the path and a version of
//! the API in the query (Azure OpenAI REST API, "API specs"); its newer paths begin with `/openai/v1` and need neither.

use http::uri::PathAndQuery;

/// Parameter of the query with the version of Azure's API.
const VERSION: &str = "api-version";

/// Path and query of OpenAI for those of Azure; `None` for any other path.
pub(crate) fn openai_target(target: &PathAndQuery) -> Option<PathAndQuery> {
    let below = target.path().strip_prefix("/openai/")?;
    let operation = match below.strip_prefix("deployments/") {
        Some(deployed) => deployed.split_once('/')?.1,
        None => below.strip_prefix("v1/").unwrap_or(below),
    };
    if operation.is_empty() {
        return None;
    }
    let is_version = |pair: &&str| pair.split('=').next() == Some(VERSION);
    let query: Vec<&str> = target.query().into_iter().flat_map(|query| query.split('&')).collect();
    let query: Vec<&str> = query.into_iter().filter(|pair| !is_version(pair)).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    PathAndQuery::try_from(format!("/v1/{operation}{mark}{}", query.join("&"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deployments_and_versions_leave_the_path() {
        for (from, to) in [
            ("/openai/deployments/gpt-5/chat/completions?api-version=2025-04-01-preview", Some("/v1/chat/completions")),
            ("/openai/deployments/a%20b/embeddings?x=1&api-version=1&y=2", Some("/v1/embeddings?x=1&y=2")),
            ("/openai/v1/responses", Some("/v1/responses")),
            ("/openai/v1/responses/resp_1?api-version=preview", Some("/v1/responses/resp_1")),
            ("/openai/models?api-version=2024-10-21", Some("/v1/models")),
            ("/openai/deployments/gpt-5", None),
            ("/openai/deployments/gpt-5/", None),
            ("/openai/", None),
            ("/openai", None),
            ("/v1/chat/completions?api-version=1", None),
            ("/x/openai/v1/models", None),
        ] {
            let target = openai_target(&from.parse().unwrap());
            assert_eq!(target.as_ref().map(PathAndQuery::as_str), to, "{from}");
        }
    }
}
