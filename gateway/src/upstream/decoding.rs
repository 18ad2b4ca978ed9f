//! Observer of a compressed answer: decodes a copy of the answer for the observer of its dialect, while the answer itself
//! passes as it is. Decoder of a compressed answer that is translated, or searched for credentials. Both are bounded in memory and
//! work, as servers are not trusted with either. The rest of an answer that cannot be decoded, or grows out of all proportion, is
//! counted by its bytes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::coding::{Coding, Decoder};
use crate::message::ResponseHead;
use crate::protocol::{Dialect, Observation, Observe};

/// Bytes that an answer may always decode to: some ten thousand events.
const ANY_ANSWER: u64 = 8 << 20;

/// Decoded bytes for each byte read beyond [`ANY_ANSWER`]. Streams that are flushed with each event, and text that is not
/// one word over and over, stay far below. A part of 64 KiB then decodes to 8 MiB at most, which is some milliseconds of
/// work.
const MOST_GROWTH: u64 = 128;

/// Bytes that a decoded answer may still have, for readers that must not be flooded.
#[derive(Debug)]
pub(super) struct GrowthBudget(u64);

impl Default for GrowthBudget {
    fn default() -> Self {
        Self(ANY_ANSWER)
    }
}

impl GrowthBudget {
    /// Adds what `bytes` of the answer as it came may grow to.
    pub(super) fn read(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.0 = self.0.saturating_add(bytes.saturating_mul(MOST_GROWTH));
    }

    /// Takes decoded bytes from the budget; false where it has fewer.
    pub(super) fn allows(&mut self, bytes: usize) -> bool {
        let left = u64::try_from(bytes).ok().and_then(|bytes| self.0.checked_sub(bytes));
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// Answers with Brotli or Zstandard that are decoded at the same time. Each takes a window of up to 16 MiB; those of common
/// servers have 0.5 to 4. Where tokens are charged, servers are not asked for these codings.
const MAX_WINDOWS: usize = 64;

/// Answers that hold a window now.
static WINDOWS: AtomicUsize = AtomicUsize::new(0);

/// Right to hold the window of one decoder.
struct WindowPermit;

impl WindowPermit {
    fn open() -> Option<Self> {
        let more = |open: usize| (open < MAX_WINDOWS).then_some(open.saturating_add(1));
        WINDOWS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for WindowPermit {
    fn drop(&mut self) {
        WINDOWS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Decoder of an answer that goes on as it decodes, in the same bounds as one that is only observed.
pub(super) struct StreamDecoder {
    decoder: Decoder,
    budget: GrowthBudget,
    _window: Option<WindowPermit>,
}

impl StreamDecoder {
    /// Decoder of a coding; `None` where the coding is unknown, or too many answers are decoded already.
    pub(super) fn new(coding: Coding) -> Option<Self> {
        let window = window_for(coding)?;
        Some(Self { decoder: Decoder::new(coding)?, budget: GrowthBudget::default(), _window: window })
    }

    /// Decodes a part. Returns the bytes that could be decoded, and true if that is not all: the rest is not in the coding, or
    /// grows out of all proportion. Nothing can be decoded after that.
    pub(super) fn decode(&mut self, part: &[u8]) -> (Bytes, bool) {
        let (mut out, budget) = (BytesMut::new(), &mut self.budget);
        budget.read(part.len());
        let take = |plain: &[u8]| {
            let has_room = budget.allows(plain.len());
            if has_room {
                out.extend_from_slice(plain);
            }
            has_room
        };
        let is_spoiled = self.decoder.decode(part, take).is_err();
        (out.freeze(), is_spoiled)
    }
}

/// Right to the window of a coding, where it has a large one; `None` where too many are open.
fn window_for(coding: Coding) -> Option<Option<WindowPermit>> {
    match coding {
        Coding::Brotli | Coding::Zstd => WindowPermit::open().map(Some),
        _ => Some(None),
    }
}

/// Decoder in use.
struct ActiveDecoder {
    decoder: Decoder,
    /// Bytes that the answer may still decode to.
    left: u64,
    _window: Option<WindowPermit>,
}

/// Observer of a compressed answer.
pub(super) struct DecodingObserver {
    observer: Box<dyn Observe>,
    /// `None` once the answer could not be decoded further.
    decoding: Option<ActiveDecoder>,
    /// Facts of an answer that could not be decoded: those before, and the bytes from there on.
    beyond: Observation,
    /// Bytes of text and bytes read before that: the rest holds as much text for each byte, and one byte at least.
    before: (u64, u64),
}

impl DecodingObserver {
    /// Shows an answer in a coding to an observer of plain bytes. `None` where the coding is unknown, or too many answers
    /// are decoded already.
    fn new(coding: Coding, observer: Box<dyn Observe>) -> Option<Self> {
        let window = window_for(coding)?;
        let decoding = ActiveDecoder { decoder: Decoder::new(coding)?, left: ANY_ANSWER, _window: window };
        Some(Self { observer, decoding: Some(decoding), beyond: Observation::default(), before: (0, 1) })
    }

    /// Counts bytes that could not be decoded.
    fn count(&mut self, bytes: u64) {
        let (text, read) = self.before;
        let text = u128::from(bytes).saturating_mul(text.into()).checked_div(read.into()).unwrap_or(0);
        let text = u64::try_from(text).unwrap_or(u64::MAX).max(bytes);
        self.beyond.written.bytes = self.beyond.written.bytes.saturating_add(text);
    }

    /// Observer of a compressed answer with this head, where the dialect reads its type.
    pub(super) fn of(coding: Coding, dialect: &dyn Dialect, head: &ResponseHead) -> Option<Self> {
        Self::new(coding, dialect.observe(&head.headers)?)
    }

    /// True if every part so far was decoded.
    pub(super) fn is_readable(&self) -> bool {
        self.decoding.is_some()
    }
}

impl Observe for DecodingObserver {
    fn feed(&mut self, part: &[u8], now: Instant) {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        let Self { observer, decoding: Some(decoding), .. } = self else {
            self.count(length);
            return;
        };
        let ActiveDecoder { decoder, left, .. } = decoding;
        let read_before = decoder.read;
        *left = left.saturating_add(length.saturating_mul(MOST_GROWTH));
        let show = |plain: &[u8]| {
            let Some(rest) = left.checked_sub(u64::try_from(plain.len()).unwrap_or(u64::MAX)) else { return false };
            *left = rest;
            observer.feed(plain, now);
            true
        };
        if decoder.decode(part, show).is_err() {
            // No later part can show an error.
            self.beyond = Observation { is_certain: true, ..observer.observation().clone() };
            self.before = (self.beyond.written.bytes, decoder.read);
            let rest = length.saturating_sub(decoder.read.saturating_sub(read_before));
            self.decoding = None;
            self.count(rest);
        }
    }

    fn observation(&self) -> &Observation {
        if self.is_readable() { self.observer.observation() } else { &self.beyond }
    }

    fn finish(&mut self) -> &Observation {
        if self.is_readable() { self.observer.finish() } else { &self.beyond }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::message::ResponseHead;

    use http::header;

    use super::*;
    use crate::protocol::{OPENAI, Written};

    fn observer(coding: Coding) -> Option<DecodingObserver> {
        let mut head = ResponseHead::new(http::StatusCode::OK, 0);
        head.insert_header(header::CONTENT_TYPE, "application/json").unwrap();
        DecodingObserver::of(coding, OPENAI, &head)
    }

    fn answer(words: usize) -> Vec<u8> {
        format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#, "word".repeat(words)).into_bytes()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn an_answer_that_grows_out_of_proportion_is_not_read_to_its_end() {
        let (most, now) = (usize::try_from(ANY_ANSWER / 4).unwrap(), Instant::now());
        for words in [1000, most - 100] {
            let mut decoded = observer(Coding::Gzip).unwrap();
            decoded.feed(&gzip(&answer(words)), now);
            let seen = decoded.finish();
            assert_eq!((seen.written.bytes, seen.is_whole), (4 * words as u64, true));
        }
        // The same text over and over: what is not read is counted as what was.
        let words = 20_000_000;
        let body = gzip(&answer(words));
        assert!(body.len() < 100_000, "{} bytes", body.len());
        for length in [1000, body.len()] {
            let mut decoded = observer(Coding::Gzip).unwrap();
            for part in body.chunks(length) {
                decoded.feed(part, now);
            }
            let bytes = decoded.finish().written.bytes;
            assert!(!decoded.is_readable() && !decoded.observation().is_whole);
            assert!((bytes as f64 / (4 * words) as f64 - 1.0).abs() < 0.1, "{bytes} bytes in parts of {length}");
        }
    }

    #[test]
    fn what_cannot_be_decoded_counts_by_its_bytes() {
        let now = Instant::now();
        let mut decoded = observer(Coding::Gzip).unwrap();
        decoded.feed(b"no gzip at all", now);
        decoded.feed(b"and no more", now);
        assert_eq!(decoded.finish().written, Written { events: 0, bytes: 25 });
        assert!(!decoded.is_readable() && !decoded.observation().is_known_shape);
        assert!(observer(Coding::Unknown).is_none());
    }

    #[test]
    fn windows_are_bounded_and_given_back() {
        let open: Vec<_> = (0..MAX_WINDOWS).map_while(|_| observer(Coding::Zstd)).collect();
        assert!(!open.is_empty() && observer(Coding::Brotli).is_none(), "{} are open", open.len());
        assert!(observer(Coding::Gzip).is_some(), "which needs none");
        drop(open);
        assert!(observer(Coding::Brotli).is_some());
    }
}
