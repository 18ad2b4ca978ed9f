//! Lines of batches: each is a request of its caller that goes the whole way of one, over a session like any other. It differs in
//! four things: its caller is known by the proof that the batch was made with, it takes only routes that say `batch: true`, it
//! gets a slot only where callers leave one and waits for none, and it ends where a caller waits for its place.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use spillway_config::schema::{EncodedSlashes, ListenerLimits, RouteAuthentication};
use spillway_filter::{ErrorKind, Refusal};
use tokio::net::UnixStream;
use tokio::time::{MissedTickBehavior, interval};

use super::handle;
use crate::balancing::Endpoint;
use crate::batch::{LineCall, LineEnd, LineMark, LineRunner};
use crate::builtin::LoadedModel;
use crate::clock::{now_millis, unix_now};
use crate::downstream::{ClientSession, Http1Session, Transport, WriteBounded};
use crate::exchange::{ConnectionInfo, End, Exchange, ListenerFacts};
use crate::gateway::Gateway;
use crate::identity::CallerProof;
use crate::telemetry::{ListenerMetrics, Metrics};
use crate::topology::{Backend, Route, Target, TargetKind};
use crate::upstream::X_REQUEST_ID;

/// Name of the connections of lines in metrics that nobody sees.
const CONNECTIONS: &str = "batches";
/// Time between two looks at whether a caller waits for the place of a line.
const LOOK: Duration = Duration::from_millis(20);

/// Way of lines through the gateway.
pub struct BatchLines {
    /// The gateway owns what calls this.
    gateway: Weak<Gateway>,
    metrics: Arc<ListenerMetrics>,
}

impl BatchLines {
    /// Way through this gateway.
    pub fn new(gateway: &Arc<Gateway>) -> Self {
        Self { gateway: Arc::downgrade(gateway), metrics: Metrics::new().listener(CONNECTIONS) }
    }

    /// Serves the request that the client end sends. It ends with its client, as every request does.
    fn serve(&self, gateway: Arc<Gateway>, mark: Arc<LineMark>) -> std::io::Result<UnixStream> {
        let facts = ListenerFacts {
            name: mark.origin.listener.as_str().into(),
            encoded_slashes: EncodedSlashes::default(),
            health_path: None,
            loop_header: false,
            via: false,
            limits: ListenerLimits::default(),
            trusted: None,
        };
        let from = SocketAddr::new(mark.origin.client, 0);
        let connection = ConnectionInfo::new(from, (Ipv4Addr::LOCALHOST, 0).into(), None, facts).of_line(mark);
        let (server, client) = UnixStream::pair()?;
        let timeout = connection.limits.write_timeout.0;
        let stream = WriteBounded::new(Transport::Inside(server), timeout, Counter::default());
        let most = connection.limits.max_header_bytes.0;
        let session = Http1Session::new(stream, most, self.metrics.clone());
        tokio::spawn(async move {
            let mut session = ClientSession::http1(session);
            let has_request = match session.as_http1() {
                Some(http1) => http1.read_request().await.unwrap_or(false),
                None => false,
            };
            if has_request {
                handle(&gateway, &connection, &mut session).await;
            }
            session.shutdown().await;
        });
        Ok(client)
    }
}

fn failed(code: &'static str, message: String) -> LineEnd {
    LineEnd::Failed { code, message }
}

#[async_trait]
impl LineRunner for BatchLines {
    async fn answer(&self, line: LineCall) -> LineEnd {
        let Some(gateway) = self.gateway.upgrade() else { return LineEnd::Displaced };
        let LineCall { owner, origin, endpoint, body, share, max_answer } = line;
        let mark = Arc::new(LineMark::new(owner, origin, share));
        let client = match self.serve(gateway, mark.clone()) {
            Ok(client) => client,
            // Descriptors or memory are spent.
            Err(_) => return LineEnd::NoRoom,
        };
        let asking = ask(client, &mark, &endpoint, body, max_answer);
        let mut asking = pin!(asking);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                end = asking.as_mut() => return end,
                _ = look.tick() => if mark.is_crowded() {
                    // The client goes, and with it the request.
                    return LineEnd::Displaced;
                },
            }
        }
    }
}

/// Sends the request and reads its answer.
async fn ask(client: UnixStream, mark: &LineMark, endpoint: &str, body: Bytes, max_answer: usize) -> LineEnd {
    let request = Request::builder()
        .method(Method::POST)
        .uri(endpoint)
        .header(header::HOST, &mark.origin.host)
        .header(header::USER_AGENT, concat!("spillway-batch/", env!("CARGO_PKG_VERSION")))
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-spillway-fallback", "never")
        .body(Full::new(body));
    let request = match request {
        Ok(request) => request,
        Err(e) => return failed("internal_error", format!("the request of the line cannot be written: {e}")),
    };
    let broken = |e: &dyn std::fmt::Display| failed("answer_broken", format!("the answer broke off: {e}"));
    let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(client)).await {
        Ok(opened) => opened,
        Err(e) => return broken(&e),
    };
    let exchange = async {
        let (head, answer) = sender.send_request(request).await.map_err(|e| broken(&e))?.into_parts();
        let whole = Limited::new(answer, max_answer).collect().await.map_err(|e| {
            if e.is::<LengthLimitError>() {
                failed("answer_too_long", format!("the answer has more than {max_answer} bytes (`batch.maxAnswer`)"))
            } else {
                broken(&e)
            }
        })?;
        Ok((head, whole.to_bytes()))
    };
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    let mut is_open = true;
    let answered = loop {
        tokio::select! {
            biased;
            answered = exchange.as_mut() => break answered,
            _ = connection.as_mut(), if is_open => is_open = false,
        }
    };
    let (head, body) = match answered {
        Ok(answered) => answered,
        Err(end) => return end,
    };
    if mark.found_no_room() {
        return LineEnd::NoRoom;
    }
    let retry_after = retry_after(&head.headers);
    let request_id = head.headers.get(&X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    LineEnd::Answered { status: head.status.as_u16(), request_id, body, retry_after }
}

/// Seconds of `Retry-After`. A date is left to the waits of the batch.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Identifies the caller of a line by the proof of its batch.
pub(super) fn identify(mode: RouteAuthentication, exchange: &mut Exchange) -> Result<(), End> {
    let Some(mark) = exchange.line.as_ref().map(|line| line.mark.clone()) else { return Ok(()) };
    if mode == RouteAuthentication::None {
        return Ok(());
    }
    let proof = mark.origin.proof.restored();
    let Some(consumer) = exchange.snapshot.identity.holder(&proof, &mark.owner, unix_now()) else {
        let message = "The key, certificate or token that the batch was made with identifies its consumer no longer.";
        return Err(End::refuse(Refusal::new(
            StatusCode::UNAUTHORIZED,
            ErrorKind::Authentication,
            "invalid_api_key",
            message,
        )));
    };
    exchange.caller = Some(consumer);
    exchange.credential = mark.origin.credential;
    match proof {
        CallerProof::Key(_) => {}
        CallerProof::Certificate(certificate) => exchange.certificate = Some(certificate),
        CallerProof::Token(token) => exchange.token = Some(token),
    }
    Ok(())
}

/// Refuses a route that takes no lines, and ends a line for whose route no target has room now: before filters look at it, and
/// limits count it.
pub(super) fn check(route: &Route, exchange: &mut Exchange) -> Result<(), End> {
    if !route.takes_batches {
        let message = "The route of this model takes no batches: call it directly.";
        return Err(End::refuse(Refusal::invalid("unsupported_in_batch", message).param("model")));
    }
    let now = now_millis();
    let has_room = |target: &Target| match &target.kind {
        TargetKind::Backend(backend) => backend.room.pending() == 0 && backend.balancer.has_room(now),
        TargetKind::Model(model) => !model.is_crowded(),
    };
    if route.targets.is_empty() || route.targets.iter().any(has_room) { Ok(()) } else { Err(no_room(exchange)) }
}

/// End of a line that found no place. It is no answer and no request: nothing counts or logs it, and no limit keeps what it took.
pub(super) fn no_room(exchange: &mut Exchange) -> End {
    exchange.ledger.release();
    if let Some(line) = &exchange.line {
        line.mark.note_no_room();
    }
    End::refuse(Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Overloaded,
        "overloaded",
        "no target has room for a line of a batch",
    ))
}

/// True for a line that found no place.
pub(super) fn found_no_room(exchange: &Exchange) -> bool {
    exchange.line.as_ref().is_some_and(|line| line.mark.found_no_room())
}

/// Takes a place beside callers for a line that has a slot. False where callers wait, or lines have their share.
pub(super) fn seat_at_endpoint(backend: &Arc<Backend>, endpoint: &Endpoint, exchange: &mut Exchange) -> bool {
    let Some(line) = &mut exchange.line else { return true };
    if backend.room.pending() > 0 {
        return false;
    }
    let (here, _) = endpoint.room(now_millis(), false);
    // Places of an attempt before are free for this one.
    line.seats.clear();
    let Some(seats) = endpoint.state.seat(here, backend.balancer.max_in_flight(), line.mark.share) else {
        return false;
    };
    line.seats.extend(seats);
    let backend = backend.clone();
    line.mark.uses(move || backend.room.pending() > 0);
    true
}

/// Takes a place beside callers for a line at a built-in model. False where callers wait, or lines have their share.
pub(super) fn seat_at_model(model: &Arc<LoadedModel>, exchange: &mut Exchange) -> bool {
    let Some(line) = &mut exchange.line else { return true };
    line.seats.clear();
    let Some(seat) = model.seat(line.mark.share) else { return false };
    line.seats.push(seat);
    let model = model.clone();
    line.mark.uses(move || model.is_crowded());
    true
}
