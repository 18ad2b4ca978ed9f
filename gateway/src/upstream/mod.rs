//! One attempt at an endpoint: connect, send, read the answer while passing it on, and say how it ended.
//! It owns the pooled connections and the framing rules between the two sides; it never picks an endpoint, retries or
//! spills. Pingora's client sessions are used here and nowhere else.

mod attempt;
mod body;
mod events;
mod headers;
mod open;
mod peer;

pub use attempt::{Attempt, Died, Failure, MoveOn, Outcome, REQUEST_TIMEOUT, break_off, client_write, relay, run};
pub use body::{BodyBudget, HeldBody, RequestBody, hold, too_large, with_model};
pub use headers::{
    RequestHeaders, ResponseHeaders, Via, X_REQUEST_ID, finish_response, outgoing_request, outgoing_response, to_http2,
};
pub use open::{Opened, Ready, drain, open};
pub use peer::{Connector, Peer};
