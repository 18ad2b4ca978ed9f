//! Servers at the level of bytes, for messages that no HTTP library sends.

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

/// Starts a server that runs `serve` for each connection; returns its URL.
pub async fn raw<F, R>(serve: F) -> String
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    url
}

/// Reads a head and not a byte more.
pub async fn head_of_a_request(stream: &mut TcpStream) {
    let (mut head, mut byte) = (Vec::new(), [0u8; 1]);
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).await.is_ok() {
        head.push(byte[0]);
    }
}
