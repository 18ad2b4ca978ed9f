//! HTTP client for calls of the gateway itself: to authorization servers, issuers of tokens, certificate authorities, and
//! receivers of notifications. The client owns its connections. Every call has a time limit and a bounded answer; no redirect is followed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::builderstates::WantsProtocols1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use spillway_filter::{Call, HttpClient, HttpError};

/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 << 10;
/// Idle connections that are kept for each server, and the time for which they are kept.
const IDLE: usize = 64;
const IDLE_TIME: Duration = Duration::from_secs(30);

type HyperClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Client for HTTP/1.1, with TLS for `https` URLs against the system's certificates. These are read for the first
/// configuration that makes calls; most make none.
#[derive(Clone, Default)]
pub struct Http(Arc<OnceLock<HyperClient>>);

impl Http {
    /// Client that trusts these authorities instead of the system's.
    pub fn with_roots(roots: rustls::RootCertStore) -> Self {
        Self(Arc::new(OnceLock::from(client(roots))))
    }

    fn client(&self) -> &HyperClient {
        self.0.get_or_init(|| client(system_roots()))
    }

    /// Sends a request and returns the head of the answer within `timeout`. The body is not read.
    ///
    /// # Errors
    /// No connection, no head in time, or no HTTP.
    pub async fn head(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> Result<http::response::Parts, HttpError> {
        let sent = self.send(without_user(request));
        Ok(tokio::time::timeout(timeout, sent).await.map_err(|_| late(timeout))??.into_parts().0)
    }

    /// Sends a request and returns the whole answer, of at most `most` bytes, within `timeout`.
    ///
    /// # Errors
    /// No connection, no answer in time, a longer one, or no HTTP.
    pub async fn whole(
        &self,
        request: http::Request<Bytes>,
        most: usize,
        timeout: Duration,
    ) -> Result<http::Response<Bytes>, HttpError> {
        let answered = async {
            let (head, mut body) = self.send(without_user(request)).await?.into_parts();
            let mut whole = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| HttpError(e.to_string()))?;
                if let Some(part) = frame.data_ref() {
                    if whole.len() + part.len() > most {
                        return Err(HttpError(format!("the answer is longer than {most} bytes")));
                    }
                    whole.extend_from_slice(part);
                }
            }
            Ok(http::Response::from_parts(head, whole.freeze()))
        };
        tokio::time::timeout(timeout, answered).await.unwrap_or_else(|_| Err(late(timeout)))
    }

    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Incoming>, HttpError> {
        self.client().request(request.map(Full::new)).await.map_err(|e| HttpError(with_causes(&e)))
    }
}

fn late(timeout: Duration) -> HttpError {
    HttpError(format!("no answer within {} ms", timeout.as_millis()))
}

fn client(roots: rustls::RootCertStore) -> HyperClient {
    let tls = connector(roots).enable_http1().wrap_connector(tcp());
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIME)
        .pool_max_idle_per_host(IDLE)
        .build(tls)
}

/// TCP to a server, without delay.
pub fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(5)));
    tcp
}

/// Connections to servers whose certificates these authorities have signed, and to those without TLS.
pub fn connector(roots: rustls::RootCertStore) -> HttpsConnectorBuilder<WantsProtocols1> {
    HttpsConnectorBuilder::new().with_tls_config(tls_config(roots)).https_or_http()
}

/// Connections to servers whatever their certificates, which are not verified, and to those without TLS.
pub fn unverified() -> HttpsConnectorBuilder<WantsProtocols1> {
    let mut config = tls_config(rustls::RootCertStore::empty());
    config.dangerous().set_certificate_verifier(Arc::new(AnyCertificate));
    HttpsConnectorBuilder::new().with_tls_config(config).https_or_http()
}

/// Accepts every certificate of a server. The server must still hold its key.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The system's certificates. Without any, each `https` call fails with an error that says so.
pub fn system_roots() -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for e in &found.errors {
        tracing::warn!(event = "system_certificates_not_read", reason = %e);
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// TLS that trusts these authorities.
fn tls_config(roots: rustls::RootCertStore) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
    match rustls::ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions) {
        Ok(builder) => builder.with_root_certificates(roots).with_no_client_auth(),
        // Unreachable: the provider has suites for both versions.
        Err(_) => rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth(),
    }
}

impl HttpClient for Http {
    fn prepare(&self) {
        self.client();
    }

    fn call(&self, request: http::Request<Bytes>, timeout: Duration) -> Call {
        let client = self.clone();
        Box::pin(async move { client.whole(request, MAX_ANSWER, timeout).await })
    }
}

/// The request to the same URL without its user, which is not sent, and which hyper's log would show with the host.
fn without_user<B>(mut request: http::Request<B>) -> http::Request<B> {
    let mut parts = request.uri().clone().into_parts();
    let authority = parts.authority.as_ref().and_then(|authority| authority.as_str().rsplit_once('@')?.1.parse().ok());
    if authority.is_some() {
        parts.authority = authority;
        if let Ok(uri) = http::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// Text of an error with its causes: the outermost error of this client says only that something failed.
pub fn with_causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}
