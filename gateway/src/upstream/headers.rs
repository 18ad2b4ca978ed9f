//! Headers between the two sides: what ends here (hop-by-hop, identity, forwarding claims of an outsider), what is set
//! by us. RFC 9110 section 7.6 says what a gateway must do; the order is: strip first, then add, then the filters.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use spillway_filter::Headers;

use crate::balancing::orca;
use crate::exchange::Exchange;
use crate::snapshot::{Backend, Route};

/// Fields of one connection, whether or not `Connection` names them (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Those without a constant in `http`.
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Where callers put their credentials.
pub(super) static CREDENTIALS: [HeaderName; 3] =
    [header::AUTHORIZATION, HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];
/// The request id, both ways.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Limit, remaining and reset of requests and of tokens, as OpenAI has them.
static RATE_LIMIT: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];
/// The same as the IETF's draft has them (draft-ietf-httpapi-ratelimit-headers).
static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The name under which this process signs `Via`, so that it knows a request that comes back to it.
pub struct Via {
    value: HeaderValue,
}

impl Via {
    /// A name with a random part: two gateways in a chain are no loop.
    pub fn new() -> Self {
        let text = format!("1.1 spillway-{:08x}", rand::random::<u32>());
        Self { value: HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("1.1 spillway")) }
    }

    /// Whether a request has passed this process before.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::VIA)
            .iter()
            .any(|via| memchr::memmem::find(via.as_bytes(), self.value.as_bytes()).is_some())
    }
}

impl Default for Via {
    fn default() -> Self {
        Self::new()
    }
}

/// A request header as filters change it.
pub struct RequestHeaders<'a>(pub &'a mut RequestHeader);

impl Headers for RequestHeaders<'_> {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.0.headers.get(name)
    }
    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        let _ = self.0.insert_header(name.clone(), value);
    }
    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        let _ = self.0.append_header(name.clone(), value);
    }
    fn remove(&mut self, name: &HeaderName) {
        self.0.remove_header(name);
    }
}

/// A response header as filters change it.
pub struct ResponseHeaders<'a>(pub &'a mut ResponseHeader);

impl Headers for ResponseHeaders<'_> {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.0.headers.get(name)
    }
    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        let _ = self.0.insert_header(name.clone(), value);
    }
    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        let _ = self.0.append_header(name.clone(), value);
    }
    fn remove(&mut self, name: &HeaderName) {
        self.0.remove_header(name);
    }
}

/// Names that `Connection` lists, which end here too.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect()
}

/// Whether an outsider's header claims to be one of ours: `x-spillway-*` in any spelling that some server would read
/// as such.
fn claims_to_be_ours(name: &HeaderName) -> bool {
    let prefix = b"x-spillway-";
    let name = name.as_str().as_bytes();
    name.len() >= prefix.len()
        && name.iter().zip(prefix).all(|(have, want)| have == want || (*want == b'-' && *have == b'_'))
}

/// The header of the request that goes to an endpoint of `backend`. `body` is the length of a body that is held, `None`
/// for one that streams through as the client frames it.
pub fn outgoing_request(
    client: &RequestHeader,
    x: &Exchange,
    route: &Route,
    backend: &Backend,
    via: &Via,
    body: Option<u64>,
) -> Box<RequestHeader> {
    let mut out = client.clone();
    let chunked = client.headers.contains_key(header::TRANSFER_ENCODING);
    if client.headers.contains_key(header::CONNECTION) {
        for name in nominated(&client.headers) {
            out.remove_header(&name);
        }
    }
    for name in HOP_BY_HOP.iter().chain([&KEEP_ALIVE, &PROXY_CONNECTION, &HTTP2_SETTINGS, &header::EXPECT]) {
        out.remove_header(name);
    }
    let is_ours = |name: &&HeaderName| claims_to_be_ours(name) || x.snapshot.owns_header(name);
    let ours: Vec<HeaderName> = client.headers.keys().filter(is_ours).cloned().collect();
    for name in &ours {
        out.remove_header(name);
    }
    out.set_version(http::Version::HTTP_11);

    // Credentials: what identified the caller ends here; those of the backend replace all.
    if let Some(name) = &x.identified_by {
        out.remove_header(name);
    }
    let own = x.caller.as_ref().and_then(|caller| caller.credentials(&backend.name));
    if let Some(credentials) = own.or(backend.credentials.as_ref()) {
        for name in &CREDENTIALS {
            out.remove_header(name);
        }
        let _ = out.insert_header(header::AUTHORIZATION, credentials.clone());
    }
    if let Some(caller) = &x.caller {
        let [consumer, tenant] = &x.snapshot.identity_headers;
        for (name, text) in [(consumer, &caller.name), (tenant, &caller.tenant)] {
            if let (Some(name), Ok(value)) = (name, HeaderValue::from_str(text)) {
                let _ = out.insert_header(name.clone(), value);
            }
        }
    }
    for (name, value) in &x.request_headers {
        let _ = out.append_header(name.clone(), value.clone());
    }

    // Who asked us, for which host, as seen by us: an outsider's own claims are not passed on.
    out.remove_header(&header::FORWARDED);
    let _ = out.insert_header(X_FORWARDED_FOR.clone(), x.client_text.clone());
    let _ =
        out.insert_header(X_FORWARDED_PROTO.clone(), HeaderValue::from_static(if x.secure { "https" } else { "http" }));
    match client.headers.get(header::HOST) {
        Some(host) => {
            let _ = out.insert_header(X_FORWARDED_HOST.clone(), host.clone());
        }
        None => {
            // HTTP/1.0 may leave it out, HTTP/1.1 may not: it is empty where no host is known (RFC 9112, 3.2).
            let _ = out.insert_header(header::HOST, HeaderValue::from_static(""));
            out.remove_header(&X_FORWARDED_HOST);
        }
    }
    let _ = out.append_header(header::VIA, via.value.clone());
    let _ = out.insert_header(X_REQUEST_ID.clone(), x.request_id.clone());

    if backend.load_reports {
        let _ = out.insert_header(orca::FORMAT.clone(), orca::JSON.clone());
    }

    match body {
        Some(0) if !client.headers.contains_key(header::CONTENT_LENGTH) && !chunked => {}
        Some(length) => {
            let _ = out.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        // HTTP/2 frames a body whose length is not told.
        None if chunked || !client.headers.contains_key(header::CONTENT_LENGTH) => {
            let _ = out.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        None => {}
    }

    x.attempt_span().inject(&mut RequestHeaders(&mut out));
    let variables = x.variables(route, &backend.name);
    for filter in route.all_filters() {
        filter.filter.on_upstream_request(&mut RequestHeaders(&mut out), &variables);
        if let Some(target) = out.uri.path_and_query()
            && let Some(target) = filter.filter.upstream_target(target)
        {
            out.set_uri(http::Uri::from(target));
        }
    }
    Box::new(out)
}

/// Gives a request the form of HTTP/2: the authority in the target (RFC 9113, 8.3.1), no framing of HTTP/1.1, and trailers
/// asked for where the caller asked for them, which gRPC insists on.
pub fn to_http2(out: &mut RequestHeader, takes_trailers: bool, https: bool) {
    out.remove_header(&header::TRANSFER_ENCODING);
    if takes_trailers {
        let _ = out.insert_header(header::TE, HeaderValue::from_static("trailers"));
    }
    let Some(host) = out.headers.get(header::HOST).cloned() else { return };
    let target = out.uri.path_and_query().map_or("/", |target| target.as_str());
    let uri = http::Uri::builder()
        .scheme(if https { "https" } else { "http" })
        .authority(host.as_bytes())
        .path_and_query(target)
        .build();
    if let Ok(uri) = uri {
        out.set_uri(uri);
        out.remove_header(&header::HOST);
    }
}

/// The header of the answer that goes to the client, made in place from the one of an endpoint or from a new one.
pub fn outgoing_response(
    mut out: ResponseHeader,
    x: &Exchange,
    client_is_http11: bool,
    has_body: bool,
) -> Box<ResponseHeader> {
    if out.headers.contains_key(header::CONNECTION) {
        for name in nominated(&out.headers) {
            out.remove_header(&name);
        }
    }
    for name in HOP_BY_HOP.iter().chain([&KEEP_ALIVE, &PROXY_CONNECTION]) {
        out.remove_header(name);
    }
    if out.status == http::StatusCode::NO_CONTENT {
        // It has no body and must not claim one (RFC 9110, 8.6).
        out.remove_header(&header::CONTENT_LENGTH);
    }
    out.set_version(http::Version::HTTP_11);
    if has_body && client_is_http11 && !out.headers.contains_key(header::CONTENT_LENGTH) {
        let _ = out.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    finish_response(&mut out, x);
    Box::new(out)
}

/// Where the caller stands with its limits. What an upstream says of its own limits speaks of the gateway's account there
/// and not of the caller's, and gives way to what is said here.
fn show_limits(out: &mut ResponseHeader, x: &Exchange) {
    for (n, shown) in x.ledger.shown().enumerate() {
        if n == 0 {
            out.remove_header(&RATELIMIT);
            out.remove_header(&RATELIMIT_POLICY);
        }
        let [requests, tokens] = &RATE_LIMIT;
        let ([limit, remaining, reset], unit) =
            if shown.is_tokens { (tokens, "tokens") } else { (requests, "requests") };
        let _ = out.insert_header(limit.clone(), HeaderValue::from(shown.limit));
        let _ = out.insert_header(remaining.clone(), HeaderValue::from(shown.remaining));
        if let Ok(value) = HeaderValue::from_str(&crate::protocol::reset_text(shown.reset)) {
            let _ = out.insert_header(reset.clone(), value);
        }
        let seconds = shown.reset.as_millis().div_ceil(1000);
        if let Ok(value) = HeaderValue::from_str(&format!("\"{unit}\";r={};t={seconds}", shown.remaining)) {
            let _ = out.append_header(RATELIMIT.clone(), value);
        }
        if let Some(policy) = &shown.policy {
            let _ = out.append_header(RATELIMIT_POLICY.clone(), policy.clone());
        }
    }
}

/// What every answer carries, whoever made it: the request id, the limits, what the filters add.
pub fn finish_response(out: &mut ResponseHeader, x: &Exchange) {
    let _ = out.insert_header(X_REQUEST_ID.clone(), x.request_id.clone());
    show_limits(out, x);
    if let Some(route) = &x.route {
        let variables = x.variables(route, x.served_by());
        for filter in route.all_filters() {
            filter.filter.on_response(&mut ResponseHeaders(out), &variables);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_names_are_known_in_every_spelling() {
        for (name, ours) in [
            ("x-spillway-consumer", true),
            ("x_spillway_consumer", true),
            ("x-spillway_tenant", true),
            ("x-spillway", false),
            ("x-spillways-x", false),
            ("spillway-x", false),
        ] {
            assert_eq!(claims_to_be_ours(&HeaderName::from_static(name)), ours, "{name}");
        }
    }

    #[test]
    fn connection_cannot_nominate_what_frames_the_message() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close, X-Secret , host, content-length, b@d"));
        assert_eq!(nominated(&headers), ["close", "x-secret"]);
    }

    #[test]
    fn a_request_that_comes_back_is_known() {
        let via = Via::new();
        let mut headers = HeaderMap::new();
        headers.append(header::VIA, HeaderValue::from_static("1.1 other"));
        assert!(!via.is_in(&headers));
        headers.append(header::VIA, via.value.clone());
        assert!(via.is_in(&headers));
    }
}
