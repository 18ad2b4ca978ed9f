//! `listeners`: the addresses that clients connect to.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Acme;
use crate::values::{Duration, FilePath, ListenAddress, Network, Size};

/// An address that clients connect to.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Name in logs and metrics; the address when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// IP and port, such as 0.0.0.0:8080.
    pub address: ListenAddress,
    /// Protocol of the listener.
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// Certificates and who may connect; needed by `https`.
    #[serde(default)]
    pub tls: Option<ListenerTls>,
    /// Treatment of paths with `%2F` or `%5C` on routes without a rule of their own.
    #[serde(default)]
    pub encoded_slashes: EncodedSlashes,
    /// Path that the listener answers itself, for load balancers: 200 `ready` while it takes requests, 503 `draining` from
    /// SIGTERM on. GET and HEAD only, before routes, filters and limits. Off when left out.
    #[serde(default)]
    pub health_path: Option<String>,
    /// Finds loops by a header of the gateway's own, `x-spillway-hops`: requests to servers carry it, and one that comes back
    /// with it is refused with 508, as is one that has passed sixteen gateways.
    #[serde(default = "yes")]
    pub loop_header: bool,
    /// Signs requests to servers with `Via`, too. By default nginx compresses no answer to a request that has it.
    #[serde(default)]
    pub via: bool,
    /// Address of clients behind proxies, from a header.
    #[serde(default)]
    pub client_address: Option<ClientAddress>,
    /// Address of clients behind proxies, from the PROXY protocol.
    #[serde(default)]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limits on clients.
    #[serde(default)]
    pub limits: ListenerLimits,
    /// True if the listener serves only routes that name it in `listeners`. Of listeners that come from elsewhere than the file.
    #[serde(skip)]
    pub own_routes: bool,
}

impl Listener {
    /// Name in logs and metrics: that of the file, else the address.
    pub fn shown_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.address.to_string())
    }
}

fn yes() -> bool {
    true
}

/// Protocol of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ListenerProtocol {
    /// HTTP/1.1 without encryption.
    #[default]
    Http,
    /// HTTP/2 and HTTP/1.1 over TLS; the client chooses by ALPN.
    Https,
    /// HTTP/2 without encryption and nothing else, begun by the client without asking (prior knowledge).
    H2c,
}

/// Handling of a path with an encoded slash or backslash (`%2F`, `%5C`). One server reads it as a separator, another as
/// part of a name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EncodedSlashes {
    /// Answers 400.
    #[default]
    Refuse,
    /// Passes the path on as it came. An error where a server that reads a slash would serve what another route keeps
    /// under a different `authentication`, `access`, limit or model rule.
    Pass,
}

/// TLS of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerTls {
    /// Certificates, chosen by the name that the client asks for (SNI): an exact name before a wildcard. A client that
    /// asks for another name gets the first. The files are read again when they change.
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// Certificates from elsewhere than files, which follow those.
    #[serde(skip)]
    pub pairs: Vec<PemPair>,
    /// Certificate that is ordered from an authority and renewed, beside those in files or alone.
    #[serde(default)]
    pub acme: Option<Acme>,
    /// Certificates of clients; not requested when left out.
    #[serde(default)]
    pub client_certificates: Option<ClientCertificates>,
    /// The oldest version of TLS that a client may speak.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// Certificate with its key that is no file, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PemPair {
    /// Name in messages.
    pub name: String,
    /// The certificate, followed by those that lead to an authority.
    pub certificate: Arc<[u8]>,
    /// The private key.
    pub key: Arc<[u8]>,
}

impl fmt::Debug for PemPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PemPair({})", self.name)
    }
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, followed by those that lead to an authority.
    pub cert_file: FilePath,
    /// The private key: PKCS #8, PKCS #1 or SEC 1, without a password.
    pub key_file: FilePath,
}

/// Certificates of clients.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCertificates {
    /// The authorities that sign them, in PEM.
    pub ca_file: FilePath,
    /// Requirement of a certificate.
    #[serde(default)]
    pub mode: ClientCertificateMode,
}

/// Requirement of a client certificate. A certificate that is presented must be valid in both cases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ClientCertificateMode {
    /// A client without one may connect.
    Optional,
    /// A client without one may not.
    #[default]
    Required,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3 only.
    #[serde(rename = "1.3")]
    V13,
}

/// Address of clients behind proxies, from a header. The header is read from its end and through trusted proxies only;
/// entries of others are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientAddress {
    /// Addresses of the proxies.
    pub trusted_proxies: Vec<Network>,
    /// Header that they write.
    #[serde(default)]
    pub header: ClientAddressHeader,
}

/// Header with the address of the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ClientAddressHeader {
    /// `X-Forwarded-For` and `X-Forwarded-Proto`.
    #[default]
    #[serde(rename = "x-forwarded-for")]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    #[serde(rename = "forwarded")]
    Forwarded,
}

/// PROXY protocol, version 1 or 2: a proxy sends the address of the client before the first byte of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyProtocol {
    /// Addresses of the proxies. Their connections must begin with the protocol; those of others must not.
    pub from: Vec<Network>,
}

/// Limits on clients, each and together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Open connections; a further one is closed at once.
    pub max_connections: NonZeroU32,
    /// Open connections of one address, of IPv6 the first 64 bits; a further one is closed at once. Proxies of
    /// `clientAddress` and `proxyProtocol` may have more. No limit of its own when left out.
    pub max_connections_per_address: Option<NonZeroU32>,
    /// Requests that may run at the same time on one HTTP/2 connection.
    pub max_streams: NonZeroU32,
    /// Time for what comes before the first request: the PROXY protocol and TLS together, then the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Time from the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// Time from the end of the header to the end of a body that the gateway holds; for one that it passes on, between
    /// two parts.
    pub body_timeout: Duration,
    /// Time that a connection may stay open between requests.
    pub idle_timeout: Duration,
    /// Time for a client to take what is written to it. A client that takes nothing for so long, or less than one part of
    /// an answer (at most 64 KiB), is cut: the connection is closed, of HTTP/2 the stream reset. The time limits of the
    /// route do not lengthen it.
    pub write_timeout: Duration,
    /// Bytes of the request line and header together, and of trailers by themselves (at most 64 KiB). They may have 256
    /// fields each. A request beyond it gets 431, one whose request line alone is beyond it 414 (HTTP/2: 431), as soon as
    /// the bound is reached, and its connection ends.
    pub max_header_bytes: Size,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            max_connections: NonZeroU32::MIN.saturating_add(19_999),
            max_connections_per_address: None,
            max_streams: NonZeroU32::MIN.saturating_add(99),
            handshake_timeout: Duration::seconds(10),
            header_timeout: Duration::seconds(10),
            body_timeout: Duration::seconds(60),
            idle_timeout: Duration::seconds(75),
            write_timeout: Duration::seconds(30),
            max_header_bytes: Size::kib(32),
        }
    }
}
