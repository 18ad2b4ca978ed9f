//! Checks of `dns`.

use std::time::Duration;

use super::{Context, at};

/// Shortest `minTtl` and longest `maxTtl`: servers are not asked without pause, and a change is seen within a day.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));

pub(super) fn all(cx: &mut Context<'_>) {
    let dns = &cx.config.dns;
    let has_name = |backend: &crate::schema::Backend| {
        backend.endpoints.iter().any(|e| e.url.host.parse::<std::net::IpAddr>().is_err())
    };
    if !dns.servers.is_empty() && !cx.config.backends.iter().any(has_name) {
        cx.warn(at!["dns"], "this has no effect: every endpoint is written with an address");
    }
    let (min, max, timeout) = (dns.min_ttl, dns.max_ttl, dns.timeout);
    if min.0 < BOUNDS.0 {
        cx.error(at!["dns", "minTtl"], "must be at least 1s: servers of names are asked by everybody");
    }
    if max.0 > BOUNDS.1 {
        cx.error(at!["dns", "maxTtl"], "must be at most 24h");
    }
    if max < min {
        cx.error(at!["dns", "maxTtl"], format!("is below `minTtl` ({min})"));
    }
    if timeout.0.is_zero() || timeout.0 > Duration::from_secs(5) {
        cx.error(at!["dns", "timeout"], "must be above zero and at most 5s");
    }
}
