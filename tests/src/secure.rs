//! TLS for tests: an authority that signs certificates at run time, and a client for both versions of HTTP over TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::Answer;

/// Certificate authority of a test.
pub struct Authority {
    /// Certificate of the authority, in PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub struct Made {
    pub cert: String,
    pub key: String,
}

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }
}

impl Authority {
    /// Issues a server certificate.
    pub fn server(&self, names: &[&str]) -> Made {
        self.sign(CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap())
    }

    /// Issues a client certificate.
    pub fn client(&self, common_name: &str, uri: &str) -> Made {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri).unwrap()));
        self.sign(params)
    }

    /// A certificate of a client that ends after this time.
    pub fn client_for(&self, uri: &str, time: Duration) -> Made {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri).unwrap()));
        params.not_after = (SystemTime::now() + time).into();
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Made {
        let key = KeyPair::generate().unwrap();
        Made { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Writes the authority's certificate as `ca.pem`.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("ca.pem");
        std::fs::write(&path, &self.pem).unwrap();
        path
    }
}

impl Made {
    /// Writes certificate and key as `NAME.pem` and `NAME.key`.
    pub fn write(&self, folder: &Path, name: &str) {
        std::fs::write(folder.join(format!("{name}.pem")), &self.cert).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), &self.key).unwrap();
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.cert.as_bytes()).map(Result::unwrap).collect()
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// Server side with this certificate, requesting client certificates of `clients`.
    pub fn acceptor(&self, clients: Option<&Authority>, alpn: &[&str]) -> tokio_rustls::TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => builder.with_client_cert_verifier(
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&authority.pem)), provider)
                    .build()
                    .unwrap(),
            ),
        };
        let mut config = builder.with_single_cert(self.chain(), self.key()).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config).into()
    }
}

fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    roots
}

/// Client that trusts one authority.
#[derive(Clone)]
pub struct Secure {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Secure {
    pub fn new(address: SocketAddr, authority: &Authority) -> Self {
        Self::with(address, authority, None, rustls::ALL_VERSIONS)
    }

    /// Client that trusts certificates under this root, in PEM.
    pub fn believing(address: SocketAddr, pem: &str) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Self { address, config: Arc::new(builder.with_root_certificates(roots(pem)).with_no_client_auth()) }
    }

    /// Client with a certificate of its own and certain versions of TLS.
    pub fn with(
        address: SocketAddr,
        authority: &Authority,
        own: Option<&Made>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots(&authority.pem));
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_auth_cert(own.chain(), own.key()).unwrap(),
        };
        Self { address, config: Arc::new(config) }
    }

    /// Opens a connection; the handshake is over, but a client certificate may still be refused.
    pub async fn open(&self, name: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Sends a `GET` over a connection of its own.
    pub async fn get(&self, name: &str, host: &str, path: &str) -> std::io::Result<Answer> {
        let request = Request::get(path).header("host", host).body(Full::<Bytes>::default()).unwrap();
        self.send(name, request).await
    }

    /// Sends a request over a connection of its own.
    pub async fn send(&self, name: &str, request: Request<Full<Bytes>>) -> std::io::Result<Answer> {
        let stream = self.open(name, &["http/1.1"]).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        let task = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(std::io::Error::other)?;
        let answer = whole(answer).await;
        task.abort();
        Ok(answer)
    }

    /// Opens an HTTP/2 connection.
    pub async fn http2(&self, name: &str) -> http2::SendRequest<Full<Bytes>> {
        let stream = self.open(name, &["h2", "http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        http2_over(stream).await
    }
}

/// Starts HTTP/2 over any connection.
pub async fn http2_over<S>(stream: S) -> http2::SendRequest<Full<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

/// Reads a whole answer.
pub async fn whole(answer: Response<Incoming>) -> Answer {
    let (head, body) = answer.into_parts();
    let (body, cut) = match body.collect().await {
        Ok(body) => (body.to_bytes(), false),
        Err(_) => (Bytes::new(), true),
    };
    Answer { status: head.status, headers: head.headers, body, cut }
}
