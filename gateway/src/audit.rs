//! The audit log: one JSON line for every credential that was refused and every change that was asked for through the
//! admin address. It goes through the log's own bounded queue; so that nobody fills a disk by knocking, it has a rate,
//! and what is over it is counted. No line holds a credential, a query or a body.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::request::Parts;
use serde::Serialize;
use spillway_config::schema::AuditLog;

use crate::exchange::Exchange;
use crate::limits::AddressRate;
use crate::telemetry::{LogWriter, Metrics, rfc3339_millis};

/// Addresses whose lines are counted.
const ADDRESSES: usize = 16_384;
/// What a refused credential is called.
const REFUSED: &str = "authentication_refused";
/// Longest path in a line.
const MAX_PATH: usize = 256;

/// Writes the audit log.
pub struct Audit {
    log: LogWriter,
    rates: ArcSwap<Rates>,
    metrics: Arc<Metrics>,
}

/// How much it may say.
struct Rates {
    written: AuditLog,
    by_address: AddressRate,
    all: AddressRate,
}

impl Rates {
    fn new(written: &AuditLog, metrics: &Metrics) -> Self {
        let table = |rate, keys| AddressRate::new(rate, keys, metrics.process.limit_keys_forgotten.clone());
        let (by_address, all) = (table(written.per_address, ADDRESSES), table(written.total, 1));
        Self { written: written.clone(), by_address, all }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    /// Told when it is written.
    time: String,
    event: &'static str,
    action: &'static str,
    client: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    who: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
}

impl Line<'_> {
    /// What every line says; the rest depends on what happened.
    fn of(action: &'static str, client: IpAddr) -> Self {
        Self {
            time: String::new(),
            event: "audit",
            action,
            client,
            request_id: None,
            who: None,
            route: None,
            listener: None,
            method: None,
            path: None,
            reason: None,
            status: None,
        }
    }
}

impl Audit {
    /// An audit log into the process's log.
    pub fn new(written: &AuditLog, log: LogWriter, metrics: Arc<Metrics>) -> Self {
        Self { log, rates: ArcSwap::from_pointee(Rates::new(written, &metrics)), metrics }
    }

    /// Takes over how much a new configuration lets it say.
    pub fn adopt(&self, written: &AuditLog) {
        if self.rates.load().written != *written {
            self.rates.store(Arc::new(Rates::new(written, &self.metrics)));
        }
    }

    /// A credential was refused.
    pub fn refused(&self, reason: &'static str, x: &Exchange, head: &Parts) {
        self.write(&Line {
            request_id: x.request_id.to_str().ok(),
            route: x.route.as_ref().map(|route| route.name.as_str()),
            method: Some(head.method.as_str()),
            path: Some(head.uri.path()),
            reason: Some(reason),
            ..Line::of(REFUSED, x.client)
        });
    }

    /// A connection was refused for the certificate of its client, or for want of one.
    pub fn connection_refused(&self, client: IpAddr, listener: &str) {
        self.write(&Line { listener: Some(listener), reason: Some("client_certificate"), ..Line::of(REFUSED, client) });
    }

    /// Something was asked for through the admin address that changes something, or was refused there.
    pub fn admin(&self, client: IpAddr, who: &str, method: &str, path: &str, status: u16) {
        let refused = matches!(status, 401 | 403 | 421);
        self.write(&Line {
            who: Some(who),
            method: Some(method),
            path: Some(path),
            status: Some(status),
            ..Line::of(if refused { "admin_refused" } else { "admin_change" }, client)
        });
    }

    fn write(&self, line: &Line<'_>) {
        let everyone = IpAddr::from([0, 0, 0, 0]);
        let rates = self.rates.load();
        if !rates.by_address.take(line.client, NonZeroU32::MIN) || !rates.all.take(everyone, NonZeroU32::MIN) {
            self.metrics.process.audit_dropped.inc();
            return;
        }
        let cut =
            |path: &'_ str| path.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_PATH).unwrap_or(path.len());
        let path = line.path.and_then(|path| path.get(..cut(path)));
        let line = Line { path, time: rfc3339_millis(SystemTime::now()), ..*line };
        let mut text = Vec::with_capacity(512);
        if crate::telemetry::write_line(&mut text, &line) {
            self.log.write(&text);
        }
    }
}
