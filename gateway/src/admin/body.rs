//! Bodies of requested changes, which are small JSON, and the answer of a gateway that is starting.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::HEADER_TIMEOUT;
use super::access::problem;

/// Longest body of a change, in bytes: a reason or the limits of a key, and some spaces.
const MAX_BODY: usize = 4 << 10;

/// Reads the body of a request, of at most `most` bytes.
pub(super) async fn bytes(request: Request, most: usize) -> Result<Bytes, Box<Response>> {
    let refuse = |status, detail: &str| Err(Box::new(problem(status, detail)));
    match tokio::time::timeout(HEADER_TIMEOUT, axum::body::to_bytes(request.into_body(), most)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => {
            refuse(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body is longer than {most} bytes, or broke off"))
        }
        Err(_) => refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come within 5 s"),
    }
}

/// Body of a request as JSON; `None` where it is empty. `expected` tells its form.
pub(super) async fn body<T: DeserializeOwned>(request: Request, expected: &str) -> Result<Option<T>, Box<Response>> {
    let body = bytes(request, MAX_BODY).await?;
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(&body) {
        Ok(read) => Ok(Some(read)),
        Err(e) => {
            let detail = format!("the body is not as expected ({e}); expected {expected}");
            Err(Box::new(problem(StatusCode::BAD_REQUEST, &detail)))
        }
    }
}

/// Answer before the gateway is ready.
pub(super) fn starting() -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, "the gateway is starting; /readyz says when it serves")
}
