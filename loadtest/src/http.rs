//! One request over a connection of its own.

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

/// Gets a text of a local server; none where it does not answer.
pub(crate) async fn text(port: u16, path: &str) -> Option<String> {
    let text = answer(port, ::http::Request::get(path), String::new()).await.ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

async fn send(port: u16, request: ::http::request::Builder, body: String) -> serde_json::Value {
    serde_json::from_slice(&answer(port, request, body).await.unwrap()).unwrap()
}

async fn answer(
    port: u16,
    request: ::http::request::Builder,
    body: String,
) -> Result<bytes::Bytes, Box<dyn std::error::Error>> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = request.header("host", "localhost").body(Full::new(bytes::Bytes::from(body)))?;
    let answer = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(answer)
}
