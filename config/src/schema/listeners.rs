//! `listeners`: the addresses that clients connect to.

use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Acme;
use crate::values::{Duration, ListenAddress, Network, Size};

/// An address that clients connect to.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Name in logs and metrics; the address when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// IP and port, such as 0.0.0.0:8080.
    pub address: ListenAddress,
    /// What it speaks.
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// Certificates and who may connect; needed by `https`.
    #[serde(default)]
    pub tls: Option<ListenerTls>,
    /// Whether paths with `%2F` or `%5C` pass on routes that do not say it themselves.
    #[serde(default)]
    pub encoded_slashes: EncodedSlashes,
    /// Who the caller is behind a proxy that says so in a header.
    #[serde(default)]
    pub client_address: Option<ClientAddress>,
    /// Who the caller is behind a proxy that says so before the first byte.
    #[serde(default)]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// What one client, and all of them together, may take.
    #[serde(default)]
    pub limits: ListenerLimits,
}

/// What a listener speaks.
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

/// Handling of a path with an encoded slash or backslash (`%2F`, `%5C`), which one server reads as a separator and another
/// as part of a name.
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
    /// One is chosen by the name that the client asks for (SNI): an exact name before a wildcard. The first one is
    /// shown to a client that asks for none of them. The files are read again when they change.
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// A certificate that is asked for at an authority and renewed, beside those in files or alone.
    #[serde(default)]
    pub acme: Option<Acme>,
    /// Certificates of clients; none are asked for when left out.
    #[serde(default)]
    pub client_certificates: Option<ClientCertificates>,
    /// The oldest version of TLS that a client may speak.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, followed by those that lead to an authority.
    pub cert_file: PathBuf,
    /// The private key: PKCS #8, PKCS #1 or SEC 1, without a password.
    pub key_file: PathBuf,
}

/// Certificates of clients.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCertificates {
    /// The authorities that sign them, in PEM.
    pub ca_file: PathBuf,
    /// Whether a client must show one.
    #[serde(default)]
    pub mode: ClientCertificateMode,
}

/// Whether a client must show a certificate. One that is shown must be sound in both cases.
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

/// Who the caller is behind a proxy that says so in a header. The header is read from its end, through trusted proxies
/// only: what anybody else wrote into it is not believed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientAddress {
    /// Addresses of the proxies.
    pub trusted_proxies: Vec<Network>,
    /// The header that they write.
    #[serde(default)]
    pub header: ClientAddressHeader,
}

/// A header in which proxies say whom they speak for.
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

/// The PROXY protocol, version 1 or 2, in which a proxy says whom it speaks for before the first byte of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyProtocol {
    /// Addresses of the proxies. Each of their connections must begin with it; nobody else's may.
    pub from: Vec<Network>,
}

/// What one client, and all of them together, may take.
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
