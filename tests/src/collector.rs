//! Collector of traces and logs: takes what an exporter sends over gRPC (OTLP) and keeps every byte of it. A test may make it
//! hang.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;
use tokio::net::TcpListener;

/// Record of a log, as a collector has it.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Attributes of the process.
    pub resource: Vec<KeyValue>,
    /// Part of the program.
    pub scope: String,
    pub record: LogRecord,
}

/// Value of an attribute of a span; null where there is none.
pub fn span_attribute(span: &Span, key: &str) -> serde_json::Value {
    value(&span.attributes, key)
}

impl Logged {
    /// Value of an attribute; null where there is none.
    pub fn attribute(&self, key: &str) -> serde_json::Value {
        value(&self.record.attributes, key)
    }

    /// Value of an attribute of the process.
    pub fn of_process(&self, key: &str) -> serde_json::Value {
        value(&self.resource, key)
    }
}

fn value(attributes: &[KeyValue], key: &str) -> serde_json::Value {
    let found: Vec<_> = attributes.iter().filter(|attribute| attribute.key == key).collect();
    assert!(found.len() < 2, "{key} is there twice: {found:?}");
    found.first().and_then(|attribute| attribute.value.as_ref()).map(as_json).unwrap_or_default()
}

fn as_json(value: &AnyValue) -> serde_json::Value {
    match &value.value {
        Some(Value::StringValue(text)) => json!(text),
        Some(Value::IntValue(number)) => json!(number),
        Some(Value::DoubleValue(number)) => json!(number),
        Some(Value::BoolValue(is)) => json!(is),
        Some(Value::ArrayValue(values)) => values.values.iter().map(as_json).collect(),
        other => panic!("{other:?}"),
    }
}

/// Collector on loopback.
pub struct Collector {
    pub address: SocketAddr,
    /// Every export so far: its path, its headers, its message.
    exports: Arc<Mutex<Vec<Vec<u8>>>>,
    hangs: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (exports, hangs) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (kept, hanging) = (exports.clone(), hangs.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, hanging) = (kept.clone(), hanging.clone());
                let service = service_fn(move |request| export(request, kept.clone(), hanging.clone()));
                connections.spawn(async move {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, exports, hangs, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes the collector take exports and answer none of them.
    pub fn hangs(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    /// Number of exports so far.
    pub fn count(&self) -> usize {
        self.exports.lock().unwrap().len()
    }

    /// Messages for a service so far.
    fn messages<M: Message + Default>(&self, service: &str) -> Vec<M> {
        let exports = self.exports.lock().unwrap();
        let split = exports.iter().map(|export| {
            let at = export.iter().position(|byte| *byte == b'\n').unwrap();
            // One message, uncompressed, behind its length.
            (String::from_utf8_lossy(&export[..at]), &export[at + 6..])
        });
        let path = format!("{service}/Export ");
        split.filter(|(head, _)| head.contains(&path)).map(|(_, message)| M::decode(message).unwrap()).collect()
    }

    /// Spans so far.
    pub fn spans(&self) -> Vec<Span> {
        let requests = self.messages::<ExportTraceServiceRequest>("collector.trace.v1.TraceService");
        let of_processes = requests.into_iter().flat_map(|request| request.resource_spans);
        of_processes.flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect()
    }

    /// Records of logs so far.
    pub fn logged(&self) -> Vec<Logged> {
        let mut logged = Vec::new();
        for request in self.messages::<ExportLogsServiceRequest>("collector.logs.v1.LogsService") {
            for of_process in request.resource_logs {
                let resource = of_process.resource.unwrap().attributes;
                for of_scope in of_process.scope_logs {
                    let scope = of_scope.scope.unwrap().name;
                    let records = of_scope.log_records.into_iter();
                    logged.extend(records.map(|record| Logged {
                        resource: resource.clone(),
                        scope: scope.clone(),
                        record,
                    }));
                }
            }
        }
        logged
    }

    /// Records of one kind so far.
    pub fn logged_as(&self, event: &str) -> Vec<Logged> {
        self.logged().into_iter().filter(|logged| logged.record.event_name == event).collect()
    }

    /// All bytes of all exports so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.exports.lock().unwrap().concat()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answer = Response<StreamBody<futures::stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, hyper::Error>, 2>>>>;

async fn export(
    request: Request<Incoming>,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
    hangs: Arc<AtomicBool>,
) -> Result<Answer, hyper::Error> {
    let (head, body) = request.into_parts();
    let mut bytes = format!("{} {:?}\n", head.uri, head.headers).into_bytes();
    bytes.extend(body.collect().await?.to_bytes());
    kept.lock().unwrap().push(bytes);
    if hangs.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let mut end = HeaderMap::new();
    end.insert("grpc-status", HeaderValue::from_static("0"));
    // An empty message, uncompressed.
    let frames = [Ok(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(end))];
    let answer = Response::builder().header("content-type", "application/grpc");
    Ok(answer.body(StreamBody::new(futures::stream::iter(frames))).unwrap())
}
