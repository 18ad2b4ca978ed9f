//! An attempt at an endpoint: connect, send, read the answer while passing it on, and return the outcome.
//!
//! The room owns the rules of framing between the two sides. It never picks an endpoint, retries or spills.

mod answer_model;
mod attempt;
mod bounds;
mod connection;
mod continuing;
mod conversation;
mod converse;
mod decoding;
mod dropping;
mod encoded;
mod events;
mod headers;
mod masking;
mod metering;
mod model_name;
mod open;
mod outcome;
mod outgoing;
mod passing;
mod pieces;
mod renaming;
mod socket_names;
mod stages;
mod trailers;
mod translating;
mod translation;
mod upgrading;
mod usage_chunk;
mod verdict;
mod via;

pub use attempt::{relay, run};
pub use continuing::{can_continue, pass_rest};
pub use dropping::{Cut, cut};
pub use headers::{X_REQUEST_ID, finish_response, outgoing_response};
pub use open::{Drained, OpenedAnswer, Ready, abandon, drain, open};
pub use outcome::{Attempt, AttemptOutcome, CutReason, Died, Failure, MoveOn, Oversized, TimeLimit};
pub use passing::{break_off, client_write, refused};
pub use translation::{CallHead, Translation, has_counterpart, no_counterpart, translate};
pub use verdict::{is_server_fault, retry_after};
pub use via::Via;
