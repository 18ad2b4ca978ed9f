//! Every example loads, and hostile or mistaken files are refused in order.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use spillway_config::{LoadOptions, load, load_text};

use crate::common::{judge, messages, options};

const GOOD: &str = "listeners: [{address: \"127.0.0.1:0\"}]
backends: [{name: a, endpoints: [{url: \"http://127.0.0.1:1\"}]}]
routes: [{backendRefs: [{name: a}]}]
";

#[test]
fn every_example_loads() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "yaml") {
            continue;
        }
        let loaded = load(&path, &options()).unwrap_or_else(|report| panic!("{report}"));
        assert!(loaded.files.contains(&path));
        count += 1;
    }
    assert!(count >= 5);
}

#[test]
fn yaml_is_read_as_yaml_1_2_and_nothing_can_be_read_in_two_ways() {
    for (text, told) in [
        ("a: 1\na: 2\n", "2:1 duplicate key `a`, first on line 1"),
        ("---\na: 1\n---\nb: 2\n", "3:1 `---` begins a second document; expected one"),
        ("a: [1, 2\n", "invalid YAML"),
        ("a: *x\n", "1:4 invalid YAML: while parsing node, found unknown anchor"),
        ("{a: 1}: 2\n", "1:1 found a mapping as a key; expected a word"),
    ] {
        let all = messages(text);
        assert!(all.iter().any(|m| m.contains(told)), "{text:?}: {all:?}");
    }
    assert_eq!(
        judge(&GOOD.replace("name: a,", "name: no,").replace("name: a}", "name: no}")).unwrap().config.backends[0].name,
        "no"
    );
}

#[test]
fn anchors_are_shared_and_merged_and_keys_of_ones_own_win() {
    let yaml = "x-timeouts: &timeouts {connect: 7s, idle: 8s}
x-list:
  - &slow {timeouts: {<<: *timeouts, idle: 90s}, http2: true}
  - &plain {http2: false, callerCredentials: pass}
listeners: [{address: \"127.0.0.1:0\"}]
backends:
  - {name: a, endpoints: [{url: \"http://127.0.0.1:1\"}], timeouts: *timeouts}
  - {<<: *slow, name: b, endpoints: [{url: \"http://127.0.0.1:1\"}]}
  - {<<: [*plain, *slow], name: c, endpoints: [{url: \"http://127.0.0.1:1\"}]}
  - name: d
    endpoints: [{url: \"http://127.0.0.1:1\"}]
    http2: false
    <<: {<<: *slow, callerCredentials: remove}
routes: [{backendRefs: [{name: a}, {name: b}, {name: c}, {name: d}]}]
";
    let config = judge(yaml).unwrap_or_else(|report| panic!("{report}")).config;
    let shown = |n: usize| {
        let b = &config.backends[n];
        let idle = b.timeouts.idle.map_or(0, |idle| idle.0.as_secs());
        (b.timeouts.connect.0.as_secs(), idle, b.http2, b.caller_credentials.is_some())
    };
    let all = [0, 1, 2, 3].map(shown);
    assert_eq!(all, [(7, 8, false, false), (7, 90, true, false), (7, 90, false, true), (7, 90, false, true)]);
}

#[test]
fn merges_with_a_mistake_are_refused_where_it_stands() {
    let misspelt = format!("x-a: &x {{nmae: a}}\n{}", GOOD.replace("{name: a, ", "{<<: *x, "));
    let inner = GOOD.replace("{name: a, ", "{name: a, x-a: 1, ");
    for (text, told) in [
        ("x-a: &x [1]\nlisteners: {<<: *x}\n", "1:10 found the number 1 for the merge key `<<`"),
        ("a: {<<: text}\n", "1:9 found `text` for the merge key `<<`; expected a mapping, or a list of mappings"),
        ("a: {<<: [{b: 1}, 2]}\n", "1:18 found the number 2 for the merge key"),
        ("x-a: &x {b: 1}\nc: {<<: *x, <<: *x}\n", "2:13 duplicate key `<<`"),
        // A key that is wrong is shown where it is written.
        (misspelt.as_str(), "1:10 unknown key `nmae`"),
        ("x-a: 1\nx-a: 2\n", "2:1 duplicate key `x-a`"),
        (inner.as_str(), "unknown key `x-a` in `backends[0]`"),
    ] {
        let all = messages(text);
        assert!(all.iter().any(|m| m.contains(told)), "{text:?}: {all:?}");
    }
    // What `x-` keys hold is not read further: neither types nor variables.
    judge(&format!("x-a: {{b: \"${{UNSET}}\", c: 1}}\n{GOOD}")).unwrap();
}

#[test]
fn merges_cannot_be_made_to_explode() {
    let mut text = String::from("x-0: &m0 {a0: 1, b0: 1}\n");
    for n in 1..40 {
        let merged = format!("[{}]", vec![format!("*m{}", n - 1); 10].join(", "));
        text.push_str(&format!("x-{n}: &m{n} {{<<: {merged}, a{n}: 1}}\n"));
    }
    assert!(judge(&format!("{text}{GOOD}")).is_ok(), "what repeats merges into one");
    let mut text = String::from("x-0: &m0 {a: 1}\n");
    for n in 1..40 {
        text.push_str(&format!("x-{n}: &m{n} {{a: *m{}, b: {{<<: *m{}}}}}\n", n - 1, n - 1));
    }
    let all = messages(&format!("{text}{GOOD}"));
    assert!(all.len() == 1 && all[0].contains("aliases of the document copy more than"), "{all:?}");
    // A chain without branches is no larger than its square, but nothing may walk down so far.
    let mut text = String::from("x-0: &m0 {a: 1}\n");
    for n in 1..1_000 {
        text.push_str(&format!("x-{n}: &m{n} {{a: *m{}}}\n", n - 1));
    }
    let all = messages(&format!("{text}{GOOD}"));
    assert!(all.len() == 1 && all[0].contains("nested deeper than 64 levels"), "{all:?}");
    // Anchors inside of anchors copy what they hold once for each of them.
    let deep = (0..40).map(|n| format!("&a{n} [")).collect::<String>();
    let text = format!("x-0: {deep}{}{}\n{GOOD}", "1, ".repeat(10_000), "]".repeat(40));
    let all = messages(&text);
    assert!(all.len() == 1 && all[0].contains("aliases of the document copy more than"), "{all:?}");
}

#[test]
fn honest_files_of_any_size_pass() {
    let mut text =
        format!("{GOOD}x-limits: &limits {{requests: 100/s, tokens: 100000/min, concurrency: 8}}\nconsumers:\n");
    for n in 0..20_000 {
        text.push_str(&format!("  - {{name: c{n}, tenant: t, keys: [{{sha256: \"{n:064x}\"}}], limits: *limits}}\n"));
    }
    let config = judge(&text).unwrap_or_else(|report| panic!("{report}")).config;
    assert_eq!(config.consumers.len(), 20_000);
}

#[test]
fn a_key_that_repeats_among_many_is_refused_as_among_few() {
    let keys: String = (0..100).map(|n| format!("  k{n}: 1\n")).collect();
    let all = messages(&format!("x:\n{keys}  k40: 2\n{GOOD}"));
    assert!(all.iter().any(|m| m.contains("102:3 duplicate key `k40`, first on line 42")), "{all:?}");
}

#[test]
fn tags_are_refused_wherever_they_stand() {
    let listener = |value: &str| GOOD.replace("\"127.0.0.1:0\"", value);
    for (text, tag, place) in [
        (listener("!!str \"127.0.0.1:0\""), "!!str", "1:23"),
        (listener("!!binary \"127.0.0.1:0\""), "!!binary", "1:23"),
        (listener("!local \"127.0.0.1:0\""), "!local", "1:23"),
        (listener("! \"127.0.0.1:0\""), "!", "1:23"),
        (listener("!<tag:example.com,2000:x> \"127.0.0.1:0\""), "!<tag:example.com,2000:x>", "1:23"),
        (listener("&a !!str \"127.0.0.1:0\""), "!!str", "1:26"),
        (format!("{GOOD}admin: !!null\n"), "!!null", "4:8"),
        (GOOD.replace("listeners: [", "listeners: !!python/tuple ["), "!!python/tuple", "1:12"),
        (GOOD.replace("listeners: [", "listeners: !!seq ["), "!!seq", "1:12"),
        (GOOD.replace("listeners: [{", "listeners: [!!map {"), "!!map", "1:13"),
        (GOOD.replace("routes: [{", "routes: [!!python/object:os.system {"), "!!python/object:os.system", "3:10"),
        (GOOD.replace("routes: [{", "!!str routes: [{"), "!!str", "3:1"),
        (GOOD.replace("backendRefs: [{name", "backendRefs: [{!x name"), "!x", "3:26"),
        (GOOD.replace("backendRefs: [{name", "backendRefs: [!x {name"), "!x", "3:25"),
        (format!("{GOOD}? !!seq [a]\n: b\n"), "!!seq", "4:3"),
        (format!("!!map\n{GOOD}"), "!!map", "1:1"),
        (format!("%TAG !e! tag:example.com,2000:\n---\n{GOOD}admin: !e!x {{}}\n"), "!e!x", "6:8"),
    ] {
        let all = messages(&text);
        let told = format!("{place} unexpected YAML tag `{tag}`; expected a value without a tag");
        assert!(all.len() == 1 && all[0].starts_with(&told), "{told}: {all:?}\n{text}");
    }
}

#[test]
fn tags_are_refused_in_files_that_a_configuration_names() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let written = GOOD.replace("endpoints: [{url: \"http://127.0.0.1:1\"}]", "endpointsFile: e.yaml");
    std::fs::write(at("c.yaml"), format!("{written}consumers: [{{name: c, keysFile: digests}}]\n")).unwrap();
    let strict = LoadOptions { offline: false, ..options() };
    let judge = |endpoints: &str, keys: &str| {
        std::fs::write(at("e.yaml"), endpoints).unwrap();
        std::fs::write(at("digests"), keys).unwrap();
        load(&at("c.yaml"), &strict).map(|_| ()).map_err(|report| report.to_string())
    };
    let sound = "- url: http://a:1\n";
    judge(sound, digest).unwrap();
    for (endpoints, tag) in [
        ("!!seq [{url: \"http://a:1\"}]", "e.yaml:1:1"),
        ("- !!map {url: \"http://a:1\"}", "e.yaml:1:3"),
        ("- !!str url: http://a:1", "e.yaml:1:3"),
        ("- url: !!str http://a:1", "e.yaml:1:8"),
    ] {
        let told = judge(endpoints, digest).unwrap_err();
        assert!(told.contains("unexpected YAML tag") && told.contains(tag), "{endpoints}: {told}");
    }
    for keys in [format!("!!str {digest}"), format!("{digest} !!timestamp 2030-01-01"), format!("!!seq\n{digest}")] {
        let told = judge(sound, &keys).unwrap_err();
        assert!(told.contains("digests:1: "), "{keys}: {told}");
    }
}

#[test]
fn the_environment_is_put_into_strings_only_and_paths_become_absolute() {
    let yaml = format!("{GOOD}models: [{{name: \"${{SET}}-${{UNSET:-default}}\", source: m.gguf}}]\n");
    let loaded = judge(&yaml).unwrap();
    assert_eq!(loaded.config.models[0].name, "value-default");
    assert!(loaded.config.models[0].source.is_absolute());
    let strict = LoadOptions { offline: false, ..options() };
    let told = load_text(Path::new("test.yaml"), &yaml.replace(":-default", ""), &strict).unwrap_err().to_string();
    assert!(told.contains("the environment variable `UNSET` is not set"), "{told}");
}

#[test]
fn what_can_never_take_effect_is_an_error() {
    let login = |keys: &str| format!("{GOOD}admin: {{address: \"0.0.0.0:1\", oidc: {{clientId: c, {keys}}}}}\n");
    let with = |route: &str| GOOD.replace("{backendRefs: [{name: a}]}", route);
    let listener = |keys: &str| GOOD.replace("address: \"127.0.0.1:0\"", &format!("address: \"127.0.0.1:0\", {keys}"));
    for (yaml, told) in [
        (with("{backendRefs: [{name: a, weight: 0}]}"), "all weights are zero"),
        (with("{backendRefs: [{name: aa}]}"), "unknown backend `aa`; expected `a`"),
        (with("{backendRefs: [{name: a, model: a}]}"), "exactly one of"),
        (with("{backendRefs: [{name: a}], whenSaturated: {spillTo: x}}"), "unknown model or backend `x`; expected `a`"),
        (with("{backendRefs: [{name: a}], authentication: required}"), "no caller could ever pass"),
        (with("{backendRefs: [{name: a}], hostnames: [\"a b\"]}"), "is not a host name"),
        (with("{backendRefs: [{name: a}], matches: [{path: {regex: \"(\"}}]}"), "not a regular expression"),
        (
            with("{backendRefs: [{name: a}], matches: [{path: {prefix: v1}}]}"),
            "`v1` does not begin with `/`: write `/v1`",
        ),
        (with("{backendRefs: [{name: a}], whenSaturated: {reject: {status: 500}}}"), "found 500; expected 429 or 503"),
        (with("{backendRefs: [{name: a}]}, {backendRefs: [{name: a}]}"), "`name` is missing"),
        (with("{backendRefs: []}"), "at least one backend"),
        (format!("{GOOD}admin: {{address: \"0.0.0.0:1\"}}\n"), "needs `admin.token`"),
        (
            login(
                "issuer: http://login.example, publicUrl: https://ops.example, allow: [{claim: groups, values: [a]}]",
            ),
            "expected the issuer's https URL",
        ),
        (
            login(
                "issuer: https://login.example, publicUrl: http://ops.example, allow: [{claim: groups, values: [a]}]",
            ),
            "expected the https origin",
        ),
        (
            login(
                "issuer: https://login.example, publicUrl: https://ops.example/path, allow: [{claim: groups, values: [a]}]",
            ),
            "expected the https origin",
        ),
        (login("issuer: https://login.example, publicUrl: https://ops.example, allow: []"), "nobody could log in"),
        (
            login(
                "issuer: https://login.example, publicUrl: https://ops.example, allow: [{claim: groups, values: []}]",
            ),
            "at least one value",
        ),
        (
            login(
                "issuer: https://login.example, publicUrl: https://ops.example, allow: [{claim: groups, values: [a]}], scopes: [a b]",
            ),
            "a scope is a word",
        ),
        (
            login(
                "issuer: https://login.example, publicUrl: https://ops.example, allow: [{claim: groups, values: [a]}], sessions: {idle: 1ms}",
            ),
            "at least a second",
        ),
        (
            login(
                "issuer: https://login.example, publicUrl: https://ops.example, allow: [{claim: groups, values: [a]}], name: \"\"",
            ),
            "expected a name",
        ),
        (GOOD.replace("http://127.0.0.1:1", "ftp://127.0.0.1:1"), "must be http or https"),
        (GOOD.replace("endpoints", "tls: {sni: a.test}, endpoints"), "no endpoint of the backend has an https URL"),
        (
            GOOD.replace("endpoints", "mcp: {}, endpoints"),
            "unknown key `mcp` in `backends[0]`; this version does not support it",
        ),
        (listener("protocol: https"), "needs `tls`"),
        (listener("protocol: https, tls: {certificates: []}"), "at least one certificate"),
        (listener("tls: {certificates: [{certFile: a, keyFile: b}]}"), "only a listener with `protocol: https`"),
        (
            format!("{GOOD}authentication: {{mtls: {{identity: san-uri}}}}\n"),
            "no listener has `tls.clientCertificates`",
        ),
        (
            format!("{GOOD}consumers: [{{name: c, mtls: {{identities: [x]}}}}]\n"),
            "no effect without `authentication.mtls`",
        ),
        (listener("proxyProtocol: {from: []}"), "no proxy is named"),
        (listener("proxyProtocol: {from: [10.0.0.1/8]}"), "the network is 10.0.0.0/8"),
        (listener("clientAddress: {trustedProxies: [x]}"), "is not a network"),
        (listener("healthPath: healthz"), "`healthz` is not a path; expected one without a query, such as /healthz"),
        (listener("healthPath: \"/healthz?x\""), "is not a path"),
        (
            listener("healthPath: /%68ealthz"),
            "no request has the path `/%68ealthz`; expected its normal form: `/healthz`",
        ),
        (listener("healthPath: /a/../b"), "no request has the path `/a/../b`: the path has a segment"),
        (with("{filters: [{cors: {}}]}"), "or a filter that answers by itself"),
        (
            with("{filters: [{respond: {}}], whenSaturated: {spillTo: a}}"),
            "no effect, because this route has no `backendRefs`",
        ),
        (
            with("{filters: [{redirect: {}}], sticky: {header: x-a}}"),
            "no effect, because this route has no `backendRefs`",
        ),
        (with("{filters: [{respond: {}}, {publicLocation: {}}]}"), "no effect, because no server answers"),
        (GOOD.replace("http://127.0.0.1:1", "http://127.0.0.1:1/v1"), "/v1 would come twice; write http://127.0.0.1:1"),
        (GOOD.replace("http://127.0.0.1:1", "https://a.test/v1/"), "/v1 would come twice; write https://a.test"),
        (GOOD.replace("http://127.0.0.1:1", "http://a.test:9/x/v1"), "`urlRewrite: {replacePrefix: /x/v1}`"),
        (GOOD.replace("http://127.0.0.1:1", "http://a.test/?k=v"), "without a query: write http://a.test"),
        (backend("loadBalancing: {policy: least_conn}"), "unknown value `least_conn` for `policy`"),
    ] {
        let all = messages(&yaml);
        assert!(all.iter().any(|m| m.contains(told)), "{told}: {all:?}\n{yaml}");
    }
    let shadowed = with("{name: x, backendRefs: [{name: a}]}, {name: y, backendRefs: [{name: a}]}");
    assert!(judge(&shadowed).unwrap().warnings.to_string().contains("this never wins"));
    for (route, told) in [
        ("{filters: [{respond: {}}]}", ""),
        ("{filters: [{redirect: {}}, {responseHeaders: {}}]}", ""),
        ("{filters: [{respond: {}}, {responseHeaders: {}}, {cors: {}}]}", ""),
        ("{filters: [{publicLocation: {}}], backendRefs: [{name: a}]}", ""),
        ("{filters: [{respond: {}}], backendRefs: [{name: a}]}", "`respond` answers every request of this route"),
        ("{filters: [{respond: {}}, {authorize: x}]}", "`respond` has answered before `authorize` is asked"),
    ] {
        let warnings = judge(&with(route)).unwrap().warnings.to_string();
        assert_eq!((warnings.is_empty(), warnings.contains(told)), (told.is_empty(), true), "{route}: {warnings}");
    }
    for (yaml, meant) in [
        (backend("loadBalancing: {policy: least_conn}"), "leastRequest"),
        (backend("loadBalancing: {policy: IP_HASH}"), "hash"),
    ] {
        let report = judge(&yaml).unwrap_err().to_string();
        assert!(report.contains(&format!("did you mean `{meant}`?")), "{report}");
    }
}

/// A backend with these keys after its endpoint, which end at line 2.
fn backend(keys: &str) -> String {
    GOOD.replace("endpoints:", &format!("{keys}, endpoints:"))
}

#[test]
fn balancing_that_contradicts_itself_is_refused_with_its_line() {
    let lb = |text: &str| backend(&format!("loadBalancing: {text}"));
    let capacity = |text: &str| backend(&format!("capacity: {text}"));
    let check = |text: &str| backend(&format!("healthCheck: {text}"));
    let outlier = |text: &str| backend(&format!("outlierDetection: {text}"));
    let queue = "{backendRefs: [{name: a}], whenSaturated: {queue: {maxWait: 1s, maxDepth: 8}}}";
    let queued = |text: &str| backend(text).replace("{backendRefs: [{name: a}]}", queue);
    for (yaml, told) in [
        (lb("{policy: hash}"), "needs `hashOn`"),
        (lb("{hashOn: {header: x}}"), "no effect without `policy: hash`"),
        (lb("{policy: hash, hashOn: {header: \"a b\"}}"), "`a b` is not a header name"),
        (lb("{policy: hash, hashOn: {cookie: \"\"}}"), "`` is not a cookie name"),
        (lb("{policy: hash, hashOn: {clientAddress: false}}"), "only `true`"),
        (lb("{policy: hash, hashOn: {promptPrefix: 256B}}"), "only where `protocol` is a model protocol"),
        (lb("{policy: hash, hashOn: {header: x, cookie: y}}"), "exactly one of"),
        (lb("{policy: hash, hashOn: {header: x}, slowStart: 30s}"), "`slowStart` has no effect"),
        (lb("{slowStart: 0s}"), "leave it out"),
        (lb("{policy: fastest}"), "unknown value `fastest` for `policy`; expected `roundRobin`, `leastRequest`"),
        (lb("{policy: queueDepth}"), "no figures would come"),
        (capacity("{maxInFlight: 4, maxConnections: 4}"), "need no more connections"),
        (capacity("{maxConnections: 0}"), "too small"),
        (backend("circuitBreaker: {maxInFlight: 0}"), "too small"),
        (backend("capacity: {maxInFlight: 4}, circuitBreaker: {maxInFlight: 4}"), "1 endpoints with 4 requests each"),
        (backend("circuitBreaker: {maxPending: 0}"), "too small"),
        (backend("circuitBreaker: {maxPending: 4}"), "no request ever waits for this backend"),
        (queued("circuitBreaker: {maxPending: 8}"), "hold no more than 8"),
        (capacity("{adaptive: {minLimit: 9, maxLimit: 8}}"), "is above `maxLimit` (8)"),
        (capacity("{maxInFlight: 4, adaptive: {minLimit: 9}}"), "below `adaptive.minLimit`"),
        (capacity("{adaptive: {latencyTolerance: 1.0}}"), "above 1"),
        (capacity("{queueDepth: {max: 4, interval: 2s, staleAfter: 2s}}"), "must be longer than `interval` (2s)"),
        (capacity("{queueDepth: {max: 4, interval: 10ms}}"), "at least 100ms"),
        (capacity("{queueDepth: {max: 0}}"), "too small"),
        (capacity("{queueDepth: {max: 4, metricsPath: metrics}}"), "does not begin with `/`"),
        (capacity("{queueDepth: {max: 4, metricsPort: 0}}"), "too small"),
        (capacity("{queueDepth: {max: 4, metricsPort: 65536}}"), "too large"),
        (capacity("{queueDepth: {max: 4, metric: \"a b\"}}"), "not the name of a metric"),
        (capacity("{kvCache: {max: 0.9}}"), "no figures would come"),
        (capacity("{loadReports: true, kvCache: {max: 1.1}}"), "above 0 and at most 1"),
        (capacity("{loadReports: true}"), "nothing uses the reports"),
        (check("{interval: 5s}"), "exactly one of `http`, `tcp`, `grpc` and `completion`"),
        (check("{tcp: {}, grpc: {}}"), "exactly one of `http`, `tcp`, `grpc` and `completion`"),
        (check("{grpc: {}}"), "must say `http2: true`"),
        (check("{completion: {}}"), "only where `protocol` is `openai`"),
        (check("{completion: {}}").replace("name: a,", "name: a, protocol: openai,"), "no model to ask"),
        (outlier("{errorRate: 1.5}"), "from 0 to 1"),
        (outlier("{latencyFactor: 0.5}"), "expected a factor above 1"),
        (outlier("{maxEjected: 2}"), "from 0 to 1"),
        (outlier("{panicThreshold: -1}"), "from 0 to 1"),
        (outlier("{ejectionTime: 0s}"), "longer than zero"),
        (outlier("{minimumRequests: 0}"), "too small"),
    ] {
        let all = messages(&yaml);
        assert!(all.iter().any(|m| m.starts_with("2:") && m.contains(told)), "{told}: {all:?}\n{yaml}");
    }
    for yaml in [
        lb("{policy: peakEwma, slowStart: 30s}"),
        lb("{policy: hash, hashOn: {cookie: sid}}"),
        capacity("{maxInFlight: 16, adaptive: {}, loadReports: true, queueDepth: {max: 4}, kvCache: {max: 0.9}}"),
        capacity("{queueDepth: {max: 4, metricsPort: 8002}}"),
        capacity("{queueDepth: {max: 4, metric: \"vllm:num_requests_waiting{engine=\\\"0\\\"}\"}}"),
        capacity("{maxInFlight: 8, maxConnections: 4}"),
        backend("http2: true, capacity: {maxInFlight: 8, maxConnections: 8}"),
        backend("circuitBreaker: {maxInFlight: 8, maxRetries: 0}"),
        backend("capacity: {maxInFlight: 4}, circuitBreaker: {maxInFlight: 3}"),
        backend("capacity: {maxInFlight: 4}, circuitBreaker: {maxInFlight: 4}").replace("127.0.0.1:1", "a.test:1"),
        queued("circuitBreaker: {maxPending: 7}"),
        backend("http2: true, healthCheck: {grpc: {service: a.B}}"),
        check("{tcp: {}}"),
        outlier("{consecutiveErrors: 0, errorRate: 0.5, latencyFactor: 3}"),
    ] {
        assert_eq!(messages(&yaml), Vec::<String>::new(), "{yaml}");
    }
}

#[test]
fn a_rule_over_a_header_that_no_request_will_have_is_told() {
    let yaml = |listener: &str, backend: &str, route: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"{listener}}}]
authentication: {{apiKey: {{headers: [x-forwarded-token]}}, identityHeaders: {{tenant: x-team}}}}
consumers: [{{name: c, keys: [{{sha256: \"{}\"}}]}}]
backends: [{{name: a, endpoints: [{{url: \"http://127.0.0.1:1\"}}]{backend}}}]
routes: [{{backendRefs: [{{name: a}}]{route}}}]
",
            "0".repeat(64)
        )
    };
    let behind = ", clientAddress: {trustedProxies: [10.0.0.0/8]}";
    let places = |name: &str| {
        let matches = format!(", matches: [{{headers: [{{name: {name}, exact: x}}]}}]");
        let limit = format!(", filters: [{{rateLimit: {{by: {{header: {name}}}}}}}]");
        let hash = format!(", loadBalancing: {{policy: hash, hashOn: {{header: {name}}}}}");
        [
            (hash, String::new()),
            (String::new(), matches),
            (String::new(), limit),
            (String::new(), format!(", sticky: {{header: {name}}}")),
        ]
    };
    for (name, told, told_behind) in [
        ("cf-connecting-ip", Some("clientAddress.trustedProxies"), None),
        ("X-Real-IP", Some("clientAddress.trustedProxies"), None),
        ("x-forwarded-user", Some("clientAddress.trustedProxies"), None),
        ("x_real_ip", Some("another name"), Some("another name")),
        ("x-original-url", Some("another name"), Some("another name")),
        ("x-spillway-tier", Some("another name"), Some("another name")),
        ("x-team", Some("another name"), Some("another name")),
        ("x-forwarded-for", None, None),
        ("x-forwarded-token", None, None),
        ("x-api-key", None, None),
        ("x-user", None, None),
    ] {
        for (backend, route) in places(name) {
            for (listener, told) in [("", told), (behind, told_behind)] {
                let yaml = yaml(listener, &backend, &route);
                let found = judge(&yaml).err().map(|report| report.to_string()).unwrap_or_default();
                assert_eq!(!found.is_empty(), told.is_some(), "{yaml}{found}");
                assert!(
                    told.is_none_or(|told| found.contains(told) && found.contains(&format!("`{name}`"))),
                    "{found}"
                );
            }
        }
    }
    // An expression may look whether it is there at all.
    for route in [
        ", matches: [{when: \"request.headers['cf-connecting-ip'] == '10.0.0.1'\"}]",
        ", filters: [{authorize: \"request.headers[\\\"cf-connecting-ip\\\"] == 'x'\"}]",
        ", filters: [{cel: {deny: \"request.headers['cf-connecting-ip'] == 'x'\"}}]",
        ", filters: [{rateLimit: {by: {value: \"request.headers['cf-connecting-ip']\"}}}]",
        ", filters: [{externalAuthorization: {forwardHeaders: [cf-connecting-ip]}}]",
    ] {
        let warned = judge(&yaml("", "", route)).unwrap_or_else(|report| panic!("{report}")).warnings.to_string();
        assert!(warned.starts_with("warning: the header `cf-connecting-ip` is removed"), "{route}: {warned}");
        let warned = judge(&yaml(behind, "", route)).unwrap_or_else(|report| panic!("{report}")).warnings;
        assert_eq!(warned.to_string(), "", "{route}");
    }
}

#[test]
fn servers_of_names_are_addresses_and_their_bounds_make_sense() {
    let dns = |text: &str| format!("{GOOD}dns: {text}\n");
    for (text, told) in [
        ("{servers: [ns.example.com]}", "is not the address of a DNS server"),
        ("{minTtl: 500ms}", "at least 1s"),
        ("{minTtl: 10m}", "below `minTtl`"),
        ("{maxTtl: 48h}", "at most 24h"),
        ("{timeout: 1m}", "at most 5s"),
    ] {
        let all = messages(&dns(text));
        assert!(all.iter().any(|m| m.starts_with("4:") && m.contains(told)), "{text}: {all:?}");
    }
    let named = dns("{servers: [10.0.0.53, \"[fd00::1]:5353\"], minTtl: 5s}").replace("127.0.0.1:1", "chat.internal:1");
    assert_eq!(messages(&named), Vec::<String>::new());
    let without = judge(&dns("{servers: [10.0.0.53]}")).unwrap().warnings.to_string();
    assert!(without.contains("no effect"), "{without}");
}

#[test]
fn endpoints_may_stand_in_a_file_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    let file = folder.path().join("e.json");
    std::fs::write(&config, GOOD.replace("endpoints: [{url: \"http://127.0.0.1:1\"}]", "endpointsFile: e.json"))
        .unwrap();
    let strict = LoadOptions { offline: false, ..options() };
    let told = load(&config, &strict).unwrap_err().to_string();
    assert!(told.contains("there is no file") && told.contains("e.json: create it"), "{told}");
    assert!(told.contains("at: backends[0].endpointsFile") && !told.contains("no endpoint"), "{told}");
    assert!(load(&config, &options()).is_ok(), "offline it need not be there");
    for (text, expected) in [
        ("[]", "at least one endpoint"),
        ("{}", "expected a list"),
        ("[{\"url\": \"http://a:1\"}, {\"url\": \"http://a:1\"}]", "in the list already"),
        ("[\n  {\"url\": \"ftp://a\"}\n]", "e.json:2:11"),
        ("- url: http://a\n  weigth: 1\n", "did you mean `weight`"),
    ] {
        std::fs::write(&file, text).unwrap();
        let told = load(&config, &strict).unwrap_err().to_string();
        assert!(told.contains(expected), "{text}: {told}");
    }
    std::fs::write(&file, "- {url: \"http://a:1\", weight: 3, priority: 1}\n- {url: \"http://b:1\"}\n").unwrap();
    let loaded = load(&config, &strict).unwrap();
    assert_eq!((loaded.config.backends[0].endpoints.len(), loaded.config.backends[0].endpoints[0].weight), (2, 3));
    assert!(loaded.files.contains(&file), "it is watched like the configuration");
}

#[test]
fn a_key_that_is_cut_short_or_goes_on_is_known() {
    for (key, meant) in [("match", "matches"), ("hostname", "hostnames"), ("backendRefsAll", "backendRefs")] {
        let all = judge(&GOOD.replace("routes: [{", &format!("routes: [{{{key}: [], "))).unwrap_err().to_string();
        assert!(all.contains(&format!("did you mean `{meant}`")), "{key}: {all}");
    }
}

#[test]
fn a_key_in_a_wrong_place_is_told_where_it_belongs() {
    let backend = |key: &str| GOOD.replace("endpoints", &format!("{key}, endpoints"));
    for (yaml, told) in [
        (backend("keepWarm: true"), "unknown key `keepWarm` in `backends[0]`; it belongs in `models[]`"),
        (backend("idleUnload: 5m"), "unknown key `idleUnload` in `backends[0]`; it belongs in `models[]`"),
        (backend("task: chat"), "unknown key `task` in `backends[0]`; it belongs in `models[]`"),
        (
            format!("{GOOD}priority: 1\n"),
            "unknown key `priority` at the top level; it belongs in `consumers[]` or in `backends[].endpoints[]` or in \
             `routes[].backendRefs[]`",
        ),
        (
            GOOD.replace("{name: a}", "{name: a, spillTo: m}"),
            "unknown key `spillTo` in `routes[0].backendRefs[0]`; it belongs in `routes[].whenSaturated` or in \
             `routes[].whenUnavailable`",
        ),
        (backend("consumers: []"), "unknown key `consumers` in `backends[0]`; it belongs at the top level"),
    ] {
        let all = messages(&yaml);
        assert!(all.iter().any(|m| m.contains(told)), "{told}: {all:?}");
    }
}

#[test]
fn numbers_are_held_to_the_type_of_their_key() {
    let consumer =
        |keys: &str| format!("{GOOD}consumers: [{{name: c, keys: [{{sha256: \"{}\"}}], {keys}}}]\n", "0".repeat(64));
    let endpoint = |keys: &str| GOOD.replace("\"http://127.0.0.1:1\"", &format!("\"http://127.0.0.1:1\", {keys}"));
    for (yaml, told) in [
        (consumer("priority: 2147483648"), "2147483648 is too large; expected 2147483647 or less"),
        (consumer("priority: -2147483649"), "-2147483649 is too small; expected -2147483648 or more"),
        (endpoint("weight: 4294967296"), "4294967296 is too large; expected 4294967295 or less"),
        (endpoint("weight: -1"), "-1 is too small; expected 0 or more"),
        (endpoint("weight: 1.5"), "expected a whole number, found the number 1.5"),
    ] {
        let all = messages(&yaml);
        assert!(all.len() == 1 && all[0].contains(told), "{told}: {all:?}");
    }
    let many = consumer("limits: {budget: {tokens: 5000000000, per: month}}");
    assert_eq!(judge(&many).unwrap().config.consumers[0].limits.budget.as_ref().unwrap().tokens, Some(5_000_000_000));
}

#[test]
fn a_laugh_of_anchors_is_bounded() {
    let mut yaml = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let alias = format!("*a{}", n - 1);
        yaml.push_str(&format!("a{n}: &a{n} [{}]\n", [alias.as_str(); 10].join(", ")));
    }
    let all = messages(&yaml);
    assert!(all.iter().any(|m| m.contains("aliases of the document copy more than")), "{all:?}");
    let deep = format!("a: {}", "[".repeat(10_000));
    assert!(!messages(&deep).is_empty());
}

proptest! {
    #[test]
    fn any_text_is_judged(text in "\\PC{0,300}") {
        let _ = judge(&text);
    }

    #[test]
    fn a_spoiled_example_is_judged(at in 0usize..2000, with in "\\PC{0,6}") {
        let mut text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gateway.yaml")).unwrap();
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        text.insert_str(at, &with);
        if let Err(report) = judge(&text) {
            prop_assert!(report.diagnostics.iter().all(|d| d.line >= 1 && !d.message.is_empty()));
            let _ = report.to_string();
        }
    }
}
