//! Open sockets of the process, so that an edit or an operator can end them. A socket is entered when it opens and leaves when
//! its guard is dropped.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::unix_now;
use crate::identity::CallerProof;
use crate::telemetry::SocketEnd;

/// Names that decide whether a socket may go on.
#[derive(Debug, Clone)]
pub struct SocketFacts {
    /// Address of the listener's side of its client's connection.
    pub listener: SocketAddr,
    /// Route that it came by.
    pub route: String,
    /// Consumer that opened it, and the proof of that; `None` for an anonymous caller.
    pub caller: Option<(Arc<str>, CallerProof)>,
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
pub type EndAt = Option<(Instant, SocketEnd)>;

/// End of a socket whose caller may go on until a time, in Unix seconds; `None` where that has no end. The time is read
/// once: a clock that is set later does not move it.
pub fn caller_end(until: Option<u64>) -> EndAt {
    let left = until?.saturating_sub(unix_now());
    let at = Instant::now().checked_add(std::time::Duration::from_secs(left))?;
    Some((at, SocketEnd::Policy))
}

/// Earlier of two ends.
pub fn earlier(one: EndAt, other: EndAt) -> EndAt {
    one.into_iter().chain(other).min_by_key(|(at, _)| *at)
}

/// Judgement on a socket by a configuration.
type Judge = dyn Fn(&SocketFacts) -> EndAt + Send + Sync;

struct OpenSocket {
    facts: SocketFacts,
    /// End that the last configuration brings.
    by_configuration: EndAt,
    /// End of the drain of its endpoint by an operator.
    by_operator: EndAt,
    /// First of them.
    end: watch::Sender<EndAt>,
}

impl OpenSocket {
    /// Sets the end that a configuration brings. A drain that has begun is put off by no further edit.
    fn judged(&mut self, next: EndAt) {
        self.by_configuration = match (self.by_configuration, next) {
            (Some((at, SocketEnd::Drained)), Some((later, SocketEnd::Drained))) => {
                Some((at.min(later), SocketEnd::Drained))
            }
            _ => next,
        };
        self.tell();
    }

    /// Ends the socket as drained by an operator, or takes that back. A drain that has begun is not put off.
    fn drained(&mut self, at: Option<Instant>) {
        self.by_operator = at.map(|at| self.by_operator.unwrap_or((at, SocketEnd::Drained)));
        self.tell();
    }

    fn tell(&self) {
        let first = earlier(self.by_configuration, self.by_operator);
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
    /// Enters a socket, which leaves when the guard is dropped. `end` is what its own configuration brings; one that an
    /// earlier configuration let open than the last that judged is judged by that: an edit may have come while its request
    /// waited for a slot or for its server.
    pub fn enter(&self, facts: SocketFacts, end: EndAt) -> SocketGuard<'_> {
        let (sender, ends) = watch::channel(None);
        let mut socket = OpenSocket { facts, by_configuration: None, by_operator: None, end: sender };
        let mut table = self.0.lock();
        socket.judged(match &table.last {
            Some((generation, judge)) if socket.facts.generation < *generation => judge(&socket.facts),
            _ => end,
        });
        table.next += 1;
        let id = table.next;
        table.open.insert(id, socket);
        SocketGuard { sockets: self, id, ends }
    }

    /// Judges the sockets by the configuration of this generation, those as well that open later by an earlier one. What an
    /// earlier configuration had decided counts no longer.
    pub fn judge(&self, generation: u64, judge: impl Fn(&SocketFacts) -> EndAt + Send + Sync + 'static) {
        let mut table = self.0.lock();
        for socket in table.open.values_mut() {
            socket.judged(judge(&socket.facts));
        }
        table.last = Some((generation, Box::new(judge)));
    }

    /// Judges the sockets by the last configuration again: a key has changed.
    pub fn judge_again(&self) {
        let mut table = self.0.lock();
        let Table { open, last, .. } = &mut *table;
        let Some((_, judge)) = last else { return };
        for socket in open.values_mut() {
            socket.judged(judge(&socket.facts));
        }
    }

    /// Ends the sockets that `is_concerned` names at a time, as drained by an operator; `None` lets them go on, until another
    /// end.
    pub fn drain_where(&self, at: Option<Instant>, is_concerned: impl Fn(&SocketFacts) -> bool) {
        for socket in self.0.lock().open.values_mut().filter(|socket| is_concerned(&socket.facts)) {
            socket.drained(at);
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
    /// Ends the socket at a time, as drained by an operator.
    pub fn drain_at(&self, at: Instant) {
        if let Some(socket) = self.sockets.0.lock().open.get_mut(&self.id) {
            socket.drained(Some(at));
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
            caller: None,
            backend: "b".into(),
            url: "http://b".to_owned(),
            endpoint: "e".to_owned(),
            generation: 1,
        }
    }

    fn end(socket: &SocketGuard<'_>) -> EndAt {
        *socket.ends.borrow()
    }

    #[test]
    fn sockets_end_by_their_names_and_leave_with_their_guards() {
        let sockets = OpenSockets::default();
        let (kept, ended) = (sockets.enter(facts("kept"), None), sockets.enter(facts("ended"), None));
        let now = Instant::now();
        for at in [now, now + Duration::from_secs(9)] {
            sockets.drain_where(Some(at), |facts| facts.route == "ended");
        }
        assert_eq!((end(&kept), end(&ended)), (None, Some((now, SocketEnd::Drained))));
        sockets.drain_where(None, |_| true);
        assert_eq!(end(&ended), None);
        ended.drain_at(now);
        assert_eq!((end(&kept), end(&ended)), (None, Some((now, SocketEnd::Drained))));
        drop((kept, ended));
        assert!(sockets.0.lock().open.is_empty());
    }

    #[test]
    fn an_operator_takes_back_only_what_an_operator_decided() {
        let sockets = OpenSockets::default();
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        for (first, by_edit) in [(now, SocketEnd::Policy), (now, SocketEnd::Drained)] {
            let socket = sockets.enter(facts("r"), None);
            sockets.drain_where(Some(later), |_| true);
            sockets.judge(2, move |_| Some((first, by_edit)));
            assert_eq!(end(&socket), Some((now, by_edit)), "it does not wait for the drain");
            sockets.drain_where(None, |_| true);
            assert_eq!(end(&socket), Some((now, by_edit)), "only the drain by the operator was taken back");
        }
        let sockets = OpenSockets::default();
        let socket = sockets.enter(facts("r"), None);
        sockets.judge(3, move |_| Some((later, SocketEnd::Drained)));
        sockets.drain_where(Some(now), |_| true);
        assert_eq!(end(&socket), Some((now, SocketEnd::Drained)));
        sockets.drain_where(None, |_| true);
        assert_eq!(end(&socket), Some((later, SocketEnd::Drained)), "the edit still ends it");
    }

    #[test]
    fn the_last_configuration_decides_and_puts_off_no_drain() {
        let sockets = OpenSockets::default();
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        let socket = sockets.enter(facts("r"), Some((later, SocketEnd::Policy)));
        assert_eq!(end(&socket), Some((later, SocketEnd::Policy)), "what its own configuration brings");
        sockets.judge(2, move |_| Some((now, SocketEnd::Drained)));
        sockets.judge(3, move |_| Some((later, SocketEnd::Drained)));
        assert_eq!(end(&socket), Some((now, SocketEnd::Drained)), "a further edit puts no drain off");
        sockets.judge(4, |_| None);
        assert_eq!(end(&socket), None, "its route is back");
    }

    #[test]
    fn a_socket_that_an_earlier_configuration_let_open_is_judged_by_the_last() {
        let sockets = OpenSockets::default();
        let now = Instant::now();
        sockets.judge(2, move |_| Some((now, SocketEnd::Policy)));
        let old = sockets.enter(facts("r"), None);
        let new = sockets.enter(SocketFacts { generation: 2, ..facts("r") }, None);
        assert_eq!((end(&old), end(&new)), (Some((now, SocketEnd::Policy)), None));
    }

    #[test]
    fn a_caller_without_an_end_goes_on_and_one_that_has_ended_does_not() {
        assert_eq!(caller_end(None), None);
        let (at, why) = caller_end(Some(0)).unwrap();
        assert!(at <= Instant::now() && why == SocketEnd::Policy);
        assert!(caller_end(Some(unix_now() + 3600)).unwrap().0 > Instant::now());
    }
}
