//! A body as it goes to an endpoint, with parts of it replaced: the name of its model, where the backend knows another one,
//! and the options of its stream.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

/// Bytes up to which an edited body is copied into one piece: one write is cheaper than several.
const COPIED: usize = 64 << 10;

/// Most edits of a body.
pub(super) const MOST_EDITS: usize = 2;

/// Other bytes in place of a range of a body.
pub(super) type Edit<'e> = (Range<usize>, Cow<'e, [u8]>);

/// Body in as many pieces as its edits need, without a copy of a long one.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces([Bytes; 2 * MOST_EDITS + 1]);

impl From<Bytes> for Pieces {
    fn from(whole: Bytes) -> Self {
        Self([whole, Bytes::new(), Bytes::new(), Bytes::new(), Bytes::new()])
    }
}

impl Pieces {
    /// A body with these edits, in the order of their ranges. Edits whose ranges are not in the body, or overlap, change nothing.
    pub(super) fn edited(body: &Bytes, edits: &[Edit<'_>]) -> Self {
        let mut pieces = Self::default();
        let (mut slots, mut at) = (pieces.0.iter_mut(), 0);
        for (range, text) in edits {
            let (Some(kept), Some(before), Some(replaced)) = (body.get(at..range.start), slots.next(), slots.next())
            else {
                return body.clone().into();
            };
            *before = body.slice_ref(kept);
            *replaced = Bytes::copy_from_slice(text);
            at = range.end.max(range.start);
        }
        let (Some(kept), Some(rest)) = (body.get(at..), slots.next()) else { return body.clone().into() };
        *rest = body.slice_ref(kept);
        if body.len() <= COPIED && !edits.is_empty() {
            return Bytes::from(pieces.0.concat()).into();
        }
        pieces
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

    fn edit(range: Range<usize>, text: &str) -> Edit<'_> {
        (range, Cow::Borrowed(text.as_bytes()))
    }

    fn whole(mut pieces: Pieces) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(part) = pieces.next(1000) {
            assert!(!part.is_empty() && part.len() <= 1000);
            whole.extend_from_slice(&part);
        }
        whole
    }

    #[test]
    fn ranges_of_a_body_are_replaced_whether_it_is_copied_or_not() {
        for rest in [10, COPIED] {
            let body = Bytes::from(format!("{{\"model\":\"a\",\"x\":\"{}\"}}", "x".repeat(rest)));
            let text = String::from_utf8(body.to_vec()).unwrap();
            let renamed = Pieces::edited(&body, &[edit(9..12, "\"other\"")]);
            assert_eq!(renamed.len(), body.len() + 4);
            assert_eq!(whole(renamed), text.replacen("\"a\"", "\"other\"", 1).as_bytes());
            let both = Pieces::edited(&body, &[edit(1..1, "\"y\":1,"), edit(9..12, "\"b\"")]);
            assert_eq!(whole(both), text.replacen("\"model\":\"a\"", "\"y\":1,\"model\":\"b\"", 1).as_bytes());
            assert_eq!(whole(Pieces::edited(&body, &[])), body);
            let overlapping = Pieces::edited(&body, &[edit(2..9, "x"), edit(8..12, "y")]);
            assert_eq!(whole(overlapping), body);
        }
        assert!(Pieces::default().next(1).is_none());
        let body = Bytes::from_static(b"short");
        assert_eq!(Pieces::edited(&body, &[edit(9..12, "x")]).len(), 5, "a range that is not in it changes nothing");
    }
}
