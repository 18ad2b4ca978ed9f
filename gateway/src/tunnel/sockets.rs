//! Open sockets of the process, so that an edit or an operator can end them. A socket is entered when it opens and leaves when
//! its guard is dropped.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::SocketEnd;

/// Names that decide whether a socket may go on.
#[derive(Debug, Clone)]
pub struct SocketFacts {
    /// Address of the listener's side of its client's connection.
    pub listener: SocketAddr,
    /// Route that it came by.
    pub route: String,
    /// Consumer that opened it with an API key, and the number of the key.
    pub key: Option<(Arc<str>, u64)>,
    /// Backend of its server.
    pub backend: Arc<str>,
    /// URL of its server in the configuration.
    pub url: String,
    /// Name of the endpoint.
    pub endpoint: String,
}

/// Time at which a socket is to end, and why.
pub(super) type EndAt = Option<(Instant, SocketEnd)>;

struct OpenSocket {
    facts: SocketFacts,
    end: watch::Sender<EndAt>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, OpenSocket>,
}

/// Open sockets.
#[derive(Default)]
pub struct OpenSockets(Mutex<Table>);

impl std::fmt::Debug for OpenSockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenSockets({})", self.0.lock().open.len())
    }
}

impl OpenSockets {
    /// Enters a socket, which leaves when the guard is dropped.
    pub fn enter(&self, facts: SocketFacts) -> SocketGuard<'_> {
        let (end, ends) = watch::channel(None);
        let mut table = self.0.lock();
        table.next += 1;
        let id = table.next;
        table.open.insert(id, OpenSocket { facts, end });
        SocketGuard { sockets: self, id, ends }
    }

    /// Ends the sockets for which `judge` has a reason, at the time that it says; one that is to end already stays so.
    pub fn end_where(&self, judge: impl Fn(&SocketFacts) -> Option<(Instant, SocketEnd)>) {
        for socket in self.0.lock().open.values() {
            if let Some(end) = judge(&socket.facts) {
                socket.end.send_if_modified(|at| {
                    let is_new = at.is_none();
                    at.get_or_insert(end);
                    is_new
                });
            }
        }
    }

    /// Lets sockets go on that were to end as drained.
    pub fn spare_where(&self, judge: impl Fn(&SocketFacts) -> bool) {
        for socket in self.0.lock().open.values().filter(|socket| judge(&socket.facts)) {
            socket.end.send_if_modified(|at| at.take_if(|(_, end)| *end == SocketEnd::Drained).is_some());
        }
    }
}

/// Guard of an open socket.
pub struct SocketGuard<'s> {
    sockets: &'s OpenSockets,
    id: u64,
    pub(super) ends: watch::Receiver<EndAt>,
}

impl Drop for SocketGuard<'_> {
    fn drop(&mut self) {
        self.sockets.0.lock().open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_end_by_their_names_and_leave_with_their_guards() {
        let sockets = OpenSockets::default();
        let facts = |route: &str| SocketFacts {
            listener: SocketAddr::from(([127, 0, 0, 1], 1)),
            route: route.to_owned(),
            key: None,
            backend: "b".into(),
            url: "http://b".to_owned(),
            endpoint: "e".to_owned(),
        };
        let (kept, ended) = (sockets.enter(facts("kept")), sockets.enter(facts("ended")));
        let now = Instant::now();
        sockets.end_where(|facts| (facts.route == "ended").then_some((now, SocketEnd::Drained)));
        let later = now + std::time::Duration::from_secs(9);
        sockets.end_where(|facts| (facts.route == "ended").then_some((later, SocketEnd::Policy)));
        assert_eq!((*kept.ends.borrow(), *ended.ends.borrow()), (None, Some((now, SocketEnd::Drained))));
        sockets.spare_where(|_| true);
        assert_eq!(*ended.ends.borrow(), None);
        drop((kept, ended));
        assert!(sockets.0.lock().open.is_empty());
    }
}
