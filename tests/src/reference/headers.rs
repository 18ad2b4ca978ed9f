//! `headers.md`: every header that the gateway reads, sets or removes. The rows are written here; each name of the sources
//! has one, and each row has a name in the sources.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::source::{files, literals};
use super::{GENERATED, cell, compare};

type Group = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const GROUPS: &[Group] = &[
    (
        "Requests of clients",
        "Read by the gateway.",
        &[
            (
                "authorization",
                "Holds `Bearer KEY` or `Bearer TOKEN` of a caller (`authentication.apiKey.headers`, `authentication.jwt`). Removed before the request goes on, unless `backends[].callerCredentials: pass`; replaced by `backends[].credentials`.",
            ),
            ("x-api-key", "Holds an API key; treated as `authorization`."),
            ("api-key", "Holds an API key; treated as `authorization`."),
            (
                "host",
                "Host by which a route is matched, in small letters and without a final dot. Required by HTTP/1.1; two are refused.",
            ),
            (
                "x-request-id",
                "Id of the request, kept if it has at most 128 plain characters, else made. It goes to the server, into the answer, the logs and the spans.",
            ),
            (
                "traceparent",
                "The trace to continue ([tracing](../how-to/tracing.md)); set for the server to the attempt's span.",
            ),
            ("tracestate", "Goes with `traceparent`."),
            ("x-spillway-fallback", "`never`: the caller prefers an error to an answer of a spill."),
            (
                "x-forwarded-for",
                "Addresses of the client and its proxies, read from the end, through `clientAddress.trustedProxies` only. Set for the server to the address of the client.",
            ),
            (
                "x-forwarded-proto",
                "Scheme that the client used, from a trusted proxy. Set for the server to `http` or `https`.",
            ),
            (
                "forwarded",
                "Addresses and scheme in the form of RFC 7239, from a trusted proxy (`clientAddress.header: forwarded`). Never passed on.",
            ),
            (
                "cookie",
                "Read for `loadBalancing.hashOn.cookie`. Passed to the route's own backends, not to copies and stand-ins. Fields of HTTP/2 are joined.",
            ),
            ("content-type", "Type of a body that is held: JSON or a form. Two are refused."),
            ("content-length", "Length of the body. Two that differ are refused, equal ones made one."),
            ("transfer-encoding", "`chunked` and nothing else. It ends at the gateway, which frames the body anew."),
            (
                "content-encoding",
                "Coding of the body: gzip, deflate, br or zstd. A body that a rule or an API depends on is decoded and goes to the server so; any other passes as it came.",
            ),
            ("content-md5", "Removed with the coding of a body that is decoded; also from answers, as `etag`."),
            ("content-digest", "As `content-md5`."),
            ("repr-digest", "As `content-md5`."),
            (
                "accept-encoding",
                "Codings that the caller accepts. Where tokens of the answer count, `timeouts.firstToken` is set, or a server of a model API gets a credential of the gateway, of these only `gzip` and `deflate` go to the server, else `identity`; with `resume`, and for filters that read events or change answers, always `identity`. A refusal with 415 names in it the codings of a body that are accepted. Decides whether the filter `compression` compresses the answer.",
            ),
            (
                "range",
                "Removed for filters that change answers: a part of an answer cannot be changed as the whole is.",
            ),
            ("if-range", "Removed with `range`."),
            ("anthropic-beta", "Passes. Requests with other values have other answers in the filter `cache`."),
            ("openai-beta", "As `anthropic-beta`."),
            ("expect", "`100-continue` is answered where the body is read. It ends at the gateway."),
            ("te", "`trailers` asks for the trailers of an answer, as gRPC does; passed on."),
            (
                "connection",
                "Fields that it names end at the gateway (RFC 9110, 7.6.1). Set for the server to `upgrade` with an upgrade that passes.",
            ),
            (
                "upgrade",
                "Protocols that the client would rather speak. The first that `routes[].upgrades` names goes to the server ([WebSocket](../how-to/websocket.md)); others end at the gateway.",
            ),
            (
                "sec-websocket-key",
                "Nonce of a WebSocket handshake. Must be 16 bytes in Base64, once; made for clients of HTTP/2.",
            ),
            ("sec-websocket-version", "Version of WebSocket, which must be 13."),
            (
                "sec-websocket-protocol",
                "Subprotocols that a client of WebSocket offers. A key among them (`openai-insecure-api-key.…`) is removed, unless `backends[].callerCredentials: pass`. The answer may name one that was offered.",
            ),
            (
                "sec-websocket-extensions",
                "Extensions that a client of WebSocket offers; passed on. The answer may name those that were offered.",
            ),
            ("user-agent", "Logged; `user_agent.original` of the span."),
            ("origin", "Origin of a page, for the filter `cors`."),
            ("access-control-request-method", "Method of a browser's preflight request, for the filter `cors`."),
            ("access-control-request-headers", "Headers of a browser's preflight request."),
            (
                "inference-header-content-length",
                "Length of the JSON at the head of a body of the [Open Inference Protocol](../how-to/open-inference.md), read where a built-in model answers. Set in its answers with binary tensors.",
            ),
            (
                "grpc-timeout",
                "Time that the caller gives a [gRPC call](../how-to/grpc.md), where it is shorter than the route's. Set for the server to what is left.",
            ),
            (
                "grpc-encoding",
                "Coding of the message of a gRPC call: `gzip` and `deflate` are decoded where the [message must be read](../how-to/grpc.md#compressed-messages), and the header is removed then. Of an answer, read for the same.",
            ),
            (
                "grpc-accept-encoding",
                "Removed where the answer must be read, so that its message comes without a coding. Set in the refusal of a message in another coding, to those that the gateway reads (`identity, deflate, gzip`).",
            ),
            (
                "anthropic-version",
                "Version of Anthropic's API. Any passes; with one, `GET /v1/models` answers in Anthropic's form. Set for servers of that API where the caller sent none.",
            ),
            (
                "via",
                "Marks requests that have passed this gateway before, which are refused with 508. Set for the server where the listener says `via: true`.",
            ),
        ],
    ),
    (
        "Removed from requests of clients",
        "Names in which `_` or another mark stands for `-` are removed too, since many servers read them as the same name. All `x-spillway-*` are removed, and headers that filters and `authentication.identityHeaders` set. What proxies say of a caller (its address, scheme, host, path, user and certificate) is removed unless a proxy of `clientAddress.trustedProxies` sent it: `x-forwarded-*` that is not listed above, `x-envoy-*`, `x-ssl-*`, `ssl-client-*`, `x-auth-request-*`, `x-amzn-mtls-*`, `x-amzn-oidc-*`, `x-appengine-*`, `x-goog-authenticated-user-*`, and the names below.",
        &[
            ("cf-access-authenticated-user-email", "Passed from trusted proxies only."),
            ("cf-connecting-ip", "Passed from trusted proxies only."),
            ("cf-connecting-ipv6", "Passed from trusted proxies only."),
            ("cf-ipcountry", "Passed from trusted proxies only."),
            ("cf-pseudo-ipv4", "Passed from trusted proxies only."),
            ("cf-visitor", "Passed from trusted proxies only."),
            ("client-cert", "Passed from trusted proxies only."),
            ("client-cert-chain", "Passed from trusted proxies only."),
            ("client-ip", "Passed from trusted proxies only."),
            ("fastly-client", "Passed from trusted proxies only."),
            ("fastly-client-ip", "Passed from trusted proxies only."),
            ("fastly-ssl", "Passed from trusted proxies only."),
            ("front-end-https", "Passed from trusted proxies only."),
            ("proxy-client-ip", "Passed from trusted proxies only."),
            ("remote-addr", "Passed from trusted proxies only."),
            ("remote-user", "Passed from trusted proxies only."),
            ("true-client-ip", "Passed from trusted proxies only."),
            ("wl-proxy-client-cert", "Passed from trusted proxies only."),
            ("wl-proxy-client-ip", "Passed from trusted proxies only."),
            ("wl-proxy-ssl", "Passed from trusted proxies only."),
            ("x-arr-clientcert", "Passed from trusted proxies only."),
            ("x-arr-ssl", "Passed from trusted proxies only."),
            ("x-authenticated-user", "Passed from trusted proxies only."),
            ("x-azure-clientip", "Passed from trusted proxies only."),
            ("x-azure-socketip", "Passed from trusted proxies only."),
            ("x-client-cert", "Passed from trusted proxies only."),
            ("x-client-dn", "Passed from trusted proxies only."),
            ("x-client-ip", "Passed from trusted proxies only."),
            ("x-client-verify", "Passed from trusted proxies only."),
            ("x-cluster-client-ip", "Passed from trusted proxies only."),
            ("x-forwarded", "Passed from trusted proxies only."),
            ("x-host", "Passed from trusted proxies only."),
            ("x-http-host-override", "Passed from trusted proxies only."),
            ("x-original-for", "Passed from trusted proxies only."),
            ("x-original-host", "Passed from trusted proxies only."),
            ("x-original-method", "Passed from trusted proxies only."),
            ("x-original-path", "Passed from trusted proxies only."),
            ("x-original-proto", "Passed from trusted proxies only."),
            ("x-original-uri", "Passed from trusted proxies only."),
            ("x-originating-ip", "Passed from trusted proxies only."),
            ("x-real-ip", "Passed from trusted proxies only."),
            ("x-remote-addr", "Passed from trusted proxies only."),
            ("x-remote-ip", "Passed from trusted proxies only."),
            ("x-remote-user", "Passed from trusted proxies only."),
            ("x-scheme", "Passed from trusted proxies only."),
            ("proxy", "Programs behind CGI use it as the proxy of their own requests (CVE-2016-5385)."),
            ("x-http-method", "Some servers read another method from it than the one that was validated."),
            ("x-http-method-override", "As `x-http-method`."),
            ("x-method-override", "As `x-http-method`."),
            ("x-original-url", "Some servers read another path from it than the one that was validated."),
            ("x-rewrite-url", "As `x-original-url`."),
            ("keep-alive", "Field of one connection; also removed from answers."),
            ("proxy-authenticate", "Field of one connection; also removed from answers."),
            ("proxy-authorization", "Field of one connection."),
            ("proxy-connection", "Field of one connection; also removed from answers."),
            ("http2-settings", "Field of one connection."),
            ("trailer", "Field of one connection; also removed from answers."),
        ],
    ),
    (
        "Set for servers",
        "Beside those that are set anew above, the filters' own, and the names of `authentication.identityHeaders`.",
        &[
            (
                "x-spillway-hops",
                "Gateways that the request has passed. One that comes back, or has passed sixteen, is refused with 508 (`listeners[].loopHeader`).",
            ),
            (
                "x-gateway-destination-endpoint",
                "Endpoints that a processor has picked ([`picksEndpoints`](../how-to/external-processing.md#let-it-pick-the-endpoints)), as it wrote them.",
            ),
            ("x-forwarded-host", "Host that the client asked for. Also sent to the server of `externalAuthorization`."),
            ("endpoint-load-metrics-format", "`JSON`: requests the server's load (`capacity.loadReports`)."),
            ("x-spillway-consumer", "Name of the consumer, for the server of `externalAuthorization`."),
            ("x-spillway-tenant", "Tenant of the consumer, for the server of `externalAuthorization`."),
            (
                "accept",
                "Set in the gateway's own requests for the key set of an issuer, and to the kind of the answer in requests that are [translated](../how-to/translation.md).",
            ),
        ],
    ),
    (
        "Answers of servers",
        "What is not named passes to the client, except `x-spillway-*`, and any header that holds a credential which the gateway sent to the server.",
        &[
            (
                "retry-after",
                "Time for which an endpoint that answered a status of `capacity.statuses` counts as full, at most `maxFullFor`. Set in refusals with 429 and 503, in whole seconds.",
            ),
            ("retry-after-ms", "The same in milliseconds. Set beside `retry-after`."),
            (
                "sec-websocket-accept",
                "Proof that a server of WebSocket has read the nonce; verified. Not sent over HTTP/2.",
            ),
            ("date", "Clock of the server, for a `retry-after` that is a date."),
            (
                "endpoint-load-metrics",
                "Load of the server (ORCA); with `capacity.loadReports` removed before the answer goes on.",
            ),
            (
                "grpc-status",
                "Status of a gRPC call, read by health checks, where an error text is masked, and for errors of servers over HTTP/2. Set in refusals of gRPC calls, in the trailers of their answers that break, and in those of built-in models.",
            ),
            ("grpc-message", "Message of such a refusal, percent-encoded."),
            (
                "grpc-retry-pushback-ms",
                "Wait of such a refusal in milliseconds, for clients with a retry policy; `-1` where others get `x-should-retry: false`. Of a server that is full, read as `retry-after-ms`.",
            ),
            (
                "www-authenticate",
                "`Bearer realm=\"spillway\"` in refusals with 401, `Basic` with `realm` and `charset` by the filter `basicAuth`, `Bearer` at the admin address.",
            ),
            ("content-language", "Removed with the text of an error that is withheld (`upstream_error_withheld`)."),
            ("content-location", "As `content-language`. Changed by the filter `publicLocation`."),
            ("refresh", "Changed by the filter `publicLocation`."),
            ("set-cookie", "Domain and path of each are changed by the filter `publicLocation`."),
            ("content-disposition", "As `content-language`."),
            ("content-range", "As `content-language`."),
            ("last-modified", "As `content-language`."),
            (
                "etag",
                "Removed where the gateway changes the bytes of an answer; made weak by the filter `compression`.",
            ),
            ("accept-ranges", "As `etag`."),
            ("digest", "As `etag`."),
        ],
    ),
    (
        "Set in answers",
        "Beside `x-request-id`, which every answer has.",
        &[
            (
                "x-spillway-served-by",
                "`builtin/NAME` where a built-in model answered; after a spill to a backend, the name of that.",
            ),
            (
                "x-spillway-dropped",
                "Fields of the request that the server which answered did not get (`backends[].dropFields`, translation), or that the built-in model does not know and has ignored; other marks than letters, digits and `_-.[]` are percent-encoded.",
            ),
            (
                "x-spillway-cache",
                "`hit`: the answer was kept by the filter `cache`. `miss`: it was not there, and is kept if it can be.",
            ),
            (
                "x-spillway-prompt-version",
                "Version of the prompt that the filter `promptTemplate` put into the request.",
            ),
            ("age", "Seconds since an answer that was kept came from its server."),
            (
                "server-timing",
                "Milliseconds in the queue, with servers and built-in models, and in the gateway, until the head of the answer (`telemetry.serverTiming`). A field of the server stays beside it.",
            ),
            (
                "allow",
                "Methods of the path, where another one asks for that of [feedback](../how-to/feedback.md), or for one of [files and batches](../how-to/batches.md) (405).",
            ),
            (
                "x-ratelimit-limit-requests",
                "Requests of the caller's tightest limit on requests. Replaces the server's own value.",
            ),
            ("x-ratelimit-remaining-requests", "Requests that are left of it."),
            ("x-ratelimit-reset-requests", "Time until it is full again, such as `12ms` or `6m0s`."),
            ("x-ratelimit-limit-tokens", "Tokens of the caller's tightest limit on tokens."),
            ("x-ratelimit-remaining-tokens", "Tokens that are left of it."),
            ("x-ratelimit-reset-tokens", "Time until it is full again."),
            (
                "anthropic-ratelimit-requests-limit",
                "In place of `x-ratelimit-limit-requests` for callers of Anthropic's API.",
            ),
            ("anthropic-ratelimit-requests-remaining", "Requests that are left of it."),
            ("anthropic-ratelimit-requests-reset", "Time at which it is full again (RFC 3339)."),
            ("anthropic-ratelimit-tokens-limit", "In place of `x-ratelimit-limit-tokens`, likewise."),
            ("anthropic-ratelimit-tokens-remaining", "Tokens that are left of it."),
            ("anthropic-ratelimit-tokens-reset", "Time at which it is full again (RFC 3339)."),
            ("request-id", "Id of the request, as `x-request-id`, for callers of Anthropic's API."),
            ("ratelimit", "The same as the IETF's draft has it."),
            ("ratelimit-policy", "Limits behind `ratelimit`."),
            (
                "x-should-retry",
                "`false` in a refusal with 429 or 503 and more than 2 s to wait, except for a caller's own rate limit: OpenAI's clients obey it and do not sleep.",
            ),
            (
                "cache-control",
                "`no-store`, in answers of built-in models, to health checks of listeners, and at the admin address. What a server says there, and a caller, is honoured by the filter `cache`. In answers of servers, `no-transform` forbids the filter `compression`.",
            ),
            ("x-content-type-options", "`nosniff`, at the admin address."),
            ("location", "Of the filter `redirect`. That of a server is changed by `publicLocation`."),
            ("strict-transport-security", "Of the filter `strictTransportSecurity`."),
            ("access-control-allow-origin", "Of the filter `cors`."),
            ("access-control-allow-credentials", "Of the filter `cors`."),
            ("access-control-allow-methods", "Of the filter `cors`."),
            ("access-control-allow-headers", "Of the filter `cors`."),
            ("access-control-expose-headers", "Of the filter `cors`."),
            ("access-control-max-age", "Of the filter `cors`."),
            (
                "vary",
                "Of the filter `cors`: `Origin`, and in a preflight the headers that were asked for. Of the filter `compression`: `accept-encoding`.",
            ),
        ],
    ),
    (
        "Set in notifications",
        "As [Standard Webhooks](https://www.standardwebhooks.com) names them ([notifications](../how-to/notifications.md)).",
        &[
            ("webhook-id", "Id of the event, the same at every attempt: a receiver drops what it has seen."),
            ("webhook-timestamp", "Unix time of the attempt in seconds, which is signed."),
            ("webhook-signature", "`v1,` and the HMAC-SHA256 of id, timestamp and body, in Base64."),
        ],
    ),
    (
        "Admin address",
        "",
        &[
            ("x-spillway-admin", "`1` is required by every change, so that no web page can make one."),
            (
                "x-spillway-playground-key",
                "Key of the caller as whom an operator chats with a route, passed on and not kept.",
            ),
            ("x-spillway-playground", "`route`: the answer is that of the route which an operator chats with."),
            ("if-none-match", "`ETag` of a file of the dashboard that the browser has: 304 while it is the same."),
            (
                "content-security-policy",
                "Policy of the dashboard, which loads and asks only the admin address; everything else is no page.",
            ),
            ("cross-origin-opener-policy", "`same-origin`, with the dashboard."),
            ("referrer-policy", "`no-referrer`, with the dashboard."),
        ],
    ),
];

/// Names in which only some server's credential is known: not read, only kept out of logs and answers. Also names of other things
/// than headers.
const NOT_ROWS: &[&str] = &[
    "x-amz-security-token",
    "x-gateway-destination-endpoint-served",
    "x-goog-api-key",
    "x-www-form-urlencoded",
    "x-gzip",
];

fn found() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files(&["gateway/src", "plugins", "config/src/header_names.rs"]) {
        for (at, _) in file.code.match_indices("header::") {
            let name: String =
                file.code[at + 8..].chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            // `header::HeaderMap` begins so, too.
            if name.len() > 1 {
                names.insert(name.to_ascii_lowercase().replace('_', "-"));
            }
        }
        for part in file.code.split("HeaderName::from_static(").skip(1) {
            names.extend(part.starts_with('"').then(|| literals(part).remove(0)));
        }
        let is_list = file.path.ends_with("header_names.rs");
        let is_header = |text: &String| {
            let is_plain = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            is_plain && !text.ends_with('-') && text.len() > 3 && (is_list || text.starts_with("x-"))
        };
        names.extend(literals(&file.code).into_iter().filter(is_header));
    }
    names.retain(|name| !NOT_ROWS.contains(&name.as_str()));
    names
}

/// Renders the page.
pub(super) fn page() -> String {
    let found = found();
    let rows: Vec<&str> = GROUPS.iter().flat_map(|(_, _, rows)| rows.iter().map(|(name, _)| *name)).collect();
    compare("headers", &rows, found.iter().map(String::as_str));
    let mut page = format!(
        "# Headers

{GENERATED}

Every header that the gateway itself reads, sets or removes. What is not here passes in both directions. A header in which callers put
credentials is a credential whatever its name, where `authentication.apiKey.headers` has it.
"
    );
    for (title, text, rows) in GROUPS {
        write!(page, "\n## {title}\n\n").unwrap();
        if !text.is_empty() {
            write!(page, "{text}\n\n").unwrap();
        }
        page.push_str("| header | |\n|---|---|\n");
        for (name, text) in *rows {
            writeln!(page, "| `{name}` | {} |", cell(text)).unwrap();
        }
    }
    page
}
