//! The gateway's own credential in what a server answers. A server that refuses a credential may repeat it in its error,
//! which goes to a caller that must not know it. Its input is the answer as it passes; it holds at most one credential's
//! length of it.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

/// Shortest credential that is looked for, bytes. A shorter one is no secret, and would be found in honest text.
const LEAST: usize = 8;

/// The credential that goes to a server, without its scheme.
fn text_of(credentials: &http::HeaderValue) -> Option<&[u8]> {
    let text = credentials.as_bytes().strip_prefix(b"Bearer ")?.trim_ascii();
    (text.len() >= LEAST).then_some(text)
}

/// Names of headers that hold the credential.
pub(super) fn holding(headers: &HeaderMap, credentials: &http::HeaderValue) -> Vec<http::HeaderName> {
    let Some(secret) = text_of(credentials) else { return Vec::new() };
    let holds = |value: &http::HeaderValue| {
        value.len() >= secret.len() && memchr::memmem::find(value.as_bytes(), secret).is_some()
    };
    headers.iter().filter(|(_, value)| holds(value)).map(|(name, _)| name.clone()).collect()
}

/// Puts `*` in the place of a credential in a body, whatever parts the body comes in. The length stays the same.
pub(super) struct Mask {
    secret: Box<[u8]>,
    /// Bytes that could be the beginning of the credential.
    held: BytesMut,
}

impl Mask {
    /// A mask for this credential; `None` for one that is too short.
    pub(super) fn new(credentials: &http::HeaderValue) -> Option<Self> {
        Some(Self { secret: text_of(credentials)?.into(), held: BytesMut::new() })
    }

    /// Takes a part and gives what can go on.
    pub(super) fn pass(&mut self, part: Bytes) -> Bytes {
        let is_clean =
            |part: &[u8]| memchr::memmem::find(part, &self.secret).is_none() && self.begins_at(part) == part.len();
        if self.held.is_empty() && is_clean(&part) {
            return part;
        }
        self.held.extend_from_slice(&part);
        let found: Vec<usize> = memchr::memmem::find_iter(&self.held, &self.secret).collect();
        for at in found {
            for byte in self.held.iter_mut().skip(at).take(self.secret.len()) {
                *byte = b'*';
            }
        }
        let at = self.begins_at(&self.held);
        self.held.split_to(at).freeze()
    }

    /// Gives what was held at the end.
    pub(super) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.held).freeze()
    }

    /// Where the end of a part begins that could go on to be the credential; its length where there is none.
    fn begins_at(&self, part: &[u8]) -> usize {
        let first = part.len().saturating_sub(self.secret.len().saturating_sub(1));
        (first..part.len())
            .find(|at| part.get(*at..).is_some_and(|end| self.secret.starts_with(end)))
            .unwrap_or(part.len())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn masked(parts: &[&str]) -> String {
        let mut mask = Mask::new(&HeaderValue::from_static("Bearer abc-abd-secret")).unwrap();
        let mut out = Vec::new();
        for part in parts {
            out.extend_from_slice(&mask.pass(Bytes::copy_from_slice(part.as_bytes())));
        }
        out.extend_from_slice(&mask.rest());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_credential_is_masked_however_the_body_is_cut() {
        let text = "key abc-abd-secret, abc-abc-abd-secret; abc-abd-secre";
        let wanted = "key **************, abc-**************; abc-abd-secre";
        for first in 0..=text.len() {
            for second in first..=text.len() {
                assert_eq!(
                    masked(&[&text[..first], &text[first..second], &text[second..]]),
                    wanted,
                    "{first} {second}"
                );
            }
        }
        assert_eq!(masked(&["nothing", " of it"]), "nothing of it");
    }

    #[test]
    fn a_short_credential_is_not_looked_for() {
        assert!(Mask::new(&HeaderValue::from_static("Bearer a")).is_none());
    }

    #[test]
    fn headers_that_hold_it_are_named() {
        let mut headers = HeaderMap::new();
        headers.insert("www-authenticate", HeaderValue::from_static("Bearer realm=\"abc-abd-secret\""));
        headers.insert("grpc-message", HeaderValue::from_static("incorrect%20key%20abc-abd-secret"));
        headers.insert("x-kept", HeaderValue::from_static("abc-abd"));
        let found = holding(&headers, &HeaderValue::from_static("Bearer abc-abd-secret"));
        assert_eq!(found, ["www-authenticate", "grpc-message"]);
    }
}
