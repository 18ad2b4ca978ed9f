//! Who may look: on loopback whoever sends a loopback `Host` (so that no web page can, by a name that points here);
//! elsewhere, and wherever one is configured, the bearer of the token.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AdminState;

pub(super) async fn check(State(state): State<Arc<dyn AdminState>>, request: Request, next: Next) -> Response {
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| token.trim_ascii());
    match state.token_matches(bearer) {
        Some(true) => return next.run(request).await,
        Some(false) => {
            let mut answer = problem(StatusCode::UNAUTHORIZED, "this needs `Authorization: Bearer` with admin.token");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            return answer;
        }
        None if !state.is_loopback() => {
            return problem(StatusCode::UNAUTHORIZED, "admin.token is not configured: nothing is shown off loopback");
        }
        None => {}
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_loopback_host(host) || state.hosts().iter().any(|allowed| allowed.eq_ignore_ascii_case(host)) {
        next.run(request).await
    } else {
        problem(StatusCode::MISDIRECTED_REQUEST, "the Host of this request is neither loopback nor one of admin.hosts")
    }
}

fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback() {
        for (host, loopback) in [
            ("localhost", true),
            ("LOCALHOST:9901", true),
            ("127.0.0.1:9901", true),
            ("127.8.8.8", true),
            ("[::1]:9901", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example:9901", false),
            ("localhost.evil.example", false),
            ("", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback_host(host), loopback, "{host}");
        }
    }
}
