//! nginx, the proxy that all others are compared with.

use std::process::Command;

use super::{CONNECTIONS, KEY, Kind, LIMIT, Peer, Site, printed, version_in};
use crate::process::Process;

/// nginx of the distribution.
pub(super) struct Nginx;

impl Peer for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn version(&self) -> Option<String> {
        version_in(&printed("nginx", &["-v"])?)
    }

    fn source(&self) -> &'static str {
        "Debian's nginx-light"
    }

    fn serves(&self, _: Kind) -> bool {
        true
    }

    fn difference(&self, kind: Kind) -> Option<&'static str> {
        match kind {
            Kind::Full => Some("no tracing in this package"),
            Kind::Chat => Some("passes the body without reading it: this package cannot route by it"),
            Kind::Http2 => Some("HTTP/1.1 towards the server"),
            Kind::Bare | Kind::Tls => None,
        }
    }

    fn start(&self, site: &Site<'_>) -> Process {
        let (log, work, outside) = match site.kind {
            Kind::Full => ("access_log /dev/null combined;", full(), limits()),
            _ => ("access_log off;", String::new(), String::new()),
        };
        let listen = match site.kind {
            Kind::Tls => " ssl",
            Kind::Http2 => " ssl http2",
            _ => "",
        };
        let tls = if site.has_tls() {
            format!(
                "ssl_certificate {pem}; ssl_certificate_key {pem}; ssl_protocols TLSv1.3;",
                pem = site.pem.display()
            )
        } else {
            String::new()
        };
        let text = format!(
            "daemon off; worker_processes {workers}; pid {pid}; error_log /dev/null;
events {{ worker_connections {files}; }}
http {{
  {log} {outside}
  keepalive_requests 1000000000; client_max_body_size 0;
  proxy_request_buffering off; proxy_max_temp_file_size 0;
  client_body_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port}{listen} backlog=8192; {tls}
    location / {{
      proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection \"\"; {buffering} {work}
    }}
  }}
}}
",
            workers = site.workers,
            // Connections of both sides count.
            files = 2 * CONNECTIONS,
            pid = site.folder.join("nginx.pid").display(),
            folder = site.folder.display(),
            upstream = site.upstream,
            port = site.port,
            buffering = if site.kind == Kind::Chat { "proxy_buffering off;" } else { "" },
        );
        Process::start(Command::new("nginx").arg("-c").arg(site.write("nginx.conf", &text)))
    }
}

/// Zones of the limits, and what is known of the key.
fn limits() -> String {
    format!(
        "map $http_x_api_key $known {{ default 0; {KEY} 1; }}
  limit_req_zone $binary_remote_addr zone=address:10m rate={LIMIT}r/s;
  limit_req_zone $http_x_api_key zone=key:10m rate={LIMIT}r/s;"
    )
}

/// Work on each request of `Full`.
fn full() -> String {
    format!(
        "if ($known = 0) {{ return 401; }}
      limit_req zone=address burst={LIMIT} nodelay; limit_req zone=key burst={LIMIT} nodelay;
      proxy_set_header x-served-by nginx; proxy_set_header Cookie \"\"; add_header x-backend u;"
    )
}
