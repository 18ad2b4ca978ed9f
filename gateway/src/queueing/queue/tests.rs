//! Promises to waiters, with the clock stopped: it moves only when everybody sleeps.

use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;
use crate::balancing::EndpointState;
use crate::telemetry::EndpointMetrics;

const WAIT: Duration = Duration::from_secs(1);

fn queue(max_depth: usize) -> (Arc<Queue>, Arc<Room>) {
    let (queue, room) = (Arc::new(Queue::new(max_depth, WAIT, Arc::default())), Arc::new(Room::default()));
    queue.adopt(max_depth, WAIT, vec![room.clone()]);
    (queue, room)
}

fn enter(queue: &Arc<Queue>, who: &str) -> Waiter {
    queue.enter(Party::Tenant(who.into()), 0, Instant::now() + WAIT).unwrap()
}

/// A server with `slots` slots.
struct Server {
    state: Arc<EndpointState>,
    slots: std::num::NonZeroU32,
    room: Arc<Room>,
}

impl Server {
    fn new(slots: u32, room: &Arc<Room>) -> Self {
        let state = Arc::new(EndpointState::new(Arc::new(EndpointMetrics::default()), true, Arc::default()));
        Self { state, slots: slots.try_into().unwrap(), room: room.clone() }
    }
    fn take(&self) -> Option<super::super::WakingSlot> {
        self.state.try_acquire(self.slots.get()).map(|slot| super::super::WakingSlot::new(slot, &self.room))
    }
    fn has_room(&self) -> bool {
        self.state.in_flight() < self.slots.get()
    }
}

/// Course of a request: it tries to acquire a slot, and waits where there is none.
async fn request(server: &Server, queue: &Arc<Queue>, who: &str) -> Result<super::super::WakingSlot, NotHeld> {
    if queue.is_empty()
        && let Some(taken) = server.take()
    {
        return Ok(taken);
    }
    let waiter = queue.enter(Party::Tenant(who.into()), 0, Instant::now() + WAIT)?;
    loop {
        if server.has_room() && waiter.turn_now().is_none() {
            queue.wake_next();
        }
        match tokio::time::timeout_at(waiter.until(), waiter.turn()).await {
            Err(_) => {
                waiter.given_up(NotHeld::TimeOut);
                return Err(NotHeld::TimeOut);
            }
            Ok(Turn::Displaced) => {
                waiter.given_up(NotHeld::TooLate);
                return Err(NotHeld::TooLate);
            }
            Ok(Turn::Called) => match server.take() {
                Some(taken) => {
                    waiter.admitted();
                    if server.has_room() {
                        queue.wake_next();
                    }
                    return Ok(taken);
                }
                None => waiter.wait_again(),
            },
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_becomes_free_calls_the_next_waiter_and_no_other() {
    let (queue, room) = queue(10);
    let (a, b) = (enter(&queue, "a"), enter(&queue, "b"));
    room.freed();
    assert_eq!((a.turn_now(), b.turn_now()), (Some(Turn::Called), None));
    assert_eq!(a.turn().await, Turn::Called);
    a.admitted();
    assert_eq!(b.turn_now(), None, "one place, one call");
    room.freed();
    assert_eq!(b.turn().await, Turn::Called);
}

#[tokio::test(start_paused = true)]
async fn the_call_of_a_waiter_that_leaves_is_passed_on() {
    let (queue, room) = queue(10);
    let (a, b) = (enter(&queue, "a"), enter(&queue, "b"));
    room.freed();
    drop(a);
    assert_eq!(b.turn_now(), Some(Turn::Called));
    // The last one passes it to another route that waits for the same servers.
    let other = Arc::new(Queue::new(10, WAIT, Arc::default()));
    other.adopt(10, WAIT, vec![room.clone()]);
    let c = enter(&other, "c");
    drop(b);
    assert_eq!(c.turn_now(), Some(Turn::Called));
    drop(c);
    assert!(queue.is_empty() && other.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_frees_its_entry_at_once() {
    let (queue, _) = queue(2);
    let (a, _b) = (enter(&queue, "a"), enter(&queue, "a"));
    let come = || queue.enter(Party::Tenant("a".into()), 0, Instant::now() + WAIT).map(drop);
    assert_eq!(come(), Err(NotHeld::Full));
    drop(a);
    assert_eq!(come(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn routes_that_share_servers_are_called_in_turn() {
    let room = Arc::new(Room::default());
    let queues: Vec<Arc<Queue>> = (0..2).map(|_| Arc::new(Queue::new(10, WAIT, Arc::default()))).collect();
    for queue in &queues {
        queue.adopt(10, WAIT, vec![room.clone()]);
    }
    let waiters: Vec<Vec<Waiter>> = queues.iter().map(|queue| (0..4).map(|_| enter(queue, "a")).collect()).collect();
    for _ in 0..4 {
        room.freed();
    }
    let called = |n: usize| waiters[n].iter().filter(|waiter| waiter.turn_now().is_some()).count();
    assert_eq!((called(0), called(1)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn every_request_is_served_in_time_or_refused_at_once() {
    let (queue, room) = queue(100);
    let server = Arc::new(Server::new(2, &room));
    let (served, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    // Two slots and 100 ms of service: twenty a second. Sixty a second come, for ten seconds.
    for n in 0..600u64 {
        let (queue, server, served, most) = (queue.clone(), server.clone(), served.clone(), most.clone());
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_micros(n * 16_667)).await;
            let came = Instant::now();
            let taken = request(&server, &queue, "a").await;
            assert!(came.elapsed() <= WAIT + Duration::from_millis(1), "{:?}", came.elapsed());
            let Ok(_taken) = taken else { return };
            most.fetch_max(usize::try_from(server.state.in_flight()).unwrap(), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            served.fetch_add(1, Ordering::Relaxed);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let served = served.load(Ordering::Relaxed);
    assert!(served >= 200, "the servers were never idle while somebody waited: {served} of 200 and the last second's");
    assert_eq!(most.load(Ordering::Relaxed), 2);
    assert!(queue.is_empty() && queue.state.lock().waiters.is_empty());
    assert_eq!(server.state.in_flight(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Requests come, are served, and are dropped by their clients at any moment: no slot and no call is lost. The
    /// last request is served, and nothing is left.
    #[test]
    fn no_slot_is_lost_when_clients_leave(
        requests in proptest::collection::vec((0u64..2_000, 1u64..400, proptest::option::of(0u64..600), 0u8..3), 1..80),
        slots in 1u32..4, max_depth in 1usize..20,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (queue, room) = queue(max_depth);
            let server = Arc::new(Server::new(slots, &room));
            let mut tasks = tokio::task::JoinSet::new();
            for (arrival, service, leaves, who) in requests {
                let (queue, server) = (queue.clone(), server.clone());
                tasks.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(arrival)).await;
                    let request = async {
                        if let Ok(_taken) = request(&server, &queue, &who.to_string()).await {
                            assert!(server.state.in_flight() <= slots);
                            tokio::time::sleep(Duration::from_millis(service)).await;
                        }
                    };
                    match leaves {
                        Some(after) => { let _ = tokio::time::timeout(Duration::from_millis(after), request).await; }
                        None => request.await,
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            assert_eq!(server.state.in_flight(), 0);
            assert!(queue.is_empty() && queue.state.lock().waiters.is_empty());
            let before = Instant::now();
            assert!(request(&server, &queue, "last").await.is_ok());
            assert_eq!(before.elapsed(), Duration::ZERO);
        });
    }
}
