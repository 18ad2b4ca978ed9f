//! Issuer of tokens: its metadata (OpenID Connect Discovery), its keys, which a test changes, and its tokens.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::{Authority, Upstream, reply};

/// Issuer on loopback.
pub struct Issuer {
    server: Upstream,
    /// Address and task of the TLS server, if any.
    door: Option<(SocketAddr, tokio::task::JoinHandle<()>)>,
    keys: Arc<Mutex<Vec<Value>>>,
    down: Arc<AtomicBool>,
    hanging: Arc<AtomicBool>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.door {
            task.abort();
        }
    }
}

/// Signing key, Ed25519.
pub struct IssuerKey {
    id: String,
    pair: KeyPair,
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl IssuerKey {
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned(), pair: KeyPair::generate_for(&PKCS_ED25519).unwrap() }
    }

    /// Its public half, as a set of keys has it.
    pub fn jwk(&self) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": base64url(self.pair.der_bytes())})
    }

    /// Signs a token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "EdDSA", "kid": self.id, "typ": "JWT"});
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let signature = self.pair.sign(message.as_bytes()).unwrap();
        format!("{message}.{}", base64url(signature))
    }
}

impl Issuer {
    pub async fn start() -> Self {
        Self::with_scheme("http").await
    }

    /// As [`Self::start`], over TLS.
    pub async fn start_secure(authority: &Authority) -> Self {
        let mut issuer = Self::with_scheme("https").await;
        let acceptor = authority.server(&["127.0.0.1"]).acceptor(None, &[]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (plain, address) = (issuer.server.address, listener.local_addr().unwrap());
        issuer.door = Some((
            address,
            tokio::spawn(async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    connections.spawn(async move {
                        let mut stream = acceptor.accept(stream).await?;
                        let mut behind = TcpStream::connect(plain).await?;
                        tokio::io::copy_bidirectional(&mut stream, &mut behind).await
                    });
                }
            }),
        ));
        issuer
    }

    async fn with_scheme(scheme: &'static str) -> Self {
        let keys: Arc<Mutex<Vec<Value>>> = Arc::default();
        let down = Arc::new(AtomicBool::new(false));
        let hanging = Arc::new(AtomicBool::new(false));
        let (shown, away, hangs) = (keys.clone(), down.clone(), hanging.clone());
        let server = Upstream::start(move |seen| {
            let keys = shown.lock().unwrap().clone();
            let (is_away, is_hanging) = (away.load(Ordering::SeqCst), hangs.load(Ordering::SeqCst));
            async move {
                if is_hanging {
                    std::future::pending::<()>().await;
                }
                let own = format!("{scheme}://{}", seen.headers["host"].to_str().unwrap());
                let said = match seen.path.split('?').next().unwrap() {
                    _ if is_away => return None,
                    "/.well-known/openid-configuration" => json!({"issuer": own, "jwks_uri": format!("{own}/keys")}),
                    "/keys" => json!({"keys": keys}),
                    _ => return Some(reply(404, &[], "")),
                };
                Some(reply(200, &[("content-type", "application/json")], said.to_string()))
            }
        })
        .await;
        Self { server, door: None, keys, down, hanging }
    }

    /// Issuer URL, the `iss` of its tokens.
    pub fn url(&self) -> String {
        self.door.as_ref().map_or_else(|| self.server.url(), |(address, _)| format!("https://{address}"))
    }

    /// Sets the published keys.
    pub fn shows(&self, keys: &[&IssuerKey]) {
        *self.keys.lock().unwrap() = keys.iter().map(|key| key.jwk()).collect();
    }

    /// Makes the issuer close every connection without an answer.
    pub fn goes_away(&self) {
        self.down.store(true, Ordering::SeqCst);
    }

    /// Makes the issuer take requests and answer none.
    pub fn hangs(&self) {
        self.hanging.store(true, Ordering::SeqCst);
    }

    /// Number of requests for the keys.
    pub fn asked(&self) -> usize {
        self.server.seen.lock().unwrap().iter().filter(|seen| seen.path.starts_with("/keys")).count()
    }
}
