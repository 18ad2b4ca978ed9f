//! Writes to clients: what waits for a client that does not read, how long it may wait, and the moment at which all
//! answers must end. It knows no server: what is read beside a write that waits is the business of a [`Beside`].

mod ending;
mod unread;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use pingora::ErrorType;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, sleep_until};

pub use ending::Ending;
pub use unread::{AnswerBudget, SLICE, Unread, slice};

/// State that all answers to clients share; it outlives configurations.
#[derive(Debug)]
pub struct Downstream {
    /// Memory for answers that wait for their clients.
    pub answers: AnswerBudget,
    /// The end of `shutdown.drainTimeout`.
    pub ending: Ending,
    /// Clients that were cut because they took nothing for `writeTimeout`.
    pub write_timeouts: Counter,
}

impl Downstream {
    /// State of a new process, with `bytes` of memory for answers that wait for their clients.
    pub fn new(bytes: u64, write_timeouts: Counter) -> Self {
        Self { answers: AnswerBudget::new(bytes), ending: Ending::default(), write_timeouts }
    }
}

/// Limits of one write to a client.
#[derive(Debug, Clone, Copy)]
pub struct WriteLimits<'a> {
    /// Time for the client to take it.
    pub timeout: Duration,
    /// The end of the request, whatever the client takes.
    pub deadline: Instant,
    /// State that all answers share.
    pub downstream: &'a Downstream,
}

/// Work that goes on while a client does not take what is written to it.
pub trait Beside: Send {
    /// Takes in what comes next, such as a part of the server's answer. Waits for ever where there is nothing more to
    /// take in. Can be dropped and asked again.
    fn take_in(&mut self) -> impl Future<Output = ()> + Send;
}

/// Nothing goes on beside the write.
pub struct Nothing;

impl Beside for Nothing {
    fn take_in(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Writes to a client. A write that completes at once, as most do, costs nothing besides; one that waits for the client
/// has `beside` go on meanwhile, and ends with an error when a limit is reached.
pub async fn deliver<W, B>(write: W, limits: WriteLimits<'_>, beside: &mut B) -> pingora::Result<()>
where
    W: Future<Output = pingora::Result<()>> + Send,
    B: Beside,
{
    let mut write = std::pin::pin!(write);
    match poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await {
        Poll::Ready(written) => written,
        // Few writes come here: the others need not carry what follows.
        Poll::Pending => Box::pin(wait(write, limits, beside)).await,
    }
}

async fn wait<W, B>(mut write: Pin<&mut W>, limits: WriteLimits<'_>, beside: &mut B) -> pingora::Result<()>
where
    W: Future<Output = pingora::Result<()>> + Send,
    B: Beside,
{
    let too_slow = Instant::now() + limits.timeout;
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
            // A part that is half written cannot be followed by a last word.
            () = limits.downstream.ending.over() => return pingora::Error::err(ErrorType::WriteTimedout),
            () = beside.take_in() => {}
        }
    }
}
