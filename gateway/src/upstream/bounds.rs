//! Bounds on a server's bytes beside bodies (`backends[].limits`): the header of its answer, early answers before it, and
//! trailers. Connections read little more than that (`http1` and `handshake`). Bytes beyond the bound are dropped here,
//! before they are read or passed on.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::outcome::{Failure, Oversized};
use crate::connect::MAX_FIELDS;
use crate::message::ResponseHead;
use crate::wire::size_of_fields;

/// Most early answers (1xx) of one attempt; a server that sends more is not answering.
const MAX_EARLY: u32 = 16;

/// Bytes and early answers that the headers of one attempt may still have.
pub(super) struct Bounds {
    left: u64,
    early: u32,
}

impl Bounds {
    /// Bounds of an attempt whose headers may have `most` bytes together.
    pub(super) fn new(most: u64) -> Self {
        Self { left: most, early: 0 }
    }

    /// Counts the header of an answer, or of an early one.
    pub(super) fn count(&mut self, head: &ResponseHead) -> Result<(), Failure> {
        let left = self.left.checked_sub(size(&head.headers)).filter(|_| head.headers.len() <= MAX_FIELDS);
        self.left = left.ok_or(Failure::TooLarge(Oversized::Header))?;
        if head.status.is_informational() {
            self.early += 1;
            if self.early > MAX_EARLY {
                return Err(Failure::TooLarge(Oversized::EarlyAnswers));
            }
        }
        Ok(())
    }
}

/// True if trailers are within their bound, which is that of a header.
pub(super) fn has_room_for(trailers: &HeaderMap, most: u64) -> bool {
    trailers.len() <= MAX_FIELDS && size(trailers) <= most
}

fn size<'f>(fields: impl IntoIterator<Item = (&'f HeaderName, &'f HeaderValue)>) -> u64 {
    u64::try_from(size_of_fields(fields)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, fields: usize, bytes: usize) -> ResponseHead {
        let mut head = ResponseHead::new(http::StatusCode::from_u16(status).unwrap(), 0);
        for n in 0..fields {
            head.append_header(format!("x-{n:03}"), "v".repeat(bytes)).unwrap();
        }
        head
    }

    #[test]
    fn headers_of_an_attempt_are_counted_together() {
        let mut bounds = Bounds::new(1000);
        assert!(bounds.count(&head(103, 1, 500)).is_ok());
        assert!(bounds.count(&head(200, 1, 471)).is_ok(), "509 and 480 bytes");
        assert!(matches!(bounds.count(&head(200, 1, 10)), Err(Failure::TooLarge(_))));
        assert!(Bounds::new(u64::MAX).count(&head(200, 256, 0)).is_ok());
        assert!(Bounds::new(u64::MAX).count(&head(200, 257, 0)).is_err());
        let mut bounds = Bounds::new(1000);
        assert!((0..MAX_EARLY).all(|_| bounds.count(&head(103, 0, 0)).is_ok()));
        assert!(bounds.count(&head(200, 0, 0)).is_ok(), "the answer itself is none of them");
        assert!(bounds.count(&head(103, 0, 0)).is_err());
        assert!(
            has_room_for(&head(200, 1, 91).headers.into(), 100) && !has_room_for(&head(200, 1, 92).headers.into(), 100)
        );
    }
}
