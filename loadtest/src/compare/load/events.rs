//! Event streams, opened one after the other over the time between two events, each to its end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

use super::{Done, Run, histogram, record};
use crate::compare::origin;

/// Outcome of one stream.
struct Stream {
    latency: Histogram<u64>,
    is_whole: bool,
}

/// Reads so many streams concurrently.
pub(super) async fn drive(run: &Run<'_>, streams: usize) -> Done {
    let mut under_way = tokio::task::JoinSet::new();
    let steps = u32::try_from(streams).unwrap();
    for n in 0..steps {
        let mut request = http::Request::builder().method(run.ask.method).uri(run.ask.path).header("host", "api.test");
        for header in &run.ask.headers {
            let (name, value) = header.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(run.ask.body.clone()))).unwrap();
        under_way.spawn(read(run.port, request, origin::BETWEEN * n / steps));
    }
    let began = Instant::now();
    let mut done = Done::default();
    let mut latency = histogram();
    while let Some(stream) = under_way.join_next().await {
        let stream = stream.unwrap();
        done.errors += u64::from(!stream.is_whole);
        latency.add(&stream.latency).unwrap();
    }
    done.amount = latency.len() as f64;
    done.seconds = began.elapsed().as_secs_f64();
    done.latency = Some(latency);
    done
}

/// Reads one stream; the latency of an event is the time since its stamp.
async fn read(port: u16, request: http::Request<Full<Bytes>>, delay: Duration) -> Stream {
    tokio::time::sleep(delay).await;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut outcome = Stream { latency: histogram(), is_whole: false };
    let Ok(answer) = sender.send_request(request).await else { return outcome };
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        text.extend_from_slice(&data);
        outcome.is_whole |= text.windows(6).any(|end| end == b"[DONE]");
        for stamp in stamps(&mut text) {
            record(&mut outcome.latency, Duration::from_nanos(origin::now().saturating_sub(stamp)));
        }
    }
    connection.abort();
    outcome
}

/// Takes the stamps (`@nanoseconds@`) out of the text, and leaves a part of one for the next call.
fn stamps(text: &mut Vec<u8>) -> Vec<u64> {
    let marks: Vec<usize> = text.iter().enumerate().filter_map(|(at, byte)| (*byte == b'@').then_some(at)).collect();
    let pairs = marks.chunks_exact(2);
    let rest = pairs.remainder().first().copied();
    let found = pairs.filter_map(|pair| std::str::from_utf8(&text[pair[0] + 1..pair[1]]).ok()?.parse().ok()).collect();
    text.drain(..rest.unwrap_or(text.len()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_may_come_in_parts() {
        let mut text = b"data: {\"content\":\"@12@\"}\n\ndata: {\"content\":\"@3".to_vec();
        assert_eq!(stamps(&mut text), [12]);
        text.extend_from_slice(b"4@\"}\n\n");
        assert_eq!(stamps(&mut text), [34]);
        assert!(text.is_empty());
    }
}
