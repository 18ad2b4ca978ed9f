//! HTTP/1.1 as far as the generators need it: a request's bytes, and where an answer ends.

use crate::compare::workload::Ask;

/// Bytes of a request with a body of `length` bytes, without the body.
pub(super) fn head(ask: &Ask, length: usize) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: api.test\r\n", ask.method, ask.path);
    for header in &ask.headers {
        head += header;
        head += "\r\n";
    }
    if ask.method == "POST" {
        head += &format!("Content-Length: {length}\r\n");
    }
    head += "\r\n";
    head.into_bytes()
}

/// Head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// True if the status is 200.
    pub(super) is_ok: bool,
    /// Bytes of the head.
    pub(super) head: usize,
    /// Bytes of the body.
    pub(super) body: usize,
}

/// Reads the head of an answer; none as long as it is not complete. The answer must have a Content-Length: all peers keep
/// that of the origin.
pub(super) fn answer(bytes: &[u8]) -> Option<Answer> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let body = length.and_then(|length| length.trim().parse().ok()).unwrap_or_else(|| panic!("no length: {text}"));
    Some(Answer { is_ok: text.starts_with("http/1.1 200"), head, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let bytes = b"HTTP/1.1 200 OK\r\nServer: a\r\nContent-Length: 5\r\n\r\nhel";
        assert_eq!(answer(&bytes[..40]), None);
        assert_eq!(answer(bytes), Some(Answer { is_ok: true, head: bytes.len() - 3, body: 5 }));
        assert!(!answer(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").unwrap().is_ok);
    }
}
