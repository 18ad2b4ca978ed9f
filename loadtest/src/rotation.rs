//! API keys and certificates that change while 2,000 requests a second arrive over TLS: each edit adds a new key and
//! a new certificate, then removes the old key. Half of the figures must be zero.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::process::{Process, free_port, named, wait_for};

/// Requests a second, over all connections.
const RATE: u32 = 2_000;
/// Connections of these requests.
const CONNECTIONS: u32 = 50;
/// New connections a second beside those.
const HANDSHAKES: u32 = 20;
/// Pause between an edit that was applied and the next.
const PAUSE: Duration = Duration::from_millis(500);

/// State shared by the clients.
struct Load {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    key: RwLock<String>,
    stop: AtomicBool,
    requests: AtomicUsize,
    failures: Mutex<Vec<String>>,
    handshakes: AtomicUsize,
    certificates: Mutex<std::collections::BTreeSet<Vec<u8>>>,
    latencies: Mutex<Vec<f64>>,
}

/// Runs the scenario and prints the results.
pub(crate) fn run(seconds: u32) {
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-rotation-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(scenario(&folder, seconds));
    let _ = std::fs::remove_dir_all(folder);
}

async fn scenario(folder: &Path, seconds: u32) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let (upstream, secure) = (free_port(), free_port());
    let (first, digest) = new_key();
    certificate(folder, &issuer);
    let keys = folder.join("acme.keys");
    std::fs::write(&keys, format!("{digest}\n")).unwrap();
    std::fs::write(
        folder.join("spillway.yaml"),
        format!(
            "listeners: [{{address: \"127.0.0.1:{secure}\", protocol: https, tls: {{certificates: [{{certFile: a.pem, keyFile: a.key}}]}}}}]
consumers: [{{name: acme, keysFile: acme.keys}}]
backends: [{{name: u, endpoints: [{{url: \"http://127.0.0.1:{upstream}\"}}]}}]
routes: [{{backendRefs: [{{name: u}}]}}]
telemetry: {{logs: {{access: false}}}}
"
        ),
    )
    .unwrap();
    let _upstream = Process::answering(folder, upstream);
    let _gateway =
        Process::start(Command::new(named("SPILLWAY_BIN")).args(["serve", "-c"]).arg(folder.join("spillway.yaml")));
    wait_for(secure);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let load = Arc::new(Load {
        address: SocketAddr::from(([127, 0, 0, 1], secure)),
        config: Arc::new(builder.with_root_certificates(roots).with_no_client_auth()),
        key: RwLock::new(first),
        stop: AtomicBool::new(false),
        requests: AtomicUsize::new(0),
        failures: Mutex::default(),
        handshakes: AtomicUsize::new(0),
        certificates: Mutex::default(),
        latencies: Mutex::default(),
    });
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..CONNECTIONS {
        clients.spawn(client(load.clone(), n));
    }
    clients.spawn(strangers(load.clone()));
    let started = Instant::now();
    let mut edits = 0;
    let mut previous = digest;
    while started.elapsed() < Duration::from_secs(seconds.into()) {
        let (key, digest) = new_key();
        certificate(folder, &issuer);
        std::fs::write(&keys, format!("{previous}\n{digest}\n")).unwrap();
        taken(&load, &key, true).await;
        let old = std::mem::replace(&mut *load.key.write().unwrap(), key);
        tokio::time::sleep(PAUSE).await;
        std::fs::write(&keys, format!("{digest}\n")).unwrap();
        taken(&load, &old, false).await;
        tokio::time::sleep(PAUSE).await;
        previous = digest;
        edits += 2;
    }
    let elapsed = started.elapsed().as_secs_f64();
    load.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let mut latencies = std::mem::take(&mut *load.latencies.lock().unwrap());
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| crate::percentile(&latencies, share) * 1000.0;
    let requests = load.requests.load(Ordering::Relaxed);
    println!("\nkeys and certificates that change under load: {RATE} requests/s over TLS, {elapsed:.0} s");
    println!("  edits taken            {edits:>8}");
    println!("  requests               {requests:>8}   ({:.0}/s)", requests as f64 / elapsed);
    println!("  new connections        {:>8}", load.handshakes.load(Ordering::Relaxed));
    println!("  certificates seen      {:>8}", load.certificates.lock().unwrap().len());
    println!("  p50, p99, longest      {:.2} ms, {:.2} ms, {:.2} ms", at(0.5), at(0.99), at(1.0));
    let failures = load.failures.lock().unwrap();
    println!("  failed                 {:>8}", failures.len());
    for failure in failures.iter().take(5) {
        println!("    {failure}");
    }
}

fn new_key() -> (String, String) {
    let out = Command::new(named("SPILLWAY_BIN")).args(["key", "new"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    (field("key:"), field("sha256:"))
}

/// Replaces the certificate by a new one.
fn certificate(folder: &Path, issuer: &Issuer<'_, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(["a.test".to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    std::fs::write(folder.join("a.pem"), made.pem()).unwrap();
    std::fs::write(folder.join("a.key"), key.serialize_pem()).unwrap();
}

/// Waits until an edit of the keys is applied: until this key is known, or unknown again.
async fn taken(load: &Load, key: &str, is_known: bool) {
    let started = Instant::now();
    loop {
        let answered = async { answer(&mut connect(load).await?, key).await };
        match answered.await {
            // 401, or 429 once this address has shown many unknown keys.
            Ok((status, _)) if (status == 200) == is_known => return,
            answered => assert!(started.elapsed() < Duration::from_secs(30), "the edit is not taken: {answered:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(load: &Load) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(load.address).await.map_err(|e| format!("connect: {e}"))?;
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from("a.test").unwrap();
    let stream = TlsConnector::from(load.config.clone()).connect(name, stream).await;
    let stream = stream.map_err(|e| format!("TLS: {e}"))?;
    if let Some(chain) = stream.get_ref().1.peer_certificates() {
        load.certificates.lock().unwrap().insert(chain[0].to_vec());
    }
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| format!("HTTP: {e}"))?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

async fn answer(sender: &mut SendRequest<Full<Bytes>>, key: &str) -> Result<(u16, Bytes), String> {
    let request = Request::get("/").header("host", "a.test").header("x-api-key", key).body(Full::<Bytes>::default());
    sender.ready().await.map_err(|e| format!("the connection was closed: {e}"))?;
    let answer = sender.send_request(request.unwrap()).await.map_err(|e| format!("request: {e}"))?;
    let status = answer.status().as_u16();
    Ok((status, answer.into_body().collect().await.map_err(|e| format!("answer: {e}"))?.to_bytes()))
}

async fn ask(load: &Load, sender: &mut SendRequest<Full<Bytes>>) -> Result<(), String> {
    let key = load.key.read().unwrap().clone();
    let (status, body) = answer(sender, &key).await?;
    if status == 200 && body == "ok" { Ok(()) } else { Err(format!("{status}: {}", String::from_utf8_lossy(&body))) }
}

/// Sends a share of the requests over one connection, each when it is due.
async fn client(load: Arc<Load>, n: u32) {
    let each = Duration::from_secs(1) * CONNECTIONS / RATE;
    let mut due = tokio::time::Instant::now() + each * n / CONNECTIONS;
    let mut sender = None;
    let mut latencies = Vec::new();
    while !load.stop.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due).await;
        let asked = async {
            if sender.is_none() {
                sender = Some(connect(&load).await?);
            }
            match &mut sender {
                Some(sender) => ask(&load, sender).await,
                None => Ok(()),
            }
        };
        match asked.await {
            Ok(()) => latencies.push(due.elapsed().as_secs_f64()),
            Err(why) => {
                sender = None;
                load.failures.lock().unwrap().push(why);
            }
        }
        load.requests.fetch_add(1, Ordering::Relaxed);
        due += each;
    }
    load.latencies.lock().unwrap().extend(latencies);
}

/// Opens a connection for each request.
async fn strangers(load: Arc<Load>) {
    while !load.stop.load(Ordering::Relaxed) {
        let asked = async { ask(&load, &mut connect(&load).await?).await };
        if let Err(why) = asked.await {
            load.failures.lock().unwrap().push(why);
        }
        load.handshakes.fetch_add(1, Ordering::Relaxed);
        load.requests.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1) / HANDSHAKES).await;
    }
}
