//! Cost of thousands of idle clients and some very slow ones: memory, and the latency of `wrk` over 32 connections
//! beside them. Without TLS and with it.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{Process, free_port, named, wait_for};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
/// Clients that send a byte of a header each second until they are cut off, again and again.
const SLOW: usize = 500;
/// Connections opened concurrently.
const OPENING: usize = 64;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Runs the scenario and prints the results.
pub(crate) fn run(connections: usize, seconds: u32) {
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-idle-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let made = generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let CertifiedKey { cert, signing_key } = &made;
    std::fs::write(folder.join("a.pem"), cert.pem()).unwrap();
    std::fs::write(folder.join("a.key"), signing_key.serialize_pem()).unwrap();
    let (upstream, plain, secure) = (free_port(), free_port(), free_port());
    let limits = "limits: {maxConnections: 60000, idleTimeout: 30m, headerTimeout: 5s}";
    std::fs::write(
        folder.join("spillway.yaml"),
        format!(
            "listeners:
  - {{address: \"127.0.0.1:{plain}\", {limits}}}
  - {{address: \"127.0.0.1:{secure}\", protocol: https, tls: {{certificates: [{{certFile: a.pem, keyFile: a.key}}]}}, {limits}}}
backends: [{{name: u, endpoints: [{{url: \"http://127.0.0.1:{upstream}\"}}]}}]
routes: [{{backendRefs: [{{name: u}}]}}]
telemetry: {{logs: {{access: false}}}}
"
        ),
    )
    .unwrap();
    let _upstream = Process::answering(&folder, upstream);
    let config = client(cert.der());
    println!("\n{connections} idle connections and {SLOW} slow ones; wrk, 32 connections, runs of {seconds} s");
    println!(
        "{:12} {:>14} {:>14} {:>14} {:>12} {:>12} {:>10}",
        "", "memory before", "with them", "KiB for each", "p99 before", "with them", "cut, slow"
    );
    for (name, port, tls) in [("without TLS", plain, None), ("with TLS", secure, Some(config))] {
        let gateway =
            Process::start(Command::new(named("SPILLWAY_BIN")).args(["serve", "-c"]).arg(folder.join("spillway.yaml")));
        wait_for(plain);
        wait_for(secure);
        wrk(plain, 1);
        let before = (gateway.resident(), wrk(plain, seconds));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut held = runtime.block_on(open(address, tls.clone(), connections));
        let cut = Arc::new(AtomicUsize::new(0));
        for _ in 0..SLOW {
            runtime.spawn(slow(address, cut.clone()));
        }
        let during = (gateway.resident(), wrk(plain, seconds.max(6)));
        // Held all the while: each connection must still work.
        runtime.block_on(async {
            for stream in held.iter_mut().step_by(connections.div_ceil(200).max(1)) {
                ask(stream).await;
            }
        });
        let memory = gateway.resident().max(during.0);
        println!(
            "{name:12} {:>10.0} MiB {memory:>10.0} MiB {:>14.1} {:>9.2} ms {:>9.2} ms {:>10}",
            before.0,
            (memory - before.0) * 1024.0 / (connections + SLOW) as f64,
            before.1,
            during.1,
            cut.load(Ordering::Relaxed),
        );
        drop(held);
        runtime.shutdown_background();
    }
    let _ = std::fs::remove_dir_all(folder);
}

fn client(certificate: &CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Opens connections, each with one request, and holds them.
async fn open(address: SocketAddr, tls: Option<Arc<ClientConfig>>, connections: usize) -> Vec<Box<dyn Stream>> {
    let mut held = Vec::with_capacity(connections);
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..connections {
        if opening.len() >= OPENING {
            held.extend(opening.join_next().await.map(Result::unwrap));
        }
        let tls = tls.clone();
        opening.spawn(async move {
            let stream = TcpStream::connect(address).await.expect("a connection; the file limit must allow them all");
            let mut stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some(config) => {
                    let name = ServerName::try_from("a.test").unwrap();
                    Box::new(tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap())
                }
            };
            ask(&mut stream).await;
            stream
        });
    }
    while let Some(stream) = opening.join_next().await {
        held.push(stream.unwrap());
    }
    held
}

async fn ask(stream: &mut Box<dyn Stream>) {
    stream.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        let mut part = [0; 1024];
        let n = stream.read(&mut part).await.unwrap();
        assert!(n > 0, "the connection was closed");
        answer.extend_from_slice(&part[..n]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

async fn slow(address: SocketAddr, cut: Arc<AtomicUsize>) {
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else { return };
        for byte in REQUEST.iter().cycle() {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// 99th percentile in milliseconds.
fn wrk(port: u16, seconds: u32) -> f64 {
    let out = Command::new("wrk")
        .args(["-t1", "-c32", "--latency", &format!("-d{seconds}s"), &format!("http://127.0.0.1:{port}/")])
        .output()
        .expect("wrk is installed: `make bench` does it");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!text.contains("Non-2xx"), "{text}");
    p99(&text)
}

/// 99th percentile printed by `wrk`, in milliseconds.
fn p99(text: &str) -> f64 {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("99%")).unwrap_or_else(|| panic!("{text}"));
    let p99 = line.trim();
    let digits = p99.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = if p99.ends_with("us") {
        1e-3
    } else if p99.ends_with("ms") {
        1.0
    } else {
        1e3
    };
    digits.parse::<f64>().unwrap() * scale
}
