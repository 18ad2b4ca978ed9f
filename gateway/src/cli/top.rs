//! `spillway top`: the routes, endpoints and built-in models of a running gateway in the terminal, read from the admin address
//! and redrawn each second. Plain ANSI sequences on the alternate screen; `q` or Ctrl-C ends it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{IsTerminal, Read as _, Write as _};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::mpsc;

use super::admin::{AdminArguments, ClientError};

/// Switches to the alternate screen, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Switches back from the alternate screen.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Moves to the upper left.
const HOME: &str = "\x1b[H";
/// Keys that wait to be read; more of them mean nothing.
const MAX_KEYS: usize = 8;
/// Clears the rest of a line.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears the rest of the screen.
const CLEAR_REST: &str = "\x1b[J";

#[derive(Debug, Deserialize)]
struct Backends {
    backends: Vec<BackendRow>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BackendRow {
    name: String,
    policy: String,
    available: bool,
    panic: bool,
    in_flight: u32,
    max_in_flight: Option<u32>,
    pending: u32,
    max_pending: Option<u32>,
    endpoints: Vec<EndpointRow>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointRow {
    endpoint: String,
    priority: u32,
    state: String,
    in_flight: u32,
    limit: Option<u32>,
    latency_ms: Option<f64>,
    waiting: Option<u32>,
    kv_cache: Option<f64>,
    ejections: u64,
    last_error: Option<LastErrorRow>,
    attempts: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct LastErrorRow {
    time: String,
    cause: String,
}

/// State of the gateway at one moment.
struct Reading {
    at: Instant,
    backends: Vec<BackendRow>,
    routes: BTreeMap<String, RouteCounts>,
    models: BTreeMap<String, ModelFigures>,
}

/// Counts of a route from the metrics: waiting requests now, and totals since the process began.
#[derive(Debug, Default, Clone, Copy)]
struct RouteCounts {
    waiting: f64,
    requests: f64,
    retries: f64,
    spills: f64,
    sheds: f64,
}

/// Figures of a built-in model from the metrics.
#[derive(Debug, Default, Clone, Copy)]
struct ModelFigures {
    loaded: f64,
    ready: f64,
    active: f64,
    waiting: f64,
    wait_seconds: f64,
    generated: f64,
    kv_used: f64,
    kv_capacity: f64,
    memory: f64,
}

/// Samples of a page of metrics that have a label: family, value of the label, figure.
fn samples<'m>(metrics: &'m str, label: &str) -> impl Iterator<Item = (&'m str, &'m str, f64)> {
    let begin = format!("{label}=\"");
    metrics.lines().filter_map(move |line| {
        let (family, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        let at = labels.find(&begin).filter(|at| *at == 0 || labels.get(..*at).is_some_and(|l| l.ends_with(',')))?;
        let (name, _) = labels.get(at + begin.len()..)?.split_once('"')?;
        Some((family, name, value.parse().ok()?))
    })
}

/// Reads the figures of built-in models from a page of metrics.
fn models(metrics: &str) -> BTreeMap<String, ModelFigures> {
    let mut models: BTreeMap<String, ModelFigures> = BTreeMap::new();
    for (family, name, value) in samples(metrics, "model") {
        let figure: fn(&mut ModelFigures) -> &mut f64 = match family {
            "spillway_engine_loaded" => |model| &mut model.loaded,
            "spillway_engine_ready" => |model| &mut model.ready,
            "spillway_engine_active_sequences" => |model| &mut model.active,
            "spillway_engine_waiting_sequences" => |model| &mut model.waiting,
            "spillway_engine_estimated_wait_seconds" => |model| &mut model.wait_seconds,
            "spillway_engine_generated_tokens_total" => |model| &mut model.generated,
            "spillway_engine_kv_used_tokens" => |model| &mut model.kv_used,
            "spillway_engine_kv_capacity_tokens" => |model| &mut model.kv_capacity,
            "spillway_engine_memory_bytes" => |model| &mut model.memory,
            _ => continue,
        };
        *figure(models.entry(name.to_owned()).or_default()) = value;
    }
    models
}

/// Reads the counts of routes from a page of metrics.
fn routes(metrics: &str) -> BTreeMap<String, RouteCounts> {
    let mut routes: BTreeMap<String, RouteCounts> = BTreeMap::new();
    for (family, name, value) in samples(metrics, "http_route") {
        let figure: fn(&mut RouteCounts) -> &mut f64 = match family {
            "spillway_queue_depth" => |route| &mut route.waiting,
            "http_server_request_duration_seconds_count" => |route| &mut route.requests,
            "spillway_retries_total" => |route| &mut route.retries,
            "spillway_spills_total" => |route| &mut route.spills,
            "spillway_sheds_total" => |route| &mut route.sheds,
            _ => continue,
        };
        *figure(routes.entry(name.to_owned()).or_default()) += value;
    }
    routes
}

async fn read(admin: &AdminArguments) -> Result<Reading, ClientError> {
    let page = admin.get("/api/backends").await?;
    let backends: Backends = admin.parse(&page)?;
    let metrics = admin.get("/metrics").await?;
    let metrics = String::from_utf8_lossy(&metrics);
    let (routes, models) = (routes(&metrics), models(&metrics));
    Ok(Reading { at: Instant::now(), backends: backends.backends, routes, models })
}

/// Draws until `q` or Ctrl-C, or once.
pub(super) async fn run(admin: &AdminArguments, interval: Duration, once: bool) -> Result<(), ClientError> {
    let mut before = read(admin).await?;
    let color = std::io::stdout().is_terminal();
    if once || !color {
        tokio::time::sleep(interval).await;
        let now = read(admin).await?;
        return Ok(print(&frame(admin, &before, Ok(&now), color))?);
    }
    let interrupted = tokio::signal::unix::SignalKind::interrupt();
    let mut interrupted = tokio::signal::unix::signal(interrupted)?;
    let _screen = Screen::enter()?;
    let mut keys = Keys::read();
    let mut shown = None;
    loop {
        let now = read(admin).await;
        let text = match &now {
            Ok(now) => frame(admin, shown.as_ref().unwrap_or(&before), Ok(now), true),
            Err(e) => frame(admin, &before, Err(e), true),
        };
        print(&on_screen(&text))?;
        if let Ok(now) = now {
            before = shown.replace(now).unwrap_or(before);
        }
        let next = tokio::time::Instant::now() + interval;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                _ = interrupted.recv() => return Ok(()),
                key = pressed(&mut keys) => if matches!(key, b'q' | b'Q') { return Ok(()) },
            }
        }
    }
}

/// Keys of the terminal, each read when it is pressed and not shown, until this is dropped.
struct Keys {
    before: libc::termios,
    pressed: mpsc::Receiver<u8>,
}

impl Keys {
    /// Begins to read keys; `None` where standard input is no terminal.
    fn read() -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        // SAFETY: an all-zero `termios` is a valid one, and the call fills it or fails.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the call gets a pointer to a `termios` that lives until it returns.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut before) } != 0 {
            return None;
        }
        let mut single = before;
        single.c_lflag &= !(libc::ICANON | libc::ECHO);
        // SAFETY: as above.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const single) } != 0 {
            return None;
        }
        let (send, pressed) = mpsc::channel(MAX_KEYS);
        // A thread that nobody waits for: reads of a terminal cannot be cancelled.
        std::thread::spawn(move || {
            for key in std::io::stdin().lock().bytes().map_while(Result::ok) {
                if matches!(send.try_send(key), Err(mpsc::error::TrySendError::Closed(_))) {
                    return;
                }
            }
        });
        Some(Self { before, pressed })
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // SAFETY: the call gets a pointer to a `termios` that lives until it returns.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const self.before) };
    }
}

/// The next key; waits for ever where there are none.
async fn pressed(keys: &mut Option<Keys>) -> u8 {
    if let Some(keys) = keys
        && let Some(key) = keys.pressed.recv().await
    {
        return key;
    }
    std::future::pending().await
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Alternate screen, left when dropped.
struct Screen;

impl Screen {
    fn enter() -> std::io::Result<Self> {
        print(ENTER)?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = print(LEAVE);
    }
}

/// Cuts a text to the lines of the terminal, and clears the rest.
fn on_screen(text: &str) -> String {
    let rows = rows().unwrap_or(usize::MAX);
    let mut out = HOME.to_owned();
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().take(rows.saturating_sub(1)) {
        let _ = write!(out, "{line}{CLEAR_LINE}\r\n");
    }
    out.push_str(CLEAR_REST);
    out
}

fn rows() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call gets a pointer to a `winsize` that lives until it returns.
    let ok = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) } == 0;
    (ok && size.ws_row > 0).then_some(usize::from(size.ws_row))
}

/// Attempts by endpoint: all, and failed.
fn attempts(reading: &Reading) -> HashMap<(&str, &str), (u64, u64)> {
    let endpoints = reading.backends.iter().flat_map(|b| b.endpoints.iter().map(move |e| (b, e)));
    endpoints
        .map(|(b, e)| {
            let failed = e.attempts.get("failed").copied().unwrap_or(0);
            ((b.name.as_str(), e.endpoint.as_str()), (e.attempts.values().sum(), failed))
        })
        .collect()
}

/// Text without control characters: the name of a server must not move the cursor.
fn printable(text: &str, width: usize) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if clean.chars().count() <= width { clean } else { clean.chars().take(width - 1).chain(['…']).collect() }
}

/// Line of an endpoint. `rates` are its attempts and its failed attempts in a second.
fn endpoint_line(e: &EndpointRow, rates: (f64, f64), paint: &dyn Fn(&str, String) -> String) -> String {
    let code = match e.state.as_str() {
        "open" => "32",
        "drained" => "36",
        "unhealthy" | "ejected" | "unresolved" => "31",
        _ => "33",
    };
    let limit = e.limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
    let dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let latency = |ms: f64| if ms < 10_000.0 { format!("{ms:.1}ms") } else { format!("{:.1}s", ms / 1e3) };
    // The time of day: a terminal has no room for the date.
    let last_error = e.last_error.as_ref().map(|last| {
        let time = last.time.get(11..19).unwrap_or_default();
        printable(&format!("{time} {}", last.cause), 60)
    });
    format!(
        "  {:44} {:>4} {} {:>11} {:>8.1} {:>7.1} {:>9} {:>5} {:>4} {:>4}  {}\n",
        printable(&e.endpoint, 44),
        e.priority,
        paint(code, format!("{:12}", printable(&e.state, 12))),
        format!("{}/{limit}", e.in_flight),
        rates.0,
        rates.1,
        dash(e.latency_ms.map(latency)),
        dash(e.waiting.map(|waiting| waiting.to_string())),
        dash(e.kv_cache.map(|share| format!("{:.0}%", share * 100.0))),
        e.ejections,
        dash(last_error),
    )
}

/// Adds the table of routes, where there are any.
fn route_rows(out: &mut String, before: &Reading, now: &Reading, seconds: f64, color: bool) {
    let rate = |now: f64, before: f64| (now - before).max(0.0) / seconds;
    let paint = |code: &str, text: String| if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text };
    if !now.routes.is_empty() {
        let _ = writeln!(
            out,
            "\n  {:44} {:>7} {:>8} {:>8} {:>8} {:>8}",
            "ROUTE", "WAITING", "REQ/S", "RETRY/S", "SPILL/S", "SHED/S"
        );
    }
    for (name, route) in &now.routes {
        let then = before.routes.get(name).copied().unwrap_or(*route);
        let shed = rate(route.sheds, then.sheds);
        let _ = writeln!(
            out,
            "  {:44} {:>7} {:>8.1} {:>8.1} {:>8.1} {}",
            printable(name, 44),
            route.waiting,
            rate(route.requests, then.requests),
            rate(route.retries, then.retries),
            rate(route.spills, then.spills),
            if shed > 0.0 { paint("31", format!("{shed:>8.1}")) } else { format!("{shed:>8.1}") },
        );
    }
}

/// Adds the table of built-in models, where there are any.
fn model_rows(out: &mut String, before: &Reading, now: &Reading, seconds: f64, color: bool) {
    if now.models.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n  {:44} {:12} {:>7} {:>8} {:>8} {:>9} {:>5} {:>10}",
        "MODEL", "STATE", "ACTIVE", "WAITING", "TOKEN/S", "EST. WAIT", "KV", "MEMORY"
    );
    for (name, model) in &now.models {
        let then = before.models.get(name).copied().unwrap_or(*model);
        let (state, code) = match (model.loaded > 0.0, model.ready > 0.0) {
            (false, _) => ("not loaded", "36"),
            (true, false) => ("not ready", "31"),
            (true, true) => ("ready", "32"),
        };
        let state = format!("{state:12}");
        let _ = writeln!(
            out,
            "  {:44} {} {:>7} {:>8} {:>8.1} {:>9} {:>5} {:>10}",
            printable(name, 44),
            if color { format!("\x1b[{code}m{state}\x1b[0m") } else { state },
            model.active,
            model.waiting,
            // It begins again when the model is loaded again.
            (model.generated - then.generated).max(0.0) / seconds,
            format!("{:.2}s", model.wait_seconds),
            if model.kv_capacity > 0.0 {
                format!("{:.0}%", model.kv_used / model.kv_capacity * 100.0)
            } else {
                "-".to_owned()
            },
            format!("{:.0}MiB", model.memory / f64::from(1 << 20)),
        );
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of a second")]
fn frame(admin: &AdminArguments, before: &Reading, now: Result<&Reading, &ClientError>, color: bool) -> String {
    let mut out = String::new();
    let now = match now {
        Ok(now) => now,
        Err(e) => {
            let _ = writeln!(out, "spillway top  {}\n\n{}", admin.url(), printable(&e.to_string(), 200));
            return out;
        }
    };
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-3);
    let rate = |now: f64, before: f64| (now - before).max(0.0) / seconds;
    let (had, has) = (attempts(before), attempts(now));
    let all = |attempts: &HashMap<(&str, &str), (u64, u64)>| attempts.values().map(|(all, _)| *all).sum::<u64>() as f64;
    let sum = |reading: &Reading, figure: fn(&RouteCounts) -> f64| reading.routes.values().map(figure).sum::<f64>();
    let all_routes = |figure| rate(sum(now, figure), sum(before, figure));
    let _ = writeln!(
        out,
        "spillway top  {}   {:.1} attempts/s   {:.1} spills/s   {:.1} sheds/s{}",
        admin.url(),
        rate(all(&has), all(&had)),
        all_routes(|route| route.spills),
        all_routes(|route| route.sheds),
        if color { "   (q ends)" } else { "" },
    );
    let paint = |code: &str, text: String| if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text };
    route_rows(&mut out, before, now, seconds, color);
    model_rows(&mut out, before, now, seconds, color);
    for backend in &now.backends {
        let state = match (backend.available, backend.panic) {
            (false, _) => paint("31", "unavailable".to_owned()),
            (true, true) => paint("33", "panic: ejections are ignored".to_owned()),
            (true, false) => paint("32", "available".to_owned()),
        };
        let name = paint("1", printable(&backend.name, 40));
        let of =
            |count: u32, most: Option<u32>| most.map_or_else(|| count.to_string(), |most| format!("{count}/{most}"));
        let _ = writeln!(
            out,
            "\n{name}  {}  {state}  {} in flight  {} waiting",
            printable(&backend.policy, 20),
            of(backend.in_flight, backend.max_in_flight),
            of(backend.pending, backend.max_pending),
        );
        let _ = writeln!(
            out,
            "  {:44} {:>4} {:12} {:>11} {:>8} {:>7} {:>9} {:>5} {:>4} {:>4}  LAST ERROR",
            "ENDPOINT", "TIER", "STATE", "IN FLIGHT", "REQ/S", "ERR/S", "LATENCY", "WAIT", "KV", "EJ"
        );
        for e in &backend.endpoints {
            let key = (backend.name.as_str(), e.endpoint.as_str());
            let (count, failed) = has.get(&key).copied().unwrap_or_default();
            let (count_then, failed_then) = had.get(&key).copied().unwrap_or((count, failed));
            let rates = (rate(count as f64, count_then as f64), rate(failed as f64, failed_then as f64));
            out.push_str(&endpoint_line(e, rates, &paint));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_command_the_terminal() {
        assert_eq!(printable("\u{1b}[2J\u{9b}31m\r\nb", 40), "?[2J?31m??b");
        assert_eq!(printable("für alle", 4), "für…");
    }

    #[test]
    fn routes_are_read_out_of_the_metrics() {
        let page = "# TYPE spillway_sheds counter\nspillway_sheds_total{http_route=\"a\",reason=\"saturated\"} 2\n\
                    spillway_sheds_total{http_route=\"a\",reason=\"unavailable\"} 3\nspillway_queue_depth{http_route=\"a\"} 7\n\
                    http_server_request_duration_seconds_count{http_request_method=\"GET\",http_route=\"b\",http_response_status_code=\"200\"} 9\n\
                    spillway_retries_total{} 4\nspillway_spills_total{http_route=\"b\"} x\n# EOF\n";
        let routes = routes(page);
        let read: Vec<_> = routes.iter().map(|(name, r)| (name.as_str(), r.waiting, r.requests, r.sheds)).collect();
        assert_eq!(read, [("a", 7.0, 0.0, 5.0), ("b", 0.0, 9.0, 0.0)]);
    }

    #[test]
    fn built_in_models_have_their_rows() {
        let page = "spillway_engine_loaded{model=\"small\"} 1\nspillway_engine_ready{model=\"small\"} 1\n\
                    spillway_engine_active_sequences{model=\"small\"} 3\nspillway_engine_kv_used_tokens{model=\"small\"} 50\n\
                    spillway_engine_kv_capacity_tokens{model=\"small\"} 200\nspillway_engine_memory_bytes{model=\"small\"} 2097152\n\
                    spillway_engine_generated_tokens_total{model=\"small\"} 40\nspillway_engine_loaded{model=\"\u{1b}[2J\"} 0\n\
                    spillway_engine_device_info{device=\"x\",other_model=\"no\"} 1\n";
        let reading = |page: &str, at| Reading { at, backends: Vec::new(), routes: routes(page), models: models(page) };
        let now = reading(page, Instant::now());
        let before = reading(&page.replace("} 40", "} 20"), now.at - Duration::from_secs(2));
        let mut out = String::new();
        model_rows(&mut out, &before, &now, 2.0, false);
        let rows: Vec<Vec<&str>> = out.trim().lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.len(), 3, "{out}");
        assert_eq!(rows[1], ["?[2J", "not", "loaded", "0", "0", "0.0", "0.00s", "-", "0MiB"]);
        assert_eq!(rows[2], ["small", "ready", "3", "0", "10.0", "0.00s", "25%", "2MiB"]);
        let mut none = String::new();
        model_rows(&mut none, &before, &reading("", now.at), 2.0, false);
        assert!(none.is_empty());
    }
}
