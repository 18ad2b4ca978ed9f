//! Scripted upstream with fixed slots and a fixed service time, run as a process of its own so that it can be stopped
//! and killed. Answers `GET` with the head after the service time and a body of a known length.

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

/// Body of every complete answer.
pub(super) const BODY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Fault of a scripted server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Fault {
    /// No fault.
    None,
    /// Connections are accepted two seconds late.
    SlowAccept,
    /// The body is sent at one byte a second.
    OneBytePerSecond,
    /// Every other answer is 502.
    HalfErrors,
    /// The connection is reset after half of the body.
    ResetInBody,
}

/// Runs a scripted upstream.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Most requests at the same time; further ones wait.
    #[arg(long)]
    slots: usize,
    /// Milliseconds of a request.
    #[arg(long)]
    service: u64,
    /// Port; 0 for any free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Fault of the server.
    #[arg(long, value_enum, default_value = "none")]
    fault: Fault,
    /// Milliseconds from the start to the fault.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Milliseconds from the start to the recovery.
    #[arg(long, default_value_t = u64::MAX)]
    until: u64,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

impl Server {
    /// Listens, prints the port and answers until killed.
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
                // The first half must be sent, or nothing of the answer would be seen.
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
