//! HAProxy.

use std::process::Command;

use super::{CONNECTIONS, KEY, Kind, LIMIT, Peer, Site, printed, version_in};
use crate::process::Process;

/// HAProxy of the distribution.
pub(super) struct Haproxy;

impl Peer for Haproxy {
    fn name(&self) -> &'static str {
        "HAProxy"
    }

    fn version(&self) -> Option<String> {
        version_in(&printed("haproxy", &["-v"])?)
    }

    fn source(&self) -> &'static str {
        "Debian's haproxy"
    }

    fn serves(&self, _: Kind) -> bool {
        true
    }

    fn difference(&self, kind: Kind) -> Option<&'static str> {
        (kind == Kind::Full).then_some("no tracing in this package")
    }

    fn start(&self, site: &Site<'_>) -> Process {
        let tls = match site.kind {
            Kind::Tls => format!(" ssl crt {} ssl-min-ver TLSv1.3 alpn http/1.1", site.pem.display()),
            Kind::Http2 => format!(" ssl crt {} ssl-min-ver TLSv1.3 alpn h2", site.pem.display()),
            _ => String::new(),
        };
        let (server, server_options) = match site.kind {
            Kind::Http2 => (site.upstream_h2, " proto h2"),
            _ => (site.upstream, ""),
        };
        let work = match site.kind {
            Kind::Full => full(),
            Kind::Chat => "  option http-buffer-request
  option http-no-delay
  acl is_large req.body,json_query('$.model') -m str large
  use_backend u if is_large
  default_backend none
"
            .to_owned(),
            _ => "  default_backend u\n".to_owned(),
        };
        let text = format!(
            "global
  nbthread {workers}
  maxconn {CONNECTIONS}
  log stdout format raw local0
  tune.bufsize 65536
defaults
  mode http
  timeout connect 10s
  timeout client 10m
  timeout server 10m
  http-reuse always
backend keys
  stick-table type string len 32 size 100k expire 10s store http_req_rate(1s)
backend u
  server s 127.0.0.1:{server}{server_options}
backend none
  http-request deny deny_status 404
frontend f
  bind 127.0.0.1:{port}{tls}
{work}",
            workers = site.workers,
            port = site.port,
        );
        Process::start(Command::new("haproxy").arg("-db").arg("-f").arg(site.write("haproxy.cfg", &text)))
    }
}

/// Work on each request of `Full`.
fn full() -> String {
    format!(
        "  log global
  option httplog
  stick-table type ip size 100k expire 10s store http_req_rate(1s)
  http-request deny deny_status 401 unless {{ hdr(x-api-key) -m str {KEY} }}
  http-request track-sc0 src
  http-request track-sc1 hdr(x-api-key) table keys
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {LIMIT} }}
  http-request deny deny_status 429 if {{ sc_http_req_rate(1,keys) gt {LIMIT} }}
  http-request set-header x-served-by haproxy
  http-request del-header cookie
  http-response set-header x-backend u
  default_backend u
"
    )
}
