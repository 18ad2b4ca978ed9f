//! Addresses of names by DNS, with their time to live. The servers are those of the configuration, or of the system, read
//! again for each configuration. A name with addresses of version 4 is not queried for others: it is most often one server.

use std::time::Instant;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use spillway_config::schema::Dns;
use spillway_config::values::Duration;

use super::{Resolve, ResolveError, ResolvedAddresses};

/// Servers that are queried for a name, one after the other.
const ATTEMPTS: usize = 2;

/// Resolver that queries DNS.
pub struct DnsResolver {
    resolver: Result<TokioResolver, ResolveError>,
    min_ttl: Duration,
    max_ttl: Duration,
}

impl DnsResolver {
    /// Resolver for a configuration; reads files. An error in the files of the system is returned for each name: a
    /// configuration without names needs no DNS.
    pub fn read(written: &Dns) -> Self {
        let servers = written.servers.iter().map(|server| {
            let mut config = NameServerConfig::udp_and_tcp(server.0.ip());
            for connection in &mut config.connections {
                connection.port = server.0.port();
            }
            config
        });
        let found = if written.servers.is_empty() {
            hickory_resolver::system_conf::read_system_conf().map_err(|e| ResolveError::NoServers(e.to_string()))
        } else {
            Ok((ResolverConfig::from_parts(None, Vec::new(), servers.collect()), ResolverOpts::default()))
        };
        let resolver = found.and_then(|(config, mut options)| {
            options.timeout = written.timeout.0;
            options.attempts = ATTEMPTS;
            options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
            // A name is queried when its time to live is over; the endpoints themselves are the cache.
            options.cache_size = 0;
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.with_options(options).build().map_err(ResolveError::Setup)
        });
        Self { resolver, min_ttl: written.min_ttl, max_ttl: written.max_ttl }
    }
}

#[async_trait]
impl Resolve for DnsResolver {
    async fn resolve(&self, host: &str) -> Result<ResolvedAddresses, ResolveError> {
        let resolver = self.resolver.as_ref().map_err(Clone::clone)?;
        let found = resolver.lookup_ip(host).await.map_err(ResolveError::Lookup)?;
        let ttl = found.valid_until().saturating_duration_since(Instant::now());
        let ttl = ttl.max(self.min_ttl.0).min(self.max_ttl.0);
        Ok(ResolvedAddresses { addresses: found.iter().collect(), ttl })
    }
}
