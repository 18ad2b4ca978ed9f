//! Audit log: a JSON line for every refused credential and every change that was requested through the admin address.
//! Lines go through the bounded queue of the log. Their rate is limited, so that failed logins cannot fill a disk; lines
//! above it are counted. No line holds a credential, a query or a body.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use serde::Serialize;
use spillway_config::schema::AuditLog;

use crate::exchange::Exchange;
use crate::limits::AddressRate;
use crate::message::RequestHead;
use crate::telemetry::{LogWriter, Metrics, Record, log_names as own, names, rfc3339_millis};

/// Most client addresses whose rates are tracked.
const ADDRESSES: usize = 16_384;
/// Action of a line about a refused credential.
const REFUSED: &str = "authentication_refused";
/// Action of a line about a change through the admin address.
const CHANGED: &str = "admin_change";
/// Longest path in a line, in bytes.
const MAX_PATH: usize = 256;

/// Writes the audit log.
pub struct Audit {
    log: LogWriter,
    rates: ArcSwap<Rates>,
    metrics: Arc<Metrics>,
}

/// Limits of the rate of lines.
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

/// Line of the audit log.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditLine<'a> {
    /// Set when the line is written.
    timestamp: String,
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

impl AuditLine<'_> {
    /// Creates a line with the fields that every line has.
    fn of(action: &'static str, client: IpAddr) -> Self {
        Self {
            timestamp: String::new(),
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

    /// Fills the record by which the line is exported.
    fn fill(&self, record: &mut Record) {
        record.event(self.event);
        if self.action == CHANGED {
            record.info()
        } else {
            record.warning()
        }
        record.body(self.action);
        record.text(own::SPILLWAY_AUDIT_ACTION, self.action);
        record.text(names::CLIENT_ADDRESS, &self.client.to_string());
        record.text_if_any(names::SPILLWAY_REQUEST_ID, self.request_id);
        record.text_if_any(own::SPILLWAY_AUDIT_WHO, self.who);
        record.text_if_any(names::HTTP_ROUTE, self.route);
        record.text_if_any(own::SPILLWAY_LISTENER, self.listener);
        record.text_if_any(names::HTTP_REQUEST_METHOD, self.method);
        record.text_if_any(names::URL_PATH, self.path);
        record.text_if_any(own::SPILLWAY_AUDIT_REASON, self.reason);
        if let Some(status) = self.status {
            record.number(names::HTTP_RESPONSE_STATUS_CODE, status);
        }
    }
}

impl Audit {
    /// Creates an audit log that writes to the process's log.
    pub fn new(written: &AuditLog, log: LogWriter, metrics: Arc<Metrics>) -> Self {
        Self { log, rates: ArcSwap::from_pointee(Rates::new(written, &metrics)), metrics }
    }

    /// Applies the rates of a new configuration.
    pub fn adopt(&self, written: &AuditLog) {
        if self.rates.load().written != *written {
            self.rates.store(Arc::new(Rates::new(written, &self.metrics)));
        }
    }

    /// Records a refused credential.
    pub fn refused(&self, reason: &'static str, exchange: &Exchange, head: &RequestHead) {
        self.write(&AuditLine {
            request_id: exchange.request_id.to_str().ok(),
            route: exchange.route.as_ref().map(|route| route.name.as_str()),
            method: Some(head.method.as_str()),
            path: Some(head.uri.path()),
            reason: Some(reason),
            ..AuditLine::of(REFUSED, exchange.client)
        });
    }

    /// Records a connection that was refused for a wrong or missing client certificate.
    pub fn connection_refused(&self, client: IpAddr, listener: &str) {
        self.write(&AuditLine {
            listener: Some(listener),
            reason: Some("client_certificate"),
            ..AuditLine::of(REFUSED, client)
        });
    }

    /// Records a change that was requested through the admin address, or a request that was refused there.
    pub fn admin(&self, client: IpAddr, who: &str, method: &str, path: &str, status: u16) {
        let refused = matches!(status, 401 | 403 | 421);
        self.write(&AuditLine {
            who: Some(who),
            method: Some(method),
            path: Some(path),
            status: Some(status),
            ..AuditLine::of(if refused { "admin_refused" } else { CHANGED }, client)
        });
    }

    fn write(&self, line: &AuditLine<'_>) {
        let everyone = IpAddr::from([0, 0, 0, 0]);
        let rates = self.rates.load();
        if !rates.by_address.take(line.client, NonZeroU32::MIN) || !rates.all.take(everyone, NonZeroU32::MIN) {
            self.metrics.process.audit_dropped.inc();
            return;
        }
        let cut =
            |path: &'_ str| path.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_PATH).unwrap_or(path.len());
        let path = line.path.and_then(|path| path.get(..cut(path)));
        let line = AuditLine { path, timestamp: rfc3339_millis(SystemTime::now()), ..*line };
        let mut text = Vec::with_capacity(512);
        if crate::telemetry::write_line(&mut text, &line) {
            self.log.write(&text);
        }
        self.log.export().send(|record| line.fill(record));
    }
}
