//! The work that is measured, as data.

use super::origin;
use super::peer::{KEY, Kind};

/// Kind of load, and with it what is counted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Load {
    /// Closed loop of `wrk`: each connection asks again as soon as it is answered. Requests a second.
    Closed { connections: usize },
    /// Requests at a steady rate, this share of what nginx gives in a closed loop; latency from when each was due.
    Open { percent: u32 },
    /// Closed loop of `h2load`.
    Http2 { connections: usize, streams: usize },
    /// Streams of events; events a second, latency of each event from when the server made it.
    Events { streams: usize },
    /// Bodies of 20 MiB from the server; megabytes a second.
    Down { connections: usize },
    /// Bodies of 20 MiB to the server.
    Up { connections: usize },
    /// Connections that have carried one request and wait; memory for each.
    Idle { connections: usize },
}

/// Group of rows of the table.
pub(super) struct Workload {
    /// Name on the command line and in plots.
    pub(super) name: &'static str,
    /// Heading in the table.
    pub(super) title: &'static str,
    /// Configuration of the peers.
    pub(super) kind: Kind,
    /// Load.
    pub(super) load: Load,
}

const fn workload(name: &'static str, title: &'static str, kind: Kind, load: Load) -> Workload {
    Workload { name, title, kind, load }
}

/// Every workload, in the order of the table.
pub(super) const ALL: &[Workload] = &[
    workload("bare-1", "bare, 1 connection", Kind::Bare, Load::Closed { connections: 1 }),
    workload("bare-32", "bare, 32 connections", Kind::Bare, Load::Closed { connections: 32 }),
    workload("bare-256", "bare, 256 connections", Kind::Bare, Load::Closed { connections: 256 }),
    workload("bare-2000", "bare, 2,000 connections", Kind::Bare, Load::Closed { connections: 2000 }),
    workload("full-1", "full, 1 connection", Kind::Full, Load::Closed { connections: 1 }),
    workload("full-32", "full, 32 connections", Kind::Full, Load::Closed { connections: 32 }),
    workload("full-256", "full, 256 connections", Kind::Full, Load::Closed { connections: 256 }),
    workload("full-2000", "full, 2,000 connections", Kind::Full, Load::Closed { connections: 2000 }),
    workload("open-25", "bare, steady at 25 % of nginx's most", Kind::Bare, Load::Open { percent: 25 }),
    workload("open-50", "bare, steady at 50 %", Kind::Bare, Load::Open { percent: 50 }),
    workload("open-75", "bare, steady at 75 %", Kind::Bare, Load::Open { percent: 75 }),
    workload("chat", "chat of 4 KB by model, 32 connections", Kind::Chat, Load::Closed { connections: 32 }),
    workload("sse", "64 event streams", Kind::Chat, Load::Events { streams: 64 }),
    workload("down", "20 MiB down, 4 connections", Kind::Bare, Load::Down { connections: 4 }),
    workload("up", "20 MiB up, 4 connections", Kind::Bare, Load::Up { connections: 4 }),
    workload("tls", "TLS 1.3, 32 kept connections", Kind::Tls, Load::Closed { connections: 32 }),
    workload("http2", "HTTP/2, 8 connections of 16 streams", Kind::Http2, Load::Http2 { connections: 8, streams: 16 }),
    workload("idle", "5,000 idle connections", Kind::Bare, Load::Idle { connections: 5000 }),
];

/// Request of a workload.
pub(super) struct Ask {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// Headers as `Name: value`.
    pub(super) headers: Vec<String>,
    pub(super) body: String,
    /// Part of the right answer's body.
    pub(super) expected: &'static str,
}

impl Workload {
    /// Request of the workload, with the headers that a peer needs besides. `seconds` is the length of a stream.
    pub(super) fn ask(&self, mut more: Vec<String>, seconds: u32) -> Ask {
        let (method, path, expected, body) = match (self.kind, self.load) {
            (_, Load::Events { .. }) => ("POST", "/v1/chat/completions", "[DONE]", stream(seconds)),
            (Kind::Chat, _) => ("POST", "/v1/chat/completions", "Hello.", chat()),
            (_, Load::Down { .. }) => ("GET", "/down", "xxxx", String::new()),
            (_, Load::Up { .. }) => ("POST", "/up", "large", "x".repeat(1024)),
            _ => ("GET", "/item?n=1", "xxxx", String::new()),
        };
        if self.kind == Kind::Full {
            more.extend([format!("X-Api-Key: {KEY}"), "Cookie: a=b".to_owned()]);
        }
        if self.kind == Kind::Chat {
            more.push("Content-Type: application/json".to_owned());
        }
        Ask { method, path, headers: more, body, expected }
    }

    /// True if the peers pass to the origin in this process instead of nginx.
    pub(super) fn is_own_origin(&self) -> bool {
        matches!(self.load, Load::Events { .. } | Load::Up { .. })
    }

    /// True if a peer must be started anew for each round, since the first one leaves memory behind.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.load, Load::Idle { .. })
    }
}

/// Chat of 4 KB.
fn chat() -> String {
    serde_json::json!({"model": "large", "temperature": 0, "messages": [
        {"role": "system", "content": "You answer briefly. ".repeat(50)},
        {"role": "user", "content": "Tell me about spillways of dams. ".repeat(90)},
    ]})
    .to_string()
}

/// Chat that is answered by a stream of so many seconds.
fn stream(seconds: u32) -> String {
    let events = std::time::Duration::from_secs(seconds.into()).as_millis() / origin::BETWEEN.as_millis();
    serde_json::json!({"model": "large", "stream": true, "max_tokens": events.max(1),
        "messages": [{"role": "user", "content": "Tell me about dams."}]})
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_a_chat_has_four_kilobytes() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|workload| workload.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!((4000..4400).contains(&chat().len()), "{}", chat().len());
    }
}
