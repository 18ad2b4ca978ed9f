//! Waiting for a slot, as plain data structures: the order of waiters, the queue of a route, the room of a backend, the
//! rate at which slots come free, and the budget for retries. Nothing here decides where a request goes; only
//! [`Ticket::turn`] waits.

mod drain_rate;
mod line;
mod queue;
mod retry_budget;
mod room;

pub use line::Party;
pub use queue::{NotHeld, Queue, Ticket, Turn};
pub use retry_budget::{RetryBudget, Retrying};
pub use room::{Pending, Room, Taken};
