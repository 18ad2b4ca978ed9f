//! One JSON request over a connection of its own.

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

/// Posts `body` to a local server and reads the answer.
pub(crate) async fn post(port: u16, path: &str, body: &serde_json::Value) -> serde_json::Value {
    let request = ::http::Request::post(path).header("content-type", "application/json");
    send(port, request, body.to_string()).await
}

/// Gets a document of a local server.
pub(crate) async fn get(port: u16, path: &str) -> serde_json::Value {
    send(port, ::http::Request::get(path), String::new()).await
}

async fn send(port: u16, request: ::http::request::Builder, body: String) -> serde_json::Value {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = request.header("host", "localhost").body(Full::new(bytes::Bytes::from(body))).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    serde_json::from_slice(&answer).unwrap()
}
