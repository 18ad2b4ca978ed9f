//! Cost of translation: a chat of OpenAI's API that a server of Anthropic's API answers with a stream of 500 events, beside the
//! same stream passed to a caller of Anthropic's API, and beside LiteLLM's proxy translating the same chat. One server, an nginx,
//! has the whole stream in a file and sends it at once; the other sends an event every two milliseconds, as models do.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::process::{Process, free_port, named, wait_for};
use crate::spread;

/// Events of a stream that carry text.
const EVENTS: usize = 500;
/// Connections, each of which asks again as soon as it is answered.
const CONNECTIONS: usize = 8;
/// Time between two events of the slower server.
const BETWEEN: Duration = Duration::from_millis(2);
/// LiteLLM in the peers' Python environment.
const LITELLM: &str = ".cache/peers/venv/bin/litellm";

/// Way of a chat to the server.
struct Candidate<'p> {
    name: &'static str,
    process: &'p Process,
    url: String,
    /// Script that makes `wrk` send the chat.
    script: PathBuf,
    /// Text at the end of a right answer.
    end: &'static str,
}

/// Streams a second, and processor time of each in microseconds.
type Figures = Vec<(f64, f64)>;

/// Runs the scenario and prints its tables.
pub(crate) fn run(rounds: usize, seconds: u32) {
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-translate-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let at_once = free_port();
    let _nginx = origin(&folder, at_once);
    compare(&folder, at_once, "all of them at once", rounds, seconds);
    let paced = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = paced.local_addr().unwrap().port();
    runtime.spawn(serve_paced(paced));
    compare(&folder, port, "one every 2 ms", rounds, seconds);
    let _ = std::fs::remove_dir_all(folder);
}

/// Compares the ways to a server that sends its events as `pace` says.
fn compare(folder: &Path, server: u16, pace: &str, rounds: usize, seconds: u32) {
    let (gateway, proxy) = (free_port(), free_port());
    let spillway = spillway(folder, gateway, server);
    let litellm = Path::new(LITELLM).is_file().then(|| litellm(folder, proxy, server));
    let body = r#"{"model": "large", "stream": true, "max_tokens": 1000, "messages": [{"role": "user", "content": "Tell me about dams."}]}"#;
    let script = script(folder, body);
    let way = |name, process, port: u16, path: &str, end| {
        let url = format!("http://127.0.0.1:{port}{path}");
        Candidate { name, process, url, script: script.clone(), end }
    };
    let mut candidates = vec![
        way("Spillway passing", &spillway, gateway, "/v1/messages", "message_stop"),
        way("Spillway translating", &spillway, gateway, "/v1/chat/completions", "[DONE]"),
    ];
    candidates.extend(
        litellm.as_ref().map(|process| way("LiteLLM translating", process, proxy, "/v1/chat/completions", "[DONE]")),
    );
    candidates.iter().for_each(check);
    let mut figures: Vec<Figures> = candidates.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (candidate, figures) in candidates.iter().zip(&mut figures) {
            figures.push(measure(candidate, seconds));
        }
    }
    let profile = std::env::var("SPILLWAY_BENCH_PROFILE").unwrap_or_default();
    println!(
        "\n{EVENTS} events, {pace}; {CONNECTIONS} connections, {rounds} rounds of {seconds} s in turn, profile `{profile}`\n"
    );
    println!("| way | streams a second (least to most) | beside translating | CPU, us each | beside passing |");
    println!("|---|---|---|---|---|");
    for (candidate, own) in candidates.iter().zip(&figures) {
        print_row(candidate.name, own, figures.first(), figures.get(1));
    }
}

/// Serves streams whose events come one after another.
async fn serve_paced(listener: tokio::net::TcpListener) {
    let events: Vec<Bytes> = events().map(Bytes::from).collect();
    let events: &'static [Bytes] = events.leak();
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let answer = service_fn(move |request: http::Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            let paced = stream::iter(events).then(async |event| {
                tokio::time::sleep(BETWEEN).await;
                Ok::<_, Infallible>(Frame::data(event.clone()))
            });
            let body = StreamBody::new(paced).boxed_unsync();
            Response::builder().header("content-type", "text/event-stream").body(body)
        });
        tokio::spawn(async move {
            // A client that leaves in the middle is no fault of the server.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

fn print_row(name: &str, own: &Figures, passing: Option<&Figures>, translating: Option<&Figures>) {
    let column = |figures: &Figures, of: fn(&(f64, f64)) -> f64| figures.iter().map(of).collect::<Vec<_>>();
    let ratio = |others: Option<&Figures>, of: fn(&(f64, f64)) -> f64| {
        let Some(others) = others else { return String::new() };
        let ratios: Vec<f64> = own.iter().zip(others).map(|(own, other)| of(own) / of(other)).collect();
        let (middle, least, most) = spread(&ratios);
        format!("{middle:.3}x ({least:.3} to {most:.3})")
    };
    let (rate, least, most) = spread(&column(own, |figure| figure.0));
    let (cpu, ..) = spread(&column(own, |figure| figure.1));
    let (rates, cpus) = (ratio(translating, |figure| figure.0), ratio(passing, |figure| figure.1));
    println!("| {name} | {rate:.1} ({least:.1} to {most:.1}) | {rates} | {cpu:.0} | {cpus} |");
}

/// Asks once, and stops where the answer is not a whole stream.
fn check(candidate: &Candidate<'_>) {
    let script = std::fs::read_to_string(&candidate.script).unwrap();
    let body = script.split_once("[==[").unwrap().1.split_once("]==]").unwrap().0;
    let began = std::time::Instant::now();
    loop {
        let out = Command::new("curl")
            .args(["--silent", "--max-time", "30", "--header", "Content-Type: application/json"])
            .args(["--data-binary", body, &candidate.url])
            .output()
            .expect("curl is installed: `make bench` does it");
        let text = String::from_utf8_lossy(&out.stdout);
        let has_all = text.matches("water ").count() == EVENTS;
        if has_all && text.trim_end().trim_end_matches(['}', '"']).ends_with(candidate.end) {
            return;
        }
        // LiteLLM takes a while to listen.
        assert!(began.elapsed().as_secs() < 120, "{}: no whole stream: {text}", candidate.name);
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

fn measure(candidate: &Candidate<'_>, seconds: u32) -> (f64, f64) {
    let before = candidate.process.cpu();
    let out = Command::new("wrk")
        .args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s"), "--timeout", "30s", "-s"])
        .arg(&candidate.script)
        .arg(&candidate.url)
        .output()
        .expect("wrk is installed: `make bench` does it");
    let cpu = candidate.process.cpu() - before;
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{}: {text}", candidate.name);
    let count =
        text.lines().find(|line| line.contains(" requests in ")).and_then(|line| line.split_whitespace().next());
    let count: f64 = count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    (count / f64::from(seconds), cpu * 1e6 / count)
}

/// Script that makes `wrk` send a chat.
fn script(folder: &Path, body: &str) -> PathBuf {
    let path = folder.join("chat.lua");
    let text = format!(
        "wrk.method = \"POST\"\nwrk.headers[\"Content-Type\"] = \"application/json\"\nwrk.body = [==[{body}]==]\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// Events of a stream of Anthropic's API, as the server writes them.
fn events() -> impl Iterator<Item = String> {
    let mut events = vec![
        (
            "message_start",
            serde_json::json!({"type": "message_start", "message": {
                "id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "large", "stop_reason": null,
                "stop_sequence": null, "usage": {"input_tokens": 12, "output_tokens": 1}
            }}),
        ),
        (
            "content_block_start",
            serde_json::json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        ),
    ];
    // LiteLLM takes a stream of equal events for a model that repeats itself.
    events.extend((0..EVENTS).map(|n| {
        let delta = serde_json::json!({"type": "text_delta", "text": format!("water {n} ")});
        ("content_block_delta", serde_json::json!({"type": "content_block_delta", "index": 0, "delta": delta}))
    }));
    events.extend([
        ("content_block_stop", serde_json::json!({"type": "content_block_stop", "index": 0})),
        (
            "message_delta",
            serde_json::json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
                "usage": {"output_tokens": EVENTS}}),
        ),
        ("message_stop", serde_json::json!({"type": "message_stop"})),
    ]);
    events.into_iter().map(|(name, data)| format!("event: {name}\ndata: {data}\n\n"))
}

fn origin(folder: &Path, port: u16) -> Process {
    std::fs::write(folder.join("stream"), events().collect::<String>()).unwrap();
    let config = folder.join("nginx.conf");
    // nginx refuses POST to a file with 405, and answers that with the file.
    let text = format!(
        "daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null; events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; default_type text/event-stream;
  server {{ listen 127.0.0.1:{port}; root {folder}; error_page 405 =200 /stream; location / {{ try_files /stream =404; }} }} }}
",
        folder = folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let nginx = Process::start(Command::new("nginx").arg("-c").arg(config));
    wait_for(port);
    nginx
}

fn spillway(folder: &Path, port: u16, server: u16) -> Process {
    let config = folder.join("spillway.yaml");
    let text = format!(
        "listeners: [{{address: \"127.0.0.1:{port}\"}}]
backends: [{{name: a, protocol: anthropic, endpoints: [{{url: \"http://127.0.0.1:{server}\"}}]}}]
routes: [{{backendRefs: [{{name: a}}]}}]
telemetry: {{logs: {{access: false}}}}
"
    );
    std::fs::write(&config, text).unwrap();
    let gateway = Process::start(Command::new(named("SPILLWAY_BIN")).args(["serve", "-c"]).arg(config));
    wait_for(port);
    gateway
}

fn litellm(folder: &Path, port: u16, server: u16) -> Process {
    let config = folder.join("litellm.yaml");
    let text = format!(
        "model_list:\n  - {{model_name: large, litellm_params: {{model: anthropic/large, api_base: \"http://127.0.0.1:{server}\", api_key: none}}}}\n"
    );
    std::fs::write(&config, text).unwrap();
    Process::start(
        Command::new(LITELLM)
            .arg("--config")
            .arg(config)
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--num_workers", "2", "--telemetry", "False"])
            .args(["--timeout_worker_healthcheck", "120"])
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true")
            .env("LITELLM_LOG", "ERROR"),
    )
}
