//! HTTP/2 client at the level of frames, for behaviour that no library has: it opens windows as a test says, and no
//! further.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `SETTINGS_INITIAL_WINDOW_SIZE` (RFC 9113, 6.5.2).
const INITIAL_WINDOW: u8 = 4;

/// A received frame.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Connection without TLS.
pub struct Frames {
    write: OwnedWriteHalf,
    came: Arc<Mutex<Vec<Frame>>>,
    reading: tokio::task::JoinHandle<()>,
    last: u32,
}

impl Frames {
    /// Connects; each stream may receive `window` bytes until its window is opened further.
    pub async fn connect(address: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let came = Arc::new(Mutex::new(Vec::new()));
        let all = came.clone();
        let reading = tokio::spawn(async move {
            let mut head = [0; 9];
            while read.read_exact(&mut head).await.is_ok() {
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                let mut payload = vec![0; length];
                if read.read_exact(&mut payload).await.is_err() {
                    break;
                }
                let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
                all.lock().unwrap().push(Frame { kind: head[3], flags: head[4], stream, payload });
            }
        });
        let mut setting = vec![0, INITIAL_WINDOW];
        setting.extend(window.to_be_bytes());
        write.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &setting)].concat()).await.unwrap();
        Self { write, came, reading, last: 0 }
    }

    /// Sends a request, with a JSON body unless that is empty, and returns its stream.
    pub async fn send(&mut self, path: &str, body: &str) -> u32 {
        self.last = if self.last == 0 { 1 } else { self.last + 2 };
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        // RFC 7541, appendix A: `:method` 2 and 3, `:scheme http` 6, `:path` 4, `:authority` 1, `content-type` 31.
        let mut head = vec![if body.is_empty() { 0x82 } else { 0x83 }, 0x86, 0x01, 1, b'a', 0x04, length(path)];
        head.extend(path.as_bytes());
        head.extend([0x0f, 0x10, 16]);
        head.extend(b"application/json");
        let end = if body.is_empty() { END_STREAM } else { 0 };
        let mut bytes = frame(HEADERS, END_HEADERS | end, self.last, &head);
        if !body.is_empty() {
            bytes.extend(frame(DATA, END_STREAM, self.last, body.as_bytes()));
        }
        self.write.write_all(&bytes).await.unwrap();
        self.last
    }

    /// Sends a request of any method without a body, and returns its stream.
    pub async fn bare(&mut self, method: &str, path: &str) -> u32 {
        self.last = if self.last == 0 { 1 } else { self.last + 2 };
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        // RFC 7541, 6.2.2: names of the static table, values written out.
        let mut head = vec![0x02, length(method)];
        head.extend(method.as_bytes());
        head.extend([0x86, 0x01, 1, b'a', 0x04, length(path)]);
        head.extend(path.as_bytes());
        self.write.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, self.last, &head)).await.unwrap();
        self.last
    }

    /// Opens the window of a stream, or of the connection for stream 0, by `bytes`.
    pub async fn open(&mut self, stream: u32, bytes: u32) {
        let _ = self.write.write_all(&frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())).await;
    }

    /// Frames of a stream received so far.
    pub fn came(&self, stream: u32) -> Vec<Frame> {
        self.came.lock().unwrap().iter().filter(|frame| frame.stream == stream).cloned().collect()
    }

    /// Body of a stream received so far, and whether it is complete.
    pub fn body(&self, stream: u32) -> (String, bool) {
        let frames = self.came(stream);
        let data = frames.iter().filter(|frame| frame.kind == DATA).flat_map(|frame| frame.payload.clone()).collect();
        let ends = frames.iter().any(|frame| matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0);
        (String::from_utf8(data).unwrap(), ends)
    }

    /// Kinds and flags of the frames with the answer of a stream: 0 is data, 1 a head or trailers, flag 1 the end.
    pub fn answer(&self, stream: u32) -> Vec<(u8, u8)> {
        let frames = self.came(stream).into_iter().filter(|frame| matches!(frame.kind, DATA | HEADERS));
        frames.map(|frame| (frame.kind, frame.flags & END_STREAM)).collect()
    }

    /// True if a stream was answered with 200.
    pub fn is_ok(&self, stream: u32) -> bool {
        self.came(stream).iter().any(|frame| frame.kind == HEADERS && frame.payload.first() == Some(&0x88))
    }

    /// True if a stream was reset.
    pub fn is_reset(&self, stream: u32) -> bool {
        self.came(stream).iter().any(|frame| frame.kind == RST_STREAM)
    }

    /// True if the connection has ended.
    pub fn is_over(&self) -> bool {
        self.reading.is_finished()
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
