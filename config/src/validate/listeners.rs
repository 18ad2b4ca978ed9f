//! Checks of `listeners`, and of the certificates that other parts name too.

use std::path::Path;

use super::{Context, Segment, acme, at};
use crate::path;
use crate::schema::{CertificateFiles, Listener, ListenerProtocol};

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    if config.listeners.is_empty() && !config.has_discovery() {
        cx.error(at!["listeners"], "no listener; there must be at least one: add its `address`");
    }
    for (n, listener) in config.listeners.iter().enumerate() {
        let same = |other: &Listener| other.address == listener.address && listener.address.0.port() != 0;
        if let Some(first) = config.listeners.iter().take(n).position(same) {
            cx.error(
                at!["listeners", n, "address"],
                format!(
                    "duplicate address {}, first of {}: change the port",
                    listener.address,
                    (cx.place)(at!["listeners", first])
                ),
            );
        }
        limits(cx, n, listener);
        tls(cx, n, listener);
        health_path(cx, n, listener);
        if listener.client_address.as_ref().is_some_and(|rule| rule.trusted_proxies.is_empty()) {
            cx.error(
                at!["listeners", n, "clientAddress", "trustedProxies"],
                "no proxy is trusted: name their addresses, or remove `clientAddress`",
            );
        }
        if listener.proxy_protocol.as_ref().is_some_and(|rule| rule.from.is_empty()) {
            cx.error(
                at!["listeners", n, "proxyProtocol", "from"],
                "no proxy is named: name their addresses, or remove `proxyProtocol`",
            );
        }
    }
}

/// Checks that requests can have the path of health checks: it is compared with their paths in normal form.
fn health_path(cx: &mut Context<'_>, n: usize, listener: &Listener) {
    let Some(written) = &listener.health_path else { return };
    let at = at!["listeners", n, "healthPath"];
    if !written.starts_with('/') || written.contains(['?', '#']) {
        cx.error(at, format!("`{written}` is not a path; expected one without a query, such as /healthz"));
        return;
    }
    match path::normal(written) {
        Ok(normal) if normal == *written => {}
        Ok(normal) => {
            cx.error(at, format!("no request has the path `{written}`; expected its normal form: `{normal}`"))
        }
        Err(e) => cx.error(at, format!("no request has the path `{written}`: {e}; expected one such as /healthz")),
    }
}

fn limits(cx: &mut Context<'_>, n: usize, listener: &Listener) {
    let limits = &listener.limits;
    for (key, value) in [
        ("handshakeTimeout", limits.handshake_timeout),
        ("headerTimeout", limits.header_timeout),
        ("bodyTimeout", limits.body_timeout),
        ("idleTimeout", limits.idle_timeout),
        ("writeTimeout", limits.write_timeout),
    ] {
        if value.0.is_zero() {
            cx.error(
                at!["listeners", n, "limits", key],
                "a time limit of zero lets nothing pass; expected a longer time",
            );
        }
    }
    // Pingora reads headers of up to 1 MiB.
    if !(1 << 10..=1 << 20).contains(&limits.max_header_bytes.0) {
        let message = format!("found {}; expected 1KiB to 1MiB", limits.max_header_bytes);
        cx.error(at!["listeners", n, "limits", "maxHeaderBytes"], message);
    }
    if limits.max_streams.get() > 10_000 {
        cx.error(
            at!["listeners", n, "limits", "maxStreams"],
            format!("found {}; expected at most 10000 requests on one connection", limits.max_streams),
        );
    }
}

fn tls(cx: &mut Context<'_>, n: usize, listener: &Listener) {
    let is_https = listener.protocol == ListenerProtocol::Https;
    let Some(tls) = &listener.tls else {
        if is_https {
            cx.error(
                at!["listeners", n],
                "`protocol: https` needs `tls` with at least one certificate: add `certificates` or `acme`",
            );
        }
        return;
    };
    if !is_https {
        cx.error(
            at!["listeners", n, "tls"],
            "no effect: only a listener with `protocol: https` speaks TLS; write that, or remove this",
        );
    }
    if tls.certificates.is_empty() && tls.pairs.is_empty() && tls.acme.is_none() {
        cx.error(
            at!["listeners", n, "tls"],
            "no certificate; there must be at least one certificate, in `certificates` or by `acme`",
        );
    }
    if let Some(written) = &tls.acme {
        acme::check(cx, n, written);
    }
    for (c, pair) in tls.certificates.iter().enumerate() {
        certificate(cx, at!["listeners", n, "tls", "certificates", c], pair, true);
    }
    if let Some(clients) = &tls.client_certificates {
        authorities(cx, at!["listeners", n, "tls", "clientCertificates", "caFile"], &clients.ca_file);
    }
}

/// Checks a certificate and its key.
pub(super) fn certificate(cx: &mut Context<'_>, at: Vec<Segment>, pair: &CertificateFiles, server: bool) {
    let below = |key: &str| at.iter().cloned().chain([Segment::from(key)]).collect::<Vec<_>>();
    if !(pair.cert_file.is_file() && pair.key_file.is_file()) {
        return;
    }
    match cx.options.files.certificate(&pair.cert_file, &pair.key_file, server) {
        Ok(warnings) => warnings.into_iter().for_each(|warning| cx.warn(below("certFile"), warning)),
        Err(why) => cx.error(at.clone(), why.to_string()),
    }
}

/// Checks a file of authorities.
pub(super) fn authorities(cx: &mut Context<'_>, at: Vec<Segment>, file: &Path) {
    if file.is_file()
        && let Err(why) = cx.options.files.authorities(file)
    {
        cx.error(at, why.to_string());
    }
}
