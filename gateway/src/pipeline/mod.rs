//! The path of one request, top to bottom: ten steps, each one call, whose details are one file away.
//!
//! ```text
//!  1 begin      the snapshot, the operation, the request id, the trace, the candidate routes by the head alone
//!  2 guard      filters that need no caller, where the head decides the route
//!  3 identify   key, token or certificate -> consumer, where the head decides the route or all want a caller
//!  4 route      the body is held where a candidate needs it; the final route; may the caller use it and the model?
//!  5 filters    the caller's own limits, then the filters of the route in the order of the file; each may answer
//!  6 select     the order of the targets: priorities, weights, stickiness
//!  7 admit      an endpoint and its slot, or a built-in model; waits in the queue where there is no room
//!  8 attempt    one try there: send, pass the answer on, conclude; then perhaps admit again
//!  9 fall back  no target took the request: it spills to another backend or a built-in model, or is refused
//! 10 end        reservations settled; span, metrics, access log
//! ```
//! Labels of answers are taken behind step 3, by a route of the gateway's own. Where the model in the body decides the route, step 4 runs steps 2 and 3 for the route that it finds. Before step 6,
//! a request over a limit that spills goes to step 9, the list of models and the state of the gateway as a server of models are
//! answered, and mirrors get their copies.
//!
//! A step returns what the next one needs or how the request ends. Besides the steps, only a gateway that stops ends a
//! request early. What the request holds is in its [`Exchange`] and is released when that is dropped.

mod access;
mod admit;
mod affinity;
mod answers;
mod asking;
mod attempts;
mod batch_lines;
mod batching;
mod begin;
mod builtin;
mod changing;
mod comparing;
mod conclude;
mod copying;
mod counting;
mod direct;
mod encoding;
mod fall_back;
mod feedback;
mod hedging;
mod identify;
mod inferring;
mod judging;
mod limiting;
mod may_spill;
mod mirroring;
mod model_list;
mod probing;
mod reading;
mod replay;
mod resuming;
mod rewritten;
mod route;
mod shadowing;
mod target;
mod translating;
mod trying;
mod upgrading;
mod waiting;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, header};

use spillway_filter::{ErrorKind, Refusal};

pub use answers::refuse_malformed;
pub use batch_lines::BatchLines;
pub use probing::Prober;
pub use replay::{NotReplayed, replay};

use admit::{admit, select};
use attempts::{Tried, attempt};
use begin::{begin, match_head};
use conclude::end;
use fall_back::fall_back;
use identify::{guard, identify};
use limiting::filters;
use route::route;

use crate::downstream::ClientSession;
use crate::exchange::{ConnectionInfo, End, Exchange};
use crate::gateway::Gateway;
use crate::quality::Tap;
use crate::upstream::CutReason;

/// Time for answers under way to end with an error event when the gateway stops.
const ENDING: Duration = Duration::from_millis(1_200);

/// Use of the client's connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterRequest {
    /// Kept for another request.
    Keep,
    /// Closed.
    Close,
}

/// Handles one request whose header was read.
pub async fn handle(gateway: &Arc<Gateway>, connection: &ConnectionInfo, session: &mut ClientSession) -> AfterRequest {
    let _running = gateway.enter();
    // Of an earlier request of the connection.
    session.offer_compression(None);
    let mut exchange = begin(gateway, connection, session);
    let ending = &gateway.downstream.ending;
    let ended = {
        // Pinned here: `select!` keeps room for two of each future that it is given by value.
        let mut serving = pin!(serve(gateway, connection, session, &mut exchange));
        tokio::select! {
            biased;
            ended = serving.as_mut() => Some(ended),
            // A stopping gateway drops the request after `ENDING`, in which answers under way end with an error event.
            () = async { ending.over().await; tokio::time::sleep(ENDING).await } => None,
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None if exchange.outcome.status == 0 && !session.has_answered() => Err(stopping()),
        None => {
            // The gateway has given the request up, not its caller.
            exchange.rollout = None;
            Err(End::ClientGone)
        }
    };
    let after = match ended {
        Ok(()) if exchange.outcome.broken => AfterRequest::Close,
        Ok(()) => AfterRequest::Keep,
        Err(End::Refuse(refusal)) => answers::refuse(session, &mut exchange, &refusal).await,
        Err(End::Answer(answer)) => answers::local(session, &mut exchange, *answer).await,
        Err(End::ClientGone) => {
            exchange.outcome.client_gone = true;
            AfterRequest::Close
        }
    };
    end(gateway, connection, session, &mut exchange);
    after
}

/// Refusal of a request that has no answer yet when `shutdown.drainTimeout` is over.
fn stopping() -> End {
    let cut = CutReason::ShuttingDown;
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Overloaded, cut.as_str(), cut.message());
    End::refuse(refusal.retry_after(Duration::from_secs(1)))
}

async fn serve(
    gateway: &Arc<Gateway>,
    connection: &ConnectionInfo,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let route = {
        let snapshot = exchange.snapshot.clone();
        let candidates = match_head(gateway, connection, &snapshot, session, exchange)?;
        guard(&candidates, session, exchange).await?;
        identify(&candidates, session, exchange).await?;
        if let Some(plan) = feedback::plan(&candidates, exchange) {
            let within = connection.limits.body_timeout.0;
            return Box::pin(feedback::answer(gateway, &plan, within, session, exchange)).await;
        }
        if let Some(plan) = batching::plan(&candidates, exchange) {
            return Box::pin(batching::answer(gateway, &plan, connection, session, exchange)).await;
        }
        route(gateway, &candidates, connection.limits.body_timeout.0, session, exchange).await?
    };
    if exchange.line.is_some() {
        batch_lines::check(&route, exchange)?;
    }
    if session.get_header(header::UPGRADE).is_some() {
        upgrading::settle(&route, connection, session, exchange)?;
    }
    filters(&route, session, exchange).await?;
    if let Some(sampling) = &route.sampling
        && sampling.draws()
    {
        let tap = Tap::new(sampling.clone(), &session.req_header().headers);
        exchange.taps.get_or_insert_default().quality = Some(tap);
    }
    if let Some(contents) = &route.contents {
        conclude::tap_content(contents, session, exchange);
    }
    if let Some((filter, refusal)) = exchange.over_limit.take() {
        return fall_back::over_limit(gateway, &route, filter, refusal, session, exchange).await;
    }
    if model_list::models(&route, session, exchange).await? {
        return Ok(());
    }
    if inferring::of_server(gateway, &route, session, exchange).await? {
        return Ok(());
    }
    if route.targets.is_empty() {
        // A redirect that is at its target already, on a route that does nothing else.
        return Err(access::no_route(session));
    }
    if route.sends_copies && exchange.upgrade.is_none() {
        Box::pin(mirroring::copy(gateway, &route, session, exchange)).await;
    }
    let mut tries = select(&route, session, exchange)?;
    let reason = loop {
        match admit(&route, &mut tries, session, exchange).await? {
            Err(reason) => break reason,
            Ok(admitted) => match attempt(gateway, &route, admitted, &mut tries, session, exchange).await? {
                Tried::Served => return Ok(()),
                Tried::Again => {}
                Tried::Unserved(reason) => break reason,
            },
        }
    };
    fall_back(gateway, &route, &tries.into_selection(), reason, session, exchange).await
}
