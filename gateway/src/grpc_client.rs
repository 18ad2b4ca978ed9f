//! gRPC client for streams of filters: HTTP/2 connections that many streams share, with bounded queues in both directions.
//! Frames are those of gRPC over HTTP/2 (`doc/PROTOCOL-HTTP2.md` of the gRPC project).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper_rustls::builderstates::WantsProtocols1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use spillway_filter::{Exchanged, GrpcClient, GrpcError, GrpcServer, GrpcStream, Pending};
use tokio::sync::mpsc;

use crate::clock;
use crate::http_client::{connector, system_roots, tcp, unverified, with_causes};
use crate::protocol::GRPC_STATUS;

/// Messages that wait in each direction of a stream.
const QUEUE: usize = 8;
/// Time for a server to end a stream whose filter has ended it.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Bytes in front of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Time between two looks whether a connection in use is alive, and the time for an answer to that.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

type HyperClient = Client<HttpsConnector<HttpConnector>, Outgoing>;
type Received = Result<Bytes, GrpcError>;

/// Client for streams, with TLS for `https` against the system's certificates, or against none where a server's is not verified.
/// The system's are read for the first configuration that opens streams; most open none.
#[derive(Clone, Default)]
pub struct Grpc(Arc<Clients>);

/// Clients with connections of their own: one that was not verified must not carry the streams of a filter that wants it to be.
#[derive(Default)]
struct Clients {
    verified: OnceLock<HyperClient>,
    unverified: OnceLock<HyperClient>,
}

impl Grpc {
    fn client(&self, server: &GrpcServer) -> &HyperClient {
        if server.verifies_certificate {
            self.0.verified.get_or_init(|| client(connector(system_roots())))
        } else {
            self.0.unverified.get_or_init(|| client(unverified()))
        }
    }
}

fn client(tls: HttpsConnectorBuilder<WantsProtocols1>) -> HyperClient {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_only(true)
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .http2_keep_alive_timeout(KEEP_ALIVE.1)
        .http2_adaptive_window(true)
        .build(tls.enable_http2().wrap_connector(tcp()))
}

impl GrpcClient for Grpc {
    fn prepare(&self, server: &GrpcServer) {
        self.client(server);
    }

    fn open(&self, server: &GrpcServer, method: &'static str, most: usize) -> Box<dyn GrpcStream> {
        let (to_server, outgoing) = mpsc::channel(QUEUE);
        let (received, incoming) = mpsc::channel(QUEUE);
        let request = http::Request::builder()
            .method(Method::POST)
            .uri(format!("{}{method}", server.address))
            .header(header::CONTENT_TYPE, "application/grpc+proto")
            .header(header::TE, "trailers")
            .body(Outgoing(outgoing));
        let client = self.client(server).clone();
        let is_left = received.clone();
        tokio::spawn(async move {
            let exchanged = async {
                let ended = match request {
                    Ok(request) => exchange(&client, request, most, &received).await,
                    Err(e) => Err(GrpcError(e.to_string())),
                };
                if let Err(error) = ended {
                    let _ = received.send(Err(error)).await;
                }
                drop(received);
            };
            let left = async {
                is_left.closed().await;
                tokio::time::sleep(LAST_WORD).await;
            };
            tokio::select! {
                () = exchanged => {}
                () = left => {}
            }
        });
        Box::new(Stream { to_server, incoming })
    }
}

/// Exchanges the messages of a stream: those of the server go to `received`.
async fn exchange(
    client: &HyperClient,
    request: http::Request<Outgoing>,
    most: usize,
    received: &mpsc::Sender<Received>,
) -> Result<(), GrpcError> {
    let (head, mut body) = client.request(request).await.map_err(|e| GrpcError(with_causes(&e)))?.into_parts();
    if head.status != StatusCode::OK {
        return Err(GrpcError(format!("it answered {} instead of a stream of gRPC", head.status)));
    }
    if head.headers.contains_key(&GRPC_STATUS) {
        return ended_with(&head.headers);
    }
    let mut messages = Messages { most, held: BytesMut::new() };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| GrpcError(with_causes(&e)))?;
        match frame.into_data() {
            Ok(data) => {
                messages.held.extend_from_slice(&data);
                while let Some(message) = messages.next()? {
                    if received.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(frame) => {
                if let Some(trailers) = frame.trailers_ref() {
                    return ended_with(trailers);
                }
            }
        }
    }
    Err(GrpcError("the stream ended without a status".to_owned()))
}

/// Judges the status with which a server has ended a stream.
fn ended_with(trailers: &HeaderMap) -> Result<(), GrpcError> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => Ok(()),
        status => Err(GrpcError(format!("it ended the stream with the status {status} ({})", text("grpc-message")))),
    }
}

/// Messages in the bytes of a stream.
struct Messages {
    most: usize,
    held: BytesMut,
}

impl Messages {
    /// Next whole message.
    fn next(&mut self) -> Result<Option<Bytes>, GrpcError> {
        let Some((&[is_compressed, a, b, c, d], _)) = self.held.split_first_chunk::<PREFIX>() else { return Ok(None) };
        if is_compressed != 0 {
            return Err(GrpcError("it sent a compressed message, which it was not asked for".to_owned()));
        }
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > self.most {
            return Err(GrpcError(format!("it sent a message of {length} bytes; {} are read at most", self.most)));
        }
        if self.held.len() < PREFIX.saturating_add(length) {
            return Ok(None);
        }
        self.held.advance(PREFIX);
        Ok(Some(self.held.split_to(length).freeze()))
    }
}

/// Body of the request: the messages that a filter sends.
struct Outgoing(mpsc::Receiver<Bytes>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}

/// Stream of a filter. Its queues end with it, and so does the stream.
struct Stream {
    to_server: mpsc::Sender<Bytes>,
    incoming: mpsc::Receiver<Received>,
}

impl GrpcStream for Stream {
    fn send(&mut self, message: Bytes, timeout: Duration) -> Pending<'_, Result<(), GrpcError>> {
        Box::pin(async move {
            match clock::within(timeout, self.to_server.send(framed(&message))).await {
                // Of a stream that the server has ended it is still to be received why.
                Ok(_) => Ok(()),
                Err(_) => Err(GrpcError(format!("it took no message within {} ms", timeout.as_millis()))),
            }
        })
    }

    fn exchange(&mut self, message: Bytes, timeout: Duration) -> Pending<'_, Result<Exchanged, GrpcError>> {
        Box::pin(async move {
            let Self { to_server, incoming } = self;
            let either = async {
                tokio::select! {
                    biased;
                    received = incoming.recv() => Ok(Exchanged::Received(received.transpose()?)),
                    room = to_server.reserve() => {
                        if let Ok(room) = room {
                            room.send(framed(&message));
                        }
                        Ok(Exchanged::Sent)
                    }
                }
            };
            let late = |_| GrpcError(format!("it neither took nor sent a message within {} ms", timeout.as_millis()));
            clock::within(timeout, either).await.map_err(late)?
        })
    }

    fn offer(&mut self, message: Bytes) -> bool {
        self.to_server.try_send(framed(&message)).is_ok()
    }

    fn receive(&mut self, timeout: Duration) -> Pending<'_, Result<Option<Bytes>, GrpcError>> {
        Box::pin(async move {
            match clock::within(timeout, self.incoming.recv()).await {
                Ok(received) => received.transpose(),
                Err(_) => Err(GrpcError(format!("no answer within {} ms", timeout.as_millis()))),
            }
        })
    }
}

/// A message with its prefix.
fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX.saturating_add(message.len()));
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_whatever_the_cut() {
        let sent = [framed(b"one"), framed(b""), framed(b"three")].concat();
        for cut in 0..=sent.len() {
            let (mut messages, mut read) = (Messages { most: 5, held: BytesMut::new() }, Vec::new());
            for part in [&sent[..cut], &sent[cut..]] {
                messages.held.extend_from_slice(part);
                while let Some(message) = messages.next().unwrap() {
                    read.push(message);
                }
            }
            assert_eq!(read, [&b"one"[..], b"", b"three"], "cut at {cut}");
        }
    }

    #[test]
    fn long_and_compressed_messages_are_refused_by_their_prefix() {
        let refused = |bytes: &[u8]| Messages { most: 5, held: bytes.into() }.next().unwrap_err().0;
        assert!(refused(&[0, 0, 0, 0, 6]).contains("6 bytes; 5 are read"));
        assert!(refused(&[0, 255, 255, 255, 255]).contains("4294967295 bytes"));
        assert!(refused(&[1, 0, 0, 0, 1, 0]).contains("compressed"));
    }

    #[test]
    fn the_status_at_the_end_is_judged() {
        let with = |status: &str| {
            let trailers = [("grpc-status", status), ("grpc-message", "why")];
            ended_with(&trailers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect())
        };
        assert_eq!(with("0"), Ok(()));
        assert_eq!(with("14"), Err(GrpcError("it ended the stream with the status 14 (why)".to_owned())));
    }
}
