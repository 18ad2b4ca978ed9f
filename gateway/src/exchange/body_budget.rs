//! Budget of memory for bodies that are held: of all requests of the process together, and of each caller. Bytes are counted
//! when they arrive, never when they are announced. A caller that holds nothing is not kept, so that the table of callers is
//! no larger than the number of bodies held.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::RandomState;
use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use spillway_filter::{ErrorKind, Refusal};

use crate::exchange::End;
use crate::telemetry::{BodyRefusal, Metrics};

/// Number of tables that the callers are spread over, so that requests seldom wait for the same lock.
const SHARDS: usize = 16;

/// `Retry-After` of a body that found no memory: bodies are held for seconds, of unknown number.
const WAIT: Duration = Duration::from_secs(1);

type CallerShard = Mutex<HashMap<u128, u64, RandomState>>;

/// Bound that a body would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// `limits.bufferedBodiesPerCaller`.
    Caller,
    /// `limits.bufferedBodies`.
    Process,
}

/// Budget of memory for bodies that are held, over all requests.
pub struct BodyBudget {
    used: AtomicU64,
    most: AtomicU64,
    most_per_caller: AtomicU64,
    callers: [CallerShard; SHARDS],
    refused_caller: Counter,
    refused_process: Counter,
    refused_slow: Counter,
}

impl BodyBudget {
    /// Creates a budget of `most` bytes, of which one caller may hold `most_per_caller`.
    pub fn new(most: u64, most_per_caller: u64, metrics: &Metrics) -> Self {
        Self {
            used: AtomicU64::new(0),
            most: AtomicU64::new(most),
            most_per_caller: AtomicU64::new(most_per_caller),
            callers: std::array::from_fn(|_| Mutex::default()),
            refused_caller: metrics.bodies_refused.series(BodyRefusal::Caller),
            refused_process: metrics.bodies_refused.series(BodyRefusal::Process),
            refused_slow: metrics.bodies_refused.series(BodyRefusal::Slow),
        }
    }

    /// Changes both bounds. Bodies that are held already stay, even beyond a lowered bound.
    pub fn adopt(&self, most: u64, most_per_caller: u64) {
        self.most.store(most, Ordering::Relaxed);
        self.most_per_caller.store(most_per_caller, Ordering::Relaxed);
    }

    /// Bytes that are held.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// True if more than half of the memory is in use. Then bodies that hold much and arrive slowly are refused.
    pub(super) fn is_scarce(&self) -> bool {
        self.used() > self.most.load(Ordering::Relaxed) / 2
    }

    fn shard(&self, caller: u128) -> Option<&CallerShard> {
        self.callers.get(usize::try_from(caller >> 64 & 0xFFFF).unwrap_or(0) % SHARDS)
    }

    fn most_per_caller(&self) -> u64 {
        self.most_per_caller.load(Ordering::Relaxed)
    }

    fn acquire(&self, caller: u128, bytes: u64) -> Result<(), Full> {
        // A caller that holds nothing has no entry.
        if bytes == 0 {
            return Ok(());
        }
        let Some(shard) = self.shard(caller) else { return Err(Full::Caller) };
        let mut callers = shard.lock();
        let held = callers.get(&caller).copied().unwrap_or(0);
        let after = held.checked_add(bytes).filter(|after| *after <= self.most_per_caller()).ok_or(Full::Caller)?;
        let most = self.most.load(Ordering::Relaxed);
        let fits = |used: u64| used.checked_add(bytes).filter(|after| *after <= most);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| Full::Process)?;
        callers.insert(caller, after);
        Ok(())
    }

    fn release(&self, caller: u128, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.release_of_caller(caller, bytes);
    }

    fn release_of_caller(&self, caller: u128, bytes: u64) {
        let Some(shard) = self.shard(caller) else { return };
        let mut callers = shard.lock();
        if let Some(held) = callers.get_mut(&caller) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                callers.remove(&caller);
            }
        }
    }

    /// Checks that so many bytes would fit now, without acquiring them.
    fn has_room(&self, caller: u128, bytes: u64) -> Result<(), Full> {
        let held = self.shard(caller).and_then(|shard| shard.lock().get(&caller).copied()).unwrap_or(0);
        if held.saturating_add(bytes) > self.most_per_caller() {
            return Err(Full::Caller);
        }
        if self.used().saturating_add(bytes) > self.most.load(Ordering::Relaxed) { Err(Full::Process) } else { Ok(()) }
    }

    /// Refusal of a body of `length` bytes that would exceed a bound. If no caller may ever hold so many, the refusal is a
    /// final one (413).
    fn refuse(&self, full: Full, length: u64) -> End {
        match full {
            Full::Caller if length > self.most_per_caller() => too_large(self.most_per_caller(), "one caller may hold"),
            Full::Caller => {
                self.refused_caller.inc();
                let message = "the bodies of your running requests take all the memory that one caller may use \
                               (`limits.bufferedBodiesPerCaller`); try again when one has ended";
                let kind = ErrorKind::RateLimited;
                End::refuse(
                    Refusal::new(StatusCode::TOO_MANY_REQUESTS, kind, "body_share_exhausted", message)
                        .retry_after(WAIT),
                )
            }
            Full::Process => {
                self.refused_process.inc();
                End::refuse(no_memory("the gateway holds too many request bodies at the moment; try again"))
            }
        }
    }

    /// Refusal of a body that holds much and arrives slowly while memory is short.
    pub(super) fn refuse_slow(&self) -> End {
        self.refused_slow.inc();
        End::refuse(no_memory("memory for request bodies is short and this one arrives too slowly; try again"))
    }

    #[cfg(test)]
    pub(crate) fn callers(&self) -> usize {
        self.callers.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// End of a request whose body is longer than `limit` bytes; `whose` completes "the LIMIT bytes that".
pub fn too_large(limit: u64, whose: &str) -> End {
    End::refuse(too_large_refusal(limit, whose))
}

/// Refusal of a body that is longer than `limit` bytes; `whose` completes "the LIMIT bytes that".
pub fn too_large_refusal(limit: u64, whose: &str) -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::InvalidRequest,
        "request_too_large",
        format!("the body is longer than the {limit} bytes that {whose}"),
    )
}

fn no_memory(message: &'static str) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Overloaded, "body_memory_exhausted", message)
        .retry_after(WAIT)
}

/// Share of the budget that one body holds, released on drop.
pub struct BodyShare {
    budget: Arc<BodyBudget>,
    caller: u128,
    bytes: u64,
}

impl BodyShare {
    /// Creates an empty share for the caller with this number.
    pub(super) fn new(budget: &Arc<BodyBudget>, caller: u128) -> Self {
        Self { budget: budget.clone(), caller, bytes: 0 }
    }

    pub(super) fn budget(&self) -> &BodyBudget {
        &self.budget
    }

    /// Refuses a body that is announced with so many bytes, where those would not fit now. Acquires nothing.
    pub(super) fn announced(&self, length: u64) -> Result<(), End> {
        self.budget.has_room(self.caller, length).map_err(|full| self.budget.refuse(full, length))
    }

    /// Acquires further bytes for a body of which `length` bytes have arrived: `best` of them, or `least` where that does not
    /// fit. Returns the number acquired.
    pub(super) fn grow(&mut self, best: u64, least: u64, length: u64) -> Result<u64, End> {
        let acquire = |bytes| self.budget.acquire(self.caller, bytes).map(|()| bytes);
        let acquired = acquire(best).or_else(|_| acquire(least)).map_err(|full| self.budget.refuse(full, length))?;
        self.bytes = self.bytes.saturating_add(acquired);
        Ok(acquired)
    }

    /// Releases all but `bytes` bytes.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let more = self.bytes.saturating_sub(bytes);
        self.budget.release(self.caller, more);
        self.bytes -= more;
    }

    /// Counts the body for another caller from now on: the one identified after the body was first counted for an address.
    pub(super) fn belongs_to(&mut self, caller: u128) -> Result<(), End> {
        if caller == self.caller || self.bytes == 0 {
            self.caller = caller;
            return Ok(());
        }
        let Some(shard) = self.budget.shard(caller) else { return Ok(()) };
        {
            let mut callers = shard.lock();
            let held = callers.get(&caller).copied().unwrap_or(0);
            let after = held.saturating_add(self.bytes);
            if after > self.budget.most_per_caller() {
                return Err(self.budget.refuse(Full::Caller, self.bytes));
            }
            callers.insert(caller, after);
        }
        let before = std::mem::replace(&mut self.caller, caller);
        self.budget.release_of_caller(before, self.bytes);
        Ok(())
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.budget.release(self.caller, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1 << 10;

    fn budget(most: u64, most_per_caller: u64) -> Arc<BodyBudget> {
        Arc::new(BodyBudget::new(most, most_per_caller, &Metrics::new()))
    }

    fn told(end: End) -> (u16, &'static str) {
        let End::Refuse(refusal) = end else { panic!("a refusal") };
        (refusal.status.as_u16(), refusal.code)
    }

    #[test]
    fn what_is_held_is_counted_for_its_caller_and_for_all() {
        let budget = budget(10 * KIB, 6 * KIB);
        let (mut first, mut second) = (BodyShare::new(&budget, 1), BodyShare::new(&budget, 2));
        first.grow(5 * KIB, 5 * KIB, 5 * KIB).unwrap();
        assert_eq!(told(first.grow(2 * KIB, 2 * KIB, 2 * KIB).unwrap_err()), (429, "body_share_exhausted"));
        assert_eq!(told(first.announced(7 * KIB).unwrap_err()), (413, "request_too_large"), "it never would fit");
        second.grow(5 * KIB, 5 * KIB, 5 * KIB).unwrap();
        assert_eq!(told(second.grow(1, 1, 1).unwrap_err()), (503, "body_memory_exhausted"));
        assert_eq!(budget.used(), 10 * KIB);
        drop(first);
        second.shrink(KIB);
        assert_eq!((budget.used(), budget.callers()), (KIB, 1));
        drop(second);
        assert_eq!((budget.used(), budget.callers()), (0, 0), "a caller that holds nothing is forgotten");
    }

    #[test]
    fn a_body_moves_to_the_caller_that_its_address_stood_for() {
        let budget = budget(10 * KIB, 4 * KIB);
        let (mut known, mut body) = (BodyShare::new(&budget, 1), BodyShare::new(&budget, 2));
        known.grow(2 * KIB, 2 * KIB, 2 * KIB).unwrap();
        body.grow(3 * KIB, 3 * KIB, 3 * KIB).unwrap();
        assert_eq!(told(body.belongs_to(1).unwrap_err()), (429, "body_share_exhausted"));
        known.shrink(KIB);
        body.belongs_to(1).unwrap();
        assert_eq!((budget.used(), budget.callers()), (4 * KIB, 1));
        assert!(known.grow(1, 1, 1).is_err(), "all of it is the one caller's");
        drop(body);
        assert_eq!(budget.used(), KIB);
    }

    #[test]
    fn bounds_change_while_bodies_are_held() {
        let budget = budget(4 * KIB, 4 * KIB);
        let mut body = BodyShare::new(&budget, 1);
        body.grow(4 * KIB, 4 * KIB, 4 * KIB).unwrap();
        budget.adopt(2 * KIB, KIB);
        assert!(budget.is_scarce() && body.grow(1, 1, 1).is_err());
        body.shrink(0);
        assert_eq!(told(body.grow(2 * KIB, 2 * KIB, KIB).unwrap_err()), (429, "body_share_exhausted"));
        body.grow(KIB, KIB, KIB).unwrap();
    }

    proptest! {
        /// After any acquiring, moving and releasing, the sum over callers is the number of bytes held, within all bounds.
        #[test]
        fn sums_add_up(steps in prop::collection::vec((0usize..6, 0u8..4, 0u64..3000), 1..60)) {
            let budget = budget(8000, 5000);
            let mut shares: Vec<BodyShare> = (0..6).map(|n| BodyShare::new(&budget, n % 3)).collect();
            for (which, what, bytes) in steps {
                match what {
                    0 | 1 => { let _ = shares[which].grow(bytes, bytes, bytes); }
                    2 => shares[which].shrink(bytes),
                    _ => { let _ = shares[which].belongs_to(u128::from(bytes % 4)); }
                }
                let held: u64 = shares.iter().map(|share| share.bytes).sum();
                prop_assert_eq!(budget.used(), held);
                prop_assert!(held <= 8000);
                for caller in 0..4u128 {
                    let own: u64 = shares.iter().filter(|share| share.caller == caller).map(|share| share.bytes).sum();
                    prop_assert!(own <= 5000);
                }
            }
            drop(shares);
            prop_assert_eq!((budget.used(), budget.callers()), (0, 0));
        }
    }
}
