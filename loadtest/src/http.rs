//! One JSON request over a connection of its own.

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

/// Posts `body` to a server on this machine and reads its answer.
pub(crate) async fn post(port: u16, path: &str, body: &serde_json::Value) -> serde_json::Value {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = ::http::Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(body.to_string())))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    serde_json::from_slice(&answer).unwrap()
}
