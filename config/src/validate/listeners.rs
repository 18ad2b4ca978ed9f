//! Checks of `listeners`, and of the certificates that other parts name too.

use std::path::Path;

use super::{Context, Segment, acme, at};
use crate::schema::{CertificateFiles, Listener, ListenerProtocol};

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    if config.listeners.is_empty() {
        cx.error(at!["listeners"], "there must be at least one listener");
    }
    for (n, listener) in config.listeners.iter().enumerate() {
        let same = |other: &Listener| other.address == listener.address && listener.address.0.port() != 0;
        if let Some(first) = config.listeners.iter().take(n).position(same) {
            cx.error(at!["listeners", n, "address"], format!("listeners[{first}] has this address already"));
        }
        limits(cx, n, listener);
        tls(cx, n, listener);
        if listener.client_address.as_ref().is_some_and(|rule| rule.trusted_proxies.is_empty()) {
            cx.error(
                at!["listeners", n, "clientAddress", "trustedProxies"],
                "no proxy is trusted: name their addresses",
            );
        }
        if listener.proxy_protocol.as_ref().is_some_and(|rule| rule.from.is_empty()) {
            cx.error(at!["listeners", n, "proxyProtocol", "from"], "no proxy is named: name their addresses");
        }
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
            cx.error(at!["listeners", n, "limits", key], "a time limit of zero lets nothing pass");
        }
    }
    // Pingora reads headers of up to 1 MiB.
    if !(1 << 10..=1 << 20).contains(&limits.max_header_bytes.0) {
        cx.error(at!["listeners", n, "limits", "maxHeaderBytes"], "must be from 1KiB to 1MiB");
    }
    if limits.max_streams.get() > 10_000 {
        cx.error(at!["listeners", n, "limits", "maxStreams"], "at most 10000 requests run on one connection");
    }
}

fn tls(cx: &mut Context<'_>, n: usize, listener: &Listener) {
    let is_https = listener.protocol == ListenerProtocol::Https;
    let Some(tls) = &listener.tls else {
        if is_https {
            cx.error(at!["listeners", n], "`protocol: https` needs `tls` with at least one certificate");
        }
        return;
    };
    if !is_https {
        cx.error(at!["listeners", n, "tls"], "this has no effect: only a listener with `protocol: https` speaks TLS");
    }
    if tls.certificates.is_empty() && tls.acme.is_none() {
        cx.error(at!["listeners", n, "tls"], "there must be at least one certificate, in `certificates` or by `acme`");
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

/// Whether a file is there, said at its place.
fn is_there(cx: &mut Context<'_>, at: Vec<Segment>, file: &Path) -> bool {
    let there = file.is_file();
    if !there {
        cx.outside(at, format!("there is no file {}", file.display()));
    }
    there
}

/// A certificate and its key.
pub(super) fn certificate(cx: &mut Context<'_>, at: Vec<Segment>, pair: &CertificateFiles, server: bool) {
    let below = |key: &str| at.iter().cloned().chain([Segment::from(key)]).collect::<Vec<_>>();
    let cert = is_there(cx, below("certFile"), &pair.cert_file);
    let key = is_there(cx, below("keyFile"), &pair.key_file);
    if !(cert && key) {
        return;
    }
    match cx.options.files.certificate(&pair.cert_file, &pair.key_file, server) {
        Ok(warnings) => warnings.into_iter().for_each(|warning| cx.warn(below("certFile"), warning)),
        Err(why) => cx.error(at.clone(), why),
    }
}

/// Checks a file of authorities.
pub(super) fn authorities(cx: &mut Context<'_>, at: Vec<Segment>, file: &Path) {
    if is_there(cx, at.clone(), file)
        && let Err(why) = cx.options.files.authorities(file)
    {
        cx.error(at, why);
    }
}
