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
    /// Generation of the configuration that let it open.
    pub generation: u64,
}

/// Time at which a socket is to end, and why.
pub(super) type EndAt = Option<(Instant, SocketEnd)>;

/// Judgement on a socket by a configuration.
type Judge = dyn Fn(&SocketFacts) -> EndAt + Send + Sync;

struct OpenSocket {
    facts: SocketFacts,
    /// Ends that were decided, at most one for each reason.
    decided: Vec<(Instant, SocketEnd)>,
    /// First of them.
    end: watch::Sender<EndAt>,
}

impl OpenSocket {
    /// Adds an end, unless there is one for its reason.
    fn decide(&mut self, end: EndAt) {
        if let Some((at, reason)) = end
            && self.decided.iter().all(|(_, known)| *known != reason)
        {
            self.decided.push((at, reason));
            self.tell();
        }
    }

    fn tell(&self) {
        let first = self.decided.iter().min_by_key(|(at, _)| *at).copied();
        self.end.send_if_modified(|end| std::mem::replace(end, first) != first);
    }
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, OpenSocket>,
    /// Judge of the last configuration, and its generation.
    last: Option<(u64, Box<Judge>)>,
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
    /// Enters a socket, which leaves when the guard is dropped. One that an earlier configuration let open than the last that
    /// judged is judged by that: an edit may have come while its request waited for a slot or for its server.
    pub fn enter(&self, facts: SocketFacts) -> SocketGuard<'_> {
        let (end, ends) = watch::channel(None);
        let mut socket = OpenSocket { facts, decided: Vec::new(), end };
        let mut table = self.0.lock();
        if let Some((generation, judge)) = &table.last
            && socket.facts.generation < *generation
        {
            socket.decide(judge(&socket.facts));
        }
        table.next += 1;
        let id = table.next;
        table.open.insert(id, socket);
        SocketGuard { sockets: self, id, ends }
    }

    /// Judges the sockets by the configuration of this generation, those as well that open later by an earlier one.
    pub fn judge(&self, generation: u64, judge: impl Fn(&SocketFacts) -> EndAt + Send + Sync + 'static) {
        let mut table = self.0.lock();
        for socket in table.open.values_mut() {
            socket.decide(judge(&socket.facts));
        }
        table.last = Some((generation, Box::new(judge)));
    }

    /// Ends the sockets for which `judge` has a reason, at the time that it says. The first of several ends counts.
    pub fn end_where(&self, judge: impl Fn(&SocketFacts) -> EndAt) {
        for socket in self.0.lock().open.values_mut() {
            socket.decide(judge(&socket.facts));
        }
    }

    /// Lets sockets go on that were to end as drained, until another end that was decided.
    pub fn spare_where(&self, judge: impl Fn(&SocketFacts) -> bool) {
        for socket in self.0.lock().open.values_mut().filter(|socket| judge(&socket.facts)) {
            socket.decided.retain(|(_, reason)| *reason != SocketEnd::Drained);
            socket.tell();
        }
    }
}

/// Guard of an open socket.
pub struct SocketGuard<'s> {
    sockets: &'s OpenSockets,
    id: u64,
    pub(super) ends: watch::Receiver<EndAt>,
}

impl SocketGuard<'_> {
    /// Ends the socket at a time.
    pub fn end_at(&self, at: Instant, reason: SocketEnd) {
        if let Some(socket) = self.sockets.0.lock().open.get_mut(&self.id) {
            socket.decide(Some((at, reason)));
        }
    }
}

impl Drop for SocketGuard<'_> {
    fn drop(&mut self) {
        self.sockets.0.lock().open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn facts(route: &str) -> SocketFacts {
        SocketFacts {
            listener: SocketAddr::from(([127, 0, 0, 1], 1)),
            route: route.to_owned(),
            key: None,
            backend: "b".into(),
            url: "http://b".to_owned(),
            endpoint: "e".to_owned(),
            generation: 1,
        }
    }

    #[test]
    fn sockets_end_by_their_names_and_leave_with_their_guards() {
        let sockets = OpenSockets::default();
        let (kept, ended) = (sockets.enter(facts("kept")), sockets.enter(facts("ended")));
        let now = Instant::now();
        let is_ended = |facts: &SocketFacts| facts.route == "ended";
        for at in [now, now + Duration::from_secs(9)] {
            sockets.end_where(|facts| is_ended(facts).then_some((at, SocketEnd::Drained)));
        }
        assert_eq!((*kept.ends.borrow(), *ended.ends.borrow()), (None, Some((now, SocketEnd::Drained))));
        sockets.spare_where(|_| true);
        assert_eq!(*ended.ends.borrow(), None);
        ended.end_at(now, SocketEnd::Drained);
        assert_eq!((*kept.ends.borrow(), *ended.ends.borrow()), (None, Some((now, SocketEnd::Drained))));
        drop((kept, ended));
        assert!(sockets.0.lock().open.is_empty());
    }

    #[test]
    fn the_first_end_counts_and_the_others_stay_decided() {
        let sockets = OpenSockets::default();
        let socket = sockets.enter(facts("r"));
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        sockets.end_where(|_| Some((later, SocketEnd::Drained)));
        sockets.end_where(|_| Some((now, SocketEnd::Policy)));
        assert_eq!(
            *socket.ends.borrow(),
            Some((now, SocketEnd::Policy)),
            "its key is gone: it does not wait for the drain"
        );
        let socket = sockets.enter(facts("r"));
        sockets.end_where(|_| Some((now, SocketEnd::Drained)));
        sockets.end_where(|_| Some((later, SocketEnd::Policy)));
        sockets.spare_where(|_| true);
        assert_eq!(*socket.ends.borrow(), Some((later, SocketEnd::Policy)), "only the drain was taken back");
    }

    #[test]
    fn a_socket_that_an_earlier_configuration_let_open_is_judged_by_the_last() {
        let sockets = OpenSockets::default();
        let now = Instant::now();
        sockets.judge(2, move |_| Some((now, SocketEnd::Policy)));
        let (old, new) = (sockets.enter(facts("r")), sockets.enter(SocketFacts { generation: 2, ..facts("r") }));
        assert_eq!((*old.ends.borrow(), *new.ends.borrow()), (Some((now, SocketEnd::Policy)), None));
    }
}
