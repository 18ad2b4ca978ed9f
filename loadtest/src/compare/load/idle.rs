//! Connections that carry one request each and then wait.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Done, Run, wire};

/// Connections opened concurrently.
const OPENING: usize = 64;

/// Opens the connections and weighs them.
pub(super) async fn drive(run: &Run<'_>, connections: usize) -> Done {
    let Some(process) = run.process else { return Done::default() };
    let head = wire::head(run.ask, 0);
    let before = process.resident();
    let mut held: Vec<TcpStream> = Vec::with_capacity(connections);
    let mut errors = 0;
    for left in (0..connections).step_by(OPENING) {
        let opening = (left..connections.min(left + OPENING)).map(|_| ask(run.port, &head));
        for opened in futures::future::join_all(opening).await {
            match opened {
                Ok(stream) => held.push(stream),
                Err(_) => errors += 1,
            }
        }
    }
    // What was only for the requests is given back meanwhile.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let each = (process.resident() - before) * f64::from(1 << 20) / held.len().max(1) as f64;
    Done { amount: held.len() as f64, seconds: 1.0, errors, held: Some(each), latency: None }
}

async fn ask(port: u16, head: &[u8]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(head).await?;
    let (mut read, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut part).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&part[..n]);
        if wire::answer(&read).is_some_and(|answer| read.len() >= answer.head + answer.body) {
            return Ok(stream);
        }
    }
}
