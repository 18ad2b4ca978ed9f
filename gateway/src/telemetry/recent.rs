//! Heads of requests that have ended lately, by which an edit is tried before it is applied: few of each second, in a ring.
//! Of a head is kept what decides its route and is no secret: no query, no body, and of its headers only which of the
//! values it had that matches of the running configuration name. Owns the ring; the pipeline makes the heads.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::tail::PerSecond;

/// Most heads that are kept. With at most [`MAX_HEAD`] bytes each these are a megabyte.
pub const MAX_HEADS: usize = 512;
/// Most heads of one second: at this rate the ring holds those of half a minute, at a lower one those of a longer time.
pub const MAX_PER_SECOND: u64 = 16;
/// Longest texts of a head that is kept, in bytes: a longer one is left out, since a cut path has another route.
const MAX_HEAD: usize = 2 << 10;

/// Head of a request that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecentHead {
    /// Number of the configuration that routed the request.
    pub generation: u64,
    /// HTTP method.
    pub method: String,
    /// `Host`, with its port.
    pub host: Option<String>,
    /// Name of the listener, which may have routes of its own.
    pub listener: String,
    /// Path without the query, as the access log shows it.
    pub path: String,
    /// Address of the client.
    pub client: IpAddr,
    /// Route that took the request; `None` where none did.
    pub route: Option<String>,
    /// Model that the request asks for, by the name that decides the route.
    pub model: Option<String>,
    /// True if it is known that the request asks for `model`, or for none: its body was read, or it had none.
    pub is_model_known: bool,
    /// Headers that matches of the running configuration ask for, but for those that may hold credentials.
    pub headers: Vec<RecentHeader>,
}

/// Header with a value that a match asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentHeader {
    /// Name in small letters.
    pub name: String,
    /// SHA-256 digest of the value that the match asks for, in hex: the value itself may be a secret of the file.
    pub sha256: String,
    /// True if the request had it.
    pub met: bool,
}

impl RecentHead {
    fn length(&self) -> usize {
        let texts =
            [self.host.as_deref(), Some(&self.listener), Some(&self.path), self.model.as_deref(), Some(&self.method)];
        texts.into_iter().flatten().map(str::len).sum()
    }
}

/// Heads of the requests that have ended lately.
pub struct RecentHeads {
    began: Instant,
    taken: PerSecond,
    heads: Mutex<VecDeque<Arc<RecentHead>>>,
}

impl Default for RecentHeads {
    fn default() -> Self {
        Self { began: Instant::now(), taken: PerSecond::default(), heads: Mutex::default() }
    }
}

impl RecentHeads {
    /// True if the head of a request that ends `now` is to be kept.
    pub fn takes(&self, now: Instant) -> bool {
        self.taken.take(now.saturating_duration_since(self.began).as_secs(), MAX_PER_SECOND)
    }

    /// Keeps a head in place of the oldest.
    pub fn keep(&self, head: RecentHead) {
        if head.length() > MAX_HEAD {
            return;
        }
        let mut heads = self.heads.lock();
        if heads.len() >= MAX_HEADS {
            heads.pop_front();
        }
        heads.push_back(Arc::new(head));
    }

    /// Heads of a configuration, newest first.
    pub fn of(&self, generation: u64) -> Vec<Arc<RecentHead>> {
        self.heads.lock().iter().rev().filter(|head| head.generation == generation).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn head(path: String, generation: u64) -> RecentHead {
        RecentHead {
            generation,
            method: "GET".to_owned(),
            host: None,
            listener: "main".to_owned(),
            path,
            client: [127, 0, 0, 1].into(),
            route: None,
            model: None,
            is_model_known: true,
            headers: Vec::new(),
        }
    }

    #[test]
    fn few_heads_of_a_second_are_kept_and_few_in_all() {
        let recent = RecentHeads::default();
        let at = |seconds| recent.began + Duration::from_secs(seconds);
        let taken = (0..100).filter(|_| recent.takes(at(1))).count();
        assert_eq!(u64::try_from(taken).unwrap(), MAX_PER_SECOND);
        assert!(recent.takes(at(2)));
        for place in 0..2 * MAX_HEADS {
            recent.keep(head(format!("/{place}"), 1));
        }
        recent.keep(head("/of-another".to_owned(), 2));
        recent.keep(head("/".repeat(MAX_HEAD), 1));
        let kept = recent.of(1);
        assert_eq!((kept.len(), kept[0].path.as_str()), (MAX_HEADS - 1, format!("/{}", 2 * MAX_HEADS - 1).as_str()));
        assert_eq!(recent.of(2).len(), 1);
    }
}
