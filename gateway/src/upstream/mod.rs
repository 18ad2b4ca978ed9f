//! One attempt at an endpoint: connect, send, read the answer while passing it on, and say how it ended.
//! It owns the framing rules between the two sides; it never picks an endpoint, retries or spills.

mod attempt;
mod bounds;
mod continuing;
mod converse;
mod encoded;
mod events;
mod headers;
mod masking;
mod open;
mod outgoing;
mod passing;
mod pieces;
mod verdict;

pub use attempt::{
    Attempt, Died, Failure, MoveOn, Outcome, REQUEST_TIMEOUT, SHUTTING_DOWN, STOPPING, TimeLimit, relay, run,
};
pub use continuing::{can_continue, go_on};
pub use headers::{
    RequestHeaders, ResponseHeaders, Via, X_REQUEST_ID, finish_response, outgoing_request, outgoing_response, to_http2,
};
pub use open::{Opened, Ready, abandon, drain, open};
pub use passing::{break_off, client_write};
