//! WebSocket at the level of bytes, for both ends: handshakes and frames that no library sends.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::PATIENCE;

/// Nonce of every handshake here, and its proof (RFC 6455, 1.3).
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Opcodes (RFC 6455, 5.2).
pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;

/// Request that opens a socket, with further lines that each end in CRLF.
pub fn opening(path: &str, further: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{further}\r\n"
    )
}

/// A whole frame with any first byte; `mask` is that of a client.
pub fn socket_frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(bit | u8::try_from(length).unwrap()),
        length @ 126..=0xffff => {
            bytes.push(bit | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            bytes.push(bit | 127);
            bytes.extend(u64::try_from(length).unwrap().to_be_bytes());
        }
    }
    bytes.extend(mask.into_iter().flatten());
    let mask = mask.unwrap_or_default();
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// An end of a socket, or of a connection that may become one.
pub struct RawSocket<S = TcpStream> {
    pub stream: S,
    /// True for the end of the client, which masks what it sends.
    is_client: bool,
}

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketFrame {
    /// First byte, with FIN and opcode.
    pub first: u8,
    /// True if the frame was masked.
    pub masked: bool,
    /// Payload, unmasked.
    pub payload: Vec<u8>,
}

impl SocketFrame {
    /// Status code of a close frame.
    pub fn code(&self) -> u16 {
        assert_eq!(self.first, 0x80 | CLOSE, "a close frame: {self:?}");
        u16::from_be_bytes([self.payload[0], self.payload[1]])
    }
}

impl RawSocket {
    /// Connects as a client and sends bytes.
    pub async fn send_to(address: SocketAddr, bytes: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(bytes).await.unwrap();
        Self { stream, is_client: true }
    }

    /// Opens a socket as a client; panics where it is refused.
    pub async fn open(address: SocketAddr, path: &str) -> Self {
        let mut socket = Self::send_to(address, opening(path, "").as_bytes()).await;
        let head = socket.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        socket
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawSocket<S> {
    /// End of a client over a connection that is open.
    pub fn over(stream: S) -> Self {
        Self { stream, is_client: true }
    }

    /// Reads a head and not a byte more; empty at the end of the connection.
    pub async fn head(&mut self) -> String {
        let mut head = Vec::new();
        let read = async {
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(self.stream.read(&mut byte).await, Ok(1)) {
                head.push(byte[0]);
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a head");
        String::from_utf8(head).unwrap()
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends a whole frame.
    pub async fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        let mask = self.is_client.then_some([1, 2, 3, 4]);
        self.send(&socket_frame(0x80 | opcode, payload, mask)).await;
    }

    /// Reads a frame; `None` at the end of the connection.
    pub async fn frame(&mut self) -> Option<SocketFrame> {
        tokio::time::timeout(PATIENCE, self.read_frame()).await.expect("a frame or the end")
    }

    async fn read_frame(&mut self) -> Option<SocketFrame> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).await.ok()?;
        let masked = head[1] & 0x80 != 0;
        let length = match head[1] & 0x7f {
            126 => u64::from(self.stream.read_u16().await.ok()?),
            127 => self.stream.read_u64().await.ok()?,
            length => u64::from(length),
        };
        let mut mask = [0; 4];
        if masked {
            self.stream.read_exact(&mut mask).await.ok()?;
        }
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await.ok()?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        Some(SocketFrame { first: head[0], masked, payload })
    }

    /// Reads to the end of the connection, however it ends.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("an end");
        rest
    }
}

/// Head of a 101 for the nonce in the head of a request.
pub fn switching(request: &str) -> String {
    let key = request
        .lines()
        .find_map(|line| line.to_ascii_lowercase().starts_with("sec-websocket-key:").then(|| line[18..].trim()));
    let hashed = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.unwrap()).as_bytes(),
    );
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        STANDARD.encode(hashed)
    )
}

/// Server that hands out its connections one by one, each behind the head of its request.
pub struct SocketServer {
    listener: TcpListener,
}

impl SocketServer {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }

    /// Next connection, and the head of its first request.
    pub async fn accept(&self) -> (RawSocket, String) {
        let (stream, _) = tokio::time::timeout(PATIENCE, self.listener.accept()).await.expect("a connection").unwrap();
        stream.set_nodelay(true).unwrap();
        let mut socket = RawSocket { stream, is_client: false };
        let head = socket.head().await;
        (socket, head)
    }

    /// Next socket, opened.
    pub async fn open(&self) -> RawSocket {
        let (mut socket, head) = self.accept().await;
        socket.send(switching(&head).as_bytes()).await;
        socket
    }

    /// A socket through the gateway: the end of the client, and that of the server.
    pub async fn through(&self, address: SocketAddr, path: &str) -> (RawSocket, RawSocket) {
        tokio::join!(RawSocket::open(address, path), self.open())
    }
}
