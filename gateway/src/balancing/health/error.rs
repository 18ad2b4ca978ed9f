//! Reasons for which an endpoint fails a check, or its metrics cannot be read. Logs show them.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::grpc;

/// Status of an answer, and its body where that could be read.
pub(super) type ProbeAnswer = (StatusCode, Result<Bytes, ProbeError>);

/// Failure of a health check or of a scrape.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// The time for the whole probe is over.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    /// The host of the URL, or `tls.serverName`, is no name for TLS.
    #[error("TLS: {0}")]
    ServerName(rustls::pki_types::InvalidDnsNameError),
    #[error("the request cannot be written: {0}")]
    Request(http::Error),
    #[error("{0}")]
    Http(hyper::Error),
    /// The body of the answer is too long, or ended early.
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The connection broke while the request was written or the answer read.
    #[error("{0}")]
    Broken(std::io::Error),
    #[error("the connection was closed before the end of the answer")]
    Cut,
    #[error("the head of the answer cannot be read: {0}")]
    Head(httparse::Error),
    #[error("the head of the answer is too long")]
    HeadTooLong,
    #[error("the head of the answer has no status")]
    NoStatus,
    #[error("the length of the answer is no number: {0}")]
    Length(#[from] std::num::ParseIntError),
    #[error("a chunk of the answer cannot be read")]
    Chunk,
    #[error("the body of the answer is longer than {0} bytes")]
    BodyTooLong(usize),
    #[error("status {0}")]
    Status(u16),
    #[error("the server does not speak HTTP/2, which gRPC needs")]
    NoHttp2,
    #[error("the gRPC message cannot be written: {0}")]
    Encode(prost::EncodeError),
    #[error("an answer without a gRPC status")]
    NoGrpcStatus,
    #[error("gRPC status {0}")]
    GrpcStatus(String),
    #[error("no gRPC message")]
    NoGrpcMessage,
    #[error("{0}")]
    Decode(prost::DecodeError),
    /// Status of the gRPC health protocol other than `SERVING`.
    #[error("{}", grpc::describe(*.0))]
    NotServing(i32),
    #[error("the answer is no list of models")]
    NoModelList,
    #[error("none of the metrics is there")]
    NoMetrics,
}
