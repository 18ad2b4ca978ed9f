//! Addresses of names by DNS, with their time to live. The servers are those of the configuration, or of the system, read
//! anew with each configuration. A name with addresses of version 4 is not asked for others: it is one server most often.

use std::time::Instant;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use spillway_config::schema::Dns;
use spillway_config::values::Duration;

use super::{Resolve, Resolved};

/// Servers that are asked for a name, one after the other.
const ATTEMPTS: usize = 2;

/// Asks for names.
pub struct DnsResolver {
    resolver: Result<TokioResolver, String>,
    min_ttl: Duration,
    max_ttl: Duration,
}

impl DnsResolver {
    /// One for this configuration. It reads files. What is wrong with those of the system is told when a name is asked
    /// for: a gateway that knows addresses only needs none.
    pub fn read(written: &Dns) -> Self {
        let servers = written.servers.iter().map(|server| {
            let mut config = NameServerConfig::udp_and_tcp(server.0.ip());
            for connection in &mut config.connections {
                connection.port = server.0.port();
            }
            config
        });
        let found = if written.servers.is_empty() {
            hickory_resolver::system_conf::read_system_conf().map_err(|e| format!("no DNS servers are known: {e}"))
        } else {
            Ok((ResolverConfig::from_parts(None, Vec::new(), servers.collect()), ResolverOpts::default()))
        };
        let resolver = found.and_then(|(config, mut options)| {
            options.timeout = written.timeout.0;
            options.attempts = ATTEMPTS;
            options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
            // Names are asked when their time is over: what is kept in between is the endpoints themselves.
            options.cache_size = 0;
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.with_options(options).build().map_err(|e| e.to_string())
        });
        Self { resolver, min_ttl: written.min_ttl, max_ttl: written.max_ttl }
    }
}

#[async_trait]
impl Resolve for DnsResolver {
    async fn resolve(&self, host: &str) -> Result<Resolved, String> {
        let resolver = self.resolver.as_ref().map_err(Clone::clone)?;
        let found = resolver.lookup_ip(host).await.map_err(|e| e.to_string())?;
        let ttl = found.valid_until().saturating_duration_since(Instant::now());
        let ttl = ttl.max(self.min_ttl.0).min(self.max_ttl.0);
        Ok(Resolved { addresses: found.iter().collect(), ttl })
    }
}
