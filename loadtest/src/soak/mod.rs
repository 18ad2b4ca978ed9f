//! Soak: a mix of everything for an hour. Prints what was sent and what it took, and fails where a request was answered
//! otherwise than the mix provokes, where memory, descriptors or threads grow, or where the counts of clients, metrics and
//! the access log differ.

mod clients;
mod process;
mod servers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ClientConfig;

use crate::process::{free_port, named, wait_for};
use process::Gateway;
use servers::Kind;

/// Time between two edits of the configuration.
const EDIT: Duration = Duration::from_secs(3);
/// Every edit of this number is one that the gateway must keep out.
const BROKEN: usize = 5;
/// Longest wait for counters and log to come to rest at the end.
const REST: Duration = Duration::from_secs(30);

/// State that clients share.
struct World {
    plain: u16,
    secure: u16,
    h2c: u16,
    admin: u16,
    tls: Arc<ClientConfig>,
    key: String,
    limited: String,
    stop: AtomicBool,
}

/// Answers that a part of the mix got.
struct Tally {
    name: &'static str,
    statuses: Mutex<BTreeMap<u16, usize>>,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    fn new(name: &'static str) -> Self {
        Self { name, statuses: Mutex::default(), wrong: Mutex::default() }
    }

    /// Counts an answer; a status that is neither 200 nor provoked is wrong.
    fn count(&self, status: u16, provoked: &[u16]) {
        *self.statuses.lock().unwrap().entry(status).or_default() += 1;
        if status != 200 && !provoked.contains(&status) {
            self.wrong(format!("status {status}"));
        }
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// Answers of any status.
    fn answers(&self) -> usize {
        self.statuses.lock().unwrap().values().sum()
    }
}

/// Runs the soak and prints its result; true if every check holds.
pub(crate) fn run(seconds: u32) -> bool {
    let folder = std::env::temp_dir().join(format!("spillway-soak-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let is_good = runtime.block_on(soak(&folder, Duration::from_secs(seconds.into())));
    if is_good {
        let _ = std::fs::remove_dir_all(folder);
    } else {
        println!("the log and the configuration of the gateway are in {}", folder.display());
    }
    is_good
}

async fn soak(folder: &Path, time: Duration) -> bool {
    let (world, written) = prepare(folder).await;
    let config = folder.join("spillway.yaml");
    std::fs::write(&config, written.text(0)).unwrap();
    let gateway = Gateway::start(folder);
    wait_for(world.plain);
    wait_for(world.admin);
    let (tallies, mut running) = clients::start(&world);
    let edits = tokio::spawn(edit(config, written, world.clone()));
    let mut samples = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time {
        tokio::time::sleep(Duration::from_secs(1)).await;
        samples.extend(gateway.sample());
    }
    world.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    let edits = edits.await.unwrap();
    let sent: usize = tallies.iter().map(|tally| tally.answers()).sum();
    let counted = at_rest(&world, sent).await;
    let metrics = process::metrics(world.admin).await;
    let (status, lines) = gateway.end();
    println!("\nsoak of {} s\n", began.elapsed().as_secs());
    let mut checks = vec![report_mix(&tallies)];
    checks.extend(process::report_resources(&samples));
    checks.extend(report_counts(&Counts { sent, counted, lines, edits, metrics: &metrics }));
    checks.push(check("the gateway ends with code 0", status == Some(0), format!("{status:?}")));
    checks.into_iter().all(|held| held)
}

/// Prints a check and returns whether it holds.
fn check(what: &str, holds: bool, found: impl std::fmt::Display) -> bool {
    println!("{} {what}: {found}", if holds { "ok    " } else { "FAILED" });
    holds
}

/// Servers, certificate and keys of the mix, and the configuration that names them.
async fn prepare(folder: &Path) -> (Arc<World>, Written) {
    let (key, digest) = new_key();
    let (limited, limited_digest) = new_key();
    let ports = [free_port(), free_port(), free_port(), free_port()];
    let world = World {
        plain: ports[0],
        secure: ports[1],
        h2c: ports[2],
        admin: ports[3],
        tls: certificate(folder),
        key,
        limited,
        stop: AtomicBool::new(false),
    };
    let written = Written {
        ports,
        digests: [digest, limited_digest],
        model: std::path::absolute(named("SPILLWAY_TEST_MODEL")).unwrap(),
        sound: servers::start(Kind::Sound).await,
        canary: servers::start(Kind::Sound).await,
        copies: servers::start(Kind::Sound).await,
        flaky: servers::start(Kind::Flaky).await,
        late: servers::start(Kind::Late).await,
        busy: servers::start(Kind::Busy).await,
        grpc: servers::start(Kind::Grpc).await,
    };
    (Arc::new(world), written)
}

/// Configuration of the mix.
struct Written {
    ports: [u16; 4],
    digests: [String; 2],
    model: PathBuf,
    sound: SocketAddr,
    canary: SocketAddr,
    copies: SocketAddr,
    flaky: SocketAddr,
    late: SocketAddr,
    busy: SocketAddr,
    grpc: SocketAddr,
}

impl Written {
    /// Text of one edit: weights that move, and sometimes a mistake.
    fn text(&self, edit: usize) -> String {
        let [plain, secure, h2c, admin] = self.ports;
        let [digest, limited] = &self.digests;
        let Self { sound, canary, copies, flaky, late, busy, grpc, .. } = self;
        let model = self.model.display();
        let weight = 5 + edit % 3 * 5;
        let mistake = if is_broken(edit) { "nonsense: true\n" } else { "" };
        format!(
            "listeners:
  - {{name: plain, address: \"127.0.0.1:{plain}\"}}
  - {{name: secure, address: \"127.0.0.1:{secure}\", protocol: https, tls: {{certificates: [{{certFile: soak.pem, keyFile: soak.key}}]}}}}
  - {{name: h2c, address: \"127.0.0.1:{h2c}\", protocol: h2c}}
admin: {{address: \"127.0.0.1:{admin}\"}}
telemetry:
  tracing: {{otlp: {{endpoint: \"http://{grpc}\", protocol: grpc}}, sampleRatio: 0.5}}
consumers:
  - {{name: soak, keys: [{{sha256: \"{digest}\"}}], limits: {{requests: 100000/s, tokens: 100000000/min, concurrency: 1000, budget: {{tokens: 1000000000, per: day}}}}}}
  - {{name: limited, keys: [{{sha256: \"{limited}\"}}], limits: {{requests: 20/s}}}}
models:
  - {{name: small, source: \"{model}\", device: cpu, cores: 1, contextLength: 512, maxSequences: 2, maxQueue: 4, maxQueueWait: 20s}}
backends:
  - {{name: sound, protocol: openai, endpoints: [{{url: \"http://{sound}\"}}], healthCheck: {{http: {{path: /health}}, interval: 1s}}}}
  - {{name: canary, endpoints: [{{url: \"http://{canary}\"}}]}}
  - {{name: copies, endpoints: [{{url: \"http://{copies}\"}}]}}
  - {{name: plain, endpoints: [{{url: \"http://{sound}\"}}]}}
  - name: shaky
    endpoints: [{{url: \"http://{flaky}\"}}, {{url: \"http://{sound}\"}}, {{url: \"http://{canary}\"}}]
    outlierDetection: {{errorRate: 0, ejectionTime: 1s}}
  - {{name: late, endpoints: [{{url: \"http://{late}\"}}, {{url: \"http://{sound}\"}}]}}
  - {{name: few, protocol: openai, endpoints: [{{url: \"http://{busy}\"}}], capacity: {{maxInFlight: 2}}}}
  - {{name: grpc, http2: true, endpoints: [{{url: \"http://{grpc}\"}}]}}
routes:
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: sound}}]}}
  - name: inside
    matches: [{{path: {{prefix: /inside}}}}]
    filters: [{{urlRewrite: {{replacePrefix: /}}}}]
    modelAlias: {{m: small}}
    backendRefs: [{{model: small}}]
  - name: few
    matches: [{{path: {{prefix: /few}}}}]
    filters: [{{urlRewrite: {{replacePrefix: /}}}}]
    backendRefs: [{{name: few}}]
    whenSaturated: {{queue: {{maxWait: 50ms, maxDepth: 2}}, spillTo: small}}
  - {{name: canary, matches: [{{path: {{prefix: /canary}}}}], backendRefs: [{{name: plain, weight: {}}}, {{name: canary, weight: {weight}}}]}}
  - {{name: mirrored, matches: [{{path: {{prefix: /mirrored}}}}], filters: [{{mirror: {{backend: copies, percent: 50}}}}], backendRefs: [{{name: plain}}]}}
  - {{name: hedged, matches: [{{path: {{prefix: /hedged}}}}], retry: {{budget: 1.0, hedge: {{after: 100ms}}}}, backendRefs: [{{name: late}}]}}
  - {{name: retried, matches: [{{path: {{prefix: /retried}}}}], retry: {{attempts: 3, on: [connectFailure, reset, \"502\"], budget: 1.0}}, backendRefs: [{{name: shaky}}]}}
  - {{name: grpc, matches: [{{path: {{prefix: /soak.Service}}}}], backendRefs: [{{name: grpc}}]}}
  - {{name: rest, backendRefs: [{{name: plain}}]}}
# edit {edit}
{mistake}",
            100 - weight,
        )
    }
}

fn is_broken(edit: usize) -> bool {
    edit % BROKEN == BROKEN - 1
}

/// Edits the configuration until the end; returns the good and the broken edits.
async fn edit(config: PathBuf, written: Written, world: Arc<World>) -> (usize, usize) {
    let (mut good, mut broken) = (0, 0);
    while !world.stop.load(Ordering::Relaxed) {
        tokio::time::sleep(EDIT).await;
        let number = good + broken + 1;
        std::fs::write(&config, written.text(number)).unwrap();
        if is_broken(number) {
            broken += 1
        } else {
            good += 1
        }
        // Edits are read when they have come to rest: each is waited for, so that none hides another.
        let began = Instant::now();
        while began.elapsed() < REST {
            let metrics = process::metrics(world.admin).await;
            if process::sum(&metrics, "spillway_config_reloads_total", "") >= (good + broken) as f64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    (good, broken)
}

/// Waits until the gateway has counted as many requests as were sent, and returns its count.
async fn at_rest(world: &World, sent: usize) -> usize {
    let began = Instant::now();
    loop {
        let metrics = process::metrics(world.admin).await;
        let counted = process::sum(&metrics, "http_server_request_duration_seconds_count", "") as usize;
        if counted >= sent || began.elapsed() > REST {
            return counted;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Prints the mix; true if no answer was wrong.
fn report_mix(tallies: &[Arc<Tally>]) -> bool {
    println!("{:<26} {:>9} {:>7}  statuses", "part", "answers", "wrong");
    let mut wrong = 0;
    for tally in tallies {
        let faults = tally.wrong.lock().unwrap();
        wrong += faults.len();
        let statuses = clients::statuses(&tally.statuses.lock().unwrap());
        println!("{:<26} {:>9} {:>7}  {statuses}", tally.name, tally.answers(), faults.len());
        faults.iter().take(3).for_each(|fault| println!("    {fault}"));
    }
    println!();
    let silent: Vec<&str> = tallies.iter().filter(|tally| tally.answers() == 0).map(|tally| tally.name).collect();
    let every = check("every part of the mix got answers", silent.is_empty(), format!("{silent:?} got none"));
    check("no answer but those that the mix provokes", wrong == 0, format!("{wrong} wrong")) && every
}

/// Counts that must agree at the end.
struct Counts<'a> {
    sent: usize,
    counted: usize,
    /// Lines of the access log.
    lines: usize,
    /// Good and broken edits.
    edits: (usize, usize),
    metrics: &'a str,
}

/// Prints the counts; one result for each check.
fn report_counts(counts: &Counts<'_>) -> Vec<bool> {
    let of = |name: &str, label: &str| process::sum(counts.metrics, name, label);
    let reloads = |result: &str| of("spillway_config_reloads_total", &format!("result=\"{result}\""));
    let Counts { sent, counted, lines, edits: (good, broken), .. } = *counts;
    let mut held = vec![
        check(
            "answers, requests in metrics and lines of the access log agree",
            sent == counted && counted == lines,
            format!("{sent}, {counted}, {lines}"),
        ),
        check(
            "edits are taken and kept out as they are written",
            (reloads("ok"), reloads("failed")) == (good as f64, broken as f64),
            format!("{} of {good} taken, {} of {broken} kept out", reloads("ok"), reloads("failed")),
        ),
    ];
    for name in ["spillway_log_lines_dropped_total", "spillway_spans_dropped_total", "spillway_requests_in_flight"] {
        held.push(check(&format!("{name} is 0"), of(name, "") == 0.0, of(name, "")));
    }
    for name in ["spillway_spills_total", "spillway_retries_total", "spillway_hedges_total", "spillway_mirrors_total"] {
        held.push(check(&format!("{name} is above 0"), of(name, "") > 0.0, of(name, "")));
    }
    held
}

/// Writes a certificate of an authority of its own; returns the client's side.
fn certificate(folder: &Path) -> Arc<ClientConfig> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let made = CertificateParams::new(["soak.test".to_owned()]).unwrap().signed_by(&own, &issuer).unwrap();
    std::fs::write(folder.join("soak.pem"), made.pem()).unwrap();
    std::fs::write(folder.join("soak.key"), own.serialize_pem()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Makes a key; returns it with its digest.
fn new_key() -> (String, String) {
    let out = Command::new(named("SPILLWAY_BIN")).args(["key", "new"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    (field("key:"), field("sha256:"))
}
