//! Stores against a real file and a real Redis server. What both promise is in [`promises`].

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::Instant;

use spillway_statistics::{Kind, Metric, Plan, Version};

use super::*;
use crate::rollout::command::Command;
use crate::rollout::course::Course;
use crate::rollout::machine::{Hold, Machine, Schedule, Step};
use crate::rollout::record::{HISTORY, RolloutState};

fn schedule(identity: &str) -> Arc<Schedule> {
    let metric = Metric { name: "errorRate".to_owned(), kind: Kind::Share, threshold: "+0.02".parse().unwrap() };
    let steps = vec![Step::Weight { percent: 33.3, hold: Hold { seconds: 60.0, requests: 0 } }];
    let (identity, judge) = (identity.to_owned(), Some(Plan::new(vec![metric])));
    Arc::new(Schedule { identity, judge, ..Schedule::for_tests(steps) })
}

/// Course at its first step, with some counts.
fn begun(identity: &str) -> (Course, Vec<HistoryEntry>) {
    let mut course = Course::new(Machine::new(schedule(identity), 0.0));
    let entries = course.look(1.0, None, &[]).unwrap();
    count(&mut course, 100);
    (course, entries)
}

fn count(course: &mut Course, requests: u64) {
    for unit in 0..requests {
        for version in [Version::Stable, Version::Candidate] {
            course.concluded(version);
            course.observe(0, version, unit, f64::from(u8::from(unit % 10 == 0)));
        }
    }
}

/// Asserts that counts are the same but for the last digits of sums, which JSON as read here does not keep.
#[track_caller]
fn are_the_same(one: &Counts, other: &Counts) {
    assert_eq!(
        (one.candidate_requests, one.stable_requests, &one.warm_up),
        (other.candidate_requests, other.stable_requests, &other.warm_up)
    );
    let judged = |counts: &Counts| counts.judge.as_ref().unwrap().judge().metrics[0].clone();
    let (one, other) = (judged(one), judged(other));
    assert_eq!((one.candidate.requests, one.stable.requests), (other.candidate.requests, other.stable.requests));
    assert!((one.ln_worse - other.ln_worse).abs() < 1e-6, "{one:?} {other:?}");
}

/// Promises of every store, over two handles of it. The second one takes the lead.
async fn promises(first: &dyn RolloutStore, second: &dyn RolloutStore) {
    assert!(first.load("chat").await.unwrap().is_none());
    assert!(first.gather("chat", "k").await.unwrap().is_empty());
    let fence = first.lead("chat").await.unwrap().unwrap();
    assert_eq!(first.lead("chat").await.unwrap(), Some(fence), "renewed");

    // What was saved is read by the other one, to the bit where it matters.
    let (mut course, entries) = begun("one");
    first.save(&course.stored(fence), &entries).await.unwrap();
    first.publish("chat", &course.counts_key(), course.own()).await.unwrap();
    let stored = second.load("chat").await.unwrap().unwrap();
    assert_eq!(stored.record.history, entries);
    let counts = second.gather("chat", &course.counts_key()).await.unwrap();
    assert_eq!((counts.len(), counts[0].0.as_str()), (1, first.gateway()));
    are_the_same(&counts[0].1, course.own());
    let restored = Course::restored(schedule("one"), stored, Some(counts[0].1.clone())).unwrap();
    are_the_same(restored.own(), course.own());
    assert_eq!(restored.record().weight, 33.3);
    assert!(second.gather("chat", "another step").await.unwrap().is_empty());
    assert!(second.load("other").await.unwrap().is_none());

    // The lead moves on: the old leader writes nothing any more.
    let taken = second.take_lead("chat").await.unwrap();
    assert!(taken > fence);
    assert_eq!(first.lead("chat").await.unwrap(), None);
    let stale = first.save(&course.stored(fence), &[]).await.unwrap_err();
    assert!(matches!(&stale, StoreError::NotLeader(name) if name == "chat"), "{stale}");

    // A decision is kept with the end, and outlives another identity in its place.
    let ended = course.command(2.0, Command::Abort, "ann", Some("worse"), None).unwrap();
    assert!(second.decided("chat", "one").await.unwrap().is_none());
    // Renewed before each write: a lead lasts seconds, and this machine may be slow.
    second.lead("chat").await.unwrap();
    second.save(&course.stored(taken), &ended).await.unwrap();
    let (next, begun) = begun("two");
    second.lead("chat").await.unwrap();
    second.save(&next.stored(taken), &begun).await.unwrap();
    let decided = second.decided("chat", "one").await.unwrap().unwrap();
    assert_eq!((decided.state, decided.run, decided.reason.as_str()), (RolloutState::Aborted, 1, "worse"));
    assert!(second.decided("chat", "two").await.unwrap().is_none());
    assert!(second.decided("other", "one").await.unwrap().is_none());

    // The history is that of the route, and bounded.
    let many: Vec<HistoryEntry> = (0..HISTORY + 10)
        .map(|at| HistoryEntry { at: f64::from(u32::try_from(at).unwrap()), ..entries[0].clone() })
        .collect();
    second.lead("chat").await.unwrap();
    second.save(&next.stored(taken), &many).await.unwrap();
    let history = second.load("chat").await.unwrap().unwrap().record.history;
    assert_eq!(history, many[10..]);
    second.tidy(&[("chat".to_owned(), next.counts_key())], 5.0).await.unwrap();
    assert_eq!(second.load("chat").await.unwrap().unwrap().record.history, many[10..]);
    assert!(second.decided("chat", "one").await.unwrap().is_some());
    second.close().await;
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/rollouts.db");
    (folder, path)
}

#[tokio::test]
async fn a_file_keeps_what_it_promises() {
    let (_folder, path) = folder();
    promises(&SqliteStore::open(&path).unwrap(), &SqliteStore::open(&path).unwrap()).await;
}

#[tokio::test]
async fn a_file_is_tidied() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    let fence = store.lead("chat").await.unwrap().unwrap();
    let (mut course, entries) = begun("one");
    store.save(&course.stored(fence), &entries).await.unwrap();
    store.publish("chat", "old step", course.own()).await.unwrap();
    store.publish("chat", &course.counts_key(), course.own()).await.unwrap();
    store.tidy(&[("chat".to_owned(), course.counts_key())], 10.0).await.unwrap();
    assert!(store.gather("chat", "old step").await.unwrap().is_empty());
    assert_eq!(store.gather("chat", &course.counts_key()).await.unwrap().len(), 1);
    let ended = course.command(2.0, Command::Abort, "ann", None, None).unwrap();
    store.save(&course.stored(fence), &ended).await.unwrap();

    // A route that is gone for long is forgotten; one that is there never is.
    store.tidy(&[("chat".to_owned(), course.counts_key())], KEPT.as_secs_f64() * 3.0).await.unwrap();
    assert!(store.decided("chat", "one").await.unwrap().is_some());
    store.tidy(&[], KEPT.as_secs_f64() * 3.0 + 1.0).await.unwrap();
    assert!(store.load("chat").await.unwrap().is_some());
    store.tidy(&[], KEPT.as_secs_f64() * 5.0).await.unwrap();
    assert!(store.load("chat").await.unwrap().is_none());
    assert!(store.decided("chat", "one").await.unwrap().is_none());
    store.close().await;
    let closed = store.load("chat").await.unwrap_err().to_string();
    assert!(closed.contains("the store is closed"), "{closed}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_by_name_and_left_as_they_are() {
    let (folder, _) = folder();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("text"), "hello ".repeat(1000)).unwrap();
    let foreign = rusqlite::Connection::open(at("foreign")).unwrap();
    foreign.execute_batch("CREATE TABLE orders (id INTEGER)").unwrap();
    drop(foreign);
    SqliteStore::open(&at("later")).unwrap().close().await;
    let later = rusqlite::Connection::open(at("later")).unwrap();
    later.pragma_update(None, "user_version", 99).unwrap();
    later.pragma_update(None, "journal_mode", "DELETE").unwrap();
    drop(later);
    // A page in the middle of a file is lost.
    let store = SqliteStore::open(&at("damaged")).unwrap();
    let fence = store.lead("chat").await.unwrap().unwrap();
    let (course, entries) = begun("one");
    let many: Vec<HistoryEntry> = std::iter::repeat_n(entries[0].clone(), HISTORY).collect();
    store.save(&course.stored(fence), &many).await.unwrap();
    store.close().await;
    let file = rusqlite::Connection::open(at("damaged")).unwrap();
    file.pragma_update(None, "journal_mode", "DELETE").unwrap();
    drop(file);
    let mut bytes = std::fs::read(at("damaged")).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(at("damaged"), &bytes).unwrap();
    for (name, says) in [
        ("text", "file is not a database"),
        ("foreign", "it is a database of another program; name a file of its own"),
        ("later", "it was written by a later version of the gateway (99, this one reads 1)"),
        ("damaged", "it is damaged"),
    ] {
        let before = std::fs::read(at(name)).unwrap();
        for refused in [SqliteStore::judge(&at(name)), SqliteStore::open(&at(name)).map(|_| ())] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(says) && refused.contains(name), "{refused}");
        }
        assert_eq!(std::fs::read(at(name)).unwrap(), before);
    }
    // One that is not there could be made, and is not made by being judged.
    SqliteStore::judge(&at("new/file")).unwrap();
    assert!(!at("new").exists());
    let under = SqliteStore::judge(&at("text/file")).unwrap_err().to_string();
    assert!(under.contains("is not a folder"), "{under}");
}

#[tokio::test]
async fn damaged_documents_are_told_by_name() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    let fence = store.lead("chat").await.unwrap().unwrap();
    let (course, entries) = begun("one");
    store.save(&course.stored(fence), &entries).await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute("UPDATE rollouts SET document = substr(document, 1, 200)", []).unwrap();
    let damaged = store.load("chat").await.unwrap_err();
    assert!(matches!(damaged, StoreError::Damaged { .. }));
    assert!(damaged.to_string().contains("the rollout `chat` is damaged"), "{damaged}");
}

/// Variable that makes a process of this test the one that is killed.
const KILLED: &str = "SPILLWAY_TEST_KILLED_STORE";

#[tokio::test]
async fn a_file_survives_the_kill_of_its_process() {
    let (_folder, path) = folder();
    let killed = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "rollout::store::tests::writes_and_is_killed", "--nocapture"])
        .env(KILLED, &path)
        .status()
        .unwrap();
    assert!(!killed.success());
    let store = SqliteStore::open(&path).unwrap();
    let stored = store.load("chat").await.unwrap().expect("what was answered was written");
    assert_eq!(stored.record.state, RolloutState::Running);
    assert_eq!(stored.record.history.len(), 1);
    let (course, _) = begun("one");
    let counts = store.gather("chat", &course.counts_key()).await.unwrap();
    are_the_same(&counts[0].1, course.own());
    Course::restored(schedule("one"), stored, Some(counts[0].1.clone())).unwrap();
    assert!(store.lead("chat").await.unwrap() > Some(1), "another owner than the killed one");
}

#[tokio::test]
async fn writes_and_is_killed() {
    let Some(path) = std::env::var_os(KILLED) else { return };
    let store = SqliteStore::open(path.as_ref()).unwrap();
    let fence = store.lead("chat").await.unwrap().unwrap();
    let (course, entries) = begun("one");
    store.save(&course.stored(fence), &entries).await.unwrap();
    store.publish("chat", &course.counts_key(), course.own()).await.unwrap();
    let id = std::process::id().to_string();
    Process::new("kill").args(["-s", "KILL", &id]).status().unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

/// Redis server without persistence, on a free port.
struct Server {
    port: u16,
    child: Option<Child>,
}

impl Server {
    fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { port, child: None };
        server.restart();
        server
    }

    fn restart(&mut self) {
        let child = Process::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not there: `scripts/system.sh test` installs it");
        self.child = Some(child);
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < end, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn store(&self) -> RedisStore {
        let written = serde_json::json!({"url": format!("redis://127.0.0.1:{}", self.port)});
        RedisStore::new(&serde_json::from_value(written).unwrap(), None).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Repeats a call until it answers: after a failure a server is left alone for a moment.
async fn eventually<T, F: Future<Output = Result<T, StoreError>>>(call: impl Fn() -> F) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Ok(value) => return value,
            Err(e) => assert!(Instant::now() < end, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_keeps_what_it_promises() {
    let server = Server::start();
    promises(&server.store(), &server.store()).await;
}

#[tokio::test]
async fn a_lead_ends_with_its_leader_and_is_released_at_the_end() {
    let server = Server::start();
    let (first, second) = (server.store(), server.store());
    let fence = first.lead("chat").await.unwrap().unwrap();
    assert_eq!(second.lead("chat").await.unwrap(), None);
    assert_eq!(second.lead("other").await.unwrap(), Some(1), "each rollout has a lead of its own");
    // The leader is killed: nobody renews, and the lead expires.
    drop(first);
    let next = loop {
        if let Some(next) = second.lead("chat").await.unwrap() {
            break next;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(next > fence);
    // One that stops releases it, and not that of another.
    let third = server.store();
    third.release("chat").await.unwrap();
    assert_eq!(third.lead("chat").await.unwrap(), None);
    second.close().await;
    assert!(third.lead("chat").await.unwrap() > Some(next));
    assert!(third.lead("other").await.unwrap().is_some());
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_and_one_that_comes_back_empty_is_written_anew() {
    let mut server = Server::start();
    let (first, second) = (server.store(), server.store());
    let fence = first.lead("chat").await.unwrap().unwrap();
    let (course, entries) = begun("one");
    first.save(&course.stored(fence), &entries).await.unwrap();
    server.kill();
    for failed in [first.load("chat").await.map(|_| ()), first.save(&course.stored(fence), &[]).await] {
        let failed = failed.unwrap_err();
        assert!(matches!(failed, StoreError::Unreachable(_)));
        assert!(failed.to_string().contains("no step is taken until it answers"), "{failed}");
    }
    assert!(matches!(first.lead("chat").await, Err(StoreError::Unreachable(_))));
    server.restart();
    // Whoever is first leads; the other one's write is refused, though the server has forgotten all numbers.
    let taken = eventually(|| second.lead("chat")).await.unwrap();
    assert_eq!(eventually(|| first.lead("chat")).await, None);
    assert!(second.load("chat").await.unwrap().is_none());
    assert!(matches!(first.save(&course.stored(fence), &[]).await, Err(StoreError::NotLeader(_))));
    let mut after = course.clone();
    count(&mut after, 10);
    second.save(&after.stored(taken), &after.record().history).await.unwrap();
    assert_eq!(first.load("chat").await.unwrap().unwrap().record.history, entries);
}

#[tokio::test]
async fn a_state_that_outlived_the_counter_of_leads_is_still_written() {
    let server = Server::start();
    let store = server.store();
    for _ in 0..3 {
        store.take_lead("chat").await.unwrap();
        store.release("chat").await.unwrap();
    }
    let fence = store.lead("chat").await.unwrap().unwrap();
    let (course, entries) = begun("one");
    store.save(&course.stored(fence), &entries).await.unwrap();
    let client = ::redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let keys = [store.key("chat", "fence"), store.key("chat", "lead")];
    ::redis::cmd("DEL").arg(&keys).query_async::<()>(&mut connection).await.unwrap();
    let next = store.lead("chat").await.unwrap().unwrap();
    assert!(next > fence);
    store.save(&course.stored(next), &[]).await.unwrap();
}

#[tokio::test]
async fn counts_of_too_many_processes_are_refused() {
    let server = Server::start();
    let counts = Counts { candidate_requests: 1, ..Counts::default() };
    let mut last = Ok(());
    for _ in 0..=256 {
        last = server.store().publish("chat", "k", &counts).await;
    }
    assert!(matches!(last, Err(StoreError::Full(_))), "{last:?}");
    assert_eq!(server.store().gather("chat", "k").await.unwrap().len(), 256);
}

#[test]
fn names_and_parts_of_keys_are_told_apart() {
    let server = serde_json::json!({"url": "redis://127.0.0.1:1"});
    let store = RedisStore::new(&serde_json::from_value(server).unwrap(), None).unwrap();
    assert_ne!(store.key("a:lead", "x"), store.key("a", "lead:x"));
}
