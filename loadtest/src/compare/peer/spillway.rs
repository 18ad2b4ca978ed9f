//! Spillway itself: the binary that `SPILLWAY_BIN` names, built with the profile that `SPILLWAY_BENCH_PROFILE` names.

use std::process::Command;

use super::{CONNECTIONS, KEY_SHA256, Kind, LIMIT, Peer, Site, printed, version_in};
use crate::process::{Process, named};

/// The gateway.
pub(super) struct Spillway;

impl Peer for Spillway {
    fn name(&self) -> &'static str {
        "Spillway"
    }

    fn version(&self) -> Option<String> {
        let version = version_in(&printed(named("SPILLWAY_BIN"), &["--version"])?)?;
        let profile = std::env::var("SPILLWAY_BENCH_PROFILE");
        Some(profile.map_or(version.clone(), |profile| format!("{version}, profile `{profile}`")))
    }

    fn source(&self) -> &'static str {
        "this repository"
    }

    fn serves(&self, _: Kind) -> bool {
        true
    }

    fn start(&self, site: &Site<'_>) -> Process {
        let protocol = if site.has_tls() {
            format!(
                ", protocol: https, tls: {{minVersion: \"1.3\", certificates: [{{certFile: {pem}, keyFile: {pem}}}]}}",
                pem = site.pem.display()
            )
        } else {
            String::new()
        };
        let (server, http2) = match site.kind {
            Kind::Http2 => (site.upstream_h2, ", http2: true"),
            _ => (site.upstream, ""),
        };
        let backend = |name: &str, port: u16, more: &str| {
            format!("  - {{name: {name}, endpoints: [{{url: \"http://127.0.0.1:{port}\"}}]{more}}}\n")
        };
        let rest = match site.kind {
            Kind::Full => format!("backends:\n{}{}", backend("u", server, ""), full(site.collector)),
            Kind::Chat => format!(
                "backends:\n{}{}routes:
  - {{name: large, matches: [{{model: large}}], backendRefs: [{{name: large}}]}}
  - {{name: small, matches: [{{model: small}}], backendRefs: [{{name: small}}]}}
telemetry: {{logs: {{access: false}}}}
",
                backend("large", server, ", protocol: openai"),
                backend("small", 1, ", protocol: openai"),
            ),
            _ => format!(
                "backends:\n{}routes: [{{limits: {{maxBody: 64MiB}}, backendRefs: [{{name: u}}]}}]
telemetry: {{logs: {{access: false}}}}
",
                backend("u", server, http2)
            ),
        };
        let text = format!(
            "listeners: [{{address: \"127.0.0.1:{}\", limits: {{maxConnections: {CONNECTIONS}, idleTimeout: 10m}}{protocol}}}]
admin: {{address: \"127.0.0.1:0\"}}
{rest}",
            site.port
        );
        let config = site.write("spillway.yaml", &text);
        Process::start(
            Command::new(named("SPILLWAY_BIN"))
                .args(["serve", "-c"])
                .arg(config)
                .env("TOKIO_WORKER_THREADS", site.workers.to_string()),
        )
    }
}

/// Callers, route and telemetry of `Full`.
fn full(collector: u16) -> String {
    format!(
        "consumers: [{{name: a, keys: [{{sha256: {KEY_SHA256}}}]}}]
routes:
  - filters:
      - rateLimit: {{by: clientAddress, requests: {LIMIT}/s}}
      - rateLimit: {{by: consumer, requests: {LIMIT}/s}}
      - requestHeaders: {{set: {{x-served-by: spillway}}, remove: [cookie]}}
      - responseHeaders: {{set: {{x-backend: \"{{backend}}\"}}}}
    backendRefs: [{{name: u}}]
telemetry: {{tracing: {{otlp: {{endpoint: \"http://127.0.0.1:{collector}\"}}, sampleRatio: 0.01}}}}
"
    )
}
