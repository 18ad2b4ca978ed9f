//! Compression of answers: whether the one to a request is compressed and in which coding, what its head then says, and the
//! encoder of its body. Inputs are heads and the bytes of bodies, with their transfer coding taken off.

use std::io::{self, Write};
use std::sync::Arc;

use brotli::CompressorWriter;
use brotli::enc::BrotliEncoderParams;
use bytes::Bytes;
use flate2::write::GzEncoder;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode, Version};
use spillway_filter::{CodingSpec, CompressionSpec, ContentCoding, Counter, Fields, Filter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zstd::stream::raw::CParameter;

use crate::coding::{Coding, weighed};
use crate::message::{RequestHead, ResponseHead, without_coding};

/// Bytes that are compressed at a time, before other requests have their turn: half a millisecond at the usual levels and for usual texts,
/// up to eight at the highest ones that the filter takes and for texts that were written to be slow.
pub const SLICE: usize = 32 << 10;

/// Windows of Brotli and Zstandard as powers of two: 256 KiB, with which an encoder takes up to 2.6 MB.
const WINDOW: u8 = 18;

/// Blocks of Brotli as powers of two, which it holds twice: larger ones gain nothing within such a window.
const BLOCK: i32 = 16;

/// Codings there are.
const CODINGS: usize = 3;

/// Bytes that Brotli hands on at a time.
const BROTLI_OUT: usize = 8 << 10;

/// Compression of a route's answers.
pub struct Compression {
    filter: Arc<dyn Filter>,
    codings: Vec<CodingSpec>,
    permits: Arc<Semaphore>,
    read: Counter,
    written: Counter,
    refused: Counter,
}

impl std::fmt::Debug for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compression").field("codings", &self.codings).finish_non_exhaustive()
    }
}

impl Compression {
    /// Compression that a filter declares.
    pub fn of(filter: &Arc<dyn Filter>) -> Option<Arc<Self>> {
        let CompressionSpec { codings, max_in_flight, read, written, refused } = filter.compression()?.clone();
        let at_once = usize::try_from(max_in_flight).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(at_once));
        Some(Arc::new(Self { filter: filter.clone(), codings, permits, read, written, refused }))
    }

    /// Reads from the head of a request how its answer may be compressed.
    pub fn offer(self: &Arc<Self>, request: &RequestHead) -> Offer {
        // Clients of HTTP/1.0 know no chunks, and a body without a length would end their connection.
        let coding = if request.version < Version::HTTP_11 { None } else { self.choose(&request.headers) };
        Offer {
            plan: self.clone(),
            coding,
            is_head: request.method == Method::HEAD,
            in_chunks: request.version == Version::HTTP_11,
        }
    }

    /// Place of the coding with the most weight for the client, the first of several; `None` where plain bytes have more
    /// (RFC 9110, 12.5.3).
    fn choose(&self, request: &Fields) -> Option<usize> {
        let mut weights = [None; CODINGS];
        let (mut of_identity, mut of_others) = (None, None);
        let values = request.get_all(header::ACCEPT_ENCODING).iter();
        for entry in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
            let (name, weight) = weighed(entry);
            let is_named = |coding: &CodingSpec| {
                name.eq_ignore_ascii_case(coding.coding.as_str().as_bytes())
                    || (coding.coding == ContentCoding::Gzip && name.eq_ignore_ascii_case(b"x-gzip"))
            };
            if name == b"*" {
                of_others = Some(weight);
            } else if name.eq_ignore_ascii_case(b"identity") {
                of_identity = Some(weight);
            } else if let Some(own) = self.codings.iter().position(is_named).and_then(|place| weights.get_mut(place)) {
                *own = Some(weight);
            }
        }
        let weights = weights.into_iter().take(self.codings.len());
        let weights = weights.map(|weight| weight.or(of_others).unwrap_or_default()).enumerate();
        // Of several that are liked the same the first.
        let (place, weight) = weights.rev().max_by_key(|(_, weight)| *weight)?;
        (weight > 0 && weight >= of_identity.unwrap_or_default()).then_some(place)
    }
}

/// How the answer to a request may be compressed.
#[derive(Debug)]
pub struct Offer {
    plan: Arc<Compression>,
    /// Place of the coding; `None` where the client gets plain bytes.
    coding: Option<usize>,
    is_head: bool,
    /// True where a body without a length is sent in chunks.
    in_chunks: bool,
}

impl Offer {
    /// Changes the head of an answer where its body is to be compressed, and returns the compressor; an answer without a body has
    /// `has_body` false. Every answer that another client would get compressed says that it depends on `Accept-Encoding`.
    pub fn begin(&self, head: &mut ResponseHead, has_body: bool) -> Option<Compressor> {
        if head.status == StatusCode::NOT_MODIFIED {
            add_vary(&mut head.headers);
            return None;
        }
        if !may_change(head) || !self.plan.filter.compresses(&head.headers) {
            return None;
        }
        add_vary(&mut head.headers);
        let coding = self.plan.codings.get(self.coding?)?;
        if !has_body && !self.is_head {
            return None;
        }
        let compressor = if self.is_head {
            // Its head is that of the answer to GET.
            None
        } else {
            let Ok(permit) = self.plan.permits.clone().try_acquire_owned() else {
                self.plan.refused.inc();
                return None;
            };
            let encoder = Encoder::new(coding).ok()?;
            coding.answers.inc();
            let flushes = !head.headers.contains_key(header::CONTENT_LENGTH);
            Some(Compressor { encoder, flushes, plan: self.plan.clone(), _permit: permit })
        };
        describe(head, coding.coding, self.in_chunks);
        compressor
    }
}

/// True for an answer whose body may be exchanged for a compressed one.
fn may_change(head: &ResponseHead) -> bool {
    let forbids = |value: &HeaderValue| {
        let mut directives = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        directives.any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
    };
    let is_grpc = |value: &HeaderValue| {
        let start = value.as_bytes().get(..b"application/grpc".len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
    };
    !head.status.is_informational()
        && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT)
        && !head.headers.contains_key(header::CONTENT_RANGE)
        && Coding::of(&head.headers) == Coding::Identity
        && !head.headers.get(header::CONTENT_TYPE).is_some_and(is_grpc)
        && !head.headers.get_all(header::CACHE_CONTROL).iter().any(forbids)
}

/// Says of a head that its body is in `coding`.
fn describe(head: &mut ResponseHead, coding: ContentCoding, in_chunks: bool) {
    let tag = head.headers.get(header::ETAG).cloned();
    without_coding(head);
    head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    if in_chunks {
        head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // The same text in other bytes: a strong tag would promise these (RFC 9110, 8.8.1).
    let weak = tag.and_then(|tag| match tag.as_bytes().starts_with(b"W/") {
        true => Some(tag),
        false => HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok(),
    });
    if let Some(weak) = weak {
        head.headers.insert(header::ETAG, weak);
    }
}

/// Says that an answer depends on `Accept-Encoding` (RFC 9110, 12.5.5).
fn add_vary(headers: &mut Fields) {
    let says_so = |value: &HeaderValue| {
        let mut names = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        names.any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
    };
    if !headers.get_all(header::VARY).iter().any(says_so) {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// Compresses the body of one answer.
pub struct Compressor {
    encoder: Encoder,
    /// True for a body of unknown length: its server may wait between its parts, of which each goes out.
    flushes: bool,
    plan: Arc<Compression>,
    _permit: OwnedSemaphorePermit,
}

impl Compressor {
    /// Compresses at most [`SLICE`] bytes; returns what is ready, often nothing.
    ///
    /// # Errors
    /// A fault of the encoder.
    pub fn feed(&mut self, slice: &[u8]) -> io::Result<Bytes> {
        self.plan.read.add(slice.len() as u64);
        self.encoder.write(slice)?;
        Ok(self.take())
    }

    /// Returns all that was fed and not returned yet, where the body has parts for which a client may wait.
    ///
    /// # Errors
    /// A fault of the encoder.
    pub fn flush(&mut self) -> io::Result<Bytes> {
        if self.flushes {
            self.encoder.flush()?;
        }
        Ok(self.take())
    }

    /// Returns the rest of the body.
    ///
    /// # Errors
    /// A fault of the encoder.
    pub fn finish(self) -> io::Result<Bytes> {
        let rest = Bytes::from(self.encoder.finish()?);
        self.plan.written.add(rest.len() as u64);
        Ok(rest)
    }

    fn take(&mut self) -> Bytes {
        let ready = Bytes::from(std::mem::take(self.encoder.out()));
        self.plan.written.add(ready.len() as u64);
        ready
    }
}

/// Encoder of a coding, which writes to memory.
enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(spec: &CodingSpec) -> io::Result<Self> {
        let level = spec.level;
        Ok(match spec.coding {
            ContentCoding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(level))),
            ContentCoding::Brotli => {
                let quality = i32::try_from(level).unwrap_or(i32::MAX);
                let lgwin = WINDOW.into();
                let params = BrotliEncoderParams { quality, lgwin, lgblock: BLOCK, ..BrotliEncoderParams::default() };
                Self::Brotli(Box::new(CompressorWriter::with_params(Vec::new(), BROTLI_OUT, &params)))
            }
            ContentCoding::Zstd => {
                let level = i32::try_from(level).unwrap_or(i32::MAX);
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level)?;
                encoder.set_parameter(CParameter::WindowLog(WINDOW.into()))?;
                Self::Zstd(encoder)
            }
        })
    }

    fn write(&mut self, plain: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(plain),
            Self::Brotli(encoder) => encoder.write_all(plain),
            Self::Zstd(encoder) => encoder.write_all(plain),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Brotli(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }

    /// Bytes that are ready.
    fn out(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::uri::PathAndQuery;

    use super::*;

    struct All(CompressionSpec);

    impl Filter for All {
        fn compression(&self) -> Option<&CompressionSpec> {
            Some(&self.0)
        }
        fn compresses(&self, answer: &Fields) -> bool {
            answer.contains_key(header::CONTENT_TYPE)
        }
    }

    fn compression(codings: &[ContentCoding], max_in_flight: u32) -> Arc<Compression> {
        let codings =
            codings.iter().map(|coding| CodingSpec { coding: *coding, level: 4, answers: Counter::default() });
        let (read, written, refused) = Default::default();
        let spec = CompressionSpec { codings: codings.collect(), max_in_flight, read, written, refused };
        Compression::of(&(Arc::new(All(spec)) as Arc<dyn Filter>)).unwrap()
    }

    fn all() -> Arc<Compression> {
        compression(&[ContentCoding::Zstd, ContentCoding::Brotli, ContentCoding::Gzip], 1)
    }

    fn asks(method: Method, accepts: &[&str]) -> RequestHead {
        let mut head = RequestHead::new(method, PathAndQuery::from_static("/"), Fields::default());
        for value in accepts {
            head.append_header(header::ACCEPT_ENCODING, *value).unwrap();
        }
        head
    }

    fn answer(status: StatusCode, fields: &[(&'static str, &str)]) -> ResponseHead {
        let mut head = ResponseHead::new(status, 4);
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    /// Fields of a head in order.
    fn fields_of(head: &ResponseHead) -> Vec<String> {
        let fields = head.headers.iter().map(|(name, value)| format!("{}: {}", name.as_str(), value.to_str().unwrap()));
        let mut fields: Vec<_> = fields.collect();
        fields.sort_unstable();
        fields
    }

    const TEXT: (&str, &str) = ("content-type", "text/plain");

    #[test]
    fn a_client_gets_the_coding_that_it_likes_best() {
        for (accepts, coding) in [
            (&[][..], None),
            (&[""], None),
            (&["identity"], None),
            (&["deflate"], None),
            (&["gzip"], Some("gzip")),
            (&["X-GZIP"], Some("gzip")),
            (&["gzip, deflate, br, zstd"], Some("zstd")),
            (&["gzip", "br"], Some("br")),
            (&["gzip;q=1.0, br;q=0.9"], Some("gzip")),
            (&["gzip ; Q=0.5 ,br;q=0"], Some("gzip")),
            (&["gzip;q=0"], None),
            (&["gzip; q = 0"], None),
            (&["gzip; q = 0.5"], Some("gzip")),
            (&["gzip;q=0.000, identity"], None),
            (&["*"], Some("zstd")),
            (&["*;q=0"], None),
            (&["*, zstd;q=0"], Some("br")),
            (&["gzip, *;q=0"], Some("gzip")),
            (&["gzip;q=0.5, identity"], None),
            (&["gzip;q=0.5, identity;q=0.5"], Some("gzip")),
            (&["identity;q=0"], None),
            (&["gzip;q=nan"], None),
            (&["gzip;q=-1"], None),
            (&["gzip;q=7"], None),
            (&["gzip;q="], None),
            (&["gzip;level=3"], Some("gzip")),
            (&["gzipped, x, ;,,=;q"], None),
        ] {
            let offer = all().offer(&asks(Method::GET, accepts));
            let named = offer.coding.map(|place| offer.plan.codings[place].coding.as_str());
            assert_eq!(named, coding, "{accepts:?}");
        }
    }

    #[test]
    fn heads_say_what_their_bodies_are() {
        let offer = all().offer(&asks(Method::GET, &["gzip"]));
        let mut head = answer(
            StatusCode::OK,
            &[
                TEXT,
                ("content-length", "5000"),
                ("etag", "\"a\""),
                ("accept-ranges", "bytes"),
                ("repr-digest", "sha-256=:x:"),
                ("content-encoding", "identity"),
                ("vary", "origin"),
            ],
        );
        let compressor = offer.begin(&mut head, true).unwrap();
        assert!(!compressor.flushes, "its length is known: it does not trickle");
        let expected = [
            "content-encoding: gzip",
            "content-type: text/plain",
            "etag: W/\"a\"",
            "transfer-encoding: chunked",
            "vary: accept-encoding",
            "vary: origin",
        ];
        assert_eq!(fields_of(&head), expected);
    }

    #[test]
    fn a_client_that_accepts_nothing_learns_what_another_would_get() {
        let offer = all().offer(&asks(Method::GET, &[]));
        let mut head = answer(StatusCode::OK, &[TEXT, ("content-length", "5")]);
        assert!(offer.begin(&mut head, true).is_none());
        assert_eq!(head.headers.get(header::VARY).unwrap(), "accept-encoding");
        assert_eq!(head.headers.get(header::CONTENT_LENGTH).unwrap(), "5");
        for vary in ["*", "Origin, Accept-Encoding"] {
            let mut head = answer(StatusCode::OK, &[TEXT, ("vary", vary)]);
            assert!(offer.begin(&mut head, true).is_none());
            assert_eq!(head.headers.get_all(header::VARY).iter().count(), 1);
        }
    }

    #[test]
    fn answers_that_may_not_be_changed_pass_as_they_are() {
        let offer = all().offer(&asks(Method::GET, &["gzip"]));
        for (status, fields) in [
            (103, &[TEXT][..]),
            (204, &[TEXT]),
            (205, &[TEXT]),
            (206, &[TEXT]),
            (200, &[TEXT, ("content-range", "bytes 0-1/5")]),
            (200, &[TEXT, ("content-encoding", "br")]),
            (200, &[TEXT, ("content-encoding", "aes128gcm")]),
            (200, &[TEXT, ("cache-control", "private, No-Transform")]),
            (200, &[("content-type", "application/grpc+proto")]),
            (200, &[]),
        ] {
            let mut head = answer(StatusCode::from_u16(status).unwrap(), fields);
            let before = fields_of(&head);
            assert!(offer.begin(&mut head, true).is_none());
            assert_eq!(fields_of(&head), before, "{status} {fields:?}");
        }
    }

    #[test]
    fn answers_without_a_body_get_the_head_of_one_with_it_where_get_has_one() {
        let mut head = answer(StatusCode::OK, &[TEXT, ("content-length", "5")]);
        assert!(all().offer(&asks(Method::HEAD, &["br"])).begin(&mut head, false).is_none());
        assert_eq!(head.headers.get(header::CONTENT_ENCODING).unwrap(), "br");
        assert!(!head.headers.contains_key(header::CONTENT_LENGTH));
        let mut head = answer(StatusCode::NOT_MODIFIED, &[("etag", "\"a\"")]);
        assert!(all().offer(&asks(Method::GET, &["br"])).begin(&mut head, false).is_none());
        assert_eq!(head.headers.get(header::VARY).unwrap(), "accept-encoding");
        let mut head = answer(StatusCode::OK, &[TEXT]);
        assert!(all().offer(&asks(Method::GET, &["br"])).begin(&mut head, false).is_none());
        assert!(!head.headers.contains_key(header::CONTENT_ENCODING), "no frame of an encoder follows");
    }

    #[test]
    fn clients_of_old_http_get_plain_bytes() {
        let mut request = asks(Method::GET, &["gzip"]);
        request.version = Version::HTTP_10;
        let mut head = answer(StatusCode::OK, &[TEXT]);
        assert!(all().offer(&request).begin(&mut head, true).is_none());
        assert!(!head.headers.contains_key(header::CONTENT_ENCODING));
    }

    #[test]
    fn so_many_are_compressed_at_a_time() {
        let plan = all();
        let offer = plan.offer(&asks(Method::GET, &["gzip"]));
        let begin = || offer.begin(&mut answer(StatusCode::OK, &[TEXT]), true);
        let first = begin();
        assert!(first.is_some() && begin().is_none());
        assert_eq!(plan.refused.get(), 1);
        drop(first);
        assert!(begin().is_some());
    }

    #[test]
    fn bodies_come_back_as_they_were_and_each_part_at_once() {
        let mut parts: Vec<Vec<u8>> = (0..40_u32).map(|n| format!("data: {{\"n\": {n}}}\n\n").into_bytes()).collect();
        parts.push((0..200_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect());
        let whole = parts.concat();
        for (coding, reads) in [
            (ContentCoding::Gzip, Coding::Gzip),
            (ContentCoding::Brotli, Coding::Brotli),
            (ContentCoding::Zstd, Coding::Zstd),
        ] {
            for has_length in [false, true] {
                let plan = compression(&[coding], 1);
                let offer = plan.offer(&asks(Method::GET, &[coding.as_str()]));
                let mut head = answer(StatusCode::OK, &[TEXT]);
                if has_length {
                    head.insert_header(header::CONTENT_LENGTH, whole.len()).unwrap();
                }
                let mut compressor = offer.begin(&mut head, true).unwrap();
                let (mut sent, mut given) = (Vec::new(), 0);
                for part in &parts {
                    for slice in part.chunks(SLICE) {
                        sent.extend(compressor.feed(slice).unwrap());
                    }
                    sent.extend(compressor.flush().unwrap());
                    given += part.len();
                    if !has_length {
                        let read = reads.decode_beginning(&sent, usize::MAX).unwrap();
                        assert_eq!(read, whole[..given], "{coding:?}");
                    }
                }
                sent.extend(compressor.finish().unwrap());
                assert_eq!(reads.decode(&sent, usize::MAX).unwrap(), whole, "{coding:?}");
                assert_eq!((plan.read.get(), plan.written.get()), (whole.len() as u64, sent.len() as u64));
                assert_eq!(plan.codings[0].answers.get(), 1);
            }
        }
    }
}
