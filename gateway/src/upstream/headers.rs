//! Headers between the two sides: removal of hop-by-hop fields, credentials and forwarding claims of an outsider, and the
//! headers that the gateway sets. The duties of a gateway are in RFC 9110, 7.6. The order is: strip, add, run the filters.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use smallvec::SmallVec;
use spillway_config::values::ServerUrl;
use spillway_filter::{Fields, Filter, Headers, NameSet, ServerView, Variables};

use super::answer_model;
use super::masking::SentCredentials;
use super::outcome::Attempt;
use super::renaming;
use super::usage_chunk;
use super::via::{HOPS, Via};
use crate::balancing::orca;
use crate::clock::{self, millis};
use crate::coding::weighed;
use crate::credentials::Credential;
use crate::exchange::{Exchange, Viewed};
use crate::identity::credential_in;
use crate::message::{RequestHead, ResponseHead};
use crate::protocol::{GRPC_ACCEPT_ENCODING, GRPC_TIMEOUT, write_timeout};
use crate::snapshot::{CallerHeaders, claims_to_be_ours, same_name};
use crate::topology::Route;

/// Fields of one connection, whether or not `Connection` names them (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
static OF_CONNECTION: LazyLock<NameSet> = LazyLock::new(|| HOP_BY_HOP.into_iter().collect());
/// Fields of a request that end with its connection.
static OF_CLIENT: LazyLock<NameSet> = LazyLock::new(|| {
    let of_requests = [header::EXPECT, HeaderName::from_static("http2-settings")];
    HOP_BY_HOP.into_iter().chain(of_requests).collect()
});

/// Room for the headers that the gateway and filters most often add to a request.
const HEADERS_SET: usize = 8;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Shortest credential that is searched for in other headers of its request, bytes. A shorter one is no secret, and would
/// be found in innocent headers.
const LEAST_SECRET: usize = 16;
/// The request id, both ways.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Limits in the fields of the IETF's draft (draft-ietf-httpapi-ratelimit-headers).
static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Times of an answer (W3C Server Timing).
static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A request header as filters change it.
struct RequestHeaders<'a> {
    head: &'a mut RequestHead,
    /// True if a name may be in it that some servers cannot tell from another.
    odd: bool,
}

impl RequestHeaders<'_> {
    /// Removes headers that some servers would read as `name`, so that only the filter's value is left.
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
    fn get_all(&self, name: &HeaderName) -> Vec<&HeaderValue> {
        self.head.headers.get_all(name).iter().collect()
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
    fn for_each(&self, each: &mut dyn FnMut(&HeaderName, &HeaderValue)) {
        self.head.headers.for_each(each);
    }
}

/// Request header as the filters of a route change it; records the credentials that they add.
struct Recorded<'a> {
    headers: RequestHeaders<'a>,
    shown: &'a mut SentCredentials,
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
    fn get_all(&self, name: &HeaderName) -> Vec<&HeaderValue> {
        self.headers.get_all(name)
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
    fn for_each(&self, each: &mut dyn FnMut(&HeaderName, &HeaderValue)) {
        self.headers.for_each(each);
    }
}

/// Removes every header for which `ends` is true of its name and one of its values.
fn remove_where(head: &mut RequestHead, ends: impl Fn(&HeaderName, &HeaderValue) -> bool) {
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

/// Names that `Connection` lists, which end here too; in a set, because a list may have tens of thousands.
pub(super) fn nominated(headers: &Fields) -> HashSet<HeaderName, ahash::RandomState> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect()
}

/// Names in a server's headers that only the gateway may use towards callers.
pub(super) fn claimed(headers: &HeaderMap) -> SmallVec<[HeaderName; 4]> {
    headers.keys().filter(|name| claims_to_be_ours(name)).cloned().collect()
}

/// Early hints without fields of the server's connection and names of the gateway (RFC 8297; RFC 9110, 7.6.1).
pub(super) fn early_hints(head: &ResponseHead) -> ResponseHead {
    let mut hints = head.clone();
    remove_hop_by_hop(&mut hints);
    hints.remove_header(&header::CONTENT_LENGTH);
    hints
}

/// True for a field of one connection, whatever `Connection` names.
pub(super) fn is_of_connection(name: &HeaderName) -> bool {
    OF_CONNECTION.contains(name)
}

/// Removes from a server's head the fields of its connection, and names of the gateway.
pub(super) fn remove_hop_by_hop(head: &mut ResponseHead) {
    let ends = |name: &&HeaderName| is_of_connection(name) || claims_to_be_ours(name);
    let mut ending: SmallVec<[HeaderName; 4]> = head.headers.keys().filter(ends).cloned().collect();
    if ending.contains(&header::CONNECTION) {
        ending.extend(nominated(&head.headers).into_iter().filter(|name| head.headers.contains_key(name)));
    }
    for name in &ending {
        head.remove_header(name);
    }
}

/// Removes the credentials of the caller: all, or only those for this gateway where the others pass (`passes`).
pub(super) fn remove_credentials(out: &mut RequestHead, client: &RequestHead, exchange: &Exchange, passes: bool) {
    let names = exchange.snapshot.caller_headers.credentials();
    if passes {
        if let Some(name) = &exchange.identified_by {
            out.remove_header(name);
        }
        // A short value in a header for something else is most likely no credential.
        let may_hold = |name: &HeaderName, value: &HeaderValue| value.len() >= LEAST_SECRET || names.contains(name);
        remove_where(out, |name, value| {
            may_hold(name, value) && exchange.snapshot.identity.holds_credential(value.as_bytes())
        });
    } else {
        for name in names {
            out.remove_header(name);
        }
    }
    // The credential that identified the caller may be in another header as well.
    let shown = exchange.identified_by.as_ref().and_then(|name| Some(credential_in(name, client.headers.get(name)?)));
    if let Some(shown) = shown.filter(|shown| shown.len() >= LEAST_SECRET) {
        let holds =
            |value: &HeaderValue| value.len() >= shown.len() && memchr::memmem::find(value.as_bytes(), shown).is_some();
        remove_where(out, |name, value| *name != header::HOST && holds(value));
    }
}

/// Puts the framing of a server's answer into one form: chunks alone, or one length, said once. The session has read the body
/// by it, and refused lengths that differ. An answer in another transfer coding is refused: the coding would be taken off its
/// head and left on its body (RFC 9112, 6.1).
pub(super) fn settle_framing(head: &mut ResponseHead) -> Result<(), &'static str> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
    {
        return Err("a transfer coding other than `chunked`, which no request asks for");
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let Some(length) = lengths.next() else { return Ok(()) };
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if is_number(length) && lengths.next().is_none() {
        return Ok(());
    }
    let length = length.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
    let length = Some(length).filter(|length| is_number(length)).and_then(|text| HeaderValue::from_bytes(text).ok());
    let length = length.ok_or("a Content-Length that is no decimal number")?;
    let _ = head.insert_header(header::CONTENT_LENGTH, length);
    Ok(())
}

/// Recipient of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipient {
    /// A backend of its route.
    Own,
    /// A backend that answers instead of the route's own. Credentials for the route's own are removed.
    Other,
    /// A backend that gets a copy, at no account of the caller's. Credentials for the route's own are removed.
    Copy,
}

/// Header of a request for an endpoint, and the credentials in it.
pub(super) struct Outbound {
    /// The header.
    pub head: Box<RequestHead>,
    /// True if the head carries credentials of the caller's own account at the server.
    pub callers_account: bool,
    /// Credentials that the gateway added: no answer may reveal them to the caller.
    pub shown: SentCredentials,
    /// `Host` for the server.
    pub host: Option<HeaderValue>,
}

/// Body of a request for an endpoint, as its head announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutgoingBody {
    /// Held, with so many bytes.
    Length(u64),
    /// Held, with trailers behind it.
    WithTrailers,
    /// Streams through as the client frames it.
    AsItComes,
}

/// Makes the header of the request that goes to an endpoint.
pub(super) fn outgoing_request(
    attempt: &Attempt<'_>,
    client: &RequestHead,
    exchange: &Exchange,
    recipient: Recipient,
    body: OutgoingBody,
) -> Outbound {
    let is_own = recipient == Recipient::Own;
    let mut out = without_hop_by_hop(client);
    for name in exchange.snapshot.caller_headers.owned_late() {
        out.remove_header(name);
    }
    remove_credentials(&mut out, client, exchange, is_own && attempt.backend.passes_credentials);
    if let Some(translation) = attempt.translation.as_ref().filter(|_| attempt.backend.passes_credentials) {
        translation.adapt_credential(&mut out);
    }
    let mut shown = SentCredentials::on_route(attempt.route.environment.as_ref());
    add_headers_of_filters(&mut out, exchange, &mut shown);
    let caller = exchange.caller.as_ref().filter(|_| recipient != Recipient::Copy);
    let own = caller.and_then(|caller| caller.credentials(&attempt.backend.name));
    let credentials = own.or(attempt.backend.credentials.as_ref());
    let is_credential = |name: &HeaderName| out.headers.contains_key(name);
    let callers_account = own.is_some()
        || (credentials.is_none()
            && is_own
            && exchange.snapshot.caller_headers.credentials().iter().any(is_credential));
    if let Some(credentials) = credentials {
        replace_credentials(&mut out, exchange, Some(credentials));
        shown.add(&credentials.name, &credentials.value);
    }
    for (name, value) in &attempt.backend.default_headers {
        if !out.headers.contains_key(name) {
            let _ = out.insert_header(name.clone(), value.clone());
        }
    }
    set_caller(&mut out, exchange);
    set_origin(&mut out, client, exchange, attempt.via);
    if attempt.backend.load_reports {
        let _ = out.insert_header(orca::FORMAT.clone(), orca::JSON.clone());
    }
    if let Some(codings) = readable_codings(attempt, client, exchange, &shown) {
        let _ = out.insert_header(header::ACCEPT_ENCODING, HeaderValue::from_static(codings));
        out.remove_header(&GRPC_ACCEPT_ENCODING);
    }
    if exchange.rewriting.as_ref().is_some_and(|rewriting| rewriting.may_read_body()) {
        // A part of an answer cannot be changed as the whole is, and must not be a way around that.
        out.remove_header(&header::RANGE);
        out.remove_header(&header::IF_RANGE);
    }
    set_framing(&mut out, client, body);
    set_time_left(&mut out, attempt, exchange);
    let span = if attempt.span.is_none() { &exchange.span } else { &attempt.span };
    span.inject(&mut RequestHeaders { head: &mut out, odd: exchange.odd_headers });
    let passes_credentials = is_own && attempt.backend.passes_credentials;
    let viewed = Viewed { head: client, exchange, target: attempt.target, passes_credentials };
    run_filters(&mut out, attempt, viewed, &mut shown);
    if let Some(translation) = &attempt.translation {
        translation.adapt(&mut out);
    }
    if !is_own {
        // Credentials and cookies that the file sets are for the route's own backends.
        replace_credentials(&mut out, exchange, credentials);
        out.remove_header(&header::COOKIE);
    }
    let host = out.headers.get(header::HOST).cloned();
    Outbound { head: Box::new(out), callers_account, shown, host }
}

/// Codings that the server is asked for in place of those that the caller accepts, where the answer must be read on its way;
/// `None` where it need not. What a caller accepts must not hide the tokens or events of its answer,
/// nor a credential in it.
fn readable_codings(
    attempt: &Attempt<'_>,
    client: &RequestHead,
    exchange: &Exchange,
    shown: &SentCredentials,
) -> Option<&'static str> {
    let (route, calls_model) = (attempt.route, attempt.backend.calls_models());
    let is_changed = usage_chunk::edit(attempt, exchange).is_some()
        || answer_model::renames(attempt, exchange)
        || renaming::renames(attempt, exchange);
    let is_changed = is_changed || exchange.rewriting.as_ref().is_some_and(|rewriting| rewriting.may_read_body());
    if (calls_model && route.resume) || is_changed || exchange.observers.reads_events() {
        return Some("identity");
    }
    let is_read = exchange.ledger.counts_tokens() || route.first_token_timeout.is_some() || !shown.is_empty();
    (calls_model && is_read).then(|| cheapest_of(&client.headers))
}

/// Accepted codings whose decoders need no large window, so that every answer can be decoded.
fn cheapest_of(headers: &Fields) -> &'static str {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let (mut gzip, mut deflate, mut others) = (None, None, false);
    for (name, weight) in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(weighed) {
        let is_accepted = weight > 0;
        if name == b"*" {
            others = is_accepted;
        } else if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") {
            gzip = Some(is_accepted);
        } else if name.eq_ignore_ascii_case(b"deflate") {
            deflate = Some(is_accepted);
        }
    }
    match (gzip.unwrap_or(others), deflate.unwrap_or(others)) {
        (true, true) => "gzip, deflate",
        (true, false) => "gzip",
        (false, true) => "deflate",
        (false, false) => "identity",
    }
}

/// The client's header without the fields of its connection.
fn without_hop_by_hop(client: &RequestHead) -> RequestHead {
    let nominated = client.headers.contains_key(header::CONNECTION).then(|| nominated(&client.headers));
    let is_nominated = |name: &HeaderName| nominated.as_ref().is_some_and(|names| names.contains(name));
    let (set, may_end) = (&*OF_CLIENT, client.headers.may_have_any(&OF_CLIENT));
    let ends = |name: &HeaderName| may_end && (set.contains(name) || is_nominated(name));
    let mut headers = Fields::with_capacity(client.headers.len() + HEADERS_SET);
    for (name, value) in client.headers.iter().filter(|(name, _)| !ends(name)) {
        headers.append(name.clone(), value.clone());
    }
    let mut out = client.with_headers(headers);
    out.version = http::Version::HTTP_11;
    out
}

/// Adds the headers that filters put on the request, such as a token that another server issued for the caller's.
fn add_headers_of_filters(out: &mut RequestHead, exchange: &Exchange, shown: &mut SentCredentials) {
    let names = &exchange.snapshot.caller_headers;
    for (name, value) in &exchange.request_headers {
        let _ = out.append_header(name.clone(), value.clone());
        if names.may_hold_credential(name) {
            shown.add(name, value);
        }
    }
    if exchange.header_changes.is_empty() {
        return;
    }
    let headers = RequestHeaders { head: out, odd: exchange.odd_headers };
    let mut headers = Recorded { headers, shown, names };
    exchange.header_changes.iter().for_each(|change| change.apply(&mut headers));
}

/// Sets the configured headers that name the consumer and its tenant.
fn set_caller(out: &mut RequestHead, exchange: &Exchange) {
    let Some(caller) = &exchange.caller else { return };
    let [consumer, tenant] = &exchange.snapshot.identity_headers;
    for (name, text) in [(consumer, &caller.name), (tenant, &caller.tenant)] {
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_str(text)) {
            let _ = out.insert_header(name.clone(), value);
        }
    }
}

/// Sets the client's address, scheme and host as the gateway sees them, the request id and the gateway's own names. Claims of
/// an outsider are not passed on.
fn set_origin(out: &mut RequestHead, client: &RequestHead, exchange: &Exchange, via: &Via) {
    let scheme = HeaderValue::from_static(if exchange.secure { "https" } else { "http" });
    out.remove_header(&header::FORWARDED);
    let _ = out.insert_header(X_FORWARDED_FOR.clone(), exchange.client_text.clone());
    let _ = out.insert_header(X_FORWARDED_PROTO.clone(), scheme);
    match client.headers.get(header::HOST) {
        Some(host) => {
            let _ = out.insert_header(X_FORWARDED_HOST.clone(), host.clone());
        }
        None => {
            // HTTP/1.0 may omit it, HTTP/1.1 may not: it is empty where no host is known (RFC 9112, 3.2).
            let _ = out.insert_header(header::HOST, HeaderValue::from_static(""));
            out.remove_header(&X_FORWARDED_HOST);
        }
    }
    if let Some(hops) = &exchange.hops {
        let _ = out.insert_header(HOPS.clone(), hops.clone());
    }
    if exchange.signs_via {
        let _ = out.append_header(header::VIA, via.value());
    }
    let _ = out.insert_header(X_REQUEST_ID.clone(), exchange.request_id.clone());
}

/// Sets how the body is framed in HTTP/1.1, and announces trailers as the client does.
fn set_framing(out: &mut RequestHead, client: &RequestHead, body: OutgoingBody) {
    let has_length = client.headers.contains_key(header::CONTENT_LENGTH);
    let is_chunked = client.headers.contains_key(header::TRANSFER_ENCODING);
    match body {
        OutgoingBody::Length(0) if !has_length && !is_chunked => return,
        OutgoingBody::Length(length) => {
            let _ = out.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length));
            return;
        }
        OutgoingBody::WithTrailers => {
            out.remove_header(&header::CONTENT_LENGTH);
        }
        // HTTP/2 frames a body whose length is not known.
        OutgoingBody::AsItComes if is_chunked || !has_length => {}
        OutgoingBody::AsItComes => return,
    }
    let _ = out.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    for announced in client.headers.get_all(header::TRAILER) {
        let _ = out.append_header(header::TRAILER, announced.clone());
    }
}

/// Tells the server of a gRPC call how much of the time that its caller gave is left, or of the route's where that is less, or
/// where the call came over HTTP.
fn set_time_left(out: &mut RequestHead, attempt: &Attempt<'_>, exchange: &Exchange) {
    let is_to_grpc = attempt.translation.as_ref().is_some_and(|translation| translation.is_to_grpc());
    if exchange.callers_time.is_some() || is_to_grpc {
        let left = exchange.deadline(attempt.route).saturating_duration_since(clock::now());
        // A caller over HTTP gives no time: the server gets that of the attempt.
        let left = attempt.route.attempt_timeout.filter(|_| is_to_grpc).map_or(left, |most| left.min(most));
        let _ = out.insert_header(GRPC_TIMEOUT.clone(), write_timeout(left));
    }
}

/// Runs the filters of the route over a request for an endpoint.
pub(super) fn run_filters(
    out: &mut RequestHead,
    attempt: &Attempt<'_>,
    viewed: Viewed<'_>,
    shown: &mut SentCredentials,
) {
    let exchange = viewed.exchange;
    let of_target = attempt.route.filters_of(attempt.target);
    if !attempt.route.has_filters() && of_target.is_empty() {
        return;
    }
    let variables = exchange.variables(attempt.route, &attempt.backend.name, &viewed);
    for filter in attempt.route.all_filters().chain(of_target) {
        let headers = RequestHeaders { head: out, odd: exchange.odd_headers };
        let mut recorded = Recorded { headers, shown, names: &exchange.snapshot.caller_headers };
        filter.filter.on_upstream_request(&mut recorded, &variables);
        if let Some(target) = out.uri.path_and_query()
            && let Some(target) = filter.filter.upstream_target(target)
        {
            out.set_uri(http::Uri::from(target));
        }
    }
}

/// Puts credentials of the configuration, or none, in the place of all others.
fn replace_credentials(out: &mut RequestHead, exchange: &Exchange, credentials: Option<&Credential>) {
    for name in exchange.snapshot.caller_headers.credentials() {
        out.remove_header(name);
    }
    if let Some(Credential { name, value }) = credentials {
        let _ = out.insert_header(name.clone(), value.clone());
    }
}

/// Completes a request of HTTP/1.1: the server may send trailers where the caller accepts them (RFC 9110, 10.1.4).
pub(super) fn to_http1(out: &mut RequestHead, takes_trailers: bool) {
    if takes_trailers {
        let _ = out.insert_header(header::TE, HeaderValue::from_static("trailers"));
        let _ = out.insert_header(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Converts a request for a server to HTTP/2: authority in the target (RFC 9113, 8.3.1), no framing of HTTP/1.1, and
/// `te: trailers` where the caller sent it, which gRPC requires. A `Host` that is no authority, such as an empty one, becomes that
/// of the server's URL.
pub(super) fn to_http2(out: &mut RequestHead, takes_trailers: bool, server: &ServerUrl) {
    out.remove_header(&header::TRANSFER_ENCODING);
    if takes_trailers {
        let _ = out.insert_header(header::TE, HeaderValue::from_static("trailers"));
    }
    let host = out.remove_header(&header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = host.or_else(|| Authority::try_from(server.to_string().split_once("://")?.1).ok());
    let mut parts = Parts::default();
    parts.scheme = Some(if server.https { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = authority;
    parts.path_and_query = Some(out.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")));
    if let Ok(uri) = http::Uri::from_parts(parts) {
        out.set_uri(uri);
    }
}

/// Path under which callers reach `path` of a server of the route; `None` where no filter changes paths, and where the way
/// back is not certain.
fn caller_path(route: &Route, target: &PathAndQuery, path: &str) -> Option<String> {
    // Filters that changed the target, each with the one that it saw.
    let mut changed: SmallVec<[(&dyn Filter, PathAndQuery); 2]> = SmallVec::new();
    let mut seen = target.clone();
    for named in route.all_filters() {
        if let Some(next) = named.filter.upstream_target(&seen) {
            changed.push((&*named.filter, std::mem::replace(&mut seen, next)));
        }
    }
    let mut found = None;
    for (filter, seen) in changed.iter().rev() {
        found = Some(filter.caller_path(seen.path(), found.as_deref().unwrap_or(path))?);
    }
    found
}

/// Runs the filters that change the answers of servers. `sent_host` is the `Host` that the server got.
pub(super) fn filter_server_response(
    head: &mut ResponseHead,
    attempt: &Attempt<'_>,
    client: &RequestHead,
    exchange: &Exchange,
    sent_host: Option<&HeaderValue>,
) {
    if !attempt.route.has_filters() {
        return;
    }
    fn text(value: Option<&HeaderValue>) -> Option<&str> {
        value.and_then(|value| value.to_str().ok()).filter(|host| !host.is_empty())
    }
    let url = &attempt.endpoint.url;
    let server = ServerView {
        https: url.https,
        host: &url.host,
        port: url.port,
        sent_host: text(sent_host),
        caller_host: text(client.headers.get(header::HOST)),
        secure: exchange.secure,
        caller_path: &|path| caller_path(attempt.route, client.uri.path_and_query()?, path),
    };
    for named in attempt.route.all_filters() {
        named.filter.on_server_response(&mut head.headers, &server);
    }
}

/// Header of the answer for the client, made in place from a new one or from an endpoint's after [`remove_hop_by_hop`].
pub fn outgoing_response(
    mut out: ResponseHead,
    client: &RequestHead,
    exchange: &mut Exchange,
    client_is_http11: bool,
    has_body: bool,
) -> Box<ResponseHead> {
    if out.status == http::StatusCode::NO_CONTENT {
        // An answer without a body must not claim one (RFC 9110, 8.6).
        out.remove_header(&header::CONTENT_LENGTH);
    }
    out.version = http::Version::HTTP_11;
    if has_body && client_is_http11 && !out.headers.contains_key(header::CONTENT_LENGTH) {
        let _ = out.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    finish_response(&mut out, client, exchange);
    Box::new(out)
}

/// Sets the caller's limits. Limits in a server's answer are those of the gateway's account there, and are replaced.
fn show_limits(out: &mut ResponseHead, exchange: &Exchange) {
    for (n, shown) in exchange.ledger.shown().enumerate() {
        if n == 0 {
            out.remove_header(&RATELIMIT);
            out.remove_header(&RATELIMIT_POLICY);
        }
        let [limit, remaining, reset] = exchange.dialect.limit_headers(shown.is_tokens);
        let unit = if shown.is_tokens { "tokens" } else { "requests" };
        let _ = out.insert_header(limit.clone(), HeaderValue::from(shown.limit));
        let _ = out.insert_header(remaining.clone(), HeaderValue::from(shown.remaining));
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(exchange.dialect.limit_reset(shown.reset))) {
            let _ = out.insert_header(reset.clone(), value);
        }
        let (mut left, mut seconds) = (itoa::Buffer::new(), itoa::Buffer::new());
        let seconds = seconds.format(millis(shown.reset).div_ceil(1000));
        let text = ["\"", unit, "\";r=", left.format(shown.remaining), ";t=", seconds].concat();
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
            let _ = out.append_header(RATELIMIT.clone(), value);
        }
        if let Some(policy) = &shown.policy {
            let _ = out.append_header(RATELIMIT_POLICY.clone(), policy.clone());
        }
    }
}

/// Adds the times of an answer (W3C Server Timing). What a server says of its own time stays beside it.
#[cold]
fn show_times(out: &mut ResponseHead, exchange: &Exchange) {
    // The work of this poll is a part of it.
    clock::renew();
    let took = clock::since(exchange.started);
    let queued = exchange.outcome.queued.unwrap_or_default().min(took);
    // Attempts beside each other are counted once, as is a wait between two of them.
    let at_targets = exchange.outcome.at_targets.min(took.saturating_sub(queued));
    let own = took.saturating_sub(queued).saturating_sub(at_targets);
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let (queued, at_targets, own) = (millis(queued), millis(at_targets), millis(own));
    let text = format!("queue;dur={queued:.3}, upstream;dur={at_targets:.3}, gateway;dur={own:.3}");
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
        let _ = out.append_header(SERVER_TIMING.clone(), value);
    }
}

/// Adds the headers of every answer to a request with the head `client`: the request id, the limits, and those of the filters and
/// their observers.
pub fn finish_response(out: &mut ResponseHead, client: &RequestHead, exchange: &mut Exchange) {
    let _ = out.insert_header(X_REQUEST_ID.clone(), exchange.request_id.clone());
    if exchange.snapshot.server_timing {
        show_times(out, exchange);
    }
    if let Some(name) = exchange.dialect.request_id_header() {
        let _ = out.insert_header(name.clone(), exchange.request_id.clone());
    }
    show_limits(out, exchange);
    if let Some(route) = &exchange.route {
        let of_target = route.filters_of(exchange.outcome.target);
        if route.has_filters() || !of_target.is_empty() {
            let target = exchange.outcome.target;
            let viewed = Viewed { head: client, exchange, target, passes_credentials: false };
            let status = Some(out.status);
            let variables = Variables { status, ..exchange.variables(route, exchange.served_by(), &viewed) };
            for filter in route.all_filters().chain(of_target) {
                filter.filter.on_response(&mut out.headers, &variables);
            }
        }
        exchange.observers.response_head(out.status, &mut out.headers);
        if let Some(taps) = &mut exchange.taps {
            taps.head(out.status, &out.headers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_codings_that_a_caller_accepts_the_cheap_ones_are_left() {
        for (accepted, left) in [
            (&[][..], "identity"),
            (&[""], "identity"),
            (&["br, zstd"], "identity"),
            (&["gzip, deflate, br, zstd"], "gzip, deflate"),
            (&["br;q=1.0, GZIP;q=0.8"], "gzip"),
            (&["x-gzip"], "gzip"),
            (&["deflate ; q=0.1"], "deflate"),
            (&["br", "gzip"], "gzip"),
            (&["*"], "gzip, deflate"),
            (&["*;q=0, gzip"], "gzip"),
            (&["gzip;q=0, *"], "deflate"),
            (&["gzip; q=0.000,deflate;q=0"], "identity"),
            (&["gzip;q=much"], "identity"),
        ] {
            let mut headers = Fields::default();
            for value in accepted {
                headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            assert_eq!(cheapest_of(&headers), left, "{accepted:?}");
        }
    }

    #[test]
    fn the_framing_of_an_answer_has_one_form_or_is_refused() {
        for (fields, expected) in [
            (&[("content-length", "11")][..], Some("11")),
            (&[("content-length", "11"), ("content-length", "11")], Some("11")),
            (&[("content-length", "11, 11")], Some("11")),
            (&[("transfer-encoding", "Chunked")], Some("")),
            (&[("content-length", "+11")], None),
            (&[("content-length", "")], None),
            (&[("transfer-encoding", "gzip, chunked")], None),
            (&[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], None),
            (&[("transfer-encoding", "identity")], None),
            (&[], Some("")),
        ] {
            let mut head = ResponseHead::new(http::StatusCode::OK, 0);
            for (name, value) in fields {
                head.append_header(*name, *value).unwrap();
            }
            let settled = settle_framing(&mut head).ok().map(|()| {
                assert!(head.headers.get_all(header::CONTENT_LENGTH).iter().count() <= 1);
                head.headers.get(header::CONTENT_LENGTH).map_or("", |length| length.to_str().unwrap())
            });
            assert_eq!(settled, expected, "{fields:?}");
        }
    }

    #[test]
    fn connection_cannot_nominate_what_frames_the_message() {
        let mut headers = Fields::default();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close, X-Secret , host, content-length, b@d"));
        let expected = ["close", "x-secret"].map(HeaderName::from_static);
        assert_eq!(nominated(&headers), expected.into_iter().collect());
    }
}
