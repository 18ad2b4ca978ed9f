//! Three times the load that the servers take, and servers that fail in every way, with scripted upstreams of fixed
//! slots and service time. So the gateway's admission is measured, not the speed of a model or a machine. `real` runs
//! the first part with llama.cpp servers.

mod faults;
mod real;
mod server;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub(crate) use real::{Spill, run as run_real};
use server::BODY;
pub(crate) use server::Server;

use crate::process::{free_port, named, wait_for};

const SLOTS: usize = 8;
const SERVICE: u64 = 100;
const QUEUE: u64 = 500;
/// Capacity of a server in requests a second.
const RATE: f64 = SLOTS as f64 * 1000.0 / SERVICE as f64;

/// Child process that is killed on drop.
struct Running(Child);

impl Running {
    fn signal(&self, name: &str) {
        let _ = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A stopped process does not react to SIGTERM.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A scripted server in a process of its own.
struct Upstream {
    running: Running,
    port: u16,
    /// Time zero of the server's script.
    began: Instant,
}

impl Upstream {
    fn start(places: usize, service: u64, more: &[String]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["server", "--slots", &places.to_string(), "--service", &service.to_string()])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { running: Running(child), port: line.trim().parse().unwrap(), began: Instant::now() }
    }

    /// A server without a fault.
    fn sound() -> Self {
        Self::start(SLOTS, SERVICE, &[])
    }

    /// Spill target with slots for every request.
    fn wide() -> Self {
        Self::start(10_000, 1, &[])
    }
}

/// Gateway process, its port, and the port of its admin address.
struct Gateway {
    _running: Running,
    port: u16,
    admin: u16,
}

fn gateway(upstreams: &[u16], spill: u16, ejection: &str) -> Gateway {
    let endpoints: Vec<String> = upstreams.iter().map(|port| format!("{{url: \"http://127.0.0.1:{port}\"}}")).collect();
    start_gateway(&format!(
        "backends:
  - name: fleet
    endpoints: [{}]
    capacity: {{maxInFlight: {SLOTS}}}
    timeouts: {{firstByte: 1s, idle: 3s}}
    outlierDetection: {{ejectionTime: {ejection}}}
  - {{name: spare, endpoints: [{{url: \"http://127.0.0.1:{spill}\"}}]}}
routes:
  - backendRefs: [{{name: fleet}}]
    retry: {{attempts: 3, on: [connectFailure, reset, \"502\", \"504\"], budget: 1}}
    whenSaturated: {{queue: {{maxWait: {QUEUE}ms, maxDepth: 200}}, spillTo: spare}}
",
        endpoints.join(", ")
    ))
}

/// Starts the gateway with these backends and routes.
fn start_gateway(yaml: &str) -> Gateway {
    let (port, admin) = (free_port(), free_port());
    let path = std::env::temp_dir().join(format!("spillway-overload-{}-{port}.yaml", std::process::id()));
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:{port}\"}}]\nadmin: {{address: \"127.0.0.1:{admin}\"}}\ntelemetry: {{logs: {{access: false}}}}\n{yaml}"
    );
    std::fs::write(&path, yaml).unwrap();
    let child = Command::new(named("SPILLWAY_BIN"))
        .args(["serve", "-c"])
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running(child);
    wait_for(port);
    let _ = std::fs::remove_file(path);
    Gateway { _running: running, port, admin }
}

/// Outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Answered by one of the servers.
    Served,
    /// Answered by the spill target.
    Spilled,
    /// Answered with an error status.
    Refused,
    /// The answer began and was cut off.
    Cut,
    /// No answer.
    Lost,
}

#[derive(Clone, Copy)]
struct Told {
    at: Duration,
    first_byte: Duration,
    end: End,
}

/// Request of the load.
#[derive(Clone, Copy)]
enum Question {
    /// `GET /`, answered by a scripted server.
    Get,
    /// Completion with this body, answered as a stream.
    Chat(&'static str),
}

impl Question {
    fn request(self) -> http::Result<http::Request<Full<Bytes>>> {
        match self {
            Self::Get => http::Request::get("/").header("host", "load").body(Full::default()),
            Self::Chat(body) => http::Request::post("/v1/chat/completions")
                .header("host", "load")
                .header("content-type", "application/json")
                .body(Full::from(body)),
        }
    }

    /// Also true for a scripted server's answer, since the spill target may be one.
    fn is_whole(self, body: &[u8]) -> bool {
        body == BODY || matches!(self, Self::Chat(_)) && body.trim_ascii_end().ends_with(b"data: [DONE]")
    }
}

async fn ask(port: u16, at: Duration, question: Question) -> Told {
    let began = Instant::now();
    let mut told = Told { at, first_byte: Duration::ZERO, end: End::Lost };
    let asked = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.ok()?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(question.request().ok()?).await;
        let Ok(answer) = answer else {
            connection.abort();
            return None;
        };
        let mut first_byte = began.elapsed();
        let good = answer.status() == 200;
        let spilled = answer.headers().contains_key("x-spillway-served-by");
        let mut body = answer.into_body();
        let mut whole = true;
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            // The head of a stream may arrive long before its first byte.
            if bytes.is_empty() {
                first_byte = began.elapsed();
            }
            match frame {
                Ok(frame) => bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Err(_) => whole = false,
            }
            if !whole {
                break;
            }
        }
        let whole = whole && (!good || question.is_whole(&bytes));
        connection.abort();
        let end = match (good, whole, spilled) {
            (true, false, _) => End::Cut,
            (false, _, _) => End::Refused,
            (true, true, true) => End::Spilled,
            (true, true, false) => End::Served,
        };
        Some((first_byte, end))
    };
    if let Ok(Some((first_byte, end))) = tokio::time::timeout(Duration::from_secs(60), asked).await {
        told.first_byte = first_byte;
        told.end = end;
    }
    told
}

/// Sends `rate` requests a second, whether or not earlier ones were answered.
async fn open_loop(port: u16, rate: f64, seconds: u32, question: Question) -> Vec<Told> {
    let (send, mut told) = mpsc::unbounded_channel();
    let began = Instant::now();
    let count = (rate * f64::from(seconds)) as u64;
    for n in 0..count {
        let at = Duration::from_secs_f64(n as f64 / rate);
        tokio::time::sleep_until((began + at).into()).await;
        let send = send.clone();
        tokio::spawn(async move { send.send(ask(port, at, question).await) });
    }
    drop(send);
    let mut all = Vec::new();
    while let Some(one) = told.recv().await {
        all.push(one);
    }
    all
}

/// Answers a second when each server has exactly as many clients as slots, without a gateway.
async fn stand_alone(ports: &[u16], seconds: u32) -> f64 {
    let until = Instant::now() + Duration::from_secs(seconds.into());
    let served = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for port in ports.iter().copied() {
        for _ in 0..SLOTS {
            let served = served.clone();
            tasks.spawn(async move {
                while Instant::now() < until {
                    if ask(port, Duration::ZERO, Question::Get).await.end == End::Served {
                        served.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            });
        }
    }
    while tasks.join_next().await.is_some() {}
    served.load(std::sync::atomic::Ordering::Relaxed) as f64 / f64::from(seconds)
}

fn count(told: &[Told], end: End) -> usize {
    told.iter().filter(|one| one.end == end).count()
}

fn millis_at(told: &[Told], end: End, part: f64) -> f64 {
    let mut times: Vec<f64> =
        told.iter().filter(|one| one.end == end).map(|one| one.first_byte.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    crate::percentile(&times, part)
}

/// Runs three times the load for `seconds`, then each fault for a while.
pub(crate) fn run(seconds: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (a, b, spare) = (Upstream::sound(), Upstream::sound(), Upstream::wide());
        let alone = stand_alone(&[a.port, b.port], 5).await;
        let gateway = gateway(&[a.port, b.port], spare.port, "15s");
        let offered = 3.0 * 2.0 * RATE;
        println!("\nTwo servers of {SLOTS} places and {SERVICE} ms, {offered:.0} requests/s for {seconds} s, queue of {QUEUE} ms");
        let told = open_loop(gateway.port, offered, seconds, Question::Get).await;
        let served = count(&told, End::Served) as f64 / f64::from(seconds);
        println!("stand-alone {alone:.0}/s, through the gateway {served:.0}/s: {:.1} %", served / alone * 100.0);
        let window = 10.min(seconds);
        let windows: Vec<f64> = (0..seconds / window)
            .map(|n| {
                let (from, to) = (Duration::from_secs((n * window).into()), Duration::from_secs(((n + 1) * window).into()));
                let inside = told.iter().filter(|t| t.end == End::Served && t.at >= from && t.at < to).count();
                inside as f64 / f64::from(window)
            })
            .collect();
        let (middle, least, most) = crate::spread(&windows);
        println!("in windows of {window} s: {middle:.0}/s ({least:.0}..{most:.0})");
        println!(
            "answered 200: {:.2} % ({} spilled, {} refused, {} cut, {} lost)",
            (count(&told, End::Served) + count(&told, End::Spilled)) as f64 / told.len() as f64 * 100.0,
            count(&told, End::Spilled), count(&told, End::Refused), count(&told, End::Cut), count(&told, End::Lost)
        );
        println!(
            "first byte of those who were served: p50 {:.0} ms, p99 {:.0} ms, p99.9 {:.0} ms; queue and service are {} ms",
            millis_at(&told, End::Served, 0.5), millis_at(&told, End::Served, 0.99), millis_at(&told, End::Served, 0.999),
            QUEUE + SERVICE
        );
        faults::run(spare.port, seconds.min(20)).await;
    });
}
