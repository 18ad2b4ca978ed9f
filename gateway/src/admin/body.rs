//! Bodies of requested changes, which are small JSON, and the answer of a gateway that is starting.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::DeserializeOwned;

use super::HEADER_TIMEOUT;
use super::access::problem;

/// Longest body of a change, in bytes: a reason or the limits of a key, and some spaces.
const MAX_BODY: usize = 4 << 10;

/// Body of a request as JSON; `None` where it is empty. `expected` tells its form.
pub(super) async fn body<T: DeserializeOwned>(request: Request, expected: &str) -> Result<Option<T>, Box<Response>> {
    let refuse = |status, detail: &str| Err(Box::new(problem(status, detail)));
    let reading = axum::body::to_bytes(request.into_body(), MAX_BODY);
    let body = match tokio::time::timeout(HEADER_TIMEOUT, reading).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 4096 bytes, or broke off"),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come within 5 s"),
    };
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(&body) {
        Ok(read) => Ok(Some(read)),
        Err(e) => refuse(StatusCode::BAD_REQUEST, &format!("the body is not as expected ({e}); expected {expected}")),
    }
}

/// Answer before the gateway is ready.
pub(super) fn starting() -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, "the gateway is starting; /readyz says when it serves")
}
