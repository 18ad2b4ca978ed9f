//! Threads for work that takes milliseconds, which must not hold up the threads of requests. Owns the threads: they end when the
//! last filter that uses them is gone. What waits is bounded, and callers take turns, so that one with much work holds up no other
//! for longer than one piece of it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Most work that waits for a thread.
const QUEUE: usize = 32;
/// Most work of one caller that waits: browsers have six connections to a host.
const QUEUE_OF_ONE: usize = 8;

type Work = Box<dyn FnOnce() + Send>;

/// Threads with their queue.
pub(super) struct Turns {
    shared: Arc<Shared>,
    waiting: usize,
    /// Most that waits for one caller.
    of_one: usize,
}

/// State that the threads share with the filters.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Told when work comes or the queue is closed.
    changed: Condvar,
}

/// Work that waits.
#[derive(Default)]
struct Queue {
    /// By caller, none of them empty.
    by_caller: HashMap<IpAddr, VecDeque<Work>>,
    /// Callers with work, the next one first.
    order: VecDeque<IpAddr>,
    length: usize,
    is_closed: bool,
}

impl Queue {
    /// The next work: callers take turns.
    fn next(&mut self) -> Option<Work> {
        let caller = self.order.pop_front()?;
        let own = self.by_caller.get_mut(&caller)?;
        let work = own.pop_front()?;
        if own.is_empty() {
            self.by_caller.remove(&caller);
        } else {
            self.order.push_back(caller);
        }
        self.length -= 1;
        Some(work)
    }
}

impl Queue {
    /// Gives up the last work of the caller who has most, if that is more than one who has `own` would have. Its caller is told by
    /// the end of the work that was not done.
    fn makes_room(&mut self, own: usize) -> bool {
        let most = self.by_caller.values_mut().max_by_key(|work| work.len()).filter(|work| work.len() > own + 1);
        let is_given_up = most.and_then(VecDeque::pop_back).is_some();
        self.length -= usize::from(is_given_up);
        is_given_up
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Caller as turns are counted: a network of IPv6 that one subscriber has (RFC 6177) is one.
fn caller(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Turns {
    /// Starts as many threads as half of the processors, at least one: the others serve requests.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with((processors / 2).max(1), QUEUE, QUEUE_OF_ONE)
    }

    /// Starts so many threads, for which so much work may wait, and so much of one caller.
    pub(super) fn with(threads: usize, waiting: usize, of_one: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let mut has_thread = false;
        for n in 0..threads {
            let shared = shared.clone();
            let started = std::thread::Builder::new().name(format!("password-{n}")).spawn(move || run(&shared));
            has_thread |= started.is_ok();
        }
        // Without a thread nothing is taken.
        shared.queue().is_closed = !has_thread;
        Self { shared, waiting, of_one }
    }

    /// Has work done for a caller, or not: false where too much waits already.
    pub(super) fn submit(&self, address: IpAddr, work: impl FnOnce() + Send + 'static) -> bool {
        let (caller, mut queue) = (caller(address), self.shared.queue());
        let own = queue.by_caller.get(&caller).map_or(0, VecDeque::len);
        if queue.is_closed || own >= self.of_one || (queue.length >= self.waiting && !queue.makes_room(own)) {
            return false;
        }
        if own == 0 {
            queue.order.push_back(caller);
        }
        queue.by_caller.entry(caller).or_default().push_back(Box::new(work));
        queue.length += 1;
        drop(queue);
        self.shared.changed.notify_one();
        true
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_all();
    }
}

/// Does work until nobody can submit any and none is left.
fn run(shared: &Shared) {
    let mut queue = shared.queue();
    loop {
        if let Some(work) = queue.next() {
            drop(queue);
            // The thread serves all callers: a panic is one's own, and is told by the end of the work.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            queue = shared.queue();
        } else if queue.is_closed {
            return;
        } else {
            queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const ANN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const BOB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn work_waits_in_a_bounded_queue_and_the_threads_end_with_it() {
        let turns = Turns::with(1, 1, 1);
        let ((started, is_started), (go, wait), (done, results)) = (channel(), channel::<()>(), channel());
        let ended = done.clone();
        assert!(turns.submit(ANN, move || {
            started.send(()).unwrap();
            wait.recv().unwrap();
            done.send(1).unwrap();
        }));
        is_started.recv().unwrap();
        assert!(turns.submit(ANN, move || ended.send(2).unwrap()), "one waits");
        assert!(!turns.submit(BOB, || {}), "no more does");
        go.send(()).unwrap();
        assert_eq!((results.recv(), results.recv()), (Ok(1), Ok(2)));
        drop(turns);
        assert!(results.recv().is_err(), "nothing holds the work any more");
    }

    #[test]
    fn a_panic_ends_no_thread() {
        let turns = Turns::with(1, 2, 2);
        let (done, results) = channel();
        assert!(turns.submit(ANN, || panic!("as it should")));
        assert!(turns.submit(ANN, move || done.send(1).unwrap()));
        assert_eq!(results.recv(), Ok(1));
    }

    #[test]
    fn callers_take_turns_and_none_has_the_whole_queue() {
        let turns = Turns::with(1, 6, 3);
        let ((started, is_started), (go, wait), (done, results)) = (channel(), channel::<()>(), channel());
        assert!(turns.submit(ANN, move || {
            started.send(()).unwrap();
            wait.recv().unwrap();
        }));
        is_started.recv().unwrap();
        let submit = |address: IpAddr, name: &'static str| {
            let done = done.clone();
            turns.submit(address, move || done.send(name).unwrap())
        };
        assert!(submit(ANN, "ann 1") && submit(ANN, "ann 2") && submit(ANN, "ann 3"));
        assert!(!submit(ANN, "ann 4"), "the others have room");
        assert!(submit(BOB, "bob 1") && submit(BOB, "bob 2"));
        let (one, same): (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        assert!(submit(one, "six 1"));
        assert!(submit(same, "six 2"), "the last of who has most gives way");
        assert!(!submit(same, "six 3"), "nobody has more now");
        go.send(()).unwrap();
        let order: Vec<_> = (0..6).map(|_| results.recv().unwrap()).collect();
        assert_eq!(order, ["ann 1", "bob 1", "six 1", "ann 2", "bob 2", "six 2"]);
        assert_eq!((caller(one), caller("::ffff:192.0.2.1".parse().unwrap())), (caller(same), ANN));
    }
}
