//! Tables of objects, as people write them, with what they become.

use serde_json::json;

use super::*;

const BASE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: spillway, generation: 1}
spec: {controllerName: spillway.dev/gateway}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public, namespace: infra, generation: 3, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  gatewayClassName: spillway
  listeners:
    - {name: http, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: models, labels: {team: inference}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: models}
spec: {ports: [{name: http, port: 80, targetPort: 8000}, {name: grpc, port: 90, appProtocol: kubernetes.io/h2c}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: models, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
  - {addresses: [10.0.0.2], conditions: {ready: true}}
  - {addresses: [10.0.0.1], conditions: {}}
  - {addresses: [10.0.0.3], conditions: {ready: false}}
ports: [{name: http, port: 8000}, {name: grpc, port: 9000}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: models, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
endpoints: [{addresses: ["fd00::1"]}]
ports: [{name: http, port: 8000}]
"#;

fn settings(yaml: &str) -> Kubernetes {
    let written =
        format!("{{gatewayClass: spillway, inferencePools: true, tlsSecrets: true, caConfigMaps: true{yaml}}}");
    serde_saphyr::from_str(&written).unwrap()
}

fn objects(yaml: &str) -> Objects {
    let mut objects = Objects::default();
    for document in yaml.split("\n---\n").filter(|document| !document.trim().is_empty()) {
        let value: Value = serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{e}\n{document}"));
        let kind = value["kind"].as_str().unwrap();
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind).unwrap_or_else(|| panic!("{kind}"));
        objects.insert(kind, value);
    }
    objects
}

fn translated(yaml: &str) -> Translation {
    translate(&objects(&format!("{BASE}\n---\n{yaml}")), &settings(""))
}

/// Route of HTTP in `models` with a name and content.
fn http_route(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: models, generation: 7, \
         creationTimestamp: \"2026-01-02T00:00:00Z\"}}\nspec: {spec}"
    )
}

const PARENT: &str = "parentRefs: [{name: public, namespace: infra}]";
const TARGET: &str = "backendRefs: [{name: web, port: 80}]";

fn conditions(statuses: &Statuses) -> Vec<String> {
    let shown = |one: &Condition| format!("{}={}({})", one.kind, one.holds, one.reason);
    let of_routes = statuses.routes.iter().flat_map(|route| {
        let of = move |parent: &ParentStatus| {
            format!("{} {} {}", route.key, shown(&parent.accepted), shown(&parent.resolved))
        };
        route.parents.iter().map(of).collect::<Vec<_>>()
    });
    of_routes.collect()
}

/// Settings of the only route of an object, and its conditions.
fn one(spec: &str) -> (Value, String) {
    let out = translated(&http_route("a", spec));
    let conditions = conditions(&out.statuses);
    assert_eq!(conditions.len(), 1, "{spec}");
    let route = out.further.routes.first().map(|route| serde_json::to_value(route).unwrap()).unwrap_or_default();
    (route, conditions[0].clone())
}

const FINE: &str = "models/a Accepted=true(Accepted) ResolvedRefs=true(ResolvedRefs)";

#[test]
fn a_route_with_a_service_becomes_a_route_with_a_backend() {
    let out = translated(&http_route("a", &format!("{{{PARENT}, hostnames: [a.test], rules: [{{{TARGET}}}]}}")));
    assert_eq!(conditions(&out.statuses), [FINE]);
    let [listener] = &out.further.listeners[..] else { panic!("one listener") };
    assert_eq!(
        (listener.name.as_deref(), listener.address.to_string().as_str()),
        (Some("kubernetes/8080"), "0.0.0.0:8080")
    );
    assert!(listener.own_routes, "it serves no route of the file");
    let [backend] = &out.further.backends[..] else { panic!("one backend") };
    let urls: Vec<String> = backend.endpoints.iter().map(|endpoint| endpoint.url.to_string()).collect();
    assert_eq!(
        urls,
        ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"],
        "ready ones, both families"
    );
    let [route] = &out.further.routes[..] else { panic!("one route") };
    assert_eq!(route.name.as_deref(), Some("kubernetes/HTTPRoute/models/a/0"));
    assert_eq!(
        (route.listeners.as_slice(), route.hostnames.as_slice()),
        (&["kubernetes/8080".to_owned()][..], &["a.test".to_owned()][..])
    );
    assert_eq!(route.backend_refs[0].name.as_deref(), Some("kubernetes/models/web/80"));
    let gateway = &out.statuses.gateways[0];
    assert_eq!((gateway.generation, gateway.listeners[0].attached), (3, 1));
    assert!(gateway.accepted.holds && gateway.programmed().holds && gateway.listeners[0].programmed().holds);
    assert_eq!(out.statuses.classes[0].accepted.reason, "Accepted");
}

#[test]
fn every_part_of_a_rule_has_its_counterpart() {
    for (rule, pointer, expected) in [
        ("matches: [{path: {type: Exact, value: /a}}]", "/matches/0/path/exact", "\"/a\""),
        ("matches: [{path: {value: /a}}]", "/matches/0/path/prefix", "\"/a\""),
        ("matches: [{path: {type: RegularExpression, value: \"/a.*\"}}]", "/matches/0/path/regex", "\"/a.*\""),
        ("matches: [{method: POST}]", "/matches/0/method", "\"POST\""),
        (
            "matches: [{headers: [{name: X-A, value: \"1\"}, {name: x-a, value: \"2\"}]}]",
            "/matches/0/headers",
            r#"[{"name":"X-A","exact":"1"}]"#,
        ),
        (
            "matches: [{queryParams: [{name: a, value: \"b c\"}]}]",
            "/matches/0/queryParams",
            r#"[{"name":"a","exact":"b c"}]"#,
        ),
        (
            "matches: [{queryParams: [{name: a, type: RegularExpression, value: \"[0-9]+\"}, {name: a, value: c}, {name: A}]}]",
            "/matches/0/queryParams",
            r#"[{"name":"a","regex":"[0-9]+"},{"name":"A","exact":""}]"#,
        ),
        (
            "matches: [{headers: [{name: a, type: RegularExpression, value: \"v.*\"}, {name: b, value: c}]}]",
            "/matches/0/headers",
            r#"[{"name":"a","regex":"v.*"},{"name":"b","exact":"c"}]"#,
        ),
        ("timeouts: {request: 1m30s, backendRequest: 10s}", "/timeouts/request", "\"90s\""),
        ("timeouts: {backendRequest: 10s}", "/timeouts/backendRequest", "\"10s\""),
        ("timeouts: {request: 0s}", "/timeouts/request", "\"24h\""),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: \"{b}\"}], remove: [c]}}]",
            "/filters/0/requestHeaders",
            r#"{"set":{"a":"{{b}"},"remove":["c"]}"#,
        ),
        (
            "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: b}]}}]",
            "/filters/0/responseHeaders",
            r#"{"add":{"a":"b"}}"#,
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, statusCode: 301}}]",
            "/filters/0/redirect",
            r#"{"scheme":"https","port":8443,"status":301}"#,
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {hostname: b.test, path: {type: ReplaceFullPath, replaceFullPath: /x}}}]",
            "/filters/0/urlRewrite",
            r#"{"hostname":"b.test","path":"/x"}"#,
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: \"\"}}}]",
            "/filters/0/urlRewrite",
            r#"{"replacePrefix":"/"}"#,
        ),
        (
            "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 90}, fraction: {numerator: 1, denominator: 4}}}]",
            "/filters/0/mirror",
            r#"{"backend":"kubernetes/models/web/90/h2","percent":25.0}"#,
        ),
        (
            "filters: [{type: CORS, cors: {allowOrigins: [\"https://a.test\"], maxAge: 5}}]",
            "/filters/0/cors",
            r#"{"allowOrigins":["https://a.test"],"maxAge":"5s"}"#,
        ),
    ] {
        let (route, condition) = one(&format!("{{{PARENT}, rules: [{{{rule}, {TARGET}}}]}}"));
        assert_eq!(condition, FINE, "{rule}");
        assert_eq!(route.pointer(pointer).unwrap_or(&Value::Null).to_string(), expected, "{rule}");
    }
}

#[test]
fn what_cannot_be_served_is_refused_by_its_name_and_costs_the_object_alone() {
    let out = |rule: &str| {
        let bad = http_route("a", &format!("{{{PARENT}, rules: [{{{rule}}}]}}"));
        let good = http_route("z", &format!("{{{PARENT}, rules: [{{{TARGET}}}]}}"));
        translated(&format!("{bad}\n---\n{good}"))
    };
    for (rule, word) in [
        ("matches: [{headers: [{name: a, type: Glob, value: b}]}]", "header matches of the type Glob"),
        ("matches: [{queryParams: [{name: a, type: Prefix, value: b}]}]", "query parameter matches of the type Prefix"),
        ("filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]", "ExtensionRef"),
        ("filters: [{type: ExternalAuth}]", "ExternalAuth"),
        ("retry: {attempts: 2}", "retry"),
        ("sessionPersistence: {}", "sessionPersistence"),
        ("backendRefs: [{name: web, port: 80, filters: [{type: CORS}]}]", "of a backendRef of the type CORS"),
        ("backendRefs: [{name: web, port: 80, filters: [7]}]", "of a backendRef of the type "),
        ("backendRefs: [{name: web, port: 80, filters: [{type: RequestHeaderModifier}]}]", "requestHeaderModifier"),
        ("timeouts: {request: soon}", "timeouts.request"),
        ("matches: 7", "cannot be read"),
        (
            "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}, percent: 101}}]",
            "percent",
        ),
    ] {
        let out = out(rule);
        let status = &out.statuses.routes[0].parents[0];
        assert_eq!((status.accepted.holds, status.accepted.reason), (false, "UnsupportedValue"), "{rule}");
        assert!(status.accepted.message.contains(word), "{rule}: {}", status.accepted.message);
        let names: Vec<_> = out.further.routes.iter().filter_map(|route| route.name.as_deref()).collect();
        assert_eq!(names, ["kubernetes/HTTPRoute/models/z/0"], "{rule}");
        assert!(out.statuses.routes[1].parents[0].accepted.holds);
        assert_eq!(out.statuses.gateways[0].listeners[0].attached, 2, "both are attached");
    }
}

#[test]
fn references_are_resolved_or_the_condition_says_why_not() {
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: other}\nspec: \
                 {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: models}], to: [{group: \"\", kind: Service, \
                 name: shared}]}";
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: other}}\nspec: {{ports: [{{port: 80}}]}}"
        )
    };
    let further = [grant.to_owned(), service("shared"), service("private")].join("\n---\n");
    for (reference, reason) in [
        ("{name: web, port: 80}", "ResolvedRefs"),
        ("{name: none, port: 80}", "BackendNotFound"),
        ("{name: web, port: 81}", "BackendNotFound"),
        ("{name: web}", "BackendNotFound"),
        ("{name: web, port: 80, kind: ConfigMap}", "InvalidKind"),
        ("{name: shared, namespace: other, port: 80}", "ResolvedRefs"),
        ("{name: private, namespace: other, port: 80}", "RefNotPermitted"),
        ("{name: none, namespace: other, port: 80}", "RefNotPermitted"),
    ] {
        let route = http_route("a", &format!("{{{PARENT}, rules: [{{backendRefs: [{reference}]}}]}}"));
        let out = translated(&format!("{further}\n---\n{route}"));
        let status = &out.statuses.routes[0].parents[0];
        assert_eq!(status.resolved.reason, reason, "{reference}: {}", status.resolved.message);
        assert!(status.accepted.holds, "{reference}");
        // Requests of a rule without a target get 500.
        let [route] = &out.further.routes[..] else { panic!("{reference}") };
        let status = route.filters.first().and_then(|filter| filter.config.get("status")).and_then(Value::as_u64);
        assert_eq!(status, (reason != "ResolvedRefs").then_some(500), "{reference}");
    }
}

#[test]
fn weights_are_kept_and_references_to_one_backend_are_added() {
    let refs =
        "[{name: web, port: 80, weight: 90}, {name: web, port: 90, weight: 10}, {name: web, port: 80, weight: 5}]";
    let (route, _) = one(&format!("{{{PARENT}, rules: [{{backendRefs: {refs}}}]}}"));
    let weights: Vec<_> =
        route["backendRefs"].as_array().unwrap().iter().map(|one| (&one["name"], &one["weight"])).collect();
    assert_eq!(
        weights,
        [(&"kubernetes/models/web/80".into(), &95.into()), (&"kubernetes/models/web/90/h2".into(), &10.into())]
    );
    let (route, _) = one(&format!("{{{PARENT}, rules: [{{backendRefs: [{{name: web, port: 80, weight: 0}}]}}]}}"));
    assert_eq!(route["filters"][0]["respond"]["status"], 500);
    assert_eq!(route["backendRefs"], serde_json::json!([]));
}

#[test]
fn a_target_has_filters_of_its_own() {
    let add = |value: &str| {
        format!(
            "filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: X-To, value: {value}}}]}}}}]"
        )
    };
    let told = "{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-from]}}";
    let refs = format!(
        "[{{name: web, port: 80, {}}}, {{name: web, port: 80, {}}}, {{name: web, port: 80, weight: 3, {}}}, \
         {{name: web, port: 90, filters: [{told}]}}]",
        add("a"),
        add("b"),
        add("a")
    );
    let (route, condition) = one(&format!("{{{PARENT}, rules: [{{backendRefs: {refs}}}]}}"));
    assert_eq!(condition, FINE);
    let set = |value: &str| serde_json::json!([{"requestHeaders": {"set": {"x-to": value}}}]);
    let of = |n: usize, key: &str| route["backendRefs"][n][key].clone();
    assert_eq!((of(0, "weight"), of(0, "filters")), (4.into(), set("a")), "equal ones are added");
    assert_eq!((of(1, "weight"), of(1, "filters")), (1.into(), set("b")), "others stay apart");
    assert_eq!(of(2, "filters"), serde_json::json!([{"responseHeaders": {"remove": ["x-from"]}}]));
}

#[test]
fn the_share_of_targets_that_cannot_be_used_is_answered() {
    let of = |refs: &str| one(&format!("{{{PARENT}, rules: [{{backendRefs: [{refs}]}}]}}")).0;
    for (refs, percent) in [
        ("{name: web, port: 80, weight: 3}, {name: none, port: 80}", Some(25.0)),
        ("{name: none, port: 80, weight: 2}, {name: web, port: 80}, {name: web, port: 7}", Some(75.0)),
        ("{name: web, port: 80}, {name: none, port: 80, weight: 0}", None),
        ("{name: web, port: 80, weight: 4294967295}, {name: none, port: 80, weight: 4294967295}", Some(50.0)),
    ] {
        let route = of(refs);
        let respond = &route["filters"][0]["respond"];
        assert_eq!(respond["percent"].as_f64(), percent, "{refs}");
        assert_eq!(respond["status"].as_u64(), percent.map(|_| 500), "{refs}");
        assert_eq!(route["backendRefs"].as_array().unwrap().len(), 1, "{refs}");
    }
    // With no weight on what can be used, all requests are answered.
    let route = of("{name: web, port: 80, weight: 0}, {name: none, port: 80}");
    assert_eq!(
        (&route["filters"][0]["respond"]["percent"], &route["backendRefs"]),
        (&Value::Null, &Value::Array(vec![]))
    );
    // A redirect answers before a target is asked.
    let redirect = "filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]";
    let (route, _) = one(&format!("{{{PARENT}, rules: [{{{redirect}, backendRefs: [{{name: none, port: 80}}]}}]}}"));
    assert_eq!(route["filters"].as_array().unwrap().len(), 1);
}

#[test]
fn a_call_of_grpc_without_a_target_is_unavailable() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: models}\nspec: {parentRefs: \
                 [{name: public, namespace: infra}], rules: [{backendRefs: [{name: none, port: 80}, {name: web, port: 90}]}]}";
    let out = translated(route);
    let filter = &out.further.routes[0].filters[0].config;
    assert_eq!((&filter["status"], &filter["percent"]), (&503.into(), &50.0.into()));
}

/// Gateway in `infra` with listeners.
fn gateway(name: &str, listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: infra, \
         creationTimestamp: \"2026-01-05T00:00:00Z\"}}\nspec: {{gatewayClassName: spillway, listeners: {listeners}}}"
    )
}

#[test]
fn a_route_is_attached_where_listener_namespace_kind_and_host_fit() {
    let listeners = "[{name: any, port: 81, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}, \
                     {name: same, port: 82, protocol: HTTP}, \
                     {name: team, port: 83, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: inference}}}}}, \
                     {name: grpc, port: 84, protocol: HTTP, allowedRoutes: {namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}}, \
                     {name: wild, port: 85, protocol: HTTP, hostname: \"*.a.test\", allowedRoutes: {namespaces: {from: All}}}]";
    for (section, hosts, expected) in [
        ("any", "[]", Ok("[]")),
        ("any", "[b.test]", Ok(r#"["b.test"]"#)),
        ("same", "[]", Err("NotAllowedByListeners")),
        ("team", "[]", Ok("[]")),
        ("grpc", "[]", Err("NotAllowedByListeners")),
        ("none", "[]", Err("NoMatchingParent")),
        ("wild", "[]", Ok(r#"["*.a.test"]"#)),
        ("wild", "[x.a.test, b.test]", Ok(r#"["x.a.test"]"#)),
        ("wild", "[\"*.x.a.test\"]", Ok(r#"["*.x.a.test"]"#)),
        ("wild", "[\"*.test\"]", Ok(r#"["*.a.test"]"#)),
        ("wild", "[a.test]", Err("NoMatchingListenerHostname")),
    ] {
        let spec = format!(
            "{{parentRefs: [{{name: more, namespace: infra, sectionName: {section}}}], hostnames: {hosts}, rules: [{{{TARGET}}}]}}"
        );
        let out = translated(&format!("{}\n---\n{}", gateway("more", listeners), http_route("a", &spec)));
        let status = &out.statuses.routes[0].parents[0].accepted;
        let found = out.further.routes.iter().find(|route| !route.backend_refs.is_empty());
        let found = found.map(|route| serde_json::to_string(&route.hostnames).unwrap());
        match expected {
            Ok(hosts) => {
                assert_eq!((status.reason, found.as_deref()), ("Accepted", Some(hosts)), "{section} {status:?}")
            }
            Err(reason) => assert_eq!((status.reason, found), (reason, None), "{section}"),
        }
    }
}

#[test]
fn parents_of_others_get_no_status() {
    for parent in ["{name: web, kind: Service, group: \"\"}", "{name: nobodys, namespace: infra}", "{name: public}"] {
        let out = translated(&http_route("a", &format!("{{parentRefs: [{parent}], rules: [{{{TARGET}}}]}}")));
        assert!(out.statuses.routes.is_empty() && out.further.routes.is_empty(), "{parent}");
    }
}

#[test]
fn the_most_specific_listener_of_a_port_has_the_request_and_no_other() {
    let listeners =
        "[{name: one, port: 8080, protocol: HTTP, hostname: x.a.test, allowedRoutes: {namespaces: {from: All}}}]";
    let wide = http_route("wide", &format!("{{{PARENT}, hostnames: [x.a.test, y.a.test], rules: [{{{TARGET}}}]}}"));
    let narrow = http_route(
        "narrow",
        &format!(
            "{{parentRefs: [{{name: more, namespace: infra}}], rules: [{{matches: [{{path: {{value: /n}}}}], {TARGET}}}]}}"
        ),
    );
    let out = translated(&[gateway("more", listeners), wide, narrow].join("\n---\n"));
    let routes: Vec<(&str, Vec<&str>)> = out
        .further
        .routes
        .iter()
        .map(|route| (route.name.as_deref().unwrap(), route.hostnames.iter().map(String::as_str).collect()))
        .collect();
    assert_eq!(
        routes,
        [
            ("kubernetes/HTTPRoute/models/narrow/0", vec!["x.a.test"]),
            ("kubernetes/HTTPRoute/models/wide/0", vec!["y.a.test"]),
            ("kubernetes/404/8080/x.a.test", vec!["x.a.test"]),
        ]
    );
    assert_eq!(out.further.listeners.len(), 1, "one socket");
}

#[test]
fn listeners_that_cannot_be_served_say_why() {
    for (listener, condition, reason) in [
        ("{name: a, port: 90, protocol: TCP}", "Accepted", "UnsupportedProtocol"),
        ("{name: a, port: 90, protocol: HTTPS}", "ResolvedRefs", "InvalidCertificateRef"),
        (
            "{name: a, port: 90, protocol: HTTPS, tls: {certificateRefs: [{name: none}]}}",
            "ResolvedRefs",
            "InvalidCertificateRef",
        ),
        (
            "{name: a, port: 90, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: other}]}}",
            "ResolvedRefs",
            "RefNotPermitted",
        ),
        ("{name: a, port: 90, protocol: HTTPS, tls: {mode: Passthrough}}", "Accepted", "UnsupportedValue"),
        ("{name: a, port: 8080, protocol: HTTP}", "Accepted", "HostnameConflict"),
        (
            "{name: a, port: 90, protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}]}}",
            "ResolvedRefs",
            "InvalidRouteKinds",
        ),
    ] {
        let out = translated(&gateway("more", &format!("[{listener}]")));
        let listener_ = &out.statuses.gateways[1].listeners[0];
        let shown = if condition == "Accepted" { &listener_.accepted } else { &listener_.resolved };
        assert_eq!((shown.holds, shown.reason), (false, reason), "{listener}");
        assert!(!listener_.programmed().holds && !out.statuses.gateways[1].programmed().holds, "{listener}");
        assert_eq!(out.further.listeners.len(), 1, "{listener}");
        assert!(out.statuses.gateways[0].programmed().holds);
    }
}

#[test]
fn a_listener_gets_its_certificate_from_a_secret() {
    use base64::Engine as _;
    let authority = crate::tls::testing::Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = authority.server(&["a.test"]).write(folder.path(), "a");
    let encode =
        |file: &std::path::Path| base64::engine::general_purpose::STANDARD.encode(std::fs::read(file).unwrap());
    let secret = |key: &str| {
        let data = format!("{{tls.crt: {}, tls.key: {key}}}", encode(&cert));
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: c, namespace: infra}}\ntype: kubernetes.io/tls\ndata: {data}"
        )
    };
    let gateway = gateway("more", "[{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}]");
    let out = translated(&format!("{}\n---\n{gateway}", secret(&encode(&key))));
    let listener = out.further.listeners.iter().find(|one| one.address.0.port() == 443).unwrap();
    assert_eq!(listener.tls.as_ref().unwrap().pairs[0].name, "Secret infra/c");
    assert!(out.statuses.gateways[1].listeners[0].programmed().holds);
    let out = translated(&format!("{}\n---\n{gateway}", secret(&encode(&cert))));
    assert_eq!(out.statuses.gateways[1].listeners[0].resolved.reason, "InvalidCertificateRef", "a key that is none");
}

fn pool(spec: &str) -> String {
    let pod = |name: &str, ip: &str, ready: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: models, labels: {{app: vllm}}}}\nstatus: {{podIP: {ip}, \
             conditions: [{{type: Ready, status: \"{ready}\"}}]}}"
        )
    };
    let pool = format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: llama, namespace: models, generation: \
         4}}\nspec: {{selector: {{matchLabels: {{app: vllm}}}}, targetPorts: [{{number: 8000}}, {{number: 8001}}]{spec}}}"
    );
    let refs = "backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: llama}]";
    let route = http_route("a", &format!("{{{PARENT}, rules: [{{{refs}}}]}}"));
    [pod("p1", "10.1.0.1", "True"), pod("p2", "10.1.0.2", "False"), pool, route].join("\n---\n")
}

#[test]
fn a_pool_is_a_backend_of_the_openai_api_with_each_port_of_each_ready_pod() {
    for spec in ["", ", endpointPickerRef: {name: picker, failureMode: FailOpen}"] {
        let objects = objects(&format!("{BASE}\n---\n{}", pool(spec)));
        let out = translate(&objects, &settings(", spillTo: small"));
        let backend = serde_json::to_value(&out.further.backends[0]).unwrap();
        let urls: Vec<_> =
            backend["endpoints"].as_array().unwrap().iter().map(|one| one["url"].as_str().unwrap()).collect();
        assert_eq!(urls, ["http://10.1.0.1:8000", "http://10.1.0.1:8001"]);
        assert_eq!(
            (&backend["protocol"], &backend["name"]),
            (&"openai".into(), &"kubernetes/models/llama/pool".into())
        );
        let route = &out.further.routes[0];
        assert_eq!(route.when_saturated.as_ref().unwrap().spill_to.as_deref(), Some("small"));
        let status = &out.statuses.pools[0];
        assert!(status.accepted.holds && status.parents.contains(&ObjectKey::new("infra", "public")));
    }
}

/// Service of an endpoint picker, with an endpoint for each address.
fn picker(port: &str, addresses: &[&str]) -> String {
    let endpoints: Vec<String> = addresses.iter().map(|one| format!("{{addresses: [{one}]}}")).collect();
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: picker, namespace: models}}\nspec: {{ports: [{{name: grpc, port: 9002{port}}}]}}"
    );
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: picker-1, namespace: models, labels: \
         {{kubernetes.io/service-name: picker}}}}\naddressType: IPv4\nendpoints: [{}]\nports: [{{name: grpc, port: 9012}}]",
        endpoints.join(", ")
    );
    format!("{service}\n---\n{slice}")
}

#[test]
fn a_picker_is_asked_by_the_filter_of_the_rule() {
    let asked = |mode: &str, service: &str| {
        let reference = format!(", endpointPickerRef: {{name: picker, port: {{number: 9002}}{mode}}}");
        let out = translated(&format!("{}\n---\n{service}", pool(&reference)));
        let status = &out.statuses.pools[0];
        assert!(status.accepted.holds && status.resolved.holds, "{}", status.resolved.message);
        assert_eq!(conditions(&out.statuses), ["models/a Accepted=true(Accepted) ResolvedRefs=true(ResolvedRefs)"]);
        json!(out.further.routes[0].filters)
    };
    let ready = ["10.2.0.2", "10.2.0.1"];
    let filter = |url: &str, on_failure: &str| {
        json!({
            "url": url, "requestBody": "fullDuplexStreamed", "responseBody": "fullDuplexStreamed", "timeout": "10s",
            "onFailure": on_failure, "picksEndpoints": true,
        })
    };
    let mut secure = filter("grpcs://10.2.0.1:9012", "closed");
    secure["tls"] = json!({"insecureSkipVerify": true});
    assert_eq!(asked("", &picker("", &ready)), json!([{"externalProcessing": secure}]));
    let plain = filter("grpc://10.2.0.1:9012", "open");
    let h2c = picker(", appProtocol: kubernetes.io/h2c", &ready);
    assert_eq!(asked(", failureMode: FailOpen", &h2c), json!([{"externalProcessing": plain}]));
    // Without a ready picker.
    assert_eq!(asked("", &picker("", &[]))[0]["respond"]["status"], 503);
    assert_eq!(asked(", failureMode: FailOpen", &picker("", &[])), json!([]));
}

#[test]
fn a_picker_that_cannot_be_asked_closes_its_pool_unless_it_may_fail() {
    let named = |rest: &str| format!("{{name: picker, port: {{number: 9002}}{rest}}}");
    let policy = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p, namespace: models}\nspec: \
                  {targetRefs: [{group: \"\", kind: Service, name: picker}], validation: {hostname: a.test, \
                  wellKnownCACertificates: System}}";
    let service = picker("", &["10.2.0.1"]);
    let with_policy = format!("{service}\n---\n{policy}");
    for (reference, more, why) in [
        (named(""), "", "there is no service models/picker"),
        ("{name: picker}".to_owned(), service.as_str(), "`port` of service models/picker is missing"),
        ("{name: picker, port: {number: 1}}".to_owned(), &service, "has no port 1"),
        (named(", kind: Other, group: a.test"), &service, "names a Other of \"a.test\"; expected a Service"),
        (named(""), &with_policy, "BackendTLSPolicy is about service models/picker"),
    ] {
        for is_open in [false, true] {
            let mode = if is_open { ", failureMode: FailOpen}" } else { "}" };
            let reference = reference.strip_suffix('}').unwrap();
            let out = translated(&format!("{}\n---\n{more}", pool(&format!(", endpointPickerRef: {reference}{mode}"))));
            let status = &out.statuses.pools[0];
            assert_eq!((status.accepted.holds, status.resolved.reason), (true, "InvalidExtensionRef"), "{why}");
            assert!(status.resolved.message.contains(why), "{}", status.resolved.message);
            assert!(status.parents.contains(&ObjectKey::new("infra", "public")), "the status names who says it");
            let resolved = if is_open { "true(ResolvedRefs)" } else { "false(BackendNotFound)" };
            assert_eq!(
                conditions(&out.statuses),
                [format!("models/a Accepted=true(Accepted) ResolvedRefs={resolved}")]
            );
            assert_eq!(out.further.routes[0].filters.is_empty(), is_open, "{why}");
        }
    }
}

#[test]
fn a_picker_of_one_of_several_targets_is_refused_or_not_asked() {
    let of = |mode: &str| {
        let reference = format!(", endpointPickerRef: {{name: picker, port: {{number: 9002}}{mode}}}");
        let refs = "backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: llama}, {name: web, port: 80}]";
        let route = http_route("a", &format!("{{{PARENT}, rules: [{{{refs}}}]}}"));
        let objects = pool(&reference);
        let objects = objects.rsplit_once("\n---\n").unwrap().0;
        translated(&[objects, &route, &picker("", &["10.2.0.1"])].join("\n---\n"))
    };
    let out = of("");
    let accepted = &out.statuses.routes[0].parents[0].accepted;
    assert_eq!((accepted.holds, accepted.reason), (false, "UnsupportedValue"));
    assert!(accepted.message.contains("expected this pool alone"), "{}", accepted.message);
    let out = of(", failureMode: FailOpen");
    let parent = &out.statuses.routes[0].parents[0];
    assert!(parent.accepted.holds && parent.resolved.holds && parent.resolved.message.contains("is not asked"));
    assert_eq!((out.further.routes[0].filters.len(), out.further.routes[0].backend_refs.len()), (0, 2));
}

#[test]
fn a_route_of_grpc_asks_servers_that_speak_http_2() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: models}\nspec: {parentRefs: \
                 [{name: public, namespace: infra}], rules: [{matches: [{method: {service: a.B, method: C}}, {method: {service: a.B}}, \
                 {method: {method: C}}], backendRefs: [{name: web, port: 80}]}]}";
    let out = translated(route);
    let paths: Vec<String> =
        out.further.routes[0].matches.iter().map(|one| format!("{:?}", one.path.as_ref().unwrap())).collect();
    assert_eq!(paths, [r#"Exact("/a.B/C")"#, r#"Prefix("/a.B")"#, r#"Regex("/[^/]+/C")"#]);
    assert!(out.further.backends[0].http2);
    assert_eq!(out.further.backends[0].name, "kubernetes/models/web/80/h2", "apart from the one that speaks HTTP/1");
}

#[test]
fn a_route_of_grpc_matches_by_regular_expressions_that_hold_alone() {
    let of = |method: &str| {
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: models}\nspec: {parentRefs: \
                     [{name: public, namespace: infra}], rules: [{matches: [{method: {type: RegularExpression, METHOD}}], backendRefs: \
                     [{name: web, port: 80}]}]}";
        translated(&route.replace("METHOD", method))
    };
    for (method, path) in [
        ("service: \"a|b\", method: \"C.*\"", "/(?:a|b)/(?:C.*)"),
        ("service: \"a.+\"", "/(?:a.+)/[^/]+"),
        ("method: C", "/[^/]+/(?:C)"),
    ] {
        let out = of(method);
        let path_ = out.further.routes[0].matches[0].path.clone();
        assert_eq!(path_, Some(spillway_config::schema::PathMatch::Regex(path.to_owned())), "{method}");
    }
    for method in ["service: \"a)|(?:b\"", "method: \"(\"", "service: \"a{1000}{1000}\""] {
        let out = of(method);
        let accepted = &out.statuses.routes[0].parents[0].accepted;
        assert!(!accepted.holds && accepted.message.contains("is not a regular expression"), "{method}: {accepted:?}");
        assert!(out.further.routes.is_empty());
    }
}

#[test]
fn one_route_has_a_bounded_number_of_regular_expressions() {
    let pattern = "{headers: [{name: a, type: RegularExpression, value: b}]}";
    for (count, holds) in [(64, true), (65, false)] {
        let rules = vec![format!("{{matches: [{pattern}], {TARGET}}}"); count].join(", ");
        let out = translated(&http_route("a", &format!("{{{PARENT}, rules: [{rules}]}}")));
        assert_eq!(out.statuses.routes[0].parents[0].accepted.holds, holds, "{count}");
    }
}

#[test]
fn of_equal_matches_the_older_then_the_first_name_come_first() {
    let of = |name: &str, rule: &str| http_route(name, &format!("{{{PARENT}, rules: [{{{rule}{TARGET}}}]}}"));
    let older = of("z", "").replace("2026-01-02", "2025-01-02");
    let out = translated(&[of("b", ""), of("a", ""), older].join("\n---\n"));
    let names: Vec<_> =
        out.further.routes.iter().map(|route| route.name.as_deref().unwrap().rsplit('/').nth(1).unwrap()).collect();
    assert_eq!(names, ["z", "a", "b"]);
}

#[test]
fn a_class_of_another_controller_serves_nothing() {
    let other = BASE
        .replace("spillway.dev/gateway\n", "example.com/other\n")
        .replace("spillway.dev/gateway}", "example.com/other}");
    let out = translate(&objects(&other), &settings(""));
    assert!(out.further.is_empty() && out.statuses == Statuses::default());
}

#[test]
fn parts_that_the_configuration_refuses_are_named_in_the_statuses() {
    let out = translated(&http_route("a", &format!("{{{PARENT}, rules: [{{{TARGET}}}]}}")));
    let refused = |kind, name: &str| RefusedPart { kind, name: name.to_owned(), message: "no".to_owned() };
    let statuses = out.statuses_without(&[refused(PartKind::Route, "kubernetes/HTTPRoute/models/a/0")]);
    assert_eq!(conditions(&statuses), ["models/a Accepted=false(UnsupportedValue) ResolvedRefs=true(ResolvedRefs)"]);
    let statuses = out.statuses_without(&[refused(PartKind::Listener, "kubernetes/8080")]);
    let gateway = &statuses.gateways[0];
    assert_eq!((gateway.listeners[0].accepted.reason, gateway.programmed().holds), ("PortUnavailable", false));
    assert_eq!((gateway.accepted.reason, gateway.accepted.holds), ("ListenersNotValid", false));
}

#[test]
fn what_changes_without_meaning_makes_no_edit() {
    let mut objects = objects(BASE);
    let slice = |version: &str, address: &str| -> Value {
        serde_json::json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"name": "http", "port": 8000}],
            "metadata": {
                "name": "web-1", "namespace": "models", "resourceVersion": version,
                "labels": {"kubernetes.io/service-name": "web"}, "annotations": {"last-change": version},
            },
            "endpoints": [{"addresses": [address]}],
        })
    };
    assert!(objects.insert(Kind::EndpointSlice, slice("1", "10.0.0.1")));
    assert!(!objects.insert(Kind::EndpointSlice, slice("2", "10.0.0.1")));
    assert!(objects.insert(Kind::EndpointSlice, slice("3", "10.0.0.2")));
    let gateway = objects.get(Kind::Gateway, &ObjectKey::new("infra", "public")).unwrap();
    let mut written = (**gateway).clone();
    written["status"] = serde_json::json!({"conditions": []});
    written["metadata"]["resourceVersion"] = "9".into();
    assert!(!objects.insert(Kind::Gateway, written.clone()), "a status of ours");
    written["spec"]["listeners"][0]["port"] = 8081.into();
    assert!(objects.insert(Kind::Gateway, written));
}

#[test]
fn long_names_stay_apart_and_fit() {
    let name = |last: &str| part_name(["HTTPRoute", &"n".repeat(63), &"r".repeat(253), last]);
    assert!(name("1").len() <= MAX_NAME && name("1") != name("2"));
}

/// Pointers to all values in a value.
fn pointers(value: &Value, here: &str, out: &mut Vec<String>) {
    out.push(here.to_owned());
    let members: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(key, value)| (key.replace('/', "~1"), value)).collect(),
        Value::Array(all) => all.iter().enumerate().map(|(n, value)| (n.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in members {
        pointers(value, &format!("{here}/{key}"), out);
    }
}

#[test]
fn an_object_that_is_wrong_in_any_place_is_read_without_a_panic_and_gets_a_status() {
    use crate::discovery::status::differing;
    let rules = "[{matches: [{path: {type: Exact, value: /a}, method: GET, headers: [{type: RegularExpression, name: a, value: b}], \
                 queryParams: [{name: a, value: b}]}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}, \
                 percent: 5}}], timeouts: {request: 1s}, backendRefs: [{name: web, port: 80, weight: 3, filters: [{type: \
                 RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}]}, {name: none, port: 80}]}]";
    let grpc = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: models}\nspec: {parentRefs: \
                [{name: public, namespace: infra}], rules: [{matches: [{method: {type: RegularExpression, service: a, method: b}}], \
                backendRefs: [{name: web, port: 90}]}]}";
    let policy = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p, namespace: models, generation: \
                  1}\nspec: {targetRefs: [{group: \"\", kind: Service, name: web, sectionName: http}], validation: {hostname: web.test, \
                  caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}]}, options: {}}\nstatus: {ancestors: [{controllerName: \
                  spillway.dev/gateway, ancestorRef: {name: public}, conditions: [{type: Accepted, status: \"True\"}]}]}";
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ca, namespace: models}\ndata: {ca.crt: none}";
    let route = http_route("r", &format!("{{{PARENT}, hostnames: [a.test], rules: {rules}}}"));
    let all = [BASE, &pool(""), &route, grpc, policy, map].join("\n---\n");
    let (all, settings) = (objects(&all), settings(", spillTo: small"));
    let mut tried = 0;
    for kind in Kind::ALL {
        for (_, object) in all.of(kind) {
            let mut places = Vec::new();
            pointers(object, "", &mut places);
            for place in places {
                for wrong in
                    ["null", "-7", "\"\"", "\"*.%/\u{e9}{\"", "[]", "[7]", "{}", "{\"a\": null}", "99999999999"]
                {
                    let (mut objects, mut changed) = (all.clone(), (**object).clone());
                    *changed.pointer_mut(&place).unwrap() = serde_json::from_str(wrong).unwrap();
                    objects.insert(kind, changed);
                    let out = translate(&objects, &settings);
                    let _ = differing(&objects, &out.statuses, &[], "2026-01-01T00:00:00Z");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 1_000, "{tried}");
}

mod policies {
    use super::*;

    fn policy(name: &str, created: &str, target: &str, validation: &str) -> String {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}, namespace: models, \
             generation: 2, creationTimestamp: \"{created}T00:00:00Z\"}}\nspec: {{targetRefs: [{target}], validation: {validation}}}"
        )
    }

    const WEB: &str = "{group: \"\", kind: Service, name: web}";
    const SYSTEM: &str = "{hostname: web.test, wellKnownCACertificates: System}";

    fn config_map(name: &str, pem: &str) -> String {
        let value = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "models"},
            "data": {"ca.crt": pem, "further": "x"},
        });
        value.to_string()
    }

    /// Translation of a route to port 80 of `web` with further objects.
    fn with(further: &[String]) -> Translation {
        let route = http_route("a", &format!("{{{PARENT}, rules: [{{{TARGET}}}]}}"));
        translated(&[&[route], further].concat().join("\n---\n"))
    }

    fn shown(status: &PolicyStatus) -> (bool, &'static str, bool, &'static str) {
        (status.accepted.holds, status.accepted.reason, status.resolved.holds, status.resolved.reason)
    }

    /// True if requests to `web` are refused, and none go there in any other way.
    fn is_refused(out: &Translation) -> bool {
        let [route] = &out.further.routes[..] else { panic!("one route") };
        route.filters.iter().any(|filter| filter.config.get("status") == Some(&500.into()))
            && route.backend_refs.is_empty()
            && out.further.backends.is_empty()
    }

    #[test]
    fn a_service_with_a_policy_is_spoken_to_with_tls() {
        let pem = crate::tls::testing::Authority::new();
        let folder = tempfile::tempdir().unwrap();
        let pem = std::fs::read_to_string(pem.write(folder.path())).unwrap();
        let given = "{hostname: web.test, caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}]}";
        for (validation, has_authorities) in [(SYSTEM, false), (given, true)] {
            let out = with(&[policy("p", "2026-01-01", WEB, validation), config_map("ca", &pem)]);
            let [backend] = &out.further.backends[..] else { panic!("one backend") };
            assert_eq!(backend.tls.sni.as_deref(), Some("web.test"));
            let authorities =
                backend.tls.authorities.as_ref().map(|given| String::from_utf8(given.pem.to_vec()).unwrap());
            assert_eq!(authorities, has_authorities.then(|| format!("{pem}\n")));
            assert!(backend.endpoints.iter().all(|endpoint| endpoint.url.https) && backend.endpoints.len() == 3);
            let status = &out.statuses.policies[0];
            assert_eq!(shown(status), (true, "Accepted", true, "ResolvedRefs"));
            assert_eq!(status.ancestors, BTreeSet::from([ObjectKey::new("infra", "public")]));
            assert_eq!(conditions(&out.statuses), [FINE]);
        }
        let out = with(&[]);
        assert!(!out.further.backends[0].endpoints[0].url.https && out.statuses.policies.is_empty());
    }

    #[test]
    fn a_policy_is_about_one_port_where_it_names_one() {
        let section = |name: &str| format!("{{group: \"\", kind: Service, name: web, sectionName: {name}}}");
        let sni = |policies: &[String]| {
            let out = with(policies);
            let shown: Vec<_> = out.statuses.policies.iter().map(|one| one.accepted.reason).collect();
            (out.further.backends[0].tls.sni.clone(), shown.join(" "))
        };
        let of_port = |host: &str, name: &str| {
            policy(
                host,
                "2026-02-02",
                &section(name),
                &format!("{{hostname: {host}.test, wellKnownCACertificates: System}}"),
            )
        };
        assert_eq!(sni(&[of_port("p", "http")]), (Some("p.test".to_owned()), "Accepted".to_owned()));
        assert_eq!(sni(&[of_port("p", "grpc")]), (None, "Accepted".to_owned()));
        assert_eq!(sni(&[of_port("p", "none")]), (None, "TargetNotFound".to_owned()));
        // One about the port comes before one about the service, whatever its age, and they are in no conflict.
        let both = [policy("all", "2026-01-01", WEB, SYSTEM), of_port("p", "http")];
        assert_eq!(sni(&both), (Some("p.test".to_owned()), "Accepted Accepted".to_owned()));
    }

    #[test]
    fn of_two_policies_the_older_wins_then_the_first_name_and_the_other_says_so() {
        let of = |name: &str, created: &str| {
            policy(name, created, WEB, &format!("{{hostname: {name}.test, wellKnownCACertificates: System}}"))
        };
        for (one, other, winner) in
            [(of("a", "2026-01-02"), of("b", "2026-01-01"), "b"), (of("a", "2026-01-01"), of("b", "2026-01-01"), "a")]
        {
            let out = with(&[one, other]);
            assert_eq!(out.further.backends[0].tls.sni, Some(format!("{winner}.test")));
            for status in &out.statuses.policies {
                let reason = if status.key.name == winner { "Accepted" } else { "Conflicted" };
                assert_eq!(status.accepted.reason, reason, "{}", status.key);
                assert!(
                    status.ancestors.len() == 1 && (reason == "Accepted" || status.accepted.message.contains(winner))
                );
            }
        }
        // An older one that does not hold is in the way all the same: without it there would be no TLS as it says.
        let broken = policy("b", "2026-01-01", WEB, "{hostname: \"\", wellKnownCACertificates: System}");
        assert!(is_refused(&with(&[of("a", "2026-01-02"), broken])));
    }

    #[test]
    fn a_policy_that_does_not_hold_says_why_and_lets_nothing_through() {
        let refs = |refs: &str| format!("{{hostname: web.test, caCertificateRefs: [{refs}]}}");
        let none = (false, "NoValidCACertificate", false, "InvalidCACertificateRef");
        let invalid = (false, "Invalid", true, "ResolvedRefs");
        for (validation, expected, word) in [
            (refs("{group: \"\", kind: ConfigMap, name: none}"), none, "no ConfigMap models/none"),
            (refs("{group: \"\", kind: ConfigMap, name: empty}"), none, "no `ca.crt`"),
            (refs("{group: \"\", kind: ConfigMap, name: wrong}"), none, "no certificate found"),
            (
                refs("{group: \"\", kind: Secret, name: ca}"),
                (false, "NoValidCACertificate", false, "InvalidKind"),
                "expected a ConfigMap",
            ),
            ("{hostname: web.test}".to_owned(), invalid, "names no authorities"),
            ("{hostname: web.test, wellKnownCACertificates: Mine}".to_owned(), invalid, "\"Mine\""),
            ("{hostname: \"*.test\", wellKnownCACertificates: System}".to_owned(), invalid, "\"*.test\""),
            ("{hostname: 10.0.0.1, wellKnownCACertificates: System}".to_owned(), invalid, "\"10.0.0.1\""),
            (
                "{hostname: web.test, wellKnownCACertificates: System, subjectAltNames: [{type: Hostname, hostname: a.test}]}".to_owned(),
                invalid,
                "subjectAltNames",
            ),
            ("{wellKnownCACertificates: System}".to_owned(), invalid, "cannot be read"),
            ("7".to_owned(), invalid, "cannot be read"),
        ] {
            let empty = r#"{"kind": "ConfigMap", "metadata": {"name": "empty", "namespace": "models"}, "data": {"a": "b"}}"#;
            let maps = [empty.to_owned(), config_map("wrong", "not PEM"), config_map("ca", "x")];
            let out = with(&[&[policy("p", "2026-01-01", WEB, &validation)], &maps[..]].concat());
            let status = &out.statuses.policies[0];
            assert_eq!(shown(status), expected, "{validation}");
            let message = if status.resolved.holds { &status.accepted.message } else { &status.resolved.message };
            assert!(message.contains(word), "{validation}: {message}");
            assert!(is_refused(&out), "{validation}");
            assert_eq!(conditions(&out.statuses), [FINE], "the reference itself is sound: {validation}");
            let resolved = &out.statuses.routes[0].parents[0].resolved;
            assert!(resolved.message.contains("BackendTLSPolicy models/p"), "{resolved:?}");
        }
    }

    #[test]
    fn authorities_that_can_be_used_are_used_beside_others_that_cannot() {
        let folder = tempfile::tempdir().unwrap();
        let pem = std::fs::read_to_string(crate::tls::testing::Authority::new().write(folder.path())).unwrap();
        let validation = "{hostname: web.test, caCertificateRefs: [{group: \"\", kind: ConfigMap, name: none}, \
                          {group: \"\", kind: ConfigMap, name: ca}]}";
        let out = with(&[policy("p", "2026-01-01", WEB, validation), config_map("ca", &pem)]);
        assert_eq!(shown(&out.statuses.policies[0]), (true, "Accepted", false, "InvalidCACertificateRef"));
        assert!(out.further.backends[0].tls.authorities.is_some());
    }

    #[test]
    fn config_maps_are_not_read_unless_the_file_says_so() {
        let validation = "{hostname: web.test, caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}]}";
        let route = http_route("a", &format!("{{{PARENT}, rules: [{{{TARGET}}}]}}"));
        let all = [BASE.to_owned(), route, policy("p", "2026-01-01", WEB, validation)].join("\n---\n");
        let mut settings = settings("");
        settings.ca_config_maps = false;
        let out = translate(&objects(&all), &settings);
        assert!(out.statuses.policies[0].resolved.message.contains("caConfigMaps: true") && is_refused(&out));
    }

    #[test]
    fn a_policy_about_a_pool_is_refused_and_closes_it() {
        let target = "{group: inference.networking.k8s.io, kind: InferencePool, name: llama}";
        let out = translated(&format!("{}\n---\n{}", pool(""), policy("p", "2026-01-01", target, SYSTEM)));
        let status = &out.statuses.policies[0];
        assert_eq!((status.accepted.reason, status.ancestors.len()), ("Invalid", 1));
        assert!(out.further.routes[0].backend_refs.is_empty());
    }

    #[test]
    fn a_protocol_with_tls_is_served_where_a_policy_says_how() {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: safe, namespace: models}\nspec: {ports: [{name: https, port: 443, \
                       appProtocol: https}]}";
        let route = http_route("a", &format!("{{{PARENT}, rules: [{{backendRefs: [{{name: safe, port: 443}}]}}]}}"));
        let target = "{group: \"\", kind: Service, name: safe}";
        for (policies, reason) in
            [(vec![], "UnsupportedProtocol"), (vec![policy("p", "2026-01-01", target, SYSTEM)], "ResolvedRefs")]
        {
            let out = translated(&[vec![service.to_owned(), route.clone()], policies].concat().join("\n---\n"));
            assert_eq!(out.statuses.routes[0].parents[0].resolved.reason, reason);
        }
    }

    #[test]
    fn a_status_is_written_for_the_gateways_that_use_the_policy_alone() {
        use crate::discovery::status::differing;
        let unused = policy("unused", "2026-01-01", "{group: \"\", kind: Service, name: other}", SYSTEM);
        let route = http_route("a", &format!("{{{PARENT}, rules: [{{{TARGET}}}]}}"));
        let all = [BASE.to_owned(), route, unused, policy("p", "2026-01-01", WEB, SYSTEM)].join("\n---\n");
        let mut objects = objects(&all);
        let key = ObjectKey::new("models", "p");
        let other =
            serde_json::json!({"controllerName": "example.com/other", "ancestorRef": {"name": "x"}, "conditions": []});
        let mut object = (**objects.get(Kind::BackendTlsPolicy, &key).unwrap()).clone();
        object["status"] = serde_json::json!({"ancestors": [other]});
        objects.insert(Kind::BackendTlsPolicy, object.clone());
        let statuses = translate(&objects, &settings("")).statuses;
        let writes = differing(&objects, &statuses, &[], "2026-01-01T00:00:00Z");
        let written: Vec<_> = writes.iter().filter(|write| write.kind == Kind::BackendTlsPolicy).collect();
        let [write] = written[..] else { panic!("{written:?}") };
        assert_eq!((&write.key, &write.status["ancestors"][0]), (&key, &other));
        let own = &write.status["ancestors"][1];
        assert_eq!((&own["ancestorRef"]["kind"], &own["ancestorRef"]["name"]), (&"Gateway".into(), &"public".into()));
        assert_eq!(
            (&own["conditions"][0]["type"], &own["conditions"][1]["type"]),
            (&"Accepted".into(), &"ResolvedRefs".into())
        );
        object["status"] = write.status.clone();
        objects.insert(Kind::BackendTlsPolicy, object);
        let again = differing(&objects, &statuses, &[], "2026-02-02T00:00:00Z");
        assert!(again.iter().all(|write| write.kind != Kind::BackendTlsPolicy));
        // Once no route uses it, it keeps no status of ours.
        let mut left = statuses.clone();
        left.policies.iter_mut().for_each(|policy| policy.ancestors.clear());
        let writes = differing(&objects, &left, &[], "2026-02-02T00:00:00Z");
        let last = writes.iter().find(|write| write.kind == Kind::BackendTlsPolicy).unwrap();
        assert_eq!(last.status["ancestors"], serde_json::json!([other]));
    }

    #[test]
    fn of_a_config_map_only_the_authorities_are_kept() {
        let objects = objects(&config_map("ca", "x"));
        let kept = objects.get(Kind::ConfigMap, &ObjectKey::new("models", "ca")).unwrap();
        assert_eq!(kept["data"], serde_json::json!({"ca.crt": "x"}));
    }
}

mod written {
    use super::*;
    use crate::discovery::status::differing;

    #[test]
    fn a_status_is_written_once_and_keeps_the_conditions_of_others() {
        let other =
            serde_json::json!({"controllerName": "example.com/other", "parentRef": {"name": "x"}, "conditions": []});
        let mut objects =
            objects(&format!("{BASE}\n---\n{}", http_route("a", &format!("{{{PARENT}, rules: [{{{TARGET}}}]}}"))));
        let key = ObjectKey::new("models", "a");
        let mut route = (**objects.get(Kind::HttpRoute, &key).unwrap()).clone();
        route["status"] = serde_json::json!({"parents": [other]});
        objects.insert(Kind::HttpRoute, route);
        let statuses = translate(&objects, &settings("")).statuses;
        let writes = differing(&objects, &statuses, &["203.0.113.7".to_owned()], "2026-01-01T00:00:00Z");
        let kinds: Vec<Kind> = writes.iter().map(|write| write.kind).collect();
        assert_eq!(kinds, [Kind::GatewayClass, Kind::Gateway, Kind::HttpRoute]);
        assert_eq!(writes[2].status["parents"][0], other);
        assert_eq!(writes[2].status["parents"][1]["conditions"][0]["observedGeneration"], 7);
        assert_eq!(writes[1].status["addresses"][0]["type"], "IPAddress");
        assert_eq!(writes[1].status["listeners"][0]["supportedKinds"][0]["kind"], "HTTPRoute");
        for write in writes {
            let mut object = (**objects.get(write.kind, &write.key).unwrap()).clone();
            object["status"] = write.status;
            objects.insert(write.kind, object);
        }
        let again = differing(&objects, &statuses, &["203.0.113.7".to_owned()], "2026-02-02T00:00:00Z");
        assert_eq!(again, [], "the time alone makes no difference");
        // A route that leaves its Gateway loses the status of it, and nothing else.
        let mut left = statuses.clone();
        left.routes.clear();
        let writes = differing(&objects, &left, &["203.0.113.7".to_owned()], "2026-02-02T00:00:00Z");
        assert_eq!(writes.len(), 1);
        assert_eq!(writes[0].status["parents"], serde_json::json!([other]));
    }
}
