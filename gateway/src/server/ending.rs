//! End of serving: a signal that ends the process, or a hand-over to a new one; then the drain.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};

use crate::gateway::Gateway;
use crate::handover::{HandOverError, HandOverOrder, HandOvers, NoHandOver, Place, Program, Successor};
use crate::limits::Limits;
use crate::listener::{FIRST_HEAD, ListenerSet};
use crate::signals::Signals;

/// Time between two looks at the progress of a drain: no request waits for it.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Time for requests to end with an error after the drain timeout.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for idle connections to close in order.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Reason why the process serves no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// SIGTERM or SIGINT.
    Signal(&'static str),
    /// The process of this number serves.
    HandedOver(u32),
}

/// Parts that a hand-over needs.
pub(super) struct HandingOver {
    pub(super) gateway: Arc<Gateway>,
    pub(super) listeners: Arc<ListenerSet>,
    pub(super) limits: Limits,
    pub(super) program: Program,
    /// Sockets of the admin address and of the metrics.
    pub(super) admin_sockets: Vec<(Place, std::net::TcpListener)>,
    pub(super) hand_overs: Arc<HandOvers>,
    /// True where routes come from elsewhere than the file too.
    pub(super) has_discovery: bool,
}

/// Hand-over under way; ends with the number of the process that serves.
type UnderWay = Pin<Box<dyn Future<Output = Result<u32, HandOverError>> + Send>>;

/// Requests for a hand-over.
pub(super) struct HandOverRequests {
    quit: Option<Signal>,
    orders: mpsc::Receiver<HandOverOrder>,
}

impl HandOverRequests {
    /// Requests by SIGQUIT and by `orders`. A signal that came before the gateway was ready is reported and dropped.
    pub(super) fn new(signals: &mut Signals, orders: mpsc::Receiver<HandOverOrder>) -> Self {
        let mut quit = signals.take_quit();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        if quit.as_mut().is_some_and(|quit| quit.poll_recv(&mut context).is_ready()) {
            tracing::warn!(event = "hand_over_refused", reason = %NoHandOver::Starting);
        }
        Self { quit, orders }
    }

    /// Next request; `None` is one by signal, to which nobody waits for an answer.
    async fn next(&mut self) -> Option<HandOverOrder> {
        let signalled = async {
            match &mut self.quit {
                Some(quit) => quit.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = signalled => None,
            Some(order) = self.orders.recv() => Some(order),
        }
    }

    /// Refuses all further requests.
    pub(super) async fn refuse(mut self) {
        loop {
            answer(self.next().await, Err(NoHandOver::Leaving));
        }
    }
}

/// Answers a request for a hand-over; a refusal of one by signal stands in the log.
fn answer(order: Option<HandOverOrder>, answer: Result<u32, NoHandOver>) {
    if let Err(reason) = &answer {
        tracing::warn!(event = "hand_over_refused", reason = %reason);
    }
    if let Some(order) = order {
        // The client may have left.
        let _ = order.send(answer);
    }
}

impl HandingOver {
    /// Serves until SIGTERM, SIGINT or a hand-over; SIGHUP reloads.
    pub(super) async fn wait_for_end(
        &self,
        reload: &mpsc::Sender<()>,
        signals: &mut Signals,
        requests: &mut HandOverRequests,
    ) -> Ending {
        let mut hang_up = signals.take_hang_up();
        let mut under_way: Option<(u32, UnderWay, watch::Sender<Option<&'static str>>)> = None;
        loop {
            let asked = async {
                match &mut hang_up {
                    Some(hang_up) => hang_up.recv().await,
                    None => std::future::pending().await,
                }
            };
            let handed_over = async {
                match &mut under_way {
                    Some((_, hand_over, _)) => hand_over.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                name = signals.end() => {
                    tracing::info!(event = "stopping", signal = name);
                    if let Some((_, hand_over, stop)) = under_way.take() {
                        stop.send_replace(Some(name));
                        // The new process ends too, whether it serves already or not.
                        let _ = hand_over.await;
                    }
                    return Ending::Signal(name);
                }
                _ = asked => {
                    // One waiting reload covers all requests that come meanwhile.
                    let _ = reload.try_send(());
                }
                done = handed_over => {
                    let pid = under_way.take().map_or(0, |(pid, ..)| pid);
                    match done {
                        Ok(pid) => {
                            self.hand_overs.handed_over(pid);
                            tracing::info!(event = "handed_over", pid, requests = self.gateway.running());
                            return Ending::HandedOver(pid);
                        }
                        Err(e) => {
                            self.gateway.metrics.process.hand_overs_failed.inc();
                            tracing::error!(event = "hand_over_failed", pid, reason = %e, "this process goes on");
                            self.hand_overs.failed(pid, e.to_string());
                        }
                    }
                }
                order = requests.next() => match &under_way {
                    Some((pid, ..)) => answer(order, Err(NoHandOver::UnderWay(*pid))),
                    None => match self.start() {
                        Ok((pid, successor)) => {
                            tracing::info!(event = "hand_over_started", pid);
                            self.hand_overs.started(pid);
                            let stop = watch::Sender::new(None);
                            under_way = Some((pid, self.carry_out(pid, successor, stop.subscribe()), stop));
                            answer(order, Ok(pid));
                        }
                        Err(e) => answer(order, Err(e)),
                    },
                },
            }
        }
    }

    fn start(&self) -> Result<(u32, Successor), NoHandOver> {
        // The end of the first process of a container is the end of the container.
        if std::process::id() == 1 {
            return Err(NoHandOver::FirstProcess);
        }
        if self.has_discovery {
            return Err(NoHandOver::Discovers);
        }
        let started = self.sockets().map_err(HandOverError::Sockets).and_then(|sockets| {
            let successor = Successor::start(&self.program, &sockets)?;
            let pid = successor.id().unwrap_or(0);
            Ok((pid, successor))
        });
        started.map_err(|e| {
            self.gateway.metrics.process.hand_overs_failed.inc();
            NoHandOver::NotStarted(e.to_string())
        })
    }

    fn sockets(&self) -> std::io::Result<Vec<(Place, Socket)>> {
        let mut sockets = self.listeners.sockets()?;
        for (place, socket) in &self.admin_sockets {
            sockets.push((*place, Socket::from(socket.try_clone()?)));
        }
        Ok(sockets)
    }

    /// Carries a hand-over out. Whatever fails, the new process is ended and this one goes on as before.
    fn carry_out(
        &self,
        pid: u32,
        mut successor: Successor,
        mut stop: watch::Receiver<Option<&'static str>>,
    ) -> UnderWay {
        let (gateway, limits) = (self.gateway.clone(), self.limits.clone());
        Box::pin(async move {
            let start_timeout = gateway.snapshot.load().hand_over.start_timeout.0;
            let handing_over = async {
                successor.ready(start_timeout).await?;
                // The stores, as they are at this moment, for the new process to read.
                let (rollouts, quality) = tokio::join!(gateway.rollouts.exchange(), gateway.quality.pause());
                let exchanging = limits.clone();
                let budgets = tokio::task::spawn_blocking(move || exchanging.exchange()).await.unwrap_or(false);
                if !(rollouts && quality && budgets) {
                    tracing::warn!(event = "hand_over_behind", rollouts, quality, budgets);
                }
                successor.begin().await
            };
            let done = tokio::select! {
                done = handing_over => done,
                Ok(signal) = async { stop.wait_for(Option::is_some).await.map(|signal| signal.unwrap_or_default()) } => {
                    Err(HandOverError::Stopped(signal))
                }
            };
            let Err(e) = done else { return Ok(pid) };
            successor.end().await;
            gateway.quality.resume().await;
            gateway.rollouts.lead_again().await;
            Err(e)
        })
    }
}

/// Reports that the gateway drains, and goes on taking requests for `shutdown.delay`: load balancers need some time until
/// they send no more. A further SIGINT ends the wait.
async fn announce_drain(gateway: &Gateway, signals: &mut Signals) {
    gateway.phase.drain();
    let delay = gateway.snapshot.load().shutdown_delay;
    if delay.is_zero() {
        return;
    }
    tracing::info!(event = "drain_delayed", seconds = delay.as_secs_f64(), "requests are still taken");
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = signals.end_at_once() => {}
    }
}

/// Waits for running requests, up to the drain timeout. Then it ends the rest: event streams with an error event, requests
/// without an answer with 503. A further SIGINT, as a person at a terminal sends it, ends the wait; a further SIGTERM does
/// not, because supervisors repeat and forward it.
pub(super) async fn drain(gateway: &Gateway, listeners: &ListenerSet, signals: &mut Signals) {
    announce_drain(gateway, signals).await;
    listeners.stop();
    let limit = gateway.snapshot.load().drain_timeout;
    finish_requests(gateway, limit, signals.end_at_once()).await;
}

/// Ends the process that has handed over: no connection is accepted any more, and each ends with the answer to its next
/// request, or when it has been idle for `idleTimeout`. Running requests have `drainTimeout` of the hand-over; from SIGTERM or
/// SIGINT on they have that of a drain.
pub(super) async fn leave(gateway: &Gateway, listeners: &ListenerSet, signals: &mut Signals) {
    gateway.phase.hand_over();
    listeners.leave();
    let snapshot = gateway.snapshot.load_full();
    let (idle, limit) = (snapshot.hand_over.idle_timeout.0, snapshot.hand_over.drain_timeout.0);
    let began = Instant::now();
    let mut hurried = tokio::select! {
        () = wait_while(idle, || gateway.connections() > 0) => None,
        signal = signals.end() => Some(signal),
    };
    listeners.stop();
    if hurried.is_none() {
        let left = limit.saturating_sub(began.elapsed());
        let waiting = wait_while(left, || gateway.running() > 0);
        hurried = tokio::select! {
            () = waiting => None,
            signal = signals.end() => Some(signal),
        };
    }
    let limit = match hurried {
        Some(signal) => {
            tracing::info!(event = "stopping", signal);
            snapshot.drain_timeout
        }
        None => Duration::ZERO,
    };
    finish_requests(gateway, limit, signals.end_at_once()).await;
}

/// Waits for running requests up to `limit`, or until `hurry`, and ends the rest.
async fn finish_requests(gateway: &Gateway, limit: Duration, hurry: impl Future<Output = ()>) {
    let started = Instant::now();
    tokio::pin!(hurry);
    let begins = |since: Instant| gateway.connections() > 0 && since.elapsed() < FIRST_HEAD + DRAIN_POLL;
    while gateway.running() > 0 || begins(started) {
        if started.elapsed() >= limit && gateway.running() > 0 {
            tracing::warn!(event = "drain_timeout", requests = gateway.running(), seconds = limit.as_secs_f64());
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(DRAIN_POLL) => {}
            () = &mut hurry => break,
        }
    }
    if gateway.running() > 0 {
        gateway.downstream.ending.begin();
        wait_while(END_TIMEOUT, || gateway.running() > 0).await;
    }
    // The last answer is written; its connection needs a moment to close in order.
    tokio::time::sleep(DRAIN_POLL).await;
    wait_while(CLOSE_TIMEOUT, || gateway.connections() > 0).await;
}

async fn wait_while(limit: Duration, goes_on: impl Fn() -> bool) {
    let started = Instant::now();
    while goes_on() && started.elapsed() < limit {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}
