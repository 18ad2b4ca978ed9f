//! A bare proxy of Pingora: the library's own sessions and pool with nothing on top. A peer, no product.

use std::process::Command;

use ::pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use ::pingora::server::Server;
use ::pingora::server::configuration::ServerConf;
use ::pingora::upstreams::peer::HttpPeer;
use clap::Args;

use super::{Kind, Peer, Site};
use crate::process::Process;

/// The peer.
pub(super) struct Pingora;

impl Peer for Pingora {
    fn name(&self) -> &'static str {
        "Pingora"
    }

    fn version(&self) -> Option<String> {
        Some("0.9.1".to_owned())
    }

    fn source(&self) -> &'static str {
        "a bare proxy of loadtest/, on the version that the gateway is pinned to"
    }

    fn serves(&self, kind: Kind) -> bool {
        kind != Kind::Full
    }

    fn difference(&self, kind: Kind) -> Option<&'static str> {
        (kind == Kind::Chat).then_some("passes the body without reading it")
    }

    fn start(&self, site: &Site<'_>) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["bare-pingora", "--workers", &site.workers.to_string(), "--port", &site.port.to_string()]);
        if site.has_tls() {
            command.arg("--pem").arg(site.pem);
        }
        let upstream = match site.kind {
            Kind::Http2 => {
                command.arg("--http2");
                site.upstream_h2
            }
            _ => site.upstream,
        };
        Process::start(command.args(["--upstream", &upstream.to_string()]))
    }
}

/// Runs the bare proxy.
#[derive(Debug, Args)]
pub(crate) struct BarePingora {
    /// Threads that carry requests.
    #[arg(long)]
    workers: usize,
    /// Port to listen on.
    #[arg(long)]
    port: u16,
    /// Port of the server.
    #[arg(long)]
    upstream: u16,
    /// Certificate and key in one file, for TLS.
    #[arg(long)]
    pem: Option<String>,
    /// HTTP/2 on both sides.
    #[arg(long)]
    http2: bool,
}

impl BarePingora {
    /// Serves until the process is ended.
    pub(crate) fn run(self) -> ! {
        let conf = ServerConf {
            threads: self.workers,
            upstream_keepalive_pool_size: 2048,
            grace_period_seconds: Some(0),
            graceful_shutdown_timeout_seconds: Some(0),
            ..ServerConf::default()
        };
        let mut server = Server::new_with_opt_and_conf(None, conf);
        server.bootstrap();
        let proxy = Proxy { upstream: self.upstream, http2: self.http2 };
        let mut service = http_proxy_service(&server.configuration, proxy);
        let address = format!("127.0.0.1:{}", self.port);
        match self.pem {
            None => service.add_tcp(&address),
            Some(pem) => {
                let mut tls = ::pingora::listeners::tls::TlsSettings::intermediate(&pem, &pem).unwrap();
                if self.http2 {
                    tls.enable_h2();
                }
                service.add_tls_with_settings(&address, None, tls);
            }
        }
        server.add_service(service);
        server.run_forever()
    }
}

struct Proxy {
    upstream: u16,
    http2: bool,
}

#[async_trait::async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> ::pingora::Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(("127.0.0.1", self.upstream), false, String::new());
        if self.http2 {
            peer.options.set_http_version(2, 2);
        }
        Ok(Box::new(peer))
    }
}
