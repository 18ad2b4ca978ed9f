//! Servers behind the peers, fast enough never to be what is measured: an nginx that answers from memory, and in this
//! process what nginx cannot do: event streams, bodies read to their end, a collector of traces.

use std::convert::Infallible;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::process::{Process, free_port, wait_for};

/// Bytes of the large bodies.
pub(super) const LARGE: usize = 20 << 20;
/// Length of the small JSON.
const SMALL: usize = 200;
/// Answer to a chat that is not streamed.
const CHAT: &str = "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"large\",\"choices\":[{\"index\":0,\
\"message\":{\"role\":\"assistant\",\"content\":\"Hello.\"},\"finish_reason\":\"stop\"}],\
\"usage\":{\"prompt_tokens\":900,\"completion_tokens\":3,\"total_tokens\":903}}";

/// Time between two events of a stream.
pub(super) const BETWEEN: Duration = Duration::from_millis(20);

/// Running servers.
pub(super) struct Origin {
    _nginx: Process,
    _runtime: tokio::runtime::Runtime,
    /// nginx, HTTP/1.1.
    pub(super) quick: u16,
    /// nginx, HTTP/2 without TLS.
    pub(super) quick_h2: u16,
    /// Streams and uploads.
    pub(super) own: u16,
    /// Collector of traces.
    pub(super) collector: u16,
}

impl Origin {
    /// Starts all, with the files in `folder`.
    pub(super) fn start(folder: &Path, workers: usize) -> Self {
        let (quick, quick_h2) = (free_port(), free_port());
        let nginx = nginx(folder, workers, quick, quick_h2);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let bind = || runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (own, collector) = (bind(), bind());
        let ports = [&own, &collector].map(|listener| listener.local_addr().unwrap().port());
        runtime.spawn(accept(own, |stream| async {
            // A client that goes away in the middle of a stream is no fault of the origin.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        }));
        runtime.spawn(accept(collector, |stream| async {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service_fn(collect)).await;
        }));
        wait_for(quick);
        Self { _nginx: nginx, _runtime: runtime, quick, quick_h2, own: ports[0], collector: ports[1] }
    }
}

fn nginx(folder: &Path, workers: usize, port: u16, port_h2: u16) -> Process {
    let folder = folder.join("origin");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("down"), vec![b'x'; LARGE]).unwrap();
    let small = format!("{{\"text\":\"{}\"}}", "x".repeat(SMALL - 11));
    let text = format!(
        "daemon off; worker_processes {workers}; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 32768; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; sendfile on; default_type application/json;
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    listen 127.0.0.1:{port_h2} http2 backlog=8192;
    location / {{ return 200 '{small}'; }}
    location /v1/chat/completions {{ return 200 '{CHAT}'; }}
    location /v1/models {{ return 200 '{MODELS}'; }}
    location = /down {{ root {folder}; }}
  }}
}}
",
        folder = folder.display()
    );
    let config = folder.join("nginx.conf");
    std::fs::write(&config, text).unwrap();
    Process::start(Command::new("nginx").arg("-c").arg(config))
}

/// List of models, for routers that ask what a server has.
const MODELS: &str = "{\"object\":\"list\",\"data\":[{\"id\":\"large\",\"object\":\"model\"}]}";

async fn accept<F: Future<Output = ()> + Send + 'static>(listener: TcpListener, serve: fn(TcpStream) -> F) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        tokio::spawn(serve(stream));
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn whole(body: &'static str) -> Body {
    Full::new(Bytes::from_static(body.as_bytes())).boxed_unsync()
}

/// Nanoseconds since 1970, the stamp of an event.
pub(super) fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// Chunk of a chat whose text is the time at which it was made.
fn event() -> Bytes {
    Bytes::from(format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"large\",\
\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"@{}@\"}},\"finish_reason\":null}}]}}\n\n",
        now()
    ))
}

/// Answers a chat with as many events as `max_tokens`, or its later name, asks for, and anything else once its body is read.
async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let is_chat = request.method() == Method::POST && request.uri().path() == "/v1/chat/completions";
    if !is_chat {
        let mut body = request.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        return Ok(Response::builder().header("content-type", "application/json").body(whole(MODELS)).unwrap());
    }
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let asked: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let events = ["max_tokens", "max_completion_tokens"].iter().find_map(|name| asked[*name].as_u64()).unwrap_or(1);
    let mut ticks = tokio::time::interval(BETWEEN);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stamped = stream::unfold((ticks, events), |(mut ticks, left)| async move {
        let left = left.checked_sub(1)?;
        ticks.tick().await;
        Some((event(), (ticks, left)))
    });
    let end = stream::once(async { Bytes::from_static(b"data: [DONE]\n\n") });
    let body = StreamBody::new(stamped.chain(end).map(|part| Ok(Frame::data(part)))).boxed_unsync();
    Ok(Response::builder().header("content-type", "text/event-stream").body(body).unwrap())
}

/// Takes spans by OTLP over gRPC and answers with an empty message.
async fn collect(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok))).boxed_unsync();
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}
