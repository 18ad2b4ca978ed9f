//! Compressed errors of servers that were shown a credential of the gateway's. A repeated credential cannot be masked in
//! compressed bytes. Such an answer is read whole, within bounds, decoded and sent without a coding. An answer that cannot
//! be decoded loses its body and keeps its status. Inputs are the head and the bytes of an answer.

use std::io::Read;

use bytes::Bytes;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use pingora::http::ResponseHeader;
use spillway_filter::{ErrorKind, Refusal};

use super::masking::SentCredentials;
use crate::exchange::Exchange;
use crate::protocol::render;

/// Most bytes of a compressed error that are read. Errors of APIs have some hundred bytes, pages of frameworks some tens of
/// KiB before they are compressed.
pub(super) const MAX_ENCODED: usize = 64 << 10;

/// Most bytes of a decoded error. With the bound on the compressed bytes it bounds the work of the decoder at any ratio.
const MAX_DECODED: u64 = 256 << 10;

/// Bytes that the decoder of Brotli reads at a time.
const BROTLI_BUFFER: usize = 4 << 10;

/// Largest window of Zstandard as a power of two: the 8 MiB that RFC 9659 allows for this coding. The memory is freed with
/// the decoder, before anything else runs on its thread.
const ZSTD_WINDOW: u32 = 23;

/// Code of an answer whose body was left out.
pub(super) const WITHHELD: &str = "upstream_error_withheld";

/// Fields that describe the bytes of a body, which are others after decoding.
static OF_THE_BYTES: [HeaderName; 8] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::ETAG,
    header::ACCEPT_RANGES,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// Coding of a body (RFC 9110, 8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// None, or one that changes nothing.
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
    /// Several codings, or an unknown one.
    Unknown,
}

impl Coding {
    /// The coding that a head, as its server sent it, names.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        // A transfer coding was not requested, and a client would read its bytes as the body.
        let is_chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        if !headers.get_all(header::TRANSFER_ENCODING).iter().all(is_chunked) {
            return Self::Unknown;
        }
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let mut names = names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        let Some(name) = names.next() else { return Self::Identity };
        if names.next().is_some() {
            return Self::Unknown;
        }
        match name.to_ascii_lowercase().as_slice() {
            b"gzip" | b"x-gzip" => Self::Gzip,
            b"deflate" => Self::Deflate,
            b"br" => Self::Brotli,
            b"zstd" => Self::Zstd,
            _ => Self::Unknown,
        }
    }

    /// Decoded bytes of a whole body; `None` where the coding is another, or the bytes are too many.
    fn decode(self, body: &[u8]) -> Option<Vec<u8>> {
        match self {
            // Of an unknown coding nothing was read.
            Self::Unknown => None,
            _ if body.is_empty() => Some(Vec::new()),
            Self::Identity => Some(body.to_vec()),
            Self::Gzip => read(MultiGzDecoder::new(body)),
            // With the frame of zlib, as in the RFC, or without, as some servers write it and clients accept it.
            Self::Deflate => read(ZlibDecoder::new(body)).or_else(|| read(DeflateDecoder::new(body))),
            Self::Brotli => read(brotli::Decompressor::new(body, BROTLI_BUFFER)),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(body).ok()?;
                decoder.window_log_max(ZSTD_WINDOW).ok()?;
                read(decoder)
            }
        }
    }
}

/// All bytes of a decoder, if it ends in order and within the bound.
fn read(decoder: impl Read) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    decoder.take(MAX_DECODED + 1).read_to_end(&mut out).ok()?;
    (u64::try_from(out.len()).ok()? <= MAX_DECODED).then_some(out)
}

/// Removes the fields that describe the bytes of a body from its head.
pub(super) fn without_coding(head: &mut ResponseHeader) {
    for name in &OF_THE_BYTES {
        head.remove_header(name);
    }
}

/// Decodes and masks the body of an answer, and adapts its head. A body that cannot be decoded is replaced by an error that
/// says so.
pub(super) fn decode_error_body(
    coding: Coding,
    body: &[u8],
    shown: &SentCredentials,
    head: &mut ResponseHeader,
    exchange: &mut Exchange,
) -> Bytes {
    without_coding(head);
    let decoded = if body.len() > MAX_ENCODED { None } else { coding.decode(body) };
    let body = match decoded {
        Some(plain) => match shown.mask() {
            Some(mask) => mask.whole(plain.into()),
            None => plain.into(),
        },
        None => {
            exchange.outcome.error_code = Some(WITHHELD);
            let refusal = withheld(head.status);
            let rendered = render(&refusal, exchange.dialect, exchange.request_id.to_str().unwrap_or_default());
            let of_the_body = [header::CONTENT_LANGUAGE, header::CONTENT_LOCATION, header::CONTENT_DISPOSITION];
            for name in of_the_body.iter().chain([&header::CONTENT_RANGE, &header::LAST_MODIFIED]) {
                head.remove_header(name);
            }
            let _ = head.insert_header(header::CONTENT_TYPE, rendered.content_type);
            rendered.body
        }
    };
    let _ = head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    body
}

fn withheld(status: StatusCode) -> Refusal {
    let message = format!(
        "the backend answered {}; its text is left out, because it is compressed in a way, or longer than, the gateway can \
         search for credentials (gzip, deflate, br or zstd, at most {} KiB, decoded {} KiB)",
        status.as_u16(),
        MAX_ENCODED >> 10,
        MAX_DECODED >> 10
    );
    Refusal::new(status, ErrorKind::Upstream, WITHHELD, message)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn encoded(text: &[u8]) -> Vec<(Coding, Vec<u8>)> {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(text).unwrap();
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(text).unwrap();
        let mut brotli = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
        brotli.write_all(text).unwrap();
        vec![
            (Coding::Gzip, gzip(text)),
            (Coding::Gzip, [gzip(&text[..text.len() / 2]), gzip(&text[text.len() / 2..])].concat()),
            (Coding::Deflate, zlib.finish().unwrap()),
            (Coding::Deflate, deflate.finish().unwrap()),
            (Coding::Brotli, brotli.into_inner()),
            (Coding::Zstd, zstd::encode_all(text, 3).unwrap()),
            (Coding::Identity, text.to_vec()),
        ]
    }

    #[test]
    fn the_coding_of_a_head_is_one_or_none_that_is_known() {
        for (fields, coding) in [
            (&[][..], Coding::Identity),
            (&[("transfer-encoding", "Chunked")], Coding::Identity),
            (&[("content-encoding", "identity")], Coding::Identity),
            (&[("content-encoding", "")], Coding::Identity),
            (&[("content-encoding", "GZip")], Coding::Gzip),
            (&[("content-encoding", " x-gzip , identity")], Coding::Gzip),
            (&[("content-encoding", "deflate")], Coding::Deflate),
            (&[("content-encoding", "br")], Coding::Brotli),
            (&[("content-encoding", "zstd")], Coding::Zstd),
            (&[("content-encoding", "gzip, br")], Coding::Unknown),
            (&[("content-encoding", "gzip"), ("content-encoding", "gzip")], Coding::Unknown),
            (&[("content-encoding", "compress")], Coding::Unknown),
            (&[("transfer-encoding", "gzip, chunked")], Coding::Unknown),
            (&[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], Coding::Unknown),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert_eq!(Coding::of(&headers), coding, "{fields:?}");
        }
    }

    #[test]
    fn every_coding_is_decoded_and_what_is_cut_or_spoiled_is_not() {
        let text: Vec<u8> = (0..20_000_u32).flat_map(|n| (n * n).to_string().into_bytes()).take(50_000).collect();
        for (coding, body) in encoded(&text) {
            assert!(coding.decode(&body).is_some_and(|plain| plain == text), "{coding:?}");
            assert_eq!(coding.decode(&[]), Some(Vec::new()), "{coding:?}");
            if coding == Coding::Identity {
                continue;
            }
            for cut in [1, 2, 10, body.len() / 2, body.len() - 1] {
                assert_ne!(coding.decode(&body[..cut]).as_deref(), Some(&text[..]), "{coding:?} cut at {cut}");
            }
            assert_eq!(coding.decode(b"\xff\xffno coding at all"), None, "{coding:?}");
        }
        assert_eq!(Coding::Unknown.decode(b"text"), None);
    }

    #[test]
    fn what_grows_too_large_is_not_decoded() {
        let most = usize::try_from(MAX_DECODED).unwrap();
        let compressed =
            |length: usize| encoded(&vec![b'x'; length]).into_iter().filter(|(c, _)| *c != Coding::Identity);
        for (coding, body) in compressed(most) {
            assert_eq!(coding.decode(&body).map(|plain| plain.len()), Some(most), "{coding:?}");
        }
        for (coding, body) in compressed(most + 1) {
            assert_eq!(coding.decode(&body), None, "{coding:?}");
        }
        let bomb = gzip(&vec![0; 40 << 20]);
        assert!(bomb.len() < MAX_ENCODED, "{} bytes", bomb.len());
        assert_eq!(Coding::Gzip.decode(&bomb), None);
        // A window that is larger than the coding may have.
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(b"short").unwrap();
        assert_eq!(Coding::Zstd.decode(&encoder.finish().unwrap()), None);
    }
}
