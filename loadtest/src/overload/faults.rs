//! One server of three fails for a quarter of the time, in every way that a server can. The load is what the other
//! two take. Measured: hurt requests, time to ejection, and time to return after recovery.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{End, Question, RATE, SERVICE, SLOTS, Upstream, count, gateway, millis_at, open_loop};

/// Duration of the first ejection, so that a run of seconds sees the return; the gateway's default is 15 s.
const EJECTION: &str = "2s";

/// Way in which the server fails.
#[derive(Clone, Copy)]
enum Failure {
    /// Failure scripted in the server itself; value of its `--fault`.
    Scripted(&'static str),
    /// SIGSTOP and later SIGCONT, with connections open.
    Stopped,
    /// SIGKILL and a restart.
    Killed,
}

const ALL: [(&str, Failure); 7] = [
    ("none", Failure::Scripted("none")),
    ("slow accept", Failure::Scripted("slow-accept")),
    ("a byte a second", Failure::Scripted("one-byte-per-second")),
    ("half errors", Failure::Scripted("half-errors")),
    ("reset in the body", Failure::Scripted("reset-in-body")),
    ("SIGSTOP", Failure::Stopped),
    ("SIGKILL", Failure::Killed),
];

/// Runs each failure for `seconds`.
pub(super) async fn run(spare: u16, seconds: u32) {
    println!(
        "\nOne of three servers fails from a quarter of {seconds} s to the half of it; load {:.0}/s, which two servers take",
        1.6 * RATE
    );
    println!(
        "{:18} {:>7} {:>8} {:>5} {:>8} {:>5} {:>8} {:>8} {:>10} {:>11}",
        "", "served", "spilled", "cut", "refused", "lost", "p50 ms", "p99 ms", "ejected s", "returned s"
    );
    for (name, failure) in ALL {
        one(name, failure, spare, seconds).await;
    }
    println!(
        "Cut are the answers that were under way at the server that failed; refused and lost should be none. Times are from the first
wrong moment to the ejection, and from the last one to the return; the first ejection lasts {EJECTION}, each further one as long again."
    );
}

async fn one(name: &str, failure: Failure, spare: u16, seconds: u32) {
    let (from, until) = (Duration::from_secs(seconds.into()) / 4, Duration::from_secs(seconds.into()) / 2);
    let scripted = match failure {
        Failure::Scripted(fault) => {
            let option = |key: &str, value: &dyn std::fmt::Display| [format!("--{key}"), value.to_string()];
            [option("fault", &fault), option("from", &from.as_millis()), option("until", &until.as_millis())].concat()
        }
        Failure::Stopped | Failure::Killed => Vec::new(),
    };
    let (a, b) = (Upstream::sound(), Upstream::sound());
    let mut bad = Upstream::start(SLOTS, SERVICE, &scripted);
    let (began, port) = (bad.began, bad.port);
    let gateway = gateway(&[a.port, b.port, port], spare, EJECTION);
    let watched = Watched::start(gateway.admin, port);
    let load = tokio::spawn(open_loop(gateway.port, 1.6 * RATE, seconds, Question::Get));
    tokio::time::sleep_until((began + from).into()).await;
    match failure {
        Failure::Scripted(_) => {}
        Failure::Stopped => {
            bad.running.signal("STOP");
            tokio::time::sleep_until((began + until).into()).await;
            bad.running.signal("CONT");
        }
        Failure::Killed => {
            drop(bad);
            tokio::time::sleep_until((began + until).into()).await;
            bad = Upstream::start(SLOTS, SERVICE, &["--port".to_owned(), port.to_string()]);
        }
    }
    let told = load.await.unwrap();
    drop(bad);
    let ejected = watched.first("ejected", began + from);
    // A server that was never ejected has no return.
    let returned = ejected.and_then(|_| watched.first("open", began + until));
    let time =
        |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), |time| format!("{:.2}", time.as_secs_f64()));
    println!(
        "{name:18} {:>7} {:>8} {:>5} {:>8} {:>5} {:>8.0} {:>8.0} {:>10} {:>11}",
        count(&told, End::Served),
        count(&told, End::Spilled),
        count(&told, End::Cut),
        count(&told, End::Refused),
        count(&told, End::Lost),
        millis_at(&told, End::Served, 0.5),
        millis_at(&told, End::Served, 0.99),
        time(ejected),
        time(returned)
    );
}

/// State of an endpoint as reported by the gateway, polled throughout.
struct Watched {
    seen: Arc<Mutex<Vec<(Instant, String)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watched {
    fn start(admin: u16, endpoint: u16) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = seen.clone();
        let url = format!("http://127.0.0.1:{endpoint}");
        let task = tokio::spawn(async move {
            loop {
                let all = crate::http::get(admin, "/api/backends").await;
                let endpoints = all["backends"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .flat_map(|backend| backend["endpoints"].as_array().into_iter().flatten());
                let state =
                    endpoints.filter(|e| e["url"] == url.as_str()).map(|e| e["state"].as_str().unwrap().to_owned());
                shared.lock().unwrap().extend(state.map(|state| (Instant::now(), state)));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { seen, task }
    }

    /// Time from `moment` to the first sight of this state.
    fn first(&self, state: &str, moment: Instant) -> Option<Duration> {
        let seen = self.seen.lock().unwrap();
        seen.iter().find(|(at, was)| *at >= moment && was == state).map(|(at, _)| at.duration_since(moment))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}
