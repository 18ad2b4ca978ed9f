//! A socket from its 101 to its end: both directions in one task, the limits on its time, and its end in order.
//!
//! A side that closes, or is lost, ends the socket; the other side hears of it by what the first one said, or by a close
//! frame of the gateway's. Each direction ends at a boundary between two frames, or not at all: a frame that does not end in
//! [`CLOSING`] is cut with its connection.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::direction::{Direction, Fault};
use super::end::{close_frame, close_frame_for};
use super::frames::{Frames, Side};
use super::messages::Messages;
use super::sockets::SocketGuard;
use crate::clock;
use crate::telemetry::SocketEnd;
use crate::timer::KeptTimer;

/// Time for both sides to end a socket in order: to finish the frame that has begun, and to answer a close frame. Shorter than
/// the time that a gateway gives its requests when it stops.
const CLOSING: Duration = Duration::from_secs(1);

/// Limits of a socket.
#[derive(Debug, Clone, Copy)]
pub struct SocketLimits {
    /// Longest time without a byte either way.
    pub idle: Duration,
    /// End of the longest life.
    pub lifetime_ends: Option<Instant>,
    /// End of the client's certificate.
    pub certificate_ends: Option<Instant>,
    /// Longest time for the server to take some of the bytes that wait for it.
    pub server_write: Duration,
    /// Longest time for the client to take some of the bytes that wait for it; `None` where its connection bounds its writes itself.
    pub client_write: Option<Duration>,
    /// True for WebSocket, whose frames are followed.
    pub has_frames: bool,
}

/// Facts of a socket that has ended.
#[derive(Debug, Clone, Copy)]
pub struct SocketReport {
    /// Reason of the end.
    pub end: SocketEnd,
    /// Bytes of the client.
    pub bytes_in: u64,
    /// Bytes of the server.
    pub bytes_out: u64,
}

/// Passes bytes between a client and a server until the socket ends, and shows `messages` what passes in frames. `stopping` is
/// ready when the gateway stops.
pub async fn relay<C, S>(
    (client, server): (&mut C, &mut S),
    limits: SocketLimits,
    mut messages: Option<&mut dyn Messages>,
    guard: &mut SocketGuard<'_>,
    stopping: impl Future<Output = ()>,
    timer: &mut KeptTimer,
) -> SocketReport
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let rewrites = messages.as_ref().is_some_and(|messages| messages.rewrites());
    let mut socket = Socket::new(limits, rewrites);
    let mut stopping = pin!(stopping);
    loop {
        socket.armed = socket.due();
        timer.set(socket.armed);
        tokio::select! {
            biased;
            () = stopping.as_mut(), if socket.closing_until.is_none() => socket.close(SocketEnd::ShuttingDown),
            Ok(()) = guard.ends.changed() => socket.ends_at = *guard.ends.borrow_and_update(),
            () = timer.expired() => {
                if let Some(end) = socket.overdue(clock::now()) {
                    if socket.closing_until.is_some() {
                        break;
                    }
                    socket.close(end);
                }
            }
            has_ended = poll_fn(|cx| socket.poll(cx, client, server, reborrowed(&mut messages))) => {
                if has_ended {
                    break;
                }
            }
        }
    }
    SocketReport {
        end: socket.end.unwrap_or(SocketEnd::Client),
        bytes_in: socket.up.bytes,
        bytes_out: socket.down.bytes,
    }
}

/// Borrows a reader anew.
fn reborrowed<'m>(messages: &'m mut Option<&mut dyn Messages>) -> Option<&'m mut dyn Messages> {
    match messages {
        Some(messages) => Some(&mut **messages),
        None => None,
    }
}

/// State of a socket.
struct Socket {
    limits: SocketLimits,
    /// From the client to the server.
    up: Direction,
    /// From the server to the client.
    down: Direction,
    /// Time at which a byte last moved, and the number of bytes that had moved then.
    moved: (Instant, u64),
    end: Option<SocketEnd>,
    /// Time at which an edit or an operator ends it.
    ends_at: Option<(Instant, SocketEnd)>,
    /// End of the time to end in order; `None` before the end.
    closing_until: Option<Instant>,
    /// Time for which the timer is set.
    armed: Instant,
}

impl Socket {
    fn new(limits: SocketLimits, rewrites: bool) -> Self {
        let frames = |side| limits.has_frames.then(|| Frames::new(side));
        Self {
            limits,
            up: Direction::new(frames(Side::Client), rewrites),
            down: Direction::new(frames(Side::Server), rewrites),
            moved: (clock::now(), 0),
            end: None,
            ends_at: None,
            closing_until: None,
            armed: clock::now(),
        }
    }

    /// Limits on the time of the socket, with the end that each brings.
    fn limits(&self) -> [Option<(Instant, SocketEnd)>; 6] {
        let SocketLimits { idle, lifetime_ends, certificate_ends, server_write, client_write, .. } = self.limits;
        let stalled = |direction: &Direction, within| direction.stalled.map(|since| since + within);
        [
            lifetime_ends.map(|at| (at, SocketEnd::Lifetime)),
            certificate_ends.map(|at| (at, SocketEnd::Policy)),
            self.ends_at,
            stalled(&self.up, server_write).map(|at| (at, SocketEnd::ServerSlow)),
            client_write.and_then(|within| stalled(&self.down, within)).map(|at| (at, SocketEnd::ClientSlow)),
            Some((self.moved.0 + idle, SocketEnd::Idle)),
        ]
    }

    /// Time at which the next limit is due.
    fn due(&self) -> Instant {
        let limits = self.limits();
        let next = || limits.iter().flatten().map(|(at, _)| *at).min();
        // A limit is always there: that on idle time.
        self.closing_until.or_else(next).unwrap_or_else(clock::now)
    }

    /// End that a limit which is over brings; while the socket ends, the one that it has.
    fn overdue(&self, now: Instant) -> Option<SocketEnd> {
        if let Some(until) = self.closing_until {
            return self.end.filter(|_| until <= now);
        }
        self.limits().iter().flatten().find(|(at, _)| *at <= now).map(|(_, end)| *end)
    }

    /// Begins to end the socket: each side gets a close frame where its frames may be followed by one.
    fn close(&mut self, end: SocketEnd) {
        self.ends(end);
        match end {
            // No byte reaches a side that does not read.
            SocketEnd::ServerSlow => self.up.stop(),
            SocketEnd::ClientSlow => self.down.stop(),
            _ => {}
        }
        self.up.close(close_frame(end, Side::Client));
        self.down.close(close_frame(end, Side::Server));
    }

    /// Ends the socket of a caller that has reached a limit.
    fn refuse(&mut self, reason: &str) {
        self.ends(SocketEnd::Limit);
        let to_server = close_frame_for(SocketEnd::Limit, reason, Side::Client);
        self.up.refuse(&to_server);
        self.up.close(to_server);
        self.down.close(close_frame_for(SocketEnd::Limit, reason, Side::Server));
    }

    fn ends(&mut self, end: SocketEnd) {
        self.end.get_or_insert(end);
        self.closing_until.get_or_insert_with(|| clock::now() + CLOSING);
    }

    /// Passes bytes both ways, until all sides wait. Ready with true once the socket has ended, with false where it is to be
    /// polled again, or the timer must fire earlier than it was set for.
    fn poll<C, S>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        server: &mut S,
        mut messages: Option<&mut dyn Messages>,
    ) -> Poll<bool>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut has_failed = false;
        if !self.up.is_done()
            && let Poll::Ready(Err(fault)) = self.up.poll_pass(cx, client, server, reborrowed(&mut messages))
        {
            match (&fault, &messages) {
                (Fault::Refused, Some(messages)) => self.refuse(messages.reason()),
                _ => self.client_failed(&fault),
            }
            has_failed = true;
        }
        if !self.down.is_done()
            && let Poll::Ready(Err(fault)) = self.down.poll_pass(cx, server, client, reborrowed(&mut messages))
        {
            self.server_failed(&fault);
            has_failed = true;
        }
        if let Some(messages) = &mut messages
            && self.closing_until.is_none()
            && messages.must_end(cx)
        {
            self.refuse(messages.reason());
            has_failed = true;
        }
        self.note_finished();
        // Behind the close frames of both, a client that stays connected holds no slot of its server.
        let is_over = self.up.is_done() || (self.up.has_closed() && self.down.has_ended());
        if is_over && self.down.is_done() {
            return Poll::Ready(true);
        }
        let moved = self.up.moved.saturating_add(self.down.moved);
        if moved != self.moved.1 {
            self.moved = (clock::now(), moved);
        }
        // Both directions are polled again behind a failure, which has changed what they do.
        if has_failed || self.due() < self.armed { Poll::Ready(false) } else { Poll::Pending }
    }

    /// Notes which side has ended the socket. The time to end in order begins when both have sent a close frame, and when a
    /// server of WebSocket has ended its side: its slot is not held for a client that does not leave.
    fn note_finished(&mut self) {
        if self.end.is_none() {
            self.end = match (self.up.has_finished(), self.down.has_finished()) {
                (true, _) => Some(SocketEnd::Client),
                (false, true) => Some(SocketEnd::Server),
                (false, false) => None,
            };
        }
        let is_closed = self.up.has_closed() && self.down.has_closed();
        if let Some(end) = self.end
            && (is_closed || (self.limits.has_frames && self.down.has_ended()))
        {
            self.ends(end);
        }
    }

    /// Ends a direction whose bytes came from the client.
    fn client_failed(&mut self, fault: &Fault) {
        match fault {
            Fault::Read if self.up.has_closed() => {
                self.ends(SocketEnd::Client);
                self.up.end(None);
            }
            Fault::Read => {
                self.ends(SocketEnd::ClientLost);
                self.up.end(Some(close_frame(SocketEnd::ClientLost, Side::Client)));
                self.down.stop();
            }
            // What the server has said before it was lost still goes to the client.
            Fault::Write { is_slow } => {
                let end = if *is_slow { SocketEnd::ServerSlow } else { SocketEnd::ServerLost };
                self.up.stop();
                self.down.close_at_end(close_frame(end, Side::Server));
                self.ends(if self.down.has_finished() { SocketEnd::Server } else { end });
            }
            Fault::Malformed(error) => self.malformed(SocketEnd::ClientMalformed, error),
            // A refusal needs a reader, which says why.
            Fault::Refused => self.refuse(""),
        }
    }

    /// Ends a direction whose bytes came from the server.
    fn server_failed(&mut self, fault: &Fault) {
        match fault {
            Fault::Read if self.down.has_closed() => {
                self.ends(SocketEnd::Server);
                self.down.end(None);
            }
            Fault::Read => {
                self.ends(SocketEnd::ServerLost);
                self.down.end(Some(close_frame(SocketEnd::ServerLost, Side::Server)));
                self.up.stop();
            }
            Fault::Write { is_slow } => {
                let end = if *is_slow { SocketEnd::ClientSlow } else { SocketEnd::ClientLost };
                self.down.stop();
                self.up.close_at_end(close_frame(end, Side::Client));
                self.ends(if self.up.has_finished() { SocketEnd::Client } else { end });
            }
            Fault::Malformed(error) => self.malformed(SocketEnd::ServerMalformed, error),
            Fault::Refused => self.refuse(""),
        }
    }

    /// Ends a socket whose frames cannot be followed. The side that reads them gets the end of its connection, since no frame
    /// of the gateway's can follow; the one that sent them gets a close frame.
    fn malformed(&mut self, end: SocketEnd, error: &super::FrameError) {
        tracing::debug!(event = "socket_malformed", side = crate::telemetry::Label::as_str(end), error = %error);
        self.ends(end);
        let (bad, good, from) = match end {
            SocketEnd::ClientMalformed => (&mut self.up, &mut self.down, Side::Server),
            _ => (&mut self.down, &mut self.up, Side::Client),
        };
        bad.end(None);
        good.close(close_frame(end, from));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::super::sockets::{OpenSockets, SocketFacts};
    use super::*;

    fn limits() -> SocketLimits {
        let minute = Duration::from_secs(60);
        SocketLimits {
            idle: minute,
            lifetime_ends: None,
            certificate_ends: None,
            server_write: minute,
            client_write: Some(minute),
            has_frames: true,
        }
    }

    fn facts() -> SocketFacts {
        let (route, url, endpoint) = (String::new(), String::new(), String::new());
        let listener = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        SocketFacts { listener, route, caller: None, backend: "b".into(), url, endpoint, generation: 1 }
    }

    /// Frame of a server with a payload of such a length.
    fn frame(length: usize) -> Vec<u8> {
        let mut bytes = vec![0x82];
        match u8::try_from(length) {
            Ok(length @ 0..=125) => bytes.push(length),
            _ => {
                bytes.push(126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + length, 0x88);
        bytes
    }

    /// Bytes that a client gets of frames that its server sends in parts, where the socket is ended behind some of the parts.
    async fn passed(bytes: &[u8], parts: &[usize], ended_behind: usize, room: usize) -> (Vec<u8>, SocketReport) {
        let ((mut client, mut near), (mut server, mut far)) = (duplex(room), duplex(room));
        let sockets = OpenSockets::default();
        let mut guard = sockets.enter(facts(), None);
        let mut timer = KeptTimer::default();
        let relayed = async {
            let stopping = std::future::pending();
            let report = relay((&mut client, &mut server), limits(), None, &mut guard, stopping, &mut timer).await;
            drop((client, server));
            report
        };
        let sent = async {
            let mut rest = bytes;
            for (n, part) in parts.iter().cycle().enumerate() {
                if n == ended_behind {
                    sockets.drain_where(Some(Instant::now()), |_| true);
                    tokio::task::yield_now().await;
                }
                let (now, later) = rest.split_at(rest.len().min(*part));
                if now.is_empty() || far.write_all(now).await.is_err() {
                    break;
                }
                rest = later;
            }
            let _ = far.shutdown().await;
            // What the gateway says to the server.
            let mut said = Vec::new();
            let _ = far.read_to_end(&mut said).await;
        };
        let read = async {
            let mut read = Vec::new();
            let _ = near.read_to_end(&mut read).await;
            read
        };
        let (report, (), read) = tokio::join!(relayed, sent, read);
        (read, report)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_socket_that_is_ended_at_any_time_ends_between_two_frames(
            lengths in prop::collection::vec(prop_oneof![0..10usize, 120..130usize, 1000..40_000usize], 1..8),
            parts in prop::collection::vec(1..9000usize, 1..20),
            ended_behind in 0..30usize,
            room in prop_oneof![1..100usize, 1000..100_000usize],
        ) {
            let frames: Vec<Vec<u8>> = lengths.iter().map(|length| frame(*length)).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let (read, report) = runtime.block_on(passed(&frames.concat(), &parts, ended_behind, room));
            let mut rest = read.as_slice();
            for frame in &frames {
                match rest.strip_prefix(frame.as_slice()) {
                    Some(behind) => rest = behind,
                    None => break,
                }
            }
            if report.end == SocketEnd::Drained {
                prop_assert_eq!(rest, close_frame(SocketEnd::Drained, Side::Server));
            } else {
                prop_assert!(rest.is_empty() && read.len() == frames.concat().len(), "{:?}", report.end);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_socket_ends_in_its_time_and_one_that_pings_does_not() {
        let ((mut client, mut near), (mut server, mut far)) = (duplex(100), duplex(100));
        let sockets = OpenSockets::default();
        let mut guard = sockets.enter(facts(), None);
        let (mut timer, begun) = (KeptTimer::default(), Instant::now());
        let relayed = async {
            let stopping = std::future::pending();
            let report = relay((&mut client, &mut server), limits(), None, &mut guard, stopping, &mut timer).await;
            drop((client, server));
            report
        };
        let pings = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                near.write_all(&[0x89, 0x80, 1, 2, 3, 4]).await.unwrap();
            }
            let (mut up, mut down) = (Vec::new(), Vec::new());
            far.read_to_end(&mut up).await.unwrap();
            near.read_to_end(&mut down).await.unwrap();
            (up, down)
        };
        let (report, (up, down)) = tokio::join!(relayed, pings);
        // Five pauses, the idle time, and the time in which nobody answered the close frames.
        assert_eq!((report.end, begun.elapsed().as_secs()), (SocketEnd::Idle, 5 * 50 + 60 + 1));
        let close = close_frame(SocketEnd::Idle, Side::Server);
        assert_eq!((down, up.len()), (close.clone(), 5 * 6 + close.len() + 4));
    }
}
