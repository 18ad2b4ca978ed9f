//! Writes to clients: memory for answers whose clients do not read, time limits of writes, and the moment at which all
//! answers must end. The room knows no server: a [`Beside`] reads on while a write waits.

mod ending;
mod http1;
mod http2;
mod session;
mod transport;
mod tunnel;
mod unread;

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use pingora::ErrorType;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, sleep_until};

use crate::clock::{self, at_once};
use crate::tunnel::OpenSockets;

pub use ending::Ending;
pub use http1::{GOODBYE, Http1Session, violation_of};
pub use http2::Http2Session;
pub use session::ClientSession;
pub use transport::{Transport, WriteBounded};
pub use tunnel::ClientTunnel;
pub use unread::{AnswerBudget, SLICE, Unread, slice};

/// State that all answers to clients share; it outlives configurations.
#[derive(Debug)]
pub struct Downstream {
    /// Memory for answers that wait for their clients.
    pub answers: AnswerBudget,
    /// The end of `shutdown.drainTimeout`.
    pub ending: Ending,
    /// Clients that were disconnected because they read nothing for `writeTimeout`.
    pub write_timeouts: Counter,
    /// Open sockets.
    pub sockets: OpenSockets,
}

impl Downstream {
    /// Makes the state of a new process, with `bytes` of memory for answers that wait for their clients.
    pub fn new(bytes: u64, write_timeouts: Counter) -> Self {
        Self {
            answers: AnswerBudget::new(bytes),
            ending: Ending::default(),
            write_timeouts,
            sockets: OpenSockets::default(),
        }
    }
}

/// Limits of one write to a client.
#[derive(Debug, Clone, Copy)]
pub struct WriteLimits<'a> {
    /// Time for the client to read the bytes.
    pub timeout: Duration,
    /// End of the request, however much the client reads.
    pub deadline: Instant,
    /// State that all answers share.
    pub downstream: &'a Downstream,
}

/// Work that goes on while a client does not read.
pub trait Beside: Send {
    /// Receives the next input, such as a part of the server's answer; waits for ever without further input. The future
    /// may be dropped and the method called again.
    fn take_in(&mut self) -> impl Future<Output = ()> + Send;
}

/// [`Beside`] without work.
pub struct Nothing;

impl Beside for Nothing {
    fn take_in(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Writes to a client. A write that completes at once, as most do, costs nothing more. While a write waits for the
/// client, `beside` goes on; at a limit the write fails.
///
/// The write is pinned by the caller, whose future so holds it once.
pub async fn deliver<W, B>(mut write: Pin<&mut W>, limits: WriteLimits<'_>, beside: &mut B) -> pingora::Result<()>
where
    W: Future<Output = pingora::Result<()>> + Send,
    B: Beside,
{
    match at_once(write.as_mut()).await {
        Poll::Ready(written) => written,
        // Boxed, because few writes wait: the others need not hold this state.
        Poll::Pending => Box::pin(wait(write, limits, beside)).await,
    }
}

async fn wait<W, B>(mut write: Pin<&mut W>, limits: WriteLimits<'_>, beside: &mut B) -> pingora::Result<()>
where
    W: Future<Output = pingora::Result<()>> + Send,
    B: Beside,
{
    let too_slow = clock::now() + limits.timeout;
    let mut time = std::pin::pin!(sleep_until(too_slow.min(limits.deadline)));
    loop {
        tokio::select! {
            biased;
            written = write.as_mut() => return written,
            () = time.as_mut() => {
                if too_slow <= limits.deadline {
                    limits.downstream.write_timeouts.inc();
                }
                return pingora::Error::err(ErrorType::WriteTimedout);
            }
            // After a part that is half written no error event can be sent.
            () = limits.downstream.ending.over() => return pingora::Error::err(ErrorType::WriteTimedout),
            () = beside.take_in() => {}
        }
    }
}
