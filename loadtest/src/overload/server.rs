//! A scripted upstream with fixed places and a fixed service time, run as a process of its own so that it can be stopped
//! and killed like one. It answers `GET` with the head after the service time and a body of a known length.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::stream;
use http::Response;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// What every whole answer has.
pub(super) const BODY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// What is wrong with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// A connection is looked at only after two seconds.
    SlowAccept,
    /// One byte of the body a second.
    OneBytePerSecond,
    /// Every other answer is 502.
    HalfErrors,
    /// The connection is reset after half of the body.
    ResetInBody,
}

/// Runs a scripted upstream.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Requests at a time; a further one waits.
    #[arg(long)]
    slots: usize,
    /// Milliseconds of one.
    #[arg(long)]
    service: u64,
    /// The port; any free one when 0.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// What is wrong with it.
    #[arg(long, value_enum, default_value = "none")]
    fault: Fault,
    /// Milliseconds from the start after which it goes wrong.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Milliseconds from the start after which it is well again.
    #[arg(long, default_value_t = u64::MAX)]
    until: u64,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

impl Server {
    /// Listens, prints the port and answers until it is killed.
    pub(crate) async fn run(self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let began = Instant::now();
        println!("{}", listener.local_addr().unwrap().port());
        let slots = Arc::new(Semaphore::new(self.slots));
        let count = Arc::new(AtomicUsize::new(0));
        let service = Duration::from_millis(self.service);
        let now = move || {
            let wrong = (self.from..self.until).contains(&(began.elapsed().as_millis() as u64));
            if wrong { self.fault } else { Fault::None }
        };
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (slots, count) = (slots.clone(), count.clone());
            tokio::spawn(async move {
                if now() == Fault::SlowAccept {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                let answer = service_fn(move |_: http::Request<Incoming>| {
                    let (slots, count) = (slots.clone(), count.clone());
                    async move {
                        let _slot = slots.acquire().await.unwrap();
                        tokio::time::sleep(service).await;
                        let n = count.fetch_add(1, Ordering::Relaxed);
                        Ok::<_, std::io::Error>(answer(now(), n))
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }
}

fn answer(fault: Fault, n: usize) -> Response<Body> {
    let status = if fault == Fault::HalfErrors && n.is_multiple_of(2) { 502 } else { 200 };
    let step = if fault == Fault::OneBytePerSecond { 1 } else { BODY.len() / 2 };
    let parts = BODY.chunks(step).enumerate();
    let frames = stream::unfold(parts, move |mut parts| async move {
        let (n, part) = parts.next()?;
        if n > 0 && fault == Fault::OneBytePerSecond {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let frame = match fault {
            Fault::ResetInBody if n > 0 => {
                // The first half must be on its way, or nothing of the answer would be seen.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::other("on purpose"))
            }
            _ => Ok(Frame::data(Bytes::from_static(part))),
        };
        Some((frame, parts))
    });
    Response::builder()
        .status(status)
        .header("content-length", BODY.len())
        .body(StreamBody::new(frames).boxed_unsync())
        .unwrap()
}
