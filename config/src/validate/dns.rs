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
        cx.warn(at!["dns"], "no effect, because every endpoint is written with an address: remove it");
    }
    let (min, max, timeout) = (dns.min_ttl, dns.max_ttl, dns.timeout);
    if min.0 < BOUNDS.0 {
        cx.error(at!["dns", "minTtl"], format!("{min} is too short; expected at least 1s, to spare the DNS servers"));
    }
    if max.0 > BOUNDS.1 {
        cx.error(at!["dns", "maxTtl"], format!("{max} is too long; expected at most 24h"));
    }
    if max < min {
        cx.error(at!["dns", "maxTtl"], format!("{max} is below `minTtl` ({min}); expected at least as much"));
    }
    if timeout.0.is_zero() || timeout.0 > Duration::from_secs(5) {
        cx.error(at!["dns", "timeout"], format!("found {timeout}; expected above zero and at most 5s"));
    }
}
