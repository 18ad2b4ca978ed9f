//! Streams of gRPC messages between a filter and another server. The gateway provides the client, so that a filter knows no
//! runtime and no transport.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

/// Reason for which a stream cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrpcError(pub String);

/// Future of a [`GrpcStream`].
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Server of a filter's streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcServer {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub address: String,
    /// False if any certificate of the server is accepted: whoever answers at the address is believed.
    pub verifies_certificate: bool,
}

/// Client of a filter's streams.
pub trait GrpcClient: Send + Sync {
    /// Prepares the first stream to a server, for example by reading certificates, so that this does not count against its timeout.
    /// Called when a configuration that will open streams is compiled.
    fn prepare(&self, _: &GrpcServer) {}
    /// Opens a stream to a method of a server, such as `/package.Service/Method`. A server that cannot be reached shows when a
    /// message is received. A received message is of at most `most` bytes. Dropping the stream ends it: the server reads to the end
    /// of what was sent.
    fn open(&self, server: &GrpcServer, method: &'static str, most: usize) -> Box<dyn GrpcStream>;
}

/// Stream of messages in both directions.
pub trait GrpcStream: Send + Sync {
    /// Sends a message, and waits at most `timeout` while the server does not read.
    fn send(&mut self, message: Bytes, timeout: Duration) -> Pending<'_, Result<(), GrpcError>>;
    /// Sends a message, or receives one where that is there first: a server that answers while it reads must not wait for a
    /// reader that only writes. A message that was not sent is to be given again.
    fn exchange(&mut self, message: Bytes, timeout: Duration) -> Pending<'_, Result<Exchanged, GrpcError>>;
    /// Sends a message if there is room for it, and returns whether there was.
    fn offer(&mut self, message: Bytes) -> bool;
    /// Receives the next message within `timeout`; `None` where the server has ended the stream with the status OK.
    fn receive(&mut self, timeout: Duration) -> Pending<'_, Result<Option<Bytes>, GrpcError>>;
}

/// Result of [`GrpcStream::exchange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchanged {
    /// The message was sent.
    Sent,
    /// This message was received, and nothing was sent; `None` as for [`GrpcStream::receive`].
    Received(Option<Bytes>),
}

/// Client whose streams always fail; for checks and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGrpc;

impl GrpcClient for NoGrpc {
    fn open(&self, _: &GrpcServer, _: &'static str, _: usize) -> Box<dyn GrpcStream> {
        Box::new(Self)
    }
}

impl GrpcStream for NoGrpc {
    fn send(&mut self, _: Bytes, _: Duration) -> Pending<'_, Result<(), GrpcError>> {
        Box::pin(async { Ok(()) })
    }
    fn exchange(&mut self, _: Bytes, _: Duration) -> Pending<'_, Result<Exchanged, GrpcError>> {
        Box::pin(async { Ok(Exchanged::Sent) })
    }
    fn offer(&mut self, _: Bytes) -> bool {
        true
    }
    fn receive(&mut self, _: Duration) -> Pending<'_, Result<Option<Bytes>, GrpcError>> {
        Box::pin(async { Err(GrpcError("streams are disabled here".to_owned())) })
    }
}
