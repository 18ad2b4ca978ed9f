//! Credentials of callers end at the gateway, headers of the gateway come from no other source, and values from the
//! environment are shown nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use spillway_tests::{
    Gateway, Issuer, IssuerKey, Seen, Upstream, encoded, eventually, head_of_a_request, http2_over, new_key,
};
use spillway_tests::{raw, reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Headers of a request, owned.
type Headers = Vec<(String, String)>;

fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Sends a request over HTTP/1.1 or HTTP/2 and returns its status.
async fn send(gateway: &Gateway, http2: bool, path: &str, headers: &Headers) -> u16 {
    if http2 {
        let mut client = http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await;
        let mut request = Request::get(format!("http://a.test{path}"));
        for (name, value) in headers {
            request = request.header(name.to_ascii_lowercase(), value);
        }
        return client.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap().status().as_u16();
    }
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    client.send(client.request("GET", path, &headers, "")).await.status.as_u16()
}

async fn start(yaml: &str) -> Gateway {
    let listeners = "listeners:
  - {name: h2c, address: \"127.0.0.1:0\", protocol: h2c}
  - {name: plain, address: \"127.0.0.1:0\"}\n";
    Gateway::start_in(tempfile::tempdir().unwrap(), &format!("{listeners}{yaml}")).await
}

/// True if a header of the request contains the text.
fn holds(seen: &Seen, text: &str) -> bool {
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("user:{text}"));
    seen.headers.values().any(|value| {
        let value = String::from_utf8_lossy(value.as_bytes());
        value.contains(text) || value.contains(&basic)
    })
}

#[tokio::test]
async fn a_key_of_the_gateway_reaches_no_server_whatever_header_holds_it() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    let url = upstream.url();
    let route = |name: &str, mode: &str, backend: &str| {
        format!(
            "  - {{name: {name}-{backend}, matches: [{{path: {{prefix: /{name}/{backend}}}}}], authentication: {mode}, \
             backendRefs: [{{name: {backend}}}]}}\n"
        )
    };
    let pairs = [("closed", "required"), ("optional", "optional"), ("open", "none")];
    let with = |pass: &str| {
        let routes: String = pairs
            .iter()
            .flat_map(|(name, mode)| ["removes", "passes"].map(|backend| route(name, mode, backend)))
            .collect();
        format!(
            "backends:
  - {{name: removes, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: passes, endpoints: [{{url: \"{url}\"}}]{pass}}}
consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}]}}]
authentication: {{apiKey: {{headers: [authorization, x-api-key, api-key, x-team-key]}}}}
routes:\n{routes}"
        )
    };
    let gateway = start(&with(", callerCredentials: pass")).await;
    let bearer = format!("Bearer {key}");
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("user:{key}")));
    let tries: Vec<Headers> = vec![
        headers(&[("authorization", &bearer)]),
        headers(&[("x-api-key", &key)]),
        headers(&[("authorization", &bearer), ("x-api-key", &key)]),
        headers(&[("authorization", &bearer), ("x-api-key", &key), ("api-key", &key), ("x-team-key", &key)]),
        headers(&[("authorization", &bearer), ("authorization", &bearer)]),
        headers(&[("x-team-key", &key), ("X_Api_Key", &key), ("api_key", &key), ("x.team.key", &key)]),
        headers(&[("x-api-key", &key), ("x-other", &key)]),
        headers(&[("x-api-key", &key), ("x-other", &format!("token={key};"))]),
        headers(&[("x-api-key", &key), ("cookie", &format!("a=b; key={key}"))]),
        headers(&[("x-api-key", &key), ("proxy-authorization", &bearer)]),
    ];
    let mut reached = 0;
    for http2 in [false, true] {
        for (name, _) in pairs {
            for backend in ["removes", "passes"] {
                for tried in &tries {
                    // An open route identifies no caller: only the usual credential headers are recognised there.
                    if name == "open" && tried.iter().any(|(name, _)| matches!(name.as_str(), "x-other" | "cookie")) {
                        continue;
                    }
                    let status = send(&gateway, http2, &format!("/{name}/{backend}/x"), tried).await;
                    assert_eq!(status, 200, "{name} {backend} {tried:?}");
                    let seen = upstream.last();
                    assert!(!holds(&seen, &key), "{name} {backend} http2 {http2} {tried:?}: {:?}", seen.headers);
                    reached += 1;
                }
            }
        }
    }
    assert_eq!(reached, upstream.count());
    // A credential that is no key is not examined on an open route, and is removed all the same.
    for backend in ["removes", "passes"] {
        assert_eq!(
            send(&gateway, false, &format!("/open/{backend}/x"), &headers(&[("authorization", &basic)])).await,
            200
        );
        assert!(!holds(&upstream.last(), &key), "{backend}: {:?}", upstream.last().headers);
    }
}

#[tokio::test]
async fn credentials_of_callers_reach_servers_only_where_the_backend_says_so() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (issuer, signer) = (Issuer::start().await, IssuerKey::new("one"));
    issuer.shows(&[&signer]);
    let (key, digest) = new_key();
    let url = upstream.url();
    let gateway = start(&format!(
        "backends:
  - {{name: removes, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: passes, endpoints: [{{url: \"{url}\"}}], callerCredentials: pass}}
  - {{name: own, endpoints: [{{url: \"{url}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}]}}]
authentication:
  apiKey: {{headers: [x-gateway-key, x-api-key]}}
  jwt: [{{issuer: \"{issuer}\", audiences: [spillway], claims: {{consumer: sub}}}}]
routes:
  - {{name: removes, matches: [{{path: {{prefix: /removes}}}}], authentication: optional, backendRefs: [{{name: removes}}]}}
  - {{name: passes, matches: [{{path: {{prefix: /passes}}}}], authentication: optional, backendRefs: [{{name: passes}}]}}
  - {{name: open, matches: [{{path: {{prefix: /open}}}}], authentication: none, backendRefs: [{{name: passes}}]}}
  - {{name: own, matches: [{{path: {{prefix: /own}}}}], authentication: none, backendRefs: [{{name: own}}]}}
",
        issuer = issuer.url(),
    ))
    .await;
    let up = |name: &str| upstream.last().headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let foreign = [("authorization", "Bearer sk-at-the-server"), ("api-key", "another-at-the-server")];
    for (path, with_key, passes) in [
        ("/removes/x", false, false),
        ("/removes/x", true, false),
        ("/passes/x", false, true),
        ("/passes/x", true, true),
        ("/open/x", false, true),
        ("/open/x", true, true),
    ] {
        let mut sent = headers(&foreign);
        if with_key {
            sent.push(("x-gateway-key".to_owned(), key.clone()));
        }
        assert_eq!(send(&gateway, false, path, &sent).await, 200, "{path}");
        assert_eq!(up("authorization"), passes.then(|| "Bearer sk-at-the-server".to_owned()), "{path} {with_key}");
        assert_eq!(up("api-key"), passes.then(|| "another-at-the-server".to_owned()), "{path} {with_key}");
        assert_eq!(up("x-gateway-key"), None, "{path} {with_key}");
    }
    // The backend's credentials replace all others.
    assert_eq!(send(&gateway, false, "/own/x", &headers(&foreign)).await, 200);
    assert_eq!((up("authorization"), up("api-key")), (Some("Bearer upstream-secret".to_owned()), None));

    // A token addressed to the gateway is removed, one for another audience passes.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let token = |audience: &str| {
        signer.token(&serde_json::json!({"iss": issuer.url(), "sub": "me", "aud": [audience], "exp": now + 600}))
    };
    for (audience, passes) in [("spillway", false), ("server", true)] {
        let token = token(audience);
        for sent in [headers(&[("api-key", &token)]), headers(&[("x-token", &format!("Bearer {token}"))])] {
            assert_eq!(send(&gateway, false, "/open/x", &sent).await, 200);
            assert_eq!(holds(&upstream.last(), &token), passes, "{audience} {:?}", sent[0].0);
        }
    }
    // Nor does a key in a header that is not used for keys.
    assert_eq!(send(&gateway, false, "/open/x", &headers(&[("x-any", &key)])).await, 200);
    assert!(!holds(&upstream.last(), &key));
}

#[tokio::test]
async fn credentials_that_another_server_exchanges_take_the_place_of_the_callers() {
    let upstream = Upstream::fixed(200, "{}").await;
    let exchanged = [("authorization", "Bearer exchanged"), ("api-key", "exchanged-too")];
    let authorizer = Upstream::start(move |_| async move { Some(reply(200, &exchanged, "")) }).await;
    let (key, digest) = new_key();
    let (url, asked) = (upstream.url(), authorizer.url());
    let gateway = start(&format!(
        "backends:
  - {{name: passes, endpoints: [{{url: \"{url}\"}}], callerCredentials: pass}}
  - {{name: removes, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: own, endpoints: [{{url: \"{url}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}]}}]
routes:
  - name: exchanged
    matches: [{{path: {{prefix: /exchanged}}}}]
    filters: [{{externalAuthorization: {{url: \"{asked}\", timeout: 5s, copyToRequest: [authorization, api-key]}}}}]
    backendRefs: [{{name: removes}}]
  - name: own
    matches: [{{path: {{prefix: /own}}}}]
    filters: [{{externalAuthorization: {{url: \"{asked}\", timeout: 5s, copyToRequest: [authorization, api-key]}}}}]
    backendRefs: [{{name: own}}]
  - {{name: open, matches: [{{path: {{prefix: /open}}}}], authentication: none, backendRefs: [{{name: passes}}]}}
"
    ))
    .await;
    let sent = headers(&[("authorization", &format!("Bearer {key}"))]);
    for (path, expected) in [("/exchanged", Some("Bearer exchanged")), ("/own", Some("Bearer upstream-secret"))] {
        assert_eq!(send(&gateway, false, path, &sent).await, 200, "{path}");
        let seen = upstream.last();
        let values: Vec<_> = seen.headers.get_all("authorization").iter().collect();
        assert_eq!(values, expected.into_iter().collect::<Vec<_>>(), "{path}");
        // The backend's credentials replace all others.
        assert_eq!(seen.headers.contains_key("api-key"), path == "/exchanged", "{path}");
        // The authorization server gets the configured headers.
        assert_eq!(authorizer.last().headers["authorization"], format!("Bearer {key}"));
    }
    // A header set by a filter of any route is removed from callers' requests.
    assert_eq!(send(&gateway, false, "/open", &headers(&[("authorization", "Bearer forged")])).await, 200);
    assert!(!upstream.last().headers.contains_key("authorization"));
}

#[tokio::test]
async fn copies_stand_ins_and_further_tries_carry_no_more_than_the_first() {
    let (first, copies, other) =
        (Upstream::fixed(503, "busy").await, Upstream::fixed(200, "").await, Upstream::fixed(200, "other").await);
    let (key, digest) = new_key();
    let gateway = start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{statuses: [503]}}, callerCredentials: pass}}
  - {{name: y, endpoints: [{{url: \"{}\"}}], callerCredentials: pass}}
  - {{name: z, endpoints: [{{url: \"{}\"}}], callerCredentials: pass}}
consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}]}}]
routes:
  - name: r
    authentication: none
    filters:
      - mirror: {{backend: y}}
      - requestHeaders: {{set: {{authorization: Bearer of-the-file}}}}
    backendRefs: [{{name: x}}]
    retry: {{attempts: 1, on: [\"503\"], hedge: {{after: 10s, max: 1}}}}
    whenSaturated: {{spillTo: z}}
",
        first.url(),
        copies.url(),
        other.url()
    ))
    .await;
    let sent = headers(&[("x-api-key", "sk-at-the-server"), ("api-key", &key), ("cookie", "a=b"), ("x-kept", "yes")]);
    assert_eq!(send(&gateway, false, "/", &sent).await, 200);
    eventually("the copy has come", || async { (copies.count() == 1).then_some(()) }).await;
    let seen = first.last();
    assert_eq!(
        (&seen.headers["x-api-key"], &seen.headers["authorization"]),
        (&"sk-at-the-server".parse().unwrap(), &"Bearer of-the-file".parse().unwrap())
    );
    assert!(!holds(&seen, &key) && seen.headers.contains_key("cookie"));
    for (name, seen) in [("copy", copies.last()), ("stand-in", other.last())] {
        assert_eq!(seen.headers["x-kept"], "yes", "{name}");
        for header in ["authorization", "x-api-key", "api-key", "cookie"] {
            assert!(!seen.headers.contains_key(header), "{name}: {header}");
        }
    }
}

#[tokio::test]
async fn too_many_on_the_callers_own_account_is_for_the_caller() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let upstream = Upstream::start(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Some(reply(429, &[("retry-after", "60")], "too many")) }
    })
    .await;
    let url = upstream.url();
    let gateway = start(&format!(
        "backends:
  - {{name: passes, endpoints: [{{url: \"{url}\"}}], capacity: {{statuses: [429], maxFullFor: 60s}}, callerCredentials: pass}}
  - {{name: removes, endpoints: [{{url: \"{url}\"}}], capacity: {{statuses: [429], maxFullFor: 60s}}}}
routes:
  - {{name: passes, matches: [{{path: {{prefix: /passes}}}}], backendRefs: [{{name: passes}}]}}
  - {{name: removes, matches: [{{path: {{prefix: /removes}}}}], backendRefs: [{{name: removes}}]}}
"
    ))
    .await;
    let sent = headers(&[("authorization", "Bearer sk-at-the-server")]);
    for n in 1..=2 {
        assert_eq!(send(&gateway, false, "/passes", &sent).await, 429);
        assert_eq!(requests.load(Ordering::Relaxed), n, "the server is not full for others");
    }
    // The server is full for the gateway's account: the first request learns it, the second is not sent.
    for _ in 0..2 {
        assert_eq!(send(&gateway, false, "/removes", &sent).await, 503);
        assert_eq!(requests.load(Ordering::Relaxed), 3);
    }
}

#[tokio::test]
async fn names_that_a_server_could_take_for_the_gateways_own_do_not_pass() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway = start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
authentication: {{identityHeaders: {{consumer: x-caller}}}}
routes:
  - name: told
    matches: [{{path: {{prefix: /told}}}}]
    authentication: none
    filters:
      - cel: {{deny: \"'x-caller' in request.headers || 'x-spillway-consumer' in request.headers\", status: 418, message: forged}}
    backendRefs: [{{name: x}}]
  - name: r
    authentication: none
    filters:
      - requestHeaders: {{set: {{x-set: ours}}, remove: [x-internal]}}
    backendRefs: [{{name: x}}]
",
        upstream.url()
    ))
    .await;
    let forged = [
        "content_length",
        "Content_Type",
        "content_encoding",
        "transfer_encoding",
        "proxy_authorization",
        "x_forwarded_for",
        "x-forwarded_host",
        "X_Forwarded-Proto",
        "x.forwarded.for",
        "x_request_id",
        "x_api_key",
        "x_spillway_consumer",
        "x-spillway_fallback",
        "X.Spillway.Tenant",
        "x_caller",
        "x.caller",
        "x_set",
        "x.set",
        "x_internal",
        "x-internal",
        "x-original-url",
        "X-Rewrite-URL",
        "x_rewrite_url",
        "x-http-method",
        "X-HTTP-Method-Override",
        "x-method-override",
        "proxy",
        "x-real-ip",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-scheme",
        "x-forwarded-ssl",
        "x-forwarded-server",
        "true-client-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "CF-Connecting-IP",
    ];
    let sent: Headers = forged.iter().map(|name| ((*name).to_owned(), "6.6.6.6".to_owned())).collect();
    let honest = [("my_header", "kept"), ("x-kept", "kept"), ("user_agent", "kept"), ("x.y_z", "kept")];
    let sent: Headers = sent.into_iter().chain(headers(&honest)).collect();
    for http2 in [false, true] {
        assert_eq!(send(&gateway, http2, "/", &sent).await, 200);
        let seen = upstream.last();
        assert!(!holds(&seen, "6.6.6.6"), "http2 {http2}: {:?}", seen.headers);
        for (name, value) in honest {
            assert_eq!(seen.headers[name], value, "http2 {http2}: {name}");
        }
        assert_eq!(
            (&seen.headers["x-set"], &seen.headers["x-forwarded-for"]),
            (&"ours".parse().unwrap(), &"127.0.0.1".parse().unwrap())
        );
        // Filters that read requests do not see them either.
        for name in ["x-caller", "X_Caller", "x-spillway-consumer", "x_spillway-consumer"] {
            assert_eq!(send(&gateway, http2, "/told", &headers(&[(name, "root")])).await, 200, "http2 {http2}: {name}");
        }
    }
}

/// HTTP/2 server whose answer claims to be the gateway's, in its head and trailers, and repeats the credential that
/// it got in its trailers.
async fn boasting_http2() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async {
                let shown = request.headers().get("authorization").cloned();
                let _ = request.into_body().collect().await;
                let claims = |headers: &mut HeaderMap| {
                    for name in ["x-spillway-served-by", "x_spillway_served_by", "x.spillway-dropped"] {
                        headers.insert(http::HeaderName::from_static(name), "boast".parse().unwrap());
                    }
                };
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                if let Some(shown) = shown {
                    trailers.insert("grpc-message", shown);
                }
                claims(&mut trailers);
                let frames = [Ok::<_, std::io::Error>(Frame::data(Bytes::from("ok"))), Ok(Frame::trailers(trailers))];
                let mut answer = Response::new(StreamBody::new(futures::stream::iter(frames)));
                answer.headers_mut().insert("x-kept", "kept".parse().unwrap());
                claims(answer.headers_mut());
                Ok::<_, std::io::Error>(answer)
            });
            tokio::spawn(async move {
                let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = serve.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

#[tokio::test]
async fn a_server_does_not_speak_in_the_gateways_name() {
    const CLAIMS: &str = "x-spillway-served-by: boast\r\nX_Spillway_Served_By: boast\r\nx.spillway-dropped: boast\r\n";
    let http1 = raw(|mut stream| async move {
        head_of_a_request(&mut stream).await;
        let hints = format!("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n{CLAIMS}\r\n");
        let answer =
            format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\nx-kept: kept\r\n{CLAIMS}\r\nok");
        let _ = stream.write_all((hints + &answer).as_bytes()).await;
    })
    .await;
    let http2 = boasting_http2().await;
    let gateway = start(&format!(
        "backends:
  - {{name: one, endpoints: [{{url: \"{http1}\"}}]}}
  - {{name: two, http2: true, endpoints: [{{url: \"{http2}\"}}]}}
routes:
  - {{name: one, matches: [{{path: {{prefix: /one}}}}], backendRefs: [{{name: one}}]}}
  - {{name: two, matches: [{{path: {{prefix: /two}}}}], backendRefs: [{{name: two}}]}}
"
    ))
    .await;
    for path in ["/one", "/two"] {
        let mut stream = TcpStream::connect(gateway.listener("plain")).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("200 OK") && answer.contains("kept"), "{path}: {answer}");
        assert!(!answer.contains("boast"), "{path}: {answer}");
        assert_eq!(answer.contains("HTTP/1.1 103 "), path == "/one", "{path}: {answer}");

        let mut client = http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await;
        let request = Request::get(format!("http://a.test{path}")).body(Full::new(Bytes::new())).unwrap();
        let (head, body) = client.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap();
        assert_eq!(head.headers["x-kept"], "kept");
        let trailers = body.trailers().cloned().unwrap_or_default();
        assert_eq!(trailers.contains_key("grpc-status"), path == "/two");
        for headers in [&head.headers, &trailers] {
            assert!(headers.values().all(|value| value != "boast"), "{path}: {headers:?}");
        }
    }
}

#[tokio::test]
async fn an_error_that_repeats_the_gateways_credential_does_not_tell_it() {
    const SECRET: &str = "upstream-secret";
    let upstream = Upstream::start(|seen| async move {
        let shown = seen.headers["authorization"].to_str().unwrap().to_owned();
        let realm = format!("Bearer realm=\"{shown}\"");
        let body = format!("{{\"error\":\"incorrect key {shown}, {shown}\"}}");
        Some(reply(401, &[("www-authenticate", &realm), ("x-kept", "kept")], body))
    })
    .await;
    let two = boasting_http2().await;
    let gateway = start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
  - {{name: two, http2: true, endpoints: [{{url: \"{two}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
routes:
  - {{name: two, matches: [{{path: {{prefix: /two}}}}], backendRefs: [{{name: two}}]}}
  - {{name: r, backendRefs: [{{name: x}}]}}
",
        upstream.url()
    ))
    .await;
    // In trailers, as in gRPC errors.
    let mut http2 = http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await;
    let request = Request::get("http://a.test/two").body(Full::new(Bytes::new())).unwrap();
    let body = http2.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    assert!(trailers.contains_key("grpc-status") && !trailers.contains_key("grpc-message"), "{trailers:?}");

    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let answer = client.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kept"), answer.cut), (401, "kept", false));
    let stars = "*".repeat(SECRET.len());
    assert_eq!(answer.text(), format!("{{\"error\":\"incorrect key Bearer {stars}, Bearer {stars}\"}}"));
    assert!(answer.headers.values().all(|value| !value.to_str().unwrap().contains(SECRET)), "{:?}", answer.headers);
}

/// A server that refuses and repeats what it was shown, in a header for each and in its body; with 200 on `/fine`.
async fn repeating() -> Upstream {
    Upstream::start(|seen| async move {
        let shown: Vec<(String, String)> =
            ["authorization", "x-api-key", "x-vendor-token", "x-vendor", "cookie", "x-user"]
                .iter()
                .filter_map(|name| {
                    Some((format!("x-seen-{name}"), seen.headers.get(*name)?.to_str().unwrap().to_owned()))
                })
                .collect();
        let values: Vec<&str> = shown.iter().map(|(_, value)| value.as_str()).collect();
        let body = format!("no good: {}", values.join(" | "));
        let headers: Vec<(&str, &str)> = shown.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        Some(reply(if seen.path.ends_with("/fine") { 200 } else { 401 }, &headers, body))
    })
    .await
}

#[tokio::test]
async fn an_error_does_not_tell_what_filters_and_other_servers_put_on_a_request() {
    let upstream = repeating().await;
    let authorizer = Upstream::start(|_| async {
        let given = [("authorization", "Bearer exchanged-token"), ("x-user", "someone@example.org")];
        Some(reply(200, &given, ""))
    })
    .await;
    let (key, digest) = new_key();
    let gateway = start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}], callerCredentials: pass}}
consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}]}}]
routes:
  - name: set
    matches: [{{path: {{prefix: /set}}}}]
    authentication: none
    filters: [{{requestHeaders: {{set: {{x-api-key: key-of-the-file, cookie: session=of-the-file}}}}}}]
    backendRefs: [{{name: x}}]
  - name: add
    matches: [{{path: {{prefix: /add}}}}]
    authentication: none
    filters: [{{requestHeaders: {{add: {{authorization: \"Basic dXNlcjpwYXNzd29yZC1vZi1maWxl\", x-vendor-token: token-of-the-file}}}}}}]
    backendRefs: [{{name: x}}]
  - name: environment
    matches: [{{path: {{prefix: /environment}}}}]
    authentication: none
    filters:
      - cel: {{deny: \"false\", status: 403, message: no}}
      - requestHeaders: {{set: {{x-vendor: \"id={{route}} key=${{TEST_SECRET}}\", x-user: plain-user-of-the-file}}}}
    backendRefs: [{{name: x}}]
  - name: exchanged
    matches: [{{path: {{prefix: /exchanged}}}}]
    filters: [{{externalAuthorization: {{url: \"{}\", timeout: 5s, copyToRequest: [authorization, x-user]}}}}]
    backendRefs: [{{name: x}}]
  - {{name: passed, authentication: none, backendRefs: [{{name: x}}]}}
",
        upstream.url(),
        authorizer.url()
    ))
    .await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let bearer = format!("Bearer {key}");
    let get = async |path: &str, headers: &[(&str, &str)]| {
        let answer = client.send(client.request("GET", path, headers, "")).await;
        let seen: Vec<String> =
            answer.headers.keys().map(ToString::to_string).filter(|n| n.starts_with("x-seen")).collect();
        (answer.status.as_u16(), answer.text(), seen.join(" "))
    };
    let stars = |text: &str| "*".repeat(text.len());
    for (path, sent, body, seen) in [
        ("/set", &[][..], format!("{} | session={}", stars("key-of-the-file"), stars("of-the-file")), ""),
        ("/add", &[], format!("Basic {} | {}", stars("dXNlcjpwYXNzd29yZC1vZi1maWxl"), stars("token-of-the-file")), ""),
        (
            "/environment",
            &[],
            format!("id=environment key={} | plain-user-of-the-file", stars("upstream-secret")),
            "x-seen-x-user",
        ),
        (
            "/exchanged",
            &[("authorization", bearer.as_str())],
            format!("Bearer {} | someone@example.org", stars("exchanged-token")),
            "x-seen-x-user",
        ),
        // What a caller brings itself it may see again.
        ("/passed", &[("x-api-key", "key-of-the-caller")], "key-of-the-caller".to_owned(), "x-seen-x-api-key"),
    ] {
        assert_eq!(get(path, sent).await, (401, format!("no good: {body}"), seen.to_owned()), "{path}");
    }
    // A good answer says what it says; only what is a credential by its name is looked for in its head.
    let (status, _, seen) = get("/environment/fine", &[]).await;
    assert_eq!((status, seen.as_str()), (200, "x-seen-x-vendor x-seen-x-user"));
    assert_eq!(get("/set/fine", &[]).await.2, "");
}

#[tokio::test]
async fn early_hints_that_repeat_the_gateways_credential_do_not_tell_it() {
    let upstream = raw(|mut stream| async move {
        let mut head = [0; 4096];
        let read = stream.read(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head[..read]).into_owned();
        let shown = head.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap_or("nothing");
        let shown = shown.trim();
        let hint = |value: &str| format!("HTTP/1.1 103 {value}\r\nlink: </{value}.css>\r\nx-kept: kept\r\n\r\n");
        let hints = hint(shown) + &hint(&shown.replace('-', "%2D"));
        let answer = format!("HTTP/1.1 401 {shown}\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno");
        let _ = stream.write_all((hints + &answer).as_bytes()).await;
    })
    .await;
    let gateway = start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{upstream}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}]
routes: [{{backendRefs: [{{name: x}}]}}]
"
    ))
    .await;
    let mut stream = TcpStream::connect(gateway.listener("plain")).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 103 ").count(), 2, "{answer}");
    assert_eq!(answer.matches("x-kept: kept").count(), 2, "{answer}");
    assert!(answer.contains("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
    for secret in ["upstream-secret", "upstream%2Dsecret"] {
        assert!(!answer.to_ascii_lowercase().contains(&secret.to_ascii_lowercase()), "{answer}");
    }
}

/// A server of gRPC whose errors repeat what it is shown: in a head without a body, or in trailers on `/trailers`.
async fn grpc_refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let shown = request.headers()["authorization"].to_str().unwrap().to_owned();
                let message: String = shown.bytes().map(|byte| format!("%{byte:02x}")).collect();
                let mut status = b"\x08\x10\x12".to_vec();
                status.push(u8::try_from(shown.len()).unwrap());
                status.extend(shown.bytes());
                let details = base64::engine::general_purpose::STANDARD_NO_PAD.encode(status);
                let mut fields = HeaderMap::new();
                let named = [("grpc-status", "16"), ("grpc-message", &message), ("grpc-status-details-bin", &details)];
                for (name, value) in named.into_iter().chain([("x-kept", "kept%20as-is"), ("x-kept-bin", "aGVsbG8")]) {
                    fields.insert(http::HeaderName::from_static(name), value.parse().unwrap());
                }
                let (head, trailers) = match request.uri().path() {
                    "/trailers" => (HeaderMap::new(), Some(fields)),
                    _ => (fields, None),
                };
                let frames = trailers.map(|trailers| Ok::<_, std::io::Error>(Frame::<Bytes>::trailers(trailers)));
                let mut answer = Response::new(StreamBody::new(futures::stream::iter(frames)));
                answer.headers_mut().extend(head);
                answer.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                Ok::<_, std::io::Error>(answer)
            });
            tokio::spawn(async move {
                let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = serve.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

#[tokio::test]
async fn an_error_of_grpc_that_repeats_the_gateways_credential_does_not_tell_it() {
    let url = grpc_refusing().await;
    let gateway = start(&format!(
        "backends: [{{name: x, http2: true, endpoints: [{{url: \"{url}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}]
routes: [{{backendRefs: [{{name: x}}]}}]
"
    ))
    .await;
    for path in ["/head", "/trailers"] {
        let mut client = http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await;
        let request = Request::post(format!("http://a.test{path}")).body(Full::new(Bytes::new())).unwrap();
        let (head, body) = client.send_request(request).await.unwrap().into_parts();
        let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
        let fields = if path == "/head" { head.headers } else { trailers };
        for (name, stays) in [
            ("grpc-status", true),
            ("x-kept", true),
            ("x-kept-bin", true),
            ("grpc-message", false),
            ("grpc-status-details-bin", false),
        ] {
            assert_eq!(fields.contains_key(name), stays, "{path}: {name}: {fields:?}");
        }
    }
}

#[tokio::test]
async fn a_compressed_error_that_repeats_the_gateways_credential_does_not_tell_it() {
    // `/CODING` with 401, `/fine/CODING` with 200; `/large/CODING` is more than is decoded, `/spoiled/CODING` is cut.
    let upstream = Upstream::start(|seen| async move {
        let coding = seen.path.rsplit('/').next().unwrap().replace('+', ", ");
        let shown = seen.headers.get("authorization").map_or("nobody", |value| value.to_str().unwrap());
        let mut text = format!("{{\"error\":\"incorrect key {shown}\"}}");
        if seen.path.starts_with("/large") {
            text.push_str(&" ".repeat(1 << 20));
        }
        let mut body = encoded(&coding, text.as_bytes());
        if seen.path.starts_with("/spoiled") {
            body.truncate(body.len() / 2);
        }
        let status = if seen.path.starts_with("/fine") { 200 } else { 401 };
        let headers = [
            ("content-encoding", coding.as_str()),
            ("content-type", "application/json"),
            ("etag", "\"of-the-bytes\""),
            ("retry-after", "7"),
        ];
        Some(reply(status, &headers, if seen.method == "HEAD" { Vec::new() } else { body }))
    })
    .await;
    let url = upstream.url();
    let gateway = start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{url}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
  - {{name: y, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: open, matches: [{{headers: [{{name: x-open, exact: \"1\"}}]}}], backendRefs: [{{name: y}}]}}
  - name: hedged
    matches: [{{headers: [{{name: x-hedged, exact: \"1\"}}]}}]
    backendRefs: [{{name: x}}]
    retry: {{attempts: 0, hedge: {{after: 20s}}}}
  - {{name: r, backendRefs: [{{name: x}}]}}
"
    ))
    .await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let get = async |method: &str, path: &str, header: &str| {
        let headers: &[(&str, &str)] = if header.is_empty() { &[] } else { &[(header, "1")] };
        let answer = client.send(client.request(method, path, headers, "")).await;
        assert!(!answer.cut && !answer.text().contains("upstream-secret"), "{path}: {}", answer.text());
        assert_eq!(answer.header("retry-after"), "7", "{path}");
        answer
    };
    let stars = "*".repeat("upstream-secret".len());
    let plain = |shown: &str| format!("{{\"error\":\"incorrect key {shown}\"}}");
    for coding in ["gzip", "deflate", "br", "zstd", "identity"] {
        for header in ["", "x-hedged"] {
            let answer = get("GET", &format!("/{coding}"), header).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (401, plain(&format!("Bearer {stars}"))), "{coding}");
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.header("content-length"), answer.body.len().to_string(), "{coding}");
            if coding != "identity" {
                assert!(!answer.headers.contains_key("content-encoding") && !answer.headers.contains_key("etag"));
            }
        }
        // What no credential can be in passes as it is.
        let answer = get("GET", &format!("/{coding}"), "x-open").await;
        assert_eq!((answer.status.as_u16(), answer.header("content-encoding")), (401, coding));
        assert_eq!(answer.body, encoded(coding, plain("nobody").as_bytes()), "{coding}");
        // A good answer as well.
        let fine = client.get(&format!("/fine/{coding}")).await;
        assert_eq!((fine.status.as_u16(), fine.header("content-encoding")), (200, coding));
        assert_eq!(fine.header("etag"), "\"of-the-bytes\"");
    }
    let head = get("HEAD", "/gzip", "").await;
    assert_eq!((head.status.as_u16(), head.header("content-encoding"), head.header("etag")), (401, "", ""));
    for path in ["/compress", "/gzip+br", "/gzip+gzip", "/large/gzip", "/large/br", "/large/zstd", "/spoiled/gzip"] {
        for header in ["", "x-hedged"] {
            let answer = get("GET", path, header).await;
            assert_eq!(answer.status, 401, "{path}");
            assert_eq!(answer.json()["code"], "upstream_error_withheld", "{path}");
            assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
            assert!(!answer.headers.contains_key("content-encoding") && !answer.headers.contains_key("etag"), "{path}");
        }
    }
}

/// Answers of 200 with an error that repeats a credential, and with a value of the environment behind it.
const TELLING: [(&str, &str); 9] = [
    ("error", "{\"error\":{\"message\":\"bad key upstream-secret\",\"code\":400}}"),
    ("long", "{\"error\":{\"message\":\"bad key upstream-secret\",PAD\"code\":400}}"),
    ("behind the unknown", "{\"pad\":[PAD1],\"error\":{\"message\":\"bad key upstream-secret\",\"code\":400}}"),
    ("behind an answer", "{\"choices\":[],PAD\"error\":{\"message\":\"bad key upstream-secret\",\"code\":400}}"),
    ("in a choice", "{\"id\":\"c\",\"choices\":[{\"error\":{\"message\":\"bad key upstream-secret\",\"code\":502}}]}"),
    ("first event", "data: {\"error\":{\"message\":\"bad key upstream-secret\",\"code\":400}}\n\n"),
    (
        "later event",
        "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: {\"error\":{\"message\":\"key upstream-secret\"}}\n\n",
    ),
    ("behind a comment", ": busy\n\ndata: {\"error\":{\"message\":\"bad key upstream-secret\",\"code\":400}}\n\n"),
    ("event without an end", "data: {\"choices\":[]}\n\ndata: {\"error\":{\"message\":\"bad key upstream-secret\"}}"),
];

fn telling(kind: &str) -> String {
    let body = TELLING.iter().find(|(name, _)| *name == kind).unwrap().1;
    body.replace("PAD", &" ".repeat(20_000))
}

#[tokio::test]
async fn an_error_in_an_answer_of_200_does_not_tell_a_credential_in_any_coding() {
    let upstream = Upstream::start(|seen| async move {
        let of = |name: &str| seen.headers[name].to_str().unwrap().to_owned();
        let (kind, coding) = (of("x-kind"), of("x-coding"));
        let body = telling(&kind);
        let content = if body.starts_with('{') { "application/json" } else { "text/event-stream" };
        let headers = [("content-type", content), ("content-encoding", &*coding), ("etag", "\"of-the-bytes\"")];
        // Flushed in two parts, the first of which may hold all that is telling.
        let (parts, receiver) = tokio::sync::mpsc::channel(2);
        let mut whole = Bytes::from(encoded(&coding, body.as_bytes()));
        let first = whole.split_to(whole.len() - 3);
        for part in [first, whole] {
            parts.send(Ok(part)).await.unwrap();
        }
        Some(spillway_tests::streamed(&headers, receiver))
    })
    .await;
    let gateway = start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}]
routes: [{{backendRefs: [{{name: x}}], retry: {{attempts: 0}}}}]
",
        upstream.url()
    ))
    .await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let stars = "*".repeat("upstream-secret".len());
    for (kind, _) in TELLING {
        for coding in ["identity", "gzip", "deflate", "br", "zstd"] {
            for path in ["/v1/chat/completions", "/v1/embeddings"] {
                let headers = [
                    ("content-type", "application/json"),
                    ("accept-encoding", "gzip, br"),
                    ("x-kind", kind),
                    ("x-coding", coding),
                ];
                let answer = client.post(path, &headers, "{\"model\":\"m\",\"stream\":true,\"input\":\"x\"}").await;
                let expected = telling(kind).replace("upstream-secret", &stars);
                assert_eq!((answer.status.as_u16(), answer.cut), (200, false), "{kind} in {coding}");
                assert!(answer.text() == expected, "{kind} in {coding}: {}", answer.text().replace("  ", ""));
                if coding != "identity" {
                    assert!(["content-encoding", "etag"].iter().all(|name| answer.header(name).is_empty()), "{coding}");
                }
            }
            // No large window is needed for what the server was asked for.
            assert_eq!(upstream.last().headers["accept-encoding"], "gzip");
        }
    }
}

#[tokio::test]
async fn an_answer_may_have_a_value_of_the_environment_that_an_error_may_not() {
    let upstream = Upstream::start(|seen| async move {
        let shown = seen.headers["x-region"].to_str().unwrap();
        let body = match seen.headers["x-kind"].to_str().unwrap() {
            "answer" => format!("{{\"id\":\"c\",\"choices\":[{{\"message\":{{\"content\":\"{shown}\"}}}}]}}"),
            _ => format!("{{\"error\":{{\"message\":\"{shown}\"}}}}"),
        };
        Some(reply(200, &[("content-type", "application/json")], body))
    })
    .await;
    let gateway = start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - filters: [{{requestHeaders: {{set: {{x-region: \"${{TEST_SECRET}}\"}}}}}}]
    backendRefs: [{{name: x}}]
    retry: {{attempts: 0}}
",
        upstream.url()
    ))
    .await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    for (kind, is_shown) in [("answer", true), ("error", false)] {
        let headers = [("content-type", "application/json"), ("x-kind", kind)];
        let answer = client.post("/v1/chat/completions", &headers, "{\"model\":\"m\"}").await;
        assert_eq!((answer.status.as_u16(), answer.text().contains("upstream-secret")), (200, is_shown), "{kind}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_in_its_coding_is_cut_before_a_part_passes_unread() {
    let upstream = Upstream::start(|_| async {
        let body = "{\"error\":{\"message\":\"bad key upstream-secret\"}}";
        Some(reply(200, &[("content-type", "application/json"), ("content-encoding", "gzip")], body))
    })
    .await;
    let gateway = start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}]
routes: [{{backendRefs: [{{name: x}}], retry: {{attempts: 0}}}}]
",
        upstream.url()
    ))
    .await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let headers = [("content-type", "application/json")];
    let answer = client.post("/v1/chat/completions", &headers, "{\"model\":\"m\"}").await;
    assert!(answer.cut && answer.body.is_empty(), "{}: {}", answer.status, answer.text());
}

#[tokio::test]
async fn an_answer_in_a_coding_that_cannot_be_searched_is_refused() {
    let upstream = Upstream::start(|seen| async move {
        let kind = if seen.path.ends_with("messages") { "text/event-stream" } else { "application/json" };
        let body = match seen.headers["x-coding"].to_str().unwrap() {
            "gzip, gzip" => encoded("gzip", &encoded("gzip", telling("error").as_bytes())),
            _ => telling("error").into_bytes(),
        };
        let coding = seen.headers["x-coding"].clone();
        let mut answer = reply(200, &[("content-type", kind), ("etag", "\"of-the-bytes\"")], body);
        answer.headers_mut().insert("content-encoding", coding);
        Some(answer)
    })
    .await;
    let url = upstream.url();
    let gateway = start(&format!(
        "backends:
  - {{name: x, protocol: openai, endpoints: [{{url: \"{url}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
  - {{name: c, protocol: anthropic, endpoints: [{{url: \"{url}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
  - {{name: y, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: open, matches: [{{headers: [{{name: x-open, exact: \"1\"}}]}}], backendRefs: [{{name: y}}]}}
  - {{name: claude, matches: [{{path: {{exact: /v1/messages}}}}], backendRefs: [{{name: c}}]}}
  - {{name: r, backendRefs: [{{name: x}}]}}
"
    ))
    .await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let ask = async |path: &str, coding: &str, open: &str| {
        let headers = [
            ("content-type", "application/json"),
            ("accept-encoding", "compress, dcz, gzip"),
            ("x-coding", coding),
            ("x-open", open),
        ];
        client.post(path, &headers, "{\"model\":\"m\",\"max_tokens\":1,\"messages\":[]}").await
    };
    for coding in ["compress", "dcz", "gzip, gzip", "gzip, br", "aes128gcm"] {
        for path in ["/v1/chat/completions", "/v1/embeddings", "/v1/messages"] {
            let answer = ask(path, coding, "").await;
            assert_eq!((answer.status.as_u16(), answer.cut), (502, false), "{coding} on {path}: {}", answer.text());
            let told = answer.text();
            assert!(told.contains("gzip, deflate, br, zstd") && !told.contains("upstream-secret"), "{coding}: {told}");
            assert_eq!(answer.header("content-type"), "application/json", "{coding}");
            assert!(["content-encoding", "etag"].iter().all(|name| answer.header(name).is_empty()), "{coding}");
            // Such codings are not asked for.
            assert_eq!(upstream.last().headers["accept-encoding"], "gzip");
        }
        // An answer of a server that was shown nothing passes as it is.
        let answer = ask("/v1/chat/completions", coding, "1").await;
        assert_eq!((answer.status.as_u16(), answer.header("content-encoding")), (200, coding));
    }
    // These name no coding, and are read.
    for coding in ["identity", "identity, identity", "", ","] {
        let answer = ask("/v1/chat/completions", coding, "").await;
        assert_eq!((answer.status.as_u16(), answer.text().contains("upstream-secret")), (200, false), "{coding}");
        assert!(answer.text().contains("bad key ***"), "{coding}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_compressed_error_without_an_end_is_left_when_its_bound_is_reached() {
    let upstream = raw(|mut stream| async move {
        head_of_a_request(&mut stream).await;
        let head = "HTTP/1.1 500 Error\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes()).await;
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await;
    let gateway = start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{upstream}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}]
routes: [{{backendRefs: [{{name: x}}]}}]
"
    ))
    .await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    for _ in 0..3 {
        let answer = client.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.cut), (500, false));
        assert_eq!(answer.json()["code"], "upstream_error_withheld");
    }
}

#[tokio::test]
async fn values_of_the_environment_are_shown_to_nobody() {
    const SECRET: &str = "upstream-secret";
    let upstream = Upstream::fixed(200, "ok").await;
    let nobody = Upstream::nobody().await;
    let yaml = |further: &str| {
        format!(
            "backends:
  - name: x
    endpoints: [{{url: \"{}\"}}]
    credentials: {{bearer: {{env: TEST_SECRET}}}}
    healthCheck: {{http: {{path: \"/h?k=${{TEST_SECRET}}\"}}, interval: 100ms}}
consumers: [{{name: acme, keys: [{{sha256: \"{}\"}}], limits: {{budget: {{tokens: 5, per: day}}}}}}]
routes:
  - name: asked
    matches: [{{path: {{prefix: /asked}}, headers: [{{name: x-match, exact: \"${{TEST_SECRET}}\"}}]}}]
    authentication: none
    filters:
      - externalAuthorization: {{url: \"{nobody}/c/${{TEST_SECRET}}\", timeout: 5s}}
      - requestHeaders: {{set: {{x-secret: \"${{TEST_SECRET}}\", authorization: Bearer written-here}}}}
      - cel: {{deny: \"request.headers['x'] == '${{TEST_SECRET}}'\", status: 403, message: no}}
    backendRefs: [{{name: x}}]
  - {{name: r, authentication: none, backendRefs: [{{name: x}}]}}
{further}",
            upstream.url(),
            "0".repeat(64)
        )
    };
    let gateway = start(&yaml("")).await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let asked = client.send(client.request("GET", "/asked", &[("x-match", SECRET)], "")).await;
    assert_eq!(asked.status, 403);
    assert!(!asked.text().contains(SECRET));
    let shown = gateway.shown("/api/config").await;
    assert!(
        shown.contains("/c/${TEST_SECRET}") && shown.contains("request.headers['x'] == '${TEST_SECRET}'"),
        "{shown}"
    );
    assert!(shown.contains("/h?k=${TEST_SECRET}") && !shown.contains("written-here"), "{shown}");

    // A rejected edit, for its content and for a part that cannot be run.
    let listeners = "listeners: [{address: \"127.0.0.1:0\"}]\n";
    for (n, further) in [
        "bogus: \"${TEST_SECRET}\"\nprices: [{model: \"${TEST_SECRET}\", input: 1, output: \"${TEST_SECRET}\"}]\n",
        "state: {budgets: {sqlite: \"spillway.yaml/${TEST_SECRET}.db\"}}\n",
    ]
    .into_iter()
    .enumerate()
    {
        let text = spillway_tests::whole(&format!("{listeners}{}", yaml(further)));
        std::fs::write(gateway.config(), &text).unwrap();
        let rejected = gateway.reloads(n).await;
        assert_eq!(rejected["event"], "config_rejected", "{rejected}");
        assert!(rejected.to_string().contains("${TEST_SECRET}"), "{rejected}");
        let out = std::process::Command::new(spillway_tests::binary())
            .arg("check")
            .arg(gateway.config())
            .env("TEST_SECRET", SECRET)
            .output()
            .unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!said.contains(SECRET), "{said}");
        for path in ["/api/config", "/api/backends", "/metrics", "/"] {
            let shown = gateway.shown(path).await;
            assert!(!shown.contains(SECRET), "{path}: {shown}");
        }
    }
    assert!(!gateway.log().contains(SECRET), "{}", gateway.log());
}
