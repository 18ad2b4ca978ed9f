//! The way of one request, top to bottom. Each step is one call; what it does stands in its own room.
//!
//! ```text
//!  1 begin      the snapshot, the request id, the trace, the candidate routes by the head alone
//!  2 guard      filters that need no caller
//!  3 identify   key -> consumer, before a byte of the body where all candidates ask for one
//!  4 route      the body is held where a candidate needs it; the final route
//!  5 filters    the other filters in the order of the file
//!  6 choose     the order of the targets: weights, stickiness
//!  7 admit      an endpoint and its slot, a model inside, a wait for one, or no room
//!  8 forward    attempts, or the engine (headers are prepared for each attempt)
//!  9 respond    passed on as it comes, observed on the way
//! 10 end        span, metrics, access log
//! ```
//! A step returns what the next one needs or how the request ends; nothing else ends a request early. What the request
//! holds lives in its [`Exchange`] and is released when that is dropped.

mod access;
mod affinity;
mod answers;
mod builtin;
mod conclude;
mod encoding;
mod fall_back;
mod forward;
mod hedging;
mod limiting;
mod may_spill;
mod mirroring;
mod queueing;
mod reading;
mod resuming;
mod steps;
mod target;
mod trying;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use pingora::protocols::http::ServerSession;

use spillway_filter::{ErrorKind, Refusal};

pub use answers::refuse_malformed;
use fall_back::fall_back;
use forward::{Forwarded, forward, select};

use crate::exchange::{ConnectionInfo, End, Exchange};
use crate::gateway::Gateway;
use crate::topology::Route;
use crate::upstream::CutReason;

/// Time for answers under way to end themselves with an error event when the gateway ends.
const ENDING: Duration = Duration::from_millis(1_200);

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It may carry another request.
    Keep,
    /// It ends.
    Close,
}

/// Handles one request whose header was read.
pub async fn handle(gateway: &Arc<Gateway>, connection: &ConnectionInfo, session: &mut ServerSession) -> Connection {
    let _running = gateway.enter();
    let mut x = steps::begin(gateway, connection, session);
    let ending = &gateway.downstream.ending;
    let ended = tokio::select! {
        biased;
        end = walk(gateway, connection, session, &mut x) => Some(end),
        // Answers under way end themselves.
        () = async { ending.over().await; tokio::time::sleep(ENDING).await } => None,
    };
    let end = match ended {
        Some(end) => end,
        None if x.outcome.status == 0 && session.response_written().is_none() => Err(stopping()),
        None => Err(End::ClientGone),
    };
    let after = match end {
        Ok(()) if x.outcome.broken => Connection::Close,
        Ok(()) => Connection::Keep,
        Err(End::Refuse(refusal)) => answers::refuse(session, &mut x, &refusal).await,
        Err(End::Answer(answer)) => answers::local(session, &mut x, *answer).await,
        Err(End::ClientGone) => {
            x.outcome.client_gone = true;
            Connection::Close
        }
    };
    conclude::tell(gateway, session, x);
    after
}

/// Refusal of a request without an answer when `shutdown.drainTimeout` is over.
fn stopping() -> End {
    let cut = CutReason::ShuttingDown;
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Overloaded, cut.as_str(), cut.message());
    End::refuse(refusal.retry_after(Duration::from_secs(1)))
}

async fn walk(
    gateway: &Arc<Gateway>,
    connection: &ConnectionInfo,
    session: &mut ServerSession,
    x: &mut Exchange,
) -> Result<(), End> {
    let checked = steps::check_head(gateway, connection, session);
    let head = session.req_header();
    x.resolve(&head.method, head.uri.path());
    let spelling = checked?;
    steps::judge_certificate(connection, session, x)?;
    steps::strip(connection, session, x);
    let route: Arc<Route> = steps::find_route(gateway, connection, spelling, session, x).await?;
    limiting::filters(&route, session, x).await?;
    if let Some((filter, refusal)) = x.over_limit.take() {
        return fall_back::over_limit(gateway, &route, filter, refusal, session, x).await;
    }
    if answers::models(&route, session, x).await? {
        return Ok(());
    }
    mirroring::mirror(gateway, &route, session, x);
    let mut journey = select(&route, session);
    match forward(gateway, &route, &mut journey, session, x).await? {
        Forwarded::Served => Ok(()),
        Forwarded::Unserved(reason) => fall_back(gateway, &route, &journey, reason, session, x).await,
    }
}
