//! Access to the admin address. On loopback, a request needs a loopback `Host`, so that no web page gets in by a name that
//! resolves to loopback. Elsewhere, and wherever a token or a login is configured, a request needs the token or a session; only the
//! files of the dashboard, which are the same everywhere, come without.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{AdminState, dashboard};
use crate::identity::KEY_PREFIX;

/// Address that a request came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client(pub(super) IpAddr);

impl Client {
    /// Address that a request came from.
    pub(super) fn of(request: &Request) -> IpAddr {
        request.extensions().get::<Self>().map_or(IpAddr::from([0, 0, 0, 0]), |client| client.0)
    }
}

/// Proof by which a request was let in.
#[derive(Debug, Clone)]
pub(super) enum Proof {
    /// The token.
    Token,
    /// The loopback address.
    Loopback,
    /// The session of a person who has logged in.
    Person(Arc<str>),
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token => f.write_str("token"),
            Self::Loopback => f.write_str("loopback"),
            Self::Person(name) => write!(f, "person {name}"),
        }
    }
}

/// Operator of a request that was let in: the proof, and the address.
pub(super) fn who(request: &Request) -> String {
    let client = Client::of(request).to_canonical();
    match request.extensions().get::<Proof>() {
        Some(proof) => format!("{proof} {client}"),
        None => format!("unknown {client}"),
    }
}

/// Pages of keys.
const KEYS_PAGE: &str = "/api/keys";

/// Page with texts of callers.
const TEXTS: &str = "/api/quality/examples";

/// Records every requested change, every look at texts of callers and every refused request in the audit log.
pub(super) async fn audit(State(state): State<Arc<dyn AdminState>>, request: Request, next: Next) -> Response {
    let client = Client::of(&request);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answer = next.run(request).await;
    let status = answer.status();
    let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST);
    if refused || !method.is_safe() || path == TEXTS {
        let who = match answer.extensions().get::<Proof>() {
            Some(proof) if !refused || matches!(proof, Proof::Person(_)) => proof.to_string(),
            _ => "unknown".to_owned(),
        };
        // Somebody may name a key by the key itself, which no log may have.
        let path = if path.contains(KEY_PREFIX) { KEYS_PAGE } else { &path };
        state.audit(client, &who, method.as_str(), path, status.as_u16());
    }
    answer
}

/// Refuses requests without access.
pub(super) async fn check(State(state): State<Arc<dyn AdminState>>, request: Request, next: Next) -> Response {
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| token.trim_ascii());
    let (token, login) = (state.token_matches(bearer), state.login());
    if token == Some(true) {
        return pass(Proof::Token, request, next).await;
    }
    if let Some(login) = login
        && let Some(person) = login.person(request.headers())
    {
        if !request.method().is_safe() && !login.is_own_origin(request.headers()) {
            let mut refused = foreign();
            refused.extensions_mut().insert(Proof::Person(person));
            return refused;
        }
        return pass(Proof::Person(person), request, next).await;
    }
    let needed = match (token, login) {
        (Some(_), None) => "missing or wrong token: send `Authorization: Bearer` with admin.token",
        (Some(_), Some(_)) => "log in at /auth/login, or send `Authorization: Bearer` with admin.token",
        (None, Some(_)) => "log in at /auth/login",
        (None, None) if !state.is_loopback() => "admin.token is not configured: configure it, or listen on loopback",
        (None, None) => "",
    };
    if !needed.is_empty() {
        let has_page = token.is_some() || login.is_some();
        if has_page && dashboard::is_asked(request.method(), request.uri().path(), request.headers()) {
            return next.run(request).await;
        }
        let mut answer = problem(StatusCode::UNAUTHORIZED, needed);
        if token.is_some() {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        return answer;
    }
    let mut given = request.headers().get_all(header::HOST).iter();
    let host = match (given.next().and_then(|host| host.to_str().ok()), given.next()) {
        (Some(host), None) => host,
        _ => "",
    };
    if is_loopback_host(host) || state.hosts().iter().any(|allowed| is_allowed(host, allowed)) {
        pass(Proof::Loopback, request, next).await
    } else {
        problem(StatusCode::MISDIRECTED_REQUEST, "the Host of this request is neither loopback nor one of admin.hosts")
    }
}

/// Lets a request in by a proof, which handlers and the audit log are told.
async fn pass(proof: Proof, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(proof.clone());
    let mut answer = next.run(request).await;
    answer.extensions_mut().insert(proof);
    answer
}

/// Refusal of a change that a session makes from elsewhere.
pub(super) fn foreign() -> Response {
    problem(
        StatusCode::FORBIDDEN,
        "a change by a session needs the `Origin` of admin.oidc.publicUrl: open the dashboard there",
    )
}

/// Refuses a change without the header that web pages cannot send: a page can send a form to loopback, but no such header.
pub(super) fn refuse_change(headers: &HeaderMap) -> Option<Response> {
    let sent = headers.get("x-spillway-admin").is_some_and(|value| value.as_bytes() == b"1");
    (!sent).then(|| problem(StatusCode::FORBIDDEN, "a change needs the header `x-spillway-admin: 1`"))
}

/// Name or address of a host, without port and brackets.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) if after.is_empty() || after.strip_prefix(':').is_some_and(is_port) => address,
            _ => "",
        },
        None => match host.rsplit_once(':') {
            Some((name, port)) if is_port(port) => name,
            Some(_) => "",
            None => host,
        },
    }
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_loopback_host(host: &str) -> bool {
    let name = name_of(host);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// True if an entry of `admin.hosts` matches; an entry without a port matches any port.
fn is_allowed(host: &str, allowed: &str) -> bool {
    !host.is_empty() && (host.eq_ignore_ascii_case(allowed) || name_of(host).eq_ignore_ascii_case(allowed))
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
    #[test]
    fn an_allowed_host_stands_for_any_port_unless_it_names_one() {
        for (host, allowed, is) in [
            ("ops.example", "ops.example", true),
            ("OPS.example:9901", "ops.example", true),
            ("ops.example:9901", "ops.example:9901", true),
            ("ops.example:80", "ops.example:9901", false),
            ("ops.example.evil", "ops.example", false),
            ("", "", false),
        ] {
            assert_eq!(is_allowed(host, allowed), is, "{host} {allowed}");
        }
    }
}
