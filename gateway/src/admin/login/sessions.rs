//! Sessions of persons who have logged in, in the memory of the process. The module owns the table, which is bounded, and keeps
//! digests of session ids, never the ids. A restart ends all sessions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use spillway_config::schema::LoginSessions;

type Hash = [u8; 32];

struct Session {
    person: Arc<str>,
    /// Digest of the state of the login that it came from.
    login: Hash,
    began: Instant,
    used: Instant,
}

/// Table of sessions.
pub(super) struct Sessions {
    all: Mutex<HashMap<Hash, Session>>,
    lifetime: Duration,
    idle: Duration,
    most: usize,
}

fn hash(text: &str) -> Hash {
    Sha256::digest(text).into()
}

impl Sessions {
    pub(super) fn new(written: &LoginSessions) -> Self {
        Self {
            all: Mutex::default(),
            lifetime: written.lifetime.0,
            idle: written.idle.0,
            most: usize::try_from(written.most.get()).unwrap_or(usize::MAX),
        }
    }

    /// Time after which a person has to log in again.
    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    fn is_over(&self, session: &Session, now: Instant) -> bool {
        now.saturating_duration_since(session.began) >= self.lifetime
            || now.saturating_duration_since(session.used) >= self.idle
    }

    /// Begins a session with the id `id`, which nobody else knows. False where a session came from the same login already. At the
    /// limit, the session that was used least recently ends.
    pub(super) fn begin(&self, id: &str, login: &str, person: Arc<str>, now: Instant) -> bool {
        let mut all = self.all.lock();
        all.retain(|_, session| !self.is_over(session, now));
        let login = hash(login);
        if all.values().any(|session| session.login == login) {
            return false;
        }
        while all.len() >= self.most {
            let Some(oldest) = all.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id) else { break };
            all.remove(&oldest);
        }
        all.insert(hash(id), Session { person, login, began: now, used: now });
        true
    }

    /// Person of a session that is not over; counts as a use of it.
    pub(super) fn person(&self, id: &str, now: Instant) -> Option<Arc<str>> {
        let mut all = self.all.lock();
        let id = hash(id);
        let session = all.get_mut(&id)?;
        if self.is_over(session, now) {
            all.remove(&id);
            return None;
        }
        session.used = now;
        Some(session.person.clone())
    }

    /// Ends a session. Returns its person.
    pub(super) fn end(&self, id: &str) -> Option<Arc<str>> {
        self.all.lock().remove(&hash(id)).map(|session| session.person)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn sessions(most: u32) -> Sessions {
        let seconds = spillway_config::values::Duration::seconds;
        let most = NonZeroU32::new(most).unwrap();
        Sessions::new(&LoginSessions { lifetime: seconds(100), idle: seconds(10), most })
    }

    #[test]
    fn a_session_ends_by_its_lifetime_by_idling_and_by_a_logout() {
        let (sessions, begin) = (sessions(9), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(sessions.begin("a", "l1", "ann".into(), begin));
        assert!(sessions.person("b", begin).is_none());
        for seconds in (0..100).step_by(9) {
            assert_eq!(sessions.person("a", at(seconds)).as_deref(), Some("ann"), "{seconds}");
        }
        assert!(sessions.person("a", at(100)).is_none(), "the lifetime is over");
        assert!(sessions.begin("b", "l2", "bob".into(), begin));
        assert!(sessions.person("b", at(10)).is_none() && sessions.person("b", begin).is_none(), "it idled");
        assert!(sessions.begin("c", "l3", "cid".into(), begin));
        assert_eq!(sessions.end("c").as_deref(), Some("cid"));
        assert!(sessions.person("c", begin).is_none());
    }

    #[test]
    fn the_least_used_session_ends_at_the_limit_and_a_login_counts_once() {
        let (sessions, begin) = (sessions(2), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(sessions.begin("a", "l1", "ann".into(), at(0)));
        assert!(sessions.begin("b", "l2", "bob".into(), at(1)));
        assert!(!sessions.begin("x", "l2", "bob".into(), at(1)), "the same login again");
        assert!(sessions.person("a", at(2)).is_some());
        assert!(sessions.begin("c", "l3", "cid".into(), at(3)));
        let known = ["a", "b", "c"].map(|id| sessions.person(id, at(3)).is_some());
        assert_eq!(known, [true, false, true]);
        assert_eq!(sessions.all.lock().len(), 2);
    }
}
