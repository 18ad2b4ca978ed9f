//! Probes of `routes[].quality`: requests of the gateway's own. They go the way of requests from the route on: translated, with
//! the credentials and the model names of their target, through a session like any other. They pass no filter and no limit, wait
//! for no slot, are never spilled, and count for nobody: not in limits, metrics of requests, rollouts or drift.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::Method;
use prometheus_client::metrics::counter::Counter;
use spillway_config::schema::{EncodedSlashes, ListenerLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::asking::{hold_body, named_in_path, peek};
use super::begin::new_request_id;
use super::direct::Direct;
use super::translating::{self, Source};
use super::trying::Try;
use super::{affinity, builtin};
use crate::admission::{Order, TargetSelection};
use crate::balancing::Closed;
use crate::builtin::{LoadedModel, is_idle};
use crate::clock::now_millis;
use crate::downstream::{ClientSession, Http1Session, Transport, WriteBounded};
use crate::exchange::{ConnectionInfo, End, Exchange, ListenerFacts};
use crate::gateway::Gateway;
use crate::quality::{Ask, Asked, Asker, ProbeAnswer, Skipped, Tap};
use crate::telemetry::{ListenerMetrics, Metrics, Span};
use crate::topology::{Backend, Route, TargetKind};
use crate::upstream::{AttemptOutcome, Failure};

/// Name of the listener that probes come from, which no configuration has.
const LISTENER: &str = "probes";
/// Time between two looks at whether a caller waits for the target of a probe.
const LOOK: Duration = Duration::from_millis(50);
/// Most times that a probe is sent again because its server had ended a kept connection.
const MOST_RESENDS: u32 = 3;
/// Bytes of an answer that are read at a time.
const READ: usize = 4 << 10;

/// Way of probes through the gateway.
pub struct Prober {
    /// The gateway owns what calls this.
    gateway: Weak<Gateway>,
    connection: ConnectionInfo,
    metrics: Arc<ListenerMetrics>,
}

impl Prober {
    /// Way through this gateway.
    pub fn new(gateway: &Arc<Gateway>) -> Self {
        let facts = ListenerFacts {
            name: LISTENER.into(),
            encoded_slashes: EncodedSlashes::default(),
            health_path: None,
            loop_header: false,
            via: false,
            limits: ListenerLimits::default(),
            trusted: None,
        };
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            gateway: Arc::downgrade(gateway),
            connection: ConnectionInfo::new(here, here, None, facts),
            // Of no listener that anybody sees.
            metrics: Metrics::new().listener(LISTENER),
        }
    }

    /// Session of one request, and the end of its client.
    fn session(&self, timeout: Duration) -> std::io::Result<(ClientSession, UnixStream)> {
        let (server, client) = UnixStream::pair()?;
        let stream = WriteBounded::new(Transport::Inside(server), timeout, Counter::default());
        let most = self.connection.limits.max_header_bytes.0;
        Ok((ClientSession::http1(Http1Session::new(stream, most, self.metrics.clone())), client))
    }

    async fn through(&self, gateway: &Arc<Gateway>, ask: &Ask) -> Result<Asked, Failed> {
        let snapshot = gateway.snapshot.load_full();
        // A reload may have taken it away; its own probes are taken back soon.
        let Some(route) = snapshot.routes.named(&ask.route).cloned() else {
            return Ok(Asked::Skipped(Skipped::Unavailable));
        };
        let Some(target) = route.targets.iter().find(|target| *target.name == *ask.target) else {
            return Ok(Asked::Skipped(Skipped::Unavailable));
        };
        if let Some(skipped) = closed(&target.kind) {
            return Ok(Asked::Skipped(skipped));
        }
        let (mut session, client) = self.session(ask.timeout)?;
        let began = Instant::now();
        let serving = async {
            let Some(http1) = session.as_http1() else { return Err(Failed("no session".to_owned())) };
            if !http1.read_request().await.map_err(|e| Failed(e.to_string()))? {
                return Err(Failed("no request".to_owned()));
            }
            let head = session.req_header();
            let off_loop = gateway.off_loop.clone();
            let (id, span) = (new_request_id(), Span::none());
            let begun = Exchange::begin(snapshot.clone(), &self.connection, &head.headers, id, span, off_loop);
            let mut exchange = Box::new(begun);
            exchange.is_probe = true;
            exchange.refuses_fallback = true;
            exchange.callers_time = Some(ask.timeout);
            exchange.taps.get_or_insert_default().quality = Some(Tap::alone(&head.headers));
            match serve(gateway, &route, &target.kind, &mut session, &mut exchange).await? {
                None => Ok(answered(*exchange, began)),
                Some(skipped) => Ok(Asked::Skipped(skipped)),
            }
        };
        let mut serving = pin!(serving);
        let mut pumping = pin!(pump(client, ask));
        tokio::select! {
            asked = serving.as_mut() => asked,
            failed = pumping.as_mut() => Err(failed),
            () = callers_wait(&target.kind) => Ok(Asked::Skipped(Skipped::Busy)),
            () = tokio::time::sleep(ask.timeout) => Err(Failed(format!("no answer within {:?}", ask.timeout))),
        }
    }
}

/// Reason why there is no answer.
struct Failed(String);

impl From<std::io::Error> for Failed {
    fn from(e: std::io::Error) -> Self {
        Self(e.to_string())
    }
}

impl From<End> for Failed {
    fn from(end: End) -> Self {
        Self(match end {
            End::Refuse(refusal) => refusal.message.into_owned(),
            End::Answer(answer) => format!("status {}", answer.status),
            End::ClientGone => "the answer broke off".to_owned(),
        })
    }
}

/// Facts that the tap and the outcome have of an answer that was read to its end.
fn answered(exchange: Exchange, began: Instant) -> Asked {
    let Exchange { outcome, taps, asked, .. } = exchange;
    let Some(answer) = taps.and_then(|taps| taps.quality).map(Tap::into_answer) else {
        return Asked::Failed("no answer".to_owned());
    };
    let told = outcome.prompt_tokens.is_some() || outcome.completion_tokens.is_some();
    let tokens = outcome.prompt_tokens.unwrap_or(0).saturating_add(outcome.completion_tokens.unwrap_or(0));
    Asked::Answered(Box::new(ProbeAnswer {
        status: outcome.reported.unwrap_or(outcome.status),
        body: answer.bytes,
        is_cut: answer.is_cut || outcome.broken,
        coding: answer.coding,
        json: answer.json,
        asked: asked.and_then(|asked| asked.model),
        model: outcome.model_answered,
        tokens: told.then_some(tokens),
        took: outcome.answered_in.unwrap_or_else(|| began.elapsed()),
    }))
}

#[async_trait::async_trait]
impl Asker for Prober {
    async fn ask(&self, ask: Ask) -> Asked {
        let Some(gateway) = self.gateway.upgrade() else { return Asked::Skipped(Skipped::Unavailable) };
        match Box::pin(self.through(&gateway, &ask)).await {
            Ok(asked) => asked,
            Err(Failed(reason)) => Asked::Failed(reason),
        }
    }
}

/// Sends the request, and throws its answer away, which the tap has read.
async fn pump(mut client: UnixStream, ask: &Ask) -> Failed {
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: localhost\r\nuser-agent: spillway-probe/{}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        ask.path,
        env!("CARGO_PKG_VERSION"),
        ask.body.len()
    );
    let (mut reader, mut writer) = client.split();
    let sending = async {
        writer.write_all(head.as_bytes()).await?;
        writer.write_all(&ask.body).await
    };
    if let Err(e) = sending.await {
        return e.into();
    }
    let mut thrown_away = [0; READ];
    loop {
        match reader.read(&mut thrown_away).await {
            // What follows is known by the other end.
            Ok(0) => return std::future::pending().await,
            Ok(_) => {}
            Err(e) => return e.into(),
        }
    }
}

/// Reason why a target gets no probe now: callers wait for it, it has no room, or it is not there.
fn closed(target: &TargetKind) -> Option<Skipped> {
    match target {
        TargetKind::Backend(backend) if !backend.is_available() => Some(Skipped::Unavailable),
        TargetKind::Backend(backend) if backend.room.pending() > 0 => Some(Skipped::Busy),
        TargetKind::Backend(_) => None,
        TargetKind::Model(model) => match is_idle(model) {
            None => Some(Skipped::Unavailable),
            Some(is_idle) => (!is_idle).then_some(Skipped::Busy),
        },
    }
}

/// Waits until a caller waits for the target.
async fn callers_wait(target: &TargetKind) {
    let TargetKind::Backend(backend) = target else { return std::future::pending().await };
    while backend.room.pending() == 0 {
        tokio::time::sleep(LOOK).await;
    }
}

/// Sends the request to its target and reads the answer to its end.
async fn serve(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    target: &TargetKind,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Option<Skipped>, Failed> {
    let head = session.req_header();
    exchange.resolve(&Method::POST, head.uri.path());
    if exchange.resolved.is_shared() && route.calls_models {
        exchange.resolve_as(exchange.resolved.on_models());
    }
    exchange.route = Some(route.clone());
    let within = exchange.deadline(route).saturating_duration_since(tokio::time::Instant::now());
    hold_body(gateway, session, exchange, route.max_body, within).await?;
    exchange.asked = match named_in_path(route, session, exchange) {
        Some(asked) => Some(asked),
        None => peek(session, exchange, true).await?,
    };
    match target {
        TargetKind::Backend(backend) => at_backend(gateway, route, backend, session, exchange).await,
        TargetKind::Model(model) => at_model(route, model, session, exchange).await,
    }
}

async fn at_backend(
    gateway: &Arc<Gateway>,
    route: &Arc<Route>,
    backend: &Arc<Backend>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Option<Skipped>, Failed> {
    let written = translating::rewritten(backend, Source { route, session, exchange }).await?;
    let written = written.map_err(|refusal| Failed::from(End::Refuse(refusal)))?;
    let mut selection = TargetSelection::new(Order::default());
    let mut resends = 0;
    loop {
        let key = affinity::key(backend, session, exchange);
        let Some((endpoint, slot)) = selection.admit_at(backend, now_millis(), rand::random(), key) else {
            return Ok(Some(Skipped::Busy));
        };
        let now = now_millis();
        let has_room = backend.balancer.has_room(now);
        // In panic mode callers get endpoints that are ejected, and an endpoint whose last slot this is counts as full.
        let mut closed = backend.balancer.passed_over(now).into_iter();
        match closed.find(|(other, _)| Arc::ptr_eq(&other.state, &endpoint.state)) {
            None => {}
            Some((_, Closed::Full(_))) if slot.in_flight_at_start() <= 1 => {}
            Some((_, Closed::Full(_))) => return Ok(Some(Skipped::Busy)),
            Some(_) => return Ok(Some(Skipped::Unavailable)),
        }
        // The last slot of the backend is for callers, unless nobody is at this endpoint.
        if slot.in_flight_at_start() > 1 && !has_room {
            return Ok(Some(Skipped::Busy));
        }
        let mut this = Try::probe(gateway, route, backend, endpoint, slot);
        this.rewrite(written.clone());
        return match this.run_probe(session, exchange).await {
            AttemptOutcome::Answered => Ok(None),
            AttemptOutcome::Full(_) => Ok(Some(Skipped::Busy)),
            AttemptOutcome::Refused(refusal) => Err(End::Refuse(refusal).into()),
            // The server ended a connection that was kept, as it may.
            AttemptOutcome::Failed(Failure::Stale(_) | Failure::Unprocessed { .. })
                if resends < MOST_RESENDS && exchange.body.can_resend(session) =>
            {
                resends += 1;
                selection = TargetSelection::new(Order::default());
                continue;
            }
            AttemptOutcome::Failed(failure) => Err(Failed(failure.as_str().to_owned())),
            AttemptOutcome::Broken(cut) => Err(Failed(cut.as_str().to_owned())),
            AttemptOutcome::Died(died) => Err(Failed(died.cut.as_str().to_owned())),
            _ => Err(End::ClientGone.into()),
        };
    }
}

async fn at_model(
    route: &Route,
    model: &Arc<LoadedModel>,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<Option<Skipped>, Failed> {
    match builtin::direct(route, model, session, exchange).await? {
        Direct::Answered => Ok(None),
        Direct::NoRoom => Ok(Some(Skipped::Busy)),
        Direct::Unable(refusal) => Err(End::Refuse(refusal).into()),
    }
}
