//! A request of HTTP/1.1 on a connection that carries nothing else. Checks run without end at every endpoint, and a
//! general client costs several times what the request does. The file owns no connection; its inputs are an open stream and
//! the bytes of a request that asks the server to close.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::{ProbeAnswer, ProbeError};

/// Longest head of an answer that is read, in bytes, early answers included.
const MAX_HEAD: usize = 64 << 10;
/// Most fields of a head.
const MAX_FIELDS: usize = 128;
/// Most reads and chunks of a body in chunks.
const MAX_CHUNKS: usize = 16 << 10;
/// Bytes that are read at once.
const READ: usize = 4 << 10;

/// End of the body of an answer (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyEnd {
    Length(usize),
    Chunked,
    Close,
}

/// Head of an answer, with its length.
struct Head {
    status: StatusCode,
    length: usize,
    end: BodyEnd,
}

/// Sends a request and reads its answer, whose body may have `most` bytes.
pub(super) async fn exchange<S>(stream: &mut S, request: &[u8], most: usize) -> Result<ProbeAnswer, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request).await.map_err(ProbeError::Broken)?;
    stream.flush().await.map_err(ProbeError::Broken)?;
    let mut answer = Answer { stream, read: BytesMut::with_capacity(READ) };
    let head = answer.head().await?;
    Ok((head.status, answer.body(head.end, most).await))
}

/// Answer that is being read.
struct Answer<'s, S> {
    stream: &'s mut S,
    /// Bytes that were read and are not used yet.
    read: BytesMut,
}

impl<S: AsyncRead + Unpin> Answer<'_, S> {
    /// Reads more bytes. False at the end of the stream.
    async fn more(&mut self) -> Result<bool, ProbeError> {
        // No more at a time, however large the buffer is: what was read is worked through before the task waits again.
        self.read.reserve(READ);
        let mut limited = (&mut self.read).limit(READ);
        Ok(self.stream.read_buf(&mut limited).await.map_err(ProbeError::Broken)? > 0)
    }

    /// Reads the head of the answer, behind any early answers.
    async fn head(&mut self) -> Result<Head, ProbeError> {
        let (mut early, mut seen) = (0, 0);
        loop {
            // A long head is parsed where it may have ended, and not anew with every byte.
            let new = self.read.get(seen..).unwrap_or_default();
            let ends = [&b"\n\r\n"[..], b"\n\n"].iter().any(|end| memchr::memmem::find(new, end).is_some());
            if (ends || self.read.len() <= READ)
                && let Some(head) = parse(&self.read)?
            {
                self.read.advance(head.length);
                if !head.status.is_informational() {
                    return Ok(head);
                }
                early += head.length;
                seen = 0;
                continue;
            }
            seen = self.read.len().saturating_sub(2);
            if self.read.len() + early > MAX_HEAD {
                return Err(ProbeError::HeadTooLong);
            }
            if !self.more().await? {
                return Err(ProbeError::Cut);
            }
        }
    }

    async fn body(mut self, end: BodyEnd, most: usize) -> Result<Bytes, ProbeError> {
        match end {
            BodyEnd::Length(length) if length > most => return Err(ProbeError::BodyTooLong(most)),
            BodyEnd::Length(length) => {
                while self.read.len() < length {
                    if !self.more().await? {
                        return Err(ProbeError::Cut);
                    }
                }
                self.read.truncate(length);
            }
            BodyEnd::Close => loop {
                if self.read.len() > most {
                    return Err(ProbeError::BodyTooLong(most));
                }
                if !self.more().await? {
                    break;
                }
            },
            BodyEnd::Chunked => return self.chunks(most).await,
        }
        Ok(self.read.freeze())
    }

    async fn chunks(mut self, most: usize) -> Result<Bytes, ProbeError> {
        let mut body = Vec::new();
        // A server sends its metrics in few chunks: one that makes many is not read to the end.
        for _ in 0..MAX_CHUNKS {
            match httparse::parse_chunk_size(&self.read).map_err(|_| ProbeError::Chunk)? {
                httparse::Status::Complete((_, 0)) => return Ok(body.into()),
                httparse::Status::Complete((line, size)) => {
                    let size = usize::try_from(size).unwrap_or(usize::MAX);
                    if size > most - body.len() {
                        return Err(ProbeError::BodyTooLong(most));
                    }
                    // The data ends with a line break.
                    while self.read.len() < line + size + 2 {
                        if !self.more().await? {
                            return Err(ProbeError::Cut);
                        }
                    }
                    body.extend_from_slice(self.read.get(line..line + size).unwrap_or_default());
                    self.read.advance(line + size + 2);
                }
                httparse::Status::Partial if self.read.len() > READ => return Err(ProbeError::Chunk),
                httparse::Status::Partial => {
                    if !self.more().await? {
                        return Err(ProbeError::Cut);
                    }
                }
            }
        }
        Err(ProbeError::Chunk)
    }
}

/// Parses the head at the beginning of `read`; `None` if it is not there in full.
fn parse(read: &[u8]) -> Result<Option<Head>, ProbeError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = match parsed.parse(read).map_err(ProbeError::Head)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(ProbeError::NoStatus)?;
    let value = |name: &str| {
        let field = parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value).ok().map(str::trim)
    };
    let end = if status.is_informational() || matches!(status.as_u16(), 204 | 304) {
        BodyEnd::Length(0)
    } else if let Some(coding) = value("transfer-encoding") {
        let is_chunked = coding.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"));
        if is_chunked { BodyEnd::Chunked } else { BodyEnd::Close }
    } else {
        value("content-length").map_or(Ok(BodyEnd::Close), |length| length.parse().map(BodyEnd::Length))?
    };
    Ok(Some(Head { status, length, end }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answer that a server writes in parts of `part` bytes, and then closes.
    async fn ask(answer: &str, part: usize) -> Result<(u16, Result<String, String>), String> {
        let (mut client, mut server) = tokio::io::duplex(part);
        let answer = answer.as_bytes().to_vec();
        let serving = tokio::spawn(async move {
            let mut request = [0; 4];
            server.read_exact(&mut request).await.unwrap();
            // A client that has seen enough does not read on.
            let _ = server.write_all(&answer).await;
        });
        let told = exchange(&mut client, b"ping", 20).await;
        drop(client);
        serving.await.unwrap();
        let text = |body: Bytes| String::from_utf8(body.to_vec()).unwrap();
        told.map(|(status, body)| (status.as_u16(), body.map(text).map_err(|e| e.to_string())))
            .map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn every_framing_of_an_answer_is_read() {
        for (answer, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong and more", 200, "pong"),
            ("HTTP/1.1 503 Busy\r\n\r\nuntil the end", 503, "until the end"),
            ("HTTP/1.0 200 OK\r\nserver: x\r\n\r\n", 200, ""),
            ("HTTP/1.1 204 No Content\r\n\r\nnothing", 204, ""),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                200,
                "",
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\npo\r\n2;x=y\r\nng\r\n0\r\n\r\n", 200, "pong"),
        ] {
            for part in [1, 7, 4096] {
                assert_eq!(ask(answer, part).await, Ok((status, Ok(body.to_owned()))), "{answer:?} {part}");
            }
        }
    }

    #[tokio::test]
    async fn a_body_in_many_chunks_ends_the_check() {
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        let chunks = "1\r\nx\r\n".repeat(2 * MAX_CHUNKS);
        let serving = tokio::spawn(async move {
            server.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            let _ = server.write_all(chunks.as_bytes()).await;
        });
        let (status, body) = exchange(&mut client, b"ping", 4 << 20).await.unwrap();
        assert!(status == 200 && matches!(body, Err(ProbeError::Chunk)));
        drop(client);
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_answer_or_too_long_fails() {
        let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(MAX_HEAD + READ));
        for (answer, why) in [
            ("", "before the end"),
            ("HTTP/1.1 200 OK\r\nx: y\r\n", "before the end"),
            ("SSH-2.0-OpenSSH\r\n", "head of the answer"),
            ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "length"),
            (&long, "head of the answer"),
        ] {
            let told = ask(answer, 512).await.unwrap_err();
            assert!(told.contains(why), "{told}");
        }
        for (answer, why) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n", "longer than 20 bytes"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", "before the end"),
            ("HTTP/1.1 200 OK\r\n\r\nmore than twenty bytes of text", "longer than 20 bytes"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n15\r\n", "longer than 20 bytes"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", "chunk"),
        ] {
            let (status, body) = ask(answer, 512).await.unwrap();
            let body = body.unwrap_err();
            assert!(status == 200 && body.contains(why), "{body}");
        }
    }
}
