//! One attempt at an endpoint: connect, send, read the answer while passing it on, and say how it ended.
//! It owns the pooled connections and the framing rules between the two sides; it never picks an endpoint, retries or
//! spills. Pingora's client sessions are used here and nowhere else.

mod attempt;
mod body;
mod bounds;
mod budget;
mod continuing;
mod converse;
mod dial;
mod encoded;
mod events;
mod handshake;
mod headers;
mod masking;
mod metered;
mod open;
mod outgoing;
mod passing;
mod peer;
mod verdict;

pub use attempt::{Attempt, Died, Failure, MoveOn, Outcome, REQUEST_TIMEOUT, SHUTTING_DOWN, STOPPING, relay, run};
pub use body::{HeldBody, Hold, RequestBody, hold, malformed, malformed_refusal, too_large, too_slow};
pub use budget::{BodyBudget, BodyShare};
pub use continuing::{can_continue, go_on};
pub use dial::Connections;
pub use headers::{
    RequestHeaders, ResponseHeaders, Via, X_REQUEST_ID, finish_response, outgoing_request, outgoing_response, to_http2,
};
pub use open::{Opened, Ready, abandon, drain, open};
pub use passing::{break_off, client_write};
pub use peer::{Connector, MAX_STREAMS, Peer};
