//! Large bodies, one after the other on each connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Done, Run, wire};
use crate::compare::origin::LARGE;

/// Bytes read or written at once.
const PART: usize = 256 << 10;

/// Reads bodies for `length`.
pub(super) async fn down(run: &Run<'_>, connections: usize, length: Duration) -> Done {
    let head = wire::head(run.ask, 0);
    repeat(run.port, connections, length, head, false).await
}

/// Writes bodies for `length`.
pub(super) async fn up(run: &Run<'_>, connections: usize, length: Duration) -> Done {
    let head = wire::head(run.ask, LARGE);
    repeat(run.port, connections, length, head, true).await
}

async fn repeat(port: u16, connections: usize, length: Duration, head: Vec<u8>, up: bool) -> Done {
    let (bytes, errors) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (bytes, errors, head) = (bytes.clone(), errors.clone(), head.clone());
        clients.spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let mut buffer = vec![b'x'; PART];
            while began.elapsed() < length {
                if exchange(&mut stream, &head, &mut buffer, up, &bytes).await.is_err() {
                    errors.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        });
    }
    // What is under way at the end counts as far as it has come.
    let _ =
        tokio::time::timeout_at((began + length).into(), async { while clients.join_next().await.is_some() {} }).await;
    Done {
        amount: bytes.load(Ordering::Relaxed) as f64 / 1e6,
        seconds: began.elapsed().as_secs_f64(),
        errors: errors.load(Ordering::Relaxed),
        ..Done::default()
    }
}

/// A request with its answer. Counts the bytes of the large body as they go.
async fn exchange(
    stream: &mut TcpStream,
    head: &[u8],
    buffer: &mut [u8],
    up: bool,
    bytes: &AtomicU64,
) -> std::io::Result<()> {
    stream.write_all(head).await?;
    let mut left = if up { LARGE } else { 0 };
    while left > 0 {
        let written = stream.write(&buffer[..left.min(PART)]).await?;
        bytes.fetch_add(written as u64, Ordering::Relaxed);
        left -= written;
    }
    let (mut answer, mut read) = (None, Vec::new());
    loop {
        let n = stream.read(buffer).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if !up {
            bytes.fetch_add(n as u64, Ordering::Relaxed);
        }
        left = match &mut answer {
            None => {
                read.extend_from_slice(&buffer[..n]);
                let Some(found) = wire::answer(&read) else { continue };
                if !found.is_ok {
                    return Err(std::io::Error::other("not 200"));
                }
                let total = found.head + found.body;
                answer = Some(found);
                total - read.len()
            }
            Some(_) => left - n,
        };
        if left == 0 {
            return Ok(());
        }
    }
}
