//! A body as it goes to an endpoint, with the name of its model replaced where the backend knows another one.

use std::ops::Range;

use bytes::Bytes;

/// Bytes up to which a body with another model is copied into one piece: one write is cheaper than three.
const COPIED: usize = 64 << 10;

/// Body in up to three pieces, without a copy of a long one.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces([Bytes; 3]);

impl From<Bytes> for Pieces {
    fn from(whole: Bytes) -> Self {
        Self([whole, Bytes::new(), Bytes::new()])
    }
}

impl Pieces {
    /// A body with other text in place of a range of it.
    pub(super) fn with(body: &Bytes, range: Range<usize>, text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        let (Some(before), Some(after)) = (body.get(..range.start), body.get(range.end..)) else {
            return body.clone().into();
        };
        if body.len() <= COPIED {
            return Bytes::from([before, text, after].concat()).into();
        }
        Self([body.slice_ref(before), Bytes::copy_from_slice(text), body.slice_ref(after)])
    }

    /// Bytes of the whole body.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// Next bytes, at most `most`; `None` at the end.
    pub(super) fn next(&mut self, most: usize) -> Option<Bytes> {
        let piece = self.0.iter_mut().find(|piece| !piece.is_empty())?;
        Some(piece.split_to(piece.len().min(most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_a_body_is_replaced_whether_it_is_copied_or_not() {
        for rest in [10, COPIED] {
            let body = Bytes::from(format!("{{\"model\":\"a\",\"x\":\"{}\"}}", "x".repeat(rest)));
            let mut out = Pieces::with(&body, 9..12, "\"other\"");
            assert_eq!(out.len(), body.len() + 4);
            let mut whole = Vec::new();
            while let Some(part) = out.next(1000) {
                assert!(!part.is_empty() && part.len() <= 1000);
                whole.extend_from_slice(&part);
            }
            assert_eq!(whole, String::from_utf8_lossy(&body).replacen("\"a\"", "\"other\"", 1).as_bytes());
        }
        assert!(Pieces::default().next(1).is_none());
        let body = Bytes::from_static(b"short");
        assert_eq!(Pieces::with(&body, 9..12, "x").len(), 5, "a range that is not in it changes nothing");
    }
}
