//! Plain data structures for waiting: the order of waiters, the queue of a route, the room of a backend, the rate of
//! admissions, and the budget for retries. Nothing here decides where a request goes; only [`Waiter::turn`] waits.

mod drain_rate;
mod line;
mod queue;
mod retry_budget;
mod room;

pub use line::Party;
pub use queue::{NotHeld, Queue, Turn, Waiter};
pub use retry_budget::{RetryBudget, Retrying};
pub use room::{Pending, Room, WakingSlot};
