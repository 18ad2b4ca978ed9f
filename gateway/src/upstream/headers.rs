//! Headers between the two sides: what ends here (hop-by-hop, identity, forwarding claims of an outsider), what is set
//! by us. RFC 9110 section 7.6 says what a gateway must do; the order is: strip first, then add, then the filters.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use smallvec::SmallVec;
use spillway_filter::Headers;

use super::attempt::Attempt;
use super::masking::Shown;
use crate::balancing::orca;
use crate::exchange::Exchange;
use crate::identity::credential_in;
use crate::snapshot::{CallerHeaders, claims_to_be_ours, same_name};

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
/// Shortest credential that is looked for in other headers of its request, bytes. A shorter one is no secret, and would
/// be found in honest headers.
const LEAST_SECRET: usize = 16;
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
pub struct RequestHeaders<'a> {
    head: &'a mut RequestHeader,
    /// Names may be in it that some servers cannot tell from others.
    odd: bool,
}

impl RequestHeaders<'_> {
    /// Removes what some servers would take for `name`. A header that a filter sets or removes is the filter's.
    fn remove_spellings(&mut self, name: &HeaderName) {
        if self.odd {
            remove_where(self.head, |other, _| other != name && same_name(other, name));
        }
    }
}

impl Headers for RequestHeaders<'_> {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.head.headers.get(name)
    }
    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        self.remove_spellings(name);
        let _ = self.head.insert_header(name.clone(), value);
    }
    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        let _ = self.head.append_header(name.clone(), value);
    }
    fn remove(&mut self, name: &HeaderName) {
        self.remove_spellings(name);
        self.head.remove_header(name);
    }
}

/// The same for the filters of a route: what they put into headers for credentials is remembered.
struct Recorded<'a> {
    headers: RequestHeaders<'a>,
    shown: &'a mut Shown,
    names: &'a CallerHeaders,
}

impl Recorded<'_> {
    fn record(&mut self, name: &HeaderName, value: &HeaderValue) {
        if self.names.may_hold_credential(name) {
            self.shown.add(name, value);
        }
    }
}

impl Headers for Recorded<'_> {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.headers.get(name)
    }
    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        self.record(name, &value);
        self.headers.set(name, value);
    }
    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        self.record(name, &value);
        self.headers.append(name, value);
    }
    fn remove(&mut self, name: &HeaderName) {
        self.headers.remove(name);
    }
}

/// Removes every header for which `ends` is true of its name and one of its values.
fn remove_where(head: &mut RequestHeader, ends: impl Fn(&HeaderName, &HeaderValue) -> bool) {
    let mut names: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for (name, value) in &head.headers {
        if ends(name, value) && !names.contains(name) {
            names.push(name.clone());
        }
    }
    for name in &names {
        head.remove_header(name);
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

/// Names of a server that are the gateway's own: only the gateway says such things to callers.
fn claimed(headers: &HeaderMap) -> SmallVec<[HeaderName; 4]> {
    headers.keys().filter(|name| claims_to_be_ours(name)).cloned().collect()
}

/// Early hints without what speaks of the server's connection, or in the gateway's name (RFC 8297; RFC 9110, 7.6.1).
pub(super) fn early_hints(head: &ResponseHeader) -> ResponseHeader {
    let mut hints = head.clone();
    remove_hop_by_hop(&mut hints);
    hints.remove_header(&header::CONTENT_LENGTH);
    hints
}

/// Trailers without what frames a message, or speaks of a connection or in the gateway's name (RFC 9110, 6.5.1).
pub(super) fn outgoing_trailers(mut trailers: HeaderMap) -> HeaderMap {
    for name in HOP_BY_HOP.iter().chain([&KEEP_ALIVE, &PROXY_CONNECTION, &header::CONTENT_LENGTH, &header::HOST]) {
        trailers.remove(name);
    }
    for name in &claimed(&trailers) {
        trailers.remove(name);
    }
    trailers
}

/// Removes from a server's head what ends at the gateway: fields of its connection, and names of the gateway's own.
pub(super) fn remove_hop_by_hop(head: &mut ResponseHeader) {
    if head.headers.contains_key(header::CONNECTION) {
        for name in nominated(&head.headers) {
            head.remove_header(&name);
        }
    }
    for name in HOP_BY_HOP.iter().chain([&KEEP_ALIVE, &PROXY_CONNECTION]) {
        head.remove_header(name);
    }
    for name in &claimed(&head.headers) {
        head.remove_header(name);
    }
}

/// Removes the credentials of the caller: all, or those that are credentials of this gateway.
fn remove_credentials(out: &mut RequestHeader, client: &RequestHeader, x: &Exchange, passes: bool) {
    let names = x.snapshot.caller_headers.credentials();
    if passes {
        if let Some(name) = &x.identified_by {
            out.remove_header(name);
        }
        // A short value in a header for something else is most likely no credential.
        let may_hold = |name: &HeaderName, value: &HeaderValue| value.len() >= LEAST_SECRET || names.contains(name);
        remove_where(out, |name, value| {
            may_hold(name, value) && x.snapshot.identity.holds_credential(value.as_bytes())
        });
    } else {
        for name in names {
            out.remove_header(name);
        }
    }
    // The credential that identified the caller, in whatever other header it stands as well.
    let shown = x.identified_by.as_ref().and_then(|name| Some(credential_in(name, client.headers.get(name)?)));
    if let Some(shown) = shown.filter(|shown| shown.len() >= LEAST_SECRET) {
        let holds =
            |value: &HeaderValue| value.len() >= shown.len() && memchr::memmem::find(value.as_bytes(), shown).is_some();
        remove_where(out, |name, value| *name != header::HOST && holds(value));
    }
}

/// Whom a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipient {
    /// A backend of its route.
    Own,
    /// A backend that answers in place of the route's own, or only watches: it gets nothing that is for those.
    Other,
}

/// Header of a request for an endpoint.
pub struct Outbound {
    /// The header.
    pub head: Box<RequestHeader>,
    /// True if the head carries credentials of the caller's own account at the server.
    pub callers_account: bool,
    /// Credentials that the gateway put into it: no answer may tell them to the caller.
    pub shown: Shown,
}

/// Makes the header of the request that goes to an endpoint of `backend`. `body` is the length of a body that is held,
/// `None` for one that streams through as the client frames it.
pub fn outgoing_request(
    a: &Attempt<'_>,
    client: &RequestHeader,
    x: &Exchange,
    recipient: Recipient,
    body: Option<u64>,
) -> Outbound {
    let (route, backend, via) = (a.route, a.backend, a.via);
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
    out.set_version(http::Version::HTTP_11);

    for name in x.snapshot.caller_headers.owned_late() {
        out.remove_header(name);
    }
    let is_own = recipient == Recipient::Own;
    remove_credentials(&mut out, client, x, is_own && backend.passes_credentials);
    let mut shown = Shown::on_route(route.environment.as_ref());
    let names = &x.snapshot.caller_headers;
    for (name, value) in &x.request_headers {
        let _ = out.append_header(name.clone(), value.clone());
        // Such as a token that another server gave for the caller's.
        if names.may_hold_credential(name) {
            shown.add(name, value);
        }
    }
    let own = x.caller.as_ref().and_then(|caller| caller.credentials(&backend.name));
    let credentials = own.or(backend.credentials.as_ref());
    let is_credential = |name: &HeaderName| out.headers.contains_key(name);
    let callers_account = own.is_some()
        || (credentials.is_none() && is_own && x.snapshot.caller_headers.credentials().iter().any(is_credential));
    if let Some(credentials) = credentials {
        replace_credentials(&mut out, x, Some(credentials));
        shown.add(&header::AUTHORIZATION, credentials);
    }
    if let Some(caller) = &x.caller {
        let [consumer, tenant] = &x.snapshot.identity_headers;
        for (name, text) in [(consumer, &caller.name), (tenant, &caller.tenant)] {
            if let (Some(name), Ok(value)) = (name, HeaderValue::from_str(text)) {
                let _ = out.insert_header(name.clone(), value);
            }
        }
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

    let span = if a.span.is_none() { &x.span } else { &a.span };
    span.inject(&mut RequestHeaders { head: &mut out, odd: x.odd_headers });
    let variables = x.variables(route, &backend.name);
    for filter in route.all_filters() {
        let headers = RequestHeaders { head: &mut out, odd: x.odd_headers };
        filter.filter.on_upstream_request(&mut Recorded { headers, shown: &mut shown, names }, &variables);
        if let Some(target) = out.uri.path_and_query()
            && let Some(target) = filter.filter.upstream_target(target)
        {
            out.set_uri(http::Uri::from(target));
        }
    }
    if !is_own {
        // What the file sets for the route's own backends is for those as well.
        replace_credentials(&mut out, x, credentials);
        out.remove_header(&header::COOKIE);
    }
    Outbound { head: Box::new(out), callers_account, shown }
}

/// Puts credentials of the configuration, or none, in the place of all others.
fn replace_credentials(out: &mut RequestHeader, x: &Exchange, credentials: Option<&HeaderValue>) {
    for name in x.snapshot.caller_headers.credentials() {
        out.remove_header(name);
    }
    if let Some(credentials) = credentials {
        let _ = out.insert_header(header::AUTHORIZATION, credentials.clone());
    }
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

/// The header of the answer that goes to the client, made in place from a new one, or from that of an endpoint after
/// [`remove_hop_by_hop`].
pub fn outgoing_response(
    mut out: ResponseHeader,
    x: &mut Exchange,
    client_is_http11: bool,
    has_body: bool,
) -> Box<ResponseHeader> {
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

/// What every answer carries, whoever made it: the request id, the limits, what the filters and their observers add.
pub fn finish_response(out: &mut ResponseHeader, x: &mut Exchange) {
    let _ = out.insert_header(X_REQUEST_ID.clone(), x.request_id.clone());
    show_limits(out, x);
    if let Some(route) = &x.route {
        let variables = x.variables(route, x.served_by());
        for filter in route.all_filters() {
            filter.filter.on_response(&mut ResponseHeaders(out), &variables);
        }
        x.observers.response_head(out.status, &mut ResponseHeaders(out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
